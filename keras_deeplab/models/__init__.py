"""Segmentation models."""

from keras_deeplab.models.base import SegmentationModel, TransferReport, transfer_weights
from keras_deeplab.models.deeplab_v3 import DeepLabV3
from keras_deeplab.models.deeplab_v3_plus import DeepLabV3Plus

__all__ = ["DeepLabV3", "DeepLabV3Plus", "SegmentationModel", "TransferReport", "transfer_weights"]
