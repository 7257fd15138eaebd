"""Data sets in a remote file system, for which TensorFlow's `ram://` stands."""

from __future__ import annotations

import json
import ntpath
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import keras_deeplab as kd
from keras_deeplab import data
from keras_deeplab.data.label_maps import read_label
from keras_deeplab.data.paths import RemotePath, absolute, data_path, is_remote
from keras_deeplab.data.readers.listing import files_below
from keras_deeplab.data.readers.other_folders import ListedFiles

CLASSES = 3


@pytest.fixture
def upload() -> Callable:
    """Copies a local folder to a folder of `ram://` and returns its address."""

    def copied(folder: Path) -> str:
        root = f"ram://{uuid.uuid4().hex}"
        for path in filter(Path.is_file, folder.rglob("*")):
            remote = f"{root}/{path.relative_to(folder).as_posix()}"
            tf.io.gfile.makedirs(remote.rpartition("/")[0])
            with tf.io.gfile.GFile(remote, "wb") as file:
                file.write(path.read_bytes())
        return root

    return copied


@pytest.fixture
def folder(tmp_path, write_pair, write_settings) -> Path:
    rng = np.random.default_rng(0)
    for split, names in (("train", ("a", "b", "c")), ("val", ("d",))):
        for name in names:
            label = np.kron(rng.integers(0, CLASSES, (3, 4)), np.ones((8, 8), np.int64))
            image = rng.integers(0, 256, (24, 32, 3), np.uint8)
            write_pair(tmp_path, split, name, label, image)
    write_settings(tmp_path, classes=["x", "y", "z"])
    return tmp_path


def test_a_path_keeps_its_address():
    path = data_path("gs://bucket/a") / "b.tar" / "c.png"
    assert str(path) == "gs://bucket/a/b.tar/c.png"
    assert path.relative_to("gs://bucket").as_posix() == "a/b.tar/c.png"
    assert str(path.parent.parent.parent.parent) == "gs://bucket"
    assert str(path.with_suffix(".json")) == "gs://bucket/a/b.tar/c.json"
    assert str(absolute(path.parent / ".." / "d")) == "gs://bucket/a/d"
    # `Path` joins the slashes of an address.
    assert str(data_path(Path("gs://bucket/a"))) == "gs://bucket/a"
    assert data_path("file:///data/a") == Path("/data/a")
    for local in ("voc:/data", "C:\\data", "c://data", "/a://b", "data", "voc:gs://bucket"):
        assert not is_remote(local)


def test_addresses_keep_their_slashes_on_windows(upload, folder, monkeypatch):
    (folder / "pairs.csv").write_text("train/images/a.png,train/labels/../labels/a.png,train\n")
    listed = ListedFiles(data_path(upload(folder)) / "pairs.csv")
    monkeypatch.setattr(os, "path", ntpath)
    assert str(absolute(data_path("gs://bucket/a/../d"))) == "gs://bucket/d"
    ((_, image, label),) = listed.pairs("train")
    monkeypatch.undo()
    assert isinstance(image, RemotePath)
    assert label.is_file()
    assert ".." not in str(label)


