"""HDF5 files of Keras: keras.applications' weights, and the structured `.weights.h5`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import keras

from keras_deeplab.weights import keras_model
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError, listed, reading, shortened

# What a file may hold against its size. Trained weights hardly compress; pruned ones may.
_MAX_EXPANSION = 20
_SMALL_BYTES = 1 << 20
_MAX_DEPTH = 64
_Shapes = dict[str, tuple[int, ...]]


def is_hdf5_file(path: Path) -> bool:
    """Whether a file begins as HDF5 does."""
    with reading(path), path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def is_weights_h5(path: Path) -> bool:
    """Whether `model.save_weights` wrote a file: such files name layers by their class."""
    with reading(path):
        is_hdf5 = path.is_file() and is_hdf5_file(path)
    return is_hdf5 and any(name.split("/")[-2:-1] == ["vars"] for name in shapes(path))


def check_declared(path: Path, declared: int, what: str) -> None:
    """Refuses a file that declares far more bytes than it has."""
    size = path.stat().st_size
    if declared > _MAX_EXPANSION * size + _SMALL_BYTES:
        raise WeightsError(
            path, f"{what} declare {declared} bytes, which a file of {size} bytes cannot hold"
        )


@contextmanager
def datasets(path: Path, file: Any = None) -> Iterator[dict[str, h5py.Dataset]]:
    """The arrays of a file, or of an open member of an archive, by their place; not read yet."""
    try:
        with h5py.File(file or path, "r") as opened:
            found = _checked(path, opened)
            check_declared(path, sum(array.nbytes for array in found.values()), "its arrays")
            yield found
    except WeightsError:
        raise
    except Exception as error:  # h5py has an error of every kind for damaged files
        raise WeightsError(path, f"it is a damaged HDF5 file: {shortened(error)}") from error


def _checked(path: Path, opened: h5py.File) -> dict[str, h5py.Dataset]:
    """All arrays; nothing leads out of the file, in circles or to one thing twice."""
    found: dict[str, h5py.Dataset] = {}
    seen = {h5py.h5o.get_info(opened.id).addr}
    todo: list[tuple[str, h5py.Group]] = [("", opened)]
    while todo:
        place, group = todo.pop()
        if place.count("/") > _MAX_DEPTH:
            raise WeightsError(path, f"its groups are nested deeper than {_MAX_DEPTH}")
        for name in group:
            inner = f"{place}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise WeightsError(path, f"{inner!r:.200} must be in the file, but is a link")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise WeightsError(path, f"{inner!r:.200} must be in the file once, but is twice")
            seen.add(address)
            if isinstance(item, h5py.Group):
                todo.append((f"{inner}/", item))
                continue
            if not isinstance(item, h5py.Dataset) or item.dtype.hasobject or item.shape is None:
                raise WeightsError(path, f"{inner!r:.200} must be an array of numbers")
            if item.external or item.is_virtual:
                raise WeightsError(
                    path, f"{inner!r:.200} must be in the file, but its values are in another file"
                )
            found[inner] = item
    return found


def shapes(path: Path) -> _Shapes:
    """The shapes of a file's arrays by their place in it."""
    with datasets(path) as found:
        return {place: array.shape for place, array in found.items()}


def read(path: Path) -> Checkpoint:
    """Reads a file that names its layers, as keras.applications publishes them."""
    with datasets(path) as found:
        inside = {place: d for place, d in found.items() if place.startswith("model_weights/")}
        found = inside or found  # of a whole model, beside its optimizer's
        arrays = {
            "/".join(place.split(":")[0].split("/")[-2:]): array[()]
            for place, array in found.items()
        }
    if len(arrays) < len(found):
        raise WeightsError(
            path,
            "it names several layers alike and cannot be read by name: load it into a model of the "
            "same arguments by model.load_weights, and save that as .keras",
        )
    return Checkpoint(str(path), arrays)


def read_structured(path: Path, model: keras.Model) -> Checkpoint:
    """The weights of a `.weights.h5` file, which names no layers, for a model like its writer.

    Only the number of classes may differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        own, named = Path(folder) / "own.weights.h5", path
        model.save_weights(own)
        twin = _twin(model, path, _layer_shapes(own), _layer_shapes(path))
        try:
            if not path.name.endswith(".weights.h5"):  # which Keras would read as an older file
                named = shutil.copyfile(path, Path(folder) / "named.weights.h5")
            twin.load_weights(named)
        except Exception as error:  # HDF5 and the layers themselves raise their own
            raise WeightsError(path, f"it cannot be read: {shortened(error)}") from error
    return keras_model.checkpoint_of(twin, str(path))


def _layer_shapes(path: Path) -> _Shapes:
    """Without those of the optimizer, which a compiled model's file has too."""
    found = shapes(path)
    return {place: shape for place, shape in found.items() if not place.startswith("optimizer/")}


def _twin(model: keras.Model, path: Path, own: _Shapes, theirs: _Shapes) -> keras.Model:
    """A model like `model`, with the file's number of classes."""
    config = model.get_config()
    differ = [place for place in {**own, **theirs} if own.get(place) != theirs.get(place)]
    inputs = [{k: shape[:-1] for k, shape in each.items()} for each in (own, theirs)]
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
