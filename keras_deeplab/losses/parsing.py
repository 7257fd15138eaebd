"""A loss from a line of text, as recipes and command lines write it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_deeplab.losses.cross_entropy import CrossEntropy
from keras_deeplab.losses.dice import Dice
from keras_deeplab.losses.focal import Focal
from keras_deeplab.losses.hard_pixels import HardPixelMining
from keras_deeplab.losses.lovasz import LovaszSoftmax
from keras_deeplab.losses.weighted_sum import Sum

LOSSES: dict[str, type[keras.losses.Loss]] = {
    "cross_entropy": CrossEntropy,
    "dice": Dice,
    "focal": Focal,
    "hard_pixel_mining": HardPixelMining,
    "lovasz_softmax": LovaszSoftmax,
}
# No part of a description: an optimizer is no text, and a sum needs one number of each loss.
NOT_WRITTEN = {"dtype", "name", "optimizer", "reduction"}


def parse(
    text: str,
    class_weights: Sequence[float] | None = None,
    ignore_label: int | None = 255,
    stride: int = 1,
    optimizer: keras.optimizers.Optimizer | None = None,
) -> keras.losses.Loss:
    """Makes the loss that a text describes, such as `"cross_entropy + 0.5 * lovasz_softmax"`.

    A text is one loss, or several joined by `+`, each with a number in front where it weighs other
    than 1. Arguments of a loss stand in brackets behind its name, by name and as plain values:
    `"hard_pixel_mining(share=0.25, steps=1000)"`. The names are `cross_entropy`, `dice`, `focal`,
    `hard_pixel_mining` and `lovasz_softmax`. Nothing in the text is run.

    Args:
        text: The description.
        class_weights: One weight of at least 0 per class, for the losses that take them
            (`cross_entropy`, `focal` and `hard_pixel_mining`), or None for equal weights.
        ignore_label: Label of the pixels that do not count, or None where every pixel counts.
        stride: Takes every stride-th row and column of labels and logits only. Class weights,
            ignored label and stride are those of every loss that does not say its own.
        optimizer: The optimizer that the model is compiled with, for `hard_pixel_mining` with
            `steps`.

    Returns:
        The loss, or their `Sum`.

    Raises:
        ValueError: If the text is something else, names what is not known, an argument is out of
            its range, or there are class weights and no loss takes them.

    Example:

    >>> loss = keras_deeplab.losses.parse("cross_entropy + 0.5 * lovasz_softmax(stride=2)")
    >>> loss.weights, loss.losses[1].stride
    ([1.0, 0.5], 2)
    """
    common = {"class_weights": class_weights, "ignore_label": ignore_label, "stride": stride}
    common["optimizer"] = optimizer
    terms = [_term(term, text) for term in _terms(_tree(text))]
    losses = [_loss(name, given, common, text) for _, name, given in terms]
    weights = [weight for weight, _, _ in terms]
    if class_weights is not None and not any(hasattr(loss, "class_weights") for loss in losses):
        takers = [name for name in LOSSES if "class_weights" in _parameters(name)]
        raise ValueError(f"class_weights are for {', '.join(takers)}; received the loss {text!r}")
    return losses[0] if weights == [1.0] else Sum(losses, weights)


def _tree(text: str) -> ast.expr:
    """Returns the text as Python reads it, which is not run."""
    try:
        return ast.parse(" ".join(text.split()), mode="eval").body
    except (AttributeError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _no_sum(text) from error


def _terms(tree: ast.expr) -> Iterator[ast.expr]:
    """Yields what the signs `+` join, from left to right."""
    later = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        later.append(tree.right)
        tree = tree.left
    yield from [tree, *reversed(later)]


def _term(tree: ast.expr, text: str) -> tuple[float, str, dict[str, Any]]:
    """Returns weight, name and arguments of one loss."""
    weight = 1.0
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
        number = getattr(tree.left, "value", None)
        if type(number) not in (int, float) or not 0 < number < float("inf"):
            raise ValueError(
                "a loss's weight must be a finite number above 0, as in 0.5 * dice; received "
                f"{ast.unparse(tree)!r} in {text!r}"
            )
        weight, tree = float(number), tree.right
    if isinstance(tree, ast.Name):
        return weight, tree.id, {}
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise _no_sum(text)
    names = [keyword.arg for keyword in tree.keywords]
    if tree.args or None in names or len(set(names)) < len(names):
        raise ValueError(
            "a loss's arguments must be given by name, once, as in focal(gamma=2.0); received "
            f"{ast.unparse(tree)!r} in {text!r}"
        )
    try:
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in tree.keywords}
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(
            "a loss's arguments must be plain values: numbers, texts, lists, True, False or None; "
            f"received {ast.unparse(tree)!r} in {text!r}"
        ) from error
    return weight, tree.func.id, given


def _loss(name: str, given: dict[str, Any], common: dict[str, Any], text: str) -> keras.losses.Loss:
    if name not in LOSSES:
        raise ValueError(
            f"a loss must be one of {', '.join(LOSSES)}; received {name!r} in {text!r}"
        )
    parameters = _parameters(name)
    written = [parameter for parameter in parameters if parameter not in NOT_WRITTEN]
    unknown = [key for key in given if key not in written]
    if unknown:
        raise ValueError(
            f"the arguments of {name} are {', '.join(written)}; received {', '.join(unknown)} in "
            f"{text!r}"
        )
    shared = {key: value for key, value in common.items() if key in parameters}
    try:
        return LOSSES[name](**{**shared, **given})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} in {text!r}: {error}") from error


def _parameters(name: str) -> list[str]:
    return list(inspect.signature(LOSSES[name]).parameters)


def _no_sum(text: str) -> ValueError:
    return ValueError(
        "a loss must be written like 'cross_entropy + 0.5 * lovasz_softmax(stride=4)', with "
        f"{', '.join(LOSSES)}; received {text!r}"
    )
