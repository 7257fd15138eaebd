"""Images held out of a training split."""

from __future__ import annotations

import numpy as np
import pytest

from keras_deeplab import data
from keras_deeplab.data import HeldOut


@pytest.fixture(scope="module")
def source():
    return data.Shapes(train=27, val=3)


def test_folds_divide_the_images_and_each_image_is_held_out_once(source):
    names = source.names("train")
    held = []
    for fold in range(4):
        part = HeldOut(source, fold, folds=4)
        assert sorted(part.names("train") + part.names("val")) == sorted(names)
        assert 6 <= len(part.names("val")) <= 8
        held += part.names("val")
    assert sorted(held) == sorted(names)
    assert (part.splits, part.info) == (("train", "val"), source.info)


@pytest.mark.parametrize("digits", [3, 1])
def test_neighbours_are_held_out_together(digits):
    class Frames(data.Shapes):
        def names(self, split):
            return [
                f"frame{number:0{digits}}" for number in np.random.default_rng(0).permutation(300)
            ]

    part = HeldOut(Frames(train=300, val=3))
    numbers = np.sort([int(name[5:]) for name in part.names("val")])
    assert len(numbers) == 60
    assert np.count_nonzero(np.diff(numbers) > 1) == 4  # five blocks


def test_a_recording_is_held_out_by_its_prefix(source):
    names = source.names("train")
    part = HeldOut(source, prefix=names[3])
    assert part.names("val") == [names[3]]
    assert part.names("train") == names[:3] + names[4:]
    assert len(HeldOut(data.Shapes(train=3, val=1), prefix="train_00000").names("train")) == 2
    for prefix in ("", "seq05"):
        with pytest.raises(ValueError, match="`prefix` must be that of some"):
            HeldOut(source, prefix=prefix)


@pytest.mark.parametrize("split", ["train", "val"])
def test_pairs_are_those_of_the_source(source, split):
    part = HeldOut(source, fold=2, folds=3)
    pairs = dict(
        zip(source.names("train"), source.dataset("train").as_numpy_iterator(), strict=True)
    )
    found = list(part.dataset(split).as_numpy_iterator())
    assert len(found) == len(part.names(split))
    for name, (image, label) in zip(part.names(split), found, strict=True):
        np.testing.assert_array_equal(image, pairs[name][0])
        np.testing.assert_array_equal(label, pairs[name][1])


def test_files_are_read_at_the_same_positions(tmp_path, write_pair, write_settings, blocks):
    rng = np.random.default_rng(0)
    for name in "abcdef":
        image = rng.integers(0, 256, (*blocks.shape, 3), np.uint8)
        write_pair(tmp_path, "train", name, blocks, image)
    write_settings(tmp_path, classes=["x", "y", "z"])
    source = data.Folder(tmp_path)
    part = HeldOut(source, folds=3)
    read, of_source = part.encoded_images("val"), source.encoded_images("train")
    position = source.names("train").index(part.names("val")[1])
    assert read(1) == of_source(position)
    assert len(list(data.training_dataset(part, batch_size=2, crop_size=(16, 16)).take(2))) == 2
    assert data.audit(part).splits["val"].images == 2


def test_bad_arguments(source):
    with pytest.raises(ValueError, match="`fold` must be below the number of folds, 5"):
        HeldOut(source, 5)
    with pytest.raises(ValueError, match="`folds` must be an integer of at least 2"):
        HeldOut(source, folds=1)
    with pytest.raises(ValueError, match="at most the number of training images, 27"):
        HeldOut(source, folds=28)
    with pytest.raises(ValueError, match="split"):
        HeldOut(source).names("test")
