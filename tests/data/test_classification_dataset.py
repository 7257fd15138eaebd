from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import data


def numpy(dataset) -> list:
    return list(dataset.as_numpy_iterator())


def test_whole_images_at_one_size():
    source = data.ShapeClasses(train=7, val=5)
    dataset = data.classification_dataset(source, "val", size=24, batch_size=2)
    batches = numpy(dataset)
    assert int(dataset.cardinality()) == 3
    assert [images.shape for images, _ in batches] == [(2, 24, 24, 3)] * 2 + [(1, 24, 24, 3)]
    assert batches[0][0].dtype == np.float32
    assert batches[0][1].dtype == np.int32
    assert np.concatenate([labels for _, labels in batches]).tolist() == [0, 1, 2, 3, 4]
    # Each is the whole picture: its mean is the picture's.
    images = np.concatenate([images for images, _ in batches])
    for image, (whole, _) in zip(images, numpy(source.dataset("val")), strict=True):
        np.testing.assert_allclose(image.mean((0, 1)), whole.mean((0, 1)), atol=2)
        assert image.max() > 1
    assert numpy(dataset)[0][0].tobytes() == batches[0][0].tobytes()


class Ramp(data.ShapeClasses):
    """One picture that grows brighter from left to right, 10 a pixel."""

    ramp = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)

    def dataset(self, split, numbers=None):
        return tf.data.Dataset.from_tensors((self.ramp, 0))


def test_resizing_is_bilinear():
    same, twice, half = (
        numpy(data.classification_dataset(Ramp(), size=size))[0][0][0] for size in (16, 32, 8)
    )
    np.testing.assert_array_equal(same, Ramp.ramp)
    np.testing.assert_allclose(twice[3, 1:-1, 0], np.arange(30) * 5 + 2.5, atol=1e-4)
    np.testing.assert_allclose(half[3, 1:-1, 0], np.arange(1, 7) * 20 + 5, atol=1e-4)


def mirrored_or_not(source, dataset) -> tuple[list[int], list[bool]]:
    """Which pictures come, in their order, and which of them mirrored."""
    plain = data.classification_dataset(source, size=20, batch_size=100)
    known = np.concatenate([images for images, _ in numpy(plain)])
    order, flips = [], []
    for images, labels in numpy(dataset):
        for image, label in zip(images, labels, strict=True):
            same = np.abs(known - image).mean((1, 2, 3))
            turned = np.abs(known[:, :, ::-1] - image).mean((1, 2, 3))
            flips.append(bool(turned.min() < same.min()))
            order.append(int(np.argmin(np.minimum(same, turned))))
            assert min(same.min(), turned.min()) < 1e-3
            assert label == order[-1] % 5  # the label stayed with its picture
    return order, flips


def test_training_batches_are_shuffled_mirrored_and_repeatable():
    source = data.ShapeClasses(train=23, val=1)

    def dataset(seed=3):
        return data.classification_dataset(source, size=20, batch_size=4, seed=seed, training=True)

    one = dataset()
    assert int(one.cardinality()) == 6
    first, second = mirrored_or_not(source, one), mirrored_or_not(source, one)
    for order, flips in (first, second):
        assert sorted(order) == list(range(23))  # none is dropped, none comes twice
        assert order != sorted(order)
        assert 4 <= sum(flips) <= 19
    assert first[0] != second[0]
    assert first[1] != second[1]
    again = dataset()
    assert mirrored_or_not(source, again) == first
    assert mirrored_or_not(source, again) == second
    assert mirrored_or_not(source, dataset(seed=4))[0] != first[0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"size": 0}, "`size` .*size=0"),
        ({"size": (64, 64)}, r"`size` .*size=\(64, 64\)"),
        ({"batch_size": 0}, "`batch_size` .*batch_size=0"),
        ({"split": "test"}, "`split` .*'test'"),
    ],
)
def test_errors_name_argument_and_value(arguments, words):
    with pytest.raises(ValueError, match=words):
        data.classification_dataset(data.ShapeClasses(), **{"size": 64, **arguments})
