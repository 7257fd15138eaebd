from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate, image
from networks import tiny

import keras_deeplab
from keras_deeplab import DeepLabV2, DeepLabV3, MultiScale, SPPNet


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return calibrate(DeepLabV2(3, tiny()), image(64, 64, batch=2))


def resized(x, size) -> tf.Tensor:
    return tf.image.resize(x, size)


@pytest.mark.parametrize("size", [(64, 96), (97, 129), (1, 1)])
def test_the_maximum_of_the_scales(model, size):
    x = image(*size)
    scales = []
    for scale in (0.5, 0.75, 1.0):
        small = tuple(max(1, int(np.round(side * scale))) for side in size)
        scales.append(resized(model(resized(x, small)), size))
    expected = np.max(scales, axis=0)
    found = MultiScale(model)(x)
    assert found.shape == (1, *size, 3)
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, expected.std()))
    if size != (1, 1):  # every scale has its say
        winners = np.argmax(scales, axis=0)
        assert set(np.unique(winners)) == {0, 1, 2}


def test_aligned_corners_follow_the_authors_rule(model):
    x = image(97, 129)
    found = MultiScale(model, (0.5,), align_corners=True)(x)
    small = tf.compat.v1.image.resize_bilinear(x, (49, 65), align_corners=True)
    expected = tf.compat.v1.image.resize_bilinear(model(small), (97, 129), align_corners=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_weights_are_shared_and_counted_once(model):
    several = MultiScale(model)
    assert several.count_params() == model.count_params()
    assert several.model is model
    x = image(33, 47)
    before = several(x).numpy()
    kernel = model.get_layer("logits_0").kernel
    kept = kernel.numpy()
    kernel.assign(2 * kept)
    assert np.abs(several(x) - before).max() > 1e-3
    kernel.assign(kept)


def test_the_loss_is_the_sum_over_scales_and_maximum(model):
    several = MultiScale(model, (0.5, 1.0))
    loss = keras_deeplab.losses.CrossEntropy()
    metric = keras_deeplab.metrics.SegmentationMetrics(3)
    several.compile(keras.optimizers.SGD(0.0), loss, metrics=[metric])
    x, labels = image(64, 96, batch=2), np.random.default_rng(0).integers(0, 3, (2, 64, 96))
    frozen = several.trainable
    several.trainable = False  # batch norm and dropout as in prediction
    outputs = several(x, training=True)
    several.trainable = frozen
    assert len(outputs) == 3
    np.testing.assert_allclose(outputs[0], np.maximum(outputs[1], outputs[2]), rtol=1e-6)
    total = several.compute_loss(x, labels, outputs)
    assert float(total) == pytest.approx(sum(float(loss(labels, o)) for o in outputs), rel=1e-5)
    logs = several.train_on_batch(x, labels, return_dict=True)
    assert logs["loss"] > 1.5 * several.test_on_batch(x, labels, return_dict=True)["loss"]
    assert 0 <= logs["mean_iou"] <= 1


def test_it_learns_and_comes_back_from_a_file(tmp_path: Path):
    several = MultiScale(DeepLabV3(2, tiny(), aspp_filters=8, aspp_rates=(1,), dropout=0.0))
    several.compile(keras.optimizers.Adam(1e-2), keras_deeplab.losses.CrossEntropy())
    labels = np.zeros((2, 32, 48), int)
    labels[:, :, 20:] = 1
    pixels = np.float32(80 + 100 * labels[..., None].repeat(3, -1))
    history = several.fit(pixels, labels, batch_size=2, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    several.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is MultiScale
    assert type(loaded.model) is DeepLabV3
    np.testing.assert_array_equal(loaded(pixels), several(pixels))
    keras_deeplab.export.saved_model(several, tmp_path / "served")


def test_wrong_arguments_are_named(model):
    with pytest.raises(ValueError, match="`scales` must be positive numbers"):
        MultiScale(model, (0.5, 0))
    with pytest.raises(ValueError, match=r"`scales` must differ .* received \(0.5, 1, 0.5\)"):
        MultiScale(model, (0.5, 1, 0.5))
    with pytest.raises(ValueError, match=r"`model` must be .* map of logits.*\(None, 3\)"):
        MultiScale(SPPNet(3, tiny(), dense=()))
    with pytest.raises(ValueError, match="`model` must be .* received 'resnet50'"):
        MultiScale("resnet50")
    with pytest.raises(ValueError, match="`model` must take images of any size"):
        MultiScale(DeepLabV2(3, tiny(), input_shape=(64, 64, 3)))
