"""What holds for all models, on small networks."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate, image
from networks import SMALL, calibrated, small, tiny

import keras_deeplab
from keras_deeplab import DeepLabV3, SPPNet, backbones
from keras_deeplab.graph import geometry, with_output_stride
from keras_deeplab.graph.network import leaf_layers

# The others are parts of `v3_auxiliary` and `v3_detail`.
EVERY = [name for name in SMALL if name not in ("v3", "v3_plus")]


def output_shape(model: keras.Model, batch: int | None, size: tuple[int, int]) -> tuple:
    return (batch, 3) if isinstance(model, SPPNet) else (batch, *size, 3)


@pytest.mark.parametrize("name", EVERY)
def test_logits_for_an_image_of_any_size(name):
    model = calibrated(name)
    for size in ((1, 1), (64, 33)):
        x = image(*size).round()
        logits = model(x)
        assert logits.shape == output_shape(model, 1, size)
        assert logits.dtype == "float32"
        assert np.isfinite(logits).all()
        assert np.std(logits) > 1e-2
    np.testing.assert_allclose(model(x.astype("uint8")), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["v2", "v3_detail", "unet_over", "spp"])
def test_one_traced_function_serves_all_sizes(name):
    model = calibrated(name)
    traced = tf.function(model, input_signature=[tf.TensorSpec([None, None, None, 3])])
    for size in ((1, 1), (33, 47)):
        np.testing.assert_allclose(traced(image(*size)), model(image(*size)), atol=1e-4)


@pytest.mark.parametrize("name", ["v3_plus", "unet", "spp"])
def test_other_channels_at_a_fixed_size(name):
    model = small(name, input_shape=(31, 18, 4))
    assert model.input_shape == (None, 31, 18, 4)
    assert model.output_shape == output_shape(model, None, (31, 18))
    assert model(image(31, 18, channels=4)).shape == output_shape(model, 1, (31, 18))
    if name == "v3_plus":
        assert model.with_output_stride(8).input_shape == (None, 31, 18, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v2_branches", "v3_detail", "unet", "spp"])
def test_a_file_gives_the_same_model_and_logits(name, tmp_path: Path):
    model = calibrated(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    x = image(45, 61)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_arguments_cannot_be_changed_from_outside():
    model = calibrated("v1")
    before = json.dumps(model.get_config())
    config = model.get_config()
    config["backbone_options"]["padding"] = "same"
    config["num_classes"] = 7
    assert json.dumps(model.get_config()) == before
    with pytest.raises(TypeError):
        model._arguments["num_classes"] = 7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1", "v2", "v3_detail"])
def test_the_output_stride_can_be_changed(name):
    model = calibrated(name)
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


def test_strides_that_cannot_be():
    model = small("v3", aspp_rates=(3, 6))
    for stride, words in (
        (-8, "`output_stride` .* Received: output_stride=-8"),
        (3, r"`output_stride` must be one of .*\[1, 2, 4, .*=3"),
        (32, r"`output_stride` .*\(3, 6\).*=32. .*\(1\.5, 3\.0\)"),
    ):
        with pytest.raises(ValueError, match=words):
            model.with_output_stride(stride)


@pytest.mark.parametrize("name", ["v2_branches", "v3_auxiliary", "unet", "spp"])
def test_other_classes_keep_all_but_the_predictors(name, logs):
    model = calibrated(name)
    other = model.with_num_classes(5)
    assert type(other) is type(model)
    assert other.num_classes == other.output_shape[-1] == 5
    missing = logs.text.rpartition("missing keys: ")[2].strip().split(", ")
    assert all(path.rpartition("/")[2].startswith("logits") for path in missing)
    assert len(missing) == {"v2_branches": 2, "v3_auxiliary": 2}.get(name, 1)
    new = leaf_layers(other)
    for path, layer in leaf_layers(model).items():
        if path not in missing:
            for old, copied in zip(layer.weights, new[path].weights, strict=True):
                assert old is not copied
                np.testing.assert_array_equal(old, copied)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v3_plus", "unet", "spp"])
def test_mixed_precision_is_part_of_the_model(name):
    model = calibrate(small(name, dtype="mixed_bfloat16"), image(64, 64, batch=2))
    assert keras.config.dtype_policy().name == "float32"
    assert {weight.dtype for weight in model.weights} == {"float32"}
    x = image(45, 64)
    logits = model(x)
    assert logits.dtype == "float32"
    full = model.with_dtype("float32")
    dtypes = [each.get_config()["dtype"] for each in (model, full)]
    assert dtypes == ["mixed_bfloat16", "float32"]
    # Alike where the backbone is a network of its own precision and the head is one predictor.
    assert np.abs(full(x) - logits).mean() < 0.15 * np.std(logits)


@pytest.mark.slow
def test_a_backbone_by_name_changes_stride_and_precision(monkeypatch):
    """Its layers are taken over and not cloned."""
    own = backbones.Backbone(lambda input_shape: tiny(input_shape[2]), "tf")
    monkeypatch.setitem(backbones.BACKBONES, "resnet50", own)
    model = calibrate(small("v3_plus", backbone="resnet50"), image(64, 64, batch=2))
    fine, x = model.with_output_stride(8), (image(64, 96) - 127.5) / 127.5
    expected, low_level = with_output_stride(model.backbone, 8)(x)
    features, low = fine.backbone(x)
    assert np.std(expected) > 1e-2
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.std(expected))
    np.testing.assert_allclose(low, low_level, atol=1e-5)
    mixed, x = model.with_dtype("mixed_bfloat16"), image(65, 97)
    assert mixed.backbone.get_layer("stage16").compute_dtype == "bfloat16"
    assert mixed.get_layer("aspp").project.conv.compute_dtype == "bfloat16"
    difference = (mixed(x) - model(x)).numpy().std() / np.std(model(x))
    assert 1e-3 < difference < 0.5  # bfloat16 has eight bits


@pytest.mark.slow
def test_frozen_layers_stay_frozen(tmp_path):
    model = DeepLabV3(2, tiny(), aspp_filters=4, aspp_rates=(), head_filters=None)
    everything = len(model.trainable_weights)
    model.backbone.trainable = False
    model.get_layer("aspp").project.norm.trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    count = len(model.trainable_weights)
    assert 0 < count < everything
    for other in (loaded, model.with_output_stride(8), model.with_num_classes(3)):
        assert not other.backbone.trainable_weights
        assert len(other.trainable_weights) == count
        assert not other.get_layer("aspp").project.norm.trainable
    loaded.backbone.trainable = True
    assert len(loaded.trainable_weights) > count


def test_weights_that_the_configuration_does_not_describe_are_no_random_ones():
    model = DeepLabV3(2, tiny(), aspp_filters=4, aspp_rates=(), head_filters=None)
    model.get_layer("aspp").project.conv.enable_lora(2)
    for change, value in (("dtype", "float32"), ("num_classes", 3), ("output_stride", 8)):
        with pytest.raises(
            ValueError, match=f"`{change}` must .*aspp/project/conv cannot be copied"
        ):
            getattr(model, f"with_{change}")(value)


def test_settings_of_layers_that_a_model_does_not_have(logs):
    model = DeepLabV3(2, tiny(), aspp_filters=4, aspp_rates=(), head_filters=None)
    model.get_layer("aspp").trainable = False
    config = model.get_config()
    config["frozen_layers"] += ["images", "backbone/pixels", "aspp/other"]  # inputs are no loss
    assert not DeepLabV3.from_config(config).get_layer("aspp").trainable
    assert "layers that it does not have: aspp/other, frozen. Define" in logs.text
    config["norm_settings"] = {"aspp/other": {"momentum": 0.5}}
    with pytest.raises(ValueError, match=r"layers that it does not have: aspp/other\."):
        DeepLabV3.from_config(config)


def test_layers_frozen_by_the_user_beforehand_can_be_thawed():
    network = tiny()
    network.trainable = False
    model = DeepLabV3(2, network, aspp_filters=4, aspp_rates=(), head_filters=None)
    assert not model.backbone.trainable_weights
    model.backbone.trainable = True
    assert model.backbone.trainable_weights
    again = DeepLabV3.from_config(model.get_config())
    assert len(again.trainable_weights) == len(model.trainable_weights)


@pytest.mark.parametrize("name", EVERY)
def test_every_weight_learns(name):
    """A gradient for each, and a step against it lowers the loss."""
    model, x = calibrated(name), image(64, 96, batch=2)
    labels = np.random.default_rng(0).integers(0, 3, model(x).shape[:-1])
    network = getattr(model, "training_graph", None) or model
    before = [weight.numpy() for weight in model.trainable_weights]

    def loss() -> tf.Tensor:
        outputs = keras.tree.flatten(network(x))
        each = [tf.nn.sparse_softmax_cross_entropy_with_logits(labels, y) for y in outputs]
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


def test_corners_can_be_aligned_and_the_loss_of_v1_is_taken_on_shrunk_labels():
    """The authors' resizing leaves the coarse logits where they are at sizes of 8 n + 1."""
    model, x = calibrated("v1"), image(65, 97, batch=2)
    assert model.get_config()["align_corners"] is True
    coarse = keras.Model(model.input, model.get_layer("logits").output)(x)
    np.testing.assert_allclose(model(x)[:, ::8, ::8], coarse, rtol=1e-4, atol=1e-5)
    half_pixels = small("v1", align_corners=False)
    half_pixels.set_weights(model.get_weights())
    assert np.abs(half_pixels(x) - model(x)).max() > 1e-2
    # A coarse loss on the coarse logits and every eighth label.
    labels = np.random.default_rng(0).integers(0, 3, (2, 65, 97))
    labels[:, :9] = 255
    expected = float(keras_deeplab.losses.CrossEntropy()(labels[:, ::8, ::8], coarse))
    found = keras_deeplab.losses.CrossEntropy(stride=8)(labels, model(x))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    whole = keras_deeplab.losses.CrossEntropy()(labels, model(x))
    assert float(whole) != pytest.approx(expected, rel=1e-3)


def outputs_of(model, x, *names):
    return keras.Model(model.input, [model.get_layer(name).output for name in names])(x)


def test_the_predictions_of_v2_for_each_rate_are_summed():
    first, second, total = outputs_of(
        calibrated("v2_branches"), image(33, 47), "logits_0", "logits_1", "aspp_sum"
    )
    assert min(np.std(first), np.std(second), np.abs(first - second).max()) > 1e-2
    np.testing.assert_allclose(total, first + second, atol=1e-5)


def test_decoders_of_v3_plus_put_the_finer_features_behind_the_others():
    model, x = calibrated("v3_detail"), image(64, 96)
    for name in ("decoder", "detail"):
        names = (f"{name}_upsample", f"{name}_low_level", f"{name}_concat")
        coarse, finer, both = outputs_of(model, x, *names)
        assert min(np.std(coarse), np.std(finer)) > 1e-2
        np.testing.assert_array_equal(both, np.concatenate([coarse, finer], -1))
