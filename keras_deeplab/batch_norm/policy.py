"""How the batch norms of a model are trained."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import keras
import numpy as np

from keras_deeplab.graph.network import all_layers
from keras_deeplab.layers import BatchNormalization

POLICIES = ("train", "freeze_statistics", "freeze")
_SMALLEST_MOMENTUM, _LARGEST_MOMENTUM = 0.9, 0.9997


def set_policy(
    model: keras.Model,
    policy: str = "train",
    synchronized: bool | None = None,
    momentum: float | None = None,
) -> int:
    """Says how all batch norms of a model are trained.

    The papers train at output stride 16 with `"train"`, then at 8 with `"freeze"`, on batches too
    small for statistics. Call it before `compile`: a compiled model goes on as it was. What is set
    here stays in a `.keras` file and in what `with_output_stride` and `with_num_classes` return.

    Args:
        model: Any model with layers; nested models and the package's composite layers are entered.
            For a part of a model give the part, such as `model.backbone`.
        policy: `"train"`: gamma, beta and the moving statistics are trained, but for those inside
            something frozen as a whole, such as `model.backbone`. `"freeze_statistics"`:
            gamma and beta are trained, the moving statistics normalise and stay. `"freeze"`:
            nothing moves.
        synchronized: Whether the statistics of a batch are those of all replicas; None leaves it.
        momentum: Of the moving statistics, in [0, 1); None leaves it. See `momentum_for`.

    Returns:
        The number of batch norms that were changed.

    Raises:
        ValueError: If an argument is out of its range, or Keras' own batch norms in the model
            cannot do what is asked; the error lists them. Nothing is changed then.

    Example:

    >>> model = keras_deeplab.DeepLabV3Plus(3, "mobilenet_v2")
    >>> keras_deeplab.batch_norm.set_policy(model, "freeze_statistics")
    65
    >>> keras_deeplab.batch_norm.set_policy(model, "freeze_statistics")
    0

    Reference:
        [Chen et al., 2017, DeepLabV3](https://arxiv.org/abs/1706.05587), section 4.1.
    """
    settings = _settings(policy, synchronized, momentum)
    norms = all_norms(model)
    if settings["frozen_statistics"]:
        foreign = [path for path, norm in norms.items() if not isinstance(norm, BatchNormalization)]
        if foreign:
            raise ValueError(
                f"`policy` {policy!r} needs keras_deeplab.layers.BatchNormalization; the layers "
                f"{', '.join(foreign)} are keras.layers.BatchNormalization."
            )
    frozen = tuple(
        f"{path}/"
        for path, layer in all_layers(model).items()
        if not layer.trainable and not isinstance(layer, keras.layers.BatchNormalization)
    )
    changed = 0
    for path, norm in norms.items():
        mine = {**settings, "trainable": False} if path.startswith(frozen) else settings
        # Keras' own statistics are never frozen without gamma and beta.
        differing = {k: v for k, v in mine.items() if getattr(norm, k, False) != v}
        for name, value in differing.items():
            setattr(norm, name, value)
        changed += bool(differing)
    return changed


def _settings(policy: str, synchronized: bool | None, momentum: float | None) -> dict[str, Any]:
    if policy not in POLICIES:
        raise ValueError(f"`policy` must be one of {POLICIES}, received {policy!r}.")
    if synchronized is not None and not isinstance(synchronized, bool):
        raise ValueError(f"`synchronized` must be True, False or None, received {synchronized!r}.")
    settings: dict[str, Any] = {
        "trainable": policy != "freeze",
        "frozen_statistics": policy == "freeze_statistics",
    }
    if synchronized is not None:
        settings["synchronized"] = synchronized
    if momentum is not None:
        if not isinstance(momentum, Real) or isinstance(momentum, bool) or not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be a number in [0, 1), received {momentum!r}.")
        settings["momentum"] = float(momentum)
    return settings


def momentum_for(total_steps: int, memory: float = 1 / 30) -> float:
    """The momentum of moving statistics that fits a run of so many steps.

    The moving statistics remember about the last `1 / (1 - momentum)` steps. The papers' 0.9997
    remembers 3300 of their 30000 steps; in a run of 2000 it would end at 55 % of the values that
    the statistics started from. Here the memory is a thirtieth of the run, between the momenta 0.9
    and 0.9997: long enough to be steady, and short enough that the start is forgotten by the first
    validations. (With a tenth, the mean IoU of a run on CamVid was still 3 % after a fifth of it,
    on crops in training 60 %.)

    Args:
        total_steps: Of the whole run, from 1.
        memory: Share of the steps that are remembered; the papers' is a ninth.

    Returns:
        `1 - 1 / (memory * total_steps)`, kept within 0.9..0.9997.

    Raises:
        ValueError: If it is no positive integer.

    Example:

    >>> [keras_deeplab.batch_norm.momentum_for(steps) for steps in (50, 2000, 30000, 10**6)]
    [0.9, 0.985, 0.999, 0.9997]
    """
    if not isinstance(total_steps, Integral) or isinstance(total_steps, bool) or total_steps < 1:
        raise ValueError(f"`total_steps` must be a positive integer, received {total_steps!r}.")
    return float(np.clip(1 - 1 / (memory * total_steps), _SMALLEST_MOMENTUM, _LARGEST_MOMENTUM))


def all_norms(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    """All batch norms of a model, one that is used at several places under its first path."""
    found, known = {}, set()
    for path, layer in all_layers(model).items():
        if isinstance(layer, keras.layers.BatchNormalization) and id(layer) not in known:
            found[path] = layer
            known.add(id(layer))
    return found
