"""Sources of weights: told apart, and read."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from keras_deeplab import backbones
from keras_deeplab.weights import (
    archive,
    download,
    families,
    hdf5_file,
    keras_file,
    keras_model,
    published,
    safetensors_file,
    state_dict,
    structured_file,
    tensorflow_file,
    tflite_file,
    torch_file,
)
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError, reading
from keras_deeplab.weights.source import Source

logger = logging.getLogger(__name__)

Weights = str | os.PathLike | keras.Model | Source
FORMATS = (
    ".keras",
    ".weights.h5 of this package",
    ".h5 of keras.applications",
    "torch .pth and .pt",
    ".safetensors",
    "TensorFlow checkpoints (also in .tar.gz)",
    ".tflite",
)

_NAMES = {entry.name for entry in published.PUBLISHED}
# Of the converted files: one more when what `Source.write` writes changes.
_VERSION = 1


def open_source(
    source: Weights,
    model: str | None = None,
    backbone: Any = None,
    options: Mapping[str, Any] | None = None,
    *,
    moving_averages: bool = False,
) -> Source:
    """Reads weights and recognises their network.

    Args:
        source: As for `weights.load`.
        model: Class of the model that they are for, which a published name needs.
        backbone: Its backbone.
        options: Its backbone's options.
        moving_averages: As for `weights.load`.

    Raises:
        ValueError: If `source` is of another kind.
        WeightsError: If the file is damaged or refused.
    """
    source = checked_source(source)
    if isinstance(source, Source):
        return source
    if isinstance(source, keras.Model):
        return keras_model.source_of(source, f"model '{source.name}'")
    if isinstance(source, Path):
        with reading(source):
            return open_file(source, moving_averages)
    if not isinstance(backbone, str):
        raise WeightsError(source, _why_not_published(model, backbone))
    return _published(published.find(source, model, backbone, options), moving_averages)


def _why_not_published(model: str | None, backbone: Any) -> str:
    if model is None:
        how = "as NAME/MODEL/BACKBONE, such as 'pascal_voc/DeepLabV3/mobilenet_v2'"
        return f"there is no such file, and published weights are asked for {how}"
    how = "received None"
    if backbone is not None:  # a configuration, too long to be shown
        how = "and a network of your own brings its weights with it"
    return f"published weights are for backbones by name: `backbone` must be one, {how}"


def is_published_network(source: str) -> bool:
    """Whether it is meant as NAME/MODEL/BACKBONE."""
    name, _, backbone = (*source.split("/"), "", "")[:3]
    known = name in _NAMES or backbone in backbones.NAMES
    return source.count("/") == 2 and known and not Path(source).exists()


def checked_source(source: Weights) -> keras.Model | Source | Path | str:
    """The source; a path as a `Path` from the root or here, a name as it is."""
    if isinstance(source, keras.Model | Source):
        return source
    if not isinstance(source, str | os.PathLike) or source == "":
        raise ValueError(
            "`source`, which is `weights` of a model, must be a path, a name of published weights, "
            f"a Keras model or a Source, received {source!r}."
        )
    path = Path(os.path.expanduser(source))
    if isinstance(source, os.PathLike):
        return path
    if source in _NAMES:
        return source  # whatever lies here: a folder of the data set may well have its name
    with reading(path):
        there = path.exists() or tensorflow_file.prefix_of(path) is not None
    is_path = there or bool(path.suffix) or os.path.basename(source) != source
    return path if is_path else source


def open_file(path: Path, moving_averages: bool = False) -> Source:
    """Reads a file of weights, its format recognised by content."""
    prefix = tensorflow_file.prefix_of(path) if path.name else None
    if prefix is not None:
        return families.recognised(tensorflow_file.read(prefix, moving_averages, shown=path))
    if path.is_dir():
        reason = keras_file.folder_reason(path)
        raise WeightsError(path, reason or "it is a folder that holds no TensorFlow checkpoint")
    if not path.is_file():
        raise WeightsError(path, "there is no such file, nor a TensorFlow checkpoint of that name")
    if path.stat().st_size == 0:
        raise WeightsError(path, "it is empty")
    if keras_file.is_keras_file(path):
        return keras_model.read(path)
    if structured_file.is_structured_file(path):
        raise WeightsError(
            path, "it does not say which model it belongs to: build it and use weights.load"
        )
    return families.recognised(_checkpoint(path, moving_averages))


def _checkpoint(path: Path, moving_averages: bool) -> Checkpoint:
    if torch_file.is_torch_file(path):
        return state_dict.read_torch(path, moving_averages)
    if tflite_file.is_tflite_file(path):
        return tflite_file.read(path)
    if hdf5_file.is_hdf5_file(path):
        return hdf5_file.read(path)
    if archive.is_archive(path):
        return tensorflow_file.read_archive(path, moving_averages)
    if safetensors_file.is_safetensors_file(path):
        return state_dict.read_safetensors(path, moving_averages)
    with path.open("rb") as file:
        begin = file.read(8)
    raise WeightsError(
        path,
        f"its content is none of the formats {', '.join(FORMATS)}, or is cut off; it begins with "
        f"{begin!r}",
    )


def _published(entry: published.Published, moving_averages: bool) -> Source:
    """Downloads published weights once, converts them once, and keeps what came out."""
    file = download.fetch(entry.url, entry.file_hash, entry.file_name)
    if moving_averages:
        return open_file(file, moving_averages)
    kept = file.with_name(f"{file.name}.converted-{_VERSION}.npz")
    # What was converted from a file has its time, and no other file's.
    time_of_file = file.stat().st_mtime_ns
    if kept.is_file() and kept.stat().st_mtime_ns == time_of_file:
        try:
            return replace(Source.read(kept), path=str(file))
        except WeightsError as error:
            logger.warning("%s; it is converted again", error)
    start = time.perf_counter()
    source = open_file(file)
    try:
        source.write(kept)
        os.utime(kept, ns=(time_of_file, time_of_file))
    except OSError as error:
        logger.warning("%s: the converted weights could not be kept (%s)", kept, error)
    logger.info("%s: converted in %.1f s", file.name, time.perf_counter() - start)
    return source
