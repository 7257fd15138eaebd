"""Batches for training and evaluation: a run goes on where it was stopped, to the last bit."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.data.pipeline import positions, run_key
from keras_deeplab.data.source import decoded

COUNT = 11


class Numbered(data.Source):
    """Eleven images of which every pixel is the image's number; counts what it decodes."""

    info = data.DatasetInfo(tuple(map(str, range(COUNT))))
    splits = ("train", "val")

    def __init__(self):
        self.decoded = []
        self.uses = []

    def names(self, split):
        return [f"photo_{number}" for number in range(COUNT)]

    def dataset(self, split, numbers=None):
        def draw(number):
            self.decoded.append(int(number))
            label = np.full((12 + number, 15), number, np.uint8)
            return label[..., None].repeat(3, -1), label

        self.uses.append("all" if numbers is None else "some")
        return decoded(draw, COUNT, numbers)


# Of tests of the order alone, as little as possible is traced.
STILL = {"color_jitter": None, "flip": False, "scales": (1, 1)}
CHANGED = {"class_focus": 0.5, "seed": 3}


def finite(source=None, **arguments):
    arguments = {"crop_size": (10, 10), "batch_size": 4, **arguments}
    return data.training_dataset(source or Numbered(), **arguments)


def endless(source=None, **arguments):
    return finite(source, repeat=True, **arguments)


def batches(dataset, count=-1):
    return list(dataset.take(count).as_numpy_iterator())


def ids(found):
    """The numbers of the images in each batch."""
    return [[int(label[label != 255][0]) for label in labels] for _, labels in found]


def same(one, other):
    assert len(one) == len(other) > 0
    return all(map(np.array_equal, sum(one, ()), sum(other, ())))


@cache
def whole_run():
    return batches(endless(cache=False, **CHANGED), 13)


# Before and after the end of a round, which batches of 4 do not respect.
@pytest.mark.slow
@pytest.mark.parametrize("step, cache", [(2, False), (11, True)])
def test_a_run_is_entered_anywhere_to_the_last_bit(step, cache):
    expected = whole_run()
    tf.random.set_seed(77)  # which does not matter
    try:
        entered = endless(cache=cache, first_step=step, **CHANGED)
        assert int(entered.cardinality()) == tf.data.INFINITE_CARDINALITY
        assert same(batches(entered, 13 - step), expected[step:])
        if step == 2:  # again, and from another step
            assert same(batches(entered.skip(9), 2), expected[11:])
    finally:
        tf.random.set_seed(None)


MIXED = {
    **CHANGED,
    "rotation": (-10, 10),
    "blur": (0, 1),
    "jpeg_quality": (60, 100),
    "cutout": 0.2,
    "copy_paste": 0.5,
    "copy_paste_classes": tuple("13579"),
    "mosaic": 0.5,
}


@pytest.mark.slow
def test_a_run_with_all_augmentation_is_entered_anywhere_to_the_last_bit():
    whole = endless(cache=False, **MIXED)
    expected = batches(whole, 7)
    assert same(batches(endless(cache=True, first_step=3, **MIXED), 4), expected[3:])
    assert same(batches(whole.skip(5), 2), expected[5:])
    assert len({image.tobytes() for images, _ in expected for image in images}) == 7 * 4


@pytest.mark.slow
def test_mixed_images_are_the_next_ones_in_the_order_and_decoded_once():
    source = Numbered()
    arguments = {**STILL, "mosaic": 1.0, "batch_size": COUNT, "crop_size": (8, 8)}
    paste = {"copy_paste": 1.0, "copy_paste_classes": source.info.classes}
    alone = batches(endless(**{**arguments, "mosaic": 0.0}), 4)
    order = np.concatenate([labels[:, 0, 0] for _, labels in alone])
    mixed = batches(endless(**arguments), 3)
    for number, label in enumerate(np.concatenate([labels for _, labels in mixed])):
        corners = label[0, 0], label[0, -1], label[-1, 0], label[-1, -1]
        assert list(corners) == list(order[number : number + 4])
    pasted = batches(endless(source, cache=False, **arguments, **paste), 12)
    for number, label in enumerate(np.concatenate([labels for _, labels in pasted])[:20]):
        assert (label == order[number + 4]).all()  # all of it, over the mosaic
    assert len(source.decoded) < 12 * COUNT + 200  # what was prefetched
    assert len(batches(finite(cache=False, **arguments))) == 1  # a pass has as many as without


