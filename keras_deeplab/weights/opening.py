"""Opens weights of all kinds, recognised by their content or name."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deeplab import backbones, validation
from keras_deeplab.graph.network import own_weights
from keras_deeplab.models.base import ImageModel
from keras_deeplab.models.multi_scale import MultiScale, image_scale, unwrapped
from keras_deeplab.weights import names, published
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import NO_AVERAGES, UnreadableError, WeightsError, reading
from keras_deeplab.weights.hub import is_address, local_path
from keras_deeplab.weights.readers import (
    hdf5,
    keras_file,
    state_dict,
    tar,
    tensorflow,
    tflite,
    torch,
)
from keras_deeplab.weights.transfer import weighted_layers

logger = logging.getLogger(__name__)

Weights = str | os.PathLike | keras.Model | Checkpoint
_NAMES = {entry.name for entry in published.PUBLISHED}
_OF_BACKBONE = ("backbone_options", "stride_on", "preprocessing")
# Arguments that have nothing to do with the weights.
_UNRELATED = "name dtype input_shape trainable frozen_layers norm_settings backbone".split()


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
        path = f"model '{checkpoint.name}'"
        if moving_averages:
            raise WeightsError(path, NO_AVERAGES)
        return checkpoint_of(checkpoint, path)
    if not isinstance(checkpoint, str | os.PathLike) or checkpoint == "":
        rule = "a path, a name of published weights, a Keras model or a Checkpoint"
        advice = "It is the argument `weights` of a model"
        raise validation.error("checkpoint", rule, checkpoint, advice)
    path = local_path(checkpoint)
    if not is_address(checkpoint) and _is_published(checkpoint, path):
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
    if len(network) == 2 and (name in _NAMES or network[1] in backbones.NAMES):
        model, backbone = network
    elif network:
        model = backbone = None
    if len(network) not in (0, 2) or not (model or isinstance(backbone, str)):
        raise WeightsError(
            text,
            "there is no such file, and published weights are opened as NAME/MODEL/BACKBONE, such "
            "as 'pascal_voc/DeepLabV3/mobilenet_v2'",
        )
    if not isinstance(backbone, str):
        raise WeightsError(
            text, f"`backbone` must be a name for published weights. Received: {backbone}"
        )
    entry = published.find_published(name, model, backbone, options)
    return published.fetch(entry.url, entry.file_hash, entry.file_name)


def _open_file(path: Path, moving_averages: bool) -> Checkpoint:
    prefix = tensorflow.prefix_of(path) if path.name else None
    if prefix is not None:
        return _recognized(Checkpoint(str(path), tensorflow.read(prefix, moving_averages)))
    keras_file.check_is_file(path)
    with path.open("rb") as file:
        begin = file.read(512)
    members = []
    if begin.startswith(b"PK") and path.suffix != ".keras":
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    is_keras = path.suffix == ".keras" or "config.json" in members
    is_litert = begin[4:8] == b"TFL3"
    is_hdf5 = begin.startswith(b"\x89HDF\r\n\x1a\n")
    if moving_averages and (is_keras or is_litert or is_hdf5):
        raise UnreadableError(NO_AVERAGES)
    if is_keras:
        return checkpoint_of(keras_file.load_model(path, compile=False), str(path))
    if path.name.endswith(".weights.h5"):
        raise UnreadableError(
            "it does not describe its model: build a model of this package and use weights.load; "
            "of another network call its load_weights, and give the network as weights="
        )
    if begin.startswith(torch.STREAM) or any(name.endswith("/data.pkl") for name in members):
        return state_dict.chosen(path, torch.read(path), moving_averages)
    if is_litert:
        return _recognized(tflite.read(path))
    if is_hdf5:
        return _recognized(Checkpoint(str(path), hdf5.read_by_name(path)))
    if begin.startswith(tar.GZIP) or begin[257:262] == b"ustar":
        arrays = tensorflow.read_archive(path, moving_averages)
        return _recognized(Checkpoint(str(path), arrays))
    if begin[8:9] == b"{":
        if re.search(r"-\d{5}-of-(?!00001)\d{5}\.", path.name):
            raise UnreadableError("it is one of several parts: save the weights in one file")
        return state_dict.chosen(path, {(): state_dict.read_safetensors(path)}, moving_averages)
    if re.search(r"\.(index|weights)\.json$", path.name):
        raise UnreadableError("it lists files that hold a part each: save the weights in one file")
    if path.suffix in (".pb", ".meta"):
        raise UnreadableError("it is a graph: give the checkpoint (.index) that it was made from")
    if begin.startswith(b"\x80"):
        raise UnreadableError("it is a pickle: save model.state_dict() with torch.save as it is")
    raise UnreadableError(
        "it is damaged or none of the formats .keras, .weights.h5, .h5, torch .pth and .pt, "
        ".safetensors, TensorFlow checkpoints (also in .tar.gz) and .tflite. It begins with "
        f"{begin[:8]!r}"
    )


def _recognized(found: Checkpoint) -> Checkpoint:
    """A known network, or one of this package's or of the user's own by the names of its layers."""
    return names.recognize(found) or found


def checkpoint_of(model: keras.Model, path: str) -> Checkpoint:
    """The weights of a model; of a `MultiScale` those of the network inside."""
    if (scale := image_scale(model)) != 1:
        logger.warning(
            "%s: the network alone is taken, which was trained on images at %g of their size "
            "(`image_scale`).",
            *(path, scale),
        )
    model = unwrapped(model)
    values = {
        f"{place}/{name}": np.asarray(weight)
        for place, layer in weighted_layers(model).items()
        for name, weight in own_weights(layer).items()
    }
    if not values:
        raise WeightsError(path, f"the model '{model.name}' has no weights")
    if not keras.saving.get_registered_name(type(model)).startswith("keras_deeplab>"):
        # A network of keras.applications, or one with its own names.
        arrays = {"/".join(name.split("/")[-2:]): value for name, value in values.items()}
        known = names.recognize(Checkpoint(path, arrays)) if len(arrays) == len(values) else None
        title = f"the Keras model '{model.name}'"
        for layer in model.layers:
            if isinstance(layer, ImageModel | MultiScale):
                title += f" around '{layer.name}' (which `load_model` and `get_layer` return)"
        return known or Checkpoint(path, values, title=title)
    config = model.get_config()
    backbone = config["backbone"]
    of_backbone = {key: config[key] for key in _OF_BACKBONE if config.get(key) is not None}
    arguments = {k: v for k, v in config.items() if k not in (*_UNRELATED, *_OF_BACKBONE)}
    channels = config["input_shape"][2]
    if channels != 3:
        arguments["input_shape"] = (None, None, channels)
    named = isinstance(backbone, str)
    if not named:  # a user's network, which the model keeps as its configuration
        arguments["backbone"] = keras.saving.deserialize_keras_object(backbone)
    return Checkpoint(
        path,
        values,
        title=f"a {type(model).__name__} on {backbone if named else 'an own network'}",
        backbone=backbone if named else None,
        backbone_arguments=of_backbone,
        model=type(model).__name__,
        model_arguments=arguments,
    )
