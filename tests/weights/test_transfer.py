"""What is loaded, what keeps its own weights, and what is an error."""

from __future__ import annotations

import dataclasses
from functools import cache

import keras
import numpy as np
import pytest
from models.networks import tiny
from sources import scattered, unchanged

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.graph.network import all_layers, own_weights
from keras_deeplab.weights import Checkpoint, WeightsError, transfer


@cache  # a target may have any weights
def v3(num_classes: int = 3, **arguments) -> keras_deeplab.DeepLabV3:
    arguments = {"head_filters": None, "aspp_rates": (), "aspp_filters": 8, **arguments}
    return keras_deeplab.DeepLabV3(num_classes, tiny(), **arguments)


@cache
def v3_plus(num_classes: int = 3, **arguments) -> keras_deeplab.DeepLabV3Plus:
    arguments = {"low_level_filters": 4, "decoder_filters": 8, "aspp_filters": 8, **arguments}
    return keras_deeplab.DeepLabV3Plus(num_classes, tiny(), **arguments)


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    """A DeepLabV3 whose projection has other inputs than one with rates."""
    return weights.open_checkpoint(scattered(v3()))


def changed(source: Checkpoint, **arrays: np.ndarray | None) -> Checkpoint:
    """The checkpoint with other arrays, without those that are None."""
    found = {**source.arrays, **arrays}
    return dataclasses.replace(source, arrays={n: a for n, a in found.items() if a is not None})


def values(model: keras.Model, path: str) -> dict[str, np.ndarray]:
    return {name: np.array(w) for name, w in own_weights(all_layers(model)[path]).items()}


@pytest.mark.slow
def test_another_class_leaves_the_head_that_does_not_fit(source):
    model = v3_plus()
    project = ("aspp/project/conv", "aspp/project/norm")
    before = {path: values(model, path) for path in project}
    report = transfer(model, source)
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
    for path in ("aspp/conv_1x1/conv", "aspp/image_pooling/conv/norm", "backbone/stem"):
        assert path in report.loaded
        for name, array in values(model, path).items():
            np.testing.assert_array_equal(array, source.arrays[f"{path}/{name}"])
    report = transfer(v3_plus(aspp_rates=(), decoder_filters=16), source)
    assert report.notes == (
        "logits was not loaded: logits/kernel is (1, 1, 16, 3), the checkpoint's (1, 1, 8, 3)",
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"aspp_rates": (6, 12, 18)}, "not have 6 layers of the model's head: aspp/atrous_0/conv"),
        ({"head_filters": 16}, r"logits/kernel is \(1, 1, 16"),
    ],
)
def test_the_same_class_must_fit(source, arguments, message):
    model = v3(**arguments)
    with unchanged(model), pytest.raises(WeightsError, match=message):
        transfer(model, source)


def test_a_layer_made_of_several_is_loaded_whole_or_not():
    dense = weights.open_checkpoint(scattered(v3(aspp_rates=(6,))))
    message = "does not have 4 layers of the model's head: aspp/atrous_0/depthwise"
    for arguments in ({}, {"num_classes": 5}):
        model = v3(aspp_rates=(6,), separable=True, **arguments)
        with unchanged(model), pytest.raises(WeightsError, match=message):
            transfer(model, dense)
    report = transfer(v3(aspp_rates=(6,), auxiliary_layer="stage16_out"), dense)
    assert all(path.startswith("auxiliary/") for path in report.missing_keys)


def test_another_number_of_classes_keeps_the_predictor(source):
    broken = {"logits/kernel": source.arrays["logits/kernel"] * np.nan}  # which is not loaded
    for model in (v3(5), v3_plus(5, aspp_rates=())):
        before = values(model, "logits")
        report = transfer(model, changed(source, **broken))
        assert "logits" in report.missing_keys
        assert report.notes == (
            "logits was not loaded: logits/kernel is (1, 1, 8, 5), the checkpoint's (1, 1, 8, 3)",
        )
        assert set(report.unexpected_keys) == {"logits/kernel", "logits/bias"}
        for name, array in values(model, "logits").items():
            np.testing.assert_array_equal(array, before[name])


