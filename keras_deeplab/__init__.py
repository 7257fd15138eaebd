"""DeepLab for Keras: atrous convolution, ASPP and spatial pyramid pooling, ready to train."""

from keras_deeplab import (
    _requirements,  # noqa: F401 - first, as it refuses Keras settings that the others fail under
    backbones,
    data,
    distribution,
    export,
    graph,
    layers,
    losses,
    metrics,
    models,
    schedules,
    weights,
)
from keras_deeplab._version import __version__
from keras_deeplab.inference import evaluate, predict
from keras_deeplab.models import (
    DeepLabV1,
    DeepLabV2,
    DeepLabV3,
    DeepLabV3Plus,
    MultiScale,
    SPPNet,
    UNet,
)
from keras_deeplab.pictures import comparison_picture, overlay

__all__ = [
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "MultiScale",
    "SPPNet",
    "UNet",
    "__version__",
    "backbones",
    "comparison_picture",
    "data",
    "distribution",
    "evaluate",
    "export",
    "graph",
    "layers",
    "losses",
    "metrics",
    "models",
    "overlay",
    "predict",
    "schedules",
    "weights",
]
