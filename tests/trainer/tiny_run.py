"""The command `train` on a few images and a small network, in a process of its own.

    python tests/trainer/tiny_run.py PAUSE MARKER ARGUMENTS...

PAUSE is where the process waits forever, after it has written the file MARKER: "step:N" in its
N-th step, "model:N" within its N-th save of the model, with half of the file written, "last:N"
before last.keras gets its name for the N-th time; "nowhere" for no such place; "unexported" for
none, in a run that is not exported, which takes a fifth of its time.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

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


if __name__ == "__main__":
    place, marker_file, *arguments = sys.argv[1:]
    small(pytest.MonkeyPatch())
    if place == "unexported":
        export.saved_model = lambda *_, **__: None
    elif place != "nowhere":
        where, count = place.split(":")
        stop_at(where, int(count), Path(marker_file))
    raise SystemExit(train.main(arguments))
