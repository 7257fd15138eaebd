"""Loads weights into a model and builds models from checkpoints."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_deeplab import models, validation
from keras_deeplab.models.arguments import scaled_rates
from keras_deeplab.models.base import LoadWeights
from keras_deeplab.models.multi_scale import unwrapped
from keras_deeplab.weights.errors import NO_AVERAGES, UnreadableError, WeightsError, reading
from keras_deeplab.weights.opening import Weights, checkpoint_of, open_checkpoint
from keras_deeplab.weights.readers import hdf5
from keras_deeplab.weights.transfer import TransferReport, transfer

logger = logging.getLogger(__name__)


def load(
    model: keras.Model, checkpoint: Weights, *, moving_averages: bool = False
) -> TransferReport:
    """Loads weights into a model, and returns and logs a report.

    All is checked before the first weight is changed. A layer is loaded as a whole or not, a
    convolution with its norm.

    Args:
        model: A model of this package or one of its backbones.
        checkpoint: Path of a file, recognised by content or name; the name of published
            weights (`keras_deeplab.weights.list`), which are downloaded once ("./NAME" is a file of
            that name); "hf://USER/NAME[@REVISION]" for `model.keras` in a repository of the Hugging
            Face Hub; or a Keras model, such as one of keras.applications. Files are `.keras`;
            `.weights.h5` of a model with the same arguments; `.h5` of keras.applications; torch
            state dicts, read without torch and without running a pickle, also inside a training
            checkpoint; `.safetensors`; TensorFlow 1 and 2 checkpoints (prefix, `.index`, folder, or
            the archive they come in); `.tflite`, float and 8-bit.
        moving_averages: For TensorFlow 1 and torch checkpoints: whether the variables' exponential
            moving averages (EMA) take their place. An error for weights without any.

    Returns:
        A report: layers `loaded`, `missing_keys`, `unexpected_keys`, `notes`.

    Raises:
        ValueError: If `model` has no weights, or `checkpoint` is of another type.
        WeightsError: If the file cannot be read, is damaged or refused, holds another network,
            values that are not finite, negative variances, or a shape that does not fit; except the
            class predictor's where the number of classes differs, and the head's where the weights
            are not of the same class of model: such layers keep their own weights.

    Example:

    >>> network = keras.applications.MobileNetV2(include_top=False, weights=None)
    >>> model = keras_deeplab.DeepLabV3Plus(11, "mobilenet_v2")
    >>> report = keras_deeplab.weights.load(model, network)
    >>> "logits" in report.missing_keys
    True
    """
    if not isinstance(model, keras.Model) or not model.weights:
        raise validation.error("model", "a built Keras model with weights", model)
    given, model = model, unwrapped(model)
    if isinstance(checkpoint, str | os.PathLike) and str(checkpoint).endswith(".weights.h5"):
        path = Path(os.path.expanduser(checkpoint))
        with reading(path):
            if moving_averages:
                raise UnreadableError(NO_AVERAGES)
            twin = hdf5.read_structured(path, *dict.fromkeys((given, model)))
            found = checkpoint_of(twin, str(path))
    else:
        config = model.get_config() if hasattr(model, "backbone") else {}
        backbone, options = config.get("backbone", model.name), config.get("backbone_options")
        found = open_checkpoint(
            checkpoint, type(model).__name__, backbone, options, moving_averages=moving_averages
        )
    report = transfer(model, found)
    logger.info("%s", report)
    return report


def from_pretrained(
    checkpoint: Weights,
    num_classes: int | None = None,
    *,
    moving_averages: bool = False,
    **changes: Any,
) -> keras.Model:
    """Builds the model that a checkpoint describes, with its weights.

    Args:
        checkpoint: As for `keras_deeplab.weights.load`; published weights as
            "NAME/MODEL/BACKBONE", such as "pascal_voc/DeepLabV3/mobilenet_v2"; a model of the
            Hugging Face Hub as "hf://USER/NAME".
        num_classes: Number of classes, by default the checkpoint's. For another number the class
            predictor starts from its initial weights.
        moving_averages: As for `keras_deeplab.weights.load`.
        **changes: Arguments of the model in place of the checkpoint's, such as `output_stride=8`.

    Returns:
        The model; its `transfer_report` has what was loaded.

    Raises:
        WeightsError: If the file does not describe a whole model, such as one that holds a backbone
            only, or cannot be read (see `keras_deeplab.weights.load`).

    Example:

    >>> keras_deeplab.DeepLabV3(3, "mobilenet_v2").save("three.keras")
    >>> model = keras_deeplab.from_pretrained("three.keras", num_classes=5)
    >>> model.num_classes
    5
    """
    options = changes.get("backbone_options")
    found = open_checkpoint(checkpoint, options=options, moving_averages=moving_averages)
    if found.model is None:
        reason = "without a head: build a model on it with weights="
        if found.backbone is None:
            reason = "(docs/weights.md lists the networks whose weights are read)"
            if str(found.path).endswith(".keras"):
                reason += ". keras_deeplab.load_model opens it as it is"
        raise WeightsError(found.path, f"it holds {found} {reason}")
    model_class = getattr(models, found.model)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    if unknown := changes.keys() - inspect.signature(model_class).parameters.keys():
        raise WeightsError(found.path, f"{found.model} has no arguments {sorted(unknown)}")
    return model_class(weights=found, **changes)


def read_for_constructor(
    weights: Weights, model: str, arguments: Mapping[str, Any], given: Collection[str]
) -> tuple[dict[str, Any], LoadWeights]:
    """Reads the `weights` of a model's constructor; see `models.base.register_weights`."""
    passed = {name: arguments[name] for name in given}
    own_options = passed.get("backbone_options") or {}
    checkpoint = open_checkpoint(weights, model, arguments["backbone"], own_options)
    needed = checkpoint.arguments(model, arguments)
    backbone = passed.get("backbone", checkpoint.backbone)
    if checkpoint.backbone is not None and backbone != checkpoint.backbone:
        rule = f"`backbone` must be {checkpoint.backbone!r}: the weights are of {checkpoint}"
        is_own = isinstance(backbone, keras.Model)
        received = f"a network of your own, {backbone.name}" if is_own else backbone
        raise WeightsError(checkpoint.path, f"{rule}. Received: {received}")
    if needed.get("aspp_rates") and "output_stride" in given and "aspp_rates" not in given:
        new = validation.integer("output_stride", passed["output_stride"])
        old = needed.get("output_stride", new)
        needed["aspp_rates"] = scaled_rates(needed["aspp_rates"], old, new)
    options = {**needed.get("backbone_options", {}), **own_options}
    needed = {**needed, **passed}
    if options:
        needed["backbone_options"] = options
    return needed, lambda built: transfer(built, checkpoint)
