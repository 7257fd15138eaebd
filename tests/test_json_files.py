"""One reader for every JSON file that people write: in a data set, a run and beside a model."""

from __future__ import annotations

import os
import socket

import pytest

from keras_deeplab import data
from keras_deeplab.data.label_codes import read_settings
from keras_deeplab.files import read_json, read_json_object
from keras_deeplab.prediction import stored_info

CONTENT = '{"classes": ["Käse", "b"], "colors": [[1, 2, 3], [4, 5, 6]]}'


def beside_a_model(path):
    return stored_info(path.with_name("model.keras"), 2).classes


READERS = {
    "object": lambda path: read_json_object(path)["classes"],
    "run": lambda path: read_json(path, "Restore it.")["classes"],
    "data set": lambda path: read_settings(path).classes,
    "model": beside_a_model,
}


@pytest.fixture(params=READERS.values(), ids=READERS)
def reader(request):
    return request.param


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_with_or_without_a_byte_order_mark(tmp_path, reader, encoding):
    path = tmp_path / "dataset.json"
    path.write_text(CONTENT, encoding=encoding)
    assert list(reader(path)) == ["Käse", "b"]


@pytest.mark.parametrize("kind", ["folder", "dangling link", "pipe", "socket"])
def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path, monkeypatch, reader, kind):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = tmp_path / "dataset.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    with pytest.raises(ValueError, match="is not a regular file"):
        reader(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not readable as JSON: Expecting value"),
        (CONTENT[:-1].encode(), "is not readable as JSON"),
        (CONTENT.encode("latin-1"), "is not readable as JSON: 'utf-8' codec can't decode"),
        (CONTENT.encode("utf-16"), "is not readable as JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "is not readable as JSON: brackets are nested too deeply"),
        (b'{"a":' * 100_000, "is not readable as JSON: brackets are nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not readable as JSON: Exceeds the limit"),
        (b"[1, 2]", r"must hold a JSON object. Received: \[1, 2\]"),
        (
            b"[" * 900 + b"]" * 900,
            r"must hold a JSON object. Received: \[+\.\.\.\]+$|\[+\.\.\.\]+\. ",
        ),
        (b"null", "must hold a JSON object. Received: None"),
    ],
)
def test_what_is_no_object_is_one_line(tmp_path, reader, content, message):
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        reader(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


def test_one_that_may_not_be_read_is_named(tmp_path, monkeypatch, reader):
    path = tmp_path / "dataset.json"
    path.write_text(CONTENT)

    def refused(*args, **more):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(path), "read_text", refused)
    with pytest.raises(ValueError, match="is not readable as JSON: .*Permission denied"):
        reader(path)


def test_a_data_set_and_a_model_read_what_the_other_has_written(tmp_path):
    info = data.DatasetInfo(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    (tmp_path / "dataset.json").write_text(CONTENT, encoding="utf-8")
    assert read_settings(tmp_path / "dataset.json").colors == info.colors
    assert stored_info(tmp_path / "model.keras", 2).colors == info.colors
