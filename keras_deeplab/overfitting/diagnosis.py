"""The order of the checks, and when each can be made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keras_deeplab.overfitting import learning_checks as learning
from keras_deeplab.overfitting import network_checks as network
from keras_deeplab.overfitting.one_batch import OneBatch
from keras_deeplab.overfitting.report import Check


def before_training(one: OneBatch, class_names: Sequence[str]) -> list[Check]:
    """The checks that need no training, up to the first that fails."""
    return up_to_the_cause(
        [
            lambda: network.check_data(one, class_names),
            lambda: network.check_trainable(one.model, trained=False),
        ]
    )


def after_training(
    one: OneBatch, course: learning.Course, target: float, class_names: Sequence[str]
) -> list[Check]:
    """The checks of a model that was trained and does not fit, up to the first that fails.

    The model's variables and the optimizer's are changed.
    """
    end = one.state()
    return up_to_the_cause(
        [
            lambda: network.check_data(one, class_names),
            lambda: network.check_trainable(one.model, trained=True),
            lambda: network.check_gradients(one, end),
            lambda: network.check_features(one),
            lambda: learning.check_optimisation(one, course, target),
            lambda: learning.check_batch_norm(one, course, end, target),
            lambda: learning.check_detail(one, target, class_names),
            lambda: learning.check_steps(course, target),
        ]
    )


def up_to_the_cause(checks: Sequence[Callable[[], Check]]) -> list[Check]:
    """Makes the checks one after the other until one fails, and returns what they found."""
    found: list[Check] = []
    for check in checks:
        found.append(check())
        if not found[-1].passed:
            break
    return found
