"""COCO: panoptic and stuff label maps, or instances drawn from their outlines."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator
from functools import cached_property
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from keras_deeplab import validation
from keras_deeplab.data.decoding import read_picture
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.label_codes import LabelCode
from keras_deeplab.data.label_maps import read_label
from keras_deeplab.data.layout import SplitFiles, visible
from keras_deeplab.data.readers.listing import check_entries, files_below, read_lines
from keras_deeplab.data.readers.polygons import (
    BACKGROUND,
    Area,
    drawn,
    run_lengths,
    with_background,
)
from keras_deeplab.data.source import IGNORE_LABEL, DatasetInfo

KINDS = ("panoptic", "stuff", "instances")
STUFF = Path("stuffthingmaps")
YEAR = "2017"


class Coco(FileSource):
    """COCO 2017, or a data set in its format: train2017, val2017 and annotations.

    - `"panoptic"`: annotations/panoptic_train2017.json with the PNG files of the folder of the same
      name; the classes are all categories, by their ids. Pixels of no segment and crowds are
      ignored.
    - `"stuff"`: stuffthingmaps/train2017/NAME.png, whose values are the category ids less 1, with
      the names in labels.txt (`ID: NAME`); 255 and ids without a name are ignored.
    - `"instances"`: annotations/instances_train2017.json, polygons and run lengths, drawn the
      largest first, so that small objects stay visible. What none covers is the class "background",
      label 0, which may be a category too; crowds are ignored.

    Folders and files may also end without the year.

    Args:
        root: The folder.
        kind: One of these; by default the first whose files are there.

    Raises:
        DatasetError: If no annotations are there, or they are damaged.
    """

    def __init__(self, root: str | os.PathLike, kind: str | None = None) -> None:
        super().__init__(root)
        if kind is not None:
            validation.one_of("kind", kind, KINDS)
        there = [one for one in KINDS if self._splits_of(one) and kind in (None, one)]
        if not there:
            layout = "train2017 and annotations of one kind for it"
            check_entries(self.root, layout, ("annotations/instances_train2017.json",))
            raise self._error("missing folder", "no annotations with a folder of their images")
        self.kind = there[0]
        self._found = self._splits_of(self.kind)

    @cached_property
    def _contents(self) -> dict[str, dict[str, Any]]:
        return {}  # of the splits that were read

    def _splits_of(self, kind: str) -> dict[str, str]:
        """The ending, a year or none, of each split that has images and annotations."""
        found = {}
        for split in ("train", "val"):
            for year in (YEAR, ""):
                labels = self.root / self._annotations(kind, split, year)
                if (self.root / f"{split}{year}").is_dir() and labels.exists():
                    found.setdefault(split, year)
        return found

    def _annotations(self, kind: str, split: str, year: str) -> Path:
        if kind == "stuff":
            return STUFF / f"{split}{year}"
        return Path("annotations") / f"{kind}_{split}{year}.json"

    def _annotations_of(self, split: str) -> Path:
        return self.root / self._annotations(self.kind, split, self._found[split])

    def _folder(self, split: str) -> Path:
        return self.root / f"{split}{self._found[split]}"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits with images and annotations."""
        return tuple(self._found)

    @cached_property
    def _categories(self) -> dict[int, str]:
        """Names by category id."""
        if self.kind == "stuff":
            path = self.root / STUFF / "labels.txt"
            path = path if path.exists() else self.root / "labels.txt"
            if not path.exists():
                raise self._error("classes unclear", "labels.txt, which names them, is missing")
            pairs = [line.partition(":") for line in read_lines(path)]
            names = {int(number): name.strip() for number, _, name in pairs if number.isdecimal()}
            return {number: name for number, name in names.items() if number}  # 0: unlabelled
        found: dict[int, str] = {}
        for split in self.splits:
            for one in self._content(split)["categories"]:
                number, name = one["id"], one["name"]
                if found.setdefault(number, name) != name:
                    text = f"category {number} is {found[number]!r}, in {split} {name!r}"
                    raise self._error("bad annotation", text)
        return dict(sorted(found.items()))

    @cached_property
    def info(self) -> DatasetInfo:
        """The categories by their ids, after the background of instances."""
        names = tuple(self._categories.values())
        return DatasetInfo(with_background(names) if self.kind == "instances" else names)

    @cached_property
    def code(self) -> LabelCode:
        """Of stuff: the category ids less 1."""
        if self.kind != "stuff":
            return LabelCode(tuple(range(self.info.num_classes)))
        values = tuple(number - 1 for number in self._categories)
        return LabelCode(values, tuple(set(range(256)) - set(values)))

    @cached_property
    def _label_of(self) -> dict[int, int]:
        if self.kind != "instances":
            return {number: k for k, number in enumerate(self._categories)}
        labels = count(1)
        return {
            number: 0 if name.lower() == BACKGROUND else next(labels)
            for number, name in self._categories.items()
        }

    def _content(self, split: str) -> dict[str, Any]:
        """The JSON file of a split, with `by_name`: each image's entry, with its annotations.

        Also with `files`, the images of the folder. Names are paths in it without endings.
        """
        if split in self._contents:
            return self._contents[split]
        path, folder = self._annotations_of(split), self._folder(split)
        files = {p.relative_to(folder).with_suffix("").as_posix(): p for p in files_below(folder)}
        try:
            content = json.loads(path.read_text("utf-8-sig"))
            images = {image["id"]: {**image, "areas": []} for image in content["images"]}
            for one in content["annotations"]:
                if self.kind == "panoptic":
                    images[one["image_id"]] |= one
                else:
                    images[one["image_id"]]["areas"].append(one)
            names = [_name(image["file_name"], files) for image in content["images"]]
            content["by_name"] = dict(zip(names, images.values(), strict=True))
            content["files"] = files
            if len(content["by_name"]) < len(names):
                raise ValueError("two images have the same name")
            _ = [(c["id"], c["name"].lower()) for c in content["categories"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            text = f"{path.name}: {type(error).__name__} {error}"
            raise self._error("bad annotation", text) from error
        self._contents[split] = content
        return content

    def list_files(self, split: str) -> SplitFiles:
        """Lists the images that the annotations name, or those of stuff."""
        files, folder, labels = SplitFiles(), self._folder(split), self._annotations_of(split)
        if self.kind == "stuff":
            images = (path for path in files_below(folder) if path.parent == folder)
            files.images = {path.stem: path for path in images}
            files.labels = {path.stem: path for path in visible(labels) if path.suffix == ".png"}
            return files.check(self.root, split)
        content = self._content(split)
        there, by_name = content["files"], content["by_name"]
        files.leave_out(there.keys() - by_name.keys(), labels.name)
        for name, image in by_name.items():
            if name not in there:
                text = f"{folder.name}/{image['file_name']}, which {labels.name} lists, is missing"
                files.faults.append(FileFault("label without image", text))
                continue
            files.images[name] = there[name]
            if self.kind == "instances":
                files.labels[name] = labels
            elif "segments_info" in image:
                files.labels[name] = _inside(labels.with_suffix(""), image["file_name"])
        return files.check(self.root, split)

    def read_values(self, name: str, path: Path) -> np.ndarray:
        """Returns the labels of a panoptic PNG or of instances, or the values of stuff."""
        if self.kind == "stuff":
            return read_label(path)[0]
        # The annotations of a split are the file, or beside the folder of the PNG.
        annotations = {split: self._annotations_of(split) for split in self.splits}
        split = next(
            split
            for split, file in annotations.items()
            if path == file or path.is_relative_to(file.with_suffix(""))
        )
        image = self._content(split)["by_name"][name]
        try:
            if self.kind == "panoptic":
                return self._segments(image, path)
            size = int(image["height"]), int(image["width"])
            areas = sorted(image["areas"], key=_area, reverse=True)
            return drawn(size, self._areas(areas, size))
        except FileFault as fault:
            raise FileFault(fault.kind, f"{name}: {fault.found}") from fault
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            text = f"{name}: {type(error).__name__} {error}"
            raise FileFault("bad annotation", text) from error

    def _segments(self, image: dict[str, Any], path: Path) -> np.ndarray:
        """The label of each pixel's segment, whose id is its colour."""
        pixels = read_picture(path).pixels
        ids, places = np.unique(pixels @ np.array([1, 256, 65536]), return_inverse=True)
        labels = {one["id"]: self._label_of[one["category_id"]] for one in image["segments_info"]}
        labels |= {s["id"]: IGNORE_LABEL for s in image["segments_info"] if s.get("iscrowd")}
        lost = [int(number) for number in ids if number and number not in labels]
        if lost:
            raise FileFault("label value out of range", f"segments {lost[:5]} are not described")
        table = np.array([labels.get(number, IGNORE_LABEL) for number in ids.tolist()], np.uint8)
        return table[places].reshape(pixels.shape[:2])

    def _areas(self, areas: list[dict[str, Any]], size: tuple[int, int]) -> Iterator[Area]:
        for one in areas:
            value = IGNORE_LABEL if one.get("iscrowd") else self._label_of[one["category_id"]]
            outline = one.get("segmentation")
            if not outline:  # as in data sets of boxes
                raise FileFault("bad annotation", "an object without an outline")
            if isinstance(outline, dict):
                counts = outline["counts"]
                counts = _uncompressed(counts) if isinstance(counts, str) else counts
                yield Area(value, mask=run_lengths(counts, size, by_columns=True))
            else:
                for flat in outline:
                    yield Area(value, list(zip(flat[::2], flat[1::2], strict=True)))


def _name(file_name: str, files: Container[str]) -> str:
    """The path of an image without its ending; its name alone if that is the path of a file."""
    path = PurePosixPath(file_name.replace("\\", "/")).with_suffix("")
    return path.name if path.as_posix() not in files and path.name in files else path.as_posix()


def _inside(folder: Path, file_name: str) -> Path:
    """The path of a file in a folder; its name alone where it is not there or not inside."""
    given = PurePosixPath(file_name.replace("\\", "/"))
    is_plain = given.name == str(given)  # needs no look at a file system that may be remote
    inside = not given.is_absolute() and ".." not in given.parts
    is_there = is_plain or (inside and (folder / given).is_file())
    return folder / given if is_there else folder / given.name


def _area(annotation: dict[str, Any]) -> float:
    """The given area of an object, or that of its outlines or runs if none is given."""
    if (area := float(annotation.get("area") or 0)) > 0:
        return area
    outline = annotation.get("segmentation") or []
    if isinstance(outline, dict):
        counts = outline["counts"]
        return sum((_uncompressed(counts) if isinstance(counts, str) else counts)[1::2])
    corners = [(np.array(flat[::2]), np.array(flat[1::2])) for flat in outline]
    return sum(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2 for x, y in corners)


def _uncompressed(text: str) -> list[int]:
    """Run lengths from COCO's text: 5 bits a character, differences to the last but one."""
    counts: list[int] = []
    number = shift = 0
    for code in text.encode("ascii"):
        bits = code - 48
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number, whose bit 16 is the sign
            number -= (1 << shift) * bool(bits & 16)
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return counts
