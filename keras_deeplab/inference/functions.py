"""The compiled functions of a model from pixels to labels and probabilities."""

from __future__ import annotations

import math
import threading
import warnings
import weakref
from typing import Any

import keras
import tensorflow as tf

from keras_deeplab.crf import RefinedModel
from keras_deeplab.frozen import FrozenFunction
from keras_deeplab.graph import geometry
from keras_deeplab.graph.network import all_layers, functional, is_network, top_level_calls
from keras_deeplab.inference.upsampled_labels import upsampled_labels
from keras_deeplab.labels import label_dtype
from keras_deeplab.layers import CropLike, ResizeLike
from keras_deeplab.layers.resize import bilinear
from keras_deeplab.memory import return_free_memory
from keras_deeplab.models import MultiScale
from keras_deeplab.models.multi_scale import unwrapped
from keras_deeplab.runtimes import BYTES_PER_PIXEL, ExportedModel, pixels_as
from keras_deeplab.validation import error

# Beside the models, not on them: an attribute would be tracked, saved and copied with its model.
_LOCK = threading.Lock()
_SUMS_REMAIN = (  # layers after which a softmax still sums to one, or nearly
    *(ResizeLike, CropLike, keras.layers.Activation, keras.layers.Identity, keras.layers.Reshape),
    *(keras.layers.UpSampling2D, keras.layers.Resizing, keras.layers.Cropping2D),
)
_FUNCTIONS: weakref.WeakKeyDictionary[keras.Model, ModelFunctions] = weakref.WeakKeyDictionary()


def logits_spec(model: Predictor) -> tuple[tf.TensorSpec, int]:
    """Returns the spec of a segmentation model's input and the number of classes, or raises."""
    if isinstance(model, RefinedModel):
        return logits_spec(model.model)
    if isinstance(model, ModelFunctions | ExportedModel):
        return model.spec
    if not getattr(model, "inputs", None):
        raise error("model", "a functional keras.Model", model)
    inputs, outputs = ([tuple(t.shape) for t in ts] for ts in (model.inputs, model.outputs))
    if (
        [len(shape) for shape in inputs + outputs] != [4, 4]
        or len(inputs) != 1
        or inputs[0][-1] is None
        or (outputs[0][-1] or 0) < 2
    ):
        raise error(
            "model",
            "a map from one input (batch, height, width, channels) to logits (batch, height, "
            "width, num_classes) with a fixed number of channels and at least 2 classes",
            {"inputs": inputs, "outputs": outputs},
        )
    return tf.TensorSpec(inputs[0], model.inputs[0].dtype), outputs[0][-1]


def logits_of(model: keras.Model, pixels: tf.Tensor) -> tf.Tensor:
    """Returns the logits of pixels in float32; the model may return them in a list or dict."""
    return tf.cast(keras.tree.flatten(model(pixels, training=False))[0], tf.float32)


class ModelFunctions:
    """The compiled functions of a model from a batch of pixels to labels and to probabilities.

    The weights are constants. The network is traced once for all sizes; run eagerly, it would keep
    all its intermediate maps to the end. Where it ends in a `ResizeLike`, that layer is left out of
    it, so that labels do not need the logits at full size.
    """

    def __init__(self, model: keras.Model) -> None:
        # Nothing here holds the model itself, which would keep it in the dictionary.
        spec, num_classes = self.spec = logits_spec(model)
        warn_of_softmax(model)
        warn_of_non_finite(model)
        network, align_corners = _without_upsampling(model)
        dtype = label_dtype(num_classes)

        def outputs(images: tf.Tensor) -> dict[str, tf.Tensor]:
            logits, *references = keras.tree.flatten(network(images, training=False))
            sizes = [tf.shape(reference)[1:3] for reference in references or [logits]]
            logits = tf.cast(logits, tf.float32)
            return {"logits": logits, "size": sizes[0], "shown": sizes[-1]}

        size = tf.TensorSpec([2], tf.int32)
        signature = [tf.TensorSpec([None, None, None, num_classes]), size, size]

        @tf.function(input_signature=signature, autograph=False)
        def labels(logits: tf.Tensor, size: tf.Tensor, shown: tf.Tensor) -> tf.Tensor:
            if align_corners is None:
                return tf.cast(tf.argmax(logits, -1, output_type=tf.int32), dtype)
            found = upsampled_labels(logits, size, align_corners, dtype)
            return found[:, : shown[0], : shown[1]]

        @tf.function(input_signature=signature, autograph=False)
        def probabilities(logits: tf.Tensor, size: tf.Tensor, shown: tf.Tensor) -> tf.Tensor:
            if align_corners is not None:
                logits = bilinear(logits, size, align_corners)[:, : shown[0], : shown[1]]
            return tf.nn.softmax(logits)

        any_batch = tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, name="images")
        self._network, self._is_new = FrozenFunction(outputs, [any_batch]), True
        self._labels, self._probabilities = labels, probabilities
        self.bytes_per_pixel = bytes_per_pixel(model)
        self._weights, self._policies = model.weights, _policies(model)
        self._fingerprints = _fingerprint_function(self._weights)
        self._frozen = self._fingerprints().numpy().tobytes()

    def are_of(self, model: keras.Model) -> bool:
        """Whether the model has the weights and dtype policies that it had."""
        return (
            self._policies == _policies(model)
            and list(map(id, self._weights)) == list(map(id, model.weights))
            and self._frozen == self._fingerprints().numpy().tobytes()
        )

    def labels(self, pixels: tf.Tensor) -> tf.Tensor:
        """Returns labels `(batch, height, width)`."""
        return self._labels(*self._run(pixels))

    def probabilities(self, pixels: tf.Tensor) -> tf.Tensor:
        """Returns probabilities `(batch, height, width, num_classes)`, float32."""
        return self._probabilities(*self._run(pixels))

    def _run(self, pixels: tf.Tensor) -> list[tf.Tensor]:
        # Not in one function with what follows, which would copy the constants once more.
        found = self._network(pixels_as(self.spec[0].dtype, pixels))
        if self._is_new:  # the first call has optimised the graph, in several copies
            self._is_new = False
            return_free_memory()
        return [found[name] for name in ("logits", "size", "shown")]


