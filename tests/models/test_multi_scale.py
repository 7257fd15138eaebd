from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import image
from networks import calibrated, small, tiny

import keras_deeplab
from keras_deeplab import MultiScale
from keras_deeplab.graph.network import dtype_policy
from keras_deeplab.models.multi_scale import at_image_scale, image_scale, without_views


@pytest.fixture(scope="module")
def model() -> keras.Model:
    model = small("v2", align_corners=False)
    model.set_weights(calibrated("v2").get_weights())
    return model


def test_images_are_resized_as_the_model_does():
    model, x = calibrated("v2"), image(97, 129)  # which aligns corners, as the authors do
    resize = tf.compat.v1.image.resize_bilinear
    expected = resize(model(resize(x, (49, 65), align_corners=True)), (97, 129), align_corners=True)
    for inner in (model, MultiScale(model, (1,))):
        np.testing.assert_allclose(MultiScale(inner, (0.5,))(x), expected, atol=1e-4)


def test_weights_are_shared_and_counted_once(model):
    several = MultiScale(model)
    assert several.count_params() == model.count_params()
    assert several.model is model
    assert {id(weight) for weight in several.weights} == {id(weight) for weight in model.weights}


def softmax(logits) -> np.ndarray:
    powers = np.exp(np.float64(logits) - np.max(logits, -1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def views_by_hand(model, x, scales, flip) -> list[np.ndarray]:
    size, found = x.shape[1:3], []
    for scale in scales:
        small = tuple(max(1, int(np.round(side * scale))) for side in size)
        for step in (1, -1) if flip else (1,):
            logits = model(tf.image.resize(x[:, :, ::step], small))
            found.append(tf.image.resize(logits, size).numpy()[:, :, ::step])
    return found


FUSED = {
    "max": lambda views: np.max(views, 0),
    "mean": lambda views: np.log(np.mean([softmax(view) for view in views], 0)),
}


@pytest.mark.parametrize(
    "fusion, scales, flip, size",
    [
        ("max", (0.5, 0.75, 1), True, (64, 96)),
        ("mean", (0.5, 1, 1.25), True, (61, 90)),
        ("mean", (1,), True, (61, 90)),
        ("mean", (1,), False, (61, 90)),
    ],
)
def test_the_fusions_equal_what_is_done_by_hand(model, fusion, scales, flip, size):
    x = image(*size, batch=2)
    several = MultiScale(model, scales, fusion=fusion, flip=flip)
    views = views_by_hand(model, x, scales, flip)
    if len(views) > 1:
        expected = FUSED[fusion](views)
        assert np.std(views, axis=0).max() > 0.1  # the views differ
        assert set(np.unique(np.argmax(views, 0))) == set(range(len(views)))
    else:
        expected = views[0]
    found = several(x).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)
    if fusion == "mean":
        mean = np.mean([softmax(view) for view in views], 0)
        np.testing.assert_allclose(softmax(found), mean, atol=1e-5)


@pytest.mark.parametrize("fusion", ["max", "mean"])
def test_a_mirrored_image_gets_the_mirrored_logits(fusion):
    model = calibrated("v2")
    several = MultiScale(model, (0.5, 1.25), fusion=fusion, flip=True)
    x = image(61, 97)
    mirrored = several(x[:, :, ::-1]).numpy()[:, :, ::-1]
    np.testing.assert_allclose(mirrored, several(x), atol=1e-5)
    alone = model(x[:, :, ::-1]).numpy()[:, :, ::-1]
    assert np.abs(alone - model(x)).max() > 0.1  # the model itself is not so


def test_certain_views_that_disagree_give_finite_logits():
    inputs = keras.Input((None, None, 3))
    # Along the columns, so that the mirrored image has another class.
    column = keras.ops.cumsum(keras.ops.ones_like(inputs), 2) * keras.ops.array([1e4, -1e4, 0])
    several = MultiScale(keras.Model(inputs, column), (1,), fusion="mean", flip=True)
    logits = several(np.zeros((1, 2, 9, 3), np.float32)).numpy()
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(softmax(logits)[..., 0], 1, atol=1e-6)
    assert logits.min() < -1e4


@pytest.mark.slow
def test_flipped_views_are_trained_saved_and_traced(tmp_path: Path):
    inputs = keras.Input((None, None, 3))
    scaled = keras.layers.Rescaling(1 / 100, -1)(inputs)
    inner = keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same")(scaled))
    several = MultiScale(inner, (0.5, 1), fusion="mean", flip=True)
    loss = keras_deeplab.losses.CrossEntropy()
    metric = keras_deeplab.metrics.SegmentationMetrics(2)
    several.compile(keras.optimizers.Adam(1e-2), loss, metrics=[metric], run_eagerly=True)
    pixels, labels = image(32, 48, batch=2), np.zeros((2, 32, 48), int)
    labels[:, :, 20:] = 1
    outputs = several(pixels, training=True)
    assert len(outputs) == 5
    np.testing.assert_allclose(outputs[0], FUSED["mean"](outputs[1:]), atol=1e-5, rtol=1e-5)
    total = several.compute_loss(pixels, labels, outputs)
    assert float(total) == pytest.approx(sum(float(loss(labels, o)) for o in outputs), rel=1e-5)
    logs = several.train_on_batch(pixels, labels, return_dict=True)
    assert logs["loss"] == pytest.approx(float(total), rel=1e-4)
    metric.reset_state()
    metric.update_state(labels, outputs[0])
    assert logs["mean_iou"] == pytest.approx(float(metric.result()["mean_iou"]), rel=1e-4)
    several.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is MultiScale
    config = loaded.get_config()
    assert [config[key] for key in ("scales", "fusion", "flip")] == [(0.5, 1.0), "mean", True]
    traced = tf.function(loaded, input_signature=[tf.TensorSpec([None, None, None, 3])])
    for x in (image(45, 70), image(1, 7)):
        np.testing.assert_array_equal(loaded(x), several(x))
        np.testing.assert_allclose(traced(x), several(x), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_the_loss_of_the_model_inside_is_not_saved(tmp_path: Path, count):
    """A loss of the user's might not load again."""

    def distance(labels, logits):
        return keras.ops.mean(keras.ops.abs(labels - logits))

    inputs = keras.Input((None, None, 3))
    several = keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs))
    for number in range(count):
        several.compile("sgd", distance)
        several = MultiScale(several, (0.5, 1), name=f"several_{number}")
    several.save(tmp_path / "model.keras")
    for compile in (False, True):
        loaded = keras.models.load_model(tmp_path / "model.keras", compile=compile)
        assert not loaded.model.compiled
        np.testing.assert_array_equal(loaded(image(9, 8)), several(image(9, 8)))


