from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import image
from keras import layers as kl
from models.networks import calibrated

import keras_deeplab
from keras_deeplab import MultiScale, calibrate
from keras_deeplab import calibration as scaling

PIXELS = image(33, 41, batch=2)
PAIRS = tf.data.Dataset.from_tensors((PIXELS, np.zeros(PIXELS.shape[:3], np.int32)))


def drawn_labels(logits, seed=0):
    """Labels drawn from the probabilities of logits, so that those are calibrated."""
    noise = np.random.default_rng(seed).gumbel(size=logits.shape)
    return (logits + noise).argmax(-1).astype(np.int32)


def standard_error(logits):
    """Relative error of a temperature fitted to `drawn_labels`: 1 / sqrt(Fisher information).

    The information of one pixel is the variance of its logits under their probabilities.
    """
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    mean = (probabilities * logits).sum(-1)
    variance = (probabilities * logits**2).sum(-1) - mean**2
    return 1 / math.sqrt(variance.sum())


def copied(model):
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


@pytest.mark.parametrize("name", ["v1", "v2", "v2_branches", "v3_plus", "unet", "spp"])
def test_logits_are_divided(name):
    model = calibrated(name)
    before, weights = model(PIXELS).numpy(), model.get_weights()
    scaling.divide_logits(model, 1.7)
    after = model(PIXELS).numpy()
    model.set_weights(weights)  # other tests use it
    np.testing.assert_allclose(after, before / 1.7, atol=1e-6 * np.abs(before).max())
    # Two classes that are equal but for rounding may change places.
    chosen = np.take_along_axis(before, after.argmax(-1)[..., None], -1)[..., 0]
    assert (chosen >= before.max(-1) - 1e-6 * np.abs(before).max()).all()


@pytest.mark.slow
def test_an_auxiliary_head_is_divided_alike():
    model = copied(calibrated("v3_auxiliary"))
    before = [x.numpy() for x in model.training_graph(PIXELS, training=False)]
    scaling.divide_logits(model, 4)
    for old, new in zip(before, model.training_graph(PIXELS, training=False), strict=True):
        np.testing.assert_allclose(new, old / 4, atol=1e-6 * np.abs(old).max())


def with_spread(model, spread=2.0):
    """A copy whose logits, and so its probabilities, differ from pixel to pixel."""
    model = copied(model)
    scaling.divide_logits(model, float(np.std(model(PIXELS))) / spread)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "fusion, scales, flip",
    [
        (None, (), False),
        ("max", (0.5, 1.0), False),
        ("mean", (0.5, 1.0), True),
        ("mean around a maximum", (1.0, 1.5), False),
    ],
)
def test_an_overconfident_model_gets_its_temperature(fusion, scales, flip, eager):
    network = with_spread(calibrated("v2"))
    model = network
    if fusion == "mean around a maximum":
        fusion, model = "mean", MultiScale(network, (0.5, 1.0))
    if fusion:
        model = MultiScale(model, scales, fusion=fusion, flip=flip)
    pixels = image(96, 128, batch=4, seed=3)
    logits = model(pixels).numpy()
    truth = drawn_labels(logits)
    truth[:, :9] = 255
    pairs = tf.data.Dataset.from_tensor_slices((pixels, truth)).batch(2)
    scaling.divide_logits(network, 1 / 3)
    report = calibrate(model, pairs)
    error = standard_error(logits[:, 9:])
    assert error < 0.02
    assert report["temperature"] == pytest.approx(3, rel=4 * error)
    assert report["pixels"] == 4 * 87 * 128
    likelihood, errors = (
        report[name] for name in ("negative_log_likelihood", "expected_calibration_error")
    )
    assert likelihood["after"] < 0.95 * likelihood["before"]
    assert errors["after"] < 0.02 < 0.05 < errors["before"]
    scale = 3 / report["temperature"]
    if fusion != "mean":  # exactly what dividing by the temperature gives
        np.testing.assert_allclose(model(pixels), logits * scale, atol=2e-6 * np.abs(logits).max())
    again = scaling.fit_temperature(model, pairs)
    assert again["temperature"] == pytest.approx(1, abs=1e-3)
    key = "negative_log_likelihood"
    assert again[key]["before"] == pytest.approx(report[key]["after"], abs=1e-5)


