"""The decoder's second stage, which keeps what is a few pixels wide."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import tiny

from keras_deeplab import DeepLabV3Plus, graph


def small(**more):
    return DeepLabV3Plus(3, tiny(), aspp_filters=8, decoder_filters=8, separable=True, **more)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return calibrate(small(detail_layer="auto", detail_filters=6), image(64, 64, batch=2))


def separable(inputs, outputs):
    """Parameters of a depthwise and a pointwise convolution with a batch norm each."""
    return inputs * (9 + 4) + inputs * outputs + 4 * outputs


def test_it_adds_exactly_its_own_parameters_and_works_at_its_stride(model):
    one = small()
    assert model.get_config()["detail_layer"] == "stem"
    skip = 8 * 24 + 4 * 24
    added = skip + separable(8 + 24, 6) + separable(6, 6)
    predictor = (6 * 3 + 3) - (8 * 3 + 3)
    assert model.count_params() - one.count_params() == added + predictor
    assert graph.geometry(one)["logits"].stride == (4, 4)
    assert graph.geometry(model)["logits"].stride == (2, 2)


def test_it_has_what_a_stride_of_four_cannot(model):
    """Only the finer skip tells two images apart whose features at stride 4 are the same."""
    head = keras.Model(model.backbone.outputs, _head(model, *model.backbone.outputs))
    assert [tensor.shape[-1] for tensor in model.backbone.outputs[1:]] == [8, 8]
    random = np.random.default_rng(1)
    coarse = [random.normal(size=(1, 4, 4, 12)), random.normal(size=(1, 16, 16, 8))]
    first, second = random.normal(size=(2, 1, 32, 32, 8))
    logits = [head([*coarse, fine]).numpy() for fine in (first, second)]
    assert np.std(logits[0]) > 1e-2
    difference = np.abs(logits[0] - logits[1])
    assert difference.mean() > 1e-2
    # At a stride of 4 neighbours within a cell would change alike.
    assert np.abs(difference[:, ::2] - difference[:, 1::2]).mean() > 1e-3


def _head(model, features, *skips):
    x = model.get_layer("aspp")(features)
    for name, skip in zip(("decoder", "detail"), skips, strict=True):
        x = model.get_layer(f"{name}_upsample")(x, skip)
        skip = model.get_layer(f"{name}_low_level")(skip)
        x = model.get_layer(f"{name}_concat")([x, skip])
        for index in range(2):
            x = model.get_layer(f"{name}_{index}")(x)
    return model.get_layer("logits")(x)


def test_stride_and_files_keep_it(model, tmp_path):
    model.save(tmp_path / "model.keras")
    again, images = keras.models.load_model(tmp_path / "model.keras"), image(48, 80)
    np.testing.assert_array_equal(again(images), model(images))
    fine = model.with_output_stride(8)
    assert fine.get_config()["detail_layer"] == "stem"
