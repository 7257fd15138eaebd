"""The changes together: labels agree with images, each is off alone, and all are checked."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.data.augmentation.augmenting import Augmentation

NAMES = tuple("abcdef")
PLAIN = {"crop_size": (64, 80), "classes": NAMES}
MIXED = {"copy_paste": 1.0, "copy_paste_classes": ("b", "e"), "mosaic": 1.0}


def painted(seed):
    """A label map of regions, and the image in which each class has its grey."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 6, (5, 6)), np.ones((23, 29), int)).astype(np.uint8)
    return (40.0 * label[..., None].repeat(3, -1)).astype(np.float32), label


@cache
def graph(**arguments):
    augmentation = Augmentation(**{**PLAIN, **arguments})

    @tf.function(autograph=False)
    def change(pairs, seed):
        return augmentation(pairs, seed)

    return augmentation.images, change


def augmented(number, **arguments):
    images, change = graph(**arguments)
    pairs = [tuple(map(tf.constant, painted(seed))) for seed in range(images)]
    image, label = change(pairs, tf.constant([number, 7], tf.int64))
    return image.numpy(), label.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"mosaic": 1.0},
        {"mosaic": 1.0, "crop_size": (np.int64(64), np.int64(80))},
        {"copy_paste": 1.0, "copy_paste_classes": ("b", "e")},
        {"cutout": 0.4},
        {**MIXED, "rotation": (-30, 30), "cutout": 0.4, "class_focus": 0.5},
    ],
)
def test_image_and_label_agree(arguments):
    checked = 0
    for number in range(8):
        image, label = augmented(number, **arguments)
        assert (image.shape, image.dtype) == ((64, 80, 3), np.float32)
        assert (label.shape, label.dtype) == ((64, 80), np.int32)
        assert set(np.unique(label)) <= {*range(6), 255}
        # Where the neighbours agree, no interpolation can have changed the pixel.
        high = tf.nn.max_pool2d(image[None], 5, 1, "SAME")[0]
        low = -tf.nn.max_pool2d(-image[None], 5, 1, "SAME")[0]
        flat = ((high - low).numpy().max(-1) < 0.1) & (label != 255)
        np.testing.assert_allclose(image[flat][:, 0], 40.0 * label[flat], atol=0.2)
        checked += flat.sum()
    assert checked > 8 * 64 * 80 / 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [{"mosaic": 0.5}, {"copy_paste": 0.5, "copy_paste_classes": ("a", "b", "c", "d")}]
)
def test_other_images_are_mixed_in_by_their_share_and_leave_the_rest_as_they_were(arguments):
    changed = [
        not all(map(np.array_equal, augmented(number), augmented(number, **arguments)))
        for number in range(60)
    ]
    assert 18 < sum(changed) < 42


@pytest.mark.parametrize("arguments", [{"blur": (1, 2)}, {"jpeg_quality": (5, 9)}, {"cutout": 0.5}])
def test_changes_of_the_image_alone_keep_the_crop(arguments):
    for number in range(5):
        (image, label), (other, result) = augmented(number), augmented(number, **arguments)
        cut = (result == 255) & (label != 255)
        assert cut.any() == ("cutout" in arguments)
        np.testing.assert_array_equal(result[~cut], label[~cut])
        assert np.abs(image - other).max() > 1
        assert np.abs(image - other)[~cut].mean() < 20


def test_pasted_crops_are_around_a_pasted_class():
    """Also a rare one, which few random windows contain."""
    augmentation = Augmentation(
        **PLAIN, scales=(1, 1), flip=False, copy_paste=1.0, copy_paste_classes=["c"]
    )
    empty = np.zeros((200, 300), np.uint8)
    rare = empty.copy()
    rare[3:6, 290:295] = 2
    images = [tf.constant(label[..., None].repeat(3, -1), tf.float32) for label in (empty, rare)]
    pairs = list(zip(images, map(tf.constant, (empty, rare)), strict=True))
    for number in range(5):
        image, label = augmentation(pairs, tf.constant([number, 0]))
        assert (label.numpy() == 2).sum() == 15
        np.testing.assert_array_equal(image[..., 0], label)


