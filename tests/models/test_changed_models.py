"""`with_output_stride`, `with_num_classes` and `with_dtype` in detail; frozen layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import tiny

from keras_deeplab import DeepLabV3, DeepLabV3Plus, MultiScale
from keras_deeplab.graph import with_output_stride


@pytest.fixture(scope="module")
def coarse() -> keras.Model:
    """On a backbone by name, whose layers are taken over and not cloned."""
    options = {"backbone_options": {"depth_multiplier": 0.35}}
    model = DeepLabV3Plus(4, "mobilenet_v2", aspp_filters=16, decoder_filters=8, **options)
    return calibrate(model, image(96, 96, batch=2))


@pytest.fixture(scope="module")
def fine(coarse) -> keras.Model:
    return coarse.with_output_stride(8)


def test_features_are_the_graph_rewrites(coarse, fine):
    assert fine.output_stride == 8
    assert fine.get_config()["aspp_rates"] == (12, 24, 36)
    x = (image(64, 96) - 127.5) / 127.5
    expected, low_level = with_output_stride(coarse.backbone, 8)(x)
    features, low = fine.backbone(x)
    assert np.std(expected) > 1e-2
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.std(expected))
    np.testing.assert_allclose(low, low_level, atol=1e-5)


@pytest.mark.parametrize(
    "stride, words",
    [
        (-8, "`output_stride` .* Received: output_stride=-8"),
        ("8", "`output_stride` .* Received: output_stride='8'"),
        (3, r"`output_stride` must be one of .*\[1, 2, 4, .*=3"),
        (32, r"`output_stride` .*\(3, 6\).*=32. .*\(1\.5, 3\.0\)"),
    ],
)
def test_strides_that_cannot_be(stride, words):
    model = DeepLabV3(2, tiny(), aspp_filters=4, aspp_rates=(3, 6))
    with pytest.raises(ValueError, match=words):
        model.with_output_stride(stride)


def test_only_the_predictor_is_new_for_other_classes(coarse, logs):
    model = coarse.with_num_classes(7)
    assert logs.text.endswith("missing keys: logits\n")
    x = image(64, 64)
    inner = [keras.Model(m.input, m.get_layer("decoder_1").output) for m in (coarse, model)]
    np.testing.assert_allclose(inner[1](x), inner[0](x), rtol=1e-5, atol=1e-5)
    model.with_num_classes(7)
    assert logs.text.endswith("missing keys: none\n")
    with pytest.raises(ValueError, match="`num_classes` .* Received: num_classes=1.*use 2"):
        coarse.with_num_classes(1)


def test_in_another_precision_the_weights_are_the_same(coarse):
    mixed = coarse.with_dtype("mixed_bfloat16")
    assert mixed.backbone.get_layer("block2_add").compute_dtype == "bfloat16"
    assert mixed.get_layer("aspp").project.conv.compute_dtype == "bfloat16"
    back = mixed.with_dtype("float32")
    x = image(65, 97)
    expected = coarse(x).numpy()
    np.testing.assert_array_equal(back(x), expected)
    assert back.get_config() == coarse.get_config()
    difference = (mixed(x) - expected).numpy().std() / expected.std()
    assert 1e-3 < difference < 0.5  # bfloat16 has eight bits, and the network is deep
    with pytest.raises(ValueError, match="`dtype` .* Received: dtype='float31'"):
        coarse.with_dtype("float31")


def test_views_of_a_model_change_with_it():
    x = image(65, 97)
    model = calibrate(DeepLabV3Plus(3, tiny(), aspp_filters=8, decoder_filters=8), image(64, 64, 2))
    several = MultiScale(model, (0.5, 1.0), fusion="mean", flip=True)
    fine = several.with_output_stride(8)
    expected = MultiScale(model.with_output_stride(8), (0.5, 1.0), fusion="mean", flip=True)(x)
    np.testing.assert_allclose(fine(x), expected, atol=1e-5)
    assert np.abs(expected - several(x)).max() > 1e-3  # a hundred times the tolerance above
    mixed = several.with_dtype("mixed_bfloat16")
    assert mixed.model.get_config()["dtype"] == "mixed_bfloat16"
    np.testing.assert_array_equal(mixed.with_dtype("float32")(x), several(x))


def test_frozen_layers_stay_frozen(tmp_path):
    model = DeepLabV3(2, tiny(), aspp_filters=4)
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
    assert len(loaded.with_num_classes(3).trainable_weights) == len(loaded.trainable_weights)


def test_layers_frozen_by_the_user_beforehand_can_be_thawed():
    network = tiny()
    network.trainable = False
    model = DeepLabV3(2, network, aspp_filters=4)
    assert not model.backbone.trainable_weights
    model.backbone.trainable = True
    assert model.backbone.trainable_weights
    again = DeepLabV3.from_config(model.get_config())
    assert len(again.trainable_weights) == len(model.trainable_weights)
