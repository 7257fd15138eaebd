"""Files that torch 2.13 wrote, and the same files damaged; `files/make_files.py` says how."""

from __future__ import annotations

import copy
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from torch_bytes import call, dict_of, plain, read, refusal, storage, tensor, write_zip

from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.readers import torch

FILES = Path(__file__).parent / "files"
BASE = np.arange(12, dtype="float32")
FIVE = np.arange(5)
KINDS = {
    "transposed": np.arange(6, dtype="float32").reshape(2, 3).T,
    "late": BASE[4:10].reshape(2, 3),
    "steps": BASE[1::3],
    "whole": BASE,
    "expanded": np.full((2, 3), 5, "float32"),
    "parameter": np.arange(4, dtype="float32"),
    "half": FIVE.astype("float16"),
    "bfloat16": FIVE.astype(tf.bfloat16.as_numpy_dtype),
    "double": FIVE.astype("float64"),
    "long": FIVE - 2,
    "int": FIVE.astype("int32") - 2,
    "short": FIVE.astype("int16") - 2,
    "char": FIVE.astype("int8") - 2,
    "byte": FIVE.astype("uint8"),
    "bool": FIVE % 2 == 0,
    "scalar": np.array(7),
    "empty": np.zeros((0, 3), "float32"),
}
MODEL = {
    "0.weight": np.arange(6, dtype="float32").reshape(3, 2, 1, 1),
    "1.weight": np.array([1, 2, 3], "float32"),
    "1.bias": np.array([-1, -2, -3], "float32"),
    "1.running_mean": np.array([4, 5, 6], "float32"),
    "1.running_var": np.ones(3, "float32"),
    "1.num_batches_tracked": np.array(7),
}
CHECKPOINT = {"module.weight": np.arange(3, dtype="float32"), "module.count": np.array(2)}
CONTENTS = {"kinds": KINDS, "model": MODEL, "checkpoint": CHECKPOINT}
REAL = [f"{name}_{kind}.pth" for name in CONTENTS for kind in ("zip", "stream")]


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, name)


@pytest.mark.parametrize("file", REAL)
def test_values_types_and_shapes_are_torch_s(file, tmp_path):
    path = Path(shutil.copy(FILES / file, tmp_path))
    found = read(path)
    path.write_bytes(bytes(path.stat().st_size))  # the arrays outlive the file
    assert_same(found, CONTENTS[file.split("_")[0]])
    if file.startswith("kinds"):
        assert np.shares_memory(found["whole"], found["late"])


@pytest.mark.parametrize("file", REAL)
def test_a_file_cut_or_wrong_anywhere_raises_nothing_but_weights_errors(file, tmp_path):
    whole = (FILES / file).read_bytes()
    path = tmp_path / "wrong.pth"
    refused = 0
    for index in range(0, len(whole), 61):
        path.write_bytes(whole[:index])
        refusal(path)
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x55]) + whole[index + 1 :])
        try:
            read(path)
        except WeightsError:
            refused += 1
    assert refused > len(whole) / 400


def test_a_wrong_bit_in_the_numbers_fails_the_checksum(tmp_path):
    whole = (FILES / "model_zip.pth").read_bytes()
    stored = MODEL["1.running_mean"].tobytes()
    assert whole.count(stored) == 1
    path = tmp_path / "wrong.pth"
    path.write_bytes(whole.replace(stored, stored[:-1] + b"\x41"))
    assert "Bad CRC-32" in refusal(path)


def copied(path: Path, compression: int = zipfile.ZIP_STORED, without: str = "/none") -> Path:
    with zipfile.ZipFile(FILES / "model_zip.pth") as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            if not member.filename.endswith(without):
                new.writestr(member.filename, old.read(member), compression)
    return path


def test_a_zip_without_a_member_or_with_packed_ones_is_refused(tmp_path):
    assert_same(read(copied(tmp_path / "same.pth")), MODEL)
    assert "no member of 12 bytes for 2" in refusal(copied(tmp_path / "a.pth", without="/data/2"))
    assert "compressed" in refusal(copied(tmp_path / "b.pth", zipfile.ZIP_DEFLATED))


def test_members_that_lie_over_each_other_are_refused(tmp_path):
    body = dict_of(a=tensor(storage("0", 1000), 0, (1000,), (1,)))
    path = write_zip(tmp_path / "a.pth", body, **{"0": bytes(4000)})
    assert read(path)["a"].shape == (1000,)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist.append(copy.copy(archive.getinfo("archive/data/0")))
        archive.filelist[-1].filename = "archive/data/1"
        archive.writestr("archive/version", b"3")
    assert "larger than the file" in refusal(path)


