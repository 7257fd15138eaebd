"""Reads the pickles of `torch.save` as data.

A pickle is a program: `pickle.load` imports what it names and calls it. Here a name stands for what
`_NAMES` lists, which are functions of this file and plain data; all else is refused.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf

from keras_deeplab.weights.errors import printable


class UnreadablePickle(Exception):
    """A pickle that is damaged, or holds more than tensors in plain containers."""


@dataclass(frozen=True)
class _StorageType:
    """The name of a storage class; torch's untyped ones have no dtype."""

    dtype: np.dtype | None


@dataclass
class Storage:
    """Numbers that tensors are views of, a part of the stored bytes; `content` is filled later."""

    content: np.ndarray
    dtype: np.dtype | None


@dataclass(eq=False)
class Tensor:
    """A tensor; before torch 0.4, BUILD filled it later.

    The array is inside because a pickle could iterate over one or assign to it, which takes forever
    where a single number is expanded to a large shape.
    """

    array: np.ndarray | None = None


def _plain(items: Iterable[Any]) -> list[Any]:
    """Members of a set or keys of a dict. Hashing nested tuples can take forever, so no tuples."""
    items = list(items)
    for item in items:
        if isinstance(item, int) and not -(2**63) <= item < 2**63:
            raise UnreadablePickle("refused a long integer as a key")
        if not isinstance(item, str | bytes | int | float | _Function | None):
            raise UnreadablePickle(f"refused a {type(item).__name__} as a key")
    return items


# Of the functions that a pickle may call, those of tensors have the most.
_MAX_ARGUMENTS = 16


class _Opcodes(dict):
    def __missing__(self, code: int) -> None:
        opcode = pickletools.code2op.get(chr(code))
        raise UnreadablePickle(f"refused the pickle opcode {opcode.name if opcode else code}")


def _opcodes() -> _Opcodes:
    """Those that make plain data and use names, without those that read buffers or drop things."""
    allowed = (
        "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 "
        "FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING "
        "SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_DICT EMPTY_LIST EMPTY_SET "
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 LIST APPEND APPENDS PUT BINPUT LONG_BINPUT MEMOIZE "
        "GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID"
    )
    keys = {
        "SETITEM": slice(-2, -1),
        "SETITEMS": slice(None, None, 2),
        "DICT": slice(None, None, 2),
        "ADDITEMS": slice(None),
        "FROZENSET": slice(None),
    }
    read = {name: pickle._Unpickler.dispatch[_code(name)] for name in (*allowed.split(), *keys)}
    read |= {name: _with_plain_keys(read[name], place) for name, place in keys.items()}
    read |= dict.fromkeys(("REDUCE", "NEWOBJ"), Unpickler.load_call)
    read["BUILD"] = Unpickler.load_build
    return _Opcodes({_code(name): function for name, function in read.items()})


def _code(name: str) -> int:
    return getattr(pickle, name)[0]


def _with_plain_keys(opcode: Callable, keys: slice) -> Callable:
    def checked(self: Unpickler) -> None:
        _plain(self.stack[keys])
        opcode(self)

    return checked


