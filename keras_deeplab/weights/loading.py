"""Weights into a model, and models from weights."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_deeplab import models, validation
from keras_deeplab.models.arguments import scaled_rates
from keras_deeplab.models.base import LoadWeights
from keras_deeplab.weights import keras_model
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.opening import Weights, checked, is_published_network, open_checkpoint
from keras_deeplab.weights.readers import hdf5
from keras_deeplab.weights.transfer import TransferReport, transfer

logger = logging.getLogger(__name__)


def load(
    model: keras.Model, checkpoint: Weights, *, moving_averages: bool = False
) -> TransferReport:
    """Loads weights into a model, and returns and logs a report.

    Args:
        model: A model of this package or one of its backbones.
        checkpoint: Path of a file in any of the formats below, recognised by its content; the name
            of published weights (`keras_deeplab.weights.list`), which are downloaded once ("./NAME"
            is a file of that name); or a Keras model, such as one of keras.applications.
        moving_averages: For TensorFlow 1 and torch checkpoints: whether the variables' exponential
            moving averages (EMA) take their place.

    Returns:
        A report: layers `loaded`, `missing_keys`, `unexpected_keys`, `notes`.

    Formats: `.keras` and `.weights.h5` of this package; `.h5` of keras.applications; torch state
    dicts (`.pth`, `.pt`, `.ckpt`), read without torch and without running a pickle, also inside a
    training checkpoint and behind wrappers' prefixes, as the notes say; `.safetensors`;
    TensorFlow 1 and 2 checkpoints (prefix, `.index`, folder, or the archive they come in);
    `.tflite`, float and 8-bit.

    Raises:
        ValueError: If `model` has no weights, or `checkpoint` is none of the above.
        WeightsError: If the file cannot be read, is damaged or refused, holds another network,
            values that are not finite, or a shape that does not fit; except the class predictor's
            where the number of classes differs, and the head's where the weights are of another
            kind of model: such layers keep their own weights, as the report says. The model is not
            changed.

    Example:

    >>> network = keras.applications.MobileNetV2(include_top=False, weights=None)
    >>> model = keras_deeplab.DeepLabV3Plus(11, "mobilenet_v2")
    >>> report = keras_deeplab.weights.load(model, network)
    >>> "logits" in report.missing_keys
    True
    """
    if not isinstance(model, keras.Model) or not model.weights:
        raise validation.error("model", "a built Keras model with weights", model)
    model, checkpoint = keras_model.unwrapped(model), checked(checkpoint)
    if isinstance(checkpoint, Path) and hdf5.is_weights_h5(checkpoint):
        found = hdf5.read_structured(checkpoint, model)
    else:
        config = model.get_config() if hasattr(model, "backbone") else {}
        found = open_checkpoint(
            checkpoint,
            type(model).__name__,
            config.get("backbone", model.name),
            config.get("backbone_options"),
            moving_averages=moving_averages,
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
            "NAME/MODEL/BACKBONE", such as "pascal_voc/DeepLabV3/mobilenet_v2".
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
    network: tuple[Any, ...] = ()
    if isinstance(checkpoint, str) and is_published_network(checkpoint):
        checkpoint, model, backbone = checkpoint.split("/")
        network = (model, backbone, changes.get("backbone_options"))
    found = open_checkpoint(checkpoint, *network, moving_averages=moving_averages)
    if found.model is None:
        raise WeightsError(
            found.path,
            f"it holds {found.title} without a head: build a model on "
            f"{found.backbone or 'that network'} with weights=",
        )
    model_class = getattr(models, found.model)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    for name in changes.keys() - inspect.signature(model_class).parameters.keys():
        raise WeightsError(
            found.path,
            f"`{name}` must be an argument of {found.model}, the model in it. Received: "
            f"{name}={changes[name]!r}",
        )
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
        raise WeightsError(
            checkpoint.path,
            f"it holds {checkpoint.title} on the backbone {checkpoint.backbone!r}, but `backbone` "
            f"is {getattr(backbone, 'name', backbone)!r}",
        )
    if needed.get("aspp_rates") and "output_stride" in given and "aspp_rates" not in given:
        new = validation.integer("output_stride", passed["output_stride"])
        old = needed.get("output_stride", new)
        needed["aspp_rates"] = scaled_rates(needed["aspp_rates"], old, new)
    options = {**needed.get("backbone_options", {}), **own_options}
    needed = {**needed, **passed}
    if options:
        needed["backbone_options"] = options
    return needed, lambda built: transfer(built, checkpoint)
