"""Cross-entropy of the hardest pixels."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_deeplab.losses.cross_entropy import CrossEntropy


@keras.saving.register_keras_serializable(package="keras_deeplab")
class HardPixelMining(CrossEntropy):
    """Computes the cross-entropy of the pixels of a batch that have the largest losses.

    The pixels taken are `share` of all pixels of the batch, ignored ones included, rounded down but
    at least one: those of the largest losses, class weights applied. The mean is over the ones
    among them that count. Pixels whose losses equal the smallest one taken are all taken. The rest
    is as in `CrossEntropy`; `sample_weight` has no part in the choice. Under a `tf.distribute`
    strategy each replica takes the share of its own pixels, and the mean is over all pixels taken.

    With `steps` the share falls in a straight line from 1 at step 0 to `share` at step `steps`,
    as with the official code's `hard_example_mining_step`. The step is `optimizer.iterations`:
    validation and several losses in one step do not move it, and it goes on where training goes
    on, since the optimizer is saved with the model: with `BackupAndRestore`, with
    `load_weights` into a model that is compiled anew, and from a `.keras` file, out of which the
    model's optimizer and the loss's come as one object. (A loss made from its configuration
    alone, `keras.losses.deserialize`, has an optimizer of its own that nothing moves: make a new
    one with the optimizer that trains.)

    Args:
        share: Share of the pixels, above 0 and at most 1; the official `top_k_percent_pixels`.
        steps: Steps in which the share falls from 1; 0 for `share` from the first step on.
        optimizer: The very optimizer that the model is compiled with; needed where `steps` is
            above 0.
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        class_weights: One weight of at least 0 per class, or None for equal weights.
        label_smoothing: Share of the target that all classes get in equal parts.
        stride: Takes every stride-th row and column of labels and logits only.
        reduction: `"mean"`, `"sum"`, or `"none"` for the loss map `(batch, height, width)`, which
            is 0 at pixels not taken.
        name: Name of the loss.
        dtype: Accepted for Keras' sake; computations are always in float32.

    Call arguments:
        y_true: Integer labels `(batch, height, width)`, or `(batch, height, width, 1)`.
        y_pred: Logits `(batch, height, width, num_classes)`, float32, float16 or bfloat16.
        sample_weight: Weights per image or per pixel.

    Raises:
        ValueError: If an argument is out of its range, the shapes do not fit, or `steps` is given
            without an optimizer that counts its `iterations`.

    Example:

    >>> labels = np.array([[[0, 0, 0, 0]]])
    >>> logits = np.array([[[[9, 0], [9, 0], [9, 0], [0, 9]]]], "float32")
    >>> float(HardPixelMining(share=0.25)(labels, logits))
    9.00...
    >>> optimizer = keras.optimizers.SGD(0.007)
    >>> loss = HardPixelMining(share=0.25, steps=1000, optimizer=optimizer)
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
        share: float = 0.25,
        steps: int = 0,
        optimizer: keras.optimizers.Optimizer | None = None,
        ignore_label: int | None = 255,
        class_weights: Sequence[float] | None = None,
        stride: int = 1,
        reduction: str | None = "mean",
        name: str = "hard_pixel_mining",
        dtype: str | None = None,
        *,
        label_smoothing: float = 0.0,
    ):
        super().__init__(
            ignore_label,
            class_weights,
            stride,
            reduction,
            name,
            dtype,
            label_smoothing=label_smoothing,
        )
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1; received {share}")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise ValueError(f"steps must be an integer from 0; received {steps!r}")
        if steps > 0 and not hasattr(optimizer, "iterations"):
            raise ValueError(
                "optimizer must be the optimizer that the model is compiled with, where steps is "
                f"above 0; received {optimizer!r} with steps={steps}"
            )
        self.share = float(share)
        self.steps = steps
        # Behind a function, where Keras does not look: as an attribute it would be saved as a part
        # of the loss, and missing where files keep a model's optimizer.
        self._optimizer = lambda: optimizer

    def current_share(self) -> tf.Tensor:
        """Returns the share of the pixels that the present step takes, float32."""
        share = tf.constant(self.share, tf.float32)
        if self.steps == 0:
            return share
        iterations = keras.ops.convert_to_tensor(self._optimizer().iterations)
        done = tf.minimum(tf.cast(iterations, tf.float32) / self.steps, 1.0)
        return done * share + (1.0 - done)

    def _weighted(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        losses, weights = super()._weighted(y_true, y_pred)
        taken = self._hardest(tf.stop_gradient(losses))
        return losses * taken, weights * taken

    def _hardest(self, losses: tf.Tensor) -> tf.Tensor:
        """Returns 1 where a pixel is taken, else 0."""
        flat = tf.reshape(losses, [-1])
        count = tf.cast(self.current_share() * tf.cast(tf.size(flat), tf.float32), tf.int32)
        # All of them sorted, as XLA cannot take a number of largest ones that changes.
        falling = tf.concat([tf.sort(flat, direction="DESCENDING"), [0.0]], 0)  # never empty
        smallest = falling[tf.maximum(count, 1) - 1]
        # So that the NaN of a wrong label is taken too.
        return tf.cast(~(losses < smallest), tf.float32)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        optimizer = self._optimizer()
        if optimizer is not None:
            optimizer = keras.saving.serialize_keras_object(optimizer)
        config = {"share": self.share, "steps": self.steps, "optimizer": optimizer}
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config: dict) -> HardPixelMining:
        """Builds the loss that `get_config` describes."""
        optimizer = config["optimizer"]
        if isinstance(optimizer, dict):
            optimizer = keras.saving.deserialize_keras_object(optimizer)
        return cls(**{**config, "optimizer": optimizer})
