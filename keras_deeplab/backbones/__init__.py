"""Networks that turn pixels into features, each written as the classifier it is."""

from keras_deeplab.backbones.alexnet import alexnet
from keras_deeplab.backbones.mobilenet_v2 import mobilenet_v2
from keras_deeplab.backbones.mobilenet_v3 import mobilenet_v3
from keras_deeplab.backbones.preprocessing import PREPROCESSING, preprocess
from keras_deeplab.backbones.registry import BACKBONES, NAMES, Backbone, build, get
from keras_deeplab.backbones.resnet import resnet, resnet_beta
from keras_deeplab.backbones.vgg16 import vgg16
from keras_deeplab.backbones.xception import xception

__all__ = [
    "BACKBONES",
    "NAMES",
    "PREPROCESSING",
    "Backbone",
    "alexnet",
    "build",
    "get",
    "mobilenet_v2",
    "mobilenet_v3",
    "preprocess",
    "resnet",
    "resnet_beta",
    "vgg16",
    "xception",
]
