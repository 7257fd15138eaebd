"""The decoder's second stage, which keeps what is a few pixels wide."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import calibrate
from networks import tiny

from keras_deeplab import DeepLabV3Plus, graph
from keras_deeplab.models import base


def small(**more):
    return DeepLabV3Plus(3, tiny(), aspp_filters=8, decoder_filters=8, separable=True, **more)


def separable(inputs, outputs):
    """Parameters of a depthwise and a pointwise convolution with a batch norm each."""
    return inputs * (9 + 4) + inputs * outputs + 4 * outputs


def test_it_adds_exactly_its_own_parameters():
    one, two = small(), small(detail_layer="auto", detail_filters=6)
    assert two.get_config()["detail_layer"] == "stem"
    skip = 8 * 24 + 4 * 24
    added = skip + separable(8 + 24, 6) + separable(6, 6)
    predictor = (6 * 3 + 3) - (8 * 3 + 3)
    assert two.count_params() - one.count_params() == added + predictor


@pytest.mark.parametrize("detail,stride", [(None, 4), ("auto", 2)])
def test_logits_are_computed_at_its_stride(detail, stride):
    model = small(detail_layer=detail)
    tapped = keras.Model(model.input, model.get_layer("logits").output)
    assert graph.geometry(tapped).output.stride == (stride, stride)


def test_it_sees_what_a_stride_of_four_cannot():
    """Only the finer skip tells two images apart whose features at stride 4 are the same."""
    model = small(detail_layer="auto")
    calibrate(model, np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32"))
    features, low_level, detail = model.backbone.outputs
    assert [tensor.shape[-1] for tensor in (low_level, detail)] == [8, 8]
    rest = keras.Model(
        model.backbone.outputs,
        _head(model, features, low_level, detail),
    )
    random = np.random.default_rng(1)
    coarse = [random.normal(size=(1, 4, 4, 12)), random.normal(size=(1, 16, 16, 8))]
    first, second = random.normal(size=(2, 1, 32, 32, 8))
    answers = [rest([*coarse, fine]).numpy() for fine in (first, second)]
    assert np.std(answers[0]) > 1e-2
    difference = np.abs(answers[0] - answers[1])
    assert difference.mean() > 1e-2
    # At a stride of 4 neighbours within a cell would change alike.
    assert np.abs(difference[:, ::2] - difference[:, 1::2]).mean() > 1e-3


def _head(model, *tensors):
    x = model.get_layer("aspp")(tensors[0])
    for name, skip in (("decoder", tensors[1]), ("detail", tensors[2])):
        x = model.get_layer(f"{name}_upsample")(x, skip)
        skip = model.get_layer(f"{name}_low_level")(skip)
        x = model.get_layer(f"{name}_concat")([x, skip])
        for index in range(2):
            x = model.get_layer(f"{name}_{index}")(x)
    return model.get_layer("logits")(x)


def test_stride_classes_and_files_keep_it(tmp_path):
    model = small(detail_layer="auto")
    images = np.random.default_rng(0).uniform(0, 255, (1, 48, 80, 3)).astype("float32")
    calibrate(model, images)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(images), model(images))
    fine = model.with_output_stride(8)
    assert fine.output_stride == 8
    assert isinstance(fine, base.SegmentationModel)
    assert fine.get_config()["detail_layer"] == "stem"
    assert model.with_num_classes(5)(images).shape == (1, 48, 80, 5)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"`detail_layer` .*stage4_oot.*stage4_out"):
        small(detail_layer="stage4_oot")
    with pytest.raises(ValueError, match="`detail_filters` .* Received: detail_filters=0"):
        small(detail_layer="auto", detail_filters=0)
