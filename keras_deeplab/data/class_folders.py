"""Images that have one class each: folders of classes, and the batches that they give."""

from __future__ import annotations

import abc
import logging
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_deeplab.data.decoding import ImageFacts, image_facts, named, read_picture
from keras_deeplab.data.faults import DatasetError, Fault, Faults
from keras_deeplab.data.files import is_utf8, one_form, visible
from keras_deeplab.data.folder import add_file_faults, few_values, map_files
from keras_deeplab.data.formats import IMAGE_SUFFIXES
from keras_deeplab.data.source import Splits

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
# Kinds of fault of class folders -> what was expected, in the order in which they are reported.
EXPECTED = {
    "missing folder": "SPLIT/CLASS/IMAGE, SPLIT being train and val",
    "too few classes": "two or more folders of classes in train",
    "unknown class folder": "in val only the classes of train",
    "missing class folder": "in val all classes of train",
    "empty class": "at least one image in every class folder",
    "file outside a class": "images in the folders of their classes",
    "file name not UTF-8": "names in UTF-8",
    "unsupported file": f"images {', '.join(IMAGE_SUFFIXES)}",
}


class ClassSource(Splits):
    """Images with one class each, in splits: what `classification_dataset` reads."""

    splits = SPLITS

    @property
    @abc.abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The class names; the position is the label."""

    @abc.abstractmethod
    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns a split's decoded images and labels.

        Args:
            split: One of `splits`.
            numbers: A dataset of int64 positions in `names(split)`: the images to give, in this
                order, however many there are. Others are not decoded. By default every image once.

        Returns:
            A dataset as long as `numbers` with pairs `(image, label)`: RGB uint8
            `(height, width, 3)` of any size, and an int32 number in 0..number of classes-1.
        """


