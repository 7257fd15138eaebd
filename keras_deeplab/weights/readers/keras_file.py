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

from keras_deeplab import validation
from keras_deeplab.names import first_few
from keras_deeplab.weights.errors import UnreadableError, reading
from keras_deeplab.weights.hub import local_path
from keras_deeplab.weights.readers import hdf5
from keras_deeplab.weights.transfer import check_values

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MEMBERS = [_CONFIG, "metadata.json", _WEIGHTS]
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# The largest of keras.applications has 1 MB, nested 11 deep.
_MAX_CONFIG_BYTES = 8 << 20
_MAX_CONFIG_DEPTH = 100
# A model is built up to five times until its backbone has its stride, and a U-Net may use the
# first layers of a backbone alone: what is built may be larger than what is stored.
_COPIES = 10
_FREE_SIZE = 1 << 27  # of one number, such as that of a layer's units or of a hash's bins
_FREE_BYTES = 1 << 26  # of all variables; the models of this package need none
_STRING_BYTES = 24  # TensorFlow's own record of each

# Modules of Keras with what networks are made of. Those left out have functions that read files or
# start downloads, which Keras 3.15 would call as an activation: keras.applications, keras.datasets.
_PARTS = (
    "activations constraints dtype_policies initializers layers losses metrics ops optimizers "
    "optimizers.schedules quantizers random regularizers"
)
_MODULES = {
    "keras",
    "keras.models",  # of which only the classes of models
    *(f"keras.{name}" for name in _PARTS.split()),
    # With layers of their own; Keras finds no function by such a name.
    "keras.src.applications.convnext",
    "keras.src.applications.inception_resnet_v2",
}
_MODEL_CLASSES = {"Functional", "Model", "Sequential"}
# They hold code, whatever `keras.config.enable_unsafe_deserialization` has allowed.
_CODE = {"__lambda__", "Lambda", "TorchModuleWrapper"}
_PATH_KEYS = set(
    "weights vocabulary idf_weights filepath filename file path preset proto merges".split()
)
_ABSOLUTE = re.compile(r"/|~|\\\\|[A-Za-z]:[\\/]")
_ELSEWHERE = re.compile(r"://|(^|[/\\])\.\.([/\\]|$)")
_OF_WEIGHTS = (".keras", ".h5", ".pth", ".pt", ".ckpt", ".safetensors", ".tflite", ".gz")
_NO_SIZES = {"seed", "shared_object_id"}


def load_model(path: str | os.PathLike, *, compile: bool = True) -> keras.Model:
    """Loads a model from a `.keras` file, which may come from an untrusted source.

    As `keras.models.load_model`, with one error for every damaged or refused file. A file cannot
    run code, refer to other files or addresses, or take much more memory than its own size. A model
    of this package has its class again.

    Args:
        path: A `.keras` file, such as `model.save` writes; or "hf://USER/NAME[@REVISION]" for
            `model.keras` in a repository of the Hugging Face Hub (with the extra `hub`).
        compile: Whether a model that was compiled is compiled again, with the optimizer's state, so
            that `fit` resumes. False to predict, evaluate or export, which takes less memory.

    Returns:
        The model.

    Raises:
        TypeError: If `path` is not a string or path-like object.
        WeightsError: If the file is missing, damaged or refused, or is of another format, if it
            cannot be downloaded, or if a value is NaN or infinite or a variance is negative.

    Example:

    >>> keras_deeplab.DeepLabV3Plus(3, "mobilenet_v2").save("model.keras")
    >>> model = keras_deeplab.load_model("model.keras")
    >>> type(model).__name__
    'DeepLabV3Plus'
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be the path of a .keras file. Received: path={path!r}")
    path = local_path(path)
    with reading(path):
        check_is_file(path)
        if not zipfile.is_zipfile(path):
            advice = "from_pretrained and weights.load read other formats"
            raise UnreadableError(f"it is damaged or cut off, or no .keras file; {advice}")
        if path.suffix != ".keras":
            raise UnreadableError("its name must end in .keras")
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.stat().st_size)
            config = json.loads(archive.read(_CONFIG))
            with hdf5.datasets(io.BytesIO(archive.read(_WEIGHTS)), path.stat().st_size) as arrays:
                stored = sum(array.size for array in arrays.values())
                stored_bytes = sum(array.nbytes for array in arrays.values())
        if not isinstance(config, dict):
            raise _refusal("hold an object", type(config).__name__)
        if not compile:  # which Keras then leaves out too
            config.pop("compile_config", None)
        _check("", config, _COPIES * stored + _FREE_SIZE)
        with _bounded_variables(_COPIES * stored_bytes + _FREE_BYTES):
            model = keras.models.load_model(path, compile=compile, safe_mode=True)
    check_values(path, ((each.path, each, np.asarray(each)) for each in model.weights))
    return model


def check_can_be_loaded(model: keras.Model) -> None:
    """Raises a ValueError if `load_model` would refuse the file of a model, or Keras cannot."""
    try:
        config = {
            "module": type(model).__module__,
            "class_name": type(model).__name__,
            "registered_name": keras.saving.get_registered_name(type(model)),
            "config": model.get_config(),
        }
        config = json.loads(json.dumps(config))
        _check("", config, math.inf)
        keras.saving.deserialize_keras_object(config, safe_mode=True)
    except Exception as error:  # of the layers, of any kind
        rule = "a model that can be loaded from a file: no Lambda, and layers of your own with "
        rule += "`get_config` and `keras.saving.register_keras_serializable`"
        reason = " ".join(str(error).split())[:300]
        raise validation.error("model", rule, type(model).__name__, reason) from error


def check_is_file(path: Path) -> None:
    """Refuses a folder, with the file to give instead, and a path of nothing."""
    if (path / "model.keras").is_file():
        raise UnreadableError(f"it is the folder of a run: give {path / 'model.keras'}")
    if path.is_dir():
        found = sorted(file.name for file in path.iterdir() if file.suffix in _OF_WEIGHTS)
        which = f"one of its files: {first_few(found)}" if found else "a model's .keras file"
        raise UnreadableError(f"it is a folder without a checkpoint: give {which}")
    if not path.exists():
        raise UnreadableError("there is no such file")


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuses an archive of other members than a model's, or that is larger inside than out."""
    names = sorted(archive.namelist())
    if names != _MEMBERS:
        raise UnreadableError(f"it must hold {', '.join(_MEMBERS)}. Received: {', '.join(names)}")
    # Others are decompressed as a whole, whatever size a member declares.
    others = [m.filename for m in archive.infolist() if m.compress_type not in _METHODS]
    if others:
        raise UnreadableError(f"its members must be stored or deflated. Received: {others[0]}")
    length = archive.getinfo(_CONFIG).file_size
    if length > _MAX_CONFIG_BYTES:
        raise _refusal(f"have at most {_MAX_CONFIG_BYTES} bytes", f"{length}")
    hdf5.check_declared(size, sum(m.file_size for m in archive.infolist()), "its members")


