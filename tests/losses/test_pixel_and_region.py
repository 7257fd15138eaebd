"""What single losses are for: reductions, hard pixels and their schedule, regions, large images."""

from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_references import (
    dice_of_class,
    make_batch,
    pixel_losses,
    pixel_mean,
    region_mean,
    softmax,
)

from keras_deeplab import losses
from keras_deeplab.losses import CrossEntropy, HardPixelMining, Sum


def test_ignored_label_none_or_a_class():
    labels, logits, _ = make_batch()
    labels = np.where(labels == 255, 3, labels)
    value = CrossEntropy(ignore_label=None)(labels, logits)
    np.testing.assert_allclose(value, pixel_mean(labels, logits), rtol=1e-6)
    value = CrossEntropy(ignore_label=1)(labels, logits)
    without = np.where(labels == 1, 255, labels)
    np.testing.assert_allclose(value, pixel_mean(without, logits), rtol=1e-6)
    with pytest.raises(ValueError, match="one weight for each of the 4 classes"):
        CrossEntropy(class_weights=[1, 2, 3])(labels, logits)


def test_reductions():
    labels, logits, _ = make_batch()
    pixels = CrossEntropy(reduction="none")(labels, logits).numpy()
    assert pixels.shape == labels.shape
    assert not pixels[labels == 255].any()
    assert pixels[labels != 255].all()
    total = CrossEntropy(reduction="sum")(labels, logits)
    np.testing.assert_allclose(total, pixels.sum(), rtol=1e-5)


def official(labels, logits, step, mining_step, top_k):
    """What tensorflow/models' `add_softmax_cross_entropy_loss_for_each_scale` computes."""
    losses = np.sort(pixel_losses(labels, logits)[0], axis=None)[::-1]
    ratio = 1.0 if mining_step == 0 else min(1.0, step / mining_step)
    kept = losses[: int((ratio * top_k + (1 - ratio)) * losses.size)]
    return kept.sum() / np.count_nonzero(kept)


@pytest.mark.slow
def test_the_official_schedule():
    optimizer = keras.optimizers.SGD(0.1)
    loss = HardPixelMining(0.25, warmup_steps=10, optimizer=optimizer)
    labels, logits, _ = make_batch(0, (2, 7, 9))
    compiled = tf.function(loss, jit_compile=True, autograph=False)
    for step, fraction in ((0, 1), (1, 0.925), (4, 0.7), (10, 0.25), (11, 0.25)):
        optimizer.iterations.assign(step)
        np.testing.assert_allclose(loss.current_fraction(), fraction, rtol=1e-6)
        found = compiled(tf.constant(labels), tf.constant(logits))
        np.testing.assert_allclose(found, official(labels, logits, step, 10, 0.25), rtol=1e-6)
    for fraction in (0.05, 0.6, 1.0):  # without steps it holds from the start
        found = HardPixelMining(fraction)(labels, logits)
        np.testing.assert_allclose(found, official(labels, logits, 0, 0, fraction), rtol=1e-6)


def test_the_map_of_losses_shows_what_is_selected():
    labels, logits, _ = make_batch()
    mined = HardPixelMining(0.25, reduction="none")(labels, logits).numpy()
    plain = CrossEntropy(reduction="none")(labels, logits).numpy()
    assert np.count_nonzero(mined) == labels.size // 4
    np.testing.assert_array_equal(mined[mined > 0], plain[mined > 0])
    assert mined[mined > 0].min() > plain[mined == 0].max()
    hardest = HardPixelMining(1e-6)(labels, logits)  # at least one pixel
    np.testing.assert_allclose(hardest, plain.max(), rtol=1e-6)
    equal = HardPixelMining(0.1, reduction="none")(labels, np.zeros_like(logits)).numpy()
    np.testing.assert_array_equal(equal > 0, labels != 255)


