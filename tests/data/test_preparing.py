"""Data sets written in the format of TensorFlow Datasets."""

from __future__ import annotations

import json
import os
import subprocess
import tracemalloc
import zlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from keras_deeplab import data
from keras_deeplab.data import preparing
from keras_deeplab.data.label_codes import LabelCode

FORMATS = ("tfrecord", "array_record")


@pytest.fixture
def folder(tmp_path, write_settings):
    """A folder of images as people have them, of different formats, with an EXIF orientation."""
    root, random = tmp_path / "my data", np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = random.integers(0, 256, (20, 30), np.uint8)
    color = random.integers(0, 256, (20, 30, 3), np.uint8)
    images = {
        "photo.jpg": (Image.fromarray(color), {"quality": 80}),
        "turned.jpg": (Image.fromarray(color), {"exif": exif}),
        "grey.png": (Image.fromarray(grey), {}),
        "alpha.png": (Image.fromarray(np.dstack([color, grey])), {}),
        "palette.png": (Image.fromarray(color).quantize(16), {}),
        "deep.png": (Image.fromarray((grey.astype(np.uint16) << 8) + 77), {}),
        "scan.tif": (Image.fromarray(color), {}),
        "screen.webp": (Image.fromarray(color), {"quality": 70}),
    }
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for name, (image, options) in images.items():
            image.save(root / split / "images" / name, **options)
            size = (30, 20) if name == "turned.jpg" else (20, 30)
            mask = random.choice(np.array([7, 9, 200, 11], np.uint8), size)
            Image.fromarray(mask).save(root / split / "labels" / f"{name.partition('.')[0]}.png")
    colors = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    listed = {"classes": ["sky", "road", "car"], "values": [7, 9, 200], "colors": colors}
    write_settings(root, ignore_label=11, **listed)
    return root


