"""What is taken, what is left as it was, and what is an error."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from sources import scattered, unchanged

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.graph.network import all_layers, own_weights
from keras_deeplab.weights import Checkpoint, WeightsError, transfer

SMALL = {"aspp_filters": 8, "backbone_options": {"depth_multiplier": 0.25}}


def v3(num_classes: int = 3, **arguments) -> keras_deeplab.DeepLabV3:
    arguments = {"head_filters": None, **SMALL, **arguments}
    return keras_deeplab.DeepLabV3(num_classes, "mobilenet_v2", **arguments)


def v3_plus(num_classes: int = 3, **arguments) -> keras_deeplab.DeepLabV3Plus:
    arguments = {"low_level_filters": 4, "decoder_filters": 8, **SMALL, **arguments}
    return keras_deeplab.DeepLabV3Plus(num_classes, "mobilenet_v2", **arguments)


@pytest.fixture(scope="module")
def without_rates() -> Checkpoint:
    """A DeepLabV3 whose projection has other inputs than one with rates."""
    return weights.open_checkpoint(scattered(v3(aspp_rates=())))


def values(model: keras.Model, path: str) -> dict[str, np.ndarray]:
    return {w.name: np.array(w) for w in own_weights(all_layers(model)[path])}


def test_another_class_leaves_the_head_that_does_not_fit(without_rates):
    model = v3_plus()
    project = ("aspp/project/conv", "aspp/project/norm")
    before = {path: values(model, path) for path in project}
    report = transfer(model, without_rates)
    assert report.notes == (
        "aspp/project was not loaded: aspp/project/conv/kernel is (1, 1, 40, 8), "
        "the checkpoint's (1, 1, 16, 8)",
    )
    # A norm belongs to its convolution, though its own shapes fit.
    assert set(project) <= set(report.missing_keys)
    for path in project:
        for name, array in values(model, path).items():
            np.testing.assert_array_equal(array, before[path][name])
            assert f"{path}/{name}" in report.unexpected_keys
    for path in ("aspp/conv_1x1/conv", "aspp/image_pooling/conv/norm", "backbone/stem_conv"):
        assert path in report.loaded
        for name, array in values(model, path).items():
            np.testing.assert_array_equal(array, without_rates.arrays[f"{path}/{name}"])


def test_the_same_class_must_fit(without_rates):
    model = v3()
    with unchanged(model), pytest.raises(WeightsError, match="1 shapes do not fit: aspp/project"):
        transfer(model, without_rates)
    model = v3(aspp_filters=16, aspp_rates=())
    with unchanged(model), pytest.raises(WeightsError, match=r"shapes do not fit: aspp/conv_1x1"):
        transfer(model, without_rates)


def test_the_same_class_may_have_other_classes_but_no_other_predictor(without_rates):
    report = transfer(v3(5, aspp_rates=()), without_rates)
    assert report.missing_keys == ("logits",)
    model = v3(3, aspp_rates=(), head_filters=16)
    with unchanged(model), pytest.raises(WeightsError, match=r"fit: logits/kernel is \(1, 1, 16"):
        transfer(model, without_rates)


def test_predictors_of_other_inputs_are_said_by_their_shapes(without_rates):
    report = transfer(v3_plus(aspp_rates=(), decoder_filters=16), without_rates)
    assert report.notes == (
        "logits was not loaded: logits/kernel is (1, 1, 16, 3), the checkpoint's (1, 1, 8, 3)",
    )
    report = transfer(v3_plus(5, aspp_rates=()), without_rates)
    assert report.notes == ("logits predicts 5 classes, the checkpoint's 3: it was not loaded",)


def lacking(source: Checkpoint, *names: str) -> Checkpoint:
    kept = {name: array for name, array in source.arrays.items() if name not in names}
    assert len(kept) == len(source.arrays) - len(names)
    return dataclasses.replace(source, arrays=kept)


def test_a_layer_is_taken_whole_or_not_at_all(without_rates):
    source = lacking(without_rates, "aspp/conv_1x1/norm/moving_mean")
    message = r"aspp/conv_1x1/norm/moving_mean is \(8,\), the checkpoint has none"
    model = v3(aspp_rates=())
    with unchanged(model), pytest.raises(WeightsError, match=message):
        transfer(model, source)
    report = transfer(v3_plus(aspp_rates=()), source)
    assert [note for note in report.notes if note.startswith("aspp/conv_1x1 was not loaded")]
    assert {"aspp/conv_1x1/conv", "aspp/conv_1x1/norm"} <= set(report.missing_keys)
    source = lacking(without_rates, "logits/bias")
    report = transfer(v3_plus(aspp_rates=()), source)
    assert "logits" in report.missing_keys
    assert "logits/kernel" in report.unexpected_keys


@pytest.mark.parametrize("build", [lambda: v3(aspp_rates=()), v3_plus, lambda: v3_plus().backbone])
@pytest.mark.parametrize("what", ["a variable", "a layer", "a shape"])
def test_a_backbone_fits_wholly_in_every_class(without_rates, build, what):
    path = "backbone/block3_project_norm"
    names = ["beta"] if what == "a variable" else ["beta", "gamma", "moving_mean"]
    names += ["moving_variance"] if what == "a layer" else []
    source = lacking(without_rates, *(f"{path}/{name}" for name in names))
    if what == "a shape":
        found = {**without_rates.arrays, f"{path}/beta": np.zeros(7, np.float32)}
        source = dataclasses.replace(without_rates, arrays=found)
    model = build()
    with unchanged(model), pytest.raises(WeightsError, match="block3_project_norm"):
        transfer(model, source)


def test_a_wrapper_is_filled_through_what_it_wraps(without_rates):
    model = v3(aspp_rates=())
    several = keras_deeplab.MultiScale(model, scales=(0.5, 1.0))
    report = weights.load(several, without_rates)
    assert report.missing_keys == report.unexpected_keys == ()
    np.testing.assert_array_equal(
        model.get_layer("logits").kernel, without_rates.arrays["logits/kernel"]
    )


def test_a_voc_file_without_rates_into_another_decoder(shared):
    file = shared / "pretrained" / "deeplabv3_mnv2_pascal_quant.tflite"
    model = keras_deeplab.DeepLabV3Plus(11, weights=file, separable=True)
    notes = model.transfer_report.notes
    assert "logits predicts 11 classes, the checkpoint's 21: it was not loaded" in notes
    assert any(note.startswith("aspp/project was not loaded: aspp/project/conv/") for note in notes)
    kept = set(model.transfer_report.loaded)
    assert {"aspp/conv_1x1/conv", "aspp/conv_1x1/norm", "backbone/stem_conv"} <= kept
    assert not {"aspp/project/conv", "aspp/project/norm", "logits"} & kept
    assert not [path for path in model.transfer_report.missing_keys if path.startswith("backbone/")]


@pytest.fixture(scope="module")
def target() -> keras_deeplab.DeepLabV3:
    return v3(aspp_rates=())


def broken(source: Checkpoint, name: str, array: np.ndarray, value: float) -> Checkpoint:
    array = np.array(array)
    array.flat[1] = value
    return dataclasses.replace(source, arrays={**source.arrays, name: array})


KERNEL = "backbone/block3_project_conv/kernel"


@pytest.mark.parametrize("name", [KERNEL, "backbone/stem_norm/gamma", "aspp/project/norm/beta"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(without_rates, target, name, dtype, value):
    array = without_rates.arrays[name].astype(dtype)
    message = (
        f"1 of its variables are broken: {name} must hold finite float32 values. Received: 1 of"
    )
    with unchanged(target), pytest.raises(WeightsError, match=message):
        transfer(target, broken(without_rates, name, array, value))


def test_values_that_overflow_the_model_s_precision_are_refused(without_rates, target):
    double = without_rates.arrays[KERNEL].astype("float64")
    single = without_rates.arrays[KERNEL]
    with pytest.raises(WeightsError, match=f"{KERNEL} must hold finite float32"):
        transfer(target, broken(without_rates, KERNEL, double, 1e39))
    large = broken(without_rates, KERNEL, single, 1e5)
    assert transfer(target, large).missing_keys == ()
    keras.config.set_dtype_policy("float16")
    try:
        half = v3(aspp_rates=())
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(WeightsError, match=f"{KERNEL} must hold finite float16 values"):
        transfer(half, large)


def test_negative_variances_and_words_are_refused(without_rates, target):
    name = "backbone/stem_norm/moving_variance"
    array = without_rates.arrays[name]
    message = f"{name} must not be negative. Received: 1 of {array.size} values below 0"
    with unchanged(target), pytest.raises(WeightsError, match=message):
        transfer(target, broken(without_rates, name, array, -1e-3))
    assert transfer(target, broken(without_rates, name, array, 0.0)).missing_keys == ()
    for words in (array.astype("S"), array.astype("U"), array.astype("complex64")):
        found = dataclasses.replace(without_rates, arrays={**without_rates.arrays, name: words})
        with pytest.raises(WeightsError, match=f"{name} must hold numbers. Received: dtype="):
            transfer(target, found)


def test_what_is_not_taken_may_be_broken(without_rates):
    kernel = without_rates.arrays["logits/kernel"]
    report = transfer(v3(5, aspp_rates=()), broken(without_rates, "logits/kernel", kernel, np.nan))
    assert report.missing_keys == ("logits",)
