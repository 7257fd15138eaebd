"""DeepLab for Keras: atrous convolution, ASPP and spatial pyramid pooling, ready to train."""

from keras_deeplab import (
    _requirements,  # noqa: F401 - first, as it refuses Keras settings that the others fail under
    analysis,
    backbones,
    batch_norm,
    calibration,
    confidence,
    crf,
    data,
    distribution,
    export,
    graph,
    layers,
    losses,
    metrics,
    models,
    optimizers,
    recipes,
    runtimes,
    schedules,
    trainer,
    weights,
)
from keras_deeplab._version import __version__
from keras_deeplab.batch_norm import reestimate_batch_norm
from keras_deeplab.calibration import calibrate
from keras_deeplab.classification import fit_classifier
from keras_deeplab.diagnosis import overfit
from keras_deeplab.evaluation import evaluate
from keras_deeplab.inference import predict
from keras_deeplab.model_card import card
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
from keras_deeplab.prediction import predict_files
from keras_deeplab.tensorboard import TensorBoard
from keras_deeplab.trainer import fit, tune
from keras_deeplab.upload import push_to_hub
from keras_deeplab.weights import from_pretrained, load_model

__all__ = [
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "MultiScale",
    "SPPNet",
    "TensorBoard",
    "UNet",
    "__version__",
    "analysis",
    "backbones",
    "batch_norm",
    "calibrate",
    "calibration",
    "card",
    "comparison_picture",
    "confidence",
    "crf",
    "data",
    "distribution",
    "evaluate",
    "export",
    "fit",
    "fit_classifier",
    "from_pretrained",
    "graph",
    "layers",
    "load_model",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "overfit",
    "overlay",
    "predict",
    "predict_files",
    "push_to_hub",
    "recipes",
    "reestimate_batch_norm",
    "runtimes",
    "schedules",
    "trainer",
    "tune",
    "weights",
]
