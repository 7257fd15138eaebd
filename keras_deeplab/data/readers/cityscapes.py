"""Cityscapes with its fine annotations."""

from __future__ import annotations

import os
from functools import cached_property

from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.label_codes import LabelCode
from keras_deeplab.data.layout import SplitFiles
from keras_deeplab.data.readers.listing import check_entries, files_below
from keras_deeplab.data.source import DatasetInfo

# Names, ids and colours of the 19 classes that are evaluated; of the 34 ids the others are ignored.
CLASSES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
IDS = tuple(number for number, _ in CLASSES.values())
IGNORED = (*(set(range(34)) - set(IDS)), 255)  # 255: the licence plates' -1
IMAGE = "_leftImg8bit.png"
LABEL = "_gtFine_labelIds.png"
TRAIN_LABEL = "_gtFine_labelTrainIds.png"


class Cityscapes(FileSource):
    """Cityscapes' leftImg8bit with the labelIds of gtFine: 34 ids become the 19 classes.

    Where gtFine/train has no labelIds but labelTrainIds, which are the labels themselves, these are
    read in all splits.

    The label maps of "test" contain ignored pixels only, as they are not published.

    Args:
        root: The folder with leftImg8bit and gtFine.

    Raises:
        DatasetError: If a folder is missing; the message names all that are.
    """

    info = DatasetInfo(tuple(CLASSES), tuple(color for _, color in CLASSES.values()))

    def __init__(self, root: str | os.PathLike) -> None:
        super().__init__(root)
        layout = "leftImg8bit/{train,val}/CITY and gtFine/{train,val}/CITY"
        check_entries(self.root, layout, ("leftImg8bit/train", "gtFine/train"))
        names = [path.name for path in files_below(self.root / "gtFine" / "train", (".png",))]
        has_ids, has_labels = (any(n.endswith(end) for n in names) for end in (LABEL, TRAIN_LABEL))
        self._label = TRAIN_LABEL if has_labels and not has_ids else LABEL

    @cached_property
    def code(self) -> LabelCode:
        """The ids of the classes, or the labels of labelTrainIds."""
        ids = self._label == LABEL
        return LabelCode(IDS, IGNORED) if ids else LabelCode(tuple(range(len(IDS))))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a folder of images."""
        folders = self.root / "leftImg8bit"
        return tuple(split for split in ("train", "val", "test") if (folders / split).is_dir())

    def list_files(self, split: str) -> SplitFiles:
        """Lists the files of all cities by CITY/CITY_SEQUENCE_FRAME."""
        files = SplitFiles()
        for found, kind, ending in (
            (files.images, "leftImg8bit", IMAGE),
            (files.labels, "gtFine", self._label),
        ):
            folder = self.root / kind / split
            for path in files_below(folder, (".png",)):
                if path.name.endswith(ending):
                    found[path.relative_to(folder).as_posix().removesuffix(ending)] = path
        return files.check(self.root, split)
