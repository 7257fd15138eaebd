"""Training steps of several packages in turn, each package in its own process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from training.benchmark import networks

OURS = "keras_deeplab"


SMP = ("segmentation_models_pytorch", "torch", "torchvision")
SMP_NETWORKS = ("resnet50", "mobilenet_v2")
# Title, what must be installed and networks of each package.
PACKAGES: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    OURS: ("keras_deeplab", (OURS,), tuple(networks.NETWORKS)),
    "segmentation_models_pytorch": ("segmentation_models.pytorch", SMP, SMP_NETWORKS),
    "segmentation_models_pytorch_channels_last": (
        "segmentation_models.pytorch, channels last",
        SMP,
        SMP_NETWORKS,
    ),
    "keras_hub": ("KerasHub", ("keras_hub",), ("resnet50_dense_32",)),
}


class Child:
    """A process that trains one case. `row` holds its measurements, or why it failed.

    `processor_seconds` are those of all threads together: on a machine that is not idle they say
    more than the time that passes.
    """

    def __init__(self, case: dict[str, Any]) -> None:
        self.row: dict[str, Any] = {name: case[name] for name in ("network", "dtype", "package")}
        self.row |= {"problem": None, "seconds": [], "processor_seconds": [], "losses": []}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in `finish`
        root = str(Path(__file__).parents[2])
        paths = [root, os.environ.get("PYTHONPATH", "")]
        # A new program, not a fork, which would share this process's threads and memory. -P keeps
        # the folder of the file, with its plain names, out of the imports.
        self._process = subprocess.Popen(
            [sys.executable, "-P", networks.__file__, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
                "KERAS_BACKEND": "tensorflow",
            },
        )
        self.row["parameters"] = self._read().get("parameters")  # waits for the warm-up

    def step(self) -> None:
        """Makes one timed step."""
        if self.row["problem"] is None:
            with suppress(BrokenPipeError):  # the missing line says why
                self._process.stdin.write("step\n")
                self._process.stdin.flush()
            for name, value in self._read().items():
                self.row[name].append(value)

    def finish(self) -> None:
        """Reads the peak of the memory and ends the process."""
        try:
            if self.row["problem"] is None:
                self._process.stdin.close()
                self.row |= self._read()
        finally:
            self._process.kill()
            with suppress(BrokenPipeError), self._process:  # closes its pipes and waits for it
                pass
            self._errors.close()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().split("\n")[-1]
        self.row["problem"] = f"ended with status {code}: {last}"
        return {}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that are installed."""
    found = {}
    for name in ("tensorflow", "keras", "numpy", *SMP, "keras-hub"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def measure(
    models: Sequence[str], dtypes: Sequence[str], steps: int, **case: Any
) -> list[dict[str, Any]]:
    """Measures every network in every dtype, ours and the others'.

    Args:
        models: Keys of `networks.NETWORKS`.
        dtypes: Of `networks.DTYPES`; the variables are float32 in both.
        steps: Timed steps of each, after the warm-up.
        **case: `size` `(height, width)` of images and loss, `batch_size` and number of `threads`.

    Returns:
        A row per network, dtype and package, ours first.
    """
    rows = []
    for model, dtype in itertools.product(models, dtypes):
        group = []
        with ExitStack() as stack:
            children = []
            for name, (title, needs, its_networks) in PACKAGES.items():
                if model not in its_networks:
                    continue
                this = {"network": model, "dtype": dtype, "package": name}
                missing = [need for need in needs if importlib.util.find_spec(need) is None]
                if missing:
                    group.append({**this, "problem": f"{missing[0]} not installed", "seconds": []})
                    continue
                print(f"{model}, {dtype}: {title}")
                children.append(Child({**this, **case}))
                stack.callback(children[-1].finish)
                group.append(children[-1].row)
            for _ in range(steps):  # in turn, so that a busy minute slows all of them alike
                for child in children:
                    child.step()
        rows += with_ratios(group)
    return rows


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sets `ratio`: the median of how many times as long a step takes as ours just before."""
    for row in rows:
        pairs = zip(row["seconds"], rows[0]["seconds"], strict=False)
        ratios = [other / own for other, own in pairs]
        row["ratio"] = statistics.median(ratios) if ratios else None
    return rows
