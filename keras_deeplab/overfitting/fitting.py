"""Training on a few images until they are fitted, and the search for what hinders it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import keras

from keras_deeplab.data import Source
from keras_deeplab.inference import logits_spec
from keras_deeplab.losses import CrossEntropy
from keras_deeplab.overfitting.diagnosis import after_training, before_training
from keras_deeplab.overfitting.learning_checks import Course
from keras_deeplab.overfitting.one_batch import OneBatch, batch_norms
from keras_deeplab.overfitting.report import Check, OverfitReport
from keras_deeplab.overfitting.windows import read_windows
from keras_deeplab.schedules import PolynomialDecay

RATE, NORM_FREE_RATE = 8e-3, 3e-4
STEPS, WARMUP_STEPS = 300, 10
SCORED_EVERY = 10


def overfit(
    model: keras.Model,
    source: Source,
    split: str = "train",
    *,
    count: int = 8,
    crop_size: tuple[int, int] | None = None,
    steps: int = STEPS,
    target: float = 0.95,
    compile: Mapping[str, Any] | None = None,
    keep_weights: bool = False,
    verbose: str | int = "auto",
) -> OverfitReport:
    """Trains on a few images until the model has learnt them by heart, or says what hinders it.

    A model that cannot do this will not learn a data set either, and here the reason shows in a
    minute or two. Images from all over the split, always the same ones, give one window each, where
    their classes are most evenly spread; without augmentation they are the batch of every step.
    Small windows keep a step short, and what can go wrong goes wrong in them too. Training stops
    once the mean IoU in inference mode reaches the target. If it does not, causes are checked from
    the most basic to the least: data without classes to tell apart, frozen layers, a graph that
    gradients cannot pass, dead features, a learning rate that is too large or too small (others are
    tried), moving statistics of batch norms that lag behind, a predictor too coarse for the labels
    (its logits are chosen freely), too few steps.

    The model gets its weights back in the end, and what it was compiled with is not touched.

    Args:
        model: A functional model from pixels 0..255 `(batch, height, width, 3)` to logits
            `(batch, height, width, num_classes)`.
        source: A `data.Source` of as many classes.
        split: One of its splits.
        count: Number of images; fewer where the split has fewer.
        crop_size: `(height, width)` of the windows. None for the model's own size where it is
            fixed, else the images' largest sides, at most 160.
        steps: Most steps to train.
        target: Mean IoU to reach, above 0 and below 1.
        compile: What to train with, as `model.compile` takes it: `optimizer` (copied, not changed)
            and `loss`, which may read the steps from that optimizer, as `losses.HardPixelMining`
            does. By default AdamW, whose rate decays from 8e-3 (3e-4 for a model without batch
            norms), and `losses.CrossEntropy`.
        keep_weights: Whether the model keeps what it has learnt, if anything was trained.
        verbose: `"auto"` or 1 for a progress bar, 2 for one line at the end, 0 for silence.

    Returns:
        An `OverfitReport`; `print` shows it.

    Raises:
        ValueError: If an argument is out of its range, or model and data do not fit together.

    Example:

    >>> inputs = keras.Input((None, None, 3))
    >>> model = keras.Model(inputs, keras.layers.Conv2D(6, 1, trainable=False)(inputs))
    >>> report = keras_deeplab.overfit(model, data.Shapes(train=8, val=0), steps=5)
    >>> report.fits, report.cause
    (False, 'trainable')

    Reference:
        [Karpathy, 2019, A Recipe for Training Neural Networks](
        https://karpathy.github.io/2019/04/25/recipe/), "overfit one batch".
    """
    crop_size = _checked(model, source, split, count, steps, target, crop_size)
    images, labels = read_windows(source, split, count, crop_size)
    optimizer, loss = _training_settings(model, steps, compile)
    one = OneBatch(model, images, labels, optimizer, loss)
    names = list(source.info.classes)
    course, per_class, seconds = Course(), dict.fromkeys(names), 0.0
    checks = before_training(one, names)
    try:
        if checks[-1].passed:
            began = time.perf_counter()
            per_class = _train(one, course, steps, target, names, verbose)
            seconds = time.perf_counter() - began
            trained = one.state()
            fits = course.scores[-1][1] >= target
            checks = [] if fits else after_training(one, course, target, names)
            if keep_weights:
                one.restore(trained)
    finally:
        if not (keep_weights and course.losses):
            one.restore(one.beginning)
    return _report(course, checks, target, per_class, seconds, labels.shape)


def _train(
    one: OneBatch,
    course: Course,
    steps: int,
    target: float,
    names: list[str],
    verbose: str | int,
) -> dict[str, float | None]:
    """Trains until the target is reached, the loss is not finite or the steps are done."""
    progress = keras.utils.Progbar(
        steps,
        verbose=1 if verbose == "auto" else verbose,
        stateful_metrics=["loss", "training_iou", "mean_iou"],
    )
    while True:
        loss, course.training_iou = one.step(len(course.losses))
        course.losses.append(loss)
        done = len(course.losses)
        values = [("loss", loss), ("training_iou", course.training_iou)]
        last = done == steps or not math.isfinite(loss)
        if last or done % SCORED_EVERY == 0:
            scores = one.scores(names)
            course.scores.append((done, scores["mean_iou"]))
            values.append(("mean_iou", scores["mean_iou"]))
            last = last or scores["mean_iou"] >= target
        progress.target = done if last else steps
        progress.update(done, values, finalize=last)
        if last:
            return scores["per_class"]


def _training_settings(
    model: keras.Model, steps: int, compile: Mapping[str, Any] | None
) -> tuple[keras.optimizers.Optimizer, Any]:
    settings = dict(compile or {})
    unknown = set(settings) - {"optimizer", "loss"}
    if unknown:
        raise ValueError(
            f"`compile` may hold 'optimizer' and 'loss'. Received: {sorted(unknown)} as well"
        )
    optimizer, loss = settings.get("optimizer"), settings.get("loss", CrossEntropy())
    optimizer = keras.optimizers.get(optimizer or default_optimizer(model, steps))
    if model.dtype_policy.name == "mixed_float16":  # as `compile` does
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer, keras.losses.get(loss)


def default_optimizer(model: keras.Model, steps: int = STEPS) -> keras.optimizers.Optimizer:
    """What fits any model in so many steps."""
    rate = RATE if batch_norms(model) else NORM_FREE_RATE
    warmup = min(WARMUP_STEPS, steps // 2)
    schedule = PolynomialDecay(
        rate, total_steps=steps, warmup_steps=warmup, end_learning_rate=rate / 10
    )
    return keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=5.0)


def _checked(
    model: keras.Model,
    source: Source,
    split: str,
    count: int,
    steps: int,
    target: float,
    crop_size: tuple[int, int] | None,
) -> tuple[int, int] | None:
    """The size of the windows, once all arguments are found right."""
    for name, value in (("count", count), ("steps", steps)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer from 1. Received: {name}={value!r}")
    if not 0 < target < 1:
        raise ValueError(f"`target` must be above 0 and below 1. Received: target={target!r}")
    source.check_split(split)
    if not source.names(split):
        raise ValueError(f"`split` must hold images. Received: split={split!r}, which is empty")
    spec, num_classes = logits_spec(model)
    if num_classes != source.info.num_classes or spec.shape[-1] != 3:
        raise ValueError(
            f"`model` must map 3 channels to the source's {source.info.num_classes} classes. "
            f"Received: a model from {spec.shape[-1]} channels to {num_classes} classes"
        )
    fixed = tuple(spec.shape[1:3])
    if crop_size is None:
        return None if None in fixed else fixed
    size = tuple(crop_size)
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
        raise ValueError(f"`crop_size` must be (height, width) from 1 on. Received: {crop_size}")
    if any(own not in (None, side) for own, side in zip(fixed, size, strict=True)):
        raise ValueError(f"`crop_size` must be the model's size {fixed}. Received: {crop_size}")
    return size


def _report(
    course: Course,
    checks: list[Check],
    target: float,
    per_class: dict[str, float | None],
    seconds: float,
    shape: tuple[int, int, int],
) -> OverfitReport:
    failed = [check.name for check in checks if not check.passed]
    return OverfitReport(
        fits=not failed,
        cause=failed[0] if failed else None,
        checks=tuple(checks),
        mean_iou=course.scores[-1][1] if course.scores else None,
        training_iou=course.training_iou if course.losses else None,
        target=target,
        per_class=per_class,
        steps=len(course.losses),
        seconds=seconds,
        images=shape[0],
        crop_size=(shape[1], shape[2]),
        losses=tuple(loss if math.isfinite(loss) else None for loss in course.losses),
        scores=tuple(course.scores),
    )