@pytest.mark.slow
def test_the_likelihood_is_that_of_keras(eager):
    model = with_spread(calibrated("v3"))
    logits = model(PIXELS).numpy()
    truth = drawn_labels(2 * logits)
    report = scaling.fit_temperature(model, tf.data.Dataset.from_tensors((PIXELS, truth)))
    best, found = report["temperature"], report["negative_log_likelihood"]
    before, after, *others = (
        np.mean(keras.losses.sparse_categorical_crossentropy(truth, logits / t, from_logits=True))
        for t in (1.0, best, best / 1.02, best * 1.02)
    )
    assert (found["before"], found["after"]) == pytest.approx((before, after), rel=1e-5)
    assert min(others) > found["after"]


def test_a_sample_is_even_bounded_and_set_by_the_seed(monkeypatch):
    """The class is the row of the image, so that counts of labels show how evenly it is drawn."""
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, kl.Conv2D(4, 1)(inputs))
    monkeypatch.setattr(scaling, "VALUES", 4 * 400)
    pixels = np.arange(3 * 4 * 1000, dtype=np.float32).reshape(3, 4, 1000, 1)
    truth = np.broadcast_to(np.arange(4)[:, None], (3, 4, 1000)).astype(np.int32)
    pairs = tf.data.Dataset.from_tensor_slices((pixels, truth)).batch(1)
    logits, labels = scaling._sample(model, pairs, 255, seed=1)
    assert logits.shape == (400, 1, 4)
    assert np.bincount(labels, minlength=4).min() > 400 / 4 * 0.7
    kernel = model.get_weights()[0].ravel()
    place = np.rint(logits[:, 0, 0] / kernel[0]).astype(int)
    np.testing.assert_array_equal(place // 1000 % 4, labels)
    assert len(set(place)) == 400
    assert np.bincount(place // 4000, minlength=3).min() > 400 / 3 * 0.7
    assert scaling.fit_temperature(model, pairs, seed=1) == scaling.fit_temperature(
        model, pairs, seed=1
    )
    other, _ = scaling._sample(model, pairs, 255, seed=2)
    assert not np.array_equal(np.sort(other, 0), np.sort(logits, 0))
    assert scaling.fit_temperature(model, pairs, seed=2) != scaling.fit_temperature(
        model, pairs, seed=1
    )
    both = MultiScale(model, (1.0,), fusion="mean", flip=True)
    assert scaling._sample(both, pairs, 255, seed=1)[0].shape == (200, 2, 4)


def ending_in(*layers):
    inputs = x = keras.Input((None, None, 3))
    for layer in (kl.Conv2D(4, 1, name="inner"), *layers):
        x = layer(x)
    return keras.Model(inputs, x)


def test_networks_of_users():
    model = ending_in(
        kl.ReLU(), kl.Conv2D(3, 1, name="last"), kl.UpSampling2D(2), kl.Identity(), kl.Dropout(0.5)
    )
    assert [layer.name for layer in scaling.last_layers(model)] == ["last"]
    transposed = ending_in(kl.Conv2DTranspose(3, 2, 2, use_bias=False, name="up"))
    outer = keras.Sequential([keras.Input((None, None, 3)), transposed])
    before = outer(PIXELS).numpy()
    scaling.divide_logits(outer, 2)
    np.testing.assert_allclose(outer(PIXELS), before / 2)


def test_one_of_several_outputs_of_a_nested_model():
    inputs = keras.Input((None, None, 3))
    features = kl.Conv2D(4, 1, name="features")(inputs)
    logits = kl.Conv2D(3, 1, name="last")(kl.ReLU()(features))
    inner = keras.Model(inputs, [features, logits])
    model = keras.Model(inputs, inner(inputs)[1])
    assert [layer.name for layer in scaling.last_layers(model)] == ["last"]


SHARED = kl.Conv2D(4, 1, name="shared")


@pytest.mark.parametrize(
    "layers, name",
    [
        ([kl.Softmax(name="soft")], "soft"),
        ([kl.Conv2D(3, 1, activation="relu", name="active")], "active"),
        ([kl.Conv2D(3, 1), kl.BatchNormalization(name="norm"), kl.UpSampling2D()], "norm"),
        ([SHARED, kl.ReLU(), SHARED], "shared"),
    ],
)
def test_a_model_that_does_not_end_in_linear_layers_is_refused(layers, name):
    with pytest.raises(ValueError, match=f"`model` must have logits that come.*'{name}'"):
        calibrate(ending_in(*layers), PAIRS)


@pytest.mark.parametrize("hidden", [[], [kl.Conv2D(3, 3, padding="same")]])
def test_logits_that_are_refined_are_refused(hidden):
    inputs = keras.Input((None, None, 3))
    x = rough = kl.Conv2D(3, 1, name="rough")(inputs)
    for layer in (*hidden, kl.ReLU(), kl.Conv2D(3, 1)):
        x = layer(x)
    with pytest.raises(ValueError, match="used once.*'rough' \\(Conv2D\\) is none of these"):
        scaling.divide_logits(keras.Model(inputs, kl.Add()([rough, x])), 2.0)
    resized = keras_deeplab.layers.ResizeLike()(rough, rough)  # the size only
    scaling.divide_logits(keras.Model(inputs, resized), 2.0)


def test_wrong_arguments():
    network = calibrated("v3")
    mean = MultiScale(network, (0.5, 1.0), fusion="mean")
    pairs = tf.data.Dataset.from_tensors((PIXELS, np.full(PIXELS.shape[:3], 255)))
    for arguments, message in (
        ((network, pairs), "`dataset` must be of images with pixels that are not ignored"),
        ((network, pairs.map(lambda x, y: (x, y[:, 1:]))), "of the size of"),
        ((network, pairs, 254), "labels must be in"),
        ((network, pairs, 255, -1), "`seed` must be"),
        ((MultiScale(mean, (1.0,)), pairs), "`model` must be a single MultiScale of means"),
        (("model", pairs), "`model` must be a keras.Model"),
    ):
        with pytest.raises(ValueError, match=message):
            scaling.fit_temperature(*arguments)


def pixelwise(weight=1.0):
    inputs = keras.Input((None, None, 3))
    layer = kl.Conv2D(3, 1, kernel_initializer=keras.initializers.Constant(weight))
    return keras.Model(inputs, layer(inputs))


def test_a_network_that_feeds_itself_is_refused():
    inner, inputs = pixelwise(), keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="used once"):
        scaling.divide_logits(keras.Model(inputs, inner(inner(inputs))), 2.0)


def test_a_linear_activation_after_the_logits():
    inner, inputs = pixelwise(0.5), keras.Input((None, None, 3))
    model = keras.Model(inputs, kl.Activation("linear", dtype="float32")(inner(inputs)))
    before = model(PIXELS).numpy()
    scaling.divide_logits(model, 4.0)
    np.testing.assert_allclose(model(PIXELS), before / 4, rtol=1e-6)


@pytest.mark.slow
def test_logits_that_are_not_finite_and_temperatures_at_the_end_of_the_range(caplog, eager):
    with pytest.raises(ValueError, match="finite logits"):
        scaling.fit_temperature(pixelwise(np.nan), PAIRS)
    report = scaling.fit_temperature(with_spread(calibrated("v3")), PAIRS.map(always_right))
    assert report["temperature"] == pytest.approx(scaling.RANGE[0], rel=0.1)
    assert "at the end of its range" in caplog.text


def always_right(pixels, truth):
    logits = calibrated("v3")(pixels)
    return pixels, tf.argmax(logits, -1, tf.int32)


def test_images_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="images of the model's input shape"):
        calibrate(pixelwise(), PAIRS.map(lambda x, y: (x[..., :1], y)))
