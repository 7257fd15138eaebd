"""Label maps and overlays of image files."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from keras_deeplab.confidence import entropy, labels_with, margin
from keras_deeplab.crf import RefinedModel
from keras_deeplab.data import DatasetInfo, voc_colors
from keras_deeplab.data.formats import PIXEL_SUFFIXES, UNSUPPORTED_SUFFIXES
from keras_deeplab.data.orientation import UPRIGHT
from keras_deeplab.files import atomic_write, read_json_object, write_png
from keras_deeplab.inference import (
    Predictor,
    logits_spec,
    model_functions,
    open_picture,
    predict,
    predict_kept,
)
from keras_deeplab.inference.large_image import LargeImage, is_large
from keras_deeplab.inference.predicting import checked_window
from keras_deeplab.inference.video import VIDEO_SUFFIXES, is_video, open_video, video_writer
from keras_deeplab.labels import label_dtype
from keras_deeplab.metrics import by_name
from keras_deeplab.names import first_few
from keras_deeplab.pictures import Colors, overlay
from keras_deeplab.runtimes import ExportedModel
from keras_deeplab.validation import error, one_of

logger = logging.getLogger(__name__)

CONFIDENCES = {"margin": margin, "entropy": lambda probabilities: 1 - entropy(probabilities)}
OVERLAY_SIDE = 4096  # of an image that is read by rows
SUFFIXES = PIXEL_SUFFIXES + VIDEO_SUFFIXES
SHOWN_FAILURES = 10
# Names that differ in case alone are one file there.
_FOLDED = str.casefold if sys.platform in ("win32", "darwin") else str


def predict_files(
    model: Predictor,
    images: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    info: DatasetInfo | None = None,
    window: int | Sequence[int] | None = None,
    overlap: int | None = None,
    frame_labels: bool = False,
    confidence: str | None = None,
) -> dict[str, dict[str, float]]:
    """Predicts images and videos; writes for each the class numbers and their colours over it.

    Of an image the class numbers are in NAME_labels.png (in 16 bits above 256 classes) and the
    colours in NAME_overlay.png. Of a video the colours are in NAME_overlay.mp4, without sound; it
    is read and written frame by frame.

    Args:
        model: Segmentation model on pixels in 0..255, or an export that
            `runtimes.open_exported` opened, or a `crf.RefinedModel`.
        images: Image files, videos (`.mp4`, `.mov`, `.avi`, `.mkv`, `.webm` or `.m4v`; with the
            extra `video`), or folders of them.
        output: Folder to write to.
        info: Names and colours of the classes, and the value range of the images; by default those
            inside an export, or their numbers and PASCAL VOC's colours.
        window, overlap: As of `predict`. Image files of more than 178,956,970 pixels are refused
            unless `window` or the model's input size is fixed: they are read by rows then (with the
            extra `large`), and their overlay is at most 4,096 pixels wide and high.
        frame_labels: Whether to write the class numbers of each frame of a video too, to
            NAME_labels/NUMBER.png. Those of an earlier, longer video are removed.
        confidence: `"margin"` (255 times `confidence.margin`) or `"entropy"` (255 times one minus
            `confidence.entropy`) to write the confidence at each pixel of an image to
            NAME_confidence.png, grey in 8 bits: white is certain. None for no such file.

    Returns:
        For each file name the share of its pixels predicted as each class.

    Raises:
        ValueError: If a file does not exist, a folder has no images, two files have the same name
            or would be overwritten, `info` does not fit the model, or `window` or `overlap` is out
            of its range. If files cannot be decoded, after all others are predicted.
        ImportError: If a package for videos or for images of that size is missing.

    Example:

    >>> shares = keras_deeplab.predict_files(model, ["street.jpg"], "predictions")
    """
    one_of("confidence", confidence, (None, *CONFIDENCES))
    paths, (spec, num_classes) = list_images(images), logits_spec(model)
    checked_window(spec.shape[1:3], window, overlap)
    network = model.model if isinstance(model, RefinedModel) else model
    if isinstance(network, ExportedModel):
        info = info or network.metadata.info
        if network is not model or (confidence is not None and not all(map(is_video, paths))):
            network.check_probabilities()
    if info is not None and info.num_classes != num_classes:
        raise error("info", f"of the model's {num_classes} classes", info)
    _check_not_overwritten(paths, Path(output))
    names = info.classes if info else tuple(map(str, range(num_classes)))
    colors = info.colors if info else voc_colors(num_classes)
    windows = {"window": window, "overlap": overlap}
    value_range = info.value_range if info else None
    if confidence is not None and any(map(is_video, paths)):
        logger.warning("`confidence` is written for images alone, not for videos.")
    found, failures = {}, []
    for path in paths:
        target = Path(output) / path.stem
        try:
            if is_video(path):
                counts, note = _predict_video(model, path, target, colors, windows, frame_labels)
            else:
                counts, note = _predict_image(
                    model, path, target, colors, windows, value_range, confidence
                )
        except ValueError as failure:
            if len(paths) == 1:
                raise
            failures.append(f"{path.name}: {failure}")
            logger.warning("%s is not predicted: %s", path.name, failure)
            continue
        found[path.name] = shares = by_name(counts / counts.sum(), names)
        largest = sorted(filter(shares.get, shares), key=shares.get, reverse=True)
        listed = ", ".join(f"{name} {shares[name]:.0%}" for name in largest)
        logger.info("%s%s: %s", path.name, note, listed)
    if failures:
        shown = failures[:SHOWN_FAILURES] + ["..."] * (len(failures) > SHOWN_FAILURES)
        raise ValueError("\n  ".join([f"{len(failures)} of {len(paths)} files failed:", *shown]))
    return found


def _check_not_overwritten(paths: Sequence[Path], output: Path) -> None:
    """Raises an error if the name of a file to be written is that of one to be predicted."""
    given = {path.resolve(): path for path in paths}
    endings = ("labels.png", "overlay.png", "overlay.mp4", "confidence.png")
    folder = output.resolve()
    written = {folder / f"{path.stem}_{ending}" for path in paths for ending in endings}
    if clashing := [str(path) for resolved, path in given.items() if resolved in written]:
        raise error("output", "a folder in which no given image is overwritten", clashing)


def _predict_image(
    model: Predictor,
    path: Path,
    target: Path,
    colors: Colors,
    windows: dict[str, Any],
    value_range: tuple[float, float] | None,
    confidence: str | None,
) -> tuple[np.ndarray, str]:
    """Writes the pictures of an image; returns the pixels of each class and a note for the log."""
    spec, num_classes = logits_spec(model)
    written = target.with_name(f"{target.name}_confidence.png")

    def labels_of(image: Any) -> np.ndarray:
        if confidence is None:
            labels = predict(model, image, **windows)
            written.unlink(missing_ok=True)  # of other labels
            return labels
        found = predict_kept(model, image, labels_with(CONFIDENCES[confidence]), **windows)
        grey = np.rint(255 * found[..., 1]).astype(np.uint8)
        write_png(written, grey)
        return found[..., 0].astype(label_dtype(num_classes).as_numpy_dtype)

    if (windows["window"] is not None or None not in spec.shape[1:3]) and is_large(path):
        image = LargeImage(path, spec.shape[-1], value_range)
        labels, shown = labels_of(image), image.reduced(OVERLAY_SIDE)
        note = " (the overlay is reduced to {1}x{0})".format(*shown.shape)
        rows, columns = (
            np.arange(small) * side // small
            for small, side in zip(shown.shape, labels.shape, strict=False)
        )
        shown_labels = labels[np.ix_(rows, columns)]
    else:
        picture = open_picture(path, spec.shape[-1], value_range)
        shown = picture.upright
        shown_labels = labels = labels_of(shown)
        turned = picture.facts.orientation != UPRIGHT
        note = " (turned by its EXIF orientation)" if turned else ""
    _write_labels(target.with_name(f"{target.name}_labels.png"), labels, num_classes)
    painted = overlay(shown, shown_labels, colors, ignore_label=None)
    write_png(target.with_name(f"{target.name}_overlay.png"), painted)
    return _counts(labels, num_classes), note


def _predict_video(
    model: Predictor,
    path: Path,
    target: Path,
    colors: Colors,
    windows: dict[str, Any],
    frame_labels: bool,
) -> tuple[np.ndarray, str]:
    """Writes the overlays of a video, as `_predict_image` does."""
    functions = model_functions(model)  # the weights are hashed once, not for each frame
    _, num_classes = logits_spec(functions)
    counts, number = np.zeros(num_classes, np.int64), 0
    with (
        open_video(path) as (frames, rate, expected),
        atomic_write(target.with_name(f"{target.name}_overlay.mp4")) as temporary,
        video_writer(temporary, rate) as append,
    ):
        progress = keras.utils.Progbar(expected or None, unit_name="frame")
        for number, frame in enumerate(frames, 1):
            labels = predict(functions, Image.fromarray(frame), verbose=0, **windows)
            append(overlay(frame, labels, colors, ignore_label=None))
            if frame_labels:
                folder = target.with_name(f"{target.name}_labels")
                _write_labels(folder / f"{number:06d}.png", labels, num_classes)
            counts += _counts(labels, num_classes)
            progress.update(number, finalize=False)
        if not number:
            raise error("images", "videos with at least one frame", str(path))
        if number + max(1, rate / 2) < expected:  # sound may last a little longer
            logger.warning("%s ends after %d of %d frames: is it cut off?", path, number, expected)
        if frame_labels:  # of a longer video that was predicted before
            for old in target.with_name(f"{target.name}_labels").glob("[0-9]" * 6 + ".png"):
                if int(old.stem) > number:
                    old.unlink()
        progress.target = number
        progress.update(number, finalize=True)
    return counts, f" ({number} frames)"


def _write_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    dtype = np.uint8 if num_classes <= 256 else np.uint16
    write_png(path, labels.astype(dtype, copy=False))


def _counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The pixels of each class, counted by rows: NumPy makes an integer of 64 bits of each."""
    return sum(np.bincount(row, minlength=num_classes) for row in labels)


