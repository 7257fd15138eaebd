"""Training steps of several packages beside each other, for `training.benchmark`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training import benchmark_child
from training.benchmark_child import Case

OURS = "keras_deeplab"
TITLES = {
    OURS: "keras_deeplab",
    "segmentation_models_pytorch": "segmentation_models.pytorch",
    "segmentation_models_pytorch_channels_last": "segmentation_models.pytorch, channels last",
    "keras_hub": "KerasHub",
}
# What must be installed, the package itself first.
_SMP = ("segmentation_models_pytorch", "torch", "torchvision")
NEEDS = {
    OURS: ("keras_deeplab",),
    "segmentation_models_pytorch": _SMP,
    "segmentation_models_pytorch_channels_last": _SMP,
    "keras_hub": ("keras_hub",),
}
RIVALS = {
    "resnet50": ("segmentation_models_pytorch", "segmentation_models_pytorch_channels_last"),
    "mobilenet_v2": ("segmentation_models_pytorch", "segmentation_models_pytorch_channels_last"),
    "resnet50_dense_32": ("keras_hub",),
}
NOT_INSTALLED = "not installed"


@dataclass
class Result:
    """What a case measured; `problem` says why there is nothing.

    `processor_seconds` are those of all threads together: on a machine that is not idle they tell
    more than the time that passes.
    """

    network: str
    dtype: str
    package: str
    parameters: int | None = None
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    problem: str | None = None
    ratio: float | None = None

    @property
    def median(self) -> float | None:
        """The median of the steps' seconds."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def processor_median(self) -> float | None:
        """The median of the steps' seconds on all processors together."""
        return statistics.median(self.processor_seconds) if self.processor_seconds else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        medians = {
            "median_seconds": self.median,
            "median_processor_seconds": self.processor_median,
        }
        return {**asdict(self), **medians}


class Child:
    """A process that trains one case; a case that fails keeps its error and makes no steps."""

    def __init__(self, case: Case) -> None:
        self.result = Result(case.network, case.dtype, case.package)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in `finish`
        paths = [str(Path(benchmark_child.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        # A new program, not a fork: nothing of this process's threads and memory goes along. -P
        # keeps the folder of the file, with its plain names, out of the imports.
        self._process = subprocess.Popen(
            [sys.executable, "-P", benchmark_child.__file__, case.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in paths if path),
                "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
                "KERAS_BACKEND": "tensorflow",
            },
        )

    def wait_until_ready(self) -> None:
        """Waits for the end of the warm-up."""
        self.result.parameters = self._answer().get("parameters")

    def step(self) -> None:
        """Lets the process make one step."""
        if self.result.problem is None:
            with suppress(BrokenPipeError):  # the missing answer says why
                self._process.stdin.write("step\n")
                self._process.stdin.flush()
            answer = self._answer()
            if answer:
                self.result.seconds.append(answer["seconds"])
                self.result.processor_seconds.append(answer["processor_seconds"])
                self.result.losses.append(answer["loss"])

    def finish(self) -> None:
        """Asks for the peak of the memory and ends the process."""
        try:
            if self.result.problem is None:
                self._process.stdin.close()
                self.result.peak_bytes = self._answer().get("peak_bytes")
        finally:
            self._process.kill()
            with suppress(BrokenPipeError), self._process:  # closes its pipes and waits for it
                pass
            self._errors.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().split("\n")[-1]
        self.result.problem = f"ended with status {code}: {last}"
        return {}


def missing(package: str) -> str | None:
    """What `package` lacks to be run here: "not installed", with a name if it is another's."""
    for name in NEEDS[package]:
        if importlib.util.find_spec(name) is None:
            return NOT_INSTALLED if name == NEEDS[package][0] else f"{name} {NOT_INSTALLED}"
    return None


def versions() -> dict[str, str]:
    """Versions of what took part, as far as it is installed."""
    names = (
        "tensorflow",
        "keras",
        "numpy",
        "torch",
        "torchvision",
        "segmentation_models_pytorch",
        "keras-hub",
    )
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = NOT_INSTALLED
    return found


def in_turn(runners: Sequence[Child], rounds: int) -> None:
    """Makes the steps one by one in turn, so that a busy minute slows all of them alike."""
    for _ in range(rounds):
        for runner in runners:
            runner.step()


@contextmanager
def running(cases: Sequence[Case]) -> Iterator[list[Child]]:
    """Processes that have warmed up, one after the other, and end with the block."""
    with ExitStack() as stack:
        children = []
        for case in cases:
            child = Child(case)
            stack.callback(child.finish)
            child.wait_until_ready()
            children.append(child)
        yield children


def measure(
    networks: Sequence[str],
    dtypes: Sequence[str],
    *,
    size: tuple[int, int],
    batch_size: int,
    steps: int,
    threads: int,
    alone: bool = False,
    report: Callable[[str], None] = print,
) -> list[Result]:
    """Measures every network in every dtype, ours and what others have of it.

    Args:
        networks: Keys of `benchmark_child.NETWORKS`.
        dtypes: Of `benchmark_child.DTYPES`; the variables are float32 in both.
        size: `(height, width)` of images and loss.
        batch_size: Images a step.
        steps: Timed steps of each, after the warm-up.
        threads: Threads that compute.
        alone: Whether other packages are left out.
        report: Is told what is under way.

    Returns:
        A `Result` per network, dtype and package, ours first, with `ratio` to ours.
    """
    results = []
    for network in networks:
        for dtype in dtypes:
            packages = [OURS, *(() if alone else RIVALS[network])]
            lacking = {package: missing(package) for package in packages}
            cases = [
                Case(package, network, dtype, size, batch_size, threads)
                for package in packages
                if lacking[package] is None
            ]
            report(f"{network}, {dtype}: {', '.join(TITLES[case.package] for case in cases)}")
            with running(cases) as children:
                in_turn(children, steps)
            found = {child.result.package: child.result for child in children}
            for package, problem in lacking.items():
                if problem is not None:
                    found[package] = Result(network, dtype, package, problem=problem)
            results += with_ratios([found[package] for package in packages])
    return results


def with_ratios(results: Sequence[Result]) -> list[Result]:
    """Sets how many times as long as ours each takes; the first is ours."""
    ours = results[0]
    for result in results:
        if ours.seconds and result.seconds:
            # Step by step, since the two stood beside each other in time.
            pairs = zip(result.seconds, ours.seconds, strict=False)
            result.ratio = statistics.median(other / own for other, own in pairs)
    return list(results)
