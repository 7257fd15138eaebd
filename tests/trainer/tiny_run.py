"""The command `train` on a few images and a small network, in a process of its own.

    python tests/trainer/tiny_run.py PAUSE MARKER ARGUMENTS...

PAUSE says where the process stops for good, once it has written the file
MARKER: "step:N" in the N-th step it does, "model:N" and "best:N" within the N-th save of the model
and its N-th copy as the best one, with half of the file written, "last:N" before last.keras gets
its name for the N-th time; "nowhere" for no such place.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
sys.path[:0] = [str(Path(__file__).parents[2])]

import keras  # noqa: E402
import pytest  # noqa: E402

from keras_deeplab import backbones, data  # noqa: E402
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
    visits = 0

    def reached(half: Path | None = None) -> None:
        nonlocal visits
        visits += 1
        if visits == count:
            if half is not None:
                os.truncate(half, half.stat().st_size // 2)
            marker.write_text("here")
            time.sleep(600)

    def after(call: Callable, path_of: Callable[..., Path | None]) -> Callable:
        def called(*args, **kwargs):
            result = call(*args, **kwargs)
            reached(path_of(*args, **kwargs))
            return result

        return called

    if where == "step":
        stop = callbacks.StopOnNonFinite
        stop.on_train_batch_end = after(stop.on_train_batch_end, lambda *args, **kwargs: None)
    elif where == "model":
        keras.Model.save = after(keras.Model.save, lambda model, path, *args: Path(path))
    elif where == "best":
        shutil.copyfile = after(shutil.copyfile, lambda source, path: Path(path))
    elif where == "last":
        replace = os.replace

        def replaced(source: Path, path: Path) -> None:
            if Path(path).name == "last.keras":
                reached()
            replace(source, path)

        os.replace = replaced


if __name__ == "__main__":
    place, marker_file, *arguments = sys.argv[1:]
    small(pytest.MonkeyPatch())
    if place != "nowhere":
        stop_at(
            *(kind(part) for kind, part in zip((str, int), place.split(":"), strict=True)),
            Path(marker_file),
        )
    raise SystemExit(train.main(arguments))
