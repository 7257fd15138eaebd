"""`.keras` files: checked before anything in them is built or opened, then loaded by Keras."""

from __future__ import annotations

import io
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.weights import hdf5_file
from keras_deeplab.weights.errors import WeightsError, shortened

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MEMBERS = {_CONFIG, "metadata.json", _WEIGHTS}
# The largest of keras.applications has 1 MB, nested 11 deep.
_MAX_CONFIG_BYTES = 8 << 20
_MAX_CONFIG_DEPTH = 100
# A model is built up to five times until its backbone has its stride, and a U-Net may use the
# first layers of a backbone alone: what is built may be larger than what is stored.
_COPIES = 10
_FREE_ELEMENTS = 1 << 27

# Modules of Keras with what networks are made of. Those left out have functions that read files or
# start downloads, which Keras 3.15 would call as an activation: keras.applications, keras.datasets.
_MODULES = {
    "keras",
    *(
        f"keras.{name}"
        for name in (
            *("activations", "constraints", "dtype_policies", "initializers", "layers", "losses"),
            *("metrics", "ops", "optimizers", "optimizers.schedules", "quantizers", "random"),
            "regularizers",
        )
    ),
}
_MODEL_CLASSES = {"Functional", "Model", "Sequential"}
# They hold code, whatever `keras.config.enable_unsafe_deserialization` has allowed.
_CODE = {"__lambda__", "Lambda", "TorchModuleWrapper"}
_PATH_KEYS = {
    *("weights", "vocabulary", "idf_weights", "filepath", "filename", "file", "path", "preset"),
    *("proto", "merges"),
}
_PLACE = re.compile(r"^(/|~|\\\\|[A-Za-z]:[\\/])|://|(^|[/\\])\.\.([/\\]|$)")
_NO_SIZES = {"seed", "shared_object_id"}


def is_keras_file(path: Path) -> bool:
    """Tells a `.keras` archive by its name, or by its contents under any other."""
    if path.suffix == ".keras":
        return True
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return _CONFIG in archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # another reader's, or no one's
        return False


def load_model(path: str | os.PathLike, *, compile: bool = True) -> keras.Model:
    """Loads a model from a `.keras` file that need not be trusted.

    As `keras.models.load_model`, with one error for every file that is damaged or refused. A file
    runs no code, names no other file and no address, and takes no more memory than its own size
    explains. A model of this package comes back as its class.

    Args:
        path: A `.keras` file, such as `model.save` writes.
        compile: Whether a model that was compiled is compiled again, with the optimizer's state, so
            that `fit` resumes. False to predict, evaluate or export, which takes less memory.

    Returns:
        The model.

    Raises:
        TypeError: If `path` is no path.
        WeightsError: If the file is missing, damaged or refused, or is of another format.

    Example:

    >>> keras_deeplab.DeepLabV3Plus(3, "mobilenet_v2").save("model.keras")
    >>> model = keras_deeplab.load_model("model.keras")
    >>> type(model).__name__
    'DeepLabV3Plus'
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be the path of a .keras file. Received: path={path!r}")
    path = Path(os.path.expanduser(path))
    try:
        _check_kind(path)
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            config = json.loads(archive.read(_CONFIG))
            content = io.BytesIO(archive.read(_WEIGHTS))
        with hdf5_file.datasets(path, content) as arrays:
            stored = sum(array.size for array in arrays.values())
        del content
        budget = _COPIES * stored + _FREE_ELEMENTS
        _check_config(path, config, compile, budget)
        with _bounded_variables(path, budget):
            model = keras.models.load_model(path, compile=compile, safe_mode=True)
    except WeightsError:
        raise
    except Exception as error:  # zip, JSON, HDF5 and the layers themselves raise their own
        reason = f"it cannot be loaded as a Keras model: {shortened(error)}"
        raise WeightsError(path, reason) from error
    _check_finite(path, model)
    return model


def folder_reason(path: Path) -> str | None:
    """Why a folder holds no weights by itself, where it is one that training or export wrote."""
    if (path / "model.keras").is_file():
        return f"it is the folder of a run: give {path / 'model.keras'}"
    if (path / "saved_model.pb").is_file():
        return "it is a SavedModel, exported for serving: give the .keras file of its model"
    return None


def _check_kind(path: Path) -> None:
    if path.is_dir():
        raise WeightsError(path, folder_reason(path) or "it is a folder: give a .keras file")
    if not path.is_file():  # nor a pipe or a device
        raise WeightsError(path, "there is no such file")
    if not zipfile.is_zipfile(path):
        if path.suffix == ".keras":
            raise WeightsError(path, "it is damaged or cut off: a .keras file is a zip archive")
        raise WeightsError(
            path, "it is no .keras file; weights.convert and weights.load read other formats"
        )
    if path.suffix != ".keras":
        raise WeightsError(path, "its name must end in .keras")


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses an archive of other members than a model's, or that is larger inside than out."""
    names = [member.filename for member in archive.infolist()]
    for name in names:
        if name not in _MEMBERS:
            raise WeightsError(
                path, f"it holds {name!r:.100}: a model's file holds {', '.join(sorted(_MEMBERS))}"
            )
    if len(names) != len(_MEMBERS):
        twice = {name for name in names if names.count(name) > 1}
        what = f"holds {min(twice)} twice" if twice else f"lacks {min(_MEMBERS - set(names))}"
        raise WeightsError(path, f"it {what}")
    config, total = archive.getinfo(_CONFIG).file_size, sum(m.file_size for m in archive.infolist())
    if config > _MAX_CONFIG_BYTES:
        raise WeightsError(
            path, f"{_CONFIG} has {config} bytes: a model's has at most {_MAX_CONFIG_BYTES}"
        )
    hdf5_file.check_declared(path, total, "its members")


