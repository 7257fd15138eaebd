"""What holds for all models, on small networks."""

from __future__ import annotations

import copy
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
ASPP = ("v1", "v2", "v2_branches", "v3", "v3_plus")


@pytest.fixture(scope="module", params=SMALL)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> keras.Model:
    return calibrate(SMALL[name](), image(64, 64, batch=2))


def output_shape(model: keras.Model, batch: int, size: tuple[int, int], classes: int = 3) -> tuple:
    return (batch, classes) if isinstance(model, SPPNet) else (batch, *size, classes)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (97, 129), (64, 33)])
def test_logits_for_an_image_of_any_size(model, size):
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
    # What was loaded can be changed and saved again.
    loaded.with_num_classes(5).save(tmp_path / "again.keras")
    assert keras.models.load_model(tmp_path / "again.keras").num_classes == 5


def test_a_copy_shares_no_weights(model):
    twin, x = copy.deepcopy(model), image(40, 33)
    expected = model(x).numpy()
    assert type(twin) is type(model)
    np.testing.assert_allclose(twin(x), expected, rtol=1e-5, atol=1e-5)
    for weight in twin.weights:
        weight.assign(weight * 0)
    np.testing.assert_array_equal(model(x), expected)


def test_arguments_cannot_be_changed_from_outside(model):
    before = json.dumps(model.get_config())
    config = model.get_config()
    config["backbone_options"]["padding"] = "same"
    config["num_classes"] = 7
    assert json.dumps(model.get_config()) == before
    with pytest.raises(TypeError):
        model._arguments["num_classes"] = 7


def test_exported_it_serves_any_size(model, tmp_path: Path):
    model.export(tmp_path / "saved_model", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved_model")
    for batch, *size in ((1, 1, 1), (2, 97, 129), (3, 40, 33)):
        x = image(*size, batch=batch)
        np.testing.assert_allclose(served.serve(x), model(x), rtol=1e-3, atol=1e-4)


def test_served_probabilities(model, tmp_path: Path):
    if isinstance(model, SPPNet):
        path = keras_deeplab.export.classifier(model, tmp_path / "served")
        served, x = tf.saved_model.load(str(path)), image(33, 47)
        expected, found = (tf.nn.softmax(f(x)) for f in (model, served.serve))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        return
    keras_deeplab.export.saved_model(model, tmp_path / "served")
    served = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    x = image(33, 47).astype("uint8")
    expected = tf.nn.softmax(model(x)).numpy()
    np.testing.assert_allclose(served(images=tf.constant(x))["probabilities"], expected, atol=1e-4)


@pytest.mark.parametrize("own", ASPP)
def test_the_output_stride_can_be_changed(own):
    model = calibrate(SMALL[own](), image(64, 64, batch=2))
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
    with pytest.raises(ValueError, match="`output_stride`"):
        model.with_output_stride(12)


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


def test_frozen_layers_stay_frozen(name, tmp_path: Path):
    model = SMALL[name]()
    model.backbone.trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for other in (loaded, model.with_num_classes(4)):
        assert not other.backbone.trainable_weights
        assert len(other.trainable_weights) == len(model.trainable_weights) > 0


def test_mixed_precision_is_part_of_the_model(name, tmp_path: Path):
    model = calibrate(SMALL[name](dtype="mixed_bfloat16"), image(64, 64, batch=2))
    assert keras.config.dtype_policy().name == "float32"
    assert {weight.dtype for weight in model.weights} == {"float32"}
    x = image(45, 64)
    logits = model(x)
    assert logits.dtype == "float32"
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), logits)
    full = model.with_dtype("float32")
    # Alike where the backbone is a network of its own precision and the head is one predictor.
    assert 0 <= np.abs(full(x) - logits).mean() < 0.15 * np.std(logits)


def test_twenty_steps_on_one_batch_halve_the_loss(name):
    model = SMALL[name](dropout=0.0)
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(0, 3, (4, 2, 3)), np.ones((1, 32, 32), int))
    pixels = 60 + 60 * labels[..., None] + random.normal(0, 10, (*labels.shape, 3))
    loss = keras_deeplab.losses.CrossEntropy()
    if name == "spp":  # an image of one brightness to each class
        labels = np.arange(4) % 3
        pixels = 60 + 60 * labels[:, None, None, None] + random.normal(0, 10, (4, 64, 64, 3))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
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
