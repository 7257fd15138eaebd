"""Policies of batch norms, and their statistics re-estimated."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import keras_deeplab
from keras_deeplab import layers
from keras_deeplab.batch_norm import momentum_for, reestimate_batch_norm, set_policy
from keras_deeplab.graph.network import all_norms


def network(dropout: float = 0.0, norm: type = layers.BatchNormalization) -> keras.Model:
    """Three norms, the last behind global pooling, the first in a nested model."""
    inner_input = keras.Input((None, None, 4))
    x = norm(name="first")(inner_input)
    inner = keras.Model(inner_input, kl.ReLU()(x), name="inner")
    x = inputs = keras.Input((None, None, 3))
    x = inner(kl.Conv2D(4, 1, name="conv_a")(x))
    x = kl.Dropout(dropout)(x)
    x = norm(name="second", scale=False)(kl.Conv2D(5, 1, name="conv_b")(x))
    x = kl.Conv2D(3, 1, name="conv_c")(kl.GlobalAveragePooling2D(keepdims=True)(x))
    model = keras.Model(inputs, norm(name="third")(x))
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


def batches(*sizes: tuple[int, int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.normal(i, 2, (*size, 3)).astype("float32") for i, size in enumerate(sizes)]


SIZES = ((3, 4, 5), (2, 3, 3), (4, 2, 7))


def norms_of(model: keras.Model) -> list[keras.layers.Layer]:
    inner = model.get_layer("inner")
    return [inner.get_layer("first"), model.get_layer("second"), model.get_layer("third")]


def statistics(model: keras.Model) -> list[np.ndarray]:
    return [
        np.stack([norm.moving_mean.numpy(), norm.moving_variance.numpy()])
        for norm in norms_of(model)
    ]


def reference(model: keras.Model, images: list[np.ndarray]) -> list[np.ndarray]:
    """What the statistics should be, in numpy: all values that a norm sees, put together."""
    first, second, third = norms_of(model)
    seen: list[list[np.ndarray]] = [[], [], []]

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        kernel, bias = (w.numpy().astype(np.float64) for w in model.get_layer(name).weights)
        return x @ kernel[0, 0] + bias

    def normalize(x: np.ndarray, norm: keras.layers.Layer, index: int) -> np.ndarray:
        x = x.reshape(-1, x.shape[-1])
        seen[index].append(x)
        mean, variance = x.mean(0), x.var(0)
        if len(x) == 1:
            mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        gamma = norm.gamma.numpy() if norm.scale else 1
        return (x - mean) / np.sqrt(variance + norm.epsilon) * gamma + norm.beta.numpy()

    for x in images:
        y = normalize(conv(x.astype(np.float64), "conv_a"), first, 0)
        y = normalize(conv(np.maximum(y, 0), "conv_b"), second, 1)
        y = y.reshape(len(x), -1, 5).mean(1)
        normalize(conv(y, "conv_c"), third, 2)
    together = [np.concatenate(parts) for parts in seen]
    return [np.stack([x.mean(0), x.var(0)]) for x in together]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [layers.BatchNormalization, keras.layers.BatchNormalization])
def test_reestimation_takes_all_batches_together(norm):
    model, images = network(dropout=0.9, norm=norm), batches(*SIZES)
    expected = reference(model, images)
    weights = [w.numpy() for w in model.trainable_weights]
    assert reestimate_batch_norm(model, images) == 3
    assert_close(statistics(model), expected)
    for before, after in zip(weights, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(after, before)
    # Again it gives the same, nothing of what was there before counts, even if not finite.
    norms_of(model)[0].moving_variance.assign([np.nan] * 4)
    reestimate_batch_norm(model, images)
    assert_close(statistics(model), expected)


def test_single_values_count_but_nothing_is_normalised_by_them():
    model, images = network(), batches((1, 4, 4), (1, 1, 1), (2, 2, 2))
    expected = reference(model, images)
    reestimate_batch_norm(model, images)
    assert_close(statistics(model), expected)
    # The norm behind pooling gets one value of one image, which has no variance.
    model, images = network(), batches((1, 4, 4))
    kept = statistics(model)[2].copy()
    expected = reference(model, images)
    assert reestimate_batch_norm(model, images) == 2
    assert_close(statistics(model), [*expected[:2], kept])


def test_reestimation_traces_twice_for_all_sizes():
    traces = []

    class Counting(keras.layers.Layer):
        def call(self, x):
            traces.append(x.shape)
            return x

    x = inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.BatchNormalization()(Counting()(x)))
    traces.clear()
    reestimate_batch_norm(model, batches(*SIZES))
    assert len(traces) == 2


def test_reestimation_leaves_frozen_norms_alone():
    model = network()
    first, second, third = norms_of(model)
    first.trainable, second.frozen_statistics = False, True
    before = statistics(model)
    assert reestimate_batch_norm(model, batches(*SIZES)) == 1
    after = statistics(model)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])
    # The third's inputs went through the old statistics of the others.
    below = keras.Model(model.input, third.input)
    seen = np.concatenate([below(x, training=False) for x in batches(*SIZES)])
    assert_close([after[2]], [np.stack([seen.mean((0, 1, 2)), seen.var((0, 1, 2))])])


def failing() -> list:
    yield from batches(SIZES[0])
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    "data, steps, error, words",
    [
        (failing(), None, OSError, "the disk is gone"),
        ([], None, ValueError, "`dataset` must be at least one batch"),
        (batches(*SIZES), 0, ValueError, "`steps` .* Received: steps=0"),
        (
            tf.data.Dataset.from_tensors(0).repeat(),
            None,
            ValueError,
            "`steps` must be a positive integer. Received: steps=None.*repeats",
        ),
        (
            [np.full((2, 2, 2, 3), np.nan)],
            None,
            ValueError,
            "inner/first, second, third that are not finite",
        ),
    ],
)
def test_reestimation_is_all_or_nothing(data, steps, error, words):
    model = network()
    before = statistics(model)
    x = batches(SIZES[0])[0]
    expected = model(x)
    with pytest.raises(error, match=words):
        reestimate_batch_norm(model, data, steps)
    np.testing.assert_array_equal(np.hstack(statistics(model)), np.hstack(before))
    np.testing.assert_array_equal(model(x), expected)


def test_reestimation_refuses_what_it_would_do_wrong():
    x = inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, kl.BatchNormalization(renorm=True, name="odd")(x))
    with pytest.raises(ValueError, match="a mask or `renorm`. Received: layer 'odd'"):
        reestimate_batch_norm(model, batches(*SIZES))
    x = inputs = keras.Input((None, 3))
    model = keras.Model(inputs, kl.BatchNormalization(name="odd")(kl.Masking()(x)))
    with pytest.raises(ValueError, match="a mask or `renorm`. Received: layer 'odd'"):
        reestimate_batch_norm(model, [np.ones((2, 4, 3), np.float32)])


@pytest.mark.slow
def test_reestimation_reaches_the_auxiliary_head_and_composites():
    """In steps of a data set of pairs that repeats."""
    model = small_model(auxiliary_layer="stage16_out")
    images = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), "uint8")
    data = tf.data.Dataset.from_tensor_slices((images, np.zeros((4, 32, 32)))).batch(2)
    norms = [x for x in model._flatten_layers() if isinstance(x, layers.BatchNormalization)]
    before = [norm.moving_variance.numpy() for norm in norms]
    assert reestimate_batch_norm(model, data.repeat(), steps=2) == len(norms) == 10
    moved = [np.abs(n.moving_variance - b).max() for n, b in zip(norms, before, strict=True)]
    assert min(moved) > 1e-4


def small_model(**arguments) -> keras.Model:
    """A DeepLabV3 on a user's network with Keras' own batch norms."""
    x = inputs = keras.Input((None, None, 3), name="pixels")
    for stride in (2, 4, 8, 16):
        x = kl.Conv2D(4, 3, strides=2, padding="same", name=f"stage{stride}")(x)
        x = kl.BatchNormalization(momentum=0.8, name=f"stage{stride}_norm")(x)
        x = kl.ReLU(name=f"stage{stride}_out")(x)
    backbone = keras.Model(inputs, x, name="plain")
    return keras_deeplab.DeepLabV3(
        2, backbone, aspp_filters=4, aspp_rates=(2,), head_filters=4, **arguments
    )


def settings(model: keras.Model) -> set[tuple]:
    """Trainable, frozen statistics, synchronized and momentum of its nine norms."""
    found = [x for x in model._flatten_layers() if isinstance(x, kl.BatchNormalization)]
    assert len(found) == 9
    return {(n.trainable, n.frozen_statistics, n.synchronized, n.momentum) for n in found}


def test_policies():
    model = small_model()
    norm = model.backbone.get_layer("stage2_norm")
    assert (type(norm), norm.epsilon) == (layers.BatchNormalization, 1e-3), "no longer Keras' own"
    count = len(model.trainable_weights)
    assert set_policy(model) == 0
    assert settings(model) == {(True, False, False, 0.8), (True, False, False, 0.9)}
    assert set_policy(model, "freeze_statistics", momentum=0.99) == 9
    assert settings(model) == {(True, True, False, 0.99)}
    assert len(model.trainable_weights) == count
    assert set_policy(model, "freeze", synchronized=True) == 9
    assert settings(model) == {(False, False, True, 0.99)}
    assert len(model.trainable_weights) == count - 2 * 9
    assert set_policy(model.backbone, "train", synchronized=False) == 4
    assert settings(model) == {(True, False, False, 0.99), (False, False, True, 0.99)}


@pytest.mark.slow
def test_policies_survive(tmp_path: Path):
    model = small_model()
    set_policy(model, "freeze_statistics", momentum=0.95, synchronized=True)
    norm = model.get_layer("aspp").project.norm
    norm.momentum, norm.trainable = 0.5, False  # settings of its own
    expected = settings(model)
    assert len(expected) == 2
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for other in (loaded, model.with_output_stride(8), model.with_num_classes(3)):
        assert settings(other) == expected
        assert other.get_layer("aspp").project.norm.momentum == 0.5
    assert settings(loaded.with_output_stride(8)) == expected
    set_policy(loaded)
    assert {each[:2] for each in settings(loaded.with_num_classes(3))} == {(True, False)}


def test_policies_survive_in_a_users_own_model():
    x = inputs = keras.Input((None, None, 3))
    x = layers.BatchNormalization(name="norm")(kl.Conv2D(4, 3, strides=2, padding="same")(x))
    x = layers.ASPP(4, rates=(1,), name="aspp")(kl.Conv2D(4, 3, strides=2, padding="same")(x))
    model = keras.Model(inputs, kl.Conv2D(2, 1)(x))
    plain = model.get_layer("aspp").get_config()
    assert not {"frozen_layers", "norm_settings"} & set(plain)
    for policy in ("freeze_statistics", "freeze"):
        assert set_policy(model, policy, momentum=0.75) == 5
        copy = keras.Model.from_config(model.get_config())
        for other in (copy, keras_deeplab.graph.with_output_stride(copy, 2)):
            norms = [x for x in other._flatten_layers() if isinstance(x, layers.BatchNormalization)]
            found = {(n.trainable, n.frozen_statistics, n.momentum) for n in norms}
            assert found == {(policy != "freeze", policy == "freeze_statistics", 0.75)}
            assert len(norms) == 5


def test_what_is_frozen_as_a_whole_stays_so():
    model = small_model()
    model.backbone.trainable = False
    before = len(model.trainable_variables)
    set_policy(model, "train", momentum=0.5)
    assert len(model.trainable_variables) == before > 0
    inside = all_norms(model.backbone).values()
    assert {(norm.trainable, norm.momentum) for norm in inside} == {(False, 0.5)}
    assert any(norm.trainable for norm in all_norms(model).values())
    assert set_policy(model.backbone, "train") == 0  # the frozen part alone
    model.backbone.trainable = True
    set_policy(model, "freeze")
    set_policy(model, "train")
    assert all(norm.trainable for norm in all_norms(model).values())


def test_keras_own_norms_cannot_freeze_statistics_alone():
    model = network(norm=keras.layers.BatchNormalization)
    kept = keras_deeplab.graph.with_output_stride(model, 1)
    assert type(kept.get_layer("second")) is kl.BatchNormalization
    with pytest.raises(ValueError, match="freeze_statistics.*inner/first, second, third"):
        set_policy(model, "freeze_statistics", momentum=0.5)
    assert {norm.momentum for norm in norms_of(model)} == {0.99}
    assert set_policy(model, "train") == 0
    assert set_policy(model, "freeze", momentum=0.5) == 3
    assert {(n.trainable, n.momentum) for n in norms_of(model)} == {(False, 0.5)}


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"policy": "frozen"}, "`policy` must be one of .*'train'.*Received: policy='frozen'"),
        ({"momentum": 1.0}, r"`momentum` must be a number in \[0, 1\). Received: momentum=1.0"),
        ({"synchronized": "yes"}, "`synchronized` .*Received: synchronized='yes'"),
    ],
)
def test_bad_policies(arguments, words):
    with pytest.raises(ValueError, match=words):
        set_policy(network(), **arguments)


def test_the_momentum_remembers_a_thirtieth_of_the_run():
    for steps in (600, 30000):
        assert 1 / (1 - momentum_for(steps)) == pytest.approx(steps / 30)
    assert (momentum_for(1), momentum_for(10**7)) == (0.9, 0.9997)
    with pytest.raises(ValueError, match="`total_steps` .*Received: total_steps=0"):
        momentum_for(0)
    with pytest.raises(ValueError, match="`memory` .*Received: memory=0"):
        momentum_for(2000, memory=0)
