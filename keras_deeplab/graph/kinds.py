"""The kinds of operations: what each does to the height and width of a map."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from keras import layers as kl

from keras_deeplab import layers
from keras_deeplab.graph.network import APPLICATION_POINTWISE, layer_error


class Kind(Enum):
    """The ways in which an operation can treat height and width."""

    POINTWISE = auto()  # each pixel from the same pixel of one map or of several
    WINDOW = auto()  # a kernel slides: convolutions and poolings
    TRANSPOSED = auto()  # a transposed convolution
    PAD = auto()
    CROP = auto()
    UPSAMPLE = auto()  # by a whole factor
    RESIZE_LIKE = auto()  # to the size of another map
    PAD_TO = auto()  # at the end, up to a minimum size
    CROP_LIKE = auto()  # at the end, to the size of another map
    STATISTICS = auto()  # pixel by pixel, with statistics of the whole map
    GLOBAL = auto()  # the whole map becomes one vector
    COMPOSITE = auto()  # layers inside


@dataclass(frozen=True)
class Window:
    """A sliding kernel, each pair for (height, width)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    padding: Any  # "same", "valid" or ((top, bottom), (left, right))

    def extent(self, axis: int) -> int:
        """The pixels from the kernel's first tap to its last."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1


POOLINGS = (kl.MaxPooling2D, kl.AveragePooling2D, layers.AtrousPooling2D)
_KINDS = {
    Kind.COMPOSITE: (layers.CompositeLayer,),
    Kind.POINTWISE: (
        *(kl.Activation, kl.ReLU, kl.LeakyReLU, kl.ELU),
        *(kl.Dropout, kl.SpatialDropout2D, kl.GaussianNoise, kl.GaussianDropout, kl.AlphaDropout),
        *(kl.Rescaling, kl.Identity, kl.ActivityRegularization, kl.Dense),
        *(kl.Add, kl.Subtract, kl.Multiply, kl.Average, kl.Maximum, kl.Minimum),
        *(layers.ReverseChannels, *APPLICATION_POINTWISE),
    ),
    Kind.TRANSPOSED: (kl.Conv2DTranspose,),
    Kind.WINDOW: (kl.Conv2D, kl.DepthwiseConv2D, kl.SeparableConv2D, *POOLINGS),
    Kind.PAD: (kl.ZeroPadding2D, layers.AtrousPadding2D),
    Kind.CROP: (kl.Cropping2D,),
    Kind.UPSAMPLE: (kl.UpSampling2D,),
    Kind.RESIZE_LIKE: (layers.ResizeLike,),
    Kind.PAD_TO: (layers.PadToMinimum,),
    Kind.CROP_LIKE: (layers.CropLike,),
    Kind.STATISTICS: (kl.GroupNormalization,),
    Kind.GLOBAL: (
        *(kl.GlobalAveragePooling2D, kl.GlobalMaxPooling2D, kl.Flatten, kl.Reshape),
        layers.SpatialPyramidPooling2D,
    ),
}
# Layers with an `axis`, which compute each pixel from the same pixel along that of channels.
_ALONG_CHANNELS = (kl.BatchNormalization, kl.LayerNormalization, kl.UnitNormalization)
_ALONG_CHANNELS += (kl.Normalization, kl.Concatenate, kl.Softmax)
# Classes of `keras.ops` that compute each pixel from the same pixel.
_POINTWISE_OPS = frozenset(
    "Absolute Add Cast Celu Clip Divide Elu Erf Exp Gelu HardShrink HardSigmoid HardSilu HardTanh "
    "Identity LeakyRelu Log Log1p LogSigmoid Maximum Minimum Mish Multiply Negative Power ReLU "
    "Relu Relu6 Rsqrt Selu Sigmoid Sign Silu SoftShrink Softplus Softsign SparsePlus "
    "SparseSigmoid Sqrt Square Squareplus Subtract Tanh TanhShrink TrueDivide Where".split()
)
_registered_pointwise: set[type] = set()


def register_pointwise(layer_class: type) -> type:
    """Declares that a layer class computes each pixel from the same pixel of its inputs.

    Usable as a decorator. The graph functions raise an error for layers that are not known.

    Returns the class itself.

    Example:

    >>> @keras_deeplab.graph.register_pointwise
    ... class Swish(keras.layers.Layer):
    ...     def call(self, x):
    ...         return x * keras.ops.sigmoid(x)
    """
    _registered_pointwise.add(layer_class)
    return layer_class


def kind(operation: Any, path: str, rank: int = 4) -> Kind:
    """Classifies an operation on tensors of a rank; raises a `ValueError` for unknown ones."""
    if getattr(operation, "data_format", None) == "channels_first":
        raise layer_error("channels_last layers", path, "is channels_first.")
    if type(operation) in _registered_pointwise:
        return Kind.POINTWISE
    for result, classes in _KINDS.items():
        if isinstance(operation, classes):
            return result
    return _kind_by_axis(operation, path, rank)


def _kind_by_axis(operation: Any, path: str, rank: int) -> Kind:
    """Operations that work pixel by pixel as long as they stay on the channel axis."""
    name = type(operation).__name__
    axes = getattr(operation, "axis", None)
    axes = set(axes) if isinstance(axes, list | tuple) else {axes}
    if isinstance(operation, _ALONG_CHANNELS):
        if axes <= {-1, rank - 1}:
            return Kind.POINTWISE
    elif isinstance(operation, kl.PReLU):
        if {1, 2} <= set(operation.shared_axes or ()):
            return Kind.POINTWISE
    elif type(operation).__module__.startswith(("keras.src.ops", "keras.src.activations")):
        if name in _POINTWISE_OPS or (
            name in {"Concatenate", "Softmax"} and axes <= {-1, rank - 1}
        ):
            return Kind.POINTWISE
        if name in {"Mean", "Max", "Sum"} and {a % 4 for a in axes if a is not None} == {1, 2}:
            return Kind.GLOBAL
    rule = "layers whose effect on height and width is known"
    if isinstance(operation, layers.ResizeBy):
        advice = "Of a MultiScale, give the model inside: `model.model`."
        raise layer_error(rule, path, f"changes the scale of the image. {advice}")
    if name.startswith("Random") and type(operation).__module__.startswith("keras."):
        detail = f"({name}) is random augmentation. Put it in front of the network."
        raise layer_error(rule, path, detail)
    detail = f"({name}) is unknown. If it computes each pixel from the same pixel of its inputs, "
    detail += "declare that with keras_deeplab.graph.register_pointwise."
    raise layer_error(rule, path, detail)


def window(operation: Any) -> Window:
    """The sliding kernel of a convolution or a pooling."""
    kernel = operation.pool_size if isinstance(operation, POOLINGS) else operation.kernel_size
    strides = getattr(operation, "strides", (1, 1))
    return Window(kernel, strides, getattr(operation, "dilation_rate", (1, 1)), operation.padding)
