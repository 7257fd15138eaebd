"""What holds for all DeepLabs, on a small network."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate, image
from networks import tiny

import keras_deeplab
from keras_deeplab import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus
from keras_deeplab.graph import geometry

SMALL = {
    "v1": lambda **more: DeepLabV1(3, tiny(), head_filters=16, **more),
    "v2": lambda **more: DeepLabV2(3, tiny(), **more),
    "v2_branches": lambda **more: DeepLabV2(3, tiny(), head_filters=8, aspp_rates=(2, 4), **more),
    "v3": lambda **more: DeepLabV3(3, tiny(), aspp_filters=8, head_filters=8, **more),
    "v3_plus": lambda **more: DeepLabV3Plus(3, tiny(), aspp_filters=8, decoder_filters=8, **more),
}


@pytest.fixture(scope="module", params=SMALL)
def model(request) -> keras.Model:
    return calibrate(SMALL[request.param](), image(64, 64, batch=2))


@pytest.mark.parametrize("size", [(1, 1), (97, 129), (64, 33)])
def test_logits_have_the_size_of_the_image(model, size):
    logits = model(image(*size))
    assert logits.shape == (1, *size, 3)
    assert logits.dtype == "float32"
    assert np.isfinite(logits).all()
    assert np.std(logits) > 1e-2


def test_a_file_gives_the_same_model_and_logits(model, tmp_path: Path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    plain, again = model.get_config(), loaded.get_config()
    assert again.pop("backbone")["config"]["name"] == plain.pop("backbone")["config"]["name"]
    assert again == plain
    x = image(45, 61)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_exported_it_answers_alike(model, tmp_path: Path):
    keras_deeplab.export.saved_model(model, tmp_path / "served")
    served = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    x = image(33, 47).astype("uint8")
    expected = tf.nn.softmax(model(x)).numpy()
    np.testing.assert_allclose(served(images=tf.constant(x))["probabilities"], expected, atol=1e-4)


def test_the_output_stride_can_be_changed(model):
    stride = model.output_stride
    fine = model.with_output_stride(stride // 2)
    assert type(fine) is type(model)
    assert fine.transfer_report.missing_keys == ()
    rates, before = fine.get_config()["aspp_rates"], model.get_config()["aspp_rates"]
    assert rates == tuple(2 * rate for rate in before)
    # Where the coarse map has a sample, the features are the same, and so is what the head makes
    # of them: its dilated kernels meet the same features.
    x = (image(64, 96) - 128) / 64
    features, finer = (keras.tree.flatten(m.backbone(x))[0].numpy() for m in (model, fine))
    at, to = (geometry(m.backbone, 64, 96).outputs[0].offset for m in (model, fine))
    row, column = (int(a - b) // (stride // 2) for a, b in zip(at, to, strict=True))
    same = finer[:, row::2, column::2]
    np.testing.assert_allclose(same, features, atol=1e-4 * features.std())
    with pytest.raises(ValueError, match="`output_stride`"):
        model.with_output_stride(12)


def test_other_classes_keep_all_but_the_predictors(model, logs):
    other = model.with_num_classes(5)
    assert other.output_shape[-1] == 5
    assert all(name.startswith("logits") for name in other.transfer_report.missing_keys)
    assert other.transfer_report.missing_keys
    assert "missing keys: logits" in logs.text


@pytest.mark.parametrize("name", SMALL)
def test_twenty_steps_on_one_batch_halve_the_loss(name):
    model = SMALL[name](dropout=0.0)
    model.compile(keras.optimizers.Adam(1e-2), keras_deeplab.losses.CrossEntropy())
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(0, 3, (4, 2, 3)), np.ones((1, 32, 32), int))
    pixels = 60 + 60 * labels[..., None] + random.normal(0, 10, (*labels.shape, 3))
    losses = [float(model.train_on_batch(pixels, labels)) for _ in range(20)]
    # Keras gives the mean of all steps so far.
    last = 20 * losses[-1] - 19 * losses[-2]
    assert last < 0.5 * losses[0]


def test_corners_can_be_aligned():
    """The authors' resizing leaves the coarse logits where they are at sizes of 8 n + 1."""
    model = calibrate(SMALL["v1"](), image(64, 64, batch=2))
    assert model.get_config()["align_corners"] is True
    x = image(65, 97)
    inside = keras.Model(model.input, model.get_layer("logits").output)
    np.testing.assert_allclose(model(x)[:, ::8, ::8], inside(x), rtol=1e-4, atol=1e-5)
    half_pixels = SMALL["v1"](align_corners=False)
    half_pixels.set_weights(model.get_weights())
    assert np.abs(half_pixels(x) - model(x)).max() > 1e-2


def test_the_loss_of_v1_is_taken_on_shrunk_labels():
    """A coarse loss on the coarse logits and every eighth label."""
    model = calibrate(SMALL["v1"](), image(64, 64, batch=2))
    x = image(65, 97, batch=2)
    labels = np.random.default_rng(0).integers(0, 3, (2, 65, 97))
    labels[:, :9] = 255
    coarse = keras.Model(model.input, model.get_layer("logits").output)(x)
    expected = keras_deeplab.losses.CrossEntropy()(labels[:, ::8, ::8], coarse)
    found = keras_deeplab.losses.CrossEntropy(stride=8)(labels, model(x))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(keras_deeplab.losses.CrossEntropy()(labels, model(x))) != pytest.approx(
        float(expected), rel=1e-3
    )
