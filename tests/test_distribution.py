from __future__ import annotations

import json

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
        return of_worker(self.context)


def pairs(images: int, batch: int, **options: bool) -> tf.data.Dataset:
    numbers = tf.data.Dataset.range(images).batch(batch, **options)
    return numbers.map(lambda x: (x, tf.stack([x, -x], -1)))


TOPOLOGIES = [(1, 2), (2, 1), (3, 2)]


@pytest.mark.parametrize("workers, local", TOPOLOGIES)
@pytest.mark.parametrize("repeat", [False, True])
def test_the_replicas_share_the_images_of_each_training_batch(workers, local, repeat):
    each = 2 * workers * local
    seen = [[], [], []]
    for worker in range(workers):
        batches = pairs(3 * each, each, drop_remainder=True)
        batches = batches.repeat() if repeat else batches
        made = distribution.training_batches(batches, Workers(workers, local, worker))
        assert made._cardinality == (tf.data.INFINITE_CARDINALITY if repeat else 3)
        assert not repeat or made.cardinality() == tf.data.INFINITE_CARDINALITY
        assert made.element_spec[1].shape == (2, 2)
        for number, (x, y) in zip(range(3 * local), made, strict=False):
            np.testing.assert_array_equal(y, np.stack([x, -x], -1))
            seen[number // local] += x.numpy().tolist()
    assert [sorted(images) for images in seen] == np.arange(3 * each).reshape(3, each).tolist()


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


def test_batches_that_do_not_fit_are_refused():
    for data in (pairs(12, 6, drop_remainder=True), pairs(8, 4)):
        with pytest.raises(ValueError, match="`dataset` must be batches .* the 4 replicas divide"):
            distribution.training_batches(data, Workers(2, 2))
    for data in (pairs(8, 4).repeat(), pairs(8, 4).filter(lambda *_: True), pairs(8, 4).take(0)):
        with pytest.raises(ValueError, match=r"at least 1\. Received: dataset=(-1|-2|0)"):
            distribution.evaluation_batches(data, Workers(2, 1))


def test_names_of_strategies():
    strategy = distribution.open_strategy("none")
    assert strategy.num_replicas_in_sync == 1
    data = pairs(5, 2)
    assert distribution.training_batches(data, strategy) is data
    assert distribution.evaluation_batches(data, strategy) is data
    assert distribution.open_strategy("mirrored").num_replicas_in_sync == 2
    with pytest.raises(ValueError, match=r"`name` must be one of .* Received: name='all'"):
        distribution.open_strategy("all")


CLUSTER = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{",
        "[]",
        {"cluster": CLUSTER},
        {"cluster": CLUSTER, "task": {"type": "worker", "index": 2}},
        {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}},
    ],
)
def test_other_contents_of_tf_config_are_refused(config, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError, match=r"multi_worker: .*TF_CONFIG must .*\. Received: "):
        distribution.open_strategy("multi_worker")
