"""Several outputs in training, one otherwise; torchvision's auxiliary head."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers as kl

from keras_deeplab.graph.network import is_outermost
from keras_deeplab.layers import BatchNormalization


class DeepSupervision:
    """Mixin of functional models that return more outputs in training, the main one first.

    Inside another model, which has a loss of its own, they return the main one alone.

    The loss is the weighted sum of theirs; what layers add to the loss, such as regularisation,
    counts once. Metrics, predictions and the model's graph have the main output alone.
    """

    # From images to the list of logits; None until `_supervise` is called.
    training_graph: keras.Model | None = None
    supervision_weights: tuple[float, ...] = (1.0,)
    _training_layers: Sequence[keras.layers.Layer] = ()

    def _supervise(
        self,
        outputs: Sequence[keras.KerasTensor],
        weights: Sequence[float],
        layers: Sequence[keras.layers.Layer] = (),
    ) -> None:
        """Sets the outputs of training, the main one first, and the layers that it does not use."""
        self._training_layers = list(layers)
        # Keras before 3.15 does not track layers that are set on a functional model.
        self._layers.extend(layer for layer in layers if layer not in self._layers)
        self.supervision_weights = tuple(map(float, weights))
        training = keras.Model(self.input, list(outputs), name=f"{self.name}_training")
        # Past Keras' tracking, which would count the model's layers a second time.
        object.__setattr__(self, "training_graph", training)

    @property
    def layers(self) -> list[keras.layers.Layer]:
        return [*super().layers, *self._training_layers]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if training and self.training_graph is not None:
            if is_outermost(self):
                return self.training_graph(inputs, training=True)
            warnings.warn(
                f"{self.name} is inside another model, which is trained by its main output alone: "
                "auxiliary heads and the losses of several scales are those of its own `fit`.",
                stacklevel=2,
            )
        return super().call(inputs, training=training, mask=mask)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss of the main output; in training the weighted sum over all outputs."""
        if not isinstance(y_pred, list | tuple):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        total = 0.0
        for weight, logits in zip(self.supervision_weights, y_pred, strict=True):
            total += weight * super().compute_loss(x, y, logits, sample_weight, training)
        # Keras added what the layers add to each of them.
        added = sum(map(self._aggregate_additional_loss, self.losses))
        return total - (sum(self.supervision_weights) - 1) * added

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        main = y_pred[0] if isinstance(y_pred, list | tuple) else y_pred
        return super().compute_metrics(x, y, main, sample_weight)


def auxiliary_head(channels: int, arguments: Mapping[str, Any]) -> keras.Model:
    """Builds torchvision's FCNHead: a 3x3 convolution to a quarter of the channels, a predictor."""
    x = inputs = keras.Input((None, None, channels), name="features")
    options = {"use_bias": False, "kernel_initializer": "he_uniform", "name": "conv"}
    x = kl.Conv2D(max(1, channels // 4), 3, padding="same", **options)(x)
    x = BatchNormalization(epsilon=arguments["epsilon"], momentum=0.9, name="norm")(x)
    x = kl.Activation(arguments["activation"], name="act")(x)
    x = kl.Dropout(0.1, name="dropout")(x)  # torchvision's, whatever the main head's is
    x = kl.Conv2D(arguments["num_classes"], 1, name="logits", dtype="float32")(x)
    return keras.Model(inputs, x, name="auxiliary")
