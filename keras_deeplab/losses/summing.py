"""Weighted sums of losses, and losses from text such as `"cross_entropy + 0.5 * dice"`."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.losses.pixel import CrossEntropy, Focal, HardPixelMining
from keras_deeplab.losses.region import Dice, LovaszSoftmax

LOSSES: dict[str, type[keras.losses.Loss]] = {
    "cross_entropy": CrossEntropy,
    "dice": Dice,
    "focal": Focal,
    "hard_pixel_mining": HardPixelMining,
    "lovasz_softmax": LovaszSoftmax,
}
# A sum needs the default reduction, and an optimizer cannot be written as text.
_NOT_IN_TEXT = {"name", "optimizer", "reduction"}


@keras.saving.register_keras_serializable(package="keras_deeplab")
class Sum(keras.losses.Loss):
    """Computes the weighted sum of losses on the same labels and logits.

    Args:
        losses: `keras.losses.Loss` objects, each with a reduction to one number.
        weights: One finite number per loss, or None for 1 each.
        name: Name of the loss.

    Raises:
        ValueError: If an argument is out of its range.

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
    ):
        super().__init__(name=name, reduction="sum")
        self.losses = list(losses)
        if not self.losses or not all(
            isinstance(loss, keras.losses.Loss) and loss.reduction not in (None, "none")
            for loss in self.losses
        ):
            rule = 'one or more keras.losses.Loss objects without reduction="none"'
            raise validation.error("losses", rule, losses)
        weights = [1.0] * len(self.losses) if weights is None else list(weights)
        self.weights = list(validation.numbers("weights", weights))
        if len(self.weights) != len(self.losses):
            rule = f"one number for each of the {len(self.losses)} losses"
            raise validation.error("weights", rule, self.weights)

    # Each loss reads labels and weights and reduces as it does alone.
    def __call__(
        self,
        y_true: tf.Tensor,
        y_pred: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the sum for a batch."""
        return tf.add_n(
            [
                weight * tf.cast(loss(y_true, y_pred, sample_weight), tf.float32)
                for loss, weight in zip(self.losses, self.weights, strict=True)
            ]
        )

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


def parse(
    loss: str,
    class_weights: Sequence[float] | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
) -> keras.losses.Loss:
    """Builds the loss that a text describes, such as `"cross_entropy + 0.5 * lovasz_softmax"`.

    Args:
        loss: One of `LOSSES`, or several joined by `+`, each optionally with a weight in front and
            arguments by name: `"0.5 * hard_pixel_mining(fraction=0.25)"`. It is not executed.
        class_weights: One non-negative weight per class for the losses that take them and have
            none in the text, or None.
        optimizer: The optimizer that the model is compiled with, for `hard_pixel_mining` with
            `warmup_steps`.

    Returns:
        The loss, or a `Sum`.

    Raises:
        ValueError: If the text is not of this form, an argument is out of its range, or there are
            class weights and no loss takes them.

    Example:

    >>> loss = keras_deeplab.losses.parse("cross_entropy + 0.5 * lovasz_softmax(stride=2)")
    >>> loss.weights, loss.losses[1].stride
    ([1.0, 0.5], 2)
    """
    shared = {"class_weights": class_weights, "optimizer": optimizer}
    try:
        # Python's own grammar; nothing is executed.
        terms = [ast.parse(" ".join(str(loss).split()), mode="eval").body]
        while isinstance(terms[0], ast.BinOp) and isinstance(terms[0].op, ast.Add):
            terms[:1] = [terms[0].left, terms[0].right]
        weights, losses = zip(*(_parsed_term(term, shared) for term in terms), strict=True)
        found = losses[0] if weights == (1.0,) else Sum(losses, weights)
        if class_weights is not None and not takes_class_weights(found):
            raise ValueError("None of these losses takes `class_weights`: set them to None.")
    except (SyntaxError, RecursionError, MemoryError, TypeError, ValueError) as error:
        rule = (
            f"one or more of the losses {', '.join(LOSSES)}, joined by +, such as "
            "'cross_entropy + 0.5 * lovasz_softmax(stride=4)'"
        )
        raise validation.error("loss", rule, loss, str(error)) from error
    return found


def takes_class_weights(loss: keras.losses.Loss | str) -> bool:
    """Whether a loss, or one of a `Sum`, has weights of the classes; also of a loss as text."""
    if isinstance(loss, str):
        loss = parse(loss, None, keras.optimizers.SGD())
    return any(hasattr(one, "class_weights") for one in getattr(loss, "losses", [loss]))


def _parsed_term(tree: ast.expr, shared: dict[str, Any]) -> tuple[float, keras.losses.Loss]:
    """Returns weight and loss of a term such as `0.5 * dice(smooth=1)`."""
    weight = 1.0
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
        weight = validation.positive("weight", getattr(tree.left, "value", None))
        tree = tree.right
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    kind = LOSSES[validation.one_of("name", getattr(call.func, "id", None), LOSSES)]
    names = [keyword.arg for keyword in call.keywords]
    if call.args or len(set(names)) < len(names):
        raise ValueError("Arguments are given by name, once, as in focal(gamma=2.0).")
    known = set(kind().get_config())
    for name in names:
        validation.one_of("argument", name, sorted(known - _NOT_IN_TEXT))
    own = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return weight, kind(**{key: shared[key] for key in known & set(shared)} | own)