# The unpickler in C hashes any key, and allocates what a memo's index or a length declares before
# it reads on. Of the one in Python, opcodes can be replaced and left out.
class Unpickler(pickle._Unpickler):
    """Reads one pickle and leaves the file behind its end.

    Args:
        file: A file of which `read(n)` allocates no more than is there, however large n
            (`io.BytesIO`, `mmap.mmap`; not a buffered file).
        size: Bytes that all storages may have together.

    Attributes:
        stored: Arrays for the bytes that the pickle names, by key, to be filled by the caller.
        itemsizes: Bytes of a number in each, 0 in those without a type.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding="latin1")
        self.size = size
        self.stored: dict[str, np.ndarray] = {}
        self.itemsizes: dict[str, int] = {}

    def load(self) -> Any:
        """Returns what the pickle holds.

        Raises:
            UnreadablePickle: With what is wrong, or the name of what is refused.
        """
        try:
            return super().load()
        except UnreadablePickle:
            raise
        except Exception as error:  # whatever a damaged pickle leads to
            raise UnreadablePickle(f"damaged or cut pickle ({printable(str(error))})") from error

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for."""
        full = f"{module}.{name}"
        if full in _NAMES:
            return _NAMES[full]
        if _EXTRAS.fullmatch(full):
            return _Function(_extra)
        raise UnreadablePickle(
            f"refused {printable(full)}: only tensors in plain containers are read. Load the file "
            "with torch where you trust it, and save model.state_dict() alone"
        )

    def persistent_load(self, identifier: object) -> Storage:
        """The storage of a persistent id, which may be a part of the stored bytes."""
        match identifier:
            case ("storage", _StorageType(dtype=dtype), str(key), str() | None, int(count), *view):
                itemsize = dtype.itemsize if dtype else 1
            case _:
                raise UnreadablePickle("refused a persistent id that is not a storage")
        match view:
            case [] | [None]:
                start, length = 0, count
            case [(str() | int(), int(start), int(length))]:
                pass
            case _:
                raise UnreadablePickle("refused a storage whose view is none")
        if not (0 <= start <= start + length <= count) or length < 0:
            raise UnreadablePickle("refused a storage that lies outside its bytes")
        if key not in self.stored:
            self.size -= count * itemsize
            if self.size < 0:
                raise UnreadablePickle(f"storage {printable(key)} has more bytes than the file")
            self.stored[key] = np.empty(count * itemsize, np.uint8)
            self.itemsizes[key] = dtype.itemsize if dtype else 0
        content = self.stored[key]
        if content.nbytes != count * itemsize:
            raise UnreadablePickle(f"refused storage {printable(key)} of two sizes")
        return Storage(content[start * itemsize : (start + length) * itemsize], dtype)

    def load_call(self) -> None:
        """Calls a known function. Long arguments are refused, as each call would copy them."""
        function, arguments = self.stack[-2:]
        if not isinstance(function, _Function):
            raise UnreadablePickle(f"refused a call of a {type(function).__name__}")
        if not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
            raise UnreadablePickle(f"refused a call with a {type(arguments).__name__} of arguments")
        self.stack[-2:] = [function(*arguments)]

    def load_build(self) -> None:
        """Gives an object its state, as far as that is data."""
        state, built = self.stack.pop(), self.stack[-1]
        match built, state:
            case dict(), _:
                pass  # an OrderedDict's attributes: the `_metadata` of a state dict
            case Tensor(), (Storage() as storage, offset, shape, strides):
                built.array = _tensor(storage, offset, shape, strides).array
            case Tensor(), (Tensor(array=array), _, _, _, _):
                built.array = array
            case Tensor(), (_, _, _):
                pass  # `requires_grad` and hooks
            case _:
                raise UnreadablePickle(f"refused a state for a {type(built).__name__}")


Unpickler.dispatch = _opcodes()


class _Function:
    """What a pickle may call."""

    def __init__(self, call: Callable) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None) -> Tensor:
    dtype = storage.dtype if dtype is None else dtype
    if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
        raise UnreadablePickle("refused a tensor without a storage or a dtype")
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
        return Tensor(np.empty(shape, dtype))
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    size = storage.content.nbytes
    if (last + 1) * dtype.itemsize > size:
        raise UnreadablePickle(f"refused {words}: it reaches outside its {size} bytes")
    steps = [stride * dtype.itemsize for stride in strides]
    return Tensor(np.ndarray(shape, dtype, storage.content, offset * dtype.itemsize, steps))


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    return _tensor(storage, offset, shape, strides)


def _rebuild_typed(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    *_: Any,
) -> Tensor:
    return _tensor(storage, offset, shape, strides, dtype)


def _parameter(tensor: Any = None, *_: Any) -> Any:
    return Tensor() if tensor is None else tensor


# Containers are not copied, and the list that one is made of is emptied: otherwise many calls with
# the same one would fill the memory.
def _dict(items: Any = None) -> dict:
    if items is None or isinstance(items, dict):
        return {} if items is None else items
    _plain(key for key, _ in items)
    made = dict(items)  # as Python 2 wrote them
    items.clear()
    return made


def _set(items: Any) -> set:
    made = set(_plain(items))
    items.clear()
    return made


def _extra(*_: Any) -> dict:
    """An object of a training program, of which nothing is made: what it is filled with is lost."""
    return {}


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
_NAMES: dict[str, _Function | _StorageType | np.dtype] = {
    **{f"torch.{name}Storage": _StorageType(dtype) for name, dtype in _TYPES.items()},
    **{f"torch.{name}Tensor": _Function(_parameter) for name in _TYPES},
    **{f"torch.{dtype.name}": dtype for dtype in (*_TYPES.values(), *_UNSIGNED)},
    "torch.UntypedStorage": _StorageType(None),
    "torch.storage.UntypedStorage": _StorageType(None),
    "torch.Size": _Function(lambda sizes: sizes),
    "torch.Tensor": _Function(_parameter),
    "torch._utils._rebuild_tensor": _Function(_rebuild),  # before torch 0.4
    "torch._utils._rebuild_tensor_v2": _Function(_rebuild),
    "torch._utils._rebuild_tensor_v3": _Function(_rebuild_typed),
    "torch._utils._rebuild_parameter": _Function(_parameter),
    "torch._utils._rebuild_parameter_with_state": _Function(_parameter),
    "torch.nn.parameter.Parameter": _Function(_parameter),
    "collections.OrderedDict": _Function(_dict),
    "collections.Counter": _Function(_dict),  # the milestones of a learning rate schedule
    "collections.defaultdict": _Function(_extra),
    "builtins.set": _Function(_set),
    "__builtin__.set": _Function(_set),
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
