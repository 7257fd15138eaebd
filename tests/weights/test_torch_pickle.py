"""Pickles that no torch would write, each in both formats, and those that very old torch wrote."""

from __future__ import annotations

import copyreg
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from torch_bytes import ORDERED, TENSOR, WRITERS, call, dict_of, plain, storage, tensor

from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.readers import torch

FORMATS = ("zip", "stream")
FOUR = np.arange(4, dtype="float32")


def read(kind: str, path: Path, body: bytes) -> dict[str, np.ndarray]:
    return torch.read(WRITERS[kind](path, body, **{"0": FOUR.tobytes()}))


def refusal(kind: str, path: Path, body: bytes) -> str:
    with pytest.raises(WeightsError) as caught:
        read(kind, path, body)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.reason


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
ATTACKS = {
    "REDUCE": (call(SYSTEM, SHELL), SYSTEM_NAME),
    "eval": (call(b"cbuiltins\neval\n", EXPRESSION), "refused builtins.eval:"),
    "Python 2 eval": (call(b"c__builtin__\neval\n", EXPRESSION), "refused __builtin__.eval:"),
    "STACK_GLOBAL": (
        plain("os") + plain("system") + b"\x93" + SHELL + b"\x85R",
        "refused os.system:",
    ),
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


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_programs_are_refused_by_name_and_do_nothing(attack, kind, tmp_path, monkeypatch):
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
            assert reason in refusal(kind, tmp_path / "a.pth", whole)
        assert reason in refusal(kind, tmp_path / "a.pth", dict_of(a=body))
    finally:
        copyreg.remove_extension(__name__, "write_marker", 0xF0)
    assert not Path("marker").exists()


@pytest.mark.parametrize("number", range(5))
def test_every_pickle_of_a_stream_is_read_as_data(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = WRITERS["stream"](tmp_path / "a.pth", b"}")
    parts = path.read_bytes().split(b".\x80\x02")
    parts[number] = parts[number][:2] * (number == 0) + call(SYSTEM, SHELL)
    path.write_bytes(b".\x80\x02".join(parts) + b"." * (number == 4))
    with pytest.raises(WeightsError, match="not a file of torch" if number == 0 else SYSTEM_NAME):
        torch.read(path)
    assert not Path("marker").exists()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "body, reason",
    [
        (b"ctorchvision.models.vgg\nVGG\n)\x81}b", "refused torchvision.models.vgg.VGG: "),
        (b"(" + plain("module") + b"cmy.net\nNet\nNNtQ", "refused my.net.Net: "),
        # State for something that is shared by all that is read.
        (TENSOR + plain({"call": None}) + b"b", "refused a state for a _Function"),
        (TENSOR + plain((None, {"__code__": 1})) + b"b", "refused a state for a _Function"),
        (b"ctorch\nFloatStorage\n" + plain({"dtype": 1}) + b"b", "a state for a _StorageType"),
        (call(b"ctorch\nfloat32\n"), "refused a call of a "),
        (call(storage("0", 4)), "refused a call of a Storage"),
        (ORDERED + b"]R", ""),
        (call(TENSOR, plain(1)), "damaged or cut pickle"),
        (call(ORDERED, plain([1])), "damaged or cut pickle"),
        (call(ORDERED, plain([[[], 1]])), "refused a list as a key"),
        (plain("0") + b"Q", "persistent id"),
        (b"P0\n", "refused the pickle opcode PERSID"),
        (b"(" + plain("storage") + plain("a") + b"tQ", "persistent id"),
        (storage("0", "4"), "persistent id"),
        (storage("0", -4), "outside its bytes"),
        (storage("0", 4, b"ctorch\nFloatStorage\n", plain(("v", 3, 2))), "outside its bytes"),
        (storage("0", 4, b"ctorch\nFloatStorage\n", plain(("v", -1, 2))), "outside its bytes"),
        (storage("0", 4, b"ctorch\nFloatStorage\n", plain(7)), "whose view is none"),
        (b"(" + storage("0", 4) + storage("0", 1) + b"t", "storage 0 of two sizes"),
        (
            tensor(storage("0", 4, b"ctorch\nUntypedStorage\n"), 0, (4,), (1,)),
            "without a storage or a dtype",
        ),
        # Hashing 2**60 leaves of nested tuples would never end.
        (b"}K\x00" + b"q\x00h\x00\x86" * 60 + b"K\x01s", "refused a tuple as a key"),
        (b"\x8f(]\x90", "refused a list as a key"),
        (b"}" + plain(2**64) + b"K\x01s", "refused a long integer as a key"),
        (ORDERED + plain(tuple(range(17))) + b"R", "refused a call with a tuple of arguments"),
        (ORDERED + plain([]) + b"R", "refused a call with a list of arguments"),
        (plain(3) + b"(K\x01e", "damaged or cut pickle"),
        (b"R", "damaged or cut pickle"),
        (b"u", "damaged or cut pickle"),
        (b"h\x07", "damaged or cut pickle"),
        (b"K\x01K\x02", ""),
        (b"\xff", "refused the pickle opcode 255"),
        (b"K\x010", "refused the pickle opcode POP"),
        (b"K\x012", "refused the pickle opcode DUP"),
        (b"\x97", "refused the pickle opcode NEXT_BUFFER"),
        (b"\x96" + (1 << 40).to_bytes(8, "little"), "refused the pickle opcode BYTEARRAY8"),
        # Lengths far beyond the file.
        (b"X\xff\xff\xff\xff", "damaged or cut pickle"),
        (b"\x8d" + (1 << 45).to_bytes(8, "little"), "damaged or cut pickle"),
        (b"\x8b\xff\xff\xff\x7f", "damaged or cut pickle"),
        (b"\x95" + (1 << 45).to_bytes(8, "little"), "damaged or cut pickle"),
    ],
)
def test_crafted_pickles_are_refused(body, reason, kind, tmp_path):
    assert reason in refusal(kind, tmp_path / "a.pth", body)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "place, reason",
    [
        ((0, (5,), (1,)), "reaches outside its 16 bytes"),
        ((1, (4,), (1,)), "reaches outside its 16 bytes"),
        ((0, (2, 2), (3, 1)), "reaches outside its 16 bytes"),
        ((4, (), ()), "reaches outside its 16 bytes"),
        ((0, (2,), (1 << 62,)), "reaches outside its 16 bytes"),
        ((-1, (4,), (1,)), "negative"),
        ((3, (4,), (-1,)), "negative"),
        ((0, (-4,), (1,)), "negative"),
        ((0, (1 << 80,), (0,)), "negative"),
        ((0, (2.0,), (1,)), "negative"),
        ((0, (4,), (1, 1)), "1 sizes and 2 strides"),
        ((0, (1,) * 70, (1,) * 70), "70 sizes"),
        ((0, 4, 1), "no tuples"),
        ((0, (1 << 40, 1 << 40), (0, 0)), "larger than any memory"),
        ((0, (1 << 62, 0, 1 << 62), (0, 0, 0)), "larger than any memory"),
        ((0, (1000, 1000), (0, 0)), "refused tensors of 4000000 bytes from a file of"),
    ],
)
def test_tensors_that_are_not_in_their_storage_are_refused(place, reason, kind, tmp_path):
    assert reason in refusal(kind, tmp_path / "a.pth", dict_of(a=tensor(storage("0", 4), *place)))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("count", [3, 5, 1 << 40])
