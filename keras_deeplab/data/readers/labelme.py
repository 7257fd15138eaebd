"""LabelMe: a JSON file with outlines beside each image."""

from __future__ import annotations

import base64
import os
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from keras_deeplab import validation
from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.file_source import FileSource, map_files
from keras_deeplab.data.label_maps import decode_label
from keras_deeplab.data.layout import SplitFiles
from keras_deeplab.data.paths import absolute
from keras_deeplab.data.readers.listing import existing, files_below, read_lines
from keras_deeplab.data.readers.polygons import Area, drawn, ellipse, rectangle, with_background
from keras_deeplab.data.readers.splitting import by_folders
from keras_deeplab.data.source import IGNORE_LABEL, DatasetInfo
from keras_deeplab.files import read_json_object

BACKGROUND = "_background_"
IGNORED = "__ignore__"
NAMES = "labels.txt"


class LabelMe(FileSource):
    """A folder of images, each with a LabelMe file NAME.json of polygons.

    Polygons, rectangles, circles and masks are drawn in the order of the file, the later ones over
    the earlier; points and lines have no area. What none covers is the class "background", label 0,
    which may be one of the names. The others are the names in labels.txt (LabelMe's own:
    `_background_` and `__ignore__`, which is ignored, may be in it), or all names of the files in
    alphabetical order. Splits are the folders
    train, val and test, or those of splits.json, which is written if there are none (a fifth for
    validation). Images without a LabelMe file are not part of the data set.

    Args:
        root: The folder.

    Raises:
        DatasetError: If there is no annotation, or files are unreadable; the message names all.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        super().__init__(root)
        if not self._json:
            raise self._error("missing folder", f"no LabelMe file .json is in {self.root}")

    @cached_property
    def _json(self) -> dict[str, Path]:
        return {
            path.relative_to(self.root).with_suffix("").as_posix(): path
            for path in files_below(self.root, (".json",))
            if path.parent != self.root or path.name not in ("splits.json", "dataset.json")
        }

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        return by_folders(self._json, self.root)

    @property
    def splits(self) -> tuple[str, ...]:
        """The folders train, val and test, or the splits of splits.json."""
        return tuple(self._splits)

    @cached_property
    def info(self) -> DatasetInfo:
        """The background and the names of the outlines."""
        listed = self.root / NAMES
        if listed.exists():
            names = read_lines(listed)
        else:
            found, faults = map_files(lambda _, path: _labels(path), self._json, self.root)
            if faults:
                raise DatasetError(str(self.root), faults)
            names = sorted(set().union(*found.values()))
        names = [name for name in dict.fromkeys(names) if name not in (BACKGROUND, IGNORED)]
        try:
            return DatasetInfo(with_background(names))
        except ValueError as error:
            raise self._error("classes unclear", str(error)) from error

    def list_files(self, split: str) -> SplitFiles:
        """Lists the annotations of a split and the images beside them."""
        files = SplitFiles(labels={name: self._json[name] for name in self._splits[split]})
        for name, path in files.labels.items():
            image, *others = existing(path.with_suffix("")) or [None]
            if image is None or others:  # such as a mask of the same name
                named = self._named_image(path)
                image = named if image is None or (named and named.stem == path.stem) else image
            if image is not None:
                files.images[name] = image
        return files.check(self.root, split)

    def _named_image(self, path: Path) -> Path | None:
        """The image that the annotation names, if it is inside the root."""
        try:
            named = PureWindowsPath(str(read_json_object(path).get("imagePath", ""))).as_posix()
        except ValueError:
            return None  # a fault of its label map
        image = absolute(path.parent / named)
        inside = image.is_relative_to(absolute(self.root))
        return image if named and inside and image.is_file() else None

    def read_values(self, name: str, path: Path) -> np.ndarray:
        """Draws the outlines of an annotation."""
        del name
        content = _content(path)
        values = {name: value for value, name in enumerate(self.info.classes)}
        values |= {BACKGROUND: 0, IGNORED: IGNORE_LABEL}
        size = content.get("imageHeight"), content.get("imageWidth")
        if not all(map(validation.is_integer, size)):
            raise FileFault("bad annotation", f"imageHeight and imageWidth are {size}")
        areas = []
        for shape in content["shapes"]:
            if shape["label"] not in values:
                raise FileFault("label value out of range", f"{shape['label']!r}", NAMES)
            if shape.get("shape_type") in ("point", "points", "line", "linestrip"):
                continue
            if shape.get("shape_type") == "mask":
                areas.append(_mask(values[shape["label"]], shape))
            else:
                areas.append(Area(values[shape["label"]], _ring(shape)))
        return drawn(size, areas)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_json_object(path)
    except ValueError as error:
        raise FileFault("bad annotation", str(error)) from error
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(
        isinstance(shape, dict) and isinstance(shape.get("label"), str) for shape in shapes
    ):
        raise FileFault("bad annotation", 'no list "shapes" of outlines with a "label"')
    return content


def _labels(path: Path) -> set[str]:
    return {shape["label"] for shape in _content(path)["shapes"]}


def _mask(value: int, shape: dict[str, Any]) -> Area:
    """The area of a PNG file in base64, which has its first point at the left and top."""
    try:
        encoded = base64.b64decode(shape["mask"], validate=True)
        (left, top), *_ = _points(shape)
        return Area(value, (), decode_label(encoded, "a mask")[0] > 0, (round(left), round(top)))
    except (KeyError, TypeError, ValueError) as error:
        text = f"a mask: {type(error).__name__} {error}"
        raise FileFault("bad annotation", text) from error


def _points(shape: dict[str, Any]) -> list[Any]:
    points = shape.get("points")
    try:
        return np.array(points, float).reshape(-1, 2).tolist()
    except (TypeError, ValueError, OverflowError) as error:
        raise FileFault("bad annotation", f"points {str(points)[:60]}") from error


def _ring(shape: dict[str, Any]) -> list[Any]:
    kind, points = shape.get("shape_type") or "polygon", _points(shape)
    if kind == "polygon":
        return points
    if kind == "rectangle" and len(points) == 2:
        return rectangle(*points)
    if kind == "circle" and len(points) == 2:
        radius = float(np.hypot(*np.subtract(*points)))
        return ellipse(points[0], (radius, radius))
    text = f"{kind} of {len(points)} points"
    raise FileFault("bad annotation", text, "polygons, rectangles, circles, masks")
