"""Reads the pickles of `torch.save` as data.

A pickle is a program: `pickle.load` imports what it names and calls it, and even a
`pickle.Unpickler` that allows few names allocates 16 GB for a memo index that a file of ten bytes
declares. Here a call becomes an `Object` of its name and arguments, and only those that stand for
tensors are understood. A dict keeps its items in a list, as hashing a key of nested tuples can take
forever.
"""

from __future__ import annotations

import math
import pickletools
import re
import sys
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf

from keras_deeplab.weights.errors import UnreadableError

_KINDS = "Double Float Half Long Int Short Char Byte Bool BFloat16".split()
_DTYPES = "float64 float32 float16 int64 int32 int16 int8 uint8 bool".split()
_STORAGES = {
    f"torch.{kind}Storage": np.dtype(dtype)
    for kind, dtype in zip(_KINDS, [*_DTYPES, tf.bfloat16.as_numpy_dtype], strict=True)
}
# Bytes, of numbers that Keras' layers do not have: the calls that use them are passed over.
_STORAGES["torch.storage.UntypedStorage"] = np.dtype("uint8")
_REBUILD = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
# Before torch 0.4 tensors and parameters were made empty, and had their state set.
_EMPTY_TENSORS = [f"torch.{kind}Tensor" for kind in _KINDS]
_PARAMETERS = (
    "torch.nn.parameter.Parameter",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
_ORDERED = "collections.OrderedDict"
_DICTS = ("dict", _ORDERED, "collections.defaultdict")
_NAMES = {*_STORAGES, *_REBUILD, *_EMPTY_TENSORS, *_PARAMETERS}
# Of what else training programs keep beside a state dict; any other name is refused.
_EXTRAS = re.compile(
    r"(argparse\.|types\.Simple)Namespace|pathlib\.(_local\.)?\w*Path"
    r"|datetime\.(datetime|date|timedelta)|typing\.Any|_codecs\.encode"
    r"|(builtins|__builtin__)\.(dict|list|int|float|bool|str|bytes|tuple|set"
    r"|complex|range|slice)|collections\.(OrderedDict|Counter|defaultdict|deque)"
    r"|numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))"
    r"|torch\.(Size|Tensor|device|[a-z]+\d+|torch_version\.TorchVersion|optim\.\w+\.\w+)"
    r"|torch\._utils\._rebuild_tensor_v3"
    r"|(omegaconf|pytorch_lightning|lightning|lightning_fabric|lightning_utilities|mmengine|mmcv"
    r"|yacs|easydict|addict|ml_collections)(\.\w+)+"
)
# Opcodes that push their argument, and those that push or extend a container by so many items, or
# by those since the last mark.
_PLAIN = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE BINUNICODE8 "
    "SHORT_BINUNICODE STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}
_LISTS = {"EMPTY_LIST": 0, "LIST": None}
_DICTS_AND_SETS = {"EMPTY_DICT": 0, "DICT": None, "EMPTY_SET": 0, "FROZENSET": None}
_EXTENSIONS = {"APPEND": 1, "SETITEM": 2, "APPENDS": None, "SETITEMS": None, "ADDITEMS": None}


@dataclass(eq=False)
class Object:
    """The name of a function or class, and a call of it that is not made."""

    name: str
    arguments: tuple[Any, ...] = ()
    items: list[Any] = field(default_factory=list)
    state: Any = None

    def named(self) -> dict[str, Any]:
        """Returns the items of a dict that have strings as keys."""
        pairs = zip(self.items[::2], self.items[1::2], strict=True) if self.name in _DICTS else ()
        return {key: value for key, value in pairs if isinstance(key, str)}


@dataclass(frozen=True)
class Storage:
    """Numbers that are stored under a key."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def nbytes(self) -> int:
        """Of all numbers."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides are in bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of all elements, also where they share memory."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def array(self, content: bytes) -> np.ndarray:
        """The view of the storage's content."""
        dtype = self.storage.dtype
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        return np.ndarray(self.shape, dtype, content, self.offset, self.strides)


class Unpickler:
    """Reads one pickle and leaves the file behind its end.

    Args:
        file: A file of which `read(n)` allocates no more than is there, however large n
            (`io.BytesIO`, `mmap.mmap`; not a buffered file).

    Attributes:
        storages: Those that the pickle names, by key.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.storages: dict[str, Storage] = {}
        self._file = file
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Returns what the pickle holds; a damaged one raises errors of every kind."""
        for opcode, argument, _ in pickletools.genops(self._file):
            self._run(opcode.name, argument)
        return self._stack.pop()

    def _run(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case _ if opcode in _PLAIN:
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(None if opcode == "NONE" else opcode == "NEWTRUE")
            case _ if opcode in _TUPLES:
                stack.append(tuple(self._pop(_TUPLES[opcode])))
            case _ if opcode in _LISTS:
                stack.append(self._pop(_LISTS[opcode]))
            case _ if opcode in _DICTS_AND_SETS:
                name = "dict" if "DICT" in opcode else "set"
                stack.append(Object(name, items=self._pop(_DICTS_AND_SETS[opcode])))
            case _ if opcode in _EXTENSIONS:
                items, container = self._pop(_EXTENSIONS[opcode]), stack[-1]
                (container.items if isinstance(container, Object) else container).extend(items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_named(*self._pop(2)))
            case "REDUCE" | "NEWOBJ":
                stack.append(_called(*self._pop(2)))
            case "BUILD" if isinstance(stack[-2], Object):
                state = stack.pop()
                stack[-1].state = state
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _:
                raise UnreadableError(f"refused the pickle opcode {opcode}")

    def _pop(self, count: int | None) -> list[Any]:
        """The last items of the stack, without a count those since the last mark."""
        start = self._marks.pop() if count is None else len(self._stack) - count
        if not 0 <= start <= len(self._stack):
            raise UnreadableError("its pickle is damaged: the stack is empty")
        popped = self._stack[start:]
        del self._stack[start:]
        return popped

    def _storage(self, identifier: object) -> Storage:
        match identifier:
            # The view of a part, which torch 0.x could store behind these, is not read.
            case ("storage", Object(name=kind), str(key), _, int(count), *view) if (
                kind in _STORAGES and view in ([], [None])
            ):
                storage = Storage(key, _STORAGES[kind], count)
            case _:
                raise UnreadableError("refused a persistent id that is not a storage")
        if self.storages.setdefault(key, storage) != storage:
            raise UnreadableError(f"refused storage {key:.100} of two sizes")
        return storage


def _named(module: str, name: str) -> Object:
    full = ".".join((module, name))
    if full not in _NAMES and not _EXTRAS.fullmatch(full):
        raise UnreadableError(
            f"refused {full:.100}: only tensors in plain containers are read. Load the file with "
            "torch where you trust it, and save model.state_dict() alone"
        )
    return Object(full)


def _called(function: Any, arguments: Any) -> Object:
    if not isinstance(function, Object) or not isinstance(arguments, tuple):
        raise UnreadableError(f"refused a call of a {type(function).__name__}")
    made = Object(function.name, arguments)
    if made.name == _ORDERED and arguments:  # as Python 2 wrote it
        (pairs,) = arguments
        made.items = [each for key, value in pairs for each in (key, value)]
        pairs.clear()  # or many calls with one list would fill the memory
    return made


def tensor_of(value: Any) -> Tensor | None:
    """The tensor that a value stands for, None for anything else."""
    if isinstance(value, Object) and value.name in _PARAMETERS:
        inside = value.arguments or value.state
        value = inside[0] if isinstance(inside, tuple) and inside else None
    if not isinstance(value, Object):
        return None
    if value.name in _EMPTY_TENSORS and isinstance(value.state, tuple) and len(value.state) == 4:
        return _tensor(*value.state)
    if value.name in _REBUILD:
        return _tensor(*value.arguments[:4])
    return None


def _tensor(storage: Any = None, offset: Any = 0, shape: Any = (), strides: Any = ()) -> Tensor:
    if not isinstance(storage, Storage):
        raise UnreadableError("refused a tensor without a storage")
    tuples = isinstance(shape, tuple) and isinstance(strides, tuple)
    numbers = (offset, *shape, *strides) if tuples and len(shape) == len(strides) <= 32 else (None,)
    is_view = all(isinstance(number, int) and 0 <= number <= sys.maxsize for number in numbers)
    itemsize = storage.dtype.itemsize
    if is_view:
        steps = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
        reaches_out = 0 not in shape and offset + sum(steps) >= storage.count
        elements = math.prod(max(size, 1) for size in shape)
        is_view = not reaches_out and elements * itemsize <= sys.maxsize
    if not is_view:
        raise UnreadableError(
            f"refused a tensor that is not in its storage of {storage.nbytes} bytes"
        )
    steps = tuple(stride * itemsize for stride in strides)
    return Tensor(storage, offset * itemsize, shape, steps)
