"""Measures the speed of training: `python -m training.benchmark`."""

from __future__ import annotations

import argparse
import os
import platform
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, for which Python looks for packages beside it alone
    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module("training.benchmark", run_name="__main__")

from keras_deeplab import data
from keras_deeplab.cli.options import SIZE, Parser, command, one_of, positive
from keras_deeplab.files import write_json
from training import benchmark_pipeline, benchmark_steps
from training.benchmark_child import DTYPES, NETWORKS
from training.benchmark_pipeline import Files, Rate, Waiting
from training.benchmark_steps import Result

PARTS = ("pipeline", "waiting", "step")
GIB = 1024**3
ABSENT = "-"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="python -m training.benchmark",
        description="Measures the training pipeline's images a second, how long steps wait for "
        "it, and training steps of DeepLabV3+ with their memory, beside other packages' where "
        "they are installed.",
    )
    add = made.add_argument
    add("--parts", **one_of(PARTS), nargs="+", default=PARTS)
    add("--models", **one_of(NETWORKS), nargs="+", default=tuple(NETWORKS))
    add("--dtypes", **one_of(DTYPES), nargs="+", default=DTYPES)
    add("--size", **SIZE, default=(512, 512), help="one number for a square")
    add("--batch-size", type=positive, default=4)
    add("--steps", type=positive, default=5, help="timed steps of each, after two to warm up")
    add("--threads", type=positive, default=cores(), help="threads of a training step")
    add("--alone", action="store_true", help="leave out other packages")
    add("--data", type=Path, help="folder with a train split to read instead of files made for it")
    add("--images", type=positive, default=24, help="files made of each kind")
    add("--batches", type=positive, default=12, help="timed batches of the pipeline, a round")
    add("--rounds", type=positive, default=3, help="rounds of the pipeline")
    add("--output", type=Path, help="file for everything measured, as JSON")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    size = tuple(options.size)
    measured: dict[str, Any] = {
        "machine": {
            "processor": processor(),
            "cores": cores(),
            "python": platform.python_version(),
            **benchmark_steps.versions(),
        },
        "settings": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
        },
    }
    print(f"{measured['machine']['processor']}, {cores()} cores")
    # Steps first, while this process is idle and small.
    if "step" in options.parts:
        steps = benchmark_steps.measure(
            options.models,
            options.dtypes,
            size=size,
            batch_size=options.batch_size,
            steps=options.steps,
            threads=options.threads,
            alone=options.alone,
        )
        measured["steps"] = [result.to_dict() for result in steps]
        title = f"{size[0]}x{size[1]}, batch {options.batch_size}, {options.threads} threads"
        print(f"\nA training step, {title}\n")
        print(steps_table(steps))
    if {"pipeline", "waiting"} & set(options.parts):
        with tempfile.TemporaryDirectory() as folder:
            measured.update(read_data(options, size, Path(folder)))
    if options.output is not None:
        write_json(options.output, measured)
        print(f"Written to {options.output}")
    return 0


def read_data(options: argparse.Namespace, size: tuple[int, int], folder: Path) -> dict[str, Any]:
    """Measures and prints what has to do with files; those that are made lie in `folder`."""
    measured: dict[str, Any] = {}
    sources = opened(options, size, folder)
    if "pipeline" in options.parts:
        rates = benchmark_pipeline.rates(
            sources,
            batch_size=options.batch_size,
            batches=options.batches,
            rounds=options.rounds,
        )
        measured["pipeline"] = [rate.to_dict() for rate in rates]
        print(f"\nThe training pipeline alone\n\n{rates_table(rates)}")
    if "waiting" in options.parts:
        waits = benchmark_pipeline.waiting(
            sources, batch_size=options.batch_size, steps=options.steps
        )
        measured["waiting"] = [wait.to_dict() for wait in waits]
        print(f"\nDeepLabV3Plus on MobileNetV2, waiting for data\n\n{waiting_table(waits)}")
    return measured


def opened(
    options: argparse.Namespace, crop_size: tuple[int, int], folder: Path
) -> list[tuple[Files, data.Source]]:
    """The data sets to read: the user's, or files that are written now."""
    if options.data is not None:
        source = data.open_source(options.data)
        source.check_split("train")
        return [(Files(options.data.name, (0, 0), "", crop_size), source)]
    found = []
    for kind in benchmark_pipeline.kinds(crop_size):
        print(f"writing {options.images} files {kind.name}")
        root = folder / kind.suffix.strip(".")
        benchmark_pipeline.write_folder(root, kind, options.images)
        found.append((kind, data.Folder(root)))
    return found


def cores() -> int:
    """The processors that this process may use."""
    known = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(known(0)) if known else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as far as the system tells."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def steps_table(results: Sequence[Result]) -> str:
    """Training steps: medians, ratios to ours, peaks of memory."""
    head = ("network", "dtype", "package", "parameters", "step", "to ours", "processor", "memory")
    return markdown(head, [_step_cells(result) for result in results])


def _step_cells(result: Result) -> list[str]:
    title = benchmark_steps.TITLES[result.package]
    cells = [result.network, result.dtype, title]
    if result.problem is not None:
        return [*cells, ABSENT, result.problem, ABSENT, ABSENT, ABSENT]
    return [
        *cells,
        f"{result.parameters:,}",
        f"{result.median:.2f} s",
        ABSENT if result.ratio is None else f"{result.ratio:.2f}",
        f"{result.processor_median:.2f} s",
        f"{result.peak_bytes / GIB:.1f} GiB",
    ]


def rates_table(rates: Sequence[Rate]) -> str:
    """The pipeline's images a second."""
    head = ("files", "crop", "images", "images/s")
    return markdown(head, [[*_origin(rate), f"{rate.median:.1f}"] for rate in rates])


def waiting_table(waits: Sequence[Waiting]) -> str:
    """The share of time spent waiting."""
    head = ("files", "crop", "images", "time spent waiting", "to a step without a pipeline")
    rows = [[*_origin(wait), f"{wait.share:.1%}", f"{wait.slowdown:.2f}"] for wait in waits]
    return markdown(head, rows)


def _origin(measured: Rate | Waiting) -> list[str]:
    crop = "x".join(map(str, measured.crop_size))
    return [measured.files, crop, "cached" if measured.cached else "not cached"]


if __name__ == "__main__":
    raise SystemExit(main())