def test_programs_and_another_byte_order_are_refused(tmp_path):
    assert "TorchScript" in refusal(FILES / "torchscript.pt")
    path = write_zip(tmp_path / "a.pth", dict_of(a=A), "big", **{"0": bytes(4)})
    assert refusal(path) == "its byte order must be little. Received: b'big'"


A = tensor(storage("0", 1), 0, (), ())
B = tensor(storage("0", 1), 0, (1,), (1,))


@pytest.mark.parametrize(
    "body, found",
    [
        (dict_of(a=A, b=B), {(): "ab"}),
        (dict_of(a=A, epoch=plain(3), state=dict_of(b=B)), {(): "a", ("state",): "b"}),
        (dict_of(ema=dict_of(module=dict_of(b=B))), {("ema", "module"): "b"}),
        # The same tensors under a second name, as one dict and as two.
        (dict_of(net=dict_of(b=B) + b"q\x07", model=b"h\x07"), {("net",): "b"}),
        (dict_of(net=dict_of(b=B), model=dict_of(b=B)), {("net",): "b"}),
        (
            dict_of(**{"x.y": dict_of(a=A)}, x=dict_of(y=dict_of(b=B))),
            {("x.y",): "a", ("x", "y"): "b"},
        ),
    ],
)
def test_state_dicts_are_found_by_the_keys_that_lead_to_them(body, found, tmp_path):
    path = write_zip(tmp_path / "a.pth", body, **{"0": bytes(4)})
    assert {keys: "".join(arrays) for keys, arrays in torch.read(path).items()} == found


@pytest.mark.parametrize(
    "body, reason",
    [
        (dict_of(a=storage("0", 1)), "no tensors by name; its keys: a"),
        (b"}(K\x01" + A + b"u", "no tensors by name; its keys: none"),
        (b"](" + A + b"e", "no tensors by name; its keys: none"),
        (A, "no tensors by name; its keys: none"),
    ],
)
def test_files_without_a_state_dict_say_what_they_hold(body, reason, tmp_path):
    assert reason in refusal(write_zip(tmp_path / "a.pth", body, **{"0": bytes(4)}))


# What training programs keep: nothing of it is imported, and it stands for nothing.
EXTRAS = {
    "Namespace": call(b"cargparse\nNamespace\n") + plain({"lr": 0.1}) + b"b",
    "DictConfig": b"comegaconf.dictconfig\nDictConfig\n)\x81" + plain({"_content": {}}) + b"b",
    "AttributeDict": b"clightning.fabric.utilities.data\nAttributeDict\n)\x81(X\x01\0\0\0aK\x01u",
    "path": call(b"cpathlib\nPosixPath\n", plain("/data")),
    "number": call(
        b"cnumpy.core.multiarray\nscalar\n", call(b"cnumpy\ndtype\n", plain("f8")), plain(b"")
    ),
    "class as a key": b"}(cpytorch_lightning.callbacks\nModelCheckpoint\n}u",
    "defaultdict": call(b"ccollections\ndefaultdict\n", b"cbuiltins\ndict\n") + b"(K\x00}u",
    "optimizer": dict_of(state=b"}(K\x00" + dict_of(momentum_buffer=B) + b"u", param_groups=b"]"),
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_training_programs_keep_beside_is_passed_over(extra, tmp_path):
    body = dict_of(hyper_parameters=EXTRAS[extra], state_dict=dict_of(a=A, b=B))
    path = write_zip(tmp_path / "a.ckpt", body, **{"0": bytes(4)})
    assert list(torch.read(path)) == [("state_dict",)]


@pytest.mark.parametrize("strides", [(1,), (0,)], ids=["views", "expanded"])
def test_names_of_one_storage_are_not_larger_than_a_file_could_be(strides, tmp_path):
    count = 1000

    def written(names: int) -> Path:
        view = tensor(storage("0", count) + b"q\x07", 0, (count,), strides)
        again = tensor(b"h\x07", 0, (count,), strides)
        body = dict_of(a=view, **{f"b{i}": again for i in range(names)})
        return write_zip(tmp_path / "a.pth", body, **{"0": bytes(4 * count)})

    assert len(read(written(2))) == 3
    assert "refused tensors of 404000 bytes from a file of" in refusal(written(100))
