"""Measures convolutions, training steps, inference and the pipeline, and prints a table of each."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import re
import statistics
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from keras_deeplab.cli.options import SIZE, Parser, command, height_and_width, one_of, positive
from keras_deeplab.files import write_json
from training.benchmark import convolutions, pipeline, routes
from training.benchmark.race import race
from training.benchmark.steps import DTYPES, NETWORKS, PACKAGES, SMP, Case

PARTS = ("convolution", "step", "inference", "pipeline")
LIBRARIES = ("tensorflow", "keras", "numpy", *SMP, "torchvision", "keras-hub")
LIBRARIES += ("onnxruntime", "openvino", "ai-edge-litert")
OWN = "keras_deeplab"


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="python -m training.benchmark",
        description="Measures dilated convolutions in all formulations, training steps with their "
        "memory and inference beside those of other packages that are installed, and the training "
        "pipeline.",
    )
    add = made.add_argument
    add("--parts", **one_of(PARTS), nargs="+", default=PARTS)
    add("--models", **one_of(NETWORKS), nargs="+", default=tuple(NETWORKS))
    add(
        "--dtypes",
        **one_of((*DTYPES, "int8")),
        nargs="+",
        default=(*DTYPES, "int8"),
        help="int8 is of inference alone",
    )
    add("--size", **SIZE, default=(512, 512), help="one number for a square")
    add("--batch-size", type=positive, default=4)
    add("--steps", type=positive, default=5, help="timed rounds of each, after two to warm up")
    add(
        "--threads",
        type=positive,
        default=cores(),
        help="threads of each program; the table of convolutions takes all",
    )
    add("--data", type=Path, help="folder with a train split to read instead of generated files")
    add("--batches", type=positive, default=36, help="timed batches of the pipeline")
    add("--output", type=Path, help="JSON file for all measurements")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    size = height_and_width(options.size)
    measured: dict[str, Any] = machine()
    dtypes = [dtype for dtype in options.dtypes if dtype in DTYPES]  # that networks train in
    measured["settings"] = {name: str(value) for name, value in vars(options).items()}
    print(f"{measured['processor']}, {cores()} cores")
    if "step" in options.parts:  # first, while this process is idle and small
        measured["steps"] = rows = []
        for network, dtype in itertools.product(options.models, dtypes):
            settings = size, options.batch_size, options.threads
            cases = [
                Case(name, network, dtype, *settings)
                for name, package in PACKAGES.items()
                if network in package.networks
            ]
            print(f"{network}, {dtype}: {', '.join(case.package for case in cases)}")
            rows += race("steps", cases, options.steps)
        print(f"\nA training step\n\n{steps_table(rows)}")
    if "inference" in options.parts:
        measured["inference"] = rows = []
        for network, dtype in itertools.product(options.models, options.dtypes):
            if network in routes.NETWORKS:
                print(f"Inference, {network}, {dtype}")
                rows += race("routes", routes.cases(network, dtype, options.threads), options.steps)
        print(f"\nInference, one image\n\n{inference_table(rows)}")
    if "convolution" in options.parts:
        measured["convolutions"] = rows = []
        for dtype in dtypes:
            print(f"Dilated convolutions, {dtype}")
            rows += convolutions.measure(dtype, options.steps)
        print(f"\nForward / with gradients, ms\n\n{convolutions_table(rows)}")
    if "pipeline" in options.parts:
        print("The pipeline: files are read, not cached and cached")
        measured["pipeline"] = pipeline.measure(
            options.data, size=size, batch_size=options.batch_size, batches=options.batches
        )
        print(f"\nThe pipeline alone\n\n{pipeline_table(measured['pipeline'])}")
    if options.output is not None:
        write_json(options.output, measured)
        print(f"Wrote {options.output}")


def cores() -> int:
    """Returns the number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Returns processor, cores and versions."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    processor = named[1] if named else platform.processor() or platform.machine()
    versions = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"processor": processor, "cores": cores(), "versions": versions}


def markdown(header: str, lines: Sequence[Sequence[str]]) -> str:
    """Returns a table whose header is text of names separated by commas."""
    names = header.split(", ")
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (names, ["---"] * len(names), *lines))


def steps_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table of training steps, the median of each."""
    medians = {
        (row["network"], row["dtype"], row["package"]): statistics.median(row["seconds"])
        for row in rows
        if not row["problem"]
    }
    lines = []
    for row in rows:
        case = network, dtype, _ = row["network"], row["dtype"], row["package"]
        if row["problem"]:
            lines.append([*case, "-", row["problem"], "-", "-", "-"])
            continue
        own = medians.get((network, dtype, OWN))
        lines.append(
            [
                *case,
                f"{row['parameters']:,}",
                f"{medians[case]:.2f} s",
                f"{medians[case] / own:.2f}" if own else "-",
                f"{statistics.median(row['processor_seconds']):.2f} s",
                f"{row['peak_bytes'] / 2**30:.1f} GiB",
            ]
        )
    header = "network, dtype, package, parameters, step, relative, processor, memory"
    return markdown(header, lines)


def inference_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table of inference, the median of each and its ratio to the best peer's."""
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        if not row["problem"] and not row["package"].startswith(OWN):
            key, seconds = (row["network"], row["dtype"]), statistics.median(row["seconds"])
            best[key] = min(seconds, best.get(key, seconds))
    lines = []
    for row in rows:
        shown = [row["network"], row["dtype"], row["package"]]
        if row["problem"]:
            lines.append([*shown, row["problem"], "-"])
            continue
        seconds, peer = statistics.median(row["seconds"]), best.get((shown[0], shown[1]))
        lines.append([*shown, f"{1000 * seconds:.0f}", f"{seconds / peer:.2f}" if peer else "-"])
    return markdown("network, dtype, route, ms, relative to the best peer", lines)


def convolutions_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table of dilated convolutions, the medians of each formulation."""
    lines = []
    for row in rows:
        shown = [row["dtype"], *convolutions.cells(row["map"])]
        for name in convolutions.COLUMNS:
            both = row["seconds"].get(name)
            shown.append("-" if both is None else " / ".join(f"{1000 * s:.0f}" for s in both))
        lines.append(shown)
    header = f"dtype, map, channels, rate, {', '.join(convolutions.COLUMNS)}"
    return markdown(header, lines)


def pipeline_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table of the pipeline."""
    lines = []
    for row in rows:
        crop = "x".join(map(str, row["crop_size"]))
        cached = "cached" if row["cached"] else "not cached"
        lines.append([row["files"], crop, cached, f"{row['images_per_second']:.1f}"])
    return markdown("files, crop, images, images/s", lines)


if __name__ == "__main__":
    raise SystemExit(main())
