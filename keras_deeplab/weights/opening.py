"""Opens weights of all kinds, each format recognised by its content."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_deeplab import backbones, validation
from keras_deeplab.weights import keras_model, names, published
from keras_deeplab.weights.checkpoint import KERAS, Checkpoint
from keras_deeplab.weights.errors import WeightsError, listed, reading
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
    """Reads weights and recognizes their network.

    Args:
        checkpoint: As for `weights.load`.
        model: Class of the model to load them into, needed for a published name.
        backbone: Its backbone.
        options: Its backbone's options.
        moving_averages: As for `weights.load`.

    Raises:
        ValueError: If `checkpoint` is of another kind.
        WeightsError: If the file is damaged or refused.
    """
    checkpoint = checked(checkpoint)
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, keras.Model):
        return keras_model.checkpoint_of(checkpoint, f"model '{checkpoint.name}'")
    if isinstance(checkpoint, str):
        checkpoint = _downloaded(checkpoint, model, backbone, options)
    with reading(checkpoint):
        return _open_file(checkpoint, moving_averages)


def is_published_network(text: str) -> bool:
    """Whether a text has the form NAME/MODEL/BACKBONE."""
    name, _, backbone = (*text.split("/"), "", "")[:3]
    known = name in _NAMES or backbone in backbones.NAMES
    return text.count("/") == 2 and known and not Path(text).exists()


def checked(checkpoint: Weights) -> keras.Model | Checkpoint | Path | str:
    """The argument `checkpoint`: a file as a `Path`, the name of published weights as a string."""
    if isinstance(checkpoint, keras.Model | Checkpoint):
        return checkpoint
    if not isinstance(checkpoint, str | os.PathLike) or checkpoint == "":
        raise validation.error(
            "checkpoint",
            "a path, a name of published weights, a Keras model or a Checkpoint",
            checkpoint,
            "It is the argument `weights` of a model",
        )
    path = Path(os.path.expanduser(checkpoint))
    if isinstance(checkpoint, os.PathLike):
        return path
    if checkpoint in _NAMES:
        return checkpoint  # also where a folder of that name, such as a data set's, is here
    with reading(path):
        exists = path.exists() or tensorflow.prefix_of(path) is not None
    is_path = exists or bool(path.suffix) or os.path.basename(checkpoint) != checkpoint
    return path if is_path else checkpoint


def _downloaded(name: str, model: str | None, backbone: Any, options: Any) -> Path:
    if model is None and not isinstance(backbone, str):
        raise WeightsError(
            name,
            "there is no such file, and published weights are opened as NAME/MODEL/BACKBONE, such "
            "as 'pascal_voc/DeepLabV3/mobilenet_v2'",
        )
    if not isinstance(backbone, str):
        received = "None" if backbone is None else "a network of your own"
        raise WeightsError(
            name, f"published weights need a `backbone` that has a name. Received: {received}"
        )
    entry = published.find(name, model, backbone, options)
    return published.fetch(entry.url, entry.file_hash, entry.file_name)


def _open_file(path: Path, moving_averages: bool) -> Checkpoint:
    prefix = tensorflow.prefix_of(path) if path.name else None
    if prefix is not None:
        checkpoint = tensorflow.read(prefix, moving_averages, shown=path)
    else:
        keras_file.check_is_file(path, " that holds no TensorFlow checkpoint")
        if keras_file.is_keras_file(path):
            return keras_model.checkpoint_of(keras_file.load_model(path, compile=False), str(path))
        checkpoint = _read(path, moving_averages)
    found = names.recognize(checkpoint)
    if found is None and checkpoint.layout is not KERAS:
        raise WeightsError(
            path,
            f"it holds {len(checkpoint.arrays)} arrays of no known network, among them "
            f"{listed(sorted(checkpoint.arrays))}",
        )
    return found or checkpoint  # of Keras: a network of the user's own, or one of this package's


def _read(path: Path, moving_averages: bool) -> Checkpoint:
    if torch.is_torch_file(path):
        return state_dict.read_torch(path, moving_averages)
    if tflite.is_tflite_file(path):
        return tflite.read(path)
    if hdf5.is_weights_h5(path):
        reason = "it does not say which model it belongs to: build it and use weights.load"
        raise WeightsError(path, reason)
    if hdf5.is_hdf5_file(path):
        return hdf5.read(path)
    if tar.is_archive(path):
        return tensorflow.read_archive(path, moving_averages)
    if safetensors.is_safetensors_file(path):
        return state_dict.read_safetensors(path, moving_averages)
    with path.open("rb") as file:
        begin = file.read(8)
    raise WeightsError(
        path,
        "its content is none of the formats .keras, .weights.h5, .h5 of keras.applications, "
        "torch .pth and .pt, .safetensors, TensorFlow checkpoints (also in .tar.gz) and .tflite, "
        f"or is damaged. It begins with {begin!r}",
    )
