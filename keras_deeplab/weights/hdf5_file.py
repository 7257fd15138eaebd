"""HDF5 files of Keras: keras.applications' weights, and the structured `.weights.h5`."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.layouts import KERAS

_MAGIC = b"\x89HDF\r\n\x1a\n"


def is_hdf5_file(path: Path) -> bool:
    """Tells it from the first bytes."""
    with path.open("rb") as file:
        return file.read(8) == _MAGIC


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The arrays of a file by their place in it.

    Raises:
        WeightsError: If the file is damaged.
    """
    try:
        with h5py.File(path) as file:
            return {name: array.shape for name, array in _arrays(file).items()}
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(path, f"it is a damaged HDF5 file: {error}") from error


def is_structured(path: Path) -> bool:
    """Tells `model.save_weights`' files, which name layers by their class, from older ones."""
    return any(name.split("/")[-2:-1] == ["vars"] for name in shapes(path))


def read(path: Path) -> Checkpoint:
    """Reads a file that names its layers, as keras.applications publishes them.

    Raises:
        WeightsError: If the file is damaged.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with h5py.File(path) as file:
            found = _arrays(file.get("model_weights", file))
            for place, array in found.items():
                *_, layer, variable = ("", *place.split("/"))
                arrays[f"{layer}/{variable.split(':')[0]}"] = array[()]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(path, f"it is a damaged HDF5 file: {error}") from error
    if len(arrays) < len(found):
        raise WeightsError(path, "it names several layers alike: it cannot be read by name")
    return Checkpoint(str(path), arrays, KERAS)


def _arrays(group: h5py.Group) -> dict[str, h5py.Dataset]:
    found = {}

    def visit(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    group.visititems(visit)
    return found
