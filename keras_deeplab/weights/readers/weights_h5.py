"""Keras' `.weights.h5` files: they name no layers, and are read into a model like their own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import keras

from keras_deeplab.weights import keras_model
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError, listed, shortened
from keras_deeplab.weights.readers import hdf5


def read(path: Path, model: keras.Model) -> Checkpoint:
    """The weights of a file for a model like the one that wrote it, which is not changed.

    Raises:
        WeightsError: If the file is damaged or of another network; the number of classes may
            differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        own, named = Path(folder) / "own.weights.h5", path
        model.save_weights(own)
        twin = _twin(model, path, _shapes(own), _shapes(path))
        try:
            if not path.name.endswith(".weights.h5"):  # which Keras would read as an older file
                named = shutil.copyfile(path, Path(folder) / "named.weights.h5")
            twin.load_weights(named)
        except Exception as error:  # HDF5 and the layers themselves raise their own
            raise WeightsError(path, f"it cannot be read: {shortened(error)}") from error
    return keras_model.checkpoint_of(twin, str(path))


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Without those of the optimizer, which a compiled model's file has too."""
    found = hdf5.shapes(path)
    return {place: shape for place, shape in found.items() if not place.startswith("optimizer/")}


def _twin(
    model: keras.Model,
    path: Path,
    own: dict[str, tuple[int, ...]],
    theirs: dict[str, tuple[int, ...]],
) -> keras.Model:
    """A model like `model`, with the file's number of classes."""
    config = model.get_config()
    differ = [place for place in {**own, **theirs} if own.get(place) != theirs.get(place)]
    inputs = [{p: shape[:-1] for p, shape in shapes.items()} for shapes in (own, theirs)]
    classes = {theirs[place][-1] for place in differ if theirs.get(place)}
    fits = inputs[0] == inputs[1] and len(classes) == 1 and "num_classes" in config
    if differ and not fits:
        shown = [
            f"{place} is {own.get(place, 'missing')} in the model, "
            f"{theirs.get(place, 'missing')} in the file"
            for place in differ[:3]
        ]
        raise WeightsError(
            path,
            f"it holds another network than '{model.name}': {len(differ)} differences: "
            f"{listed(shown, '; ')}",
        )
    if classes:
        config["num_classes"] = classes.pop()
    return type(model).from_config(config)