def _refusal(rule: str, received: str) -> UnreadableError:
    return UnreadableError(f"{_CONFIG} must {rule}. Received: {received:.100}")


def _check(key: str, value: Any, largest: float, is_argument: bool = True, depth: int = 1) -> None:
    """Refuses a part of a configuration with code, a file, an address or unreasonable sizes."""
    if depth > _MAX_CONFIG_DEPTH:
        raise _refusal(f"be nested at most {_MAX_CONFIG_DEPTH} deep", "more")
    if isinstance(value, dict):
        is_object = "class_name" in value
        if is_object:
            _check_object(value)
        for inner, found in value.items():
            if is_object and inner == "inbound_nodes":
                _check_calls(found)
            if is_object and inner == "compile_config":
                # Numbers such as steps are not sizes, and keys may be names of outputs.
                _check(inner, found, math.inf, False, depth + 1)
            else:
                _check(inner, found, largest, is_object or is_argument, depth + 1)
    elif isinstance(value, list):
        for found in value:  # a list is not a path
            _check(key, found, largest, is_argument and not isinstance(found, str), depth + 1)
    elif isinstance(value, str):
        # A text of several words may mention a file or an address.
        elsewhere = _ELSEWHERE.search(value) and len(value.split()) == 1
        if (is_argument and key in _PATH_KEYS) or _ABSOLUTE.match(value) or elsewhere:
            raise _refusal("not name a file or an address", f"{key}={value!r}")
    elif isinstance(value, int) and value > largest and key not in _NO_SIZES:
        raise _refusal("not exceed the weights in the file", f"{key}={value}")


def _check_calls(nodes: list) -> None:
    """Refuses calls of layers and operations without a tensor: Keras would compute them at once."""
    for node in nodes:
        if isinstance(node, list):  # as older versions wrote them, of tensors only
            is_symbolic = bool(node)
        else:
            is_symbolic = _has_tensor([*node["args"], node["kwargs"]])
        if not is_symbolic:
            raise _refusal("call layers on tensors of the network", str(node))


def _has_tensor(value: Any) -> bool:
    """Whether a call's arguments have a tensor of the network, where Keras looks for it."""
    if isinstance(value, dict) and {"class_name", "config"} <= value.keys():
        return value["class_name"] == "__keras_tensor__"
    if isinstance(value, dict | list):
        return any(map(_has_tensor, value.values() if isinstance(value, dict) else value))
    return False


def _check_object(value: dict[str, Any]) -> None:
    """Refuses objects that networks are not made of, and code."""
    name, module = value["class_name"], value.get("module")
    found = value.get("config") if name == "function" else value.get("spec_name", name)
    # Keras joins module and name: either may have the dots. A registered name may have them too.
    is_path = any(isinstance(n, str) and "." in n and ">" not in n for n in (name, found))
    is_foreign = False
    if isinstance(module, str) and module.split(".")[0] == "keras":
        public = re.sub(r"^keras\.src\.(\w+).*", r"keras.\1", module)
        parts = _MODEL_CLASSES if public == "keras.models" else {name}
        is_foreign = not (_MODULES & {public, module}) or name not in parts
    if not isinstance(name, str) or name in _CODE or is_path or is_foreign:
        shown = f"{module}.{found}" if module else f"{found}"
        raise _refusal("hold parts of networks only, and no code", shown)


@contextmanager
def _bounded_variables(budget: int) -> Iterator[None]:
    """Refuses variables beyond the budget of bytes before they take memory."""
    # In a graph an initializer computes nothing but its shape; one of a function takes constants.
    measuring, built = tf.__internal__.FuncGraph("measuring"), 0

    def check() -> None:
        if built > budget:
            raise _refusal("build no more weights than the file holds", f"more than {budget} bytes")

    def create(next_creator: Any, **arguments: Any) -> Any:
        nonlocal built
        value = arguments["initial_value"]
        if callable(value):
            with measuring.as_default():
                value = value()
        built += math.prod(value.shape) * (tf.as_dtype(value.dtype).size or _STRING_BYTES)
        check()  # Keras may put the error into one of its own, or catch it
        return next_creator(**arguments)

    with tf.variable_creator_scope(create):
        yield
    check()
