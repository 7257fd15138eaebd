"""Images with one class each, in a folder for each class."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.file_source import map_files
from keras_deeplab.data.formats import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES
from keras_deeplab.names import SHOWN_NAMES
from keras_deeplab.validation import error, integer


def classification_dataset(
    root: str | os.PathLike,
    split: str = "train",
    *,
    size: int,
    class_names: Sequence[str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    training: bool = False,
) -> tf.data.Dataset:
    """Returns batches of square images of one size with their classes, for `model.fit`.

    A `keras.utils.image_dataset_from_directory` of `root/split/CLASS/*`: BMP, GIF, JPEG and PNG
    files, resized bilinearly.

    Args:
        root: The folder.
        split: The name of a folder in it, such as `"train"` or `"val"`.
        size: Height and width of all images.
        class_names: The folders of the classes in the order of their labels; by default all
            folders, sorted. Give a second split those of the first.
        batch_size: Images per batch; the last batch may be smaller.
        seed: Seed of order and flips; every epoch differs from the one before.
        training: Whether to shuffle the images and to flip them left to right at random.

    Returns:
        A dataset of batches `(image, label)`: float32 `(batch, size, size, 3)` in 0..255 and int32
        `(batch,)`; its attributes `class_names` and `file_paths` list classes and files.

    Raises:
        ValueError: If an argument is out of its range, the folder does not exist, holds no images
            or images that are not read, its classes differ from `class_names`, or one of them has
            no image to train on.

    Example:

    >>> data.write_shape_images("photos", train=20, val=5)
    >>> train = data.classification_dataset("photos", size=64, training=True)
    >>> train.class_names
    ['cross', 'disc', 'ring', 'square', 'triangle']
    """
    folder = Path(root) / split
    if not folder.is_dir():
        raise error("root", f"a folder that holds {split}/CLASS/*", str(root))
    dataset = keras.utils.image_dataset_from_directory(
        folder,
        class_names=class_names,
        image_size=2 * (integer("size", size),),
        batch_size=integer("batch_size", batch_size),
        shuffle=training,
        seed=seed,
        verbose=False,
    )
    if set(dataset.class_names) in ({"images", "labels"}, {"images", "masks"}):
        advice = "`fit` and `keras-deeplab train` take label maps"
        raise error("root", f"a folder that holds {split}/CLASS/*", str(root), advice)
    all_images = (*IMAGE_SUFFIXES, *UNSUPPORTED_SUFFIXES)
    parts = [folder / name for name in dataset.class_names]  # not hidden ones
    files = {path for part in parts for path in part.rglob("*")}
    read = set(map(Path, dataset.file_paths))
    if unread := sorted(str(p) for p in files - read if p.suffix.lower() in all_images):
        rule = f"folders of JPEG, PNG, BMP and GIF files, without {len(unread)} others"
        raise error("root", rule, unread[:SHOWN_NAMES])
    if not training:
        return dataset
    present = {path.relative_to(folder).parts[0] for path in read}
    if empty := sorted(set(dataset.class_names) - present):
        raise error("root", "folders of images, none of them empty", empty)
    flipped = dataset.map(
        lambda images, labels: (tf.image.random_flip_left_right(images, seed=seed), labels)
    )
    flipped.class_names, flipped.file_paths = dataset.class_names, dataset.file_paths
    return flipped


def check_images(dataset: tf.data.Dataset, root: str | os.PathLike) -> None:
    """Decodes all files of a `classification_dataset`.

    Raises:
        DatasetError: If files cannot be decoded; the message names them.
    """
    files = {path: Path(path) for path in dataset.file_paths}
    _, faults = map_files(_decode, files, Path(root))
    if faults:
        raise DatasetError(str(root), faults)


def _decode(_: str, path: Path) -> None:
    try:
        tf.io.decode_image(tf.io.read_file(str(path)), channels=3, expand_animations=False)
    except tf.errors.OpError as fault:
        text = re.sub(r"\{\{function_node [^}]*\}\} *| *\[Op:.*", "", fault.message)
        raise FileFault("unreadable file", text, "a whole JPEG, PNG, BMP or GIF file") from fault
