from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import data


@pytest.fixture
def numbered(tmp_path, write_pair):
    """Eleven images of which each pixel is the image's number, in different sizes."""
    for index in range(11):
        label = np.full((10 + index, 12), index, np.uint8)
        image = np.repeat(label[..., None], 3, -1)
        write_pair(tmp_path, "train", f"{index:02}", label, image)
        write_pair(tmp_path, "val", f"{index:02}", label, image)
    return data.Folder(tmp_path)


def ids(dataset):
    """The numbers of the images in each batch."""
    return [[int(lb[lb != 255][0]) for lb in labels] for _, labels in dataset.as_numpy_iterator()]


def same(one, other):
    return all(
        np.array_equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("cache", [True, False])
def test_seed_decides_and_epochs_differ(cache):
    source = data.Shapes(train=10, val=2)

    def epochs(seed):
        dataset = data.training_dataset(
            source, crop_size=(48, 64), batch_size=4, seed=seed, cache=cache
        )
        return [list(dataset.as_numpy_iterator()) for _ in range(3)]

    first, again, other = epochs(0), epochs(0), epochs(1)
    for epoch, repeated in zip(first, again, strict=True):
        assert same(epoch, repeated)
    assert not same(first[0], first[1])
    assert not same(first[1], first[2])
    assert not same(first[0], other[0])


def test_augmentation_is_drawn_anew_each_time(numbered):
    dataset = data.training_dataset(numbered, crop_size=(20, 20), batch_size=11, shuffle=False)
    epochs = [next(dataset.as_numpy_iterator())[0] for _ in range(2)]
    assert ids(dataset)[0] == list(range(11))
    assert (epochs[0] != epochs[1]).any(axis=(1, 2, 3)).sum() >= 9
    endless = data.training_dataset(
        numbered, crop_size=(20, 20), batch_size=11, shuffle=False, repeat=True
    )
    rounds = [images for images, _ in endless.take(2).as_numpy_iterator()]
    assert (rounds[0] != rounds[1]).any(axis=(1, 2, 3)).sum() >= 9


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 8, 11, 32])
def test_nothing_is_dropped_and_batches_are_full(numbered, batch_size, cache):
    dataset = data.training_dataset(
        numbered, crop_size=(20, 20), batch_size=batch_size, cache=cache
    )
    for _ in range(2):
        batches = ids(dataset)
        assert len(batches) == -(-11 // batch_size) == int(dataset.cardinality())
        assert all(len(batch) == batch_size for batch in batches)
        seen = [number for batch in batches for number in batch]
        assert sorted(seen[:11]) == list(range(11))
        for start in range(0, len(seen) - 10, 11):
            assert set(seen[start : start + 11]) == set(range(11))


def test_order_without_shuffle_and_endless_repeat(numbered):
    arguments = {"crop_size": (8, 8), "batch_size": 4}
    dataset = data.training_dataset(numbered, **arguments, shuffle=False)
    assert ids(dataset) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 0]]
    endless = data.training_dataset(numbered, **arguments, repeat=True)
    assert int(endless.cardinality()) == tf.data.INFINITE_CARDINALITY
    assert len(ids(endless.take(9))) == 9


