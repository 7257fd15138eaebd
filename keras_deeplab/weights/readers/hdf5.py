"""HDF5 files of Keras: keras.applications' weights, and `.weights.h5` of `model.save_weights`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py
import keras
import numpy as np

from keras_deeplab.weights.errors import UnreadableError

# What a file may hold against its size. Trained weights hardly compress; pruned ones may.
_MAX_EXPANSION = 20
_SMALL_BYTES = 1 << 20
_MAX_DEPTH = 64


def check_declared(size: int, declared: int, what: str) -> None:
    """Refuses a file of `size` bytes that declares far more."""
    if declared > _MAX_EXPANSION * size + _SMALL_BYTES:
        raise UnreadableError(
            f"{what} declare {declared} bytes, which a file of {size} bytes cannot hold"
        )


@contextmanager
def datasets(file: Path | BinaryIO, size: int) -> Iterator[dict[str, h5py.Dataset]]:
    """The arrays of a file by their place, not read yet; none of them leads out of the file.

    `size` is that of the file, or of the archive that it is a member of.
    """
    with h5py.File(file, "r") as opened:
        found = _checked(opened)
        check_declared(size, sum(array.nbytes for array in found.values()), "its arrays")
        yield found


def _checked(opened: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    seen = {h5py.h5o.get_info(opened.id).addr}
    todo: list[tuple[str, h5py.Group]] = [("", opened)]
    while todo:
        prefix, group = todo.pop()
        if prefix.count("/") > _MAX_DEPTH:
            raise UnreadableError(f"its groups are nested deeper than {_MAX_DEPTH}")
        for name in group:
            place = f"{prefix}{name}"
            is_link = not isinstance(group.get(name, getlink=True), h5py.HardLink)
            item = None if is_link else group[name]
            address = None if is_link else h5py.h5o.get_info(item.id).addr
            if isinstance(item, h5py.Group) and address not in seen:
                todo.append((f"{place}/", item))
            elif address not in seen and _is_plain(item):
                found[place] = item
            else:
                rule = "must be a contiguous array of numbers in the file, once and not a link"
                raise UnreadableError(f"{place!r:.200} {rule}")
            seen.add(address)
    return found


def _is_plain(item: object) -> bool:
    if not isinstance(item, h5py.Dataset) or item.dtype.hasobject or item.shape is None:
        return False
    # Chunks may be larger than their array, and expand without bound.
    return not item.external and not item.is_virtual and item.chunks is None


def read_by_name(path: Path) -> dict[str, np.ndarray]:
    """Reads a file that names its layers, as keras.applications publishes them."""
    with datasets(path, path.stat().st_size) as found:
        inside = {place: d for place, d in found.items() if place.startswith("model_weights/")}
        found = inside or found  # of a whole model, beside its optimizer's
        arrays = {
            "/".join(place.split(":")[0].split("/")[-2:]): array[()]
            for place, array in found.items()
        }
    if len(arrays) < len(found):
        raise UnreadableError(
            "it names several layers alike: load it into a model of the same arguments by "
            "model.load_weights, and save that as .keras"
        )
    return arrays


def read_structured(path: Path, *models: keras.Model) -> keras.Model:
    """A model like one of `models` with the weights of a `.weights.h5` file, which names no layers.

    Keras leaves layers without a place in the file as they are: places and shapes must be the same.
    """
    theirs = _shapes(path)
    for model in models:
        twin = type(model).from_config(model.get_config())
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "own.weights.h5"
            twin.save_weights(own)
            differences = sorted(_shapes(own) ^ theirs)
        if not differences:
            twin.load_weights(path)
            return twin
    place, shape = differences[0]
    where = "file" if differences[0] in theirs else "model"
    what = f"{len(differences)} differences, such as {place} of {shape} in the {where}"
    raise UnreadableError(f"it holds another network than '{model.name}': {what}")


def _shapes(path: Path) -> set[tuple[str, tuple[int, ...]]]:
    """Places and shapes of a file's arrays but the optimizer's, which a compiled model has too."""
    with datasets(path, path.stat().st_size) as found:
        return {(n, array.shape) for n, array in found.items() if not n.startswith("optimizer/")}
