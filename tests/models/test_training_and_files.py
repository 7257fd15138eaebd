from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import tiny

from keras_deeplab import DeepLabV3, DeepLabV3Plus, SPPNet


def photographs(height: int = 32, width: int = 48, batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Bright and dark halves, which are the two classes."""
    random = np.random.default_rng(0)
    labels = np.zeros((batch, height, width), "int32")
    for index in range(batch):
        labels[index, :, random.integers(width // 4, width // 2) :] = 1
    pixels = 80 + 100 * labels[..., None] + random.normal(0, 15, (batch, height, width, 3))
    return pixels.astype("float32"), labels


def compiled(model: keras.Model, rate: float = 5e-3, eager: bool = False) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, run_eagerly=eager)
    return model


def test_a_few_steps_halve_the_loss_on_images_of_two_sizes():
    model = compiled(DeepLabV3Plus(2, tiny(), aspp_filters=16, aspp_rates=(1, 2), dropout=0.0))
    first, second = (tf.data.Dataset.from_tensors(photographs(*s)) for s in ((32, 48), (49, 33)))
    data = first.concatenate(second)
    losses = model.fit(data.repeat(6), epochs=3, steps_per_epoch=4, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_a_classifier_learns_at_two_sizes_in_turn():
    options = {"levels": (3, 2, 1), "dense": (32,), "dropout": 0.0}
    model = compiled(SPPNet(3, tiny(), **options), 1e-2, eager=True)
    random = np.random.default_rng(0)
    labels, losses = np.arange(6) % 3, []
    for step in range(20):
        size = (64, 64) if step % 2 else (49, 80)  # two sizes in turn, one optimizer
        pixels = 60 + 60 * labels[:, None, None, None] + random.normal(0, 20, (6, *size, 3))
        losses.append(float(model.train_on_batch(pixels, labels)))
    last = 20 * losses[-1] - 19 * losses[-2]  # Keras gives the mean of all steps so far
    assert last < 0.5 * losses[0]
    assert model.optimizer.iterations == 20


@pytest.mark.slow
def test_a_backbone_of_the_package_learns():
    model = compiled(DeepLabV3Plus(2, "mobilenet_v2", aspp_filters=16, decoder_filters=16))
    losses = model.fit(*photographs(), epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_saved_with_its_optimizer_it_goes_on_where_it_was(tmp_path: Path):
    x, y = photographs()
    options = {"aspp_filters": 8, "aspp_rates": (1, 2), "dropout": 0.0}
    model = compiled(DeepLabV3Plus(2, tiny(), **options), eager=True)
    model.get_layer("aspp").project.trainable = False  # the optimizer holds fewer slots
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    assert type(loaded) is DeepLabV3Plus
    assert loaded.optimizer.iterations == 2
    for mine, its in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, its)
    for each in (model, loaded):
        each.fit(x, y, epochs=1, shuffle=False, verbose=0)
    for mine, its in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)


def test_float16_scales_the_loss():
    # Small gradients would underflow unseen; Keras asks the model itself for its policy.
    model = compiled(DeepLabV3(2, tiny(), aspp_filters=8, dtype="mixed_float16"), eager=True)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.fit(*photographs(batch=2), verbose=0)
    assert int(model.optimizer.inner_optimizer.iterations) == 1
    assert isinstance(compiled(DeepLabV3(2, tiny())).optimizer, keras.optimizers.Adam)


def test_the_global_policy_is_followed_and_kept():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = DeepLabV3(2, tiny(), aspp_filters=4)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_config()["dtype"] == "mixed_bfloat16"
    assert model.with_output_stride(8).get_layer("aspp").compute_dtype == "bfloat16"
    with pytest.raises(ValueError, match="`dropout`"):
        DeepLabV3(2, tiny(), dropout=2, dtype="mixed_float16")
    assert keras.config.dtype_policy().name == "float32"
