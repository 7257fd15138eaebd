from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data
from keras_deeplab.data import shape_images, shapes


def test_the_seed_decides_the_pictures(tmp_path):
    def images(name, **arguments):
        data.write_shape_images(tmp_path / name, **{"train": 6, "val": 6, **arguments})
        return [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))]

    first = images("first")
    assert images("again") == first
    assert len({*first, *images("other", seed=1)}) == 24


def test_pictures_have_all_classes_and_many_sizes(tmp_path):
    data.write_shape_images(tmp_path, train=50, val=5)
    names = {"disc", "ring", "square", "triangle", "cross"}
    assert {path.name for path in (tmp_path / "train").iterdir()} == names
    assert all(len(list((tmp_path / "train" / name).iterdir())) == 10 for name in names)
    pictures = [np.asarray(Image.open(path)) for path in (tmp_path / "train").rglob("*.png")]
    sizes = {image.shape[:2] for image in pictures}
    assert len(sizes) > 40
    assert min(map(min, sizes)) >= 56
    assert max(map(max, sizes)) <= 112
    assert all(image.std() > 5 for image in pictures)


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
    for label, name in enumerate(shape_images.CLASSES):
        mask = shape_images.draw_shape(np.random.default_rng(label), label)[..., 0] > 0
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


def test_arguments_out_of_range(tmp_path):
    for name, value in (("train", 0), ("val", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            data.write_shape_images(tmp_path, **{name: value})
