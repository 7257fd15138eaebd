from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_deeplab import data
from keras_deeplab.data import shapes


def pairs(source, split):
    return list(source.dataset(split).as_numpy_iterator())


def mean_iou(predictions, labels):
    confusion = np.zeros((6, 6))
    for prediction, label in zip(predictions, labels, strict=True):
        valid = label != 255
        cells = label[valid].astype(int) * 6 + prediction[valid]
        confusion += np.bincount(cells, minlength=36).reshape(6, 6)
    hits = confusion.diagonal()
    return (hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean()


def best_mean_iou(log_scores, labels, priors):
    """The best mean IoU over several weights of the classes' priors: nothing is left to chance."""
    return max(
        mean_iou([(scores - weight * priors).argmax(-1) for scores in log_scores], labels)
        for weight in np.linspace(0, 1, 6)
    )


def log_priors(labels):
    counts = sum(np.bincount(label.reshape(-1), minlength=256)[:6] for label in labels)
    return np.log(counts / counts.sum())


def test_seed_decides_everything():
    source = data.Shapes(train=4, val=4, seed=7)
    first, again = pairs(source, "train"), pairs(data.Shapes(train=9, val=1, seed=7), "train")
    for one, other in zip(first, again[:4], strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    images = [image.tobytes() for image, _ in first]
    images += [image.tobytes() for image, _ in pairs(source, "val")]
    images += [image.tobytes() for image, _ in pairs(data.Shapes(4, 4, seed=8), "train")]
    assert len(set(images)) == 12


def test_the_default_set():
    sizes, counts = [], np.zeros(256)
    for _, label in pairs(data.Shapes(train=40, val=1), "train"):
        sizes.append(label.shape)
        counts += np.bincount(label.reshape(-1), minlength=256)
        # Every border between classes is ignored.
        wide = label.astype(int)
        for one, other in ((wide[1:], wide[:-1]), (wide[:, 1:], wide[:, :-1])):
            assert ((one == other) | (one == 255) | (other == 255)).all()
        # The rim is a rim: each of its pixels has a labelled one within three (tips are narrow).
        valid = tf.constant(label != 255, tf.float32)[None, ..., None]
        assert (tf.nn.max_pool2d(valid, 7, 1, "SAME").numpy() == 1).all()
    assert 64 <= np.min(sizes) < np.max(sizes) <= 112
    shares = counts / counts.sum()
    assert 0.6 < shares[0] < 0.85
    assert min(shares[:6]) > 0.015
    assert 0.03 < shares[255] < 0.1


def test_splits():
    assert data.Shapes(train=3, val=0).splits == ("train",)
    assert data.Shapes(train=3, val=2).names("val") == ["val_00000", "val_00001"]
    with pytest.raises(ValueError, match="`split`"):
        data.Shapes().names("test")


@pytest.mark.slow
def test_colours_of_single_pixels_do_not_tell_the_class():
    def cells(image):
        red, green, blue = np.moveaxis(image.astype(int) >> 5, -1, 0)
        return red << 6 | green << 3 | blue

    source = data.Shapes(train=200, val=20)
    train, val = pairs(source, "train"), pairs(source, "val")
    table = 0.1 + sum(
        np.bincount((cells(image) << 8 | label).reshape(-1), minlength=2**17)
        for image, label in train
    ).reshape(512, 256)
    chances = np.log(table[:, :6] / table[:, :6].sum(1, keepdims=True))
    score = best_mean_iou(
        [chances[cells(image)] for image, _ in val],
        [label for _, label in val],
        log_priors([label for _, label in train]),
    )
    assert 1 / 6 * 0.8 < score < 0.45


NEAR = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 3), (3, 0), (2, 2), (2, -2))


