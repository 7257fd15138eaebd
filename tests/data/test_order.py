"""Batches are a function of the seed and their number: a run goes on where it was stopped."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import data
from keras_deeplab.data.order import image_numbers, run_key

COUNT = 11


class Numbered(data.Source):
    """Eleven images of which every pixel is the image's number; counts what it decodes."""

    info = data.DatasetInfo(tuple(map(str, range(COUNT))))
    splits = ("train",)

    def __init__(self):
        self.decoded = []

    def names(self, split):
        return [f"photo_{number}" for number in range(COUNT)]

    def dataset(self, split, numbers=None):
        def draw(number):
            self.decoded.append(int(number))
            label = np.full((12 + number, 15), number, np.uint8)
            return label[..., None].repeat(3, -1), label

        def read(number):
            image, label = tf.numpy_function(draw, [number], (tf.uint8, tf.uint8))
            return tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(label, (None, None))

        numbers = tf.data.Dataset.range(COUNT) if numbers is None else numbers
        return numbers.map(read, num_parallel_calls=2, deterministic=True)


def endless(source=None, **arguments):
    return data.training_dataset(
        source or Numbered(),
        **{"crop_size": (10, 10), "batch_size": 4, "repeat": True, **arguments},
    )


def batches(dataset, count):
    return list(dataset.take(count).as_numpy_iterator())


def ids(found):
    return [int(label[label != 255][0]) for _, labels in found for label in labels]


def same(one, other):
    assert len(one) == len(other) > 0
    arrays = zip(sum(one, ()), sum(other, ()), strict=True)
    return all(np.array_equal(a, b) for a, b in arrays)


@pytest.mark.parametrize("batch_size, cache", [(1, True), (4, True), (4, False), (25, False)])
def test_a_run_is_entered_anywhere_to_the_last_bit(batch_size, cache):
    arguments = {"batch_size": batch_size, "class_focus": 0.5, "seed": 3}
    whole = batches(endless(cache=not cache, **arguments), 13)
    # Before, at and after the ends of rounds, which batches of 4 and 25 do not respect.
    for step in (0, 2, 3, 10, 11):
        entered = endless(cache=cache, first_step=step, **arguments)
        assert same(batches(entered, 13 - step), whole[step:])
    skipped = endless(cache=cache, **arguments).skip(11)
    assert same(batches(skipped, 2), whole[11:])


def test_what_is_skipped_is_not_decoded():
    source = Numbered()
    found = batches(endless(source, cache=False, first_step=1000, shuffle=False), 1)
    assert ids(found) == [4000 % COUNT, *((4000 + n) % COUNT for n in (1, 2, 3))]
    assert len(source.decoded) < 200  # what was prefetched


def test_a_step_far_out_is_at_hand():
    step = 10**12
    (found,) = batches(endless(first_step=step), 1)
    names = data.batch_names(Numbered(), step=step, batch_size=4)
    assert [f"photo_{number}" for number in ids([found])] == names


def test_the_memory_is_filled_once():
    source = Numbered()
    dataset = endless(source, cache=True)
    assert len(batches(dataset, 14)) == 14  # five rounds
    assert sorted(source.decoded) == list(range(COUNT))
    batches(dataset, 3)
    assert len(source.decoded) == COUNT
    finite = data.training_dataset(source, crop_size=(10, 10), batch_size=4, cache=True)
    for _ in range(4):
        list(finite)
    assert len(source.decoded) == 2 * COUNT


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [3, 4])
def test_names_are_those_of_the_images_in_the_batch(batch_size, shuffle):
    arguments = {"batch_size": batch_size, "shuffle": shuffle, "seed": 2**70 + 1}
    for step, found in enumerate(batches(endless(**arguments), 12)):
        names = data.batch_names(Numbered(), "train", step=step, **arguments)
        assert names == [f"photo_{number}" for number in ids([found])]


def test_every_image_once_a_round_and_rounds_differ():
    order = np.array(ids(batches(endless(batch_size=COUNT), 20))).reshape(20, COUNT)
    assert (np.sort(order, axis=1) == np.arange(COUNT)).all()
    assert len({tuple(row) for row in order}) == 20


def test_an_image_is_augmented_otherwise_in_another_round():
    found = batches(endless(data.Shapes(train=4, val=0), shuffle=False), 3)
    for one, other in ((0, 1), (1, 2)):
        assert all((a != b).any() for a, b in zip(found[one][0], found[other][0], strict=True))


def orders(seed, rounds=60, count=50):
    numbers = image_numbers(count, run_key(seed, "order"), shuffle=True)
    return np.array(list(numbers.take(rounds * count).as_numpy_iterator())).reshape(rounds, count)


def test_rounds_of_neighbouring_seeds_are_not_related():
    found = np.concatenate([orders(seed) for seed in (0, 1, 2, -1, 2**32, 2**64, 2**64 + 1)])
    # No round is another's, shifted or not (seed + 1 in round r being seed in round r + 1, say).
    assert len({row.tobytes() for row in found}) == len(found)
    agree = (found[:, None] == found[None]).mean(-1)[~np.eye(len(found), dtype=bool)]
    # Two random orders of 50 agree in one place on average, a Poisson number of them.
    assert agree.mean() * 50 == pytest.approx(1.0, abs=0.02)
    assert agree.max() * 50 < 11
    # Every image comes to every place.
    places = np.stack([(found == number).argmax(1) for number in range(50)])
    assert np.abs(places.mean(1) - 24.5).max() < 4 * 14.4 / len(found) ** 0.5


def test_two_seeds_differ_in_order_and_in_augmentation():
    found = [batches(endless(seed=seed), 3) for seed in (0, 1)]
    assert ids(found[0]) != ids(found[1])
    source = data.Shapes(train=4, val=0)
    plain = [batches(endless(source, seed=seed, shuffle=False), 1)[0][0] for seed in (0, 1)]
    assert all((a != b).any() for a, b in zip(*plain, strict=True))


def test_every_iteration_is_the_same_run_whatever_tensorflow_draws():
    dataset = endless(first_step=2)
    whole = batches(dataset, 5)
    assert same(batches(dataset, 5), whole)
    tf.random.set_seed(77)
    try:
        assert same(batches(endless(first_step=2), 5), whole)
    finally:
        tf.random.set_seed(None)


@pytest.mark.parametrize("step", [-1, 0.5, None])
def test_steps_are_checked(step):
    with pytest.raises(ValueError, match=f"`step` .*{step}"):
        data.batch_names(Numbered(), step=step)
