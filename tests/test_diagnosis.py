"""A sound model fits a few images; planted in it, each fault is the one that is named."""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import cache, partial, partialmethod
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from PIL import Image

import keras_deeplab
from keras_deeplab import data, diagnosis
from keras_deeplab.diagnosis import _OneBatch, default_optimizer, read_batch
from keras_deeplab.graph.network import all_layers
from keras_deeplab.models.deep_supervision import DeepSupervision

COLORS = np.array([[60, 60, 60], [220, 60, 60], [60, 60, 220]])


class Arrays(data.Source):
    """Pictures and label maps in memory."""

    info = data.DatasetInfo(("ground", "red", "blue"))
    splits = ("train",)

    def __init__(self, labels: np.ndarray) -> None:
        pixels = COLORS[labels % 3] + np.random.default_rng(1).normal(0, 10, (*labels.shape, 3))
        self.images, self.labels = np.uint8(np.clip(pixels, 0, 255)), labels.astype(np.uint8)

    def names(self, split: str) -> list[str]:
        return [str(index) for index in range(len(self.images))]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        order = tf.data.Dataset.range(len(self.images)) if numbers is None else numbers
        images, labels = tf.constant(self.images), tf.constant(self.labels)
        return order.map(lambda index: (images[index], labels[index]))


