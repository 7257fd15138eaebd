"""A sound model fits a few images; planted in it, each fault is the one that is named."""

from __future__ import annotations

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.diagnosis import _richest_crop, read_batch
from keras_deeplab.models.deep_supervision import DeepSupervision

COLORS = np.array([[60, 60, 60], [220, 60, 60], [60, 60, 220]])


class Arrays(data.Source):
    """Pictures and label maps in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images.astype(np.uint8), labels.astype(np.uint8)

    @property
    def info(self) -> data.DatasetInfo:
        return data.DatasetInfo(("ground", "red", "blue"))

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def names(self, split: str) -> list[str]:
        return [str(index) for index in range(len(self.images))]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        order = tf.data.Dataset.range(len(self.images)) if numbers is None else numbers
        images, labels = tf.constant(self.images), tf.constant(self.labels)
        return order.map(lambda index: (images[index], labels[index]))


def blocks(count: int = 4, side: int = 32, cell: int = 8, seed: int = 0) -> Arrays:
    """Noisy squares whose colour is their class."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 3, (count, side // cell, side // cell))
    labels = coarse.repeat(cell, 1).repeat(cell, 2)
    return Arrays(painted(labels, random), labels)


def painted(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.clip(COLORS[labels % 3] + random.normal(0, 10, (*labels.shape, 3)), 0, 255)


def network(middle=lambda x: x, momentum: float = 0.5, after=lambda x: x) -> keras.Model:
    """A small model with a backbone: a convolution with norm, then a predictor."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((None, None, 3))
    x = kl.Conv2D(8, 3, padding="same", name="conv")(pixels)
    x = kl.BatchNormalization(momentum=momentum, name="norm")(x)
    backbone = keras.Model(pixels, kl.ReLU(name="relu")(x), name="backbone")
    inputs = keras.Input((None, None, 3))
    x = middle(backbone(kl.Rescaling(1 / 127.5, -1, name="scale")(inputs)))
    return keras.Model(inputs, after(kl.Conv2D(3, 1, name="logits")(x)))


def run(model: keras.Model, source: data.Source | None = None, rate: float = 0.03, **arguments):
    arguments = {"steps": 60, "verbose": 0, **arguments}
    arguments.setdefault("compile", {"optimizer": keras.optimizers.Adam(rate)})
    return keras_deeplab.overfit(model, source or blocks(), **arguments)


def message(report) -> str:
    assert not report.fits
    assert f"CAUSE {report.cause}: {report.message}" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)
    return report.message


def test_a_sound_model_fits_and_is_left_as_it_was():
    model = network()
    model.compile("sgd", "mse")
    optimizer = keras.optimizers.Adam(0.03)
    before = [variable.numpy().copy() for variable in model.variables]
    report = run(model, compile={"optimizer": optimizer})
    assert report.fits
    assert report.cause is None
    assert report.message == ""
    assert report.mean_iou == pytest.approx(report.history["val_mean_iou"][-1])
    assert report.mean_iou >= 0.95
    assert report.steps == 10 * len(report.history["loss"]) < 60, "it stops once it fits"
    assert set(report.per_class) == {"ground", "red", "blue"}
    assert "the model fits them" in str(report)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["images"] == 4
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert type(model.optimizer) is keras.optimizers.SGD
    assert not optimizer.variables or int(optimizer.iterations) == 0


def test_the_default_settings_fit_too_and_the_weights_can_be_kept():
    model = network(momentum=0.9)
    report = run(model, compile=None, keep_weights=True, steps=200)
    assert report.fits
    images, labels = read_batch(blocks(), "train", 8, None)
    predicted = keras_deeplab.predict(model, images)
    assert np.mean(predicted == labels) > 0.95


def test_a_loss_sees_the_steps_on_the_optimizer_that_it_was_given():
    optimizer = keras.optimizers.Adam(0.03)
    optimizer.iterations.assign(7)
    mining = keras_deeplab.losses.HardPixelMining(0.25, warmup_steps=3, optimizer=optimizer)
    shares = []

    def loss(labels, logits):
        tf.py_function(lambda share: shares.append(float(share)), [mining.current_fraction()], [])
        return mining(labels, logits)

    run(network(), compile={"optimizer": optimizer, "loss": loss}, steps=5, target=0.999)
    np.testing.assert_allclose(shares[:5], [1, 0.75, 0.5, 0.25, 0.25])
    assert int(optimizer.iterations) == 7


@pytest.mark.parametrize(
    "labels, says",
    [
        (255, "All labels are 255"),
        (1, "labelled pixels are 'red'"),
        ([3, 1], "must be in 0..2. Received: [3]"),
    ],
)
def test_data(labels, says):
    source = blocks()
    source.labels[:] = 1
    source.labels[:, :, :16] = np.ravel(labels)[0]
    source.labels[:, :, 16:] = np.ravel(labels)[-1]
    report = run(network(), source)
    assert says in message(report)
    assert report.cause == "data"
    assert report.steps == 0
    assert report.mean_iou is None
    assert "Nothing was trained" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_images_of_one_colour():
    source = blocks()
    source.images[:] = 7
    assert "Every image has one colour" in message(run(network(), source))


def test_everything_frozen():
    model = network()
    model.trainable = False
    report = run(model)
    assert "No weight is trainable" in message(report)
    assert report.cause == "frozen"
    assert not model.trainable


def test_a_frozen_predictor():
    model = network()
    last = model.get_layer("logits")
    last.kernel.assign(tf.zeros_like(last.kernel))
    last.trainable = False
    report = run(model)
    assert "compute the logits are frozen: logits" in message(report)
    assert report.cause == "frozen"


def test_hardly_anything_to_train():
    model = network(lambda x: kl.Conv2D(8, 9, padding="same")(x))
    for layer in model.layers[:-1]:
        layer.trainable = False
    report = run(model, steps=2)
    assert report.cause == "frozen"
    assert "Only 27 of" in message(report)
    assert "backbone/conv" in message(report)


@keras.saving.register_keras_serializable(package="test_diagnosis")
class Cut(kl.Layer):
    def call(self, x):
        return tf.stop_gradient(x)


def test_a_cut_graph():
    report = run(network(lambda x: Cut(name="cut")(x)), steps=3)
    assert "does not depend on the weights of conv, norm" in message(report)
    assert report.cause == "gradients"


def test_weights_that_are_not_finite():
    model = network()
    model.get_layer("logits").bias.assign([np.nan, 0, 0])
    report = run(model)
    assert report.cause == "gradients"
    assert "are not finite before the first step" in message(report)
    assert report.steps == 1
    assert report.history["loss"] == [None]


def test_a_layer_without_effect():
    def middle(x):
        y = kl.Conv2D(8, 1, name="idle")(x)
        return kl.Add()([x, kl.Rescaling(0.0)(y)])

    report = run(network(middle), steps=3)
    assert report.cause == "gradients"
    assert "gradients of idle are zero" in message(report)


def test_dead_activations():
    model = network()
    model.get_layer("backbone").get_layer("norm").beta.assign([-1e3] * 8)
    report = run(model, rate=0.001)
    assert report.cause == "activations"
    assert "The backbone's output is the same at every pixel" in message(report)
    assert "from layer 'backbone/relu' on" in message(report)


def test_probabilities_instead_of_logits():
    report = run(network(after=kl.Softmax()), steps=2)
    assert report.cause == "activations"
    assert "remove the softmax" in message(report)


def test_a_learning_rate_that_is_too_small():
    report = run(network(), rate=1e-4, steps=20)
    assert report.cause == "learning_rate"
    assert "too low: the loss falls faster at ten times" in message(report)
    assert "at 0.001" in message(report), "the other rates are listed"


@pytest.mark.parametrize("rate", [300.0, 1e30])
def test_a_learning_rate_that_is_too_large(rate):
    optimizer = keras.optimizers.SGD(rate)
    report = run(network(), steps=20, compile={"optimizer": optimizer})
    assert report.cause == "learning_rate"
    assert "The learning rate is too high" in message(report)


def test_a_loss_that_nothing_lowers():
    flat = lambda labels, logits: 3.0 + 1e-9 * tf.reduce_mean(logits)  # noqa: E731
    report = run(network(), steps=10, compile={"optimizer": "sgd", "loss": flat})
    assert report.cause == "learning_rate"
    assert "does not fall, nor at a tenth or ten times" in message(report)


def test_moving_statistics_that_lag():
    model = network(momentum=0.9997)
    norm = model.get_layer("backbone").get_layer("norm")
    norm.moving_mean.assign([30.0] * 8)  # of other data, or of an odd conversion
    report = run(model)
    assert norm.momentum == 0.9997
    assert report.cause == "batch_norm"
    assert report.history["mean_iou"][-1] >= 0.95 > report.mean_iou
    assert "a smaller momentum than 0.9997" in message(report)
    assert "reestimate_batch_norm" in message(report)


@keras.saving.register_keras_serializable(package="test_diagnosis")
class TrainingOnly(kl.Layer):
    def call(self, x, training=False):
        return x if training else tf.reverse(x, [1])


def test_another_difference_between_training_and_inference():
    report = run(network(lambda x: TrainingOnly()(x)))
    assert report.cause == "batch_norm"
    assert "other than the batch norms differs between the modes" in message(report)


def lines() -> Arrays:
    """Squares with thin blue lines across them."""
    source = blocks()
    source.labels[source.labels == 2] = 0
    source.labels[:, ::4] = 2
    source.images[:] = painted(source.labels.astype(int), np.random.default_rng(1))
    return source


def test_a_predictor_too_coarse_for_the_labels():
    def coarse(x):
        x = kl.Conv2D(16, 8, strides=8, name="patch")(x)
        return x

    model = network(coarse, after=kl.UpSampling2D(8, interpolation="bilinear", name="up"))
    report = run(model, lines())
    assert report.cause == "plateau"
    assert re.search(r"per class: blue 0\.\d.*smaller output stride", message(report))


def test_too_few_steps():
    report = run(network(momentum=0.1), rate=0.03, steps=8, target=0.9999)
    assert report.cause == "steps"
    assert "more steps" in message(report)


def test_a_model_too_small_for_the_labels():
    random = np.random.default_rng(0)
    source = blocks()
    noise = random.random(source.labels.shape)  # which no pixel shows
    source.labels[noise < 0.08] = 1
    source.labels[noise > 0.92] = 2
    report = run(network(momentum=0.1), source, steps=90)
    assert report.cause == "plateau"
    assert "too few weights" in message(report)


def test_windows():
    image, label = np.zeros((20, 40, 3), np.uint8), np.zeros((20, 40), np.uint8)
    label[:10, 30:] = 1
    label[10:, 30:] = 2
    label[:, :5] = 255
    pixels, classes = _richest_crop(image, label, (20, 20))
    assert pixels.shape == (20, 20, 3)
    assert np.bincount(classes.ravel()).tolist() == [200, 100, 100], "the most even one"
    pixels, classes = _richest_crop(image, label, (24, 48))
    assert (classes[20:] == 255).all()
    assert (pixels[:, 40:] == 127.5).all()
    first, again = (read_batch(data.Shapes(train=30, val=0), "train", 4, None) for _ in "ab")
    np.testing.assert_array_equal(first[1], again[1])
    assert first[0].shape[0] == 4
    assert first[0].dtype == np.float32
    assert max(first[0].shape[1:3]) <= 112


class Supervised(DeepSupervision, keras.Model):
    """The small model with a second predictor that is only there in training."""

    def __init__(self) -> None:
        answer = network()
        super().__init__(answer.inputs, answer.outputs)
        head = kl.Conv2D(3, 1, name="auxiliary")
        second = head(answer.get_layer("logits").input)
        self._supervise([self.outputs[0], second], (1.0, 0.5), [head])


def test_auxiliary_logits_count_in_the_loss():
    model = Supervised()
    plain = run(network(), steps=1, rate=0.0).history["loss"][0]
    model.get_layer("auxiliary").set_weights(model.get_layer("logits").get_weights())
    assert run(model, steps=1, rate=0.0).history["loss"][0] == pytest.approx(1.5 * plain)
    assert run(model).fits


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"count": 0}, "`count` must be a positive integer"),
        ({"steps": 2.5}, "`steps` must be a positive integer"),
        ({"target": 1.0}, "`target` must be a number between 0 and 1"),
        ({"split": "test"}, "`split` must be one of"),
        ({"crop_size": (0, 8)}, "`crop_size` must be"),
        ({"compile": {"metrics": []}}, "must be a dict of 'optimizer' and 'loss'"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        run(network(), **arguments)


def test_a_model_for_other_data():
    with pytest.raises(ValueError, match="source's 6 classes. Received: a model from 3 .* 3"):
        run(network(), data.Shapes())
    inputs = keras.Input((16, 16, 3))
    fixed = keras.Model(inputs, kl.Conv2D(3, 1)(inputs))
    with pytest.raises(ValueError, match=r"the model's size \(16, 16\)"):
        run(fixed, crop_size=(32, 32))
    assert run(fixed, steps=1).crop_size == (16, 16)