class ClassFolders(ClassSource):
    """A folder of images in folders of their classes.

    The folder holds `train` and `val`, and each of them one folder for each class with its images
    (.jpg, .jpeg, .png, .bmp, .webp, .tif or .tiff), of any names and sizes. The classes are the
    names of the folders in `train`, sorted. Grey images become RGB, alpha is dropped, and an EXIF
    orientation is applied. Hidden files and Thumbs.db or desktop.ini are passed over.

    Args:
        root: The folder.

    Raises:
        DatasetError: On use: folders or files are not as described; the error lists all of it.
            Whether the images can be decoded is what `audit` finds out.

    Example:

    >>> source = data.ClassFolders("photos")
    >>> images_of_each_class = source.audit()["train"]
    >>> train = data.classification_dataset(source, size=64, training=True)
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        self._found: dict[str, list[str]] = {kind: [] for kind in EXPECTED}
        self._images = {split: self._list_split(split) for split in SPLITS}
        self._compare_classes()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the folders in `train`, sorted; the position is the label."""
        self._raise_if_any()
        return tuple(self._images["train"])

    def names(self, split: str) -> list[str]:
        """Returns CLASS/FILE of a split's images, class after class."""
        return [path.relative_to(self.root / split).as_posix() for path, _ in self._pairs(split)]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the decoded images and labels of a split (see `data.ClassSource.dataset`)."""
        paths, labels = zip(*self._pairs(split), strict=True)
        if numbers is None:
            numbers = tf.data.Dataset.range(len(paths))
        files, classes = tf.constant(list(map(os.fsencode, paths))), tf.constant(labels, tf.int32)

        def read(path: bytes) -> np.ndarray:
            path = Path(os.fsdecode(path))
            with named(path):
                return read_picture(path).upright

        def decode(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = tf.numpy_function(read, [files[number]], tf.uint8, stateful=False)
            return tf.ensure_shape(image, (None, None, 3)), classes[number]

        return numbers.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def audit(self) -> dict[str, dict[str, int]]:
        """Decodes every image, in a pool of threads.

        Returns:
            For each split the number of images of each class.

        Raises:
            DatasetError: Anything is wrong. The message lists every kind with its count, what was
                expected and, for the first ten, file name and what was found.
        """
        unreadable = Faults()
        paths = [path for folders in self._images.values() for p in folders.values() for path in p]
        facts = map_files(image_facts, paths)
        add_file_faults(unreadable, self.root, facts)
        images = [found for found in facts.values() if isinstance(found, ImageFacts)]
        for warning in few_values(str(self.root), images, unreadable):
            logger.warning(warning)
        self._raise_if_any(unreadable)
        return {
            split: {name: len(paths) for name, paths in folders.items()}
            for split, folders in self._images.items()
        }

    def _list_split(self, split: str) -> dict[str, list[Path]]:
        """The images of each class folder, and what is wrong with their names."""
        folder = self.root / split
        if not folder.is_dir():
            self._found["missing folder"].append(f"{folder} is no folder")
            return {}
        images: dict[str, list[Path]] = {}
        for path in visible(folder):
            if not path.is_dir():
                self._found["file outside a class"].append(self._shown(path))
                continue
            files = visible(path)
            name = one_form(path.name)
            images.setdefault(name, []).extend(file for file in files if _is_image(file))
            odd = [self._shown(file) for file in files if not is_utf8(str(file))]
            self._found["file name not UTF-8"] += odd
            others = [self._shown(file) for file in files if not _is_image(file)]
            self._found["unsupported file"] += others
            if not any(map(_is_image, files)):
                self._found["empty class"].append(self._shown(path))
        return images

    def _compare_classes(self) -> None:
        if not (self.root / "train").is_dir():
            return
        train, val = self._images["train"], self._images["val"]
        if len(train) < 2:
            self._found["too few classes"].append(f"train holds {list(train)}")
        if (self.root / "val").is_dir():
            self._found["unknown class folder"] += [f"val/{name}" for name in val.keys() - train]
            self._found["missing class folder"] += [f"val/{name}" for name in train.keys() - val]

    def _pairs(self, split: str) -> list[tuple[Path, int]]:
        self.check_split(split)
        numbers = {name: index for index, name in enumerate(self.classes)}
        return [
            (path, numbers[name]) for name, paths in self._images[split].items() for path in paths
        ]

    def _raise_if_any(self, unreadable: Faults | None = None) -> None:
        faults = [
            Fault(kind, EXPECTED[kind], tuple(sorted(found)))
            for kind, found in self._found.items()
            if found
        ]
        faults += unreadable or ()
        if faults:
            raise DatasetError(str(self.root), faults)

    def _shown(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def classification_dataset(
    source: ClassSource,
    split: str = "train",
    *,
    size: int,
    batch_size: int = 32,
    seed: int = 0,
    training: bool = False,
) -> tf.data.Dataset:
    """Returns batches of square images of one size, and their labels, for `model.fit`.

    Every image comes once in an epoch and none is dropped: the last batch may be smaller. Images
    are resized bilinearly (with antialiasing where they shrink), height and width alike, so that
    the whole picture is there.

    Args:
        source: A `data.ClassSource`.
        split: One of `source.splits`.
        size: Height and width of all images.
        batch_size: Images a batch.
        seed: Seed of order and mirroring; every epoch differs from the one before.
        training: Whether to shuffle the images and to mirror them left to right at random.

    Returns:
        A dataset of known cardinality with batches `(image, label)`: float32
        `(batch, size, size, 3)` in 0..255 and int32 `(batch,)`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> val = data.classification_dataset(data.ShapeClasses(), "val", size=80)
    """
    for name, value in (("size", size), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer from 1. Received: {name}={value!r}")
    source.check_split(split)

    def resized(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.image.resize(image, (size, size), antialias=True), label

    def mirrored(pair: tuple[tf.Tensor, tf.Tensor], number: tf.Tensor):
        image, label = resized(*pair)
        return tf.cond(number % 2 == 0, lambda: image, lambda: image[:, ::-1]), label

    count = len(source.names(split))
    # Shuffled before anything is decoded, anew in every epoch.
    order = tf.data.Dataset.range(count).shuffle(count, seed=seed) if training else None
    pairs = source.dataset(split, order)
    if training:
        # One number per image, drawn in order, keeps parallel work reproducible.
        numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
        pairs = tf.data.Dataset.zip((pairs, numbers))
    pairs = pairs.map(mirrored if training else resized, tf.data.AUTOTUNE, deterministic=True)
    return pairs.batch(batch_size).prefetch(tf.data.AUTOTUNE)
