"""COCO: panoptic and stuff label maps, or instances drawn from their outlines."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterator
from functools import cached_property
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from keras_deeplab import validation
from keras_deeplab.data.decoding import read_picture
from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.label_codes import LabelCode
from keras_deeplab.data.label_maps import read_label
from keras_deeplab.data.layout import SPLITS, SplitFiles, contents, shown, split_named, visible
from keras_deeplab.data.readers.listing import files_below, read_lines
from keras_deeplab.data.readers.polygons import (
    Area,
    drawn,
    is_background,
    run_lengths,
    with_background,
)
from keras_deeplab.data.readers.splitting import grouped
from keras_deeplab.data.source import IGNORE_LABEL, DatasetInfo

KINDS = ("panoptic", "stuff", "instances")
STUFF = Path("stuffthingmaps")
YEAR = "2017"
RUN_CHARACTERS = 7  # of 5 bits: the largest image needs 6
OTHERS = ("captions_", "person_keypoints_", "panoptic_", "stuff_")  # annotations of other kinds


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

    Without these, the JSON files of instances in any folder are read, as annotation tools write
    them (CVAT, Label Studio, Roboflow, makesense.ai, labelme2coco, Ultralytics): one for each
    split, which the file or its folder is named after, or a single one. Of that, a fifth of the
    images validates, which splits.json keeps. The images are where the most of the names fit.

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
        kinds = [one for one in KINDS if kind in (None, one)]
        found = {one: places for one in kinds if (places := self._of_archive(one))}
        if not found and "instances" in kinds:
            found["instances"] = self._of_tool()
        # The folder of images and the annotations of each split, or of "", which is all.
        self.kind, self._places = next(iter(found.items()), ("", {}))
        if not self._places:
            text = f"{self.root} holds {contents(self.root)}, no annotations with their images"
            layout = "annotations/instances_train2017.json and train2017, or an exported JSON file"
            raise self._error("missing folder", text, layout)

    @cached_property
    def _contents(self) -> dict[Path, dict[str, Any]]:
        return {}  # of the annotations that were read

    def _of_archive(self, kind: str) -> dict[str, tuple[Path, Path]]:
        """The places of the splits in COCO's own layout."""
        found = {}
        for split in ("train", "val"):
            for ending in (f"{split}{YEAR}", split):
                images, labels = self.root / ending, self.root / f"annotations/{kind}_{ending}.json"
                if kind == "stuff":
                    labels = self.root / STUFF / ending
                if images.is_dir() and labels.exists():
                    found.setdefault(split, (images, labels))
        return found

    def _of_tool(self) -> dict[str, tuple[Path, Path]]:
        """The places of the splits where instances are in JSON files of any name."""
        paths = files_below(self.root, (".json",))
        read = {path: self._listed(path) for path in paths if not path.name.startswith(OTHERS)}
        read = {path: names for path, names in read.items() if names}
        splits = {path: _split_of(path.relative_to(self.root)) for path in read}
        if len(read) == 1:
            splits = {path: split or "" for path, split in splits.items()}
        if None in splits.values() or len(set(splits.values())) < len(splits):
            named = ", ".join(shown(self.root, path) for path in read)
            text = f"{named}: one file for each split, or a single one"
            raise self._error("bad annotation", text, "instances_train.json, instances_val.json")
        paths, files = {split: path for path, split in splits.items()}, files_below(self.root)
        return {
            split: (self._folder_of(paths[split], read[paths[split]], files), paths[split])
            for split in (*SPLITS, "")
            if split in paths
        }

    def _folder_of(self, path: Path, names: list[PurePosixPath], files: list[Path]) -> Path:
        """The folder whose files annotations name, the most of them."""
        full = Counter(map(str, names))
        short = Counter(name.name for name in names if len(name.parts) > 1)
        same = Counter(at.name for at in files)  # a name of several files tells no folder
        inside, beside = Counter({path.parent: 0}), Counter()
        for at in files:
            parts = at.relative_to(self.root).parts
            for k in range(1, len(parts) + 1):
                inside[at.parents[k - 1]] += full["/".join(parts[-k:])]
            beside[at.parent] += short[at.name] * (same[at.name] == 1)
        split = _split_of(path.relative_to(self.root))

        def fit(folder: Path) -> tuple[int, int, bool, bool]:
            is_own = _split_of(folder.relative_to(self.root)) == split  # where splits share names
            there = inside[folder] + beside[folder]
            return there, inside[folder], is_own, folder == path.parent

        return max(sorted(inside), key=fit)

    def _listed(self, path: Path) -> list[PurePosixPath]:
        """The images that the annotations of a tool list; empty for other JSON files."""
        encoded = path.read_bytes()
        if b'"images"' not in encoded or b'"annotations"' not in encoded:
            return []
        try:
            content = json.loads(encoded.decode("utf-8-sig"))
            is_coco = isinstance(content, dict) and {"images", "annotations"} <= content.keys()
            return [_path(image) for image in content["images"]] if is_coco else []
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(path, error) from error

    def _damaged(self, path: Path, error: Exception) -> DatasetError:
        text = f"{shown(self.root, path)}: {type(error).__name__} {error}"
        return self._error("bad annotation", text)

    @cached_property
    def _parts(self) -> dict[str, list[str]]:
        """The names of the images of each split."""
        if "" in self._places:
            return grouped(dict.fromkeys(self._content("")["by_name"]), self.root)
        return {split: list(self._content(split)["by_name"]) for split in self._places}

    def _place(self, split: str) -> tuple[Path, Path]:
        return self._places.get(split) or self._places[""]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits with images and annotations."""
        return tuple(self._parts if "" in self._places else self._places)

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
        parts = [self._content(split) for split in self._places]
        used = {one.get("category_id") for each in parts for one in each["annotations"]}
        groups = {one.get("supercategory") for each in parts for one in each["categories"]}
        for split, content in zip(self._places, parts, strict=True):
            for one in content["categories"]:
                number, name = one["id"], one["name"]
                if one.get("supercategory") == "none" and name in groups and number not in used:
                    continue  # Roboflow's name of the project
                if found.setdefault(number, name) != name:
                    text = f"category {number} is {found[number]!r}, in {split} {name!r}"
                    raise self._error("bad annotation", text)
        try:
            return dict(sorted(found.items()))
        except TypeError as error:
            text = f"category ids of several types: {[*found][:5]}"
            raise self._error("bad annotation", text) from error

    @cached_property
    def info(self) -> DatasetInfo:
        """The categories by their ids, after the background of instances."""
        names = tuple(self._categories.values())
        try:
            return DatasetInfo(with_background(names) if self.kind == "instances" else names)
        except ValueError as error:
            raise self._error("classes unclear", str(error)) from error

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
            number: 0 if is_background(name) else next(labels)
            for number, name in self._categories.items()
        }

    def _content(self, split: str) -> dict[str, Any]:
        """The JSON file of a split, with `by_name`: each image's entry, with its annotations.

        Also with `files`, the images of the folder. Names are paths in it without endings.
        """
        folder, path = self._place(split)
        if path in self._contents:
            return self._contents[path]
        named = [
            (_composed(path.relative_to(folder).with_suffix("").as_posix()), path)
            for path in files_below(folder)
        ]
        files = dict(named)
        try:
            content = json.loads(path.read_text("utf-8-sig"))
            images = {image["id"]: {**image, "areas": []} for image in content["images"]}
            for one in content["annotations"]:
                if self.kind == "panoptic":
                    images[one["image_id"]] |= one
                else:
                    images[one["image_id"]]["areas"].append(one)
            given = [_path(image).with_suffix("") for image in content["images"]]
            # Of another folder, where no path fits and the names alone do.
            is_flat = any(one.name in files for one in given)
            is_flat &= not any(one.as_posix() in files for one in given)
            is_flat &= len({one.name for one in given}) == len(given)
            names = [_name(one, files, is_flat) for one in given]
            content["by_name"] = dict(zip(names, images.values(), strict=True))
            # Beside an image may be a mask of the same name with another ending.
            endings = {name: _path(one).suffix for name, one in content["by_name"].items()}
            files |= {name: path for name, path in named if path.suffix == endings.get(name)}
            content["files"] = files
            if len(content["by_name"]) < len(names):
                raise ValueError("two images have the same name")
            # These are looked up later.
            _ = {one.get("category_id") for one in content["annotations"]}
            _ = {one.get("supercategory") for one in content["categories"]}
            _ = {c["id"]: c["name"].lower() for c in content["categories"]}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(path, error) from error
        self._contents[path] = content
        return content

    def list_files(self, split: str) -> SplitFiles:
        """Lists the images that the annotations name, or those of stuff."""
        files, (folder, labels) = SplitFiles(), self._place(split)
        if self.kind == "stuff":
            images = (path for path in files_below(folder) if path.parent == folder)
            files.images = {path.stem: path for path in images}
            files.labels = {path.stem: path for path in visible(labels) if path.suffix == ".png"}
            return files.check(self.root, split)
        content = self._content(split)
        there, by_name = content["files"], content["by_name"]
        if split == self.splits[0] or split in self._places:
            same = [one for one, place in self._places.items() if place[0] == folder]
            listed = set().union(*(self._content(one)["by_name"] for one in same))
            files.leave_out(there.keys() - listed, labels.name)
        for name in self._parts[split]:
            image = by_name[name]
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
        split = next(
            split
            for split, (_, file) in self._places.items()
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
                if list(outline.get("size", size)) != list(size):
                    text = f"a mask of {outline['size']} in an image of {list(size)}"
                    raise FileFault("bad annotation", text)
                yield Area(value, mask=run_lengths(counts, size, by_columns=True))
            else:
                for flat in outline:
                    yield Area(value, list(zip(flat[::2], flat[1::2], strict=True)))


def _split_of(path: Path) -> str | None:
    """The split that a file is named after, or else its folder."""
    words = [word for part in (path.stem, *path.parts[-2::-1]) for word in re.split(r"[_.-]", part)]
    return next(filter(None, map(split_named, words)), None)


def _path(image: dict[str, Any]) -> PurePosixPath:
    return PurePosixPath(_composed(image["file_name"].replace("\\", "/")))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _name(path: PurePosixPath, files: Container[str], is_flat: bool) -> str:
    """The path of an image without its ending; its name alone if that is the path of a file."""
    is_other = path.as_posix() not in files and (is_flat or path.name in files)
    return path.name if is_other else path.as_posix()


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
        if shift == 5 * RUN_CHARACTERS:
            raise ValueError(f"a run length of more than {RUN_CHARACTERS} characters")
        bits = code - 48
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number, whose bit 16 is the sign
            number -= (1 << shift) * bool(bits & 16)
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return counts
