from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data


@pytest.fixture
def root(tmp_path):
    """Two classes; each image has a colour of its own and a bright left half."""
    for split, count in (("train", 12), ("val", 3)):
        for shade, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((20 + index, 30, 3), 10 * index + 5 * shade, np.uint8)
                pixels[:, :15] += 100
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index:02}.png")
    return tmp_path


def numpy(dataset) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_whole_images_at_one_size(root):
    dataset = data.classification_dataset(root, "val", size=16, batch_size=4)
    assert dataset.class_names == ["cat", "dog"]
    assert int(dataset.cardinality()) == 2
    images, labels = numpy(dataset)
    assert images.shape == (6, 16, 16, 3)
    assert images.dtype == np.float32
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(images[:, 8, -2, 0], [0, 10, 20, 5, 15, 25], atol=1e-3)
    np.testing.assert_allclose(images[:, 8, 1, 0], images[:, 8, -2, 0] + 100, atol=1e-3)


def test_training_images_are_shuffled_and_flipped_and_none_is_dropped(root):
    dataset = data.classification_dataset(root, size=16, batch_size=5, training=True)
    orders = []
    for _ in range(2):
        images, labels = numpy(dataset)
        left, right = images[:, 8, 1, 0], images[:, 8, -2, 0]
        shades = np.minimum(left, right).round().astype(int)
        np.testing.assert_array_equal(labels, shades % 10 // 5)
        assert sorted(shades) == sorted([*range(0, 120, 10), *range(5, 125, 10)])
        assert 4 <= np.sum(left > right) <= 20
        orders.append(shades.tolist())
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_files_that_cannot_be_decoded_are_named(root):
    data.check_images(data.classification_dataset(root, size=16), root)
    (root / "train" / "cat" / "none.jpg").write_bytes(b"no picture")
    whole = (root / "train" / "dog" / "03.png").read_bytes()
    (root / "train" / "dog" / "cut.png").write_bytes(whole[:-30])
    with pytest.raises(data.DatasetError, match=r"unreadable file \(2\)") as caught:
        data.check_images(data.classification_dataset(root, size=16), root)
    assert "    train/cat/none.jpg: " in str(caught.value)
    assert "    train/dog/cut.png: " in str(caught.value)
    assert "expected: a whole JPEG, PNG, BMP or GIF file" in str(caught.value)
    assert "function_node" not in str(caught.value)
    assert "Op:" not in str(caught.value)


def test_files_that_are_not_read_are_an_error(root):
    (root / "train" / "cat" / "notes.txt").touch()
    data.classification_dataset(root, size=16)
    for path in (root / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".webp"))
    with pytest.raises(ValueError, match=r"PNG, BMP and GIF files, without 12 others.*00\.webp"):
        data.classification_dataset(root, size=16)
    for path in (root / "train" / "dog").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"none of them empty.*'dog'"):
        data.classification_dataset(root, size=16, training=True)


def test_what_is_in_no_class_is_not_read(root, monkeypatch):
    (root / "train" / ".ipynb_checkpoints").mkdir()
    for name in (".ipynb_checkpoints/0.png", "overview.png", "overview.webp"):
        (root / "train" / name).write_bytes((root / "train" / "cat" / "00.png").read_bytes())
    monkeypatch.chdir(root / "train")
    assert len(data.classification_dataset(".", "", size=16).file_paths) == 24


def test_folders_of_label_maps_are_no_classes(root):
    (root / "train" / "cat").rename(root / "train" / "images")
    (root / "train" / "dog").rename(root / "train" / "labels")
    with pytest.raises(ValueError, match="train` take label maps"):
        data.classification_dataset(root, size=16)


def test_a_class_may_have_no_images_to_validate_on(root):
    for path in (root / "val" / "dog").iterdir():
        path.unlink()
    dataset = data.classification_dataset(root, "val", size=16, class_names=["cat", "dog"])
    assert numpy(dataset)[1].tolist() == [0, 0, 0]


def test_folders_and_arguments_that_do_not_fit(root):
    with pytest.raises(ValueError, match=r"`root` must be a folder that holds test/CLASS"):
        data.classification_dataset(root, "test", size=16)
    (root / "val" / "dog").rename(root / "val" / "bird")
    with pytest.raises(ValueError, match="class_names"):
        data.classification_dataset(root, "val", size=16, class_names=["cat", "dog"])
    with pytest.raises(ValueError, match="`size` .*size=0"):
        data.classification_dataset(root, size=0)
