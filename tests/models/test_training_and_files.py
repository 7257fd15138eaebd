from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate, image
from networks import tiny

from keras_deeplab import DeepLabV3, DeepLabV3Plus

MODELS = pytest.mark.parametrize("cls", [DeepLabV3, DeepLabV3Plus])


def photographs(height: int = 32, width: int = 48, batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Bright and dark halves, which are the two classes."""
    random = np.random.default_rng(0)
    labels = np.zeros((batch, height, width), "int32")
    for index in range(batch):
        labels[index, :, random.integers(width // 4, width // 2) :] = 1
    pixels = 80 + 100 * labels[..., None] + random.normal(0, 15, (batch, height, width, 3))
    return pixels.astype("float32"), labels


def compiled(model: keras.Model) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    return model


@MODELS
def test_a_few_steps_halve_the_loss_on_images_of_two_sizes(cls):
    keras.utils.set_random_seed(0)
    model = compiled(cls(2, tiny(), aspp_filters=16, aspp_rates=(1, 2), dropout=0.0))
    first, second = (tf.data.Dataset.from_tensors(photographs(*s)) for s in ((32, 48), (49, 33)))
    data = first.concatenate(second)
    losses = model.fit(data.repeat(6), epochs=3, steps_per_epoch=4, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_a_backbone_of_the_package_learns():
    keras.utils.set_random_seed(0)
    model = compiled(DeepLabV3Plus(2, "mobilenet_v2", aspp_filters=16, decoder_filters=16))
    losses = model.fit(*photographs(), epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_saved_with_its_optimizer_it_goes_on_where_it_was(tmp_path: Path):
    keras.utils.set_random_seed(0)
    x, y = photographs()
    model = compiled(DeepLabV3Plus(2, tiny(), aspp_filters=8, aspp_rates=(1, 2), dropout=0.0))
    model.get_layer("aspp").project.trainable = False  # the optimizer holds fewer slots
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is DeepLabV3Plus
    assert loaded.get_config()["aspp_rates"] == (1, 2)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)
    assert loaded.optimizer.iterations == 2
    for mine, its in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, its)
    for each in (model, loaded):
        each.fit(x, y, epochs=1, shuffle=False, verbose=0)
    for mine, its in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_mixed_precision_is_part_of_the_model(policy, tmp_path: Path):
    model = DeepLabV3Plus(2, "mobilenet_v2", aspp_filters=8, decoder_filters=8, dtype=policy)
    calibrate(model, image(64, 64, batch=2))
    compute = policy.removeprefix("mixed_")
    assert keras.config.dtype_policy().name == "float32"
    assert model.get_layer("aspp").compute_dtype == compute
    assert model.backbone.get_layer("block2_add").compute_dtype == compute
    assert model.get_layer("aspp").project.conv.compute_dtype == compute
    assert {weight.dtype for weight in model.weights} == {"float32"}
    x = image(45, 64)
    logits = model(x)
    assert logits.dtype == "float32"
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert loaded.get_layer("aspp").compute_dtype == compute
    np.testing.assert_array_equal(loaded(x), logits)
    plain = type(model).from_config({**model.get_config(), "dtype": "float32"})
    plain.set_weights(model.get_weights())
    difference = np.abs(plain(x) - logits).mean()
    assert 0 < difference < 0.15 * np.std(logits)


def test_float16_scales_the_loss():
    # Small gradients would underflow unseen; Keras asks the model itself for its policy.
    model = compiled(DeepLabV3(2, tiny(), aspp_filters=8, dtype="mixed_float16"))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.optimizer.build(model.trainable_variables)
    model.fit(*photographs(batch=2), verbose=0)
    assert int(model.optimizer.inner_optimizer.iterations) == 1
    assert isinstance(compiled(DeepLabV3(2, tiny())).optimizer, keras.optimizers.Adam)


def test_the_global_policy_is_followed_and_kept(tmp_path: Path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = DeepLabV3(2, "mobilenet_v2", aspp_filters=4)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_config()["dtype"] == "mixed_bfloat16"
    assert model.with_output_stride(8).get_layer("aspp").compute_dtype == "bfloat16"
    with pytest.raises(ValueError, match="`dropout`"):
        DeepLabV3(2, tiny(), dropout=2, dtype="mixed_float16")
    assert keras.config.dtype_policy().name == "float32"
