"""Weights from files of other packages, with a report of what was transferred."""

from keras_deeplab.models.base import register_weights
from keras_deeplab.weights.checkpoint import Checkpoint
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.loading import from_pretrained, load, read_for_constructor
from keras_deeplab.weights.opening import Weights, open_checkpoint
from keras_deeplab.weights.published import PUBLISHED, Published, markdown
from keras_deeplab.weights.published import table as list
from keras_deeplab.weights.readers.keras_file import load_model
from keras_deeplab.weights.transfer import TransferReport, transfer
from keras_deeplab.weights.unfolding import unfold_batch_norms

__all__ = [
    "PUBLISHED",
    "Checkpoint",
    "Published",
    "TransferReport",
    "Weights",
    "WeightsError",
    "from_pretrained",
    "list",
    "load",
    "load_model",
    "markdown",
    "open_checkpoint",
    "transfer",
    "unfold_batch_norms",
]

register_weights(read_for_constructor)
