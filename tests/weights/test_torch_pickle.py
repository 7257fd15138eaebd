"""Pickles that no torch would write, and those that very old torch wrote."""

from __future__ import annotations

import copyreg
import os
import pickle
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch_bytes
from torch_bytes import (
    ORDERED,
    TENSOR,
    call,
    dict_of,
    plain,
    storage,
    tensor,
    write_stream,
    write_zip,
)

FOUR = np.arange(4, dtype="float32")


def read(folder: Path, body: bytes) -> dict[str, np.ndarray]:
    return torch_bytes.read(write_zip(folder / "a.pth", body, **{"0": FOUR.tobytes()}))


def refusal(folder: Path, body: bytes) -> str:
    return torch_bytes.refusal(write_zip(folder / "a.pth", body, **{"0": FOUR.tobytes()}))


def write_marker(path: str = "marker"):
    Path(path).touch()


class WithState:
    def __setstate__(self, state: str):
        Path(state).touch()


SHELL = plain("touch marker")
EXPRESSION = plain("__import__('os').system('touch marker')")
SYSTEM = f"c{os.system.__module__}\nsystem\n".encode()
SYSTEM_NAME = f"refused {os.system.__module__}.system:"
MINE = f"c{__name__}\n".encode()
LONG = (1 << 45).to_bytes(8, "little")
ATTACKS = {
    "REDUCE": (call(SYSTEM, SHELL), SYSTEM_NAME),
    "Python 2 eval": (call(b"c__builtin__\neval\n", EXPRESSION), "refused __builtin__.eval:"),
    "STACK_GLOBAL": (plain("os") + plain("system") + b"\x93" + SHELL + b"\x85R", "os.system:"),
    "dotted": (
        call(plain("collections") + plain("abc.sys.modules") + b"\x93", SHELL),
        "refused collections.abc.sys.modules:",
    ),
    "INST": (b"(" + SHELL + b"i" + SYSTEM[1:], "refused the pickle opcode INST"),
    "OBJ": (b"(" + SYSTEM + SHELL + b"o", SYSTEM_NAME),
    "NEWOBJ": (MINE + b"WithState\n)\x81" + plain("marker") + b"b", "test_torch_pickle.WithState:"),
    "NEWOBJ_EX": (MINE + b"WithState\n)}\x92" + plain("marker") + b"b", ".WithState:"),
    "EXT1": (call(b"\x82\xf0"), "refused the pickle opcode EXT1"),
    "EXT4": (call(b"\x84\xf0\x00\x00\x00"), "refused the pickle opcode EXT4"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_programs_are_refused_by_name_and_do_nothing(attack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body, reason = ATTACKS[attack]
    copyreg.add_extension(__name__, "write_marker", 0xF0)
    try:
        # The pickle does what it is made for, where it is executed; EXT is now in pickle's cache.
        if attack != "dotted":
            pickle.loads(b"\x80\x02" + body + b".")
            Path("marker").unlink()
        # Before the tensors, after them, and as the value of one.
        tensors = dict_of(a=tensor(storage("0", 4), 0, (4,), (1,)))
        for whole in (body, b"(" + body + tensors + b"t", b"(" + tensors + body + b"t"):
            assert reason in refusal(tmp_path, whole)
        assert reason in refusal(tmp_path, dict_of(a=body))
    finally:
        copyreg.remove_extension(__name__, "write_marker", 0xF0)
    assert not Path("marker").exists()


@pytest.mark.parametrize("number", range(1, 5))
def test_every_pickle_of_a_stream_is_read_as_data(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_stream(tmp_path / "a.pth", b"}")
    parts = path.read_bytes().split(b".\x80\x02")
    parts[number] = call(SYSTEM, SHELL)
    path.write_bytes(b".\x80\x02".join(parts) + b"." * (number == 4))
    assert SYSTEM_NAME in torch_bytes.refusal(path)
    assert not Path("marker").exists()


# Hashing or printing 2**60 leaves of nested tuples would never end.
NESTED = b"K\x00" + b"q\x00h\x00\x86" * 60
CRAFTED = {
    "refused torchvision.models.vgg.VGG: ": [b"ctorchvision.models.vgg\nVGG\n)\x81}b"],
    "refused my.net.Net: ": [b"(" + plain("module") + b"cmy.net\nNet\nNNtQ"],
    "refused a call of a": [
        *(call(plain(3)), call(storage("0", 4)), ORDERED + b"]R", ORDERED + plain([]) + b"R")
    ],
    "without a storage": [dict_of(a=call(TENSOR, plain(1)))],
    "no tensors by name": [
        dict_of(a=b"ctorch.nn.parameter\nParameter\n)\x81K\x01b"),
        b"}" + NESTED + b"K\x01s",
    ],
    "persistent id": [
        plain("0") + b"Q",
        b"(" + plain("storage") + plain("a") + b"tQ",
        storage("0", "4"),
        storage("0", 4, b"ctorch\nFloatStorage\n", plain(("v", 1, 3))),
    ],
    "storage 0 of two sizes": [b"(" + storage("0", 4) + storage("0", 1) + b"t"],
    "refused the pickle opcode": [
        *(b"P0\n", b"K\x010", b"K\x012", b"\x97", plain(3) + plain({"dtype": 1}) + b"b")
    ],
    "its pickle is damaged: the stack is empty": [b"R"],
    # The last have lengths far beyond the file.
    "it cannot be read: ": [
        *(call(ORDERED, plain([1])), plain(3) + b"(K\x01e", b"u", b"h\x07", b"\xff"),
        *(b"X\xff\xff\xff\xff", b"\x8d" + LONG, b"\x8b\xff\xff\xff\x7f", b"\x95" + LONG),
        b"\x96" + LONG,
    ],
}


@pytest.mark.parametrize("reason", CRAFTED)
def test_crafted_pickles_are_refused(reason, tmp_path):
    for body in CRAFTED[reason]:
        assert reason in refusal(tmp_path, body)


@pytest.mark.parametrize(
    "place",
    [
        *((0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (4, (), ())),
        *((0, (2,), (1 << 62,)), (0, (1 << 40, 1 << 40), (0, 0))),
        *((0, (1 << 62, 0, 1 << 62), (0, 0, 0)), (-1, (4,), (1,)), (3, (4,), (-1,))),
        *((0, (-4,), (1,)), (0, (1 << 80,), (0,)), (0, (2.0,), (1,)), (0, (4,), (1, 1))),
        *((0, (1,) * 70, (1,) * 70), (0, 4, 1)),
    ],
)
def test_tensors_that_are_not_in_their_storage_are_refused(place, tmp_path):
    message = "refused a tensor that is not in its storage of 16 bytes"
    assert message in refusal(tmp_path, dict_of(a=tensor(storage("0", 4), *place)))


def test_a_tensor_without_elements_is_in_any_storage(tmp_path):
    found = read(tmp_path, dict_of(a=tensor(storage("0", 4), 4, (3, 0), (1, 1))))
    assert found["a"].shape == (3, 0)


def test_tensors_that_say_too_much_are_refused(tmp_path):
    expanded = tensor(storage("0", 4), 0, (1000, 1000), (0, 0))
    assert "refused tensors of 4000000 bytes from a f" in refusal(tmp_path, dict_of(a=expanded))
    nested = call(TENSOR, storage("0", 4), plain(0), NESTED, NESTED)
    assert "not in its storage" in refusal(tmp_path, dict_of(a=nested))
    assert "not in its storage" in refusal(
        tmp_path, dict_of(a=tensor(storage("0", -4), 0, (4,), (1,)))
    )


@pytest.mark.parametrize("write", [write_zip, write_stream])
@pytest.mark.parametrize("count", [3, 5, 1 << 40])
def test_storages_of_another_size_than_declared_are_refused(count, write, tmp_path):
    body = dict_of(a=tensor(storage("0", count), 0, (3,), (1,)))
    path = write(tmp_path / "a.pth", body, **{"0": FOUR.tobytes()})
    assert re.search("bytes for 0$|storage 0 has another size", torch_bytes.refusal(path))


def test_lists_of_storages_that_are_not_the_tensors_are_refused(tmp_path):
    body = dict_of(a=tensor(storage("7", 4), 0, (4,), (1,)))
    path = write_stream(tmp_path / "b.pth", body, **{"0": FOUR.tobytes()})
    assert "list of storages" in torch_bytes.refusal(path)
    assert "no member of 16 bytes for 7" in refusal(tmp_path, body)


STORED = storage("0", 4)
OLD_PLACE = plain(1) + plain((3,)) + plain((1,))
PARAMETER = b"ctorch.nn.parameter\nParameter\n"
FLOAT_TENSOR = call(b"ctorch\nFloatTensor\n") + b"(" + STORED + OLD_PLACE + b"tb"


@pytest.mark.parametrize(
    "value",
    [
        tensor(STORED, 1, (3,), (1,)),
        call(b"ctorch._utils\n_rebuild_tensor\n", STORED, OLD_PLACE),
        FLOAT_TENSOR,
        # Parameters of torch 0.1: data, gradient, hooks, requires_grad, volatile.
        PARAMETER + b")\x81(" + FLOAT_TENSOR + b"N}\x88\x89tb",
        # Parameters of torch 0.3: data; then whether gradients are wanted, and hooks.
        call(PARAMETER, FLOAT_TENSOR) + b"(\x88\x89}tb",
        call(b"ctorch._utils\n_rebuild_parameter\n", FLOAT_TENSOR, b"\x88", call(ORDERED)),
    ],
)
def test_tensors_as_torch_wrote_them_over_the_years(value, tmp_path):
    found = read(tmp_path, dict_of(a=value))
    assert found["a"].dtype == np.float32
    np.testing.assert_array_equal(found["a"], FOUR[1:])


def test_a_state_dict_of_python_2(tmp_path):
    body = call(ORDERED, b"](](U\x01a" + FLOAT_TENSOR + b"ee")
    np.testing.assert_array_equal(read(tmp_path, body)["a"], FOUR[1:])


def test_a_tensor_known_before_it_is_filled_is_the_same_one(tmp_path):
    first = call(b"ctorch\nFloatTensor\n") + b"q\x07(" + STORED + OLD_PLACE + b"tb"
    found = read(tmp_path, dict_of(a=first, b=b"h\x07"))
    np.testing.assert_array_equal(found["b"], FOUR[1:])
    assert np.shares_memory(found["a"], found["b"])


def test_tensors_that_were_never_filled_are_no_tensors(tmp_path):
    body = dict_of(a=call(b"ctorch\nFloatTensor\n"), b=FLOAT_TENSOR)
    assert list(read(tmp_path, body)) == ["b"]


@pytest.mark.parametrize("function", [ORDERED, b"cbuiltins\nset\n"])
@pytest.mark.parametrize("items", [plain(dict.fromkeys(range(9999))), plain([[1, 2]] * 9999)])
def test_a_container_made_of_another_again_and_again_takes_no_memory(function, items, tmp_path):
    body = b"(" + items + b"q\x07" + 2000 * call(function, b"h\x07") + b"t"
    tracemalloc.start()
    refusal(tmp_path, body)
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "use",
    [
        call(ORDERED, b"h\x07"),
        call(b"cbuiltins\nset\n", b"h\x07"),
        b"h\x07\x88K\x01s",  # an assignment to all that is in it
        b"](h\x07e" + b"h\x07(h\x07e",
    ],
)
def test_a_number_that_is_expanded_is_never_gone_through(use, tmp_path):
    huge = tensor(storage("0", 4), 0, (1 << 40,), (0,)) + b"q\x07"
    refusal(tmp_path, b"(" + huge + use + b"t")
    refusal(tmp_path, dict_of(a=huge, b=b"h\x07"))


def test_huge_memo_indices_take_no_memory(tmp_path):
    body = dict_of(a=FLOAT_TENSOR) + b"r\xff\xff\xff\x7f"
    assert list(read(tmp_path, body)) == ["a"]
