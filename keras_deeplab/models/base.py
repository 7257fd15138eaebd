"""What all segmentation models share: arguments kept, stride and classes changed afterwards."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import keras

from keras_deeplab.graph import geometry
from keras_deeplab.graph.network import all_layers
from keras_deeplab.layers.composite import change_settings, changed_settings, taken_settings
from keras_deeplab.models.arguments import check_output_stride, scaled_rates
from keras_deeplab.models.distributed_training import DistributedTraining
from keras_deeplab.models.label_map_training import LabelMapTraining
from keras_deeplab.models.user_backbone import restored_backbone
from keras_deeplab.weights import (
    TransferReport,
    Weights,
    WeightsError,
    open_checkpoint,
    transfer,
    transfer_weights,
)

logger = logging.getLogger(__name__)


def starts_from_weights(init: Callable[..., None]) -> Callable[..., None]:
    """Gives a model's constructor the argument `weights`.

    What the weights need of a model is the default of every argument that is not given. It is then
    an argument like any other, and in the model's configuration; `weights` itself is not.
    """
    signature = inspect.signature(init)
    parameters = list(signature.parameters.values())
    weights_parameter = inspect.Parameter(
        "weights", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Weights | None"
    )

    @functools.wraps(init)
    def wrapped(
        self: SegmentationModel, *args: Any, weights: Weights | None = None, **kwargs: Any
    ) -> None:
        if weights is None:
            init(self, *args, **kwargs)
            return
        given = dict(list(signature.bind_partial(self, *args, **kwargs).arguments.items())[1:])
        name, known = type(self).__name__, signature.parameters
        backbone = given.get("backbone", known["backbone"].default)
        source = open_checkpoint(weights, name, backbone, given.get("backbone_options"))
        wanted = source.arguments(name, known)
        asked = given.get("backbone", source.backbone)
        if source.backbone is not None and asked != source.backbone:
            shown = repr(getattr(asked, "name", asked))
            raise WeightsError(
                source.path,
                f"it holds {source.title} on the backbone {source.backbone!r}, but `backbone` is "
                f"{shown}",
            )
        if wanted.get("aspp_rates") and "output_stride" in given and "aspp_rates" not in given:
            old, new = wanted.get("output_stride", given["output_stride"]), given["output_stride"]
            check_output_stride(new)
            wanted["aspp_rates"] = scaled_rates(wanted["aspp_rates"], old, new)
        options = {**wanted.get("backbone_options", {}), **(given.get("backbone_options") or {})}
        arguments = {**wanted, **given, **({"backbone_options": options} if options else {})}
        init(self, **arguments)
        object.__setattr__(self, "transfer_report", transfer(self, source))
        logger.info("%s", self.transfer_report)

    wrapped.__signature__ = signature.replace(parameters=[*parameters, weights_parameter])
    return wrapped


class SegmentationModel(LabelMapTraining, DistributedTraining, keras.Model):
    """A functional model from pixels to logits that can be built again from its arguments."""

    transfer_report: TransferReport | None = None

    def __init__(self, inputs: Any, outputs: Any, arguments: dict[str, Any]) -> None:
        super().__init__(inputs=inputs, outputs=outputs, name=arguments["name"])
        # Past Keras' tracking, which would wrap the dict and take models in it for layers.
        object.__setattr__(self, "_arguments", arguments)

    @property
    def backbone(self) -> keras.Model:
        """The network inside that turns pixels into features."""
        return self.get_layer("backbone")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._arguments["num_classes"]

    @property
    def output_stride(self) -> int:
        """Stride of the backbone's features against the image."""
        if "output_stride" in self._arguments:
            return self._arguments["output_stride"]
        return max(geometry(self.backbone).outputs[0].stride)

    def with_output_stride(self, output_stride: int) -> Self:
        """The same model with finer or coarser features: the weights are copied, rates scaled.

        As the papers do: train at 16, evaluate at 8. A compiled model must be compiled again.

        Args:
            output_stride: A stride that occurs in the backbone, such as 8, 16 or 32.

        Returns:
            A new model of the same class.

        Raises:
            ValueError: If the backbone cannot have that stride, a rate would not be an integer, or
                the model has no output stride to choose (U-Net, SPP-net).

        Reference:
            [Chen et al., 2018, DeepLabV3+](https://arxiv.org/abs/1802.02611), table 3.
        """
        if "output_stride" not in self._arguments:
            raise ValueError(
                f"{type(self).__name__} has no output stride to change: its backbone keeps its own "
                f"{self.output_stride}. `output_stride` cannot be set, received {output_stride!r}."
            )
        check_output_stride(output_stride)
        try:
            rates = scaled_rates(self._arguments["aspp_rates"], self.output_stride, output_stride)
        except ValueError:
            self._rebuilt(output_stride=output_stride)  # a stride it cannot have is said first
            raise
        model = self._rebuilt(output_stride=output_stride, aspp_rates=rates)
        if model.transfer_report.missing_keys:
            raise ValueError(
                f"At `output_stride` {output_stride} the layers "
                f"{', '.join(model.transfer_report.missing_keys)} have other names or shapes: "
                "their weights could not be copied. Rename the backbone's layers ending in '_pad'."
            )
        return model

    def with_num_classes(self, num_classes: int) -> Self:
        """The same model for another number of classes; all but the predictor is kept.

        What was kept is in the new model's `transfer_report`, and logged.

        Args:
            num_classes: An integer from 2.

        Returns:
            A new model of the same class.
        """
        model = self._rebuilt(num_classes=num_classes)
        logger.info("%s: %s", self.name, model.transfer_report)
        return model

    def with_dtype(self, dtype: str) -> Self:
        """The same model computing in another precision; the weights are copied.

        Mixed precision is for training on what is fast at it. A model that was trained so answers
        in float32 everywhere, and fast on processors that have to emulate the short numbers.

        Args:
            dtype: A dtype policy, such as `"float32"` or `"mixed_bfloat16"`. A backbone that was
                given as a network keeps its own.

        Returns:
            A new model of the same class, not compiled.

        Raises:
            ValueError: If it is no dtype policy.

        Example:

        >>> model = keras_deeplab.DeepLabV3Plus(3, "mobilenet_v2", dtype="mixed_bfloat16")
        >>> model.with_dtype("float32").compute_dtype
        'float32'
        """
        return self._rebuilt(dtype=dtype)

    def _rebuilt(self, **changes: Any) -> Self:
        model = type(self).from_config({**self.get_config(), **changes})
        object.__setattr__(model, "transfer_report", transfer_weights(self, model))
        return model

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, frozen layers, and what was changed on batch norms."""
        changes = changed_settings(all_layers(self))
        return {**self._arguments, "trainable": self.trainable, **changes}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Builds the model that `get_config` describes; no weights are loaded.

        Raises:
            ValueError: If `config` has `weights`: a configuration, such as that in a `.keras` file,
                opens no other file and starts no download.
        """
        if "weights" in config:
            raise ValueError(
                "`config` must not have the key 'weights': a configuration loads no weights. "
                f"Received: weights={config['weights']!r:.100}"
            )
        config = dict(config)
        trainable = config.pop("trainable", True)
        changes = taken_settings(config)
        config["backbone"] = restored_backbone(config["backbone"], custom_objects)
        model = cls(**config)
        model.trainable = trainable
        change_settings(all_layers(model), changes)
        return model


@contextmanager
def dtype_policy(policy: str) -> Iterator[None]:
    """Layers made inside follow this policy, whatever the global one is."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
