"""Checks of how a model learnt, and of what it could have learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from keras_deeplab.overfitting.one_batch import OneBatch, State, batch_norms
from keras_deeplab.overfitting.predictor import best_answer
from keras_deeplab.overfitting.report import Check, listed

FELL = 0.5  # of the first loss: a loss below has clearly fallen
STILL = 0.9  # of the first loss: a loss above has not fallen at all
FASTER = 2.0  # times another fall: a loss that fell so much has clearly fallen faster
TRIED_STEPS = 30
SLACK = 0.01  # of mean IoU: free logits are not the very best
REACH = 5  # times the steps: what takes longer is out of reach


@dataclass
class Course:
    """How the training went.

    Attributes:
        losses: The loss of each step, in training mode.
        training_iou: Mean IoU in training mode before the last step.
        scores: (steps, mean IoU in inference mode), whenever it was measured.
    """

    losses: list[float] = field(default_factory=list)
    training_iou: float = math.nan
    scores: list[tuple[int, float]] = field(default_factory=list)


def check_optimisation(one: OneBatch, course: Course, target: float) -> Check:
    """Whether the loss falls, and whether another learning rate makes it fall faster."""
    losses = course.losses
    first, last = losses[0], float(np.mean(losses[-5:]))
    went = f"the loss went from {first:.3g} to {last:.3g} in {len(losses)} steps"
    fits = course.training_iou >= target
    if math.isfinite(last) and (fits or last < FELL * first):
        return Check("optimisation", True, went)
    if one.rate is None:
        return Check("optimisation", math.isfinite(last) and last < STILL * first, went)
    steps = min(TRIED_STEPS, len(losses)) if math.isfinite(last) else TRIED_STEPS
    own = float(np.mean(losses[:steps][-3:]))
    tried = {factor: _tried(one, factor, steps) for factor in (0.1, 10.0)}
    peak = max(one.rate(step) for step in range(len(losses)))
    compared = ", ".join(
        f"{loss:.3g} at {factor * peak:.2g}" for factor, loss in [(1.0, own), *tried.items()]
    )
    went += f"; after {steps} steps it is {compared} (learning rate)"
    # A loss that is not finite fell less than any other.
    fell, low, high = (
        first - loss if math.isfinite(loss) else -math.inf for loss in [own, *tried.values()]
    )
    clear = max(FASTER * fell, (1 - STILL) * first)
    if not math.isfinite(last):
        message = f"the learning rate is too large: the loss became {last} ({went})"
    elif high >= max(low, clear):
        message = f"the learning rate is too small: ten times as much is faster ({went})"
    elif low >= clear or (last > first and low > fell):
        message = f"the learning rate is too large: a tenth of it is better ({went})"
    elif last > STILL * first:
        message = f"the loss does not fall, at a tenth and at ten times the rate neither ({went})"
    else:
        return Check("optimisation", True, went)
    return Check("optimisation", False, message)


def _tried(one: OneBatch, factor: float, steps: int) -> float:
    """The loss after some steps from the beginning at another learning rate."""
    one.restore(one.beginning)
    one.forget_steps()
    losses: list[float] = []
    while len(losses) < steps and all(map(math.isfinite, losses[-1:])):
        losses.append(one.step(len(losses), factor)[0])
    return float(np.mean(losses[-3:]))


def check_batch_norm(one: OneBatch, course: Course, end: State, target: float) -> Check:
    """Whether the model fits in training mode and only the inference mode does not."""
    one.restore(end)
    refreshed = one.with_batch_statistics()["mean_iou"]
    norms = batch_norms(one.model).values()
    momenta = sorted({norm.momentum for norm in norms})
    inference = course.scores[-1][1]
    measured = (
        f"mean IoU {course.training_iou:.3f} in training mode, {inference:.3f} in inference mode"
    )
    if norms:
        measured += f", {refreshed:.3f} there with statistics of this batch"
    if norms and refreshed >= target:
        message = (
            f"the weights fit, the moving statistics lag behind them ({measured}): momentum "
            f"{listed(momenta)} is slow for {len(course.losses)} steps. Estimate them anew with "
            "keras_deeplab.reestimate_batch_norm, or take a smaller momentum"
        )
        return Check("batch_norm", False, message)
    if course.training_iou >= target:
        message = (
            f"the model fits in training mode only ({measured}): a layer computes something else "
            "in inference mode, and it is not the moving statistics alone"
        )
        return Check("batch_norm", False, message)
    return Check("batch_norm", True, measured)


def check_detail(one: OneBatch, target: float, class_names: Sequence[str]) -> Check:
    """Whether any logits of the predictor's size could be right."""
    one.restore(one.beginning)
    best = best_answer(one, class_names)
    if best is None:
        return Check("detail", True, "the predictor's size sets no limit that could be measured")
    height, width = best.size
    known = {name: value for name, value in best.scores["per_class"].items() if value is not None}
    measured = (
        f"logits of {height}x{width} for images of {one.labels.shape[1]}x{one.labels.shape[2]}, "
        f"chosen freely, reach a mean IoU of {best.scores['mean_iou']:.3f}"
    )
    if best.scores["mean_iou"] >= target - SLACK:
        return Check("detail", True, measured)
    lost = [f"{k} {v:.2f}" for k, v in sorted(known.items(), key=lambda i: i[1]) if v < target]
    message = (
        f"the predictor is too coarse: {measured}. Lost are {listed(lost)}. Take a smaller output "
        "stride, a decoder at finer features, or larger images"
    )
    return Check("detail", False, message)


def check_steps(course: Course, target: float) -> Check:
    """Whether more steps would do; this check never passes."""
    losses, inference = course.losses, course.scores[-1][1]
    third = max(1, len(losses) // 3)
    before, last = np.mean(losses[-2 * third : -third] or losses[:1]), np.mean(losses[-third:])
    went = f"the loss went from {before:.3g} to {last:.3g} in the last third of the steps"
    recent = np.array(course.scores[len(course.scores) // 2 :])
    more = math.inf
    if len(recent) > 1:  # what is missing to 1 shrinks by a factor per step
        slope = np.polyfit(recent[:, 0], np.log(np.maximum(1 - recent[:, 1], 1e-6)), 1)[0]
        more = math.log((1 - target) / (1 - inference)) / slope if slope < 0 else math.inf
    in_reach = more <= REACH * len(losses)
    if in_reach or last < STILL * before:
        message = f"it needs more steps than {len(losses)}: {went}, mean IoU is {inference:.3f}"
        message += f"; about {math.ceil(more)} more at this pace" if in_reach else ""
        return Check("steps", False, message)
    message = (
        f"it stopped learning at a mean IoU of {inference:.3f} ({went}) and no check says why: has "
        "the model too few parameters, or too much dropout or weight decay?"
    )
    return Check("plateau", False, message)