def test_storages_of_another_size_than_declared_are_refused(count, kind, tmp_path):
    body = dict_of(a=tensor(storage("0", count), 0, (3,), (1,)))
    reason = refusal(kind, tmp_path / "a.pth", body)
    assert "storage 0" in reason
    assert "bytes" in reason or "cut" in reason or "another size" in reason


def test_lists_of_storages_that_are_not_the_tensors_are_refused(tmp_path):
    body = dict_of(a=tensor(storage("7", 4), 0, (4,), (1,)))
    assert "list of storages" in refusal("stream", tmp_path / "a.pth", body)
    assert "no member for storage 7" in refusal("zip", tmp_path / "a.pth", body)


STORED = storage("0", 4)
OLD_PLACE = plain(1) + plain((3,)) + plain((1,))
PARAMETER = b"ctorch.nn.parameter\nParameter\n"
FLOAT_TENSOR = call(b"ctorch\nFloatTensor\n") + b"(" + STORED + OLD_PLACE + b"tb"


@pytest.mark.parametrize("kind", FORMATS)
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
        # Part of a storage.
        tensor(storage("0", 4, b"ctorch\nFloatStorage\n", plain(("v", 1, 3))), 0, (3,), (1,)),
        # A type of its own over bytes that have none.
        call(
            b"ctorch._utils\n_rebuild_tensor_v3\n",
            storage("0", 16, b"ctorch.storage\nUntypedStorage\n"),
            OLD_PLACE + b"\x89}ctorch\nfloat32\n",
        ),
    ],
)
def test_tensors_as_torch_wrote_them_over_the_years(value, kind, tmp_path):
    if b"UntypedStorage" in value and kind == "stream":
        path = WRITERS[kind](tmp_path / "a.pth", dict_of(a=value), 1, **{"0": FOUR.tobytes()})
        found = torch.read(path)
    else:
        found = read(kind, tmp_path / "a.pth", dict_of(a=value))
    assert found["a"].dtype == np.float32
    np.testing.assert_array_equal(found["a"], FOUR[1:])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_state_dict_of_python_2(kind, tmp_path):
    body = call(ORDERED, b"](](U\x01a" + FLOAT_TENSOR + b"ee")
    np.testing.assert_array_equal(read(kind, tmp_path / "a.pth", body)["a"], FOUR[1:])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_tensor_known_before_it_is_filled_is_the_same_one(kind, tmp_path):
    first = call(b"ctorch\nFloatTensor\n") + b"q\x07(" + STORED + OLD_PLACE + b"tb"
    found = read(kind, tmp_path / "a.pth", dict_of(a=first, b=b"h\x07"))
    np.testing.assert_array_equal(found["b"], FOUR[1:])
    assert np.shares_memory(found["a"], found["b"])