def test_entries_are_those_of_pathlib(upload, tmp_path):
    for name in ("a/1.png", "a/b/2.png", "c[1]/3.png", ".hidden/4.png", "5.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    remote = data_path(upload(tmp_path))
    for list_entries in (lambda folder: folder.iterdir(), files_below):
        found, expected = (
            sorted(path.relative_to(root).as_posix() for path in list_entries(root))
            for root in (remote, tmp_path)
        )
        assert found == expected != []
    assert ((remote / "a").is_dir(), (remote / "a").is_file()) == (True, False)
    file = remote / "a" / "b" / "2.png"
    assert (file.is_file(), file.is_dir(), file.stat().st_size) == (True, False, 9)
    assert file.read_bytes() == b"a/b/2.png" == file.open("rb").read()
    assert not (remote / "d").exists()
    with pytest.raises(FileNotFoundError, match="ram://.*/d"):
        (remote / "d").read_bytes()


def test_a_home_folder_after_a_prefix(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_path("~/data") == tmp_path / "data"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(data.DatasetError, match=f"no LabelMe file .json is in {tmp_path}/nothing"):
        data.open_source("labelme:~/nothing")


@pytest.mark.slow
def test_the_whole_way(upload, folder):
    """Audit, batches and evaluation are those of the local files."""
    local, remote = data.open_source(folder), data.open_source(upload(folder))
    assert isinstance(remote.root, RemotePath)
    assert data.audit(remote).to_dict() == data.audit(local).to_dict()
    batches = [
        list(data.training_dataset(source, crop_size=(16, 16), batch_size=2).as_numpy_iterator())
        for source in (local, remote)
    ]
    for one, other in zip(*batches, strict=True):
        assert all(map(np.array_equal, one, other))
        assert one[0].std() > 10
    inputs = tf.keras.Input((None, None, 3))
    model = tf.keras.Model(inputs, tf.keras.layers.Conv2D(CLASSES, 1)(inputs))
    reports = [
        kd.evaluate(model, data.evaluation_dataset(source), source.info.classes, verbose=0)
        for source in (local, remote)
    ]
    assert reports[0] == reports[1]
    assert reports[0]["pixels"] == 24 * 32


def test_a_label_map_is_downloaded_once(upload, folder, monkeypatch):
    path = data_path(upload(folder)) / "train/labels/a.png"
    read, downloads = RemotePath.read_bytes, []
    monkeypatch.setattr(RemotePath, "read_bytes", lambda self: downloads.append(self) or read(self))
    values, _ = read_label(path)
    assert values.shape == (24, 32)
    assert downloads == [path]


@pytest.mark.slow
def test_a_run_records_the_address(upload, folder, tmp_path, eager):
    root = upload(folder)
    inputs = tf.keras.Input((None, None, 3))
    model = tf.keras.Model(inputs, tf.keras.layers.Conv2D(CLASSES, 1)(inputs))
    recipe = kd.recipes.get("finetune").replace(epochs=1, batch_size=2, crop_size=(16, 16))
    run_dir = tmp_path / "run"
    kd.fit(model, root, recipe, run_dir=run_dir, steps_per_epoch=1, verbose=0)
    assert json.loads((run_dir / "run.json").read_text())["data"] == root


def test_a_folder_of_nothing_is_one_error(upload, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(data.DatasetError, match="there is no folder train, val or test"):
        data.open_source(upload(tmp_path))


def test_faults_have_the_address(upload, folder):
    (folder / "train/labels/a.png").unlink()
    (folder / "val/images/d.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    root = upload(folder)
    with pytest.raises(data.DatasetError) as caught:
        data.audit(root)
    assert str(caught.value).startswith(f"{root}: 2 faults")
    assert "val/images/d.png: 8 bytes" in str(caught.value)


def test_a_list_of_addresses(upload, folder):
    root = upload(folder)
    rows = "".join(
        f"{name}/images/{stem}.png,{name}/labels/{stem}.png,{name}\n"
        for name, stem in (("train", "a"), ("train", "b"), ("val", "d"))
    )
    with tf.io.gfile.GFile(f"{root}/pairs.csv", "w") as file:
        file.write(rows)
    (folder / "pairs.csv").write_text(rows)
    (folder / "addresses.csv").write_text(
        rows.replace("train/", f"{root}/train/").replace("val/", f"{root}/val/")
    )
    expected, beside, elsewhere = (
        data.open_source(name)
        for name in (folder / "pairs.csv", f"{root}/pairs.csv", folder / "addresses.csv")
    )
    assert beside.names("train") == expected.names("train") == ["train/images/a", "train/images/b"]
    assert elsewhere.names("train") == [f"{root}/train/images/{stem}" for stem in "ab"]
    for split in expected.splits:
        for source in (beside, elsewhere):
            pairs = zip(expected.dataset(split), source.dataset(split), strict=True)
            assert all(all(map(np.array_equal, *pair)) for pair in pairs)


def test_splits_are_chosen_but_not_written(upload, folder, logs):
    (folder / "train").rename(folder / "both")
    (folder / "val").rename(folder / "more")
    for kind in ("images", "labels"):
        (folder / "both" / kind).rename(folder / kind)
    root = upload(folder)
    names = {}
    for place in (root, folder):
        source = data.open_source(place)
        names[place] = {split: source.names(split) for split in source.splits}
    assert names[root] == names[folder]
    assert len(names[root]["val"]) == 1
    assert f"The splits of {root} are not kept" in logs.text
    assert not tf.io.gfile.exists(f"{root}/splits.json")


def test_a_devkit(upload, folder):
    places = {"a": "train", "b": "val"}
    for stem, split in places.items():
        lists = folder / f"kit/VOC2012/ImageSets/Segmentation/{split}.txt"
        for source, target in (
            (f"train/images/{stem}.png", f"JPEGImages/{stem}.jpg"),
            (f"train/labels/{stem}.png", f"SegmentationClass/{stem}.png"),
        ):
            place = folder / "kit/VOC2012" / target
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((folder / source).read_bytes())
        lists.parent.mkdir(parents=True, exist_ok=True)
        lists.write_text(f"{stem}\n")
    root = upload(folder / "kit")
    reports = [data.audit(f"voc:{place}").to_dict() for place in (folder / "kit", root)]
    assert reports[0] == reports[1]
    assert reports[0]["splits"]["val"]["images"] == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("ram://nothing/here", "must be 'shapes', .*Received: name='ram://nothing/here'"),
        ("voc:ram://nothing/here", "ram://nothing/here is not a folder"),
        ("s3://bucket/data", "a path of a file system of TensorFlow: .*For s3:// import a package"),
        ("voc:hdfs://host/data", "For hdfs:// import a package"),
        ("tfds:ram://nothing/here", "remote file: records in ram://nothing/here"),
    ],
)
def test_wrong_addresses(name, message):
    with pytest.raises(ValueError, match=message):
        data.open_source(name)


def test_a_refused_access_is_one_line(monkeypatch):
    def refuse(path):
        raise tf.errors.PermissionDeniedError(None, None, "no token\n\t when reading it")

    monkeypatch.setattr(tf.io.gfile, "stat", refuse)
    message = "^gs://bucket/a could not be read: no token when reading it$"
    for name in ("gs://bucket/a", "voc:gs://bucket/a"):
        with pytest.raises(OSError, match=message):
            data.open_source(name)


def test_files_that_are_read_in_parts_are_local(upload, tmp_path):
    for split in ("train", "val"):
        for kind, shape in (("images", (8, 8, 4)), ("labels", (8, 8))):
            path = tmp_path / split / kind / "a.npy"
            path.parent.mkdir(parents=True)
            np.save(path, np.ones(shape, np.uint8))
    (tmp_path / "dataset.json").write_text(json.dumps({"channels": 4, "classes": ["x", "y"]}))
    with pytest.raises(data.DatasetError, match="remote file .4.; expected: a local copy"):
        data.audit(upload(tmp_path))
