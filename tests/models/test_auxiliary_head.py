"""torchvision's auxiliary head: trained beside the main one, absent from every prediction."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate, image
from networks import small

import keras_deeplab
from keras_deeplab import DeepLabV3, MultiScale
from keras_deeplab.graph import geometry, multiply_adds
from keras_deeplab.graph.network import all_layers, leaf_layers
from keras_deeplab.models.arguments import completed

HEAD = ("auxiliary/conv", "auxiliary/norm", "auxiliary/logits")


@pytest.fixture(scope="module")
def model() -> DeepLabV3:
    return calibrate(small("v3_auxiliary", dropout=0.0), image(64, 64, batch=2), composites=True)


@pytest.fixture(scope="module")
def plain(model) -> DeepLabV3:
    """The same weights without the head."""
    without, given = small("v3", dropout=0.0), leaf_layers(model)
    for name, layer in leaf_layers(without).items():
        layer.set_weights(given[name].get_weights())
    return without


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    return image(64, 96, batch=2), np.random.default_rng(0).integers(0, 3, (2, 64, 96))


@pytest.mark.slow
def test_the_head_is_torchvisions_on_the_layer_that_was_named(model):
    layers = all_layers(model)
    conv, norm, logits = (layers[name] for name in HEAD)
    assert conv.kernel.shape == (3, 3, 12, 3)  # a quarter of the channels
    assert (conv.use_bias, conv.padding, conv.dilation_rate) == (False, "same", (1, 1))
    assert norm.epsilon == 1e-5
    assert layers["auxiliary/act"].activation is keras.activations.relu
    assert layers["auxiliary/dropout"].rate == 0.1
    assert (logits.kernel.shape, logits.use_bias) == ((1, 1, 3, 3), True)
    x, network = image(64, 96), model.backbone
    features = keras.Model(network.inputs[0], network.get_layer("stage16_out").output)(x)
    assert features.shape == (1, 4, 6, 12)
    coarse = logits(tf.nn.relu(norm(conv(features), training=False)))
    expected = tf.image.resize(coarse, (64, 96))
    found = model.training_graph(x, training=False)[1]
    assert np.std(found) > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_predictions_are_those_of_the_model_without_it(model, plain):
    assert len(model.outputs) == 1
    assert model.output_shape == (None, None, None, 3)
    x = image(97, 129)
    np.testing.assert_array_equal(model(x), plain(x))
    assert multiply_adds(model, 64, 64) == multiply_adds(plain, 64, 64)
    assert geometry(model).output == geometry(plain).output
    assert len(plain.backbone.outputs) == 1
    main, auxiliary = model.training_graph(x, training=False)
    np.testing.assert_array_equal(main, model(x))
    assert main.shape == auxiliary.shape == (1, 97, 129, 3)
    assert np.abs(main - auxiliary).max() > 1e-1


@pytest.mark.slow
def test_fit_descends_the_weighted_sum_and_scores_the_main_head_alone(batch):
    several, labels = small("v3_auxiliary", dropout=0.0, auxiliary_weight=1.5), batch[1]
    all_layers(several)["auxiliary/dropout"].rate = 0.0  # so that a step can be taken twice
    for layer in all_layers(several).values():
        if isinstance(layer, keras.layers.Conv2D):
            layer.kernel.regularizer = keras.regularizers.L2(1e-2)
    added = sum(float(loss) for loss in several.losses)
    assert added > 0.1
    loss = keras_deeplab.losses.CrossEntropy()
    metric = keras_deeplab.metrics.SegmentationMetrics(3)
    several.compile(keras.optimizers.SGD(0.0), loss, metrics=[metric], run_eagerly=True)
    outputs = several(batch[0], training=True)
    main, auxiliary = (float(loss(labels, logits)) for logits in outputs)
    assert abs(main - auxiliary) > 1e-2
    expected = main + 1.5 * auxiliary + added  # what layers add counts once
    assert float(several.compute_loss(*batch, outputs)) == pytest.approx(expected, rel=1e-5)
    logs = several.fit(*batch, batch_size=2, verbose=0, validation_data=batch).history
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-4)
    alone = float(loss(labels, several(batch[0]))) + added
    assert logs["val_loss"][0] == pytest.approx(alone, rel=1e-4)
    metric.reset_state()
    metric.update_state(labels, outputs[0])
    assert logs["mean_iou"][0] == pytest.approx(float(metric.result()["mean_iou"]), rel=1e-4)


def test_its_weights_are_there_once(model, plain):
    inside = [weight for name in HEAD for weight in all_layers(model)[name].trainable_weights]
    assert len(inside) == 5
    ids = [id(weight) for weight in model.trainable_weights]
    assert len(ids) == len(set(ids)) == len(plain.trainable_weights) + 5
    assert {id(weight) for weight in inside} <= set(ids)
    assert set(HEAD) <= set(leaf_layers(model))
    assert [layer.name for layer in model.layers].count("auxiliary") == 1
    assert len(model.weights) == len(plain.weights) + 7
    frozen = small("v3_auxiliary")
    frozen.trainable = False
    assert frozen.trainable_weights == []


@pytest.mark.slow
def test_a_file_brings_the_head_back(model, tmp_path: Path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    config = loaded.get_config()
    assert (config["auxiliary_layer"], config["auxiliary_weight"]) == ("stage16_out", 0.4)
    x = image(45, 61)
    expected = model.training_graph(x, training=False)
    np.testing.assert_array_equal(loaded.training_graph(x, training=False), expected)
    for weight in loaded.weights:
        weight.assign(weight * 0)
    model.save_weights(tmp_path / "only.weights.h5")
    loaded.load_weights(tmp_path / "only.weights.h5")
    np.testing.assert_array_equal(loaded.training_graph(x, training=False), expected)


def test_another_stride_keeps_it(model):
    fine = model.with_output_stride(8)
    for name in HEAD:
        for old, new in zip(*(leaf_layers(m)[name].weights for m in (model, fine)), strict=True):
            np.testing.assert_array_equal(old, new)


def test_in_mixed_precision_and_at_a_fixed_size(batch):
    several = small("v3_auxiliary", dtype="mixed_bfloat16", input_shape=(20, 96, 3))
    outputs = several(batch[0][:, :20], training=True)  # padded to 32 rows inside
    assert [(x.shape, x.dtype) for x in outputs] == [((2, 20, 96, 3), "float32")] * 2
    assert leaf_layers(several)["auxiliary/conv"].compute_dtype == "bfloat16"
    assert leaf_layers(several)["auxiliary/logits"].compute_dtype == "float32"


def test_every_scale_has_its_auxiliary_loss(model, batch):
    several = MultiScale(model, (0.5, 1.0))
    assert len(several.trainable_weights) == len(model.trainable_weights)
    x = image(33, 47)
    half = tf.image.resize(x, (16, 24))
    outputs = several.training_graph(x, training=False)
    small, full = (model.training_graph(view, training=False) for view in (half, x))
    expected = [*(tf.image.resize(logits, (33, 47)) for logits in small), *full]
    for found, logits in zip(
        outputs, [np.maximum(expected[0], expected[2]), *expected], strict=True
    ):
        np.testing.assert_allclose(found, logits, atol=1e-4)
    loss = keras_deeplab.losses.CrossEntropy()
    several.compile("sgd", loss)
    outputs = several.training_graph(batch[0], training=False)
    each = [float(loss(batch[1], logits)) for logits in outputs]
    weighted = np.dot(each, [1, 1, 0.4, 1, 0.4])
    assert float(several.compute_loss(*batch, outputs)) == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize(
    "name, layer",
    [
        ("mobilenet_v3_large", "block3_project_norm"),
        ("resnet101", "stage3_unit23_out"),
        ("resnet50_beta", "stage3_unit6_out"),
    ],
)
def test_the_backbones_own_layer_is_that_of_torchvision(name, layer):
    arguments = {"backbone": name, "backbone_options": {}, "auxiliary_layer": "auto"}
    assert completed(arguments)["auxiliary_layer"] == layer


def test_the_backbones_last_layer_can_be_named_too():
    assert len(small("v3_auxiliary", auxiliary_layer="add32").training_graph.outputs) == 2


def test_the_loss_is_computed_by_names_alone(model, batch):
    """As in the guides of Keras for a `train_step` of one's own."""
    images, labels = batch
    model.compile("sgd", keras_deeplab.losses.CrossEntropy())
    outputs = model(images, training=True)
    found = model.compute_loss(y=labels, y_pred=outputs)
    np.testing.assert_allclose(found, model.compute_loss(images, labels, outputs))
    assert found > 0


@pytest.mark.slow
@pytest.mark.parametrize("scales", [None, (0.5, 1.0)])
def test_inside_another_model_the_main_output_is_trained(batch, scales):
    inner = small("v3_auxiliary", dropout=0.0)
    all_layers(inner)["auxiliary/dropout"].rate = 0.0
    inner = MultiScale(inner, scales) if scales else inner

    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def call(self, x, training=None):
            return self.inner(x, training=training)

    outer = keras.Sequential([keras.Input((None, None, 3)), inner])
    loss = keras_deeplab.losses.CrossEntropy()
    for model in (outer, Outer()):
        model.compile("sgd", loss, run_eagerly=True)
        expected = float(loss(batch[1], inner(batch[0], training=False)))
        with pytest.warns(UserWarning, match="is inside another model"):
            found = model.test_on_batch(*batch), model.train_on_batch(*batch)
        np.testing.assert_allclose(found[0], expected, rtol=1e-5)
        assert found[1] > 0
