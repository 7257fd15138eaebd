"""CamVid with its 32 colour-coded classes, reduced to 11."""

from __future__ import annotations

import os

from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.label_maps import ColorCode
from keras_deeplab.data.layout import SPLITS, SplitFiles
from keras_deeplab.data.readers.listing import check_entries, files_below, read_names
from keras_deeplab.data.source import IGNORE_LABEL, DatasetInfo

# The 11 classes of SegNet, the colours of its release, and those of the classes that they unite.
CLASSES = {
    "sky": ((128, 128, 128), "808080"),
    "building": ((128, 0, 0), "800000 008040 40c000 400040 c00080"),  # bridge, wall, tunnel, arch
    "pole": ((192, 192, 128), "c0c080 000040"),  # traffic cone
    "road": ((128, 64, 128), "804080 8000c0 c00040"),  # lane markings
    "pavement": ((60, 40, 222), "0000c0 40c080 8080c0"),  # parking block, road shoulder
    "tree": ((128, 128, 0), "808000 c0c000"),  # other vegetation
    "sign": ((192, 128, 128), "c08080 808040 004040"),  # other text, traffic light
    "fence": ((64, 64, 128), "404080"),
    "car": ((64, 0, 128), "400080 4080c0 c080c0 c04080 804040"),  # SUV, truck, train, other
    "pedestrian": ((64, 64, 0), "404000 c08040 4000c0 408040"),  # child, luggage, animal
    "bicyclist": ((0, 128, 192), "0080c0 c000c0"),  # motorcycle
}
VOID = "000000"
LAYOUT = (
    "images and label maps NAME_L.png in two folders, or train, train_labels, val, val_labels, ..."
)


def _colors() -> ColorCode:
    codes = [(code, k) for k, (_, all_) in enumerate(CLASSES.values()) for code in all_.split()]
    codes.append((VOID, IGNORE_LABEL))
    return ColorCode([tuple(bytes.fromhex(c)) for c, _ in codes], [label for _, label in codes])


class CamVid(FileSource):
    """CamVid's release with 32 colours, in the 11 classes of SegNet; void is ignored.

    Either all photographs and label maps are each in a folder (701_StillsRaw_full and
    LabeledApproved_full), or in folders train and train_labels, val and val_labels, test and
    test_labels. In the first case the splits are those of SegNet (367, 101 and 233 images), unless
    train.txt, val.txt and test.txt list others by their names.

    Args:
        root: The folder that holds these.

    Raises:
        DatasetError: If no label map NAME_L.png with its photograph is there.
    """

    info = DatasetInfo(tuple(CLASSES), tuple(color for color, _ in CLASSES.values()))

    def __init__(self, root: str | os.PathLike) -> None:
        super().__init__(root)
        self._colors = _colors()
        paths = files_below(self.root, (".png", ".jpg"))
        labels = [path for path in paths if path.stem.endswith("_L")]
        if not labels:
            check_entries(self.root, LAYOUT, ("LabeledApproved_full", "701_StillsRaw_full"))
            raise self._error("missing folder", "no file NAME_L.png is there")
        lists = {split: self.root / f"{split}.txt" for split in SPLITS}
        listed = {
            name: split
            for split, path in lists.items()
            if path.exists()
            for name in read_names(path)
        }
        self._listed: dict[str, SplitFiles] = {}
        for path in paths:
            is_label = path.stem.endswith("_L")
            name = path.stem.removesuffix("_L")
            split = path.parent.name.removesuffix("_labels").removesuffix("annot")
            if split not in SPLITS:
                split = listed.get(name) if listed else _split_of_segnet(name)
            if split is not None:
                files = self._listed.setdefault(split, SplitFiles())
                (files.labels if is_label else files.images)[name] = path

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images."""
        return tuple(split for split in SPLITS if split in self._listed)

    def list_files(self, split: str) -> SplitFiles:
        """Lists photographs NAME.png with label maps NAME_L.png."""
        return self._listed[split].check(self.root, split)


def _split_of_segnet(name: str) -> str:
    """Of sequence 0016E5 the frames from 7959 on validate; the last two sequences test."""
    sequence, _, frame = name.partition("_")
    number = int(frame) if frame.isdecimal() else 0
    if sequence == "Seq05VD" or (sequence == "0001TP" and number >= 8550):
        return "test"
    return "val" if sequence == "0016E5" and number >= 7959 else "train"
