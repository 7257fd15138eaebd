"""What the names in a pickle of `torch.save` stand for: plain data, and functions of this file."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_deeplab.weights.errors import printable


class UnreadablePickle(Exception):
    """A pickle that is damaged, or asks for more than tensors in plain containers."""


@dataclass(frozen=True)
class Storage:
    """`nbytes` bytes from `start` of the stored bytes `key`; without dtype where torch has none."""

    key: str
    dtype: np.dtype | None
    start: int
    nbytes: int

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize if self.dtype else 1


@dataclass(frozen=True)
class Tensor:
    """A view that lies within its storage; offset from the storage's start, all in bytes."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class Holder:
    """A tensor made empty and filled by BUILD, as parameters and tensors were before torch 0.4."""

    tensor: Tensor | None = None


@dataclass(frozen=True)
class StorageType:
    """The name of a storage class."""

    dtype: np.dtype | None


@dataclass(frozen=True)
class Function:
    """What a pickle may call. It is given the arguments as they come and checks them all."""

    call: Callable[[tuple], Any]


def named(module: object, name: object) -> Function | StorageType | np.dtype:
    """What a name stands for; every name that is in neither table is refused."""
    full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?"
    if full not in _NAMES and _EXTRAS.fullmatch(full):
        return Function(_extra)
    if full not in _NAMES:
        raise UnreadablePickle(
            f"refused {printable(full)}: only tensors in plain containers are read. Load the file "
            "with torch where you trust it, and save model.state_dict() alone"
        )
    return _NAMES[full]


def tensor_of(value: object) -> Tensor | None:
    """The tensor that an object of a pickle is, if it is one."""
    value = value.tensor if isinstance(value, Holder) else value
    return value if isinstance(value, Tensor) else None


def storage_of(identifier: object) -> tuple[Storage, Storage]:
    """The storage of a persistent id, and the whole stored bytes of which it may be a part."""
    match identifier:
        case ("storage", StorageType(dtype=dtype), str(key), str() | None, int(count), *view):
            itemsize = dtype.itemsize if dtype else 1
        case _:
            raise UnreadablePickle("refused a persistent id that is no storage")
    match view:
        case [] | [None]:
            offset, size = 0, count
        case [(str() | int(), int(offset), int(size))]:
            pass
        case _:
            raise UnreadablePickle("refused a storage whose view is none")
    if not (0 <= count <= sys.maxsize and offset >= 0 and 0 <= size <= count - offset):
        raise UnreadablePickle("refused a storage that lies outside its bytes")
    whole = Storage(key, dtype, 0, count * itemsize)
    return Storage(key, dtype, offset * itemsize, size * itemsize), whole


def build(built: object, state: object) -> None:
    """Gives an object its state, as far as that is data."""
    match built, state:
        case dict(), _:
            pass  # an OrderedDict's attributes: the `_metadata` of a state dict
        case Holder(), (Storage() as storage, offset, shape, strides):
            built.tensor = _tensor(storage, storage.dtype, offset, shape, strides)
        case Holder(), (Tensor() | Holder() as held, _, _, _, _):
            built.tensor = tensor_of(held)
        case Holder(), (_, _, _):
            pass  # whether gradients are wanted, and hooks
        case _:
            raise UnreadablePickle(f"refused a state for a {type(built).__name__}")


def plain(items: Iterable[Any]) -> list[Any]:
    """Members of a set or keys of a dict. Hashing nested tuples can take forever, so no tuples."""
    items = list(items)
    for item in items:
        if not isinstance(item, str | bytes | int | float | Function | None):
            raise UnreadablePickle(f"refused a {type(item).__name__} as a key")
    return items


