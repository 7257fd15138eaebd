from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_deeplab
from keras_deeplab import data


def test_voc_colors_are_the_published_map():
    colors = data.voc_colors(21)
    assert colors[1] == (128, 0, 0)
    assert colors[8] == (64, 0, 0)
    assert colors[15] == (192, 128, 128)
    assert colors[20] == (0, 64, 128)
    assert len(set(data.voc_colors(256))) == 256
    assert data.voc_colors(300)[:256] == data.voc_colors(256)
    assert len(set(data.voc_colors(65_536))) == 65_536
    with pytest.raises(ValueError, match=r"`n` must be in 0\.\.65,536"):
        data.voc_colors(65_537)


def test_info_survives_json():
    info = data.DatasetInfo(("sky", "road"), ((1, 2, 3), (4, 5, 6)))
    assert data.DatasetInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert info.num_classes == 2
    assert hash(info) == hash(data.DatasetInfo(["sky", "road"], [[1, 2, 3], [4, 5, 6]]))


@pytest.mark.parametrize(
    "classes, colors, message",
    [
        ((), (), "`classes`"),
        (tuple(map(str, range(256))), (), "`classes`"),
        (("a", "b"), ((0, 0, 0),), "1 colours for 2 classes"),
        (("a",), ((0, 0, 256),), "0..255"),
        (("a",), ((0, 0),), "0..255"),
    ],
)
def test_info_refuses(classes, colors, message):
    with pytest.raises(ValueError, match=message):
        data.DatasetInfo(classes, colors)


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, '`config` must be a dict with the key "classes"'),
        ({"ignore_label": 11}, "Received: config={'ignore_label': 11}"),
        ([["sky"]], "`config` must be a dict"),
        (None, "`config` must be a dict"),
        ({"classes": "sky"}, "`classes` must list 1 to 255 names. Received: classes='sky'"),
        ({"classes": None}, "`classes` must list"),
        ({"classes": {"sky": 0}}, "`classes` must list"),
        ({"classes": 3}, "`classes` must list"),
        ({"classes": ["sky", 1]}, "`classes` must list"),
        ({"classes": []}, "`classes` must list"),
        ({"classes": ["sky"], "colors": None}, "`colors` must list"),
        ({"classes": ["sky"], "colors": [1]}, "`colors` must list"),
        ({"classes": ["sky"], "colors": ["red"]}, "`colors` must list"),
        ({"classes": ["sky"], "colors": [[0, 0, 0.5]]}, "`colors` must list"),
        ({"classes": ["sky"], "colors": [[0, 0, 300]]}, "`colors` must list .*300"),
        ({"classes": ["sky"], "colors": [[0, 0, 0], [1, 1, 1]]}, "2 colours for 1 classes"),
    ],
)
def test_odd_dicts_are_one_clear_error(config, message):
    with pytest.raises(ValueError, match=message):
        data.DatasetInfo.from_dict(config)


def test_other_keys_of_a_dataset_json_do_not_matter():
    config = {"classes": ["sky", "road"], "ignore_label": 11, "values": [0, 255]}
    assert data.DatasetInfo.from_dict(config) == data.DatasetInfo(("sky", "road"))


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


@pytest.mark.parametrize(
    "use",
    [
        data.audit,
        data.evaluation_dataset,
        lambda source: data.training_dataset(source, crop_size=(8, 8), cache=False),
        lambda source: data.training_dataset(source, crop_size=(8, 8), cache=True),
        lambda source: keras_deeplab.overfit(
            keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 1)]), source
        ),
    ],
)
def test_label_maps_of_another_dtype_are_refused(use):
    with pytest.raises(ValueError, match=r"`Scaled.dataset` must .*uint8. Received: dtype=float32"):
        use(Scaled())
