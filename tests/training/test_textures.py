"""The generated images of textures."""

from __future__ import annotations

import numpy as np
import pytest

from training.textures import CLASSES, Textures, _surface


def test_only_the_pattern_depends_on_the_class():
    grid = np.mgrid[:96, :96].astype(np.float32)
    surfaces, next_numbers = [], set()
    for kind in range(len(CLASSES)):
        rng = np.random.default_rng(3)
        surfaces.append(_surface(rng, grid, kind))
        next_numbers.add(rng.random())
    assert len(next_numbers) == 1
    low, high = surfaces[0].min((0, 1)), surfaces[0].max((0, 1))
    for number, surface in enumerate(surfaces):
        np.testing.assert_allclose(surface.min((0, 1)), low, atol=12)
        np.testing.assert_allclose(surface.max((0, 1)), high, atol=12)
        assert all(abs(surface - other).mean() > 8 for other in surfaces[:number])


@pytest.mark.slow
def test_pairs_have_every_class():
    counts = np.zeros(len(CLASSES), int)
    for image, label in Textures(train=40, val=1).dataset("train").as_numpy_iterator():
        assert image.shape == (*label.shape, 3)
        assert image.dtype == label.dtype == np.uint8
        assert all(128 <= side <= 192 for side in label.shape)
        counts[np.unique(label)] += 1
    assert all(10 < count < 40 for count in counts)


def test_images_are_functions_of_their_split_and_number():
    source = Textures(train=3, val=3)
    first = [*source.dataset("train").as_numpy_iterator()]
    again = [*source.dataset("train").as_numpy_iterator()]
    other = [*source.dataset("val").as_numpy_iterator()]
    for (image, label), (same, same_label), (third, _) in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(image, same)
        np.testing.assert_array_equal(label, same_label)
        assert image.shape != third.shape or (image != third).any()
    assert source.info.classes == CLASSES
    assert len(source.names("val")) == 3
