"""Batch norms of a whole model: how they are trained, and how their statistics are re-estimated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.graph.network import all_layers, all_norms, functional, intercepted_calls
from keras_deeplab.layers import BatchNormalization

POLICIES = ("train", "freeze_statistics", "freeze")
_SMALLEST_MOMENTUM, _LARGEST_MOMENTUM = 0.9, 0.9997


def set_policy(
    model: keras.Model,
    policy: str | None = "train",
    synchronized: bool | None = None,
    momentum: float | None = None,
) -> int:
    """Sets how all batch norms of a model are trained.

    The papers train at output stride 16 with `"train"`, then at 8 with `"freeze"`, on batches too
    small for statistics. Call it before `compile`. The settings are saved in a `.keras` file and
    kept by `with_output_stride` and `with_num_classes`.

    Args:
        model: Any model with layers; nested models and the package's composite layers are entered.
            For a part of a model pass the part, such as `model.backbone`.
        policy: `"train"`: gamma, beta and the moving statistics are trained, except inside a frozen
            parent, such as `model.backbone`. `"freeze_statistics"`: gamma and beta are trained; the
            moving statistics normalise and stay constant. `"freeze"`: everything stays constant.
            None keeps each layer's setting.
        synchronized: Whether the statistics of a batch are computed over all replicas; None keeps
            each layer's setting.
        momentum: Momentum of the moving statistics, in [0, 1); None keeps each layer's setting. See
            `momentum_for`.

    Returns:
        The number of batch norms that changed.

    Raises:
        ValueError: If an argument is out of its range, or the model has Keras' own batch norms and
            `policy` is `"freeze_statistics"`, which they do not support. Nothing is changed then.

    Example:

    >>> model = keras_deeplab.DeepLabV3Plus(3, "mobilenet_v2")
    >>> keras_deeplab.batch_norm.set_policy(model, "freeze_statistics")
    65
    >>> keras_deeplab.batch_norm.set_policy(model, "freeze_statistics")
    0

    Reference:
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), section 4.1.
    """
    settings: dict[str, Any] = {}
    if policy is not None:
        settings["trainable"] = validation.one_of("policy", policy, POLICIES) != "freeze"
        settings["frozen_statistics"] = policy == "freeze_statistics"
    if synchronized is not None:
        settings["synchronized"] = validation.boolean("synchronized", synchronized)
    if momentum is not None:
        settings["momentum"] = validation.fraction("momentum", momentum, below_one=True)
    norms = all_norms(model)
    if policy == "freeze_statistics":
        foreign = [path for path, norm in norms.items() if not isinstance(norm, BatchNormalization)]
        if foreign:
            raise ValueError(
                f"`policy={policy!r}` requires keras_deeplab.layers.BatchNormalization. These "
                f"layers are keras.layers.BatchNormalization: {', '.join(foreign)}"
            )
    parents = {"": model, **{f"{path}/": layer for path, layer in all_layers(model).items()}}
    frozen = tuple(path for path, layer in parents.items() if not layer.trainable)
    changed = 0
    for path, norm in norms.items():
        own = {**settings, "trainable": False} if path.startswith(frozen) else settings
        # Keras' own layer has no `frozen_statistics`, and is only reached with False.
        differing = {k: v for k, v in own.items() if getattr(norm, k, False) != v}
        for name, value in differing.items():
            setattr(norm, name, value)
        changed += bool(differing)
    return changed


def momentum_for(total_steps: int, memory: float = 1 / 30) -> float:
    """Computes a momentum of moving statistics for a run of `total_steps`.

    Moving statistics average about the last `1 / (1 - momentum)` steps. The papers' 0.9997 averages
    3300 of their 30000 steps; after a run of 2000 steps 55 % of the initial values would remain.

    Args:
        total_steps: Number of steps of the whole run.
        memory: Share of the steps that is averaged: a ninth in the papers. With a tenth the mean
            IoU of a run on CamVid was still 3 % after a fifth of it, on crops in training 60 %.

    Returns:
        `1 - 1 / (memory * total_steps)`, clipped to [0.9, 0.9997].

    Raises:
        ValueError: If `total_steps` is not a positive integer, or `memory` is not positive.

    Example:

    >>> [keras_deeplab.batch_norm.momentum_for(steps) for steps in (50, 2000, 30000, 10**6)]
    [0.9, 0.985, 0.999, 0.9997]
    """
    validation.integer("total_steps", total_steps)
    validation.positive("memory", memory)
    return float(np.clip(1 - 1 / (memory * total_steps), _SMALLEST_MOMENTUM, _LARGEST_MOMENTUM))


def reestimate_batch_norm(
    model: keras.Model, dataset: Iterable[Any], steps: int | None = None
) -> int:
    """Re-estimates the moving statistics of a model's batch norms (precise batch norm).

    Every batch runs through the model, normalised by its own statistics, without dropout. The
    moving mean and variance of each norm become those of all its inputs in all batches together.
    Weights and frozen norms (`trainable` or statistics) do not change. Norms behind global pooling
    need batches of two images or more: a single value has no variance.

    Args:
        model: A functional model.
        dataset: Batches of images, or tuples that begin with them, as for `fit`: a
            `tf.data.Dataset` or any iterable. For a small data set pass all images.
        steps: Maximum number of batches; None for all.

    Returns:
        The number of norms with new statistics.

    Raises:
        ValueError: If there are no batches or infinitely many, `steps` is out of its range, a norm
            uses a mask or `renorm`, or statistics are not finite. After any error the model is
            unchanged.

    Example:

    >>> model = keras_deeplab.DeepLabV3(3, "mobilenet_v2", output_stride=16)
    >>> fine = model.with_output_stride(8)
    >>> images = np.random.default_rng(0).uniform(0, 255, (4, 65, 65, 3))
    >>> dataset = tf.data.Dataset.from_tensor_slices(images).batch(2)
    >>> keras_deeplab.reestimate_batch_norm(fine, dataset)
    58

    Reference:
        [Wu and Johnson, 2021, Rethinking "Batch" in BatchNorm](https://arxiv.org/abs/2105.07576),
        section 3.
    """
    if steps is not None:
        validation.integer("steps", steps)
    elif (
        isinstance(dataset, tf.data.Dataset)
        and dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    ):
        advice = "The dataset repeats without end."
        raise validation.error("steps", "a positive integer", None, advice)
    network = getattr(model, "training_graph", None) or model  # with the auxiliary head
    norms = {
        path: norm
        for path, norm in all_norms(model).items()
        if norm.trainable and not getattr(norm, "frozen_statistics", False)
    }
    moments_of = _moments_function(network, norms)
    # Of each norm's values in all batches the count, and the sums of them and of their squares.
    counts: Counter[str] = Counter()
    sums: dict[str, Any] = dict.fromkeys(norms, 0.0)
    batch = None
    for batch in islice(dataset, steps):
        for path, calls in moments_of(batch[0] if isinstance(batch, tuple) else batch).items():
            for call in calls:
                count, mean, variance = (value.numpy().astype(np.float64) for value in call)
                if count:
                    counts[path] += count
                    sums[path] = sums[path] + count * np.stack([mean, variance + mean**2])
    if batch is None:
        raise validation.error("dataset", "at least one batch", dataset)
    estimated = {}
    for path, count in counts.items():
        if count > 1:  # a single value has no variance
            mean, square = sums[path] / count
            estimated[path] = (mean, np.maximum(square - mean**2, 0))
    broken = [path for path, both in estimated.items() if not np.isfinite(both).all()]
    if broken:
        raise ValueError(
            "`dataset` must give finite statistics. Received: statistics of the layers "
            f"{', '.join(broken)} that are not finite. No layer was changed."
        )
    for path, (mean, variance) in estimated.items():
        norms[path].moving_mean.assign(mean)
        norms[path].moving_variance.assign(variance)
    return len(estimated)


def _moments_function(
    network: keras.Model, norms: dict[str, keras.layers.BatchNormalization]
) -> Callable[[Any], dict[str, list[Any]]]:
    """A function from images to (count, mean, variance) of each norm's calls by path.

    It is traced for the first size, which any layer can trace, and then for all others together.
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def traced(images: Any) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {path: [] for path in norms}

        def normalised_by_batch(
            path: str, _: Any, inputs: tf.Tensor, training: Any = None, mask: Any = None
        ) -> tf.Tensor:
            del training
            outputs, *moments = _normalised(path, norms[path], inputs, mask)
            found[path].append(moments)
            return outputs

        with intercepted_calls(norms, normalised_by_batch):
            network(images, training=False)
        return found

    return lambda images: traced(
        keras.tree.map_structure(
            lambda spec, x: tf.cast(x, spec.dtype), functional(network).input, images
        )
    )


def _normalised(
    path: str, norm: keras.layers.BatchNormalization, inputs: tf.Tensor, mask: Any
) -> tuple[tf.Tensor, ...]:
    """The inputs normalised by the batch if it has a variance; its count, mean and variance."""
    if mask is not None or norm.renorm:
        raise ValueError(
            f"`model` must have batch norms without a mask or `renorm`. Received: layer '{path}'"
        )
    x = tf.cast(inputs, tf.float32)
    axes = [axis for axis in range(len(x.shape)) if axis != norm.axis % len(x.shape)]
    count = tf.reduce_prod(tf.gather(tf.shape(x, tf.int64), axes))
    moments = tf.nn.moments(x, axes)
    moving, (beta, gamma) = (
        [None if v is None else tf.cast(v, tf.float32) for v in variables]
        for variables in ((norm.moving_mean, norm.moving_variance), (norm.beta, norm.gamma))
    )
    used = (tf.where(count > 1, *pair) for pair in zip(moments, moving, strict=True))
    outputs = keras.ops.batch_normalization(x, *used, norm.axis, beta, gamma, norm.epsilon)
    return tf.cast(outputs, norm.compute_dtype), count, *moments