def test_the_batches_of_a_seed_stay_what_they_were():
    """Runs of earlier versions resume, and new kinds of augmentation are off by default."""
    dataset = endless(data.Shapes(train=6, val=0), crop_size=(48, 40), class_focus=0.5, seed=5)
    images, labels = batches(dataset, 1)[0]
    assert hashlib.sha256(labels.tobytes()).hexdigest()[:16] == "1a06aae60b86bf72"
    weights = np.random.default_rng(0).uniform(-1, 1, images.size)  # not the same on all processors
    assert images.ravel() @ weights == pytest.approx(5742.3, rel=1e-4)


def test_what_is_skipped_is_not_decoded():
    source = Numbered()
    found = batches(endless(source, cache=False, first_step=1000, shuffle=False, **STILL), 1)
    assert ids(found) == [[(4000 + n) % COUNT for n in range(4)]]
    assert len(source.decoded) < 200  # what was prefetched


@pytest.mark.slow
def test_the_memory_is_filled_once():
    source = Numbered()
    dataset = endless(source, cache=True, **STILL)
    for _ in range(2):
        batches(dataset, 6)  # two rounds
        assert sorted(source.decoded) == list(range(COUNT))
    dataset = finite(source, cache=True, **STILL)
    for _ in range(2):
        batches(dataset)
    assert len(source.decoded) == 2 * COUNT


# In a program of its own, as other tests leave memory behind, and with all large blocks of memory
# returned to the system at once, as glibc would keep an unknown part of them.
CACHED = """
import sys
sys.path[:0] = sys.argv[1:]
import psutil
import tensorflow as tf
from keras_deeplab import data, memory

class Large(data.Shapes):
    def dataset(self, split, numbers=None):
        def enlarged(image, label):
            return tf.tile(image, (32, 32, 1)), tf.tile(label, (32, 32))

        return super().dataset(split, numbers).map(enlarged)

source = Large(train=4, val=0)
print(sum(4 * tf.size(image).numpy() // 3 for image, label in source.dataset("train")))
for repeat in (False, True):
    for _ in range(4):
        dataset = data.training_dataset(
            source, crop_size=(8, 8), batch_size=4, cache=True, repeat=repeat
        )
        for _ in dataset.take(1):
            pass
        del dataset
        memory.return_free_memory()
        print(psutil.Process().memory_info().rss)
"""


@pytest.mark.slow
def test_cached_images_are_freed_with_their_dataset():
    command = [sys.executable, "-c", CACHED, str(Path(data.__file__).parents[2])]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000"}
    printed = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True).stdout
    size, *used = map(int, printed.split())
    assert len(used) == 8
    for first, *others in (used[:4], used[4:]):
        assert max(others) - first < size // 2  # three are made after the first


@pytest.mark.slow
def test_cached_images_may_be_floats():
    class Floats(data.Shapes):
        def dataset(self, split, numbers=None):
            return super().dataset(split, numbers).map(lambda x, y: (tf.cast(x, tf.float32), y))

    source = Floats(train=2, val=0)
    kept, read = (finite(source, batch_size=2, cache=cache, **STILL) for cache in (True, False))
    for first, second in zip(kept, read, strict=True):
        np.testing.assert_array_equal(first[0], second[0])


def test_names_are_those_of_the_images_in_the_batch():
    arguments = {"batch_size": 3, "seed": 2**70 + 1}
    step = 10**12
    for number, found in enumerate(ids(batches(endless(first_step=step, **STILL, **arguments), 6))):
        names = data.batch_names(Numbered(), "train", step=step + number, **arguments)
        assert names == [f"photo_{number}" for number in found]


def orders(seed, number=30, count=50):
    found = positions(count, run_key(seed, "order"), shuffle=True)
    return next(found.batch(number * count).as_numpy_iterator()).reshape(number, count)