def test_specs_are_static_where_known():
    source = data.Shapes(train=4, val=2)
    train = data.training_dataset(source, crop_size=(32, 40), batch_size=3).element_spec
    assert train[0] == tf.TensorSpec((3, 32, 40, 3), tf.float32)
    assert train[1] == tf.TensorSpec((3, 32, 40), tf.int32)
    val = data.evaluation_dataset(source).element_spec
    assert val[0] == tf.TensorSpec((None, None, None, 3), tf.float32)
    assert val[1] == tf.TensorSpec((None, None, None), tf.int32)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_is_whole_images_in_order(numbered, batch_size):
    dataset = data.evaluation_dataset(numbered, batch_size=batch_size)
    assert ids(dataset) == [
        list(range(start, min(11, start + batch_size))) for start in range(0, 11, batch_size)
    ]
    assert int(dataset.cardinality()) == -(-11 // batch_size)
    number = 0
    for images, labels in dataset.as_numpy_iterator():
        for image, label in zip(images, labels, strict=True):
            height = 10 + number
            assert image.shape[0] == 10 + min(
                10, number // batch_size * batch_size + batch_size - 1
            )
            assert (label[:height] == number).all()
            assert (image[:height] == number).all()
            assert (label[height:] == 255).all()
            assert (image[height:] == 127.5).all()
            number += 1
    assert number == 11


def test_auto_cache_asks_the_source(numbered, monkeypatch):
    reads = []
    plain = data.Folder.dataset

    def counted(self, split, numbers=None):
        reads.append(numbers is None)
        return plain(self, split, numbers)

    monkeypatch.setattr(data.Folder, "dataset", counted)
    data.training_dataset(numbered, crop_size=(8, 8), seed=9)
    assert reads == [True]  # all are read once, and taken from memory in any order
    monkeypatch.setattr(data.Folder, "decoded_bytes", lambda self, split: 10**15)
    data.training_dataset(numbered, crop_size=(8, 8), seed=9)
    assert reads == [True, False]  # those that come are read, nothing is kept


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"crop_size": (0, 8)}, "`crop_size`"),
        ({"crop_size": (8.5, 8)}, "`crop_size`"),
        ({"crop_size": (8, 8), "batch_size": 0}, "`batch_size`"),
        ({"crop_size": (8, 8), "scales": (2, 1)}, "`scales`"),
        ({"crop_size": (8, 8), "color_jitter": 2}, "`color_jitter`"),
        ({"crop_size": (8, 8), "color_jitter": True}, "`color_jitter`"),
        ({"crop_size": (8, 8), "color_jitter": (0.1, 0.1)}, "`color_jitter`"),
        ({"crop_size": (8, 8), "color_jitter": {"hue": 0.1}}, "`color_jitter` .*gamma.*'hue'"),
        ({"crop_size": (8, 8), "color_jitter": {"gamma": 1.5}}, "`color_jitter` .*1.5"),
        ({"crop_size": (8, 8), "color_jitter": "0.2"}, "`color_jitter`"),
        ({"crop_size": (8, 8), "class_focus": 1.1}, "`class_focus` .*1.1"),
        ({"crop_size": (8, 8), "class_focus": True}, "`class_focus`"),
        ({"crop_size": (8, 8), "seed": 0.5}, "`seed` .*seed=0.5"),
        ({"crop_size": (8, 8), "first_step": -1, "repeat": True}, "`first_step` .*-1"),
        ({"crop_size": (8, 8), "first_step": 1.5, "repeat": True}, "`first_step` .*1.5"),
        ({"crop_size": (8, 8), "first_step": 3}, "`first_step` .*repeat=True.*first_step=3"),
        ({"crop_size": (8, 8), "cache": "yes"}, "`cache`"),
        ({"crop_size": (8, 8), "split": "test"}, "`split`"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.training_dataset(data.Shapes(train=2, val=1), **arguments)


HELD = """
import sys
sys.path[:0] = sys.argv[2:]
from keras_deeplab import data
source = data.Folder(sys.argv[1])
held = iter(data.training_dataset(source, crop_size=(64, 64), cache=False, repeat=True))
print(len(next(held)))
"""


@pytest.mark.slow  # three programs that import TensorFlow
def test_a_program_ends_while_it_holds_an_iterator(tmp_path, write_pair):
    label = np.kron(np.arange(3), np.ones((500, 200))).astype(np.uint8)
    for name in "abcdef":
        write_pair(tmp_path, "train", name, label)
    command = [sys.executable, "-c", HELD, str(tmp_path), str(Path(data.__file__).parents[2])]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        assert [program.communicate(timeout=120)[0] for program in programs] == [b"2\n"] * 3
    finally:
        for program in programs:
            program.kill()