def network(loss_of):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))
    optimizer = keras.optimizers.Adam(0.05)
    model.compile(optimizer, loss_of(optimizer), run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    return model


def mining(optimizer):
    return HardPixelMining(0.2, warmup_steps=4, optimizer=optimizer)


def mining_in_a_sum(optimizer):
    return Sum([mining(optimizer), CrossEntropy()], [1, 0.1])


IMAGES = np.random.default_rng(0).random((8, 6, 5, 3), np.float32)
LABELS = IMAGES.argmax(-1)


def train(model, first=0, last=3, **more):
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, **more}
    model.fit(IMAGES, LABELS, initial_epoch=first, epochs=last, **options)
    return model


@pytest.mark.slow
def test_training_moves_the_fraction_and_a_file_resumes_it(tmp_path):
    whole, fractions = network(mining_in_a_sum), []
    loss = whole.loss.losses[0]
    record = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: fractions.append(float(loss.current_fraction()))
    )
    train(whole, callbacks=[record], validation_data=(IMAGES, LABELS))
    np.testing.assert_allclose(fractions, 1 - 0.2 * np.minimum(np.arange(6), 4), rtol=1e-6)
    stopped = train(network(mining_in_a_sum), last=1)  # where the fraction is half down
    stopped.save(tmp_path / "model.keras")
    stopped.save_weights(tmp_path / "model.weights.h5")
    from_file = keras.models.load_model(tmp_path / "model.keras")
    from_file.run_eagerly = True
    from_weights = network(mining_in_a_sum)
    from_weights.load_weights(tmp_path / "model.weights.h5")
    for second in (from_file, from_weights):
        train(second, first=1)
        for weight, expected in zip(second.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-6)
        assert float(second.loss.losses[0].current_fraction()) == pytest.approx(0.2)
        assert abs(second.get_weights()[0] - stopped.get_weights()[0]).max() > 0.1


def test_the_optimizer_is_saved_once(tmp_path):
    names = []
    for loss_of in (mining, lambda optimizer: CrossEntropy()):
        network(loss_of).save_weights(tmp_path / "model.weights.h5")
        with h5py.File(tmp_path / "model.weights.h5") as file:
            found = []
            file.visit(found.append)
        names.append(sorted(found))
    assert names[0] == names[1]
    assert any(name.startswith("optimizer/") for name in names[0])


def test_an_ignored_image_is_not_in_the_mean_over_images():
    """Not even where each of its classes, without `smooth`, has a loss of 1."""
    labels, logits, _ = make_batch()
    labels[1] = 255
    found = losses.Dice("all", per_image=True)(labels, logits)
    expected = region_mean(labels, logits, None, dice_of_class, "all", per_image=True)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


# The sample weights of the cross-entropy are not sizes.
@pytest.mark.parametrize(
    "kind, weight", [(losses.CrossEntropy, None), (losses.Dice, 0.1), (losses.LovaszSoftmax, 0.1)]
)
def test_a_million_pixels(kind, weight):
    """Sums of float32 one after another would be wrong in the second digit."""
    rng = np.random.default_rng(0)
    labels = (rng.random((2, 700, 700)) < 0.002).astype(np.uint8)
    logits = np.stack([np.full(labels.shape, 3.0), rng.normal(size=labels.shape)], -1)
    expected = []
    probabilities = softmax(logits.astype(np.float32))
    for c in range(2):
        own, found = (labels == c).ravel(), probabilities[..., c].ravel()
        if kind is losses.CrossEntropy:
            expected.append(-2 * np.log(found[own]).sum() / own.size)
        elif kind is losses.Dice:
            expected.append(dice_of_class(own, found, 1.0, 0))
        else:
            errors = np.abs(own - found)
            order = np.argsort(-errors)
            wrong = np.arange(1, own.size + 1)
            jaccard = wrong / (own.sum() + np.cumsum(~own[order]))
            expected.append((errors[order] * np.diff(jaccard, prepend=0)).sum())
    given = None if weight is None else np.full(labels.shape, weight)
    value = kind()(labels, logits.astype(np.float32), given)
    np.testing.assert_allclose(value, np.mean(expected), rtol=1e-5)
