"""Measures the input pipeline and training steps, and prints a table of each."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_deeplab import data
from keras_deeplab.cli.options import SIZE, Parser, command, height_and_width, one_of, positive
from keras_deeplab.files import write_json
from training.benchmark import pipeline, steps
from training.benchmark.networks import DTYPES, NETWORKS

PARTS = ("pipeline", "waiting", "step")


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="python -m training.benchmark",
        description="Measures images a second of the training pipeline, the time that steps wait "
        "for it, and training steps of DeepLabV3+ with their memory, beside those of other "
        "packages that are installed.",
    )
    add = made.add_argument
    add("--parts", **one_of(PARTS), nargs="+", default=PARTS)
    add("--models", **one_of(NETWORKS), nargs="+", default=tuple(NETWORKS))
    add("--dtypes", **one_of(DTYPES), nargs="+", default=DTYPES)
    add("--size", **SIZE, default=(512, 512), help="one number for a square")
    add("--batch-size", type=positive, default=4)
    add("--steps", type=positive, default=5, help="timed steps of each, after two to warm up")
    add("--threads", type=positive, default=cores(), help="threads of a training step")
    add("--data", type=Path, help="folder with a train split to read instead of generated files")
    add("--images", type=positive, default=24, help="generated files of each kind")
    add("--batches", type=positive, default=12, help="timed batches of the pipeline, a round")
    add("--rounds", type=positive, default=3, help="rounds of the pipeline")
    add("--output", type=Path, help="JSON file for all measurements")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    size = height_and_width(options.size)
    settings = {**vars(options), "data": str(options.data), "output": str(options.output)}
    measured: dict[str, Any] = {"machine": machine(), "settings": settings}
    print(f"{measured['machine']['processor']}, {cores()} cores")
    if "step" in options.parts:  # first, while this process is idle and small
        measured["steps"] = steps.measure(
            options.models,
            options.dtypes,
            options.steps,
            size=size,
            batch_size=options.batch_size,
            threads=options.threads,
        )
        print(f"\nA training step\n\n{markdown(measured['steps'], STEP_COLUMNS)}")
    with tempfile.TemporaryDirectory() as folder:
        if {"pipeline", "waiting"} & set(options.parts):
            sources = open_sources(options, size, Path(folder))
        if "pipeline" in options.parts:
            measured["pipeline"] = pipeline.rates(
                sources,
                batch_size=options.batch_size,
                batches=options.batches,
                rounds=options.rounds,
            )
            print(f"\nThe pipeline alone\n\n{markdown(measured['pipeline'], RATE_COLUMNS)}")
        if "waiting" in options.parts:
            measured["waiting"] = pipeline.waiting(
                sources, batch_size=options.batch_size, steps=options.steps
            )
            table = markdown(measured["waiting"], WAITING_COLUMNS)
            print(f"\nDeepLabV3Plus on MobileNetV2, waiting for data\n\n{table}")
    if options.output is not None:
        write_json(options.output, measured)
        print(f"Wrote {options.output}")
    return 0


def open_sources(
    options: argparse.Namespace, crop_size: tuple[int, int], folder: Path
) -> list[tuple[pipeline.Files, data.Source]]:
    """Opens the data set given, or generates files in `folder`."""
    if options.data is not None:
        source = data.open_source(options.data)
        source.check_split("train")
        return [(pipeline.Files(options.data.name, (0, 0), "", crop_size), source)]
    found = []
    for kind in pipeline.kinds(crop_size):
        print(f"Writing {options.images} files {kind.name}")
        root = folder / kind.suffix.strip(".")
        pipeline.write_folder(root, kind, options.images)
        found.append((kind, data.Folder(root)))
    return found


def cores() -> int:
    """Returns the number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Returns processor, cores and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    python = platform.python_version()
    return {"processor": processor, "cores": cores(), "python": python, **steps.versions()}


def markdown(rows: Sequence[dict], columns: dict[str, Callable[[dict], str]]) -> str:
    """Returns a table, where a column is a function of a row."""
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    lines = [list(columns), ["---"] * len(columns), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _measured(form: Callable[[dict], str]) -> Callable[[dict], str]:
    return lambda row: "-" if row["problem"] else form(row)


STEP_COLUMNS = {
    "network": lambda row: row["network"],
    "dtype": lambda row: row["dtype"],
    "package": lambda row: steps.PACKAGES[row["package"]][0],
    "parameters": _measured(lambda row: f"{row['parameters']:,}"),
    "step": lambda row: row["problem"] or f"{statistics.median(row['seconds']):.2f} s",
    "relative": _measured(lambda row: f"{row['ratio']:.2f}" if row["ratio"] else "-"),
    "processor": _measured(lambda row: f"{statistics.median(row['processor_seconds']):.2f} s"),
    "memory": _measured(lambda row: f"{row['peak_bytes'] / 2**30:.1f} GiB"),
}
_FILE_COLUMNS = {
    "files": lambda row: row["files"],
    "crop": lambda row: "x".join(map(str, row["crop_size"])),
    "images": lambda row: "cached" if row["cached"] else "not cached",
}
RATE_COLUMNS = {
    **_FILE_COLUMNS,
    "images/s": lambda row: f"{statistics.median(row['images_per_second']):.1f}",
}
WAITING_COLUMNS = {
    **_FILE_COLUMNS,
    "time spent waiting": lambda row: f"{row['waiting_share']:.1%}",
    "relative to a step without pipeline": lambda row: f"{row['slowdown']:.2f}",
}

if __name__ == "__main__":
    raise SystemExit(main())