def test_rounds_of_neighbouring_seeds_are_not_related():
    found = np.concatenate([orders(seed) for seed in (0, 1, 2, -1, 2**32, 2**64, 2**64 + 1)])
    assert (np.sort(found, axis=1) == np.arange(50)).all()
    # No round is another's, shifted or not (seed + 1 in round r being seed in round r + 1, say).
    assert len({row.tobytes() for row in found}) == len(found)
    agree = (found[:, None] == found[None]).mean(-1)[~np.eye(len(found), dtype=bool)]
    # Two random orders of 50 agree in one place on average, a Poisson number of them.
    assert agree.mean() * 50 == pytest.approx(1.0, abs=0.02)
    assert agree.max() * 50 < 11
    # Every image comes to every place.
    places = np.stack([(found == number).argmax(1) for number in range(50)])
    assert np.abs(places.mean(1) - 24.5).max() < 4 * 14.4 / len(found) ** 0.5


@pytest.mark.slow
def test_seed_decides_and_epochs_differ():
    def epochs(dataset):
        return [batches(dataset, 1)[0] for _ in range(2)]

    def order(epoch):
        return tuple(ids([epoch])[0])

    def in_order(epoch):
        return epoch[0][np.argsort(order(epoch))][1:]  # black stays black

    colors_alone = {"batch_size": COUNT, "flip": False, "scales": (1, 1)}
    first, again, other = (epochs(finite(**colors_alone, seed=seed)) for seed in (0, 0, 1))
    assert same(first, again)
    images, labels = map(np.concatenate, zip(*whole_run(), strict=True))
    rounds = [
        (images[start : start + COUNT], labels[start : start + COUNT]) for start in (0, COUNT)
    ]
    assert len({order(epoch) for epoch in (*first, *other, *rounds)}) == 6
    # Each image is augmented in another way.
    for one, another in (first, other, rounds, (first[0], other[0])):
        assert (in_order(one) != in_order(another)).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("batch_size, cache", [(4, False), (32, True)])
def test_nothing_is_dropped_and_batches_are_full(batch_size, cache):
    dataset = finite(batch_size=batch_size, cache=cache, **STILL)
    for _ in range(2):
        found = ids(batches(dataset))
        assert len(found) == -(-COUNT // batch_size) == int(dataset.cardinality())
        assert all(len(batch) == batch_size for batch in found)
        seen = [number for batch in found for number in batch]
        for start in range(0, len(seen) - COUNT + 1, COUNT):
            assert sorted(seen[start : start + COUNT]) == list(range(COUNT))


def test_order_without_shuffle_and_specs():
    dataset = finite(shuffle=False, crop_size=(8, 12), **STILL)
    assert ids(batches(dataset)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 0]]
    assert dataset.element_spec == (
        tf.TensorSpec((4, 8, 12, 3), tf.float32),
        tf.TensorSpec((4, 8, 12), tf.int32),
    )


