"""Where exports take their places: links, folders that cannot be written, several writers."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager

import pytest

from keras_deeplab.export.placing import verified_file, verified_folder
from keras_deeplab.files import DiskFullError


@contextmanager
def written(path, text, is_file, overwrite=True):
    kind = (verified_file, ".onnx") if is_file else (verified_folder,)
    with kind[0](path, *kind[1:], overwrite) as temporary:
        assert not is_file or temporary.suffix == ".onnx"  # by which it is opened
        yield temporary
        if not is_file:
            temporary.mkdir()
        (temporary if is_file else temporary / "saved_model.pb").write_text(text)


def content(path):
    return (path / "saved_model.pb" if path.is_dir() else path).read_text()


@pytest.fixture(params=["file", "folder"])
def is_file(request):
    return request.param == "file"


@pytest.fixture
def name(is_file):
    return "v1.onnx" if is_file else "v1"


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path, is_file, name, monkeypatch):
    link = tmp_path / ("current.onnx" if is_file else "current")
    link.symlink_to(name)  # to nothing at first
    for text in ("first", "second"):
        with written(link, text, is_file):
            pass
        assert link.is_symlink()
        assert content(tmp_path / name) == text
    monkeypatch.chdir(tmp_path / "v1" if not is_file else tmp_path)
    if not is_file:
        with written(".", "third", is_file):
            pass
        assert content(link) == "third"
    assert {path.name for path in tmp_path.iterdir()} == {name, link.name}
    link.unlink()
    link.symlink_to("blob")  # without an ending
    with written(link, "fourth", is_file):
        pass
    assert content(tmp_path / "blob") == "fourth"


def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    tmp_path, is_file, name, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as root may write anywhere
    with pytest.raises(PermissionError, match=f"{name}'$"), written(tmp_path / name, "x", is_file):
        pytest.fail("begun")
    assert not list(tmp_path.iterdir())


def test_two_at_a_time_do_not_disturb_each_other(tmp_path, is_file, name):
    with written(tmp_path / name, "outer", is_file), written(tmp_path / name, "inner", is_file):
        pass
    assert content(tmp_path / name) == "outer"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_appears_in_the_meantime_is_not_replaced(tmp_path, is_file, name):
    path = tmp_path / name
    with (
        pytest.raises(FileExistsError, match="`path` must be a new"),
        written(path, "second", is_file, overwrite=False),
        written(path, "first", is_file, overwrite=False),
    ):
        pass
    assert content(path) == "first"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_beside_a_saved_model_are_not_removed_with_it(tmp_path):
    with written(tmp_path / "v1", "first", is_file=False):
        pass
    (tmp_path / "v1" / "model.keras").write_text("mine")
    with pytest.raises(ValueError, match="without other files.*v1 with model.keras"):
        written(tmp_path / "v1", "second", is_file=False).__enter__()
    assert content(tmp_path / "v1") == "first"
    assert (tmp_path / "v1" / "model.keras").read_text() == "mine"
    (tmp_path / "v1" / "model.keras").rename(tmp_path / "v1" / ".DS_Store")  # no user's file
    with written(tmp_path / "v1", "second", is_file=False):
        pass
    assert content(tmp_path / "v1") == "second"


def test_which_folders_are_replaced(tmp_path):
    path = tmp_path / "v1"
    path.mkdir()
    with written(path, "first", is_file=False, overwrite=False):  # an empty one
        pass
    for name in ("keras_metadata.pb", "fingerprint.pb", "variables", "assets", "assets.extra"):
        (path / name).touch()
    with written(path, "second", is_file=False):
        pass
    assert content(path) == "second"
    assert [entry.name for entry in path.iterdir()] == ["saved_model.pb"]
    message = "`path` must be a new folder or a SavedModel"
    (path / "mine").touch()
    with pytest.raises(FileExistsError, match=message):
        written(path, "third", is_file=False, overwrite=False).__enter__()
    (path / "mine").unlink()
    (path / "saved_model.pb").rename(path / ".hidden")
    with pytest.raises(FileExistsError, match=message):
        written(path, "third", is_file=False).__enter__()
    assert (path / ".hidden").read_text() == "second"


def test_an_export_stays_where_the_new_one_cannot_take_its_place(tmp_path):
    with written(tmp_path / "v1", "first", is_file=False):
        pass
    with pytest.raises(FileNotFoundError), verified_folder(tmp_path / "v1", overwrite=True):
        pass  # no folder is written
    assert content(tmp_path / "v1") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(FileExistsError, match="`path` must be a new file, or one to replace"):
        written(tmp_path / "a.onnx", "x", is_file=True).__enter__()


def test_endings_in_capitals(tmp_path):
    with written(tmp_path / "a.ONNX", "x", is_file=True):
        pass
    assert content(tmp_path / "a.ONNX") == "x"
    for name in ("b.ONNX", "b.tflite"):
        with pytest.raises(ValueError, match=r"`path` must be the name of a folder: \.(onn|tfl)"):
            written(tmp_path / name, "x", is_file=False).__enter__()


def test_a_full_disk_is_named(tmp_path, is_file, name):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(DiskFullError, match=name), written(tmp_path / name, "x", is_file):
        raise full
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder(tmp_path, is_file, name, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with written(f"~/{name}", "x", is_file):
        pass
    assert content(tmp_path / name) == "x"
