"""Batch norm as segmentation is trained: fused, safe on single values, with frozen statistics."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from keras_deeplab.layers.dilated_conv import is_graph_with_gradients, is_onednn_graph
from keras_deeplab.validation import boolean

# What may be changed on a norm that is there already; see `BatchNormalization.changed_settings`.
_SETTINGS = ("momentum", "synchronized", "frozen_statistics")


@keras.saving.register_keras_serializable(package="keras_deeplab")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch norm, with its weights and results, for the training of segmentation.

    Maps go through TensorFlow's fused operation, also in half precision: on a CPU Keras' own dozen
    of operations are over a third of a training step. Where a channel has a single value in the
    whole batch, as after the global pooling of ASPP when the last batch of an epoch holds one
    image, the batch's statistics would turn every image into `beta` and pull the moving variance to
    0: there the moving statistics are used, and not updated. Compile a model again after changes of
    `momentum`, `synchronized` and `frozen_statistics`.

    Args:
        axis, momentum, epsilon, center, scale, **kwargs: As of `keras.layers.BatchNormalization`.
        frozen_statistics: Whether the moving statistics normalise in training too, and stay as they
            are, while gamma and beta are trained: the papers' training at stride 8, on batches too
            small for statistics.

    Example:

    >>> layer = keras_deeplab.layers.BatchNormalization(momentum=0.99, frozen_statistics=True)
    >>> layer(keras.random.normal((8, 33, 33, 256)), training=True).shape
    TensorShape([8, 33, 33, 256])
    >>> float(layer.moving_mean[0])
    0.0

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167); statistics frozen at output
        stride 8: [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), section 4.1.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        *,
        frozen_statistics: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(axis, momentum, epsilon, center, scale, **kwargs)
        self.frozen_statistics = boolean("frozen_statistics", frozen_statistics)
        self._made_with = tuple(getattr(self, name) for name in _SETTINGS)

    @property
    def changed_settings(self) -> dict[str, Any]:
        """The settings changed since construction, which the layer around this one saves."""
        return {
            name: getattr(self, name)
            for name, made in zip(_SETTINGS, self._made_with, strict=True)
            if getattr(self, name) != made
        }

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        by_batch = bool(training) and self.trainable and not self.frozen_statistics
        if not self._fits_fused(inputs, mask, by_batch):
            return super().call(inputs, training=by_batch, mask=mask)
        if by_batch:
            return self._normalized_by_batch(inputs)
        return self._normalized_by_moving(inputs, training)

    def _fits_fused(self, inputs: Any, mask: Any, by_batch: bool) -> bool:
        is_map = len(inputs.shape) == 4 and self.axis in (-1, 3) and mask is None
        if not is_map or inputs.dtype.name not in ("float32", "bfloat16", "float16"):
            return False
        return not (by_batch and (self.renorm or self._spans_replicas()))

    def _spans_replicas(self) -> bool:
        return self.synchronized and tf.distribute.get_strategy().num_replicas_in_sync > 1

    def _moving(self) -> tuple[tf.Tensor, tf.Tensor]:
        return tuple(tf.cast(x, tf.float32) for x in (self.moving_mean, self.moving_variance))

    def _scale_and_offset(self, channels: int) -> tuple[tf.Tensor, tf.Tensor]:
        return (
            tf.cast(self.gamma, tf.float32) if self.scale else tf.ones([channels]),
            tf.cast(self.beta, tf.float32) if self.center else tf.zeros([channels]),
        )

    def _fused(self, inputs: tf.Tensor, *moving: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Normalised by the given mean and variance, or by the batch's, which are returned.

        The batch's variance is the unbiased one: that of the values, times N / (N - 1).
        """
        scale, offset = self._scale_and_offset(inputs.shape[-1])
        mean, variance = moving or (tf.zeros([0]), tf.zeros([0]))
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            is_training=not moving,
        )
        return tf.cast(outputs, self.compute_dtype), mean, variance

    def _normalized_by_moving(self, inputs: tf.Tensor, training: bool | None) -> tf.Tensor:
        """Normalised by the moving statistics.

        Not fused, where TensorFlow makes a convolution, the fused operation and an activation after
        it one operation of oneDNN, which on processors without AVX-512 takes over twenty times as
        long; nor with `enable_op_determinism`, as a GPU raises an error at its gradient then.
        """
        deterministic = is_op_determinism_enabled() and is_graph_with_gradients()
        if deterministic or (not training and is_onednn_graph()):
            return self._multiplied(inputs)
        return self._fused(inputs, *self._moving())[0]

    def _multiplied(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalised by the moving statistics, as a product and a sum."""
        scale, offset = self._scale_and_offset(inputs.shape[-1])
        mean, variance = self._moving()
        factor = scale * tf.math.rsqrt(variance + self.epsilon)
        outputs = tf.cast(inputs, tf.float32) * factor + (offset - mean * factor)
        return tf.cast(outputs, self.compute_dtype)

    def _normalized_by_batch(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalises by the batch's statistics where it has any, and updates the moving ones."""
        moving, count = self._moving(), self._count(inputs)

        def several() -> tuple[tf.Tensor, ...]:
            outputs, mean, variance = self._fused(inputs)
            number = tf.cast(count, tf.float32)
            batch = (mean, variance * ((number - 1) / number))
            updated = (
                # A strategy gives empty batches to the replicas that the last images do not reach.
                tf.where(count > 0, old * self.momentum + new * (1 - self.momentum), old)
                for old, new in zip(moving, batch, strict=True)
            )
            return (outputs, *updated)

        def single() -> tuple[tf.Tensor, ...]:
            return (self._normalized_by_moving(inputs, training=True), *moving)

        if self._is_surely_several(inputs):  # a condition would only cost time
            outputs, mean, variance = several()
        else:
            outputs, mean, variance = tf.cond(count > 1, several, single)
        # Outside of the condition: replicas of a strategy cannot synchronize inside one.
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)
        return outputs

    def _moments(self, inputs: tf.Tensor, mask: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Keras' moments where the norm is not fused; the moving statistics for a single value."""
        moments = super()._moments(inputs, mask)
        if mask is None and self._is_surely_several(inputs):
            return moments
        replica = tf.distribute.get_replica_context()
        count = self._count(inputs) if mask is None else tf.reduce_sum(tf.cast(mask, tf.int64))
        if mask is None and replica is not None and self._spans_replicas():
            count = replica.all_reduce(tf.distribute.ReduceOp.SUM, count)
        return tuple(
            tf.where(count > 1, batch, tf.cast(old, batch.dtype))
            for batch, old in zip(moments, self._moving(), strict=True)
        )

    def _count(self, inputs: tf.Tensor) -> tf.Tensor:
        """Number of values in a channel."""
        return tf.reduce_prod(tf.gather(tf.shape(inputs, tf.int64), self._reduction_axes))

    def _is_surely_several(self, inputs: tf.Tensor) -> bool:
        """Whether the known part of the shape gives each channel more than one value."""
        known = (inputs.shape[axis] for axis in self._reduction_axes)
        return math.prod(size for size in known if size is not None) > 1

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "frozen_statistics": self.frozen_statistics}
