"""Opens weights of all kinds, each format recognised by its content."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_deeplab import validation
from keras_deeplab.weights import keras_model, names, published
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import UnreadableError, WeightsError, reading
from keras_deeplab.weights.readers import (
    hdf5,
    keras_file,
    safetensors,
    state_dict,
    tar,
    tensorflow,
    tflite,
    torch,
)

Weights = str | os.PathLike | keras.Model | Checkpoint
_NAMES = {entry.name for entry in published.PUBLISHED}


def open_checkpoint(
    checkpoint: Weights,
    model: str | None = None,
    backbone: Any = None,
    options: Mapping[str, Any] | None = None,
    *,
    moving_averages: bool = False,
) -> Checkpoint:
    """Reads weights, given as for `weights.load`, and recognizes their network.

    A published name needs the class of the model to load them into, its backbone and that one's
    options.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, keras.Model):
        return keras_model.checkpoint_of(checkpoint, f"model '{checkpoint.name}'")
    if not isinstance(checkpoint, str | os.PathLike) or checkpoint == "":
        raise validation.error(
            "checkpoint",
            "a path, a name of published weights, a Keras model or a Checkpoint",
            checkpoint,
            "It is the argument `weights` of a model",
        )
    path = Path(os.path.expanduser(checkpoint))
    if _is_published(checkpoint, path):
        path = _downloaded(checkpoint, model, backbone, options)
    with reading(path):
        return _open_file(path, moving_averages)


def _is_published(checkpoint: str | os.PathLike, path: Path) -> bool:
    """Whether the name of published weights is given, rather than a file."""
    if not isinstance(checkpoint, str):
        return False
    if checkpoint in _NAMES:  # also where a folder of that name, such as a data set's, is here
        return True
    with reading(path):
        exists = path.exists() or tensorflow.prefix_of(path) is not None
    is_plain = not path.suffix and not path.is_absolute() and not checkpoint.startswith(".")
    return is_plain and not exists


def _downloaded(text: str, model: str | None, backbone: Any, options: Any) -> Path:
    name, *network = text.split("/")
    if len(network) == 2:
        model, backbone = network
    if len(network) not in (0, 2) or not (model or isinstance(backbone, str)):
        raise WeightsError(
            text,
            "there is no such file, and published weights are opened as NAME/MODEL/BACKBONE, such "
            "as 'pascal_voc/DeepLabV3/mobilenet_v2'",
        )
    if not isinstance(backbone, str):
        received = "None" if backbone is None else "a network of your own"
        raise WeightsError(
            text, f"published weights need a `backbone` that has a name. Received: {received}"
        )
    entry = published.find(name, model, backbone, options)
    return published.fetch(entry.url, entry.file_hash, entry.file_name)


def _open_file(path: Path, moving_averages: bool) -> Checkpoint:
    prefix = tensorflow.prefix_of(path) if path.name else None
    if prefix is not None:
        return _recognized(path, tensorflow.read(prefix, moving_averages))
    keras_file.check_is_file(path)
    with path.open("rb") as file:
        begin = file.read(512)
    members = []
    if begin.startswith(b"PK") and path.suffix != ".keras":
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    if path.suffix == ".keras" or "config.json" in members:
        return keras_model.checkpoint_of(keras_file.load_model(path, compile=False), str(path))
    if path.name.endswith(".weights.h5"):
        raise UnreadableError(
            "it does not say which model it belongs to: build it and use weights.load"
        )
    if begin.startswith(torch.STREAM) or any(name.endswith("/data.pkl") for name in members):
        return state_dict.chosen(path, torch.read(path), moving_averages)
    if begin[4:8] == b"TFL3":
        found = tflite.read(path)
        return names.recognize(found) or found
    if begin.startswith(b"\x89HDF\r\n\x1a\n"):
        return _recognized(path, hdf5.read_by_name(path))
    if begin.startswith(tar.GZIP) or begin[257:262] == b"ustar":
        return _recognized(path, tensorflow.read_archive(path, moving_averages))
    if begin[8:9] == b"{":
        return state_dict.chosen(path, {(): safetensors.read(path)}, moving_averages)
    raise UnreadableError(
        "its content is none of the formats .keras, .weights.h5, .h5 of keras.applications, torch "
        ".pth and .pt, .safetensors, TensorFlow checkpoints (also in .tar.gz) and .tflite, or is "
        f"damaged. It begins with {begin[:8]!r}"
    )


def _recognized(path: Path, arrays: Mapping[str, Any]) -> Checkpoint:
    """A known network, or one of this package's or of the user's own by the names of its layers."""
    found = Checkpoint(str(path), arrays)
    return names.recognize(found) or found