Predictor = keras.Model | ExportedModel | ModelFunctions | RefinedModel


def model_functions(model: Predictor) -> ModelFunctions | ExportedModel | RefinedModel:
    """Returns the compiled functions of a model, which are kept as long as it stays as it is.

    An export has the same methods; functions are returned as they are, without a look at the model.
    """
    if isinstance(model, RefinedModel):
        return RefinedModel(model_functions(model.model), model.crf)
    if isinstance(model, ModelFunctions | ExportedModel):
        return model
    with _LOCK:  # else threads of a server would all freeze the network
        known = _FUNCTIONS.get(model)
        if known is None or not known.are_of(model):
            del known  # before others take memory
            _FUNCTIONS.pop(model, None)
            known = _FUNCTIONS[model] = ModelFunctions(model)
        return known


def _policies(model: keras.Model) -> list[str]:
    return [layer.dtype_policy.name for layer in all_layers(model).values()]


def bytes_per_pixel(model: keras.Model) -> int:
    """Returns about the memory of a prediction per pixel of the image: four times the largest map.

    Of the views of `MultiScale` about half are in memory together, and at least the largest and
    the logits. From measurements.
    """
    if isinstance(model, MultiScale):
        areas = [scale**2 for scale in model.scales]
        views = max(*areas, sum(areas) * (1 + model.flip) / 2)
        return max(math.ceil(bytes_per_pixel(model.model) * views), 4 * 4 * model.output_shape[-1])
    try:
        calls = geometry(model).calls
    except ValueError:  # layers of unknown effect on height and width
        return BYTES_PER_PIXEL
    largest = 1.0
    for call, _, output in calls:
        if None not in output.stride:
            largest = max(largest, call.outputs[0].shape[-1] / math.prod(output.stride))
    return math.ceil(4 * 4 * largest)


def warn_of_softmax(model: keras.Model) -> None:
    """Warns of a model whose outputs are probabilities, of which another softmax is taken."""
    if last := _last_probability(unwrapped(model)):
        warnings.warn(
            f"The model ends in a {last}, but its outputs are taken for logits: probabilities are "
            f"too even, and large logits may become equal. Remove the {last}.",
            stacklevel=3,
        )


def warn_of_non_finite(model: keras.Model) -> None:
    """Warns of a model that has diverged: where logits are NaN, the label is class 0."""
    floats = [w for w in model.weights if tf.as_dtype(w.dtype).is_floating]
    wrong = [w.path for w in floats if not tf.reduce_all(tf.math.is_finite(w.value))]
    if wrong:
        text = f"Weights have NaN or infinite values ({len(wrong)}, such as {wrong[0]})"
        warnings.warn(f"{text}: predictions may be wrong.", stacklevel=3)


def _last_probability(model: keras.Model) -> str | None:
    """The softmax or sigmoid that a model ends in."""
    calls = {id(call.outputs[0]): call for call in top_level_calls(model)}
    call = calls.get(id(model.outputs[0]))
    while call is not None:
        last = call.operation
        activation = getattr(last, "activation", None)  # else a layer or a function of `ops`
        name = getattr(activation, "__name__", type(last).__name__).lower()
        if name in ("softmax", "sigmoid"):
            return name
        if is_network(last):
            return _last_probability(functional(last))
        call = calls.get(id(call.inputs[0])) if isinstance(last, _SUMS_REMAIN) else None
    return None


def _fingerprint_function(weights: list[keras.Variable]) -> Any:
    """Returns a function that computes 8 bytes of each weight."""

    @tf.function(autograph=False)
    def fingerprints() -> tf.Tensor:
        rows = [tf.reshape(tf.convert_to_tensor(weight), [1, -1]) for weight in weights]
        return tf.concat([tf.zeros([0, 8], tf.uint8), *map(tf.fingerprint, rows)], 0)

    return fingerprints


def _without_upsampling(model: keras.Model) -> tuple[keras.Model, bool | None]:
    """Returns a model without its last `ResizeLike`, and whether that aligns corners.

    The outputs are the coarse logits, the map of the size that they get, and, where they are
    cropped after that, the map of the size that is left. Any other model is returned as it is,
    with None.
    """
    calls = {id(call.outputs[0]): call for call in top_level_calls(model)}
    last, shown = calls.get(id(model.outputs[0])), []
    if last is not None and isinstance(last.operation, CropLike):
        last, shown = calls.get(id(last.inputs[0])), [last.inputs[1]]
    is_resize = last is not None and isinstance(last.operation, ResizeLike)
    own_call = type(model).call.__module__.partition(".")[0] not in ("keras", "keras_deeplab")
    if not is_resize or own_call or last.operation.compute_dtype != "float32":
        return model, None
    return keras.Model(model.inputs, [*last.inputs, *shown]), last.operation.align_corners
