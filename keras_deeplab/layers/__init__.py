"""The layers of DeepLab and of spatial pyramid pooling, for any functional Keras model."""

from keras_deeplab.layers.aspp import ASPP, ImagePooling
from keras_deeplab.layers.atrous_conv import AtrousConv2D, AtrousSeparableConv2D
from keras_deeplab.layers.atrous_pooling import AtrousPadding2D, AtrousPooling2D
from keras_deeplab.layers.batch_norm import BatchNormalization
from keras_deeplab.layers.composite import CompositeLayer
from keras_deeplab.layers.dilated_conv import (
    Conv2D,
    DepthwiseConv2D,
    SeparableConv2D,
)
from keras_deeplab.layers.pyramid import SpatialPyramidPooling2D
from keras_deeplab.layers.resize import CropLike, PadToMinimum, ResizeBy, ResizeLike
from keras_deeplab.layers.reverse_channels import ReverseChannels

__all__ = [
    "ASPP",
    "AtrousConv2D",
    "AtrousPadding2D",
    "AtrousPooling2D",
    "AtrousSeparableConv2D",
    "BatchNormalization",
    "CompositeLayer",
    "Conv2D",
    "CropLike",
    "DepthwiseConv2D",
    "ImagePooling",
    "PadToMinimum",
    "ResizeBy",
    "ResizeLike",
    "ReverseChannels",
    "SeparableConv2D",
    "SpatialPyramidPooling2D",
]
