"""DeepLab for Keras: atrous convolution, ASPP and spatial pyramid pooling, ready to train."""

from keras_deeplab import (
    _requirements,  # noqa: F401 - first, as it refuses Keras settings that the others fail under
    data,
    export,
    graph,
    layers,
    losses,
    metrics,
    schedules,
)
from keras_deeplab._version import __version__
from keras_deeplab.inference import evaluate, predict
from keras_deeplab.models import DeepLabV3, DeepLabV3Plus
from keras_deeplab.pictures import overlay

__all__ = [
    "DeepLabV3",
    "DeepLabV3Plus",
    "__version__",
    "data",
    "evaluate",
    "export",
    "graph",
    "layers",
    "losses",
    "metrics",
    "overlay",
    "predict",
    "schedules",
]
