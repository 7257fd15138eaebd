"""Label maps and overlays of image files."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_deeplab.data import IMAGE_SUFFIXES, DatasetInfo, voc_colors
from keras_deeplab.data.orientation import UPRIGHT
from keras_deeplab.files import read_json_object, write_png
from keras_deeplab.inference import logits_spec, open_picture, predict
from keras_deeplab.metrics import by_name
from keras_deeplab.pictures import overlay
from keras_deeplab.runtimes import ExportedModel
from keras_deeplab.validation import error

logger = logging.getLogger(__name__)


def predict_files(
    model: keras.Model | ExportedModel,
    images: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    info: DatasetInfo | None = None,
) -> dict[str, dict[str, float]]:
    """Predicts image files; writes for each the class numbers and their colours over the image.

    The class numbers are in NAME_labels.png (in 16 bits above 256 classes), the colours in
    NAME_overlay.png.

    Args:
        model: Segmentation model on pixels in 0..255, or an export that
            `runtimes.open_exported` opened.
        images: Image files, or folders of them.
        output: Folder to write to.
        info: Names and colours of the classes; by default those inside an export, or their numbers
            and PASCAL VOC's colours.

    Returns:
        For each file name the share of its pixels predicted as each class.

    Raises:
        ValueError: If a file does not exist or cannot be decoded, a folder has no images, or two
            files have the same name.

    Example:

    >>> shares = keras_deeplab.predict_files(model, ["street.jpg"], "predictions")
    """
    paths = list_images(images)
    if isinstance(model, ExportedModel):
        channels, num_classes = model.metadata.image_shape[-1], model.num_classes
        info = info or model.metadata.info
    else:
        spec, num_classes = logits_spec(model)
        channels = spec.shape[-1]
    names = info.classes if info else tuple(map(str, range(num_classes)))
    colors = info.colors if info else voc_colors(num_classes)
    found = {}
    for path in paths:
        picture = open_picture(path, channels)
        if isinstance(model, ExportedModel):
            labels = model.labels(picture.upright[None])[0]
        else:
            labels = predict(model, picture.upright)
        numbers = labels.astype(np.uint8 if num_classes <= 256 else np.uint16)
        write_png(Path(output) / f"{path.stem}_labels.png", numbers)
        painted = overlay(picture.upright, labels, colors, ignore_label=None)
        write_png(Path(output) / f"{path.stem}_overlay.png", painted)
        counts = np.bincount(labels.ravel(), minlength=num_classes)
        found[path.name] = shares = by_name(counts / labels.size, names)
        largest = sorted(filter(shares.get, shares), key=shares.get, reverse=True)
        turned = picture.facts.orientation != UPRIGHT
        logger.info(
            "%s%s: %s",
            path.name,
            " (turned by its EXIF orientation)" if turned else "",
            ", ".join(f"{name} {shares[name]:.0%}" for name in largest),
        )
    return found


def list_images(images: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """Returns the files given and those of the folders given, without hidden ones."""
    paths: list[Path] = []
    images = [images] if isinstance(images, str | os.PathLike) else images
    for path in map(Path, images):
        inside = [path]
        if path.is_dir():
            visible = sorted(p for p in path.iterdir() if not p.name.startswith("."))
            inside = [p for p in visible if p.suffix.lower() in IMAGE_SUFFIXES]
        if not inside:
            raise error("images", f"files {', '.join(IMAGE_SUFFIXES)} or folders of them", path)
        paths += inside
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise error("images", "existing regular files", missing)
    stems = [path.stem for path in paths]
    if repeated := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise error("images", "files of different names without their endings", repeated)
    return paths


def stored_info(model_path: str | os.PathLike, num_classes: int) -> DatasetInfo | None:
    """Reads the names and colours that training stored beside a model, if they fit its classes."""
    path = Path(model_path).with_name("dataset.json")
    if not os.path.lexists(path):
        return None
    try:
        info = DatasetInfo.from_dict(read_json_object(path))
    except (KeyError, TypeError, ValueError) as fault:
        raise ValueError(
            f"{path}: {fault}. Restore it, or delete it to use numbers in place of the classes' "
            "names."
        ) from fault
    if info.num_classes != num_classes:
        logger.warning(
            "%s has %d classes, the model %d: not used.", path, info.num_classes, num_classes
        )
        return None
    return info