@pytest.mark.slow
def test_replicas_and_workers_share_the_batches_of_one_process(mirrored):
    dataset = endless(batch_size=5, **STILL)
    iterator = iter(mirrored.experimental_distribute_dataset(dataset))
    for images, _ in batches(dataset, 2):
        parts = mirrored.experimental_local_results(next(iterator)[0])
        assert [len(part) for part in parts] == [3, 2]
        np.testing.assert_array_equal(np.concatenate(parts), images)
    for one in (dataset, data.evaluation_dataset(Numbered())):
        policy = one.options().experimental_distribute.auto_shard_policy
        assert policy == tf.data.experimental.AutoShardPolicy.DATA


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_is_whole_images_in_order(batch_size):
    dataset = data.evaluation_dataset(Numbered(), batch_size=batch_size)
    assert dataset.element_spec[0] == tf.TensorSpec((None, None, None, 3), tf.float32)
    assert dataset.element_spec[1] == tf.TensorSpec((None, None, None), tf.int32)
    assert int(dataset.cardinality()) == -(-COUNT // batch_size)
    number = 0
    for images, labels in batches(dataset):
        assert images.shape[1] == 12 + min(COUNT, number + batch_size) - 1
        for image, label in zip(images, labels, strict=True):
            height = 12 + number
            assert (label[:height] == number).all()
            assert (image[:height] == number).all()
            assert (label[height:] == 255).all()
            assert (image[height:] == 127.5).all()
            number += 1
    assert number == COUNT


@pytest.mark.parametrize("part_size", [32, 45, 64, 200])
def test_large_images_are_cut_and_each_pixel_is_in_one_part(part_size):
    sizes = [(100, 64), (33, 201), (32, 32), (45, 20)]
    pixels = [np.arange(h * w * 3, dtype=np.uint32).reshape(h, w, 3) % 251 for h, w in sizes]

    class Large(Numbered):
        def names(self, split):
            return [str(size) for size in sizes]

        def dataset(self, split, numbers=None):
            def draw(number):
                image = pixels[int(number)].astype(np.uint8)
                return image, image[..., 0]

            return decoded(draw, len(sizes), numbers)

    for batch_size in (3, 1):
        dataset = data.evaluation_dataset(Large(), batch_size=batch_size, part_size=part_size)
        parts = batches(dataset)
        assert int(dataset.cardinality()) == len(parts)
    for image in pixels:
        found, top = np.full(image.shape, -1.0), 0
        while top < len(image):
            left = 0
            while left < image.shape[1]:
                (part,), (label,) = parts.pop(0)
                assert max(part.shape[:2]) <= part_size
                assert part_size % 32 or (top % 32, left % 32) == (0, 0)
                np.testing.assert_array_equal(part[..., 0], label)
                found[top : top + len(part), left : left + part.shape[1]] = part
                left += part.shape[1]
            top += len(part)
        np.testing.assert_array_equal(found, image)
    assert parts == []


def test_auto_cache_asks_the_source(monkeypatch):
    source = Numbered()
    estimate = source.decoded_bytes("train")
    assert estimate == sum((12 + number) * 15 * 4 for number in range(COUNT))
    for size, use in ((estimate, "all"), (10**15, "some")):
        monkeypatch.setattr(Numbered, "decoded_bytes", lambda self, split, size=size: size)
        source = Numbered()
        finite(source, **STILL)
        assert source.uses == [use]  # all are read once, or those that come and none is kept


def test_the_size_is_estimated_from_images_all_over_the_split():
    class Growing(Numbered):
        def names(self, split):
            return ["image"] * 200

    exact = sum((12 + number) * 15 * 4 for number in range(200))
    assert Growing().decoded_bytes("train") == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"crop_size": (0, 8)}, "`crop_size`"),
        ({"crop_size": (8.5, 8)}, "`crop_size`"),
        ({"batch_size": 0}, "`batch_size`"),
        *(({"scales": bad}, "`scales`") for bad in ((2, 1), 1.0, ("a", "b"), (0, 1), None)),
        ({"scales": (0.5, float("inf"))}, "`scales`"),
        ({"color_jitter": 2}, "`color_jitter`"),
        ({"color_jitter": (0.1, 0.1)}, "`color_jitter`"),
        ({"color_jitter": {"hue": 0.1}}, "`color_jitter` .*gamma.*'hue'"),
        ({"color_jitter": {"gamma": 1.5}}, "`color_jitter` .*1.5"),
        ({"color_jitter": "0.2"}, "`color_jitter`"),
        ({"class_focus": 1.1}, "`class_focus` .*1.1"),
        ({"rotation": 5}, "`rotation`"),
        ({"copy_paste": 0.1, "copy_paste_classes": ["x"]}, "`copy_paste_classes` .*'10'.*'x'"),
        ({"seed": 0.5}, "`seed` .*seed=0.5"),
        ({"first_step": -1, "repeat": True}, "`first_step` .*-1"),
        ({"first_step": 1.5, "repeat": True}, "`first_step` .*1.5"),
        ({"first_step": 3}, "`first_step` .*repeat=True.*first_step=3"),
        ({"cache": "yes"}, "`cache`"),
        ({"split": "test"}, "`split`"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        finite(**arguments)


def test_steps_are_checked():
    with pytest.raises(ValueError, match="`step` .*step=-1"):
        data.batch_names(Numbered(), step=-1)


HELD = """
import os, sys
sys.path[:0] = sys.argv[2:]
import keras_deeplab
from keras_deeplab import data

for _ in range(3):
    if os.fork() == 0:  # TensorFlow is imported once and has computed nothing
        source = data.Folder(sys.argv[1])
        held = iter(data.training_dataset(source, crop_size=(64, 64), cache=False, repeat=True))
        print(len(next(held)))
        sys.exit()
assert [os.wait()[1] for _ in range(3)] == [0] * 3
"""


@pytest.mark.slow
def test_a_program_ends_while_it_holds_an_iterator(tmp_path, write_pair):
    label = np.kron(np.arange(3), np.ones((500, 200))).astype(np.uint8)
    for name in "abcdef":
        write_pair(tmp_path, "train", name, label)
    command = [sys.executable, "-c", HELD, str(tmp_path), str(Path(data.__file__).parents[2])]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert program.communicate(timeout=120)[0] == b"2\n" * 3
        assert program.returncode == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_path_is_opened(make_folder, as_path):
    folder = make_folder([[0, 1], [1, 0]], classes=["a", "b"])
    found = data.evaluation_dataset(as_path(folder), "train")
    assert same(batches(found), batches(data.evaluation_dataset(data.Folder(folder), "train")))
    given = {"crop_size": 2, "batch_size": 1, "seed": 1}
    trained = [data.training_dataset(at, **given) for at in (as_path(folder), data.Folder(folder))]
    assert same(*map(batches, trained))
    assert data.batch_names(as_path(folder), batch_size=1, step=0) == ["a"]


@pytest.mark.parametrize(
    "take",
    [
        lambda given: data.training_dataset(given, crop_size=8, batch_size=1),
        data.evaluation_dataset,
        data.audit,
        lambda given: data.prepare(given, "prepared"),
        lambda given: keras_deeplab.fit("deeplab_v3_plus", given),
        lambda given: keras_deeplab.overfit(None, given),
    ],
)
def test_batches_are_not_a_source(take, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batches = tf.data.Dataset.range(3)
    message = "`source` must be a data.Source, or the name or path of a data set. Received: source="
    with pytest.raises(ValueError, match=message):
        take(batches)
    assert not any(tmp_path.iterdir())


def test_the_parts_of_files_are_counted_without_the_images(make_folder, monkeypatch):
    label = np.zeros((40, 100), np.uint8)
    label[:, 50:] = 1
    folder = make_folder(label, classes=["a", "b"])
    halved = data.Resized(data.Folder(folder), 0.5)
    assert halved.label_sizes("train") == [(20, 50)]
    reads, read = [], data.Folder.read_label
    monkeypatch.setattr(data.Folder, "read_label", lambda *at: reads.append(1) or read(*at))
    for source, count in ((data.Folder(folder), 8), (halved, 2)):
        found = data.evaluation_dataset(source, "train", part_size=32, cache=False)
        assert int(found.cardinality()) == count
        assert reads == []
        assert len(batches(found)) == count
        reads.clear()


def test_held_out_images_know_their_sizes(monkeypatch):
    sizes = [(12 + number, 15) for number in range(COUNT)]
    held_out = data.HeldOut(Numbered(), folds=3)
    monkeypatch.setattr(Numbered, "label_sizes", lambda self, split: sizes)
    for split in ("train", "val"):
        numbers = [int(name.removeprefix("photo_")) for name in held_out.names(split)]
        assert held_out.label_sizes(split) == [sizes[number] for number in numbers]


def test_the_parts_of_other_sources_are_counted_from_their_own_images_once():
    source = Numbered()
    held_out = data.HeldOut(source, folds=3)
    for given in (source, held_out, data.Resized(held_out, 2)):
        source.decoded.clear()
        found = data.evaluation_dataset(given, part_size=32, cache=True)
        assert int(found.cardinality()) == len(batches(found))
        assert len(source.decoded) == len(given.names("val"))


def test_parts_are_counted_again_after_a_label_map_was_repaired(make_folder):
    folder = make_folder(np.zeros((40, 100), np.uint8), classes=["a", "b"])
    source = data.Folder(folder)
    (path,) = source.files("train").labels.values()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(data.DatasetError, match=path.name):
        data.evaluation_dataset(source, "train", part_size=32, cache=False)
    path.write_bytes(content)
    found = data.evaluation_dataset(source, "train", part_size=32, cache=False)
    assert int(found.cardinality()) == 8
