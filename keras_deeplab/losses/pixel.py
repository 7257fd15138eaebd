"""Losses that are a weighted mean over pixels: cross-entropy, focal, hard pixel mining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.losses.base import LabelMapLoss

# A power below 1 has an infinite slope at 0, which times 0 is NaN.
_SMALLEST_ERROR = 1e-12


@keras.saving.register_keras_serializable(package="keras_deeplab")
class CrossEntropy(LabelMapLoss):
    """Computes the cross-entropy between logits and a label map with ignored pixels.

    The mean is over the valid pixels: with class weights it is `sum(weight * loss) / sum(weight)`,
    as in PyTorch. A `sample_weight` multiplies the losses and not the divisor, as in Keras. If all
    pixels are ignored, loss and gradients are 0. The loss is computed in float32, whatever the
    dtype of the logits, and under a `tf.distribute` strategy over the pixels of all replicas.

    A label that is neither a class nor the ignored one raises an error; in a function compiled by
    XLA, which cannot raise, the loss is NaN.

    Args:
        ignore_label: Label of the ignored pixels, or None if every pixel counts.
        class_weights: One non-negative weight per class, or None for equal weights;
            `losses.class_weights` computes them for a data set.
        stride: Uses every stride-th row and column of labels and logits only. DeepLab V1 and V2
            compute the loss on labels shrunk 8 times, which is the same.
        reduction: `"mean"`, `"sum"`, or `"none"` for the loss map `(batch, height, width)`, which
            is 0 at ignored pixels.
        name: Name of the loss.
        label_smoothing: Share of the target, in [0, 1), that is spread evenly over all classes.

    Call arguments:
        y_true: Integer labels `(batch, height, width)`, or `(batch, height, width, 1)`.
        y_pred: Logits `(batch, height, width, num_classes)`, float32, float16 or bfloat16.
        sample_weight: Weights `(batch,)`, `(batch, 1)`, `(batch, height, width)` or
            `(batch, height, width, 1)`.

    Raises:
        ValueError: If an argument is out of its range, or the shapes do not fit.

    Example:

    >>> loss = CrossEntropy(class_weights=[1.0, 3.0])
    >>> labels = np.array([[[0, 1], [255, 255]]])
    >>> logits = np.zeros((1, 2, 2, 2), "float32")
    >>> float(loss(labels, logits))
    0.693...

    Reference:
        - [Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs](
          https://arxiv.org/abs/1412.7062): the sum of cross-entropies of all positions.
        - [Rethinking the Inception Architecture for Computer Vision](
          https://arxiv.org/abs/1512.00567), section 7: label smoothing.
    """

    def __init__(
        self,
        ignore_label: int | None = 255,
        class_weights: Sequence[float] | None = None,
        stride: int = 1,
        reduction: str | None = "mean",
        name: str | None = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__(ignore_label, stride, reduction, name)
        if class_weights is not None:
            if not isinstance(class_weights, list | tuple):  # such as an array
                class_weights = np.asarray(class_weights).tolist()
            class_weights = list(validation.numbers("class_weights", class_weights))
            if any(weight < 0 for weight in class_weights):
                raise validation.error("class_weights", "non-negative numbers", class_weights)
        self.class_weights = class_weights
        self.label_smoothing = validation.fraction(
            "label_smoothing", label_smoothing, below_one=True
        )

    def _parts(
        self, logits: tf.Tensor, classes: tf.Tensor, weights: tf.Tensor, sample_weight: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if self.class_weights is not None:
            if len(self.class_weights) != logits.shape[-1]:
                rule = f"one weight for each of the {logits.shape[-1]} classes"
                raise validation.error("class_weights", rule, self.class_weights)
            weights *= tf.gather(tf.constant(self.class_weights, tf.float32), classes)
        plain = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=logits)
        return self._pixel_losses(plain, logits) * weights * sample_weight, weights

    def _pixel_losses(self, losses: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the losses of pixels with the plain cross-entropies `losses`."""
        if self.label_smoothing == 0:
            return losses
        # The mean of the cross-entropies of all classes, without one-hot targets.
        every_class = tf.reduce_logsumexp(logits, -1) - tf.reduce_mean(logits, -1)
        return losses + self.label_smoothing * (every_class - losses)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        own = {"class_weights": self.class_weights, "label_smoothing": self.label_smoothing}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="keras_deeplab")
class Focal(CrossEntropy):
    """Computes the focal loss, which down-weights pixels that are predicted well.

    A pixel whose label has the probability `p` has the loss `-(1 - p) ** gamma * log(p)`. With
    `gamma=0` it is `CrossEntropy`, from which it differs in nothing else.

    Args:
        gamma: Exponent, non-negative.
        **options: Arguments of `CrossEntropy`; `class_weights` is the paper's alpha.

    Example:

    >>> labels, logits = np.array([[[0, 255]]]), np.zeros((1, 1, 2, 2), "float32")
    >>> float(Focal(gamma=2)(labels, logits))  # a quarter of log(2)
    0.173...

    Reference:
        - [Focal Loss for Dense Object Detection](https://arxiv.org/abs/1708.02002), section 3.2,
          equation 5; over the softmax of all classes.
    """

    def __init__(self, gamma: float = 2.0, **options: Any):
        super().__init__(**options)
        self.gamma = validation.non_negative("gamma", gamma)

    def _pixel_losses(self, losses: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        error = tf.maximum(-tf.math.expm1(-losses), _SMALLEST_ERROR)
        return error**self.gamma * super()._pixel_losses(losses, logits)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="keras_deeplab")
class HardPixelMining(CrossEntropy):
    """Computes the cross-entropy of the top-k pixels of a batch by loss (OHEM).

    k is `fraction` of all pixels of the batch, ignored ones included, rounded down but at least
    one. Losses are ranked with class weights and without `sample_weight`, and ties with the
    smallest one are included. The mean is over the valid pixels among them. Each replica of a
    `tf.distribute` strategy selects among its own pixels.

    With `warmup_steps` the fraction falls linearly from 1 at step 0 to `fraction`, as with the
    official `hard_example_mining_step`. The step is `optimizer.iterations`, so it resumes with the
    optimizer, also from a `.keras` file, where the model and the loss share one.

    Args:
        fraction: Fraction of the pixels, in (0, 1]; the official `top_k_percent_pixels`.
        warmup_steps: Steps in which the fraction falls from 1; 0 for `fraction` throughout.
        optimizer: The optimizer that the model is compiled with; required by `warmup_steps`.
        **options: Arguments of `CrossEntropy`. The loss map of `reduction="none"` is 0 at pixels
            that are not selected.

    Example:

    >>> labels = np.array([[[0, 0, 0, 0]]])
    >>> logits = np.array([[[[9, 0], [9, 0], [9, 0], [0, 9]]]], "float32")
    >>> float(HardPixelMining(fraction=0.25)(labels, logits))
    9.00...
    >>> optimizer = keras.optimizers.SGD(0.007)
    >>> loss = HardPixelMining(fraction=0.25, warmup_steps=1000, optimizer=optimizer)
    >>> model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 1)])
    >>> model.compile(optimizer, loss)

    Reference:
        - `add_softmax_cross_entropy_loss_for_each_scale` in the [official code](
          https://github.com/tensorflow/models/blob/master/research/deeplab/utils/train_utils.py).
        - [DeeperLab: Single-Shot Image Parser](https://arxiv.org/abs/1902.05093): training
          on the pixels of the largest losses.
    """

    def __init__(
        self,
        fraction: float = 0.25,
        warmup_steps: int = 0,
        optimizer: keras.optimizers.Optimizer | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        if not validation.is_number(fraction) or not 0 < fraction <= 1:
            raise validation.error("fraction", "a number in (0, 1]", fraction)
        self.fraction = float(fraction)
        self.warmup_steps = validation.integer("warmup_steps", warmup_steps, minimum=0)
        if warmup_steps > 0 and not hasattr(optimizer, "iterations"):
            rule = "the optimizer that the model is compiled with, where `warmup_steps` is given"
            raise validation.error("optimizer", rule, optimizer)
        # In a function, as Keras would save an attribute as part of the loss, where files with the
        # model's optimizer lack it.
        self._optimizer = lambda: optimizer

    def current_fraction(self) -> tf.Tensor:
        """Returns the fraction of the pixels that the current step selects, float32."""
        fraction = tf.constant(self.fraction, tf.float32)
        if self.warmup_steps == 0:
            return fraction
        iterations = keras.ops.convert_to_tensor(self._optimizer().iterations)
        done = tf.minimum(tf.cast(iterations, tf.float32) / self.warmup_steps, 1.0)
        return done * fraction + (1.0 - done)

    def _parts(
        self, logits: tf.Tensor, classes: tf.Tensor, weights: tf.Tensor, sample_weight: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        losses, weights = super()._parts(logits, classes, weights, tf.ones([]))
        flat = tf.reshape(tf.stop_gradient(losses), [-1])
        k = tf.cast(self.current_fraction() * tf.cast(tf.size(flat), tf.float32), tf.int32)
        # A sort, as XLA supports no top-k with a k that changes.
        falling = tf.concat([tf.sort(flat, direction="DESCENDING"), [0.0]], 0)  # never empty
        smallest = falling[tf.maximum(k, 1) - 1]
        # Negated, so that the NaN of an invalid label is selected.
        selected = tf.cast(~(tf.stop_gradient(losses) < smallest), tf.float32)
        return losses * selected * sample_weight, weights * selected

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        optimizer = self._optimizer()
        return {
            **super().get_config(),
            "fraction": self.fraction,
            "warmup_steps": self.warmup_steps,
            "optimizer": optimizer and keras.saving.serialize_keras_object(optimizer),
        }

    @classmethod
    def from_config(cls, config: dict) -> HardPixelMining:
        """Builds the loss that `get_config` describes."""
        optimizer = config["optimizer"]
        if isinstance(optimizer, dict):
            optimizer = keras.saving.deserialize_keras_object(optimizer)
        return cls(**{**config, "optimizer": optimizer})
