"""The graph of a network: reading its geometry and rewriting its output stride."""

from keras_deeplab.graph.cost import multiply_adds
from keras_deeplab.graph.features import find_feature_tap, minimum_size, tensor_of
from keras_deeplab.graph.geometry import Geometry, TensorGeometry, geometry
from keras_deeplab.graph.kinds import register_pointwise
from keras_deeplab.graph.rewrite import with_output_stride

__all__ = [
    "Geometry",
    "TensorGeometry",
    "find_feature_tap",
    "geometry",
    "minimum_size",
    "multiply_adds",
    "register_pointwise",
    "tensor_of",
    "with_output_stride",
]