def equal(first, second) -> bool:
    pairs = zip(first.as_numpy_iterator(), second.as_numpy_iterator(), strict=True)
    return all(np.array_equal(a, b) for one, two in pairs for a, b in zip(one, two, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
def test_the_batches_are_those_of_the_files(folder, tmp_path, file_format):
    source = data.Folder(folder)
    output = data.prepare(source, tmp_path / "out", file_format=file_format, images_per_shard=3)
    assert len(list(output.glob(f"out-train.{file_format}-*-of-00003"))) == 3
    found = data.open_source(f"tfds:{output}")
    assert found.info == source.info
    assert found.names("train") == source.names("train")
    options = {"crop_size": (24, 24), "batch_size": 4, "class_focus": 0.5, "cache": False}
    batches = [data.training_dataset(one, repeat=True, **options) for one in (source, found)]
    assert equal(*(one.take(6) for one in batches))
    assert equal(*(data.evaluation_dataset(one) for one in (source, found)))
    assert data.audit(found).splits["val"].images == 8


@pytest.mark.parametrize("file_format", FORMATS)
def test_tensorflow_datasets_reads_it(folder, tmp_path, file_format):
    source = data.Folder(folder)
    output = data.prepare(source, tmp_path / "out", file_format=file_format, images_per_shard=5)
    builder = tfds.builder_from_directory(output)
    assert builder.info.features["label"].names == ["sky", "road", "car"]
    assert builder.info.splits["validation"].num_examples == 8
    for split in builder.info.splits.values() if file_format == "tfrecord" else ():
        stored = sum(file.stat().st_size for file in output.glob(f"out-{split.name}.*"))
        assert stored == split.num_bytes + 16 * split.num_examples  # lengths and checksums
    read = builder.as_dataset if file_format == "tfrecord" else builder.as_data_source
    examples = list(tfds.as_numpy(read("train")) if file_format == "tfrecord" else read("train"))
    pairs = zip(source.names("train"), source.dataset("train").as_numpy_iterator(), strict=True)
    for example, (name, (image, label)) in zip(examples, pairs, strict=True):
        assert example["name"] == name.encode()
        np.testing.assert_array_equal(example["label"][..., 0], label)
        # NumPy's reader decodes JPEG with Pillow.
        if file_format == "tfrecord":
            np.testing.assert_array_equal(example["image"], image)
    check = ["sha256sum", "--check", "--strict", preparing.CHECKSUMS]
    assert subprocess.run(check, cwd=output, capture_output=True, check=False).returncode == 0


def test_files_are_stored_as_they_are_where_other_programs_decode_the_same(folder, tmp_path):
    output = data.prepare(str(folder), tmp_path / "out")
    found = data.TFDS(output)
    read = found.encoded_images("train")
    stored = {name: read(number) for number, name in enumerate(found.names("train"))}
    kept = {
        path.stem
        for path in (folder / "train" / "images").iterdir()
        if stored[path.stem] == path.read_bytes()
    }
    assert kept == {"photo", "grey", "alpha", "palette"}
    assert all(stored[name][1:4] == b"PNG" for name in ("turned", "deep", "scan", "screen"))
    again = data.prepare(found, tmp_path / "again", file_format="tfrecord")
    assert data.TFDS(again).encoded_images("train")(5) == read(5)


@pytest.mark.slow
def test_a_second_call_continues(folder, tmp_path, monkeypatch, logs):
    source, output = data.Folder(folder), tmp_path / "out"
    write, written = preparing._Preparation._write, []

    def interrupted(self, split, path, positions):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        return write(self, split, path, positions)

    monkeypatch.setattr(preparing._Preparation, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare(source, output, images_per_shard=2)
    assert not output.exists()
    before = {path.name: path.stat().st_mtime_ns for path in written}
    message = r"`source` must be the same files and options as in "
    with pytest.raises(ValueError, match=message):
        data.prepare(source, output, images_per_shard=3)
    with monkeypatch.context() as patch:
        patch.setattr(data.Folder, "code", LabelCode((1, 0, 2)))
        with pytest.raises(ValueError, match=message):
            data.prepare(source, output, images_per_shard=2)
    written[0].with_name(".123-a process that was killed").write_bytes(b"half")
    written[1].write_bytes(written[1].read_bytes()[:-1])  # which a full disk may do
    again = []
    monkeypatch.setattr(
        preparing._Preparation,
        "_write",
        lambda self, split, path, at: again.append(path.name) or write(self, split, path, at),
    )
    data.prepare(source, output, images_per_shard=2)
    assert written[1].name in again
    assert len(again) == 8 - 2
    assert not list(tmp_path.glob(".out*"))
    for name in (written[0].name, written[2].name):
        assert (output / name).stat().st_mtime_ns == before[name]
    assert "Resuming with 2 of 8 shards written" in logs.text
    assert "Shard 8 of 8: val to image 8 of 8" in logs.text
    whole = data.prepare(source, tmp_path / "whole" / "out", images_per_shard=2)
    sums = [(root / preparing.CHECKSUMS).read_text() for root in (output, whole)]
    assert sums[0] == sums[1]
    assert {path.name for path in output.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_kill_during_the_first_shard_leaves_no_file(folder, tmp_path):
    partial = tmp_path / ".out.incomplete" / ".123-out-train.tfrecord-00000-of-00001"
    partial.parent.mkdir()
    partial.write_bytes(b"half")
    output = data.prepare(data.Folder(folder), tmp_path / "out", file_format="tfrecord")
    assert not list(output.glob(".*"))


def test_two_processes_do_not_write_one_data_set(tmp_path, monkeypatch):
    """The second would delete a shard that the first has written but not noted yet."""
    pytest.importorskip("fcntl")
    source, output, write_json = data.Shapes(4, 2), tmp_path / "out", preparing.write_json

    def write_json_late(path, content):
        if path.name == preparing._PROGRESS:
            with pytest.raises(ValueError, match=f"^{path.parent} is in use by another process"):
                data.prepare(source, output, images_per_shard=2)
        write_json(path, content)

    monkeypatch.setattr(preparing, "write_json", write_json_late)
    data.prepare(source, output, images_per_shard=2)
    assert equal(data.TFDS(output).dataset("train"), source.dataset("train"))
    assert not list(output.glob("*.lock"))


def test_a_data_set_that_was_finished_before_the_lock_is_left_as_it_is(tmp_path, monkeypatch):
    source, output, plan = data.Shapes(2, 1), tmp_path / "out", preparing._Preparation._plan

    def planned_late(preparation):
        with monkeypatch.context() as patch:
            patch.setattr(preparing._Preparation, "_plan", plan)
            data.prepare(source, output)
        return plan(preparation)

    monkeypatch.setattr(preparing._Preparation, "_plan", planned_late)
    with pytest.raises(ValueError, match="`output` must be a folder that does not exist"):
        data.prepare(source, output)
    assert equal(data.TFDS(output).dataset("train"), source.dataset("train"))


def test_a_damaged_progress_is_named(tmp_path):
    progress = tmp_path / ".out.incomplete" / preparing._PROGRESS
    progress.parent.mkdir()
    progress.write_text('{"pl')
    with pytest.raises(ValueError, match=f"^{progress} is not readable as JSON: .*Delete it to"):
        data.prepare(data.Shapes(2, 1), tmp_path / "out")
    progress.unlink()
    data.prepare(data.Shapes(2, 1), tmp_path / "out")


def test_a_damaged_file_stops_it_and_is_named(folder, tmp_path):
    path = folder / "val" / "images" / "photo.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"val/images/photo.jpg: truncated file") as caught:
        data.prepare(data.Folder(folder), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrapped",
    [lambda source: source, data.HeldOut, lambda source: data.Resized(source, 2)],
    ids=["files", "held out", "resized"],
)
def test_an_interrupted_call_does_not_continue_with_changed_files(folder, tmp_path, wrapped):
    _, image, _ = data.Folder(folder).pairs("train")[-1]
    before = image.read_bytes()
    image.write_bytes(before[:-20] + bytes(20))
    with pytest.raises(ValueError, match="truncated file|unreadable file"):
        data.prepare(wrapped(data.Folder(folder)), tmp_path / "out", images_per_shard=1)
    image.write_bytes(before)  # of the same size, but later
    os.utime(image, (1, image.stat().st_mtime + 2))
    with pytest.raises(ValueError, match="`source` must be the same files and options as in "):
        data.prepare(wrapped(data.Folder(folder)), tmp_path / "out", images_per_shard=1)


def test_wrong_arguments(tmp_path):
    out, unnamed = {"output": tmp_path / "out"}, "different class names that are not empty"
    for change, arguments, message in (
        ({}, {"output": tmp_path}, "`output` must be a folder that does not exist"),
        ({}, {"file_format": "riegeli"}, "`file_format` must be one of 'tfrecord', 'array_record'"),
        ({}, {"images_per_shard": 0}, "`images_per_shard` must be a positive integer"),
        ({"info": data.DatasetInfo(("a", ""))}, {}, unnamed),
        ({"info": data.DatasetInfo(("a", "a"))}, {}, unnamed),
        ({"splits": ("trainval",)}, {}, "`splits` must be one of 'train', 'val', 'test'"),
    ):
        source = type("Other", (data.Shapes,), change)(2, 1)
        with pytest.raises(ValueError, match=message):
            data.prepare(source, **{**out, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_files(tmp_path):
    source = data.Shapes(3, 2)
    output = data.prepare(source, tmp_path / "2024 Shapes")
    found = data.TFDS(output)
    assert (found.info, found.names("val")) == (source.info, source.names("val"))
    assert all(equal(found.dataset(split), source.dataset(split)) for split in source.splits)
    assert json.loads((output / "dataset_info.json").read_text())["name"] == "data_2024_shapes"


@pytest.mark.slow
@pytest.mark.parametrize(
    "channels, dtype, limits, stored",
    [
        (1, np.uint8, None, b"\x89PNG"),
        (4, np.uint16, (0, 4095), b"\x89PNG"),
        (5, np.uint16, None, None),
        (3, np.float32, (-1.5, 2.25), b"\x89PNG"),
        (3, np.uint8, (0, 200), b"\x89PNG"),
    ],
)
def test_images_of_other_channels_and_values(
    tmp_path, write_settings, channels, dtype, limits, stored
):
    root, random = tmp_path / "files", np.random.default_rng(channels)
    is_png = (channels, dtype) == (3, np.uint8)
    low, high = limits or (0, np.iinfo(dtype).max)
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            size = (20, 24 + number)
            image = random.uniform(low, high, (*size, channels)).astype(dtype)
            path = root / split / "images" / f"{number}.npy"
            if is_png:
                Image.fromarray(image).save(path.with_suffix(".png"))
            else:
                np.save(path, image)
            label = Image.fromarray(random.integers(0, 2, size, np.uint8))
            label.save(root / split / "labels" / f"{number}.png")
    more = {} if limits is None else {"range": list(limits)}
    write_settings(root, classes=["x", "y"], channels=channels, **more)
    source = data.Folder(root)
    output = data.prepare(source, tmp_path / "out", file_format="array_record", images_per_shard=2)
    found = data.open_source(f"tfds:{output}")
    assert found.info == source.info
    assert (found.info.channels, found.info.value_range) == (channels, limits)
    options = {"crop_size": (16, 16), "batch_size": 2, "cache": False}
    batches = [data.training_dataset(one, **options) for one in (source, found)]
    assert equal(*batches)
    assert next(iter(batches[1]))[0].numpy().std() > 30
    assert equal(*(data.evaluation_dataset(one) for one in (source, found)))
    assert data.audit(found).splits["val"].images == 2
    if stored:
        assert found.encoded_images("train")(0).startswith(stored)
    again = data.prepare(found, tmp_path / "again", file_format="tfrecord")
    assert equal(data.TFDS(again).dataset("train"), source.dataset("train"))
    # Other programs read the same samples.
    example = next(iter(tfds.builder_from_directory(output).as_data_source("train")))
    np.testing.assert_array_equal(example["image"], next(iter(source.dataset("train")))[0])


def test_grey_files_are_stored_as_they_are(folder, tmp_path, write_settings):
    settings = json.loads((folder / "dataset.json").read_text())
    write_settings(folder, **settings, channels=1)
    source = data.Folder(folder)
    found = data.TFDS(data.prepare(source, tmp_path / "out"))
    assert all(equal(found.dataset(split), source.dataset(split)) for split in source.splits)
    assert found.dataset("train").element_spec[0].shape[-1] == 1
    number = found.names("train").index("photo")
    photo = (folder / "train/images/photo.jpg").read_bytes()
    assert found.encoded_images("train")(number) == photo


def test_other_settings_than_those_of_the_records(tmp_path, write_settings):
    root = tmp_path / "files"
    for kind, shape in (("images", (8, 9, 5)), ("labels", (8, 9))):
        (root / "train" / kind).mkdir(parents=True)
        np.save(root / "train" / kind / "a.npy", np.ones(shape, np.uint8))
    write_settings(root, classes=["x", "y"], channels=5, range=[0, 2])
    output = data.prepare(data.Folder(root), tmp_path / "out", file_format="tfrecord")
    settings = json.loads((output / "dataset.json").read_text())
    for change, message in (
        ({"channels": 4}, '"channels" must be 5, as in the records'),
        ({"range": [0, 4]}, r'"range" must be \[0.*, 2.*\], as in the records'),
    ):
        (output / "dataset.json").write_text(json.dumps(settings | change))
        with pytest.raises(data.DatasetError, match=message):
            data.TFDS(output)
    write_settings(output, **settings)
    path = next(output.glob("*tfrecord-*"))
    example = tf.train.Example.FromString(data.TFDS(output)._records["train"][0])
    content = example.features.feature["image/value"].bytes_list.value
    assert zlib.decompress(content[0]) == bytes([128]) * 360
    bomb = zlib.compress(bytes(100_000_000))
    for other in (zlib.compress(bytes(300)), b"no zlib", bomb):
        content[0] = other
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(example.SerializeToString())
        source = data.TFDS(output)
        tracemalloc.start()
        with pytest.raises(data.DatasetError, match="360 bytes, compressed"):
            data.audit(source)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20_000_000