def _tensor(storage: Storage, dtype: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if not isinstance(dtype, np.dtype):
        raise UnreadablePickle("refused a tensor without a dtype")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise UnreadablePickle("refused a tensor whose shape and strides are no tuples")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > 32:
        raise UnreadablePickle(f"refused a tensor of {len(shape)} sizes and {len(strides)} strides")
    if not all(isinstance(number, int) and 0 <= number <= sys.maxsize for number in numbers):
        raise UnreadablePickle("refused a tensor whose offset, shape or strides are negative")
    words = f"a tensor of shape {shape}, strides {strides} and offset {offset}"
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > sys.maxsize:
        raise UnreadablePickle(f"refused {words}: larger than any memory")
    if 0 in shape:
        return Tensor(storage, dtype, 0, shape, (0,) * len(shape))
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (last + 1) * dtype.itemsize > storage.nbytes:
        raise UnreadablePickle(f"refused {words}: it reaches outside its {storage.nbytes} bytes")
    steps = tuple(stride * dtype.itemsize for stride in strides)
    return Tensor(storage, dtype, offset * dtype.itemsize, shape, steps)


def _rebuilt_tensor(arguments: tuple) -> Tensor:
    match arguments:
        case (Storage() as storage, offset, shape, strides, *_):
            return _tensor(storage, storage.dtype, offset, shape, strides)
    raise _bad_call("a tensor")


def _rebuilt_typed_tensor(arguments: tuple) -> Tensor:
    match arguments:
        case (Storage() as storage, offset, shape, strides, _, _, dtype, *_):
            return _tensor(storage, dtype, offset, shape, strides)
    raise _bad_call("a tensor")


def _parameter(arguments: tuple) -> Tensor | Holder:
    match arguments:
        case ():
            return Holder()
        case (Tensor() | Holder() as tensor, *_):
            return tensor
    raise _bad_call("a parameter")


def _empty_tensor(arguments: tuple) -> Holder:
    match arguments:
        case ():
            return Holder()
    raise _bad_call("an empty tensor")


def _dict(arguments: tuple) -> dict:
    match arguments:
        case ():
            return {}
        case (dict() as items,):
            return items  # a copy of a large one for each of many calls would fill the memory
        case (list() as pairs,) if all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            plain(key for key, _ in pairs)
            items = dict(pairs)  # as Python 2 wrote them
            pairs.clear()  # so that many calls with one list fill no memory
            return items
    raise _bad_call("a dict")


def _set(arguments: tuple) -> set:
    match arguments:
        case (list() as items,):
            members = set(plain(items))
            items.clear()
            return members
    raise _bad_call("a set")


def _size(arguments: tuple) -> tuple:
    match arguments:
        case (tuple() as sizes,):
            return sizes
    raise _bad_call("a torch.Size")


def _extra(arguments: tuple) -> dict:  # noqa: ARG001
    """An object of a training program, of which nothing is made: what it is filled with is lost."""
    return {}


def _bad_call(what: str) -> UnreadablePickle:
    return UnreadablePickle(f"refused {what} made of other arguments than torch's")


_TYPES = {
    "Double": np.dtype("float64"),
    "Float": np.dtype("float32"),
    "Half": np.dtype("float16"),
    "BFloat16": np.dtype(tf.bfloat16.as_numpy_dtype),
    "Long": np.dtype("int64"),
    "Int": np.dtype("int32"),
    "Short": np.dtype("int16"),
    "Char": np.dtype("int8"),
    "Byte": np.dtype("uint8"),
    "Bool": np.dtype("bool"),
}
_UNSIGNED = [np.dtype(name) for name in ("uint16", "uint32", "uint64")]
_NAMES: dict[str, Function | StorageType | np.dtype] = {
    **{f"torch.{name}Storage": StorageType(dtype) for name, dtype in _TYPES.items()},
    **{f"torch.{name}Tensor": Function(_empty_tensor) for name in _TYPES},
    **{f"torch.{dtype.name}": dtype for dtype in (*_TYPES.values(), *_UNSIGNED)},
    "torch.UntypedStorage": StorageType(None),
    "torch.storage.UntypedStorage": StorageType(None),
    "torch.Size": Function(_size),
    "torch.Tensor": Function(_empty_tensor),
    "torch._utils._rebuild_tensor": Function(_rebuilt_tensor),  # before torch 0.4
    "torch._utils._rebuild_tensor_v2": Function(_rebuilt_tensor),
    "torch._utils._rebuild_tensor_v3": Function(_rebuilt_typed_tensor),
    "torch._utils._rebuild_parameter": Function(_parameter),
    "torch._utils._rebuild_parameter_with_state": Function(_parameter),
    "torch.nn.parameter.Parameter": Function(_parameter),
    "collections.OrderedDict": Function(_dict),
    "collections.Counter": Function(_dict),  # the milestones of a learning rate schedule
    "collections.defaultdict": Function(_extra),
    "builtins.set": Function(_set),
    "__builtin__.set": Function(_set),
}
# Classes of what training programs keep beside the state dict, such as hyper-parameters. Nothing of
# them is imported or called; a class that is not listed is refused by its name.
_EXTRAS = re.compile(
    r"argparse\.Namespace|pathlib\.(_local\.)?\w*Path|datetime\.(datetime|date|timedelta)"
    r"|(builtins|__builtin__)\.(dict|list|int|float|bool|str|bytes|tuple)|typing\.Any|_codecs\.encode"
    r"|numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))"
    r"|torch\.(device|torch_version\.TorchVersion|optim\.\w+\.\w+)"
    r"|(omegaconf|pytorch_lightning|lightning|lightning_fabric|lightning_utilities|mmengine|mmcv"
    r"|yacs|easydict|addict|ml_collections)(\.\w+)+"
)
