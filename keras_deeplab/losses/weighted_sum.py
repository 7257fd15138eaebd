"""Several losses as one."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_deeplab")
class Sum(keras.losses.Loss):
    """Computes the weighted sum of losses on the same labels and logits.

    Args:
        losses: At least one `keras.losses.Loss` that gives one number per batch.
        weights: One finite number per loss, or None for 1 each.
        name: Name of the loss.
        dtype: Accepted for Keras' sake; each loss computes in its own.

    Call arguments:
        y_true: What the losses take.
        y_pred: What the losses take.
        sample_weight: Handed to each of them.

    Raises:
        ValueError: If there is no loss, one is something else or gives more than one number, or the
            weights are not one per loss.

    Example:

    >>> losses = keras_deeplab.losses
    >>> loss = Sum([losses.CrossEntropy(), losses.LovaszSoftmax()], weights=[1.0, 0.5])
    >>> labels, logits = np.array([[[0, 1, 255]]]), np.zeros((1, 1, 3, 2), "float32")
    >>> float(loss(labels, logits))  # log(2) + 0.5 * 0.5
    0.943...
    """

    def __init__(
        self,
        losses: Sequence[keras.losses.Loss],
        weights: Sequence[float] | None = None,
        name: str = "sum",
        dtype: str | None = None,
    ):
        super().__init__(name=name, reduction="sum", dtype=dtype)
        self.losses = list(losses)
        if not self.losses or not all(isinstance(loss, keras.losses.Loss) for loss in self.losses):
            raise ValueError(
                f"losses must be one or more keras.losses.Loss objects; received {losses!r}"
            )
        maps = [loss.name for loss in self.losses if loss.reduction in (None, "none")]
        if maps:
            raise ValueError(
                'losses must give one number per batch; received losses with reduction="none": '
                f"{maps}"
            )
        given = [1.0] * len(self.losses) if weights is None else weights
        self.weights = [float(weight) for weight in given]
        if len(self.weights) != len(self.losses) or not all(
            abs(weight) < float("inf") for weight in self.weights
        ):
            raise ValueError(
                f"weights must be one finite number for each of the {len(self.losses)} losses; "
                f"received {self.weights}"
            )

    # Each loss reduces for itself, and reads labels and sample weights as it does alone.
    def __call__(
        self,
        y_true: tf.Tensor,
        y_pred: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the sum for a batch."""
        with tf.name_scope(self.name):
            return tf.add_n(
                [
                    weight * tf.cast(loss(y_true, y_pred, sample_weight), tf.float32)
                    for loss, weight in zip(self.losses, self.weights, strict=True)
                ]
            )

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns the sum for a batch."""
        return self(y_true, y_pred)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            "losses": [keras.saving.serialize_keras_object(loss) for loss in self.losses],
            "weights": self.weights,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict) -> Sum:
        """Builds the loss that `get_config` describes."""
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})
