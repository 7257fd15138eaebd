"""What holds for all models, on small networks."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate, image
from networks import tiny

import keras_deeplab
from keras_deeplab import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus, SPPNet, UNet
from keras_deeplab.graph import geometry
from keras_deeplab.graph.network import leaf_layers


def backbone(more: dict) -> keras.Model:
    return tiny(more.get("input_shape", (None, None, 3))[2])


SMALL = {
    "v1": lambda **more: DeepLabV1(3, backbone(more), head_filters=16, **more),
    "v2": lambda **more: DeepLabV2(3, backbone(more), **more),
    "v2_branches": lambda **more: DeepLabV2(
        3, backbone(more), head_filters=8, aspp_rates=(2, 4), **more
    ),
    "v3": lambda **more: DeepLabV3(3, backbone(more), aspp_filters=8, head_filters=8, **more),
    "v3_plus": lambda **more: DeepLabV3Plus(
        3, backbone(more), aspp_filters=8, decoder_filters=8, **more
    ),
    "unet": lambda **more: UNet(3, filters=4, depth=2, **more),
    "unet_over": lambda **more: UNet(3, backbone(more), filters=4, **more),
    "spp": lambda **more: SPPNet(3, backbone(more), levels=(3, 2, 1), dense=(12, 10), **more),
}
MODELS: dict[str, keras.Model] = {}


@pytest.fixture(params=SMALL)
def name(request) -> str:
    return request.param


@pytest.fixture
def model(name) -> keras.Model:
    if name not in MODELS:
        MODELS[name] = calibrate(SMALL[name](), image(64, 64, batch=2))
    return MODELS[name]


def output_shape(model: keras.Model, batch: int, size: tuple[int, int], classes: int = 3) -> tuple:
    return (batch, classes) if isinstance(model, SPPNet) else (batch, *size, classes)


def test_logits_for_an_image_of_any_size(model):
    for size in ((1, 1), (64, 33)):
        x = image(*size).round()
        logits = model(x)
        assert logits.shape == output_shape(model, 1, size)
        assert logits.dtype == "float32"
        assert np.isfinite(logits).all()
        assert np.std(logits) > 1e-2
    np.testing.assert_allclose(model(x.astype("uint8")), logits, rtol=1e-4, atol=1e-4)


def test_other_channels_at_a_fixed_size(name):
    model = SMALL[name](input_shape=(31, 18, 4))
    assert model.input_shape == (None, 31, 18, 4)
    assert model.output_shape == output_shape(model, None, (31, 18))
    assert model(image(31, 18, channels=4)).shape == output_shape(model, 1, (31, 18))


def test_a_file_gives_the_same_model_and_logits(model, tmp_path: Path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    x = image(45, 61)
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize("name", ["v3"], indirect=True)
def test_arguments_cannot_be_changed_from_outside(model):
    before = json.dumps(model.get_config())
    config = model.get_config()
    config["backbone_options"]["padding"] = "same"
    config["num_classes"] = 7
    assert json.dumps(model.get_config()) == before
    with pytest.raises(TypeError):
        model._arguments["num_classes"] = 7


@pytest.mark.parametrize("name", ["v3_plus", "unet", "spp"], indirect=True)
def test_exported_it_serves_probabilities_at_any_size(model, tmp_path: Path):
    is_classifier = isinstance(model, SPPNet)
    if is_classifier:
        path = keras_deeplab.export.classifier(model, tmp_path / "served")
        served = tf.saved_model.load(str(path))
    else:
        keras_deeplab.export.saved_model(model, tmp_path / "served")
        served = tf.saved_model.load(str(tmp_path / "served"))
    for size in ((1, 1), (33, 47)):
        x = image(*size).astype("uint8")
        expected = tf.nn.softmax(model(x))
        found = (
            tf.nn.softmax(served.serve(x.astype("float32")))
            if is_classifier
            else served.signatures["serving_default"](images=tf.constant(x))["probabilities"]
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["v1", "v2", "v3", "v3_plus"], indirect=True)
def test_the_output_stride_can_be_changed(model):
    stride = model.output_stride
    fine = model.with_output_stride(stride // 2)
    assert type(fine) is type(model)
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
    back, pixels = fine.with_output_stride(stride), image(33, 47)
    assert json.dumps(back.get_config()) == json.dumps(model.get_config())
    np.testing.assert_allclose(back(pixels), model(pixels), rtol=1e-5, atol=1e-5)


def test_other_classes_keep_all_but_the_predictors(model, logs):
    other = model.with_num_classes(5)
    assert type(other) is type(model)
    assert other.num_classes == other.output_shape[-1] == 5
    missing = logs.text.rpartition("missing keys: ")[2].strip().split(", ")
    assert all(path.startswith("logits") for path in missing)
    new = leaf_layers(other)
    for path, layer in leaf_layers(model).items():
        if path not in missing:
            for old, copied in zip(layer.weights, new[path].weights, strict=True):
                assert old is not copied
                np.testing.assert_array_equal(old, copied)


@pytest.mark.parametrize("name", ["v2_branches", "v3_plus", "unet", "spp"], indirect=True)
def test_mixed_precision_is_part_of_the_model(name):
    model = calibrate(SMALL[name](dtype="mixed_bfloat16"), image(64, 64, batch=2))
    assert keras.config.dtype_policy().name == "float32"
    assert {weight.dtype for weight in model.weights} == {"float32"}
    x = image(45, 64)
    logits = model(x)
    assert logits.dtype == "float32"
    full = model.with_dtype("float32")
    assert (model.get_config()["dtype"], full.get_config()["dtype"]) == (
        "mixed_bfloat16",
        "float32",
    )
    # Alike where the backbone is a network of its own precision and the head is one predictor.
    assert 0 <= np.abs(full(x) - logits).mean() < 0.15 * np.std(logits)


def test_every_weight_learns(model):
    """A gradient for each, in training, and a step against it lowers the loss."""
    x, random = image(64, 96, batch=2), np.random.default_rng(0)
    logits = model(x)
    labels = random.integers(0, 3, logits.shape[:-1])
    before = [weight.numpy() for weight in model.trainable_weights]

    def loss():
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(x))
        return tf.reduce_mean(each)

    variables = [weight.value for weight in model.trainable_weights]
    with tf.GradientTape() as tape:
        first = loss()
    gradients = tape.gradient(first, variables)
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert gradient is not None, weight.path
        assert np.isfinite(gradient).all()
    assert np.mean([np.abs(gradient).max() > 0 for gradient in gradients]) > 0.9
    norm = tf.linalg.global_norm(gradients)
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        weight.assign(weight - 1e-3 / norm * gradient)
    assert float(loss()) < float(first)
    for weight, value in zip(model.trainable_weights, before, strict=True):
        weight.assign(value)


@pytest.mark.parametrize("name", ["v1"], indirect=True)
def test_corners_can_be_aligned(model):
    """The authors' resizing leaves the coarse logits where they are at sizes of 8 n + 1."""
    assert model.get_config()["align_corners"] is True
    x = image(65, 97)
    inside = keras.Model(model.input, model.get_layer("logits").output)
    np.testing.assert_allclose(model(x)[:, ::8, ::8], inside(x), rtol=1e-4, atol=1e-5)
    half_pixels = SMALL["v1"](align_corners=False)
    half_pixels.set_weights(model.get_weights())
    assert np.abs(half_pixels(x) - model(x)).max() > 1e-2


@pytest.mark.parametrize("name", ["v1"], indirect=True)
def test_the_loss_of_v1_is_taken_on_shrunk_labels(model):
    """A coarse loss on the coarse logits and every eighth label."""
    x = image(65, 97, batch=2)
    labels = np.random.default_rng(0).integers(0, 3, (2, 65, 97))
    labels[:, :9] = 255
    coarse = keras.Model(model.input, model.get_layer("logits").output)(x)
    expected = float(keras_deeplab.losses.CrossEntropy()(labels[:, ::8, ::8], coarse))
    found = keras_deeplab.losses.CrossEntropy(stride=8)(labels, model(x))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    whole = keras_deeplab.losses.CrossEntropy()(labels, model(x))
    assert float(whole) != pytest.approx(expected, rel=1e-3)
