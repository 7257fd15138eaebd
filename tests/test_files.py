from __future__ import annotations

import errno
import ntpath
import os
import re
import shutil

import keras
import pytest
import tensorflow as tf

from keras_deeplab import data, files
from keras_deeplab.files import (
    DiskFullError,
    atomic_write,
    full_disk_named,
    move,
    read_json,
    relative_path,
    stored_bytes,
    write_json,
)
from keras_deeplab.prediction import stored_info

CLASSES = '{"classes": ["Käse", "b"], "colors": [[1, 2, 3], [4, 5, 6]]}'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.json"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_is_utf_8_with_or_without_a_byte_order_mark(path, encoding):
    path.write_text(CLASSES, encoding=encoding)
    assert read_json(path, "Restore it.")["classes"] == ["Käse", "b"]


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_json_that_is_no_regular_file_is_not_opened(path, kind):
    if kind != "missing":
        {"folder": os.mkdir, "pipe": os.mkfifo}[kind](path)
    with pytest.raises(ValueError, match=rf"^{path} is not a regular file\. Restore it\.$"):
        read_json(path, "Restore it.")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not readable as JSON: Expecting value"),
        (CLASSES.encode("latin-1"), "is not readable as JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "is not readable as JSON: brackets are nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not readable as JSON: Exceeds the limit"),
        (b"[1, 2]", r"must hold a JSON object. Received: \[1, 2\]"),
        (b"[" * 900 + b"]" * 900, r"must hold a JSON object. Received: \[+\.\.\.\]+\. "),
    ],
)
def test_json_that_is_no_object_is_one_line(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} {message}") as caught:
        read_json(path, "Restore it.")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


def test_json_that_may_not_be_read_is_named(path, monkeypatch):
    path.write_text(CLASSES)

    def refused(*args, **more):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(path), "read_text", refused)
    with pytest.raises(ValueError, match=f"^{path} is not readable as JSON: .*Permission denied"):
        read_json(path, "Restore it.")


@pytest.mark.parametrize("content", ["{}", '{"classes": 6}', '{"classes": []}', "[]"])
def test_a_wrong_file_of_classes_beside_a_model_is_named(tmp_path, content):
    stored = tmp_path / "dataset.json"
    stored.write_text(content)
    with pytest.raises(ValueError, match=f"^{stored}.*delete it to use numbers") as raised:
        stored_info(tmp_path / "model.keras", 6)
    assert "\n" not in str(raised.value)


def test_the_file_of_classes_beside_a_model(tmp_path, logs):
    info = data.DatasetInfo(("sky", "road"), ((1, 2, 3), (4, 5, 6)))
    assert stored_info(tmp_path / "model.keras", 2) is None
    write_json(tmp_path / "dataset.json", info.to_dict())
    assert stored_info(tmp_path / "model.keras", 2) == info
    assert logs.text == ""
    assert stored_info(tmp_path / "model.keras", 3) is None
    assert "dataset.json has 2 classes, the model 3: not used." in logs.text
    (tmp_path / "dataset.json").write_text('{"values": [0, 255]}')  # of a data set
    assert stored_info(tmp_path / "model.keras", 2) is None
    assert "dataset.json lists no classes: not used." in logs.text


def test_the_file_of_classes_beside_what_a_link_leads_to(tmp_path):
    info = data.DatasetInfo(("sky", "road"), ((1, 2, 3), (4, 5, 6)))
    for number in (1, 2):
        write_json(tmp_path / f"run{number}/dataset.json", info.to_dict())
        (tmp_path / f"run{number}/model.keras").touch()
    (tmp_path / "link.keras").symlink_to("run1/model.keras")
    assert stored_info(tmp_path / "link.keras", 2) == info
    other = data.DatasetInfo(("a", "b"), info.colors)
    write_json(tmp_path / "dataset.json", other.to_dict())  # beside the link itself
    assert stored_info(tmp_path / "link.keras", 2) == other


def test_nothing_is_begun_where_there_is_no_space(tmp_path, monkeypatch):
    path = tmp_path / "last.keras"
    path.write_text("before")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 98, 2e6))
    message = r" could not be written: .* \(5\.0 MB are needed, 2\.0 MB are free\)\. Free some"
    with pytest.raises(DiskFullError, match=f"{path}{message}"), atomic_write(path, 5_000_000):
        pytest.fail("begun")
    with atomic_write(path, 2_000_000) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"


def half_written(path, error):
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError("Can't write data (file write failed: errno = 28, No space left on device)"),
        RuntimeError("Can't decrement id ref count (errno = 27, error message = 'File too large')"),
        tf.errors.ResourceExhaustedError(None, None, "saved_model.pb; No space left on device"),
    ],
    ids=["disk", "quota", "HDF5", "HDF5 at its end", "TensorFlow"],
)
def test_a_disk_that_becomes_full_is_named_and_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "last.keras"
    path.write_text("before")
    message = f"{re.escape(str(path))} could not be written: .*Free some space, then run the same"
    with pytest.raises(DiskFullError, match=message) as raised:
        half_written(path, error)
    assert raised.value.__cause__ is error
    assert [file.name for file in tmp_path.iterdir()] == ["last.keras"]
    assert path.read_text() == "before"
    with pytest.raises(DiskFullError, match=str(path)), full_disk_named(tmp_path):
        raise raised.value  # not named once more, after the folder


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("x"), KeyError("y")]
)
def test_other_errors_stay_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised:
        half_written(tmp_path / "a.json", error)
    assert raised.value is error
    assert not list(tmp_path.iterdir())


def test_what_a_model_takes_is_what_its_file_holds(tmp_path):
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(500)])
    assert stored_bytes(model) == 4 * 500 * 101
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    assert 0.9 < stored_bytes(model) / (tmp_path / "model.keras").stat().st_size <= 1


def test_a_path_is_relative_but_for_another_drive(tmp_path, monkeypatch):
    assert relative_path(tmp_path / "a" / "b.jpg", tmp_path / "runs") == os.path.join(
        "..", "a", "b.jpg"
    )
    monkeypatch.setattr(os, "path", ntpath)
    assert relative_path(r"C:\photos\b.jpg", r"C:\runs") == r"..\photos\b.jpg"
    assert relative_path(r"D:\photos\b.jpg", r"C:\runs") == r"D:\photos\b.jpg"


@pytest.fixture
def held(monkeypatch):
    """Another program on Windows has every file open for some attempts to replace it."""
    replace, waits = os.replace, []

    def refused(path, target):
        if len(waits) < 2:
            raise PermissionError(errno.EACCES, "Access is denied", os.fspath(path))
        replace(path, target)

    monkeypatch.setattr(os, "replace", refused)
    monkeypatch.setattr(files.time, "sleep", waits.append)
    return waits


def test_a_file_that_another_program_has_open_for_a_moment_is_replaced(tmp_path, held, monkeypatch):
    monkeypatch.setattr(files, "_WAITS", (0.1, 0.2, 0.4))
    path = tmp_path / "last.keras"
    path.write_text("before")
    with atomic_write(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert held == [0.1, 0.2]


def test_a_file_that_stays_open_is_an_error(tmp_path, held, monkeypatch):
    monkeypatch.setattr(files, "_WAITS", (0.1,))
    (tmp_path / "new").mkdir()
    with pytest.raises(PermissionError, match="Access is denied"):
        move(tmp_path / "new", tmp_path / "saved_model")
    assert held == [0.1]
