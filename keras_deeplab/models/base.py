"""What all segmentation models share: arguments kept, stride and classes changed afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import keras

from keras_deeplab.graph.network import all_layers, leaf_layers
from keras_deeplab.models.construction import check_output_stride
from keras_deeplab.models.user_backbone import restored_backbone


@dataclass(frozen=True)
class TransferReport:
    """Which layers took their weights from another model.

    Attributes:
        kept: Names of the layers whose weights were copied.
        fresh: Names of the layers that were initialised anew.
    """

    kept: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        fresh = ", ".join(self.fresh) or "none"
        return f"weights kept in {len(self.kept)} layers; initialised anew: {fresh}"


class SegmentationModel(keras.Model):
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
        """Stride of the features against the image."""
        return self._arguments["output_stride"]

    def with_output_stride(self, output_stride: int) -> Self:
        """The same model with finer or coarser features: the weights are copied, rates scaled.

        As the papers do: train at 16, evaluate at 8. A compiled model must be compiled again.

        Args:
            output_stride: A stride that occurs in the backbone, such as 8, 16 or 32.

        Returns:
            A new model of the same class.

        Raises:
            ValueError: If the backbone cannot have that stride, or a rate would not be an integer.

        Reference:
            [Chen et al., 2018, DeepLabV3+](https://arxiv.org/abs/1802.02611), table 3.
        """
        check_output_stride(output_stride)
        rates = self._arguments["aspp_rates"]
        scaled = [rate * self.output_stride / output_stride for rate in rates]
        if any(rate != int(rate) for rate in scaled):
            self._rebuilt(output_stride=output_stride)  # a stride it cannot have is said first
            raise ValueError(
                f"`output_stride` {output_stride} would turn the rates {tuple(rates)} of output "
                f"stride {self.output_stride} into {tuple(scaled)}: rates must be integers."
            )
        rates = tuple(int(rate) for rate in scaled)
        model = self._rebuilt(output_stride=output_stride, aspp_rates=rates)
        if model.transfer_report.fresh:
            raise ValueError(
                f"At `output_stride` {output_stride} the layers "
                f"{', '.join(model.transfer_report.fresh)} have other names or shapes: their "
                "weights could not be copied. Rename layers of the backbone that end in '_pad'."
            )
        return model

    def with_num_classes(self, num_classes: int) -> Self:
        """The same model for another number of classes; all but the predictor is kept.

        What was kept is printed and stays in the new model's `transfer_report`.

        Args:
            num_classes: An integer from 2.

        Returns:
            A new model of the same class.
        """
        model = self._rebuilt(num_classes=num_classes)
        print(f"{self.name}: {model.transfer_report}")
        return model

    def _rebuilt(self, **changes: Any) -> Self:
        model = type(self).from_config({**self.get_config(), **changes})
        object.__setattr__(model, "transfer_report", transfer_weights(self, model))
        return model

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, and which layers are frozen."""
        frozen = [name for name, layer in all_layers(self).items() if not layer.trainable]
        return {**self._arguments, "trainable": self.trainable, "frozen_layers": frozen}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Builds the model that `get_config` describes."""
        config = dict(config)
        trainable = config.pop("trainable", True)
        frozen = set(config.pop("frozen_layers", ()))
        config["backbone"] = restored_backbone(config["backbone"], custom_objects)
        model = cls(**config)
        model.trainable = trainable
        for name, layer in all_layers(model).items():
            layer.trainable = name not in frozen
        return model


def transfer_weights(source: keras.Model, target: keras.Model) -> TransferReport:
    """Copies weights between models with the same layer names, where the shapes agree."""
    old, kept, fresh = leaf_layers(source), [], []
    for name, layer in leaf_layers(target).items():
        if not layer.weights:
            continue
        weights = old[name].weights if name in old else []
        if [w.shape for w in weights] == [w.shape for w in layer.weights]:
            for mine, its in zip(layer.weights, weights, strict=True):
                mine.assign(its)
            kept.append(name)
        else:
            fresh.append(name)
    return TransferReport(tuple(kept), tuple(fresh))


@contextmanager
def dtype_policy(policy: str) -> Iterator[None]:
    """Layers made inside follow this policy, whatever the global one is."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