@pytest.mark.parametrize("kind", FORMATS)
def test_tensors_that_were_never_filled_are_no_tensors(kind, tmp_path):
    body = dict_of(a=call(b"ctorch\nFloatTensor\n"), b=FLOAT_TENSOR)
    assert list(read(kind, tmp_path / "a.pth", body)) == ["b"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "made",
    [
        call(ORDERED, b"h\x07"),  # of a dict
        call(b"cbuiltins\nset\n", b"h\x07"),
        call(ORDERED, b"h\x07") + b"0" + call(ORDERED, b"h\x07"),
    ],
)
@pytest.mark.parametrize("items", [plain(dict.fromkeys(range(9999))), plain(list(range(9999)))])
def test_a_container_made_of_another_again_and_again_takes_no_memory(made, items, kind, tmp_path):
    body = b"(" + items + b"q\x07" + 2000 * made + b"t"
    tracemalloc.start()
    refusal(kind, tmp_path / "a.pth", body)
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "use",
    [
        call(ORDERED, b"h\x07"),
        call(b"cbuiltins\nset\n", b"h\x07"),
        b"h\x07\x88K\x01s",  # an assignment to all that is in it
        b"](h\x07e" + b"h\x07(h\x07e",
    ],
)
def test_a_number_that_is_expanded_is_never_gone_through(use, kind, tmp_path):
    huge = tensor(storage("0", 4), 0, (1 << 40,), (0,)) + b"q\x07"
    assert "damaged or cut pickle" in refusal(kind, tmp_path / "a.pth", b"(" + huge + use + b"t")


@pytest.mark.parametrize("kind", FORMATS)
def test_huge_memo_indices_take_no_memory(kind, tmp_path):
    body = dict_of(a=FLOAT_TENSOR) + b"r\xff\xff\xff\x7f"
    assert list(read(kind, tmp_path / "a.pth", body)) == ["a"]
