"""Files are written whole or not at all, and what is wrong with one is one line with its path."""

from __future__ import annotations

import errno
import os
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.files import (
    DiskFullError,
    atomic_write,
    full_disk_named,
    read_json,
    stored_bytes,
    write_json,
)

ODD = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "binary": bytes(range(256)),
    "cut off": b'{"seed": ',
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_json_that_is_no_object_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="JSON") as raised:
        read_json(path, "Restore it.")
    said = str(raised.value)
    assert said.startswith((f"{path} must hold a JSON object. ", f"{path} is not readable as JSON"))
    assert said.endswith(" Restore it.")
    assert "\n" not in said
    assert len(said) < len(str(path)) + 200


def test_json_is_read_as_it_was_written(tmp_path):
    content = {"name": "Käse", "values": [1, None, 0.5]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json", "") == content


def test_nothing_is_begun_where_there_is_no_space(tmp_path, monkeypatch):
    path = tmp_path / "last.keras"
    path.write_text("before")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 98, 2e6))
    said = rf"{path} could not be written: .* \(5\.0 MB are needed, 2\.0 MB are free\)\. Free some"
    with pytest.raises(DiskFullError, match=said), atomic_write(path, 5_000_000):
        pytest.fail("begun")
    with atomic_write(path, 2_000_000) as aside:
        aside.write_text("after")
    assert path.read_text() == "after"


def half_written(path, error):
    with atomic_write(path) as aside:
        aside.write_text("half")
        raise error


def full(code):
    return OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    "error",
    [
        full(errno.ENOSPC),
        full(errno.EDQUOT),
        full(errno.EFBIG),
        OSError("Can't write data (file write failed: errno = 28, No space left on device)"),
        RuntimeError("Can't decrement id ref count (errno = 27, error message = 'File too large')"),
        tf.errors.ResourceExhaustedError(None, None, "saved_model.pb; No space left on device"),
    ],
    ids=["disk", "quota", "size", "HDF5", "HDF5 at its end", "TensorFlow"],
)
def test_a_disk_that_becomes_full_is_named_and_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "last.keras"
    path.write_text("before")
    said = f"{re.escape(str(path))} could not be written: .*Free some space, then run the same"
    with pytest.raises(DiskFullError, match=said) as raised:
        half_written(path, error)
    assert raised.value.__cause__ is error
    assert [file.name for file in tmp_path.iterdir()] == ["last.keras"]
    assert path.read_text() == "before"
    with pytest.raises(DiskFullError, match=str(path)), full_disk_named(tmp_path):
        raise raised.value  # not named once more, after the folder


def test_a_real_full_disk_is_named(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(DiskFullError, match=str(tmp_path)),
        full_disk_named(tmp_path),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_other_errors_stay_as_they_are(tmp_path):
    for error in (OSError(errno.EACCES, "Permission denied"), RuntimeError("x"), KeyError("y")):
        with pytest.raises(type(error)) as raised, full_disk_named(tmp_path):
            raise error
        assert raised.value is error


def test_what_a_model_takes_is_what_its_file_holds(tmp_path):
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(500)])
    assert stored_bytes(model) == 4 * 500 * 101
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    model.fit(np.zeros((1, 100)), np.zeros((1, 500)), verbose=0)
    model.save(tmp_path / "model.keras")
    assert 0.9 < stored_bytes(model) / (tmp_path / "model.keras").stat().st_size <= 1