def _check_config(path: Path, config: Any, compile: bool, budget: int) -> None:
    """Refuses a configuration that names code, a file or an address, or sizes out of reason."""
    if not isinstance(config, dict):
        raise WeightsError(path, f"{_CONFIG} must hold an object, not {type(config).__name__}")
    if not compile:  # which Keras then leaves out too
        config = {key: value for key, value in config.items() if key != "compile_config"}
    todo: list[tuple[str, Any, int]] = [("", config, 1)]
    while todo:
        key, value, depth = todo.pop()
        if depth > _MAX_CONFIG_DEPTH:
            raise WeightsError(path, f"{_CONFIG} is nested deeper than {_MAX_CONFIG_DEPTH}")
        if isinstance(value, dict):
            _check_object(path, value)
            todo += [(inner, found, depth + 1) for inner, found in value.items()]
        elif isinstance(value, list):
            todo += [(key, found, depth + 1) for found in value]
        elif isinstance(value, str) and (key in _PATH_KEYS or _PLACE.search(value)):
            raise WeightsError(
                path, f"{_CONFIG} must not name a file or an address, received {key}={value!r:.100}"
            )
        elif isinstance(value, int) and value > budget and key not in _NO_SIZES:
            raise WeightsError(
                path, f"{_CONFIG} must not exceed the weights in the file, received {key}={value}"
            )


def _check_object(path: Path, value: dict[str, Any]) -> None:
    """Refuses objects of a configuration that are no part of a network."""
    name, module = value.get("class_name"), value.get("module")
    if name is None:
        return
    if name in _CODE:
        raise WeightsError(path, f"{_CONFIG} must not hold code, received a {name}")
    if not isinstance(module, str) or module.split(".")[0] != "keras":
        return  # one that is registered, or Keras does not find it
    is_model = module == "keras.models" and name in _MODEL_CLASSES
    if module not in _MODULES and not is_model and not module.startswith("keras.src."):
        shown = value.get("config") if name == "function" else name
        raise WeightsError(
            path, f"{_CONFIG} must not hold what is no part of a network, received {module}.{shown}"
        )


@contextmanager
def _bounded_variables(path: Path, budget: int) -> Iterator[None]:
    """Refuses variables beyond the budget of elements before they take memory."""
    # In a graph an initializer computes nothing but its shape; one of a function takes constants.
    measuring, built, cause = tf.__internal__.FuncGraph("measuring"), 0, None

    def create(next_creator: Any, **arguments: Any) -> Any:
        nonlocal built
        value = arguments["initial_value"]
        if callable(value):
            with measuring.as_default():
                value = value()
        built += math.prod(value.shape)
        if built > budget:
            raise _TooLarge
        return next_creator(**arguments)

    try:
        with tf.variable_creator_scope(create):
            yield
    except Exception as error:
        if built <= budget:
            raise
        cause = error
    if built > budget:
        reason = f"{_CONFIG} builds more than {budget} weights, which the file does not hold"
        raise WeightsError(path, reason) from cause


class _TooLarge(Exception):
    """Keras may put it into an error of its own."""


def _check_finite(path: Path, model: keras.Model) -> None:
    for variable in model.weights:
        is_float = keras.backend.is_float_dtype(variable.dtype)
        if is_float and not np.isfinite(np.asarray(variable)).all():
            raise WeightsError(path, f"{variable.path} must be finite, received NaN or infinity")