def textures(split):
    """Returns each class of each image, and how much its pixels differ from others near.

    These are logarithms of mean squares of differences of grey.
    """
    kinds, found = [], []
    for image, label in split:
        grey = image.astype(float).mean(-1)
        moved = [(np.roll(grey, by, (0, 1)), np.roll(label, by, (0, 1))) for by in NEAR]
        for kind in np.flatnonzero(np.bincount(label[label < 6]) > 150)[1:]:
            both = [(label == kind) & (labels == kind) for _, labels in moved]
            differences = zip(moved, both, strict=True)
            squares = [np.mean((grey - near)[inside] ** 2) for (near, _), inside in differences]
            kinds.append(kind)
            found.append(np.log(squares))
    return np.array(kinds), np.array(found)


@pytest.mark.slow
def test_textures_do_not_tell_the_class():
    source = data.Shapes(train=400, val=300)
    kinds, train = textures(pairs(source, "train"))
    truth, val = textures(pairs(source, "val"))
    log_densities = []  # a normal distribution for each class
    for kind in range(1, 6):
        surface = train[kinds == kind]
        offset, covariance = val - surface.mean(0), np.cov(surface.T)
        distance = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset)
        log_densities.append(-distance - np.linalg.slogdet(covariance)[1])
    found = 1 + np.argmax(log_densities, 0)
    # Chance is 0.2. Stripes of five widths, of five strengths or in five directions have 0.35 to
    # 0.8, and a class whose stripes are always strong 0.28.
    assert len(truth) > 500
    assert 0.15 < np.mean(found == truth) < 0.26


# Images of one shape each.


def test_images_of_one_shape_have_all_classes_and_many_sizes(tmp_path):
    data.write_shape_images(tmp_path, train=30, val=5)
    names = {"disc", "ring", "square", "triangle", "cross"}
    assert {path.name for path in (tmp_path / "train").iterdir()} == names
    assert all(len(list((tmp_path / "train" / name).iterdir())) == 6 for name in names)
    images = [np.asarray(Image.open(path)) for path in (tmp_path / "train").rglob("*.png")]
    sizes = {image.shape[:2] for image in images}
    assert len(sizes) > 24
    assert min(map(min, sizes)) >= 56
    assert max(map(max, sizes)) <= 112
    assert all(image.std() > 5 for image in images)
    # The seed decides.
    contents = []
    for folder, seed in (("first", 0), ("again", 0), ("other", 1)):
        data.write_shape_images(tmp_path / folder, train=5, val=5, seed=seed)
        paths = sorted((tmp_path / folder).rglob("*.png"))
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert len({*contents[0], *contents[2]}) == 20


def test_each_image_shows_the_shape_of_its_class(monkeypatch):
    """Outlines alone: white on black, recognized by how they fill their bounding box."""
    monkeypatch.setattr(shapes, "dull", lambda rng: np.zeros(3))
    monkeypatch.setattr(shapes, "vivid", lambda rng: np.full(3, 255))
    monkeypatch.setattr(shapes, "paint", lambda rng, grid, color: color + 0 * grid[0][..., None])
    monkeypatch.setattr(shapes, "photographed", lambda rng, image, place: image)
    monkeypatch.setattr(shapes, "TURN", 1e-9)
    expected = {
        "disc": (np.pi / 4, True),
        "ring": (np.pi / 4 * (1 - 0.55**2), False),
        "square": (1, True),
        "triangle": (0.5, True),
        "cross": (2 * 0.3 - 0.3**2, True),
    }
    for name, (share, middle) in expected.items():
        kind = shapes.CLASSES.index(name)
        mask = shapes.draw_shape(np.random.default_rng(kind), kind)[..., 0] > 0
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert min(box.shape) >= 0.39 * min(mask.shape)
        assert box.mean() == pytest.approx(share, abs=0.06), name
        assert box[box.shape[0] // 2, box.shape[1] // 2] == middle, name


@pytest.mark.parametrize("argument, value", [("train", 0), ("val", -1), ("seed", -1)])
def test_arguments_out_of_range(tmp_path, argument, value):
    for use in (data.Shapes, lambda **arguments: data.write_shape_images(tmp_path, **arguments)):
        with pytest.raises(ValueError, match=f"{argument}={value}"):
            use(**{argument: value})
