"""The command `train` on a few images and a small network, in processes of their own.

    python tests/trainer/tiny_run.py

starts such a process for each `Start` on the standard input, as a fork, since importing TensorFlow
takes as long as the run. It answers with the number of the process, and each such number with the
exit status of the process, or null while it runs; all are lines of JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
sys.path[:0] = [str(Path(__file__).parents[2])]

import keras  # noqa: E402
import pytest  # noqa: E402

from keras_deeplab import backbones, data, export  # noqa: E402
from keras_deeplab.cli import train  # noqa: E402
from keras_deeplab.trainer import callbacks  # noqa: E402


class TinyShapes(data.Shapes):
    def __init__(self) -> None:
        super().__init__(train=10, val=3)


def tiny_network(input_shape):
    """A network with the strides of a backbone, batch norm and little else."""
    inputs = x = keras.Input(input_shape)
    for index in range(5):
        x = keras.layers.Conv2D(8, 3, 2, padding="same", use_bias=False, name=f"conv{index}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{index}")(x)
        x = keras.layers.ReLU(name=f"relu{index}")(x)
    return keras.Model(inputs, x, name="tiny")


def small(patch: pytest.MonkeyPatch, shapes=TinyShapes, network=tiny_network) -> None:
    """Makes the images of `shapes` few and the network of `mobilenet_v2` small."""
    original = data.open_source
    patch.setattr(
        data, "open_source", lambda name: shapes() if name == "shapes" else original(name)
    )
    patch.setitem(backbones.BACKBONES, "mobilenet_v2", backbones.Backbone(network, "tf"))


def stop_at(where: str, count: int, marker: Path) -> None:
    """Stops the process at a place, in the count-th visit."""
    owner, name = {
        "step": (callbacks.StopOnNonFinite, "on_train_batch_end"),
        "model": (keras.Model, "save"),
        "last": (os, "replace"),
    }[where]
    original, visits = getattr(owner, name), itertools.count(1)

    def reached() -> bool:
        return next(visits) == count

    def called(*args, **kwargs):
        if where == "last" and Path(args[1]).name == "last.keras" and reached():
            wait()
        result = original(*args, **kwargs)
        if where != "last" and reached():
            if where == "model":
                os.truncate(args[1], Path(args[1]).stat().st_size // 2)
            wait()
        return result

    def wait() -> None:
        marker.write_text("here")
        time.sleep(600)

    setattr(owner, name, called)


class Start(NamedTuple):
    """A process.

    `place` is where it waits forever, after it has written `marker`: "step:N" in its N-th step,
    "model:N" within its N-th save of the model, with half of the file written, "last:N" before
    last.keras gets its name for the N-th time; "nowhere" for no such place; "unexported" for none,
    in a run that is not exported, which takes a fifth of its time. No file gets more than
    `largest_file` bytes.
    """

    arguments: list[str]
    log: str
    marker: str
    place: str = "nowhere"
    environment: dict[str, str] = {}
    largest_file: int | None = None

    def run(self) -> int:
        """Runs the command in this process."""
        os.environ.update(self.environment)
        with Path(self.log).open("w") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        if self.largest_file is not None:
            import resource  # not on every system

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, not the process's end
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest_file,) * 2)
        small(pytest.MonkeyPatch())
        if self.place == "unexported":
            export.saved_model = lambda *_, **__: None
        elif self.place != "nowhere":
            where, count = self.place.split(":")
            stop_at(where, int(count), Path(self.marker))
        return train.main(self.arguments)


def next_start() -> Start | None:
    """Returns a `Start` in the process that was forked for it, and None at the end of the input."""
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            ended, status = os.waitpid(asked, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if not answer:
                return Start(**asked)
        print(json.dumps(answer), flush=True)
    return None


if __name__ == "__main__":
    if (start := next_start()) is not None:
        raise SystemExit(start.run())
