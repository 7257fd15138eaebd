from __future__ import annotations

import numpy as np
import pytest

from keras_deeplab import data
from keras_deeplab.data import shape_classes, shapes


def numpy(dataset) -> list:
    return list(dataset.as_numpy_iterator())


def test_the_seed_decides_the_pictures():
    def images(split="train", **arguments):
        source = data.ShapeClasses(**{"train": 6, "val": 6, **arguments})
        return [image.tobytes() for image, _ in numpy(source.dataset(split))]

    assert images() == images(train=6, val=1)
    assert len({*images(), *images("val"), *images(seed=1)}) == 18


def test_pictures_have_all_classes_and_many_sizes():
    source = data.ShapeClasses(train=50, val=5)
    assert source.classes == ("disc", "ring", "square", "triangle", "cross")
    pairs = numpy(source.dataset("train"))
    labels = np.array([label for _, label in pairs])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(labels), [10] * 5)
    assert [name.split("_")[0] for name in source.names("train")] == [
        source.classes[label] for label in labels
    ]
    sizes = {image.shape[:2] for image, _ in pairs}
    assert len(sizes) > 40
    assert min(map(min, sizes)) >= 56
    assert max(map(max, sizes)) <= 112
    assert all(image.std() > 5 for image, _ in pairs)


def test_each_picture_shows_the_shape_of_its_label(monkeypatch):
    """Outlines alone: white on black, they are told apart by how they fill their bounding box."""
    monkeypatch.setattr(shapes, "grey", lambda rng: np.zeros(3))
    monkeypatch.setattr(shapes, "vivid", lambda rng: np.full(3, 255))
    monkeypatch.setattr(
        shapes, "paint", lambda rng, grid, color: np.ones((*grid.shape[1:], 1), "f") * color
    )
    monkeypatch.setattr(shapes, "photographed", lambda rng, image, place: image.astype(np.uint8))
    monkeypatch.setattr(shapes, "TURN", 1e-9)
    filled = {}
    for label, name in enumerate(shape_classes.CLASSES):
        mask = shape_classes.draw_shape(np.random.default_rng(label), label)[..., 0] > 0
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert min(box.shape) >= 0.39 * min(mask.shape)
        filled[name] = box.mean(), bool(box[box.shape[0] // 2, box.shape[1] // 2])
    expected = {
        "disc": (np.pi / 4, True),
        "ring": (np.pi / 4 * (1 - 0.55**2), False),
        "square": (1, True),
        "triangle": (0.5, True),
        "cross": (2 * 0.3 - 0.3**2, True),
    }
    for name, (share, middle) in expected.items():
        assert filled[name][0] == pytest.approx(share, abs=0.06), name
        assert filled[name][1] == middle, name


def test_arguments_out_of_range():
    for arguments in ({"train": 0}, {"val": 0}, {"seed": -1}):
        (name, value), *_ = arguments.items()
        with pytest.raises(ValueError, match=f"{name}={value}"):
            data.ShapeClasses(**arguments)
