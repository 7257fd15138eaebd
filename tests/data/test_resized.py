"""Sources at another scale."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import data
from keras_deeplab.data import Resized
from keras_deeplab.layers import ResizeBy


def pairs(source, split="train"):
    return list(source.dataset(split).as_numpy_iterator())


@pytest.mark.parametrize("scale", [0.5, 0.25, 0.3, 0.7, 1.5])
def test_a_network_sees_in_training_what_it_sees_in_prediction(scale):
    """Images are resized as by `MultiScale`, and label maps take the nearest pixels."""
    source = data.Shapes(train=3, val=1)
    for (small, small_label), (image, label) in zip(
        pairs(Resized(source, scale)), pairs(source), strict=True
    ):
        sides = tuple(round(side * scale) for side in label.shape)
        assert (small.shape, small_label.shape) == ((*sides, 3), sides)
        assert (small.dtype, small_label.dtype) == (np.uint8, np.uint8)
        np.testing.assert_allclose(small, ResizeBy(scale)(image[None])[0], atol=0.51)
        ratios = np.divide(label.shape, sides)
        nearest = [np.int64((np.arange(k) + 0.5) * r) for k, r in zip(sides, ratios, strict=True)]
        np.testing.assert_array_equal(small_label, label[np.ix_(*nearest)])
        assert len(np.unique(small_label)) > 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_sizes_and_dtypes_that_are_wrong_stay_wrong(dtype):
    """What the audit and `prepare` refuse in a source they also refuse in a resized one."""

    class Wrong(data.Shapes):
        def dataset(self, split, numbers=None):
            cut = 3 if dtype == np.uint8 else None
            return super().dataset(split, numbers).map(lambda x, y: (tf.cast(x, dtype)[cut:], y))

    half = Resized(Wrong(train=10, val=5), 0.5)
    assert half.dataset("train").element_spec[0].dtype == dtype
    if dtype == np.uint8:
        for source in (half, data.HeldOut(half)):
            with pytest.raises(data.DatasetError, match="differ"):
                data.audit(source)


def test_positions_names_and_classes_are_those_of_the_source():
    source = data.Shapes(train=5, val=2)
    half = Resized(source, 0.5)
    assert (half.splits, half.info) == (source.splits, source.info)
    assert half.names("val") == source.names("val")
    assert half.fingerprint() != Resized(source, 0.25).fingerprint() != source.fingerprint()
    whole = pairs(half)
    chosen = half.dataset("train", tf.data.Dataset.from_tensor_slices(np.int64([3, 1])))
    for (image, _), number in zip(chosen.as_numpy_iterator(), (3, 1), strict=True):
        np.testing.assert_array_equal(image, whole[number][0])
    ratio = half.decoded_bytes("train") / source.decoded_bytes("train")
    assert ratio == pytest.approx(0.25, abs=0.01)
    assert half.encoded_images("train") is None  # `prepare` encodes the pixels


def test_the_audit_is_that_of_the_source_with_the_new_sizes():
    source = data.Shapes(train=6, val=3)
    report, half = data.audit(source), data.audit(Resized(source, 0.5))
    for split, part in report.splits.items():
        found = [label.shape for _, label in pairs(Resized(source, 0.5), split)]
        assert half.splits[split].smallest == tuple(np.min(found, 0))
        assert half.splits[split].largest == tuple(np.max(found, 0))
        assert half.splits[split].class_share == part.class_share


def test_sizes_are_those_of_the_layer():
    half = Resized(data.Shapes(train=2, val=2), 0.575)
    assert half.size((100, 200)) == (58, 115)
    assert ResizeBy(0.575)(np.zeros((1, 100, 200, 3))).shape[1:3] == (58, 115)


def test_faults_of_files_are_named(tmp_path, write_pair, write_settings, blocks):
    write_pair(tmp_path, "train", "good", blocks, np.zeros((*blocks.shape, 3), np.uint8))
    write_pair(tmp_path, "train", "other", blocks, np.zeros((5, 5, 3), np.uint8))
    write_settings(tmp_path, classes=["x", "y", "z"])
    with pytest.raises(data.DatasetError, match="train/other"):
        data.audit(Resized(data.Folder(tmp_path), 0.5))


def test_prepared_data_are_resized(tmp_path):
    half = Resized(data.Shapes(train=3, val=2), 0.5)
    data.prepare(half, tmp_path / "prepared")
    prepared = data.open_source(f"tfds:{tmp_path / 'prepared'}")
    for (image, label), (other, truth) in zip(pairs(prepared), pairs(half), strict=True):
        np.testing.assert_array_equal(label, truth)
        np.testing.assert_array_equal(image, other)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), "half", None])
def test_bad_factors(scale):
    with pytest.raises(ValueError, match="`scale` must be"):
        Resized(data.Shapes(train=1, val=1), scale)
