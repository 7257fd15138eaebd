"""What all formats export: a function from uint8 images to labels, and its metadata."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_deeplab.data import DatasetInfo
from keras_deeplab.frozen import FrozenFunction
from keras_deeplab.graph.network import all_layers
from keras_deeplab.inference import (
    bytes_per_pixel,
    logits_of,
    logits_spec,
    warn_of_non_finite,
    warn_of_softmax,
)
from keras_deeplab.labels import label_dtype
from keras_deeplab.layers.dilated_conv import Target
from keras_deeplab.models.multi_scale import image_scale, unwrapped
from keras_deeplab.runtimes import OUTPUTS, Metadata
from keras_deeplab.validation import error, one_of, pair

DEFAULT_OUTPUTS = ("labels", "probabilities")
HALF = {"float16", "bfloat16"}


def halves(model: keras.Model) -> set[str]:
    """The half precisions that layers compute in."""
    return {layer.compute_dtype for layer in all_layers(model).values()} & HALF


class Definition:
    """The function that is exported, from arguments that the formats share.

    Args:
        model: Segmentation model; it is what the export is compared with, in float32 where the
            export computes in it.
        precision: Of the export; None for that which the model computes in.
        precisions: Those that the format has.
        outputs: Names of the outputs.
        info: Names and colours of the classes.
        image_size: `(height, width)` where the export is for one size only.
        single: Whether an `image_size` is that of single images.
    """

    def __init__(
        self,
        model: keras.Model,
        precision: str | None,
        precisions: Sequence[str],
        outputs: Sequence[str] = DEFAULT_OUTPUTS,
        info: DatasetInfo | None = None,
        image_size: tuple[int, int] | None = None,
        single: bool = False,
    ) -> None:
        if not isinstance(model, keras.Model):
            raise error("model", "a functional keras.Model", model)
        spec, num_classes = logits_spec(model)
        warn_of_softmax(model)
        warn_of_non_finite(model)
        found = halves(model)
        self.precision = precision or min(found, default="float32")
        if precision is not None:
            one_of("precision", precision, precisions)
        known = isinstance(outputs, list | tuple) and all(name in OUTPUTS for name in outputs)
        if not known or not outputs or len(set(outputs)) < len(outputs):
            raise error("outputs", f"a list of {', '.join(OUTPUTS)}", outputs)
        if info is not None and info.num_classes != num_classes:
            raise error("info", f"of the model's {num_classes} classes", info)
        shape = [None, *spec.shape[1:]]  # also of a model for one size of batches
        if image_size is not None:
            sides = pair("image_size", image_size)
            if not spec.shape[1:3].is_compatible_with(sides):
                raise error("image_size", f"that of the model, {tuple(spec.shape[1:3])}", sides)
            shape[:3] = (1 if single else None, *sides)
        self.model = model
        self.spec = tf.TensorSpec(shape, tf.uint8, "images")
        self.metadata = Metadata(
            num_classes,
            tuple(shape[1:]),
            tuple(outputs),
            info,
            image_scale(model),
            bytes_per_pixel(model),
        )
        self._network = model
        wanted = {"bfloat16"} if precision == "bfloat16" else set()
        if precision is not None and found != wanted:
            if not hasattr(unwrapped(model), "with_dtype"):
                rule = "one that the model can have: it has no method `with_dtype`"
                copied = "Build it in float32 and copy the weights: other.set_weights(weights)."
                raise error("precision", rule, precision, copied * bool(found))
            self._network = model.with_dtype("mixed_bfloat16" if wanted else "float32")
            if halves(self._network) != wanted:
                rule = "that of the backbone, a network of its own, which keeps it"
                advice = "Build both in float32 and copy the weights: other.set_weights(weights)."
                raise error("precision", rule, precision, advice)
            if not wanted:  # the deviations of half precision are not those of the export
                self.model = self._network

    def compute(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the outputs for uint8 images."""
        dtype = self._network.inputs[0].dtype
        logits = logits_of(self._network, tf.cast(images, dtype))
        labels = tf.argmax(logits, -1, output_type=tf.int32)
        found = {
            "labels": tf.cast(labels, label_dtype(self.metadata.num_classes)),
            "probabilities": tf.nn.softmax(logits),
            "logits": logits,
        }
        return {name: found[name] for name in self.metadata.outputs}

    def frozen(self, target: Target) -> FrozenFunction:
        """Returns the function with its weights as constants."""
        return FrozenFunction(self.compute, [self.spec], target)
