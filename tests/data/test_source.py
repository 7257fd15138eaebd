from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import data


def test_voc_colors_are_the_published_map():
    colors = data.voc_colors(65_536)
    assert [colors[index] for index in (1, 8, 15, 20)] == [
        (128, 0, 0),
        (64, 0, 0),
        (192, 128, 128),
        (0, 64, 128),
    ]
    assert len(set(colors[:256])) == 256
    assert len(set(colors)) == 65_536
    with pytest.raises(ValueError, match=r"`n` must be in 0\.\.65,536"):
        data.voc_colors(65_537)


def test_info_survives_json():
    info = data.DatasetInfo(("sky", "road"), ((1, 2, 3), (4, 5, 6)))
    config = json.loads(json.dumps(info.to_dict())) | {"ignore_label": 11}  # of a dataset.json
    assert data.DatasetInfo.from_dict(config) == info
    assert info.num_classes == 2
    assert hash(info) == hash(data.DatasetInfo(["sky", "road"], [[1, 2, 3], [4, 5, 6]]))


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, '`config` must be a dict with the keys "classes"'),
        ({"ignore_label": 11}, "Received: config={'ignore_label': 11}"),
        ([["sky"]], "`config` must be a dict"),
        (None, "`config` must be a dict"),
        *(
            ({"classes": classes}, "`classes` must be a list of 1 to 255 names. Received: classes=")
            for classes in ("sky", None, {"sky": 0}, ["sky", 1], [], list(map(str, range(256))))
        ),
        *(
            ({"classes": ["sky"], "colors": colors}, "`colors` must be one .* in 0..255")
            for colors in (None, [1], ["red"], [[0, 0, 0.5]], [[0, 0, 300]], [[0, 0]])
        ),
        ({"classes": ["a", "b"], "colors": [[0, 0, 0]]}, "for each of 2 classes"),
    ],
)
def test_odd_dicts_are_one_clear_error(config, message):
    with pytest.raises(ValueError, match=message):
        data.DatasetInfo.from_dict(config)


class Scaled(data.Source):
    """One image with a mask divided by 255."""

    info = data.DatasetInfo(("ground", "object"))
    splits = ("train", "val")

    def names(self, split):
        return ["a"]

    def dataset(self, split, numbers=None):
        label = np.eye(8, dtype=np.float32) / 255
        numbers = tf.data.Dataset.range(1) if numbers is None else numbers
        return numbers.map(lambda number: (tf.zeros((8, 8, 3), tf.uint8), label))


def test_a_fingerprint_is_that_of_the_classes_names_and_values(
    tmp_path, write_pair, write_settings
):
    """Of whatever a run that is resumed would else read differently."""
    label = np.kron([[0, 1], [2, 3]], np.ones((8, 8)))
    for number in range(4):
        write_pair(tmp_path / "files", "train", f"{number}", label)
    settings = {"classes": ["a", "b"], "values": [0, 1], "ignore_label": [2, 3]}
    opened = {
        "files": lambda: data.Folder(tmp_path / "files"),
        "held out": lambda: data.HeldOut(data.Folder(tmp_path / "files"), folds=2),
        "records": lambda: data.TFDS(tmp_path / "records"),
    }
    write_settings(tmp_path / "files", classes=["a", "b", "c", "d"])
    data.prepare(opened["files"](), tmp_path / "records")
    for name, source in opened.items():
        found = set()
        for change in (
            {},
            {"values": [1, 0]},
            {"ignore_label": [2, 3, 255]},
            {"classes": ["a", "c"]},
            {"colors": [[0, 0, 0], [1, 1, 1]]},
        ):
            write_settings(
                tmp_path / ("records" if name == "records" else "files"), **settings | change
            )
            found.add(source().fingerprint())
            assert source().fingerprint() in found
        assert len(found) == 5
    assert data.Shapes(4, 2, seed=1).fingerprint() != data.Shapes(4, 2).fingerprint()
    parts = {data.HeldOut(opened["files"](), fold, folds=2).fingerprint() for fold in (0, 1)}
    assert len(parts) == 2
    before = opened["files"]().fingerprint()
    write_pair(tmp_path / "files", "train", "5", label)
    assert opened["files"]().fingerprint() != before


@pytest.mark.parametrize(
    "use",
    [
        data.audit,
        data.evaluation_dataset,
        lambda source: data.training_dataset(source, crop_size=(8, 8), cache=False),
    ],
)
def test_label_maps_of_another_dtype_are_refused(use):
    with pytest.raises(ValueError, match=r"`Scaled.dataset` must .*uint8. Received: .*float32"):
        use(Scaled())


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool"])
def test_values_of_files_must_be_uint8(make_folder, dtype):
    class Wide(data.Folder):
        label_facts = data.FileSource.label_facts

        def read_values(self, name, path):
            return super().read_values(name, path).astype(dtype)

    source = Wide(make_folder([[0, 1], [1, 0]], classes=["a", "b"]))
    message = f"`Wide.read_values` must return uint8. Received: {dtype}"
    with pytest.raises(ValueError, match=message):
        data.audit(source)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(source.dataset("train"))
