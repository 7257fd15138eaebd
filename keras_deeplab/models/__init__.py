"""Models for semantic segmentation, and SPP-net for classification."""

from keras_deeplab.models.base import ImageModel, SegmentationModel
from keras_deeplab.models.deeplab_v1 import DeepLabV1
from keras_deeplab.models.deeplab_v2 import DeepLabV2
from keras_deeplab.models.deeplab_v3 import DeepLabV3
from keras_deeplab.models.deeplab_v3_plus import DeepLabV3Plus
from keras_deeplab.models.multi_scale import MultiScale
from keras_deeplab.models.spp_net import SPPNet
from keras_deeplab.models.unet import UNet

__all__ = [
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "ImageModel",
    "MultiScale",
    "SPPNet",
    "SegmentationModel",
    "UNet",
]
