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
            ({"classes": ["sky"], "colors": colors}, "`colors` must be a list of .* in 0..255")
            for colors in (None, [1], ["red"], [[0, 0, 0.5]], [[0, 0, 300]], [[0, 0]])
        ),
        ({"classes": ["a", "b"], "colors": [[0, 0, 0]]}, "one colour for each of 2 classes"),
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
