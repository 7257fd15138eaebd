"""`with_output_stride`, `with_num_classes` and `with_dtype`, on a backbone of the package."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import tiny

from keras_deeplab import DeepLabV3, DeepLabV3Plus, MultiScale
from keras_deeplab.graph import geometry, with_output_stride
from keras_deeplab.graph.network import leaf_layers


@pytest.fixture(scope="module")
def coarse() -> keras.Model:
    model = DeepLabV3Plus(4, "mobilenet_v2", aspp_filters=16, decoder_filters=8)
    return calibrate(model, image(96, 96, batch=2))


@pytest.fixture(scope="module")
def fine(coarse) -> keras.Model:
    return coarse.with_output_stride(8)


def test_same_class_and_scaled_rates(coarse, fine):
    assert type(fine) is DeepLabV3Plus
    assert fine.output_stride == 8
    assert fine.get_config()["aspp_rates"] == (12, 24, 36)
    assert {**fine.get_config(), "output_stride": 16, "aspp_rates": (6, 12, 18)} == (
        coarse.get_config()
    )
    back = fine.with_output_stride(16)
    assert back.get_config() == coarse.get_config()
    x = image(65, 97)
    np.testing.assert_allclose(back(x), coarse(x), rtol=1e-5, atol=1e-5)


def test_all_weights_are_copied(coarse, fine):
    new = leaf_layers(fine)
    for name, layer in leaf_layers(coarse).items():
        if not layer.weights:
            continue
        for old, copied in zip(layer.weights, new[name].weights, strict=True):
            assert old is not copied
            np.testing.assert_array_equal(old, copied)


def test_features_are_the_graph_rewrites(coarse, fine):
    x = (image(96, 128) - 127.5) / 127.5
    expected, low_level = with_output_stride(coarse.backbone, 8)(x)
    features, low = fine.backbone(x)
    assert features.shape == (1, 12, 16, 320)
    assert np.std(expected) > 1e-2
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.std(expected))
    np.testing.assert_allclose(low, low_level, atol=1e-5)
    # And they hold the coarse features, at the phase that the geometry predicts.
    before = geometry(coarse.backbone, 96, 128).outputs[0]
    after = geometry(fine.backbone, 96, 128).outputs[0]
    row, column = (int(a - b) // 8 for a, b in zip(before.offset, after.offset, strict=True))
    old = coarse.backbone(x)[0]
    np.testing.assert_allclose(features[:, row::2, column::2], old, atol=1e-4 * np.std(old))


def test_the_decoder_is_untouched(coarse, fine):
    names = ("decoder_low_level", "decoder_0", "decoder_1", "logits", "decoder_concat")
    for name in names:
        assert fine.get_layer(name).get_config() == coarse.get_layer(name).get_config()
        assert geometry(fine)[name].stride == geometry(coarse)[name].stride == (4, 4)


@pytest.mark.parametrize(
    "stride, words",
    [
        (0, "`output_stride` .* Received: output_stride=0"),
        (-8, "`output_stride` .* Received: output_stride=-8"),
        ("8", "`output_stride` .* Received: output_stride='8'"),
        (3, r"`output_stride` must be one of .*\[1, 2, 4, .*\D3"),
        (64, "`output_stride` .*Received: output_stride=64"),
    ],
)
def test_strides_that_cannot_be(stride, words):
    model = DeepLabV3(2, tiny(), aspp_filters=4)
    with pytest.raises(ValueError, match=words):
        model.with_output_stride(stride)


def test_rates_that_would_not_be_integers():
    model = DeepLabV3(2, tiny(), aspp_filters=4, aspp_rates=(3, 6))
    with pytest.raises(ValueError, match=r"`output_stride` .*\(3, 6\).*=32. .*\(1\.5, 3\.0\)"):
        model.with_output_stride(32)


def test_with_num_classes_keeps_all_but_the_predictor(coarse, logs):
    model = coarse.with_num_classes(7)
    assert type(model) is DeepLabV3Plus
    assert model.num_classes == model.output_shape[-1] == 7
    assert logs.text.endswith("missing keys: logits\n")
    new = leaf_layers(model)
    for name, layer in leaf_layers(coarse).items():
        if name != "logits":
            for old, copied in zip(layer.weights, new[name].weights, strict=True):
                np.testing.assert_array_equal(old, copied)
    x = image(64, 64)
    inner = [keras.Model(m.input, m.get_layer("decoder_1").output) for m in (coarse, model)]
    np.testing.assert_allclose(inner[1](x), inner[0](x), rtol=1e-5, atol=1e-5)


def test_in_another_precision_the_weights_are_the_same(coarse):
    mixed = coarse.with_dtype("mixed_bfloat16")
    back = mixed.with_dtype("float32")
    x = image(65, 97)
    expected = coarse(x).numpy()
    np.testing.assert_array_equal(back(x), expected)
    assert back.get_config() == coarse.get_config()
    difference = (mixed(x) - expected).numpy().std() / expected.std()
    assert 1e-3 < difference < 0.5  # bfloat16 has eight bits, and the network is deep
    with pytest.raises(ValueError, match="`dtype` .* Received: dtype='float31'"):
        coarse.with_dtype("float31")


def test_views_of_a_model_change_with_it(coarse, fine):
    x = image(65, 97)
    several = MultiScale(coarse, (0.5, 1.0), fusion="mean", flip=True)
    expected = MultiScale(fine, (0.5, 1.0), fusion="mean", flip=True)(x)
    found = several.with_output_stride(8)
    np.testing.assert_allclose(found(x), expected, atol=1e-5)
    assert np.abs(expected - several(x)).max() > 1e-3  # a hundred times the tolerance above
    mixed = several.with_dtype("mixed_bfloat16")
    assert mixed.model.get_config()["dtype"] == "mixed_bfloat16"
    np.testing.assert_array_equal(mixed.with_dtype("float32")(x), several(x))


def test_with_the_same_number_of_classes_nothing_is_missing(coarse, logs):
    coarse.with_num_classes(4)
    assert "missing keys: none" in logs.text
    with pytest.raises(ValueError, match="`num_classes` .* Received: num_classes=1.*use 2"):
        coarse.with_num_classes(1)


def test_frozen_layers_stay_frozen(tmp_path):
    model = DeepLabV3(2, tiny(), aspp_filters=4)
    model.backbone.trainable = False
    model.get_layer("aspp").project.norm.trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    count = len(model.trainable_weights)
    assert 0 < count < len(DeepLabV3(2, tiny(), aspp_filters=4).trainable_weights)
    for other in (loaded, model.with_output_stride(8), model.with_num_classes(3)):
        assert len(other.trainable_weights) == count
        assert not other.get_layer("aspp").project.norm.trainable
    loaded.backbone.trainable = True
    assert len(loaded.trainable_weights) > count
    assert len(loaded.with_num_classes(3).trainable_weights) == len(loaded.trainable_weights)


def test_layers_frozen_by_the_user_beforehand_can_be_thawed(tmp_path):
    network = tiny()
    network.trainable = False
    model = DeepLabV3(2, network, aspp_filters=4)
    assert not model.backbone.trainable_weights
    model.backbone.trainable = True
    assert model.backbone.trainable_weights
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
