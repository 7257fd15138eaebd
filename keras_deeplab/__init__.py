"""DeepLab for Keras: atrous convolution, ASPP and spatial pyramid pooling."""

from keras_deeplab import graph, layers

__all__ = ["graph", "layers"]
