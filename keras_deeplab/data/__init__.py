"""Images with label maps: sources, the audit, and the input pipelines for `model.fit`."""

from __future__ import annotations

from keras_deeplab.data.audit import Report, SplitReport, audit
from keras_deeplab.data.augmentation.albumentations import from_albumentations
from keras_deeplab.data.classification import check_images, classification_dataset
from keras_deeplab.data.faults import DatasetError, Fault
from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.folder import Folder
from keras_deeplab.data.formats import IMAGE_SUFFIXES
from keras_deeplab.data.held_out import HeldOut
from keras_deeplab.data.opening import open_source
from keras_deeplab.data.pipeline import batch_names, evaluation_dataset, training_dataset
from keras_deeplab.data.preparing import prepare
from keras_deeplab.data.resized import Resized
from keras_deeplab.data.shapes import Shapes, write_shape_images
from keras_deeplab.data.source import IGNORE_LABEL, DatasetInfo, Source, voc_colors
from keras_deeplab.data.tfds_source import TFDS

__all__ = [
    "IGNORE_LABEL",
    "IMAGE_SUFFIXES",
    "TFDS",
    "DatasetError",
    "DatasetInfo",
    "Fault",
    "FileSource",
    "Folder",
    "HeldOut",
    "Report",
    "Resized",
    "Shapes",
    "Source",
    "SplitReport",
    "audit",
    "batch_names",
    "check_images",
    "classification_dataset",
    "evaluation_dataset",
    "from_albumentations",
    "open_source",
    "prepare",
    "training_dataset",
    "voc_colors",
    "write_shape_images",
]
