from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab import distribution


class Workers:
    """A strategy of several workers with several replicas each, seen from one of them."""

    def __init__(self, workers: int, local: int, worker: int = 0) -> None:
        self.num_replicas_in_sync = workers * local
        self.context = tf.distribute.InputContext(workers, worker, self.num_replicas_in_sync)

    def distribute_datasets_from_function(self, of_worker):
        return OfWorker(of_worker(self.context))


class OfWorker:
    """What TensorFlow makes of a worker's data set, one batch of a replica after another."""

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self.dataset = dataset
        self._cardinality = int(dataset.cardinality())

    def __iter__(self):
        return iter(self.dataset)


def pairs(images: int, batch: int, **options: bool) -> tf.data.Dataset:
    numbers = tf.data.Dataset.range(images).batch(batch, **options)
    return numbers.map(lambda x: (x, tf.stack([x, -x], -1)))


TOPOLOGIES = [(1, 2), (2, 1), (2, 2), (3, 2)]


@pytest.mark.parametrize("workers, local", TOPOLOGIES)
@pytest.mark.parametrize("static", [False, True])
def test_a_training_batch_is_cut_into_parts_in_order(workers, local, static):
    replicas, batches, found = workers * local, 3, []
    each = 2 * replicas
    for worker in range(workers):
        data = pairs(batches * each, each, drop_remainder=static)
        made = distribution.training_batches(data, Workers(workers, local, worker))
        assert made._cardinality == batches
        parts = [(x.numpy(), y.numpy()) for x, y in made]
        assert all(np.array_equal(y, np.stack([x, -x], -1)) for x, y in parts)
        assert made.dataset.element_spec[1].shape.as_list() == [2 if static else None, 2]
        found.append(np.array([x for x, _ in parts]).reshape(batches, local, 2))
    seen = np.concatenate(found, 1)
    np.testing.assert_array_equal(
        seen.reshape(batches, -1), np.arange(batches * each).reshape(batches, -1)
    )


@pytest.mark.parametrize("repeat", [False, True])
def test_training_data_may_be_endless_or_of_unknown_length(repeat):
    data = tf.data.Dataset.range(8)
    data = data.repeat() if repeat else data.filter(lambda _: True)
    made = distribution.training_batches(data.batch(4), Workers(2, 1, 1))
    expected = tf.data.INFINITE_CARDINALITY if repeat else tf.data.UNKNOWN_CARDINALITY
    assert made._cardinality == expected
    assert made.dataset.cardinality() == expected
    seen = [batch.numpy().tolist() for batch, _ in zip(made, range(5), strict=False)]
    assert seen == ([[2, 3], [6, 7]] * 3)[: 5 if repeat else 2]


@pytest.mark.parametrize("workers, local", TOPOLOGIES)
@pytest.mark.parametrize("images", [1, 12, 23])
def test_evaluation_deals_out_whole_batches(workers, local, images):
    replicas, batches = workers * local, [x.numpy().tolist() for x, _ in pairs(images, 3)]
    steps, found = -(-len(batches) // replicas), []
    for worker in range(workers):
        made = distribution.evaluation_batches(pairs(images, 3), Workers(workers, local, worker))
        assert made._cardinality == steps
        own = list(made)
        assert len(own) == steps * local, "no replica may be left waiting"
        assert all(y.shape == (x.shape[0], 2) for x, y in own)
        found += [x.numpy().tolist() for x, _ in own]
    assert sorted(batch for batch in found if batch) == batches
    assert len([batch for batch in found if not batch]) < replicas


def test_one_replica_changes_nothing():
    data = pairs(5, 2)
    strategy = tf.distribute.get_strategy()
    assert distribution.training_batches(data, strategy) is data
    assert distribution.evaluation_batches(data, strategy) is data


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the 4 replicas divide. Received: batches of 6 images"):
        distribution.training_batches(pairs(12, 6, drop_remainder=True), Workers(2, 2))
    made = distribution.training_batches(pairs(7, 4), Workers(2, 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="the 2 replicas divide"):
        list(made)
    for data in (pairs(8, 4).repeat(), pairs(8, 4).filter(lambda *_: True), pairs(8, 4).take(0)):
        with pytest.raises(ValueError, match=r"at least 1. .* cardinality (-1|-2|0) "):
            distribution.evaluation_batches(data, Workers(2, 1))
