from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_references import WEIGHTS, finite_differences, make_batch, pixel_losses, pixel_mean

from keras_deeplab.losses import CrossEntropy, HardPixelMining, Sum


def official(labels, logits, step, mining_step, top_k, weights=None):
    """What tensorflow/models' `add_softmax_cross_entropy_loss_for_each_scale` computes."""
    losses = np.sort(pixel_losses(labels, logits, class_weights=weights)[0], axis=None)[::-1]
    ratio = 1.0 if mining_step == 0 else min(1.0, step / mining_step)
    kept = losses[: int((ratio * top_k + (1 - ratio)) * losses.size)]
    return kept.sum() / np.count_nonzero(kept)


@pytest.mark.parametrize("step, share", [(0, 1), (1, 0.925), (4, 0.7), (10, 0.25), (11, 0.25)])
@pytest.mark.parametrize("jit", [False, True])
def test_the_official_schedule(step, share, jit):
    optimizer = keras.optimizers.SGD(0.1)
    loss = HardPixelMining(0.25, warmup_steps=10, optimizer=optimizer)
    compiled = tf.function(loss, jit_compile=jit)
    for seed in range(3):
        labels, logits, _ = make_batch(seed, (2, 7, 9))
        optimizer.iterations.assign(step)
        np.testing.assert_allclose(loss.current_fraction(), share, rtol=1e-6)
        np.testing.assert_allclose(
            compiled(tf.constant(labels), tf.constant(logits)),
            official(labels, logits, step, 10, 0.25),
            rtol=1e-6,
        )


@pytest.mark.parametrize("step, share", [(0, 1.0), (4, 0.7), (20, 0.25)])
def test_gradients_on_the_way_equal_finite_differences(step, share):
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.iterations.assign(step)
    options = {"class_weights": WEIGHTS, "label_smoothing": 0.1}
    loss = HardPixelMining(0.25, warmup_steps=10, optimizer=optimizer, **options)
    labels, logits, weights = make_batch(2, (2, 3, 5))
    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(labels, x, weights)
    found = tape.gradient(value, x).numpy()

    def numpy_loss(given):
        return pixel_mean(labels, given, weights, share, class_weights=WEIGHTS, smoothing=0.1)

    expected = finite_differences(numpy_loss, logits)
    assert np.abs(expected).max() > 1e-3
    assert not found[labels == 255].any()
    np.testing.assert_allclose(found, expected, atol=2e-7, rtol=2e-5)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.6, 1.0])
def test_without_steps_the_share_holds_from_the_start(share):
    labels, logits, _ = make_batch()
    value = HardPixelMining(share)(labels, logits)
    np.testing.assert_allclose(value, official(labels, logits, 0, 0, share), rtol=1e-6)
    np.testing.assert_allclose(value, pixel_mean(labels, logits, share=share), rtol=1e-6)


def test_everything_is_plain_cross_entropy():
    labels, logits, weights = make_batch()
    options = {"class_weights": [1, 2, 3, 4], "label_smoothing": 0.1, "stride": 2}
    np.testing.assert_allclose(
        HardPixelMining(1, **options)(labels, logits, weights),
        CrossEntropy(**options)(labels, logits, weights),
        rtol=1e-6,
    )


def test_the_map_of_losses_shows_what_is_taken():
    labels, logits, _ = make_batch()
    mined = HardPixelMining(0.25, reduction="none")(labels, logits).numpy()
    plain = CrossEntropy(reduction="none")(labels, logits).numpy()
    assert np.count_nonzero(mined) == labels.size // 4
    np.testing.assert_array_equal(mined[mined > 0], plain[mined > 0])
    assert mined[mined > 0].min() > plain[mined == 0].max()


def test_at_least_one_pixel_and_all_of_equal_ones():
    labels, logits, _ = make_batch()
    hardest = pixel_losses(labels, logits)[0].max()
    np.testing.assert_allclose(HardPixelMining(1e-6)(labels, logits), hardest, rtol=1e-6)
    mined = HardPixelMining(0.1, reduction="none")(labels, np.zeros_like(logits)).numpy()
    np.testing.assert_array_equal(mined > 0, labels != 255)


def network(loss_of, policy="float32"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1, dtype=policy)(inputs))
    optimizer = keras.optimizers.Adam(0.05)
    model.compile(optimizer, loss_of(optimizer))
    return model


def mining(optimizer):
    return HardPixelMining(0.2, warmup_steps=8, optimizer=optimizer)


def mining_in_a_sum(optimizer):
    return Sum([mining(optimizer), CrossEntropy()], [1, 0.1])


@pytest.fixture
def pictures():
    images = np.random.default_rng(0).random((8, 6, 5, 3), np.float32)
    return images, images.argmax(-1)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_training_moves_it_and_validation_does_not(pictures, policy):
    model, shares = network(mining, policy), []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: shares.append(float(model.loss.current_fraction()))
    )
    model.fit(
        *pictures,
        batch_size=2,
        epochs=3,
        shuffle=False,
        verbose=0,
        validation_data=pictures,
        callbacks=[record],
    )
    np.testing.assert_allclose(shares, 1 - 0.1 * np.minimum(np.arange(12), 8), rtol=1e-6)


@pytest.mark.parametrize("loss_of", [mining, mining_in_a_sum])
@pytest.mark.parametrize("how", ["file", "weights", "backup"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(pictures, tmp_path, loss_of, how):
    """Stopped after 4 of 12 steps, where the share is half down."""
    options = {"batch_size": 2, "shuffle": False, "verbose": 0}
    whole = network(loss_of)
    whole.fit(*pictures, epochs=3, **options)
    first = network(loss_of)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    first.fit(*pictures, epochs=1, callbacks=[backup], **options)
    second = network(loss_of)
    callbacks = []
    if how == "file":
        first.save(tmp_path / "model.keras")
        second = keras.models.load_model(tmp_path / "model.keras")
    elif how == "weights":
        first.save_weights(tmp_path / "model.weights.h5")
        second.optimizer.build(second.trainable_variables)
        second.load_weights(tmp_path / "model.weights.h5")
    else:
        callbacks = [backup]
    resumed = second.fit(*pictures, initial_epoch=1, epochs=3, callbacks=callbacks, **options)
    assert len(resumed.history["loss"]) == 2
    for weight, expected in zip(second.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-6)
    mined = second.loss if loss_of is mining else second.loss.losses[0]
    assert float(mined.current_fraction()) == pytest.approx(0.2)
    assert abs(whole.get_weights()[0] - first.get_weights()[0]).max() > 0.1


def test_the_optimizer_is_saved_where_it_always_is(pictures, tmp_path):
    names = []
    for loss_of in (mining, lambda optimizer: CrossEntropy()):
        model = network(loss_of)
        model.fit(*pictures, verbose=0)
        model.save_weights(tmp_path / "model.weights.h5")
        with h5py.File(tmp_path / "model.weights.h5") as file:
            found = []
            file.visit(found.append)
        names.append(sorted(found))
    assert names[0] == names[1]
    assert any(name.startswith("optimizer/") for name in names[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"fraction": 0}, r"`fraction` must be a number in \(0, 1\]. Received: fraction=0"),
        ({"fraction": 1.5}, "`fraction`"),
        ({"warmup_steps": -1}, "`warmup_steps` must be a non-negative integer. Received"),
        ({"warmup_steps": 2.5}, "`warmup_steps`"),
        ({"warmup_steps": 100}, "`optimizer` must be .* Received: optimizer=None"),
        ({"warmup_steps": 100, "optimizer": "sgd"}, "`optimizer` must be .* Received.*'sgd'"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        HardPixelMining(**arguments)