def test_the_tiles_of_a_mosaic_are_changed_apart():
    """Each image is two pixels, whose order shows whether it is mirrored."""
    options = {"crop_size": (8, 8), "scales": (1, 1), "mosaic": 1.0}
    augmentation = Augmentation(**options)
    labels = tf.reshape(tf.range(8), (4, 1, 2))
    pairs = [(tf.zeros((1, 2, 3)), tf.cast(label, tf.uint8)) for label in labels]
    mirrored = []
    for number in range(8):
        _, label = augmentation(pairs, tf.constant([number, 0]))
        columns = [np.nonzero(label == value)[1].item() for value in range(8)]
        mirrored.append(np.diff(columns)[::2] < 0)
    assert all(np.ptp(np.array(mirrored, int), axis=0))
    assert any(np.ptp(np.array(mirrored, int), axis=1))


def test_a_transform_comes_last_with_a_seed_of_its_own():
    def transform(image, label, seed):
        assert (image.dtype, label.dtype, seed.shape) == (tf.float32, tf.int32, (2,))
        noise = tf.random.stateless_normal(image.shape, seed)
        if tf.reduce_max(label) < 255:  # AutoGraph converts it
            return image + noise, label
        return image, label + 0

    found = [augmented(number, transform=transform) for number in (1, 2)]
    for (image, label), number in zip(found, (1, 2), strict=True):
        plain, same = augmented(number)
        np.testing.assert_array_equal(label, same)
        assert 0.9 < (image - plain).std() < 1.1
        np.testing.assert_array_equal(image, augmented(number, transform=transform)[0])
    assert np.abs(found[0][0] - augmented(1)[0] - found[1][0] + augmented(2)[0]).max() > 1


@pytest.mark.parametrize(
    "transform, message",
    [
        (lambda image, label, seed: image, r"returns \(image, label\) of shapes \(64, 80, 3\)"),
        (lambda image, label, seed: (image[:9], label), r"not \(9, 80, 3\). Received: transform="),
        (lambda image, label, seed: (image, label[None]), r"not \(1, 64, 80\)"),
        ("blur", "`transform` must be a function of an image, a label map and a seed. Received"),
        (
            lambda image, label: (image, label),
            "`transform` must be a function of an image, a label",
        ),
    ],
)
def test_a_wrong_transform_is_an_error(transform, message):
    with pytest.raises(ValueError, match=message):
        augmented(0, transform=transform)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rotation": 10}, "`rotation` must be .*-180 <= lowest <= highest <= 180. Rec.*=10"),
        ({"rotation": (-200, 0)}, "`rotation`"),
        ({"blur": (2, 1)}, r"`blur` must be \(lowest, highest\) with 0 <= lowest <= highest. R"),
        ({"blur": (-1, 1)}, "`blur`"),
        ({"blur": (1, 2, 3)}, "`blur`"),
        ({"blur": ("0", 1)}, "`blur`"),
        ({"jpeg_quality": (0, 90)}, "`jpeg_quality` .*1 <= lowest <= highest <= 100"),
        ({"cutout": 1.5}, "`cutout` .*1.5"),
        ({"mosaic": -0.1}, "`mosaic` .*-0.1"),
        ({"mosaic": 0.1, "crop_size": (1, 9)}, r"`crop_size` .*\(2, 2\) for `mosaic`"),
        ({"copy_paste": True}, "`copy_paste` .*True"),
        ({"copy_paste": 0.5}, "`copy_paste_classes` .*copy_paste_classes=None"),
        ({"copy_paste_classes": "ab"}, "`copy_paste_classes` must be a list of strings"),
        ({"copy_paste_classes": [1]}, "`copy_paste_classes` must be a list of strings"),
        ({"copy_paste_classes": ["A"]}, "`copy_paste_classes` .*'f'.*'A'. Did you mean 'a'?"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**{**PLAIN, **arguments})


def test_jpeg_takes_grey_and_rgb_only():
    augmentation = Augmentation(**PLAIN, jpeg_quality=(50, 90))
    for channels in (1, 3):
        augmentation.check_channels(channels)
    with pytest.raises(ValueError, match="`jpeg_quality` must be None for images of 4 channels"):
        augmentation.check_channels(4)


def test_images_of_four_channels():
    label = tf.constant(painted(0)[1])
    image = tf.cast(label, tf.float32)[..., None] * tf.constant([10.0, 20.0, 30.0, 40.0])
    arguments = {"color_jitter": 0.2, "rotation": (-9, 9), "blur": (0, 1), "cutout": 0.2, **MIXED}
    augmentation = Augmentation(**PLAIN, **arguments)
    result, _ = augmentation([(image, label)] * augmentation.images, tf.constant([0, 1]))
    assert result.shape == (64, 80, 4)
    assert (np.ptp(result, axis=-1) > 1).mean() > 0.5