def list_images(images: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """Returns the files given and those of the folders given, without hidden ones.

    Images in formats that are not supported are left out of folders, with a warning.
    """
    paths: list[Path] = []
    images = [images] if isinstance(images, str | os.PathLike) else images
    for path in map(Path, images):
        inside = [path]
        if path.is_dir():
            visible = sorted(p for p in path.iterdir() if not p.name.startswith("."))
            inside = [p for p in visible if p.suffix.lower() in SUFFIXES]
            if others := [p.name for p in visible if p.suffix.lower() in UNSUPPORTED_SUFFIXES]:
                names = first_few(others)
                logger.warning("%d images of %s are left out: %s", len(others), path, names)
            if folders := [p.name for p in visible if p.is_dir()]:
                logger.warning("Folders in %s are not searched: %s", path, first_few(folders))
        if not inside:
            endings = ", ".join(SUFFIXES)
            raise error("images", f"files {endings} or folders of them", path)
        paths += inside
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise error("images", "existing regular files", missing)
    keys = [(_FOLDED(path.stem), is_video(path)) for path in paths]
    number = Counter(keys)
    if repeated := sorted(
        str(path) for path, key in zip(paths, keys, strict=True) if number[key] > 1
    ):
        raise error("images", "files of different names without their endings", repeated)
    return paths


def stored_info(
    model_path: str | os.PathLike, num_classes: int | None = None
) -> DatasetInfo | None:
    """Reads the names and colours that training stored beside a model, if they fit its classes."""
    path = Path(model_path).with_name("dataset.json")
    if not os.path.lexists(path):  # perhaps beside the file that a link leads to
        path = Path(os.path.realpath(model_path)).with_name("dataset.json")
    if not os.path.lexists(path):
        return None
    try:
        content = read_json_object(path)
        if content and "classes" not in content:  # the settings of a data set
            logger.warning("%s lists no classes: not used.", path)
            return None
        info = DatasetInfo.from_dict(content)
    except (KeyError, TypeError, ValueError) as fault:
        raise ValueError(
            f"{path}: {fault}. Restore it, or delete it to use numbers in place of the classes' "
            "names."
        ) from fault
    if num_classes is not None and info.num_classes != num_classes:
        logger.warning(
            "%s has %d classes, the model %d: not used.", path, info.num_classes, num_classes
        )
        return None
    return info
