"""Weighted sums of losses, and losses from text such as `"cross_entropy + 0.5 * dice"`."""

from __future__ import annotations

import ast
import inspect
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
_NOT_IN_TEXT = {"dtype", "name", "optimizer", "reduction"}


@keras.saving.register_keras_serializable(package="keras_deeplab")
class Sum(keras.losses.Loss):
    """Computes the weighted sum of losses on the same labels and logits.

    Args:
        losses: `keras.losses.Loss` objects, each with a reduction to one number.
        weights: One finite number per loss, or None for 1 each.
        name: Name of the loss.
        dtype: Accepted for compatibility with Keras; each loss uses its own dtype.

    Call arguments:
        y_true: Labels, as the losses take them.
        y_pred: Logits, as the losses take them.
        sample_weight: Passed to each loss.

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
        dtype: str | None = None,
    ):
        super().__init__(name=name, reduction="sum", dtype=dtype)
        self.losses = list(losses)
        if not self.losses or not all(isinstance(loss, keras.losses.Loss) for loss in self.losses):
            raise validation.error("losses", "one or more keras.losses.Loss objects", losses)
        maps = [loss.name for loss in self.losses if loss.reduction in (None, "none")]
        if maps:
            raise validation.error("losses", 'losses without reduction="none"', maps)
        weights = validation.numbers(
            "weights", [1.0] * len(self.losses) if weights is None else list(weights)
        )
        if len(weights) != len(self.losses):
            rule = f"one number for each of the {len(self.losses)} losses"
            raise validation.error("weights", rule, weights)
        self.weights = list(weights)

    # Each loss reads labels and weights and reduces as it does alone.
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


def parse(
    loss: str,
    class_weights: Sequence[float] | None = None,
    ignore_label: int | None = 255,
    stride: int = 1,
    optimizer: keras.optimizers.Optimizer | None = None,
) -> keras.losses.Loss:
    """Builds the loss that a text describes, such as `"cross_entropy + 0.5 * lovasz_softmax"`.

    A text is one loss, or several joined by `+`, each optionally with a weight in front. Arguments
    are given by name and as literals: `"hard_pixel_mining(fraction=0.25, warmup_steps=1000)"`. The
    names are `cross_entropy`, `dice`, `focal`, `hard_pixel_mining` and `lovasz_softmax`. The text
    is not executed.

    Args:
        loss: The text.
        class_weights: One non-negative weight per class for the losses that take them
            (`cross_entropy`, `focal` and `hard_pixel_mining`), or None for equal weights.
        ignore_label: Label of the ignored pixels, or None if every pixel counts.
        stride: Uses every stride-th row and column of labels and logits only. Class weights,
            ignored label and stride apply to each loss without its own.
        optimizer: The optimizer that the model is compiled with, for `hard_pixel_mining` with
            `warmup_steps`.

    Returns:
        The loss, or a `Sum`.

    Raises:
        ValueError: If the text is not of this form, has an unknown name, an argument is out of its
            range, or there are class weights and no loss takes them.

    Example:

    >>> loss = keras_deeplab.losses.parse("cross_entropy + 0.5 * lovasz_softmax(stride=2)")
    >>> loss.weights, loss.losses[1].stride
    ([1.0, 0.5], 2)
    """
    common = {
        "class_weights": class_weights,
        "ignore_label": ignore_label,
        "stride": stride,
        "optimizer": optimizer,
    }
    try:
        # Python's own grammar; nothing is executed.
        tree = ast.parse(" ".join(loss.split()), mode="eval").body
        terms = []
        while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
            terms.insert(0, tree.right)
            tree = tree.left
        weights, losses = zip(*(_parsed_term(term, common) for term in [tree, *terms]), strict=True)
    except (AttributeError, SyntaxError, RecursionError, MemoryError) as error:
        raise _error(loss, "") from error
    except (TypeError, ValueError) as error:
        raise _error(loss, str(error)) from error
    if class_weights is not None and not any(hasattr(one, "class_weights") for one in losses):
        takers = [name for name in LOSSES if "class_weights" in _parameters(name)]
        raise _error(loss, f"`class_weights` require {', '.join(takers)}.")
    return losses[0] if weights == (1.0,) else Sum(losses, weights)


def _parsed_term(tree: ast.expr, common: dict[str, Any]) -> tuple[float, keras.losses.Loss]:
    """Returns weight and loss of a term; a ValueError says what is wrong with it."""
    weight = 1.0
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
        weight, tree = getattr(tree.left, "value", None), tree.right
        if not validation.is_number(weight) or weight <= 0:
            raise ValueError("Weights are finite numbers above 0 in front, as in 0.5 * dice.")
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError("")
    name, given = call.func.id, [keyword.arg for keyword in call.keywords]
    if name not in LOSSES:
        raise ValueError(f"{name!r} is not one of {', '.join(LOSSES)}.")
    if call.args or None in given or len(set(given)) < len(given):
        raise ValueError("Arguments are given by name, once, as in focal(gamma=2.0).")
    allowed = [parameter for parameter in _parameters(name) if parameter not in _NOT_IN_TEXT]
    if not set(given) <= set(allowed):
        raise ValueError(f"The arguments of {name} are {', '.join(allowed)}.")
    try:
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError) as error:
        raise ValueError("Arguments are numbers, strings, lists, True, False or None.") from error
    shared = {key: value for key, value in common.items() if key in _parameters(name)}
    return float(weight), LOSSES[name](**{**shared, **values})


def _parameters(name: str) -> list[str]:
    return list(inspect.signature(LOSSES[name]).parameters)


def _error(loss: Any, reason: str) -> ValueError:
    rule = (
        "one or more losses joined by +, such as 'cross_entropy + 0.5 * lovasz_softmax(stride=4)'"
    )
    return validation.error("loss", rule, loss, reason or f"Losses: {', '.join(LOSSES)}.")
