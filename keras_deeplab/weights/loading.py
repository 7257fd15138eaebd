"""From whatever holds weights into a model."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_deeplab import validation
from keras_deeplab.weights import keras_model
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError, reading
from keras_deeplab.weights.opening import (
    Weights,
    checked_source,
    is_published_network,
    open_source,
)
from keras_deeplab.weights.readers import weights_h5
from keras_deeplab.weights.report import TransferReport
from keras_deeplab.weights.transfer import transfer

logger = logging.getLogger(__name__)


def load(model: keras.Model, source: Weights, *, moving_averages: bool = False) -> TransferReport:
    """Loads weights into a model, and returns and logs what was transferred.

    Args:
        model: A model of this package or one of its backbones.
        source: Path of a file in any of the formats below, recognised by its content; the name of
            published weights (`keras_deeplab.weights.list`), which are downloaded once ("./NAME"
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
        ValueError: If `model` has no weights, or `source` is none of the above.
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
    model, source = keras_model.unwrapped(model), checked_source(source)
    is_weights_h5 = False
    if isinstance(source, Path):
        with reading(source):
            is_weights_h5 = weights_h5.is_weights_h5(source)
    if is_weights_h5:
        found = weights_h5.read(source, model)
    else:
        config = model.get_config() if hasattr(model, "backbone") else {}
        found = open_source(
            source,
            type(model).__name__,
            config.get("backbone", model.name),
            config.get("backbone_options"),
            moving_averages=moving_averages,
        )
    report = transfer(model, found)
    logger.info("%s", report)
    return report


def convert(source: Weights, *, moving_averages: bool = False, **arguments: Any) -> keras.Model:
    """Builds the model that a file's weights make up, with them.

    Args:
        source: As for `load`; a name of published weights as "NAME/MODEL/BACKBONE".
        moving_averages: As for `load`.
        **arguments: Arguments of the model that are to differ from what the file asks for, such as
            `output_stride=8` or `num_classes=5`.

    Returns:
        The model; its `transfer_report` says what was transferred.

    Raises:
        WeightsError: If the file does not say enough, such as one that holds a backbone only, or
            cannot be read (see `load`).

    Example:

    >>> keras_deeplab.DeepLabV3(3, "mobilenet_v2").save("three.keras")
    >>> model = keras_deeplab.weights.convert("three.keras", num_classes=5)
    >>> model.num_classes
    5
    """
    network: tuple[Any, ...] = ()
    if isinstance(source, str) and is_published_network(source):
        source, model, backbone = source.split("/")
        network = (model, backbone, arguments.get("backbone_options"))
    found = open_source(source, *network, moving_averages=moving_averages)
    return build(found, arguments)


def build(source: Checkpoint, arguments: Mapping[str, Any]) -> keras.Model:
    """The model that a source's weights make up, with them."""
    if source.model is None:
        raise WeightsError(
            source.path,
            f"it holds {source.title} without a head: build a model on "
            f"{source.backbone or 'that network'} with weights=",
        )
    model_class = keras.saving.get_registered_object(f"keras_deeplab>{source.model}")
    known = inspect.signature(model_class).parameters
    for name, value in arguments.items():
        if name not in known:
            raise WeightsError(
                source.path, f"it holds a {source.model}, which has no `{name}`, received {value!r}"
            )
    return model_class(weights=source, **arguments)
