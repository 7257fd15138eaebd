"""Dense CRF: refines the borders of a segmentation, as DeepLabV1 and V2 do."""

from keras_deeplab.crf.dense_crf import PRESETS, DenseCRF, dense_crf, open_crf
from keras_deeplab.crf.refined import RefinedModel
from keras_deeplab.crf.search import SearchReport, search

__all__ = [
    "PRESETS",
    "DenseCRF",
    "RefinedModel",
    "SearchReport",
    "dense_crf",
    "open_crf",
    "search",
]
