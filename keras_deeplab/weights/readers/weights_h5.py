"""Keras' `.weights.h5` files: they name no layers, and are read into a model like their own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import keras

from keras_deeplab.weights import keras_model
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError, reading, shortened
from keras_deeplab.weights.readers import hdf5

_Shapes = dict[str, tuple[int, ...]]


def is_weights_h5(path: Path) -> bool:
    """Whether a file is one that `model.save_weights` writes."""
    with reading(path):
        return path.is_file() and hdf5.is_hdf5_file(path) and hdf5.is_structured(path)


def read(path: Path, model: keras.Model) -> Checkpoint:
    """The weights of a file for a model like the one that wrote it, which is not changed.

    Raises:
        WeightsError: If the file is damaged or of another network; the number of classes may
            differ.
    """
    twin = _twin(model, path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            named = path
            if not path.name.endswith(".weights.h5"):  # which Keras would read as an older file
                named = shutil.copyfile(path, Path(folder) / "named.weights.h5")
            twin.load_weights(named)
    except Exception as error:  # HDF5 and the layers themselves raise their own
        raise WeightsError(path, f"it cannot be read: {shortened(error)}") from error
    return keras_model.checkpoint_of(twin, str(path))


def _twin(model: keras.Model, path: Path) -> keras.Model:
    """A model like `model`, with the file's number of classes."""
    with tempfile.TemporaryDirectory() as folder:
        same = Path(folder) / "same.weights.h5"
        model.save_weights(same)
        own = _of_layers(hdf5.shapes(same))
    theirs = _of_layers(hdf5.shapes(path))
    differ = [place for place in {**own, **theirs} if own.get(place) != theirs.get(place)]
    numbers = {_classes(own.get(place), theirs.get(place)) for place in differ}
    config = model.get_config()
    if differ and (len(numbers) > 1 or None in numbers or "num_classes" not in config):
        shown = "; ".join(
            f"{place} is {own.get(place, 'missing')} in the model, "
            f"{theirs.get(place, 'missing')} in the file"
            for place in differ[:3]
        )
        raise WeightsError(
            path,
            f"it holds another network than '{model.name}': {len(differ)} differences: {shown}",
        )
    changes = {"num_classes": numbers.pop()} if numbers else {}
    return type(model).from_config({**config, **changes})


def _of_layers(shapes: _Shapes) -> _Shapes:
    """Without those of the optimizer, which a compiled model's file has too."""
    return {place: shape for place, shape in shapes.items() if not place.startswith("optimizer/")}


def _classes(own: tuple[int, ...] | None, theirs: tuple[int, ...] | None) -> int | None:
    """The file's number of classes, where two shapes differ in nothing else."""
    if own and theirs and own[:-1] == theirs[:-1]:
        return theirs[-1]
    return None