def blocks(cell: int = 8) -> Arrays:
    """Noisy squares whose colour is their class."""
    coarse = np.random.default_rng(0).integers(0, 3, (4, 32 // cell, 32 // cell))
    return Arrays(coarse.repeat(cell, 1).repeat(cell, 2))


def network(middle=lambda x: x, momentum=0.5, after=lambda x: x, **norm) -> keras.Model:
    """A small model with a backbone: a convolution with norm, then a predictor."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((None, None, 3))
    x = kl.Conv2D(8, 3, padding="same", name="conv")(pixels)
    x = kl.BatchNormalization(momentum=momentum, name="norm", **norm)(x)
    backbone = keras.Model(pixels, kl.ReLU(name="relu")(x), name="backbone")
    inputs = keras.Input((None, None, 3))
    x = middle(backbone(kl.Rescaling(1 / 127.5, -1, name="scale")(inputs)))
    return keras.Model(inputs, after(kl.Conv2D(3, 1, name="logits")(x)))


@cache
def batch_of_blocks() -> tuple[np.ndarray, np.ndarray]:
    return read_batch(blocks(), 4, None)


def run(model: keras.Model, source: data.Source | None = None, rate: float = 0.03, **arguments):
    arguments = {"steps": 60, "verbose": 0, "optimizer": keras.optimizers.Adam(rate), **arguments}
    with ExitStack() as stack:
        replace = stack.enter_context
        if source is None:
            replace(mock.patch.object(diagnosis, "read_batch", return_value=batch_of_blocks()))
        if arguments["steps"] <= 10:  # a few steps are not worth compiling
            eager_compile = partialmethod(keras.Model.compile, run_eagerly=True)
            replace(mock.patch.object(_OneBatch, "compile", eager_compile))
            replace(mock.patch.object(diagnosis, "STEPS_PER_EPOCH", arguments["steps"]))
        return keras_deeplab.overfit(model, source or blocks(), **arguments)


@pytest.mark.slow
def test_a_sound_model_fits_and_is_left_as_it_was():
    model = network()
    model.compile("sgd", "mse")
    optimizer = default_optimizer(model)
    before = [variable.numpy().copy() for variable in model.variables]
    report = run(model, optimizer=optimizer)
    assert report.fits
    assert report.message == ""
    assert report.history["val_mean_iou"][-1] >= 0.95
    assert len(report.history["loss"]) < 6, "it stops once it fits"
    assert report.shape == (4, 32, 32)
    assert str(report).startswith("4 images of 32x32 after ")
    assert "the model fits them" in str(report)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert type(model.optimizer) is keras.optimizers.SGD
    assert int(optimizer.iterations) == 0


def test_a_data_set_by_its_name(tmp_path):
    pixels = np.zeros((24, 24, 3), np.uint8)
    for kind, array in (("images", pixels), ("labels", pixels[..., 0])):
        (tmp_path / "train" / kind).mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / "train" / kind / "a.png")
    (tmp_path / "dataset.json").write_text('{"classes": ["a", "b"]}')
    for name in (tmp_path, str(tmp_path)):
        with pytest.raises(ValueError, match="the source's 2 classes. Received: model="):
            keras_deeplab.overfit(network(), name, 1)


@pytest.mark.slow
def test_a_loss_reads_the_steps_of_the_optimizer():
    optimizer = keras.optimizers.Adam(0.03)
    mining = keras_deeplab.losses.HardPixelMining(0.25, warmup_steps=3, optimizer=optimizer)
    shares = []

    def loss(labels, logits):
        shares.append(float(mining.current_fraction()))
        return mining(labels, logits)

    run(network(), optimizer=optimizer, loss=loss, steps=5, target=0)
    np.testing.assert_allclose(shares[1:6], [1, 0.75, 0.5, 0.25, 0.25])


@pytest.mark.parametrize("classes", [[255, 255], [1, 1], [3, 1]])
def test_labels(classes):
    source = blocks()
    source.labels[:, :, :16], source.labels[:, :, 16:] = classes
    report = run(network(), source)
    assert (report.cause, report.history) == ("data", {})
    shown = sorted({*classes} - {255})
    message = f"two classes at least, in 0..2 (255 is ignored). Received: {shown}. Do the label"
    assert message in str(report)


@keras.saving.register_keras_serializable(package="test_diagnosis")
class Cut(kl.Layer):
    def call(self, x):
        return tf.stop_gradient(x)


@keras.saving.register_keras_serializable(package="test_diagnosis")
class TrainingOnly(kl.Layer):
    def call(self, x, training=False):
        return x if training else tf.reverse(x, [1])


def frozen(*names, **options):
    model = network(**options)
    for name in names:
        model.get_layer(name).trainable = False
    return model


def altered(path, weight, value, **options):
    model = network(**options)
    variable = getattr(all_layers(model)[path], weight)
    variable.assign(np.full(variable.shape, value))
    return model


def mislabelled():
    """Blocks with labels here and there that no pixel shows."""
    source, noise = blocks(), np.random.default_rng(0).random((4, 32, 32))
    source.labels[noise < 0.08] = 1
    source.labels[noise > 0.92] = 2
    return source


SHORT = {"steps": 3}
SLOW, BLOCKS = {"rate": 1e-3}, {"source": mislabelled()}
FAST, ENDLESS = ({"optimizer": keras.optimizers.SGD(rate)} for rate in (300.0, 1e30))
everything = partial(frozen, "backbone", "logits")
predictor = partial(frozen, "logits")
most = partial(frozen, "backbone", "large", middle=kl.Conv2D(8, 9, padding="same", name="large"))
cut, modes = (partial(network, layer()) for layer in (Cut, TrainingOnly))
not_finite = partial(altered, "logits", "bias", np.nan)
dead = partial(altered, "backbone/norm", "beta", -1e3)
lagging = partial(altered, "backbone/norm", "moving_mean", 30.0, momentum=0.9997)
softmax = partial(network, after=kl.Softmax())
quick_norms = partial(network, momentum=0.1)
FAULTS = {
    "frozen": (everything, {}, "frozen", "0 of 283 weights .* frozen: .*conv, norm, logits"),
    "frozen predictor": (predictor, SHORT, "frozen", "are trainable; frozen: logits"),
    "hardly trainable": (most, SHORT, "frozen", "27 of .* frozen: .*conv, norm"),
    "cut": (cut, SHORT, "gradients", "no gradients of .*conv/kernel.*stop_gradient"),
    "not finite": (not_finite, SHORT, "gradients", "no gradients of .*NaN in the weights"),
    "dead": (dead, SLOW | SHORT, "gradients", "no gradients of .*conv/kernel.* dead"),
    "softmax": (softmax, SLOW | SHORT, "outputs", "remove the model's softmax"),
    "slow": (network, SLOW | SHORT, "learning_rate", "too low: .* at 0.001, .* at 0.01"),
    "fast": (network, FAST | SHORT, "learning_rate", "too high: .* at 3e"),
    "diverging": (network, ENDLESS | SHORT, "learning_rate", "too high: .*nan at 1e"),
    "lagging": (lagging, {}, "batch_norm", "lag behind .* a smaller momentum, or .*reestimate"),
    "modes": (modes, {}, "batch_norm", "differs between the modes"),
    "renorm": (partial(network, renorm=True), SLOW | {"steps": 6}, "learning_rate", "too low"),
    "short": (quick_norms, {"steps": 8, "target": 1.0}, "steps", "train more steps"),
    "mislabelled": (quick_norms, BLOCKS | {"steps": 90}, "plateau", "smaller output stride"),
}


@pytest.mark.slow
@pytest.mark.parametrize("build, arguments, cause, message", FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_named(build, arguments, cause, message):
    model = build()
    before = [variable.numpy().copy() for variable in model.variables]
    report = run(model, **arguments)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert not report.fits
    assert report.cause == cause, report
    assert f"the model does not fit them.\n  CAUSE {cause}: {report.message}" in str(report)
    assert re.search(message, report.message), report


@pytest.mark.slow
def test_other_learning_rates_begin_with_the_same_weights():
    losses, train = [], _OneBatch.train

    def recorded(self, *arguments):
        history = train(self, *arguments)
        losses.append(self.first_loss)
        return history

    with mock.patch.object(_OneBatch, "train", recorded):
        run(network(), **SLOW | SHORT)
    np.testing.assert_allclose(losses, [losses[0]] * 3, rtol=1e-5)


@pytest.mark.slow
def test_a_batch_is_the_same_crops_around_rare_classes():
    label = np.zeros((3, 40, 60), np.int64)
    label[:, 30:, 50:] = 1
    source = Arrays(label)
    (images, labels), (_, again) = (read_batch(source, 9, (20, 24)) for _ in "ab")
    assert (images.shape, images.dtype) == ((3, 20, 24, 3), np.float32)
    np.testing.assert_array_equal(labels, again)
    assert (labels == 1).any((1, 2)).sum() > 1  # at random, a crop has it once in ten
    images, labels = read_batch(source, 2, (48, 80))
    assert labels.shape == (2, 48, 80)
    np.testing.assert_array_equal(np.bincount(labels.ravel())[[0, 1]], [4600, 200])
    assert (images[labels == 255] == 127.5).all()
    assert read_batch(Arrays(np.zeros((2, 20, 200), int)), 1, None)[1].shape == (1, 20, 160)


class Supervised(DeepSupervision, keras.Model):
    """The small model with a second predictor that is only there in training."""

    def __init__(self) -> None:
        plain = network()
        super().__init__(plain.inputs, plain.outputs)
        head = kl.Conv2D(3, 1, name="auxiliary")
        second = head(plain.get_layer("logits").input)
        self._supervise([self.outputs[0], second], (1.0, 0.5), [head])


def test_auxiliary_logits_count_in_the_loss():
    model = Supervised()
    model.get_layer("auxiliary").set_weights(model.get_layer("logits").get_weights())
    losses = [run(m, steps=1, rate=0.0, target=0).history["loss"][0] for m in (network(), model)]
    assert losses[1] == pytest.approx(1.5 * losses[0])


@pytest.mark.slow
def test_wrong_arguments():
    model = network()
    inputs = keras.Input((16, 16, 3))
    fixed = keras.Model(inputs, kl.Conv2D(3, 1)(inputs))
    assert run(fixed, blocks(), steps=1, target=0).shape == (4, 16, 16)
    with pytest.raises(ValueError, match="16, 16"):
        run(fixed, blocks(), crop_size=(32, 32))
    for arguments, message in (
        ({"count": 0}, "`count` must be a positive integer"),
        ({"steps": 2.5}, "`steps` must be a positive integer"),
        ({"target": 1.1}, "`target` must be a number in"),
        ({"crop_size": (0, 8), "source": blocks()}, "`crop_size` must be"),
        ({"source": data.Shapes()}, "source's 6 classes. Received: .*'classes': 3"),
        ({"source": Arrays(np.zeros((0, 32, 32), int))}, "`source` must be a source with"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, **arguments)