def test_a_layer_is_loaded_whole_or_not(source):
    lacking = changed(source, **{"aspp/conv_1x1/norm/moving_mean": None})
    message = r"aspp/conv_1x1/norm/moving_mean is \(8,\), the checkpoint's missing"
    with unchanged(v3()), pytest.raises(WeightsError, match=message):
        transfer(v3(), lacking)
    report = transfer(v3_plus(aspp_rates=()), lacking)
    assert [note for note in report.notes if note.startswith("aspp/conv_1x1 was not loaded")]
    assert {"aspp/conv_1x1/conv", "aspp/conv_1x1/norm"} <= set(report.missing_keys)


NORM = "backbone/stage4_norm"


@pytest.mark.parametrize("build", [v3, v3_plus, lambda: v3_plus().backbone])
@pytest.mark.parametrize(
    "arrays",
    [
        {f"{NORM}/beta": None},
        {f"{NORM}/{name}": None for name in ("beta", "gamma", "moving_mean", "moving_variance")},
        {f"{NORM}/beta": np.zeros(7, np.float32)},
    ],
    ids=["no variable", "no layer", "another shape"],
)
def test_a_backbone_fits_wholly_in_every_class(source, build, arrays):
    model = build()
    with unchanged(model), pytest.raises(WeightsError, match="stage4_norm"):
        transfer(model, changed(source, **arrays))


KERNEL, VARIANCE = "backbone/stage8/kernel", f"{NORM}/moving_variance"


@pytest.mark.parametrize(
    "name, dtype, value, message",
    [
        (KERNEL, "float16", np.nan, "finite"),
        (KERNEL, "bfloat16", np.inf, "finite"),
        ("aspp/project/norm/beta", "float32", -np.inf, "finite"),
        (KERNEL, "float64", 1e39, "finite"),  # which overflows
        (VARIANCE, "float32", -1e-3, "not be negative. Received: 1 wrong ones of 8"),
        (KERNEL, "S", "a", "hold numbers. Received: dtype="),
        (KERNEL, "complex64", 1, "hold numbers. Received: dtype="),
    ],
)
def test_values_that_no_trained_network_has_are_refused(source, name, dtype, value, message):
    array = source.arrays[name].astype(dtype)
    array.flat[1] = value
    if message == "finite":
        message = f"hold finite float32 values. Received: 1 wrong ones of {array.size}"
    with unchanged(v3()), pytest.raises(WeightsError, match=f"{name} must {message}"):
        transfer(v3(), changed(source, **{name: array}))


def test_values_must_be_finite_in_the_models_precision(source):
    array = np.array(source.arrays[KERNEL])
    array.flat[1] = 1e5
    large = changed(source, **{KERNEL: array, VARIANCE: 0 * source.arrays[VARIANCE]})
    assert transfer(v3(), large).missing_keys == ()
    keras.config.set_dtype_policy("float16")
    try:
        half = v3(name="half")
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(WeightsError, match=f"{KERNEL} must hold finite float16 values"):
        transfer(half, large)


def test_arrays_beside_a_recognised_network_are_not_loaded():
    """Those of a user's own layers, which a model may name alike."""
    arrays = {"scope/kernel": np.zeros((1, 1, 3, 2), np.float32), "logits/bias": np.ones(3)}
    found = Checkpoint("file", arrays).mapped("a network", {"conv": "scope"})
    assert set(found.arrays) == {"conv/kernel"}
    assert found.unexpected == ("logits/bias",)


def test_a_network_of_no_known_class_must_fit(source):
    unknown = dataclasses.replace(source, model=None)
    with pytest.raises(WeightsError, match="do(es)? not fit|is .*the checkpoint's"):
        transfer(v3(aspp_filters=4), unknown)
