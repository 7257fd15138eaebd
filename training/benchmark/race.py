"""Programs timed in turn, each in a process of its own.

This file is also the program of these processes. They import only what their package needs, as the
memory is that of the whole process. They run one at a time, step by step in turn, so that a change
of the machine's load or clock meets all of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

WARM_UP = 2  # the first step traces, the second still fills caches of memory and kernels
PAUSE = 0.3  # seconds; threads of some libraries spin for a while after their work
ROOT = Path(__file__).parents[2]
MARK = "benchmark: "  # begins the lines that are not a library's

Step = Callable[[], Any]


class Package(NamedTuple):
    """How a package's program is made, and the modules that must be installed."""

    build: Callable[[Any], tuple[Step, dict[str, Any]]]  # the step, and facts about the program
    modules: tuple[str, ...]
    networks: tuple[str, ...] = ()  # that it has, where others have more


def race(part: str, cases: Sequence[Any], rounds: int) -> list[dict[str, Any]]:
    """Times the cases of one comparison in turn.

    Args:
        part: Module of this folder with `Case` and `PACKAGES`.
        cases: Cases of the module.
        rounds: Timed steps of each.

    Returns:
        For each case its fields, the facts of its program, `seconds` and `processor_seconds` (of
        all threads) of each step, `peak_bytes`, and `problem`, the reason where there is none of
        these.
    """
    runners = [_Runner(part, case) for case in cases]
    for _ in range(WARM_UP):
        for runner in runners:
            runner.step()
    for _ in range(rounds):
        for runner in runners:
            time.sleep(PAUSE)
            runner.step(is_timed=True)
    return [runner.finish() for runner in runners]


class _Runner:
    """A process and what it has measured."""

    def __init__(self, part: str, case: Any) -> None:
        self.row: dict[str, Any] = {**case._asdict(), "problem": None}
        self.row |= {"seconds": [], "processor_seconds": [], "values": []}
        packages = importlib.import_module(f"training.benchmark.{part}").PACKAGES
        for module in packages[case.package].modules:
            if importlib.util.find_spec(module) is None:
                self.row["problem"] = f"{module} is not installed"
                return
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            # -P keeps the modules beside this file, with their plain names, out of the imports.
            [sys.executable, "-P", __file__, part, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "KERAS_BACKEND": "tensorflow",
            },
        )
        self.errors: list[str] = []
        # Read all the time, as a process whose pipe is full would wait.
        self.reader = threading.Thread(target=self._read_errors, daemon=True)
        self.reader.start()
        self.row |= self._answer() or {}

    def _read_errors(self) -> None:
        self.errors += self.process.stderr.read().strip().splitlines()[-1:]

    def _answer(self) -> dict[str, Any] | None:
        """The next line that the program wrote as JSON; libraries print too."""
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        status = self.process.wait()
        self.reader.join()
        last = (self.errors or ["no message"])[0]
        self.row["problem"] = f"ended with status {status}: {last}"
        return None

    def step(self, is_timed: bool = False) -> None:
        if self.row["problem"]:
            return
        with suppress(BrokenPipeError):  # a process that has ended, which `_answer` reports
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        measured = self._answer()
        if measured is None:
            return
        self.row["values"].append(measured.pop("value"))
        if is_timed:
            for name, value in measured.items():
                self.row[name].append(value)

    def finish(self) -> dict[str, Any]:
        if not self.row["problem"]:
            self.process.stdin.close()
            self.row |= self._answer() or {}
            self.process.wait()
        return self.row


def serve(part: str, fields: list[Any]) -> None:
    """Runs a program in this process: one step for each line of the standard input."""
    sys.modules["training.benchmark.race"] = sys.modules[__name__]  # `training` has TensorFlow
    spec = importlib.util.spec_from_file_location(part, Path(__file__).with_name(f"{part}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[part] = module
    spec.loader.exec_module(module)
    case = module.Case(*fields)
    step, facts = module.PACKAGES[case.package].build(case)
    _write(facts)
    for _ in sys.stdin:
        begin, begin_processor = time.perf_counter(), time.process_time()
        value = step()
        seconds = time.perf_counter() - begin
        processor_seconds = time.process_time() - begin_processor
        _write({"seconds": seconds, "processor_seconds": processor_seconds, "value": value})
    _write({"peak_bytes": peak_bytes()})


def _write(answer: dict[str, Any]) -> None:
    print(f"\n{MARK}{json.dumps(answer)}", flush=True)


def peak_bytes() -> int:
    """The peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # in `ru_maxrss` Linux counts the process that started this one too
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(kilobytes) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
