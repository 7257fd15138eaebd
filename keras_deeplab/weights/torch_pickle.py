"""Reads the pickles of `torch.save` as data.

A pickle is a program: `pickle.load` imports what it names and calls it. Here its opcodes work on
plain containers, its names are looked up in the table of `torch_objects`, and whatever is not
listed is refused.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

from keras_deeplab.weights.errors import printable
from keras_deeplab.weights.torch_objects import (
    Function,
    Storage,
    UnreadablePickle,
    build,
    named,
    plain,
    storage_of,
)


@dataclass(frozen=True)
class Pickle:
    """What a pickle holds, and the stored bytes it names, by key."""

    value: Any
    storages: dict[str, Storage]


def load(file: BinaryIO) -> Pickle:
    """Reads one pickle and leaves the file behind its end.

    Args:
        file: A file of which `read(n)` allocates no more than is there, however large n
            (`io.BytesIO`, `mmap.mmap`; not a buffered file).

    Raises:
        UnreadablePickle: With what is wrong, or the name of what is refused.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        (value,) = machine.stack
    except (ValueError, IndexError, KeyError) as error:
        raise UnreadablePickle(f"damaged or cut pickle ({printable(str(error))})") from error
    return Pickle(value, machine.storages)


_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
    "BINBYTES8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, opcode: str, argument: Any) -> None:
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if opcode in _LITERALS:
                self.push(argument)
            case _ if opcode in _CONSTANTS:
                self.push(_CONSTANTS[opcode])
            case _ if opcode in _CONTAINERS:
                self.push(_CONTAINERS[opcode]())
            case "MARK":
                self.below_marks.append(self.stack)
                self.stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.push(tuple(self.pop(int(opcode[-1]))))
            case "TUPLE":
                self.push(tuple(self.pop_mark()))
            case "LIST":
                self.push(self.pop_mark())
            case "DICT":
                self.push(_pairs(self.pop_mark()))
            case "FROZENSET":
                self.push(frozenset(plain(self.pop_mark())))
            case "APPEND":
                self.add(list, self.pop(1))
            case "APPENDS":
                self.add(list, self.pop_mark())
            case "SETITEM":
                self.add(dict, _pairs(self.pop(2)))
            case "SETITEMS":
                self.add(dict, _pairs(self.pop_mark()))
            case "ADDITEMS":
                self.add(set, plain(self.pop_mark()))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                self.push(self.memo[argument])
            case "GLOBAL":
                self.push(named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.push(named(*self.pop(2)))
            case "BINPERSID":
                self.push(self.storage(*self.pop(1)))
            case "REDUCE" | "NEWOBJ":
                self.push(_call(*self.pop(2)))
            case "BUILD":
                (state,) = self.pop(1)
                build(self.stack[-1], state)
            case "INST":
                named(*argument.split(" ", 1))  # the refusal says which class, where it can
                raise UnreadablePickle("refused the pickle opcode INST")
            case _:
                raise UnreadablePickle(f"refused the pickle opcode {opcode}")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("its stack is empty")
        start = len(self.stack) - count
        popped = self.stack[start:]
        del self.stack[start:]
        return popped

    def pop_mark(self) -> list[Any]:
        popped, self.stack = self.stack, self.below_marks.pop()
        return popped

    def add(self, kind: type, items: Any) -> None:
        target = self.stack[-1]
        if type(target) is not kind:
            raise ValueError(f"a {type(target).__name__} where a {kind.__name__} must be")
        target.extend(items) if kind is list else target.update(items)

    def storage(self, identifier: Any) -> Storage:
        storage, whole = storage_of(identifier)
        if self.storages.setdefault(whole.key, whole).nbytes != whole.nbytes:
            raise UnreadablePickle(f"refused storage {printable(whole.key)} of two sizes")
        return storage


def _call(function: object, arguments: object) -> Any:
    if not isinstance(function, Function) or not isinstance(arguments, tuple):
        raise UnreadablePickle(f"refused a call of a {type(function).__name__}")
    return function.call(arguments)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(plain(items[::2]), items[1::2], strict=True))
