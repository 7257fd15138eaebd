"""CVAT for images 1.1: one XML file with the outlines of all images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.layout import SplitFiles, shown, split_named
from keras_deeplab.data.readers.listing import check_entries, existing, files_below
from keras_deeplab.data.readers.polygons import (
    Area,
    drawn,
    ellipse,
    rectangle,
    rotated,
    run_lengths,
    with_background,
)
from keras_deeplab.data.readers.splitting import grouped
from keras_deeplab.data.source import DatasetInfo, voc_colors

FILE = "annotations.xml"
AREAS = ("polygon", "box", "ellipse", "mask")


class Annotated(NamedTuple):
    """An image of the file: its name, subset, size `(height, width)` and areas in order."""

    name: str
    subset: str
    size: tuple[int, int]
    areas: list[ElementTree.Element]


class Cvat(FileSource):
    """A data set exported by CVAT as "CVAT for images 1.1", with its images.

    Polygons, boxes, ellipses and masks are drawn by their z_order, the later ones over the earlier;
    polylines and points have no area and are left out. What none covers is the class "background",
    label 0, which may be a label of the project itself. Splits are the subsets Train, Validation
    and Test; those of images in no such subset are in splits.json, which is written (a fifth for
    validation). An image whose name occurs in several subsets is named SUBSET/NAME.

    Args:
        root: The folder with annotations.xml and the images, in `images/SUBSET`, `images` or beside
            it. Video frames are listed without the ending of their files.

    Raises:
        DatasetError: If annotations.xml is missing or is not CVAT's.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        super().__init__(root)
        check_entries(self.root, "annotations.xml of CVAT for images 1.1", (FILE,))
        _ = self._content  # an error now

    @cached_property
    def _content(self) -> tuple[dict[str, Annotated], DatasetInfo]:
        try:
            return self._read(self.root / FILE)
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            raise self._error("bad annotation", f"{FILE}: {error}") from error

    def _read(self, path: Path) -> tuple[dict[str, Annotated], DatasetInfo]:
        # Decoded here: in UTF-16 the search would not find what the parser does.
        content = path.read_text("utf-8-sig")
        if re.search("<!(DOCTYPE|ENTITY)", content):  # entities may expand without end
            raise ValueError("it declares a document type or entities")
        tree = ElementTree.fromstring(content)
        labels = tree.findall("meta//labels/label")
        colors = {label.findtext("name", ""): label.findtext("color", "") for label in labels}
        images = {}
        count = Counter(_name(image) for image in tree.iterfind("image"))
        for image in tree.iterfind("image"):
            name, subset = _name(image), image.get("subset", "")
            place = PurePosixPath(subset, name)
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"the image {place} is outside the folder")
            key = str(place) if count[name] > 1 else name
            if key in images:
                raise ValueError(f"two images have the name {key}")
            areas = [area for area in image if area.tag in AREAS]
            areas.sort(key=lambda area: int(area.get("z_order", 0)))
            size = int(image.attrib["height"]), int(image.attrib["width"])
            images[key] = Annotated(name, subset, size, areas)
            colors |= {a.attrib["label"]: "" for a in areas if a.attrib["label"] not in colors}
        if not images:
            raise ValueError("it lists no images")
        names = with_background(colors)
        default = voc_colors(len(names))
        given = (_color(colors[name], default[k]) for k, name in enumerate(names) if k)
        return images, DatasetInfo(names, (default[0], *given))

    @property
    def info(self) -> DatasetInfo:
        """The background and the labels of the project, in their order, with their colours."""
        return self._content[1]

    @property
    def _images(self) -> dict[str, Annotated]:
        return self._content[0]

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        subsets = {name: split_named(image.subset) for name, image in self._images.items()}
        return grouped(subsets, self.root)

    @property
    def splits(self) -> tuple[str, ...]:
        """The subsets, or the splits of splits.json."""
        return tuple(self._splits)

    def list_files(self, split: str) -> SplitFiles:
        """Lists the images that the file names."""
        files = SplitFiles()
        for name in self._splits[split]:
            files.labels[name] = self.root / FILE
            image = self._places[name]
            if image is None:
                text = f"images/{name}, which {FILE} lists, is missing"
                files.faults.append(FileFault("label without image", text))
            else:
                files.images[name] = image
        if split == self.splits[0]:
            others = set(files_below(self.root)) - set(self._places.values())
            files.leave_out((shown(self.root, path) for path in others), FILE)
        return files

    @cached_property
    def _places(self) -> dict[str, Path | None]:
        """The file of each image."""
        places = {}
        for key, (name, subset, *_) in self._images.items():
            folders = [f"images/{subset}", f"images/{subset.lower()}"]
            folders += ["images", "."] * (key == name)
            paths = [self.root / folder / name for folder in folders]
            found = (path for path in paths if path.is_file())
            places[key] = next(found, None) or next(
                (one for path in paths for one in existing(path)), None
            )
        return places

    def read_values(self, name: str, path: Path) -> np.ndarray:
        """Draws the areas of an image."""
        del path
        image = self._images[name]
        try:
            return drawn(image.size, self._areas(image))
        except FileFault as fault:
            raise FileFault(fault.kind, f"{name}: {fault.found}") from fault
        except (KeyError, ValueError) as error:
            raise FileFault("bad annotation", f"{name}: {error}") from error

    def _areas(self, image: Annotated) -> Iterator[Area]:
        values = {name: value for value, name in enumerate(self.info.classes)}
        for element in image.areas:
            given, value = element.attrib, values[element.attrib["label"]]
            if element.tag == "polygon":
                points = [point.split(",") for point in given["points"].split(";")]
                yield Area(value, [(float(x), float(y)) for x, y in points])
            elif element.tag == "box":
                left, top, right, bottom = (float(given[k]) for k in ("xtl", "ytl", "xbr", "ybr"))
                corners = rectangle((left, top), (right, bottom))
                yield Area(value, rotated(corners, float(given.get("rotation", 0))))
            elif element.tag == "ellipse":
                x, y, x_radius, y_radius = (float(given[k]) for k in ("cx", "cy", "rx", "ry"))
                points = ellipse((x, y), (x_radius, y_radius))
                yield Area(value, rotated(points, float(given.get("rotation", 0))))
            else:
                size = int(given["height"]), int(given["width"])
                counts = [int(count) for count in given["rle"].split(",")]
                mask = run_lengths(counts, size, by_columns=False)
                yield Area(value, mask=mask, place=(int(given["left"]), int(given["top"])))


def _color(text: str, default: tuple[int, int, int]) -> tuple[int, int, int]:
    valid = re.fullmatch("#[0-9a-fA-F]{6}", text)
    return tuple(bytes.fromhex(text[1:])) if valid else default


def _name(image: ElementTree.Element) -> str:
    return str(PurePosixPath(image.attrib["name"].replace("\\", "/")))