def test_image_scales_outside_and_inside_of_views_are_multiplied():
    inputs = keras.Input((None, None, 3))
    network = keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs))
    views = MultiScale(at_image_scale(network, 0.5), (1, 1.5), fusion="mean")
    assert image_scale(views) == 0.5
    assert image_scale(at_image_scale(views, 0.25)) == 0.125
    assert without_views(views).scales == (0.5,)
    assert at_image_scale(views, 0.5) is views


@pytest.mark.parametrize(
    "own, of_all", [("mixed_bfloat16", "float32"), ("float32", "mixed_bfloat16")]
)
def test_the_policy_is_that_of_the_model_and_logits_are_float32(own, of_all):
    inputs = keras.Input((None, None, 3))
    with dtype_policy(own):
        network = keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs))
    with dtype_policy(of_all):
        several = MultiScale(network, (0.5,))
    assert several.dtype_policy.name == own
    assert several.outputs[0].dtype == "float32"


def test_a_configuration_is_not_used_up():
    inputs = keras.Input((None, None, 3))
    inner = keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs))
    config = MultiScale(inner, (0.5, 1)).get_config()
    for _ in range(2):
        assert MultiScale.from_config(config).get_config() == config


@pytest.mark.parametrize("fusion", ["max", "mean"])
@pytest.mark.parametrize("scales, flip", [((1.0,), False), ((1.0,), True), ((0.5, 1.0), False)])
def test_logits_of_a_network_in_half_precision_are_fused_in_float32(scales, flip, fusion):
    inputs = keras.Input((None, None, 3))
    inner = keras.Model(inputs, keras.layers.Conv2D(2, 1, dtype="mixed_bfloat16")(inputs))
    several = MultiScale(inner, scales, fusion=fusion, flip=flip)
    assert several.output.dtype == "float32"
    if scales == (1.0,):
        expected = tf.nn.softmax(tf.cast(inner(image(6, 7)), tf.float32))
        np.testing.assert_allclose(tf.nn.softmax(several(image(6, 7))), expected, atol=1e-5)


@pytest.mark.slow
def test_it_changes_stride_and_precision_with_its_model(model):
    several = MultiScale(model, (0.5, 1.0), fusion="mean", flip=True)
    fine, mixed = several.with_output_stride(4), several.with_dtype("mixed_bfloat16")
    assert fine.model.output_stride == 4
    assert mixed.model.get_config()["dtype"] == "mixed_bfloat16"
    for other in (fine, mixed):
        for key in ("scales", "fusion", "flip", "name"):
            assert other.get_config()[key] == several.get_config()[key]
    x = image(65, 97)
    assert np.abs(fine(x) - several(x)).max() > 1e-3


@pytest.mark.parametrize(
    "make, options, words",
    [
        (tiny, {"fusion": "median"}, r"`fusion` .*'mean'.* Received: fusion='median'"),
        (tiny, {"scales": (0.5, 0)}, "`scales` must be a list of distinct positive numbers"),
        (tiny, {"scales": (0.5, 1, 0.5)}, r"`scales` .*distinct.* scales=\(0.5, 1, 0.5\)"),
        (tiny, {"scales": (0.5, 0.5000001)}, "`scales` .*distinct"),
        (lambda: calibrated("spp"), {}, r"`model` must be .* map of logits.*\(None, 3\)"),
        (lambda: "resnet50", {}, "`model` must be .* Received: model='resnet50'"),
        (lambda: small("v2", input_shape=(64, 64, 3)), {}, r"`model` .* any size .*\(None, 64"),
    ],
)
def test_wrong_arguments_are_named(make, options, words):
    with pytest.raises(ValueError, match=words):
        MultiScale(make(), **options)
