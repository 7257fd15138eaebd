from __future__ import annotations

import numpy as np
import pytest

from keras_deeplab import data


class Noise:
    """Adds a random number to the image, and turns one class into another."""

    def __init__(self):
        self.random = None

    def set_random_seed(self, seed):
        assert 0 <= seed < 2**32
        self.random = np.random.default_rng(seed)

    def __call__(self, image, mask):
        assert (image.dtype, mask.dtype) == (np.uint8, np.uint8)
        added = self.random.integers(1, 50)
        return {"image": image // 2 + np.uint8(added), "mask": np.where(mask == 0, 5, mask)}


def batches(transform, first_step=0):
    dataset = data.training_dataset(
        data.Shapes(train=6, val=0),
        crop_size=(48, 64),
        batch_size=3,
        color_jitter=None,
        transform=transform and data.from_albumentations(transform),
        repeat=True,
        first_step=first_step,
    )
    return list(dataset.take(5 - first_step).as_numpy_iterator())


@pytest.mark.slow
def test_a_callable_with_image_and_mask_is_seeded_by_the_pipeline():
    found, plain = batches(Noise()), batches(None)
    added = []
    for (images, labels), (before, classes) in zip(found, plain, strict=True):
        np.testing.assert_array_equal(labels, np.where(classes == 0, 5, classes))
        halves = images - before.round().astype(np.uint8) // 2
        assert (np.ptp(halves, axis=(1, 2, 3)) == 0).all()
        added.extend(halves[:, 0, 0, 0])
    assert len(set(added)) > 5
    for entered, expected in zip(batches(Noise(), first_step=2), found[2:], strict=True):
        assert all(map(np.array_equal, entered, expected))


@pytest.mark.slow
def test_albumentations_resumes_bit_for_bit_and_moves_both():
    albumentations = pytest.importorskip("albumentations")
    compose = albumentations.Compose(
        [
            albumentations.VerticalFlip(p=0.5),
            albumentations.Affine(rotate=(-30, 30), fill=127, fill_mask=255, p=1.0),
            albumentations.GaussNoise(p=0.5),
        ]
    )
    found, plain = batches(compose), batches(None)
    assert found[0][0].dtype == np.float32
    assert found[0][1].dtype == np.int32
    assert (found[0][1] != plain[0][1]).any()
    for entered, expected in zip(batches(compose, first_step=2), found[2:], strict=True):
        assert all(map(np.array_equal, entered, expected))


def test_errors():
    with pytest.raises(ValueError, match="`compose` must be an albumentations.Compose. Rec.*=5"):
        data.from_albumentations(5)
    with pytest.raises(Exception, match=r"`compose` must be a transform that keeps the shapes"):
        batches(lambda image, mask: {"image": image[:9], "mask": mask[:9]})
