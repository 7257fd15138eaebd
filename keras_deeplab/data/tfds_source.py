"""Data sets of TensorFlow Datasets."""

from __future__ import annotations

import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.data.decoding import ImageFacts, Picture, decode_picture
from keras_deeplab.data.faults import DatasetError, FileFault
from keras_deeplab.data.formats import MAX_PIXELS
from keras_deeplab.data.label_codes import LabelCode, Settings, infer_values, read_settings
from keras_deeplab.data.label_maps import ColorCode, decode_label
from keras_deeplab.data.orientation import turned
from keras_deeplab.data.paths import check_local, data_path
from keras_deeplab.data.published_classes import IN_RED_CHANNEL, PUBLISHED
from keras_deeplab.data.records import FORMATS, Part, Records
from keras_deeplab.data.source import IGNORE_LABEL, DatasetInfo, Source, decoded
from keras_deeplab.data.tfds_builders import folder_builder, is_folder, named_builder
from keras_deeplab.files import digest

logger = logging.getLogger(__name__)

# The splits here, and their names in TensorFlow Datasets.
SPLIT_NAMES = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}
OPTIONS = ("image", "mask", "settings", "data_dir", "download", *SPLIT_NAMES)
# Names of features that hold label maps.
_MASK_NAMES = re.compile("mask|segm|annotation|panoptic|label")


class TFDS(Source):
    """A data set of TensorFlow Datasets, in TFRecord or ArrayRecord files.

    The image and the label map are found among the image features: the label map is a
    `LabeledImage`, or its name contains "mask", "segm", "annotation", "panoptic" or "label". Of
    panoptic masks the label of each object is used, and crowds are ignored.

    The classes are, in this order, those of a `settings` file or of a dataset.json in the folder of
    the data set (see `data.Folder`), those published for oxford_iiit_pet, scene_parse150 and
    cityscapes, the names of the `LabeledImage` or of the panoptic objects, or the mask values that
    occur.

    Args:
        name: The name of a data set with its config, such as `"coco/2017_panoptic"`, or a folder
            with a dataset_info.json, in it or in its only version: a `Path`, or a string that is
            absolute or begins with a dot, such as `"./prepared"`.
        image: The feature of the images; found by default.
        mask: The feature of the label maps; found by default.
        splits: For some of `"train"`, `"val"` and `"test"` the split in TensorFlow Datasets, which
            may be a part, such as `{"val": "train[90%:]"}`. By default train, validation and test.
        settings: The path of a file like dataset.json.
        data_dir: The folder of all data sets of TensorFlow Datasets, by default
            `~/tensorflow_datasets` or that of `TFDS_DATA_DIR`.
        download: Whether to download a data set that is not in `data_dir`. It may be large.

    Raises:
        ValueError: If there is no such data set, or an argument is unclear, with the choices.
        DatasetError: If files are missing or truncated, with all of them.

    Example:

    >>> folder = data.prepare(data.Shapes(4, 2), "prepared")
    >>> source = data.TFDS(folder, splits={"test": "validation[50%:]"})
    >>> source.splits
    ('train', 'val', 'test')
    """

    def __init__(
        self,
        name: str | os.PathLike,
        *,
        image: str | None = None,
        mask: str | None = None,
        splits: Mapping[str, str] | None = None,
        settings: str | os.PathLike | None = None,
        data_dir: str | os.PathLike | None = None,
        download: bool = False,
    ) -> None:
        import tensorflow_datasets as tfds

        validation.boolean("download", download)
        if is_folder(name):
            builder = folder_builder(data_path(name))
        else:
            builder = named_builder(name, data_dir, download)
        self._info = builder.info
        self.root = data_path(builder.data_dir)
        check_local(self.root, f"records in {self.root}")
        features = dict(_image_features(self._info.features))
        masks = _masks(features)
        images = [key for key in features if key not in (*masks, mask)]
        main = ["image"] if "image" in images else images
        self._image = _chosen("image", image, main, features)
        self._mask = _chosen("mask", mask, masks, features)
        self._panoptic = self._objects()
        self._records = {split: self._open(one) for split, one in self._splits(splits).items()}
        faults = [fault for records in self._records.values() for fault in records.faults]
        if faults:
            raise DatasetError(str(self.root), faults)
        self._metadata = self._stored_metadata()
        self._settings = self._find_settings(settings, features[self._mask])
        self._is_tensor = not isinstance(features[self._image], tfds.features.Image)
        self._check_bands(features[self._image].shape[-1])

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits in the order train, val, test."""
        return tuple(self._records)

    @property
    def info(self) -> DatasetInfo:
        """The classes and their colours."""
        return self._resolved.info()

    def names(self, split: str) -> list[str]:
        """Returns the names that `data.prepare` stored, or TFDS' ids of the examples."""
        self.check_split(split)
        records = self._records[split]
        return [self._name(*records.place(number)) for number in range(len(records))]

    def dataset(self, split: str, numbers: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the decoded pairs of a split (see `data.Source.dataset`)."""
        self.check_split(split)
        read = partial(self._read, self._records[split], self._resolved.code)
        return decoded(read, len(self._records[split]), numbers, self._settings.channels)

    def encoded_images(self, split: str) -> Callable[[int], bytes]:
        """Returns a function that reads the encoded image at a position."""
        self.check_split(split)
        records = self._records[split]
        return lambda number: _bytes(_example(records[number]), self._image)

    def fingerprint(self) -> str:
        """Identifies also the mask values of the classes."""
        return digest([super().fingerprint(), str(self._resolved.code)])

    def _read(
        self, records: Records, code: LabelCode, number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        try:
            example = _example(records[number])
            label = code.labels(self._values(example))
            picture = self._picture(example)
            orientation = picture.facts.orientation_for(label.shape)
        except FileFault as error:
            name = self._name(*records.place(number))
            raise ValueError(f"{self.root}: {name}: {error}") from error
        return turned(picture.pixels, orientation), label

    def _picture(self, example: Mapping[str, Any]) -> Picture:
        """The image of an example, from an encoded file or from a compressed tensor."""
        channels = self._settings.channels
        if not self._is_tensor:
            return decode_picture(_bytes(example, self._image), channels)
        shape = tuple(example[f"{self._image}/shape"].int64_list.value)
        size = math.prod(shape)
        if len(shape) != 3 or shape[2] != channels or not 0 < size <= MAX_PIXELS * channels:
            raise FileFault("other number of channels", f"shape {shape}", f"{channels} channels")
        packed = _bytes(example, f"{self._image}/value")
        try:
            content = zlib.decompressobj().decompress(packed, size + 1)
            pixels = np.frombuffer(content, np.uint8).reshape(shape)
        except (zlib.error, ValueError) as error:
            raise FileFault("unreadable file", str(error), f"{size} bytes, compressed") from error
        return Picture(pixels, ImageFacts(shape[:2]))

    def _values(self, example: Mapping[str, Any]) -> np.ndarray:
        """The mask values uint8 `(height, width)` of an example."""
        encoded = _bytes(example, self._mask)
        if not self._panoptic and self._info.name not in IN_RED_CHANNEL:
            return decode_label(encoded, f"the feature {self._mask}", self._colors)[0]
        pixels = decode_picture(encoded).pixels
        if not self._panoptic:
            return pixels[..., 0]
        # https://cocodataset.org/#format-data: the id of an object is R + 256 G + 65536 B.
        ids, labels, crowds = (
            np.array(example[f"{self._panoptic}/{key}"].int64_list.value, np.int64)
            for key in ("id", "label", "is_crowd")
        )
        kept = crowds == 0
        found, places = np.unique(pixels @ np.array([1, 256, 65536]), return_inverse=True)
        label_of = dict(zip(ids[kept].tolist(), labels[kept].tolist(), strict=True))
        values = np.array([label_of.get(one, IGNORE_LABEL) for one in found.tolist()], np.uint8)
        return values[places].reshape(pixels.shape[:2])

    @cached_property
    def _colors(self) -> ColorCode | None:
        return self._settings.color_code

    def _stored_metadata(self) -> dict[str, Any]:
        """What `data.prepare` stores: the `names` of the images of each file, and the `range`."""
        try:
            metadata = self._info.metadata  # which is read by `items`, but not by `get`
            metadata = {} if metadata is None else dict(metadata.items())
            names = metadata.setdefault("names", {})
            if not all(isinstance(name, str) for some in names.values() for name in some):
                raise ValueError("names must be lists of strings")
        except Exception as error:  # of any kind, as the file may hold anything
            fault = FileFault("unreadable file", f"metadata.json: {error}", "a JSON object")
            raise DatasetError(str(self.root), [fault]) from error
        return metadata

    def _check_bands(self, stored: int | None) -> None:
        """Raises a DatasetError if the settings have other channels or values than the records."""
        settings, limits = self._settings, self._metadata.get("range")
        known = {stored} if self._is_tensor else {1, 3, stored or 3}
        if settings.channels not in known:
            text = f'"channels" must be {" or ".join(map(str, sorted(known)))}, as in the records'
        elif list(settings.range or ()) != (limits or []):  # from which the records were scaled
            text = f'"range" must be {limits and list(limits)}, as in the records'
        else:
            return
        raise DatasetError(str(self.root), [FileFault("bad dataset.json", text)])

    def _name(self, path: Path, position: int) -> str:
        names = self._metadata["names"].get(path.name, ())
        return names[position] if position < len(names) else f"{path.name}__{position}"

    def _objects(self) -> str | None:
        """The feature of the objects beside a panoptic mask."""
        key = self._mask.removesuffix("_image") + "_objects"
        return key if self._mask.endswith("_image") and key in self._info.features else None

    def _splits(self, given: Mapping[str, str] | None) -> dict[str, Any]:
        """The splits of TensorFlow Datasets for those here."""
        known = self._info.splits
        chosen = {
            split: next((name for name in names if name in known), None)
            for split, names in SPLIT_NAMES.items()
        }
        for split, wanted in (given or {}).items():
            chosen[validation.one_of("splits", split, SPLIT_NAMES)] = wanted
        try:
            found = {split: known[wanted] for split, wanted in chosen.items() if wanted}
        except (KeyError, ValueError, AssertionError):
            found = {}
        if not found:
            rule = f"names or parts of {', '.join(known)}, such as {{'val': 'train[90%:]'}}"
            raise validation.error("splits", rule, given)
        return found

    def _open(self, split: Any) -> Records:
        file_format = self._info.file_format.value if self._info.file_format else "tfrecord"
        if file_format not in FORMATS:
            rule = f"a data set in the format {' or '.join(FORMATS)}"
            raise validation.error("name", rule, f"{self.root} in {file_format}")
        root, parts = os.path.abspath(self.root), []
        for part in split.file_instructions:
            path = Path(os.path.abspath(part.filename))
            if not path.is_relative_to(root):
                fault = FileFault("unreadable file", str(path), f"files in {root}")
                raise DatasetError(root, [fault])
            parts.append(Part(path, part.skip, part.take, part.examples_in_shard))
        return Records(parts, file_format)

    def _find_settings(self, given: str | os.PathLike | None, feature: Any) -> Settings:
        """The settings given, stored, published or of the feature of the label maps."""
        path = Path(given) if given else self.root / "dataset.json"
        if given or path.exists():
            try:
                return read_settings(path)
            except ValueError as error:
                fault = FileFault("bad dataset.json", f"{path}: {error}")
                raise DatasetError(str(self.root), [fault]) from error
        if self._info.name in PUBLISHED:
            return PUBLISHED[self._info.name]
        if self._panoptic:
            feature = self._info.features[self._panoptic].feature["label"]
        return Settings(tuple(feature.names) if getattr(feature, "num_classes", None) else ())

    @cached_property
    def _resolved(self) -> Settings:
        """The settings with the values of the classes, inferred from all masks if necessary."""
        if self._settings.values:
            return self._settings
        places = [(one, number) for one in self._records.values() for number in range(len(one))]
        counts, faults = [], []

        def count(place: tuple[Records, int]) -> np.ndarray | FileFault:
            records, number = place
            try:
                values = self._values(_example(records[number]))
                return np.bincount(values.reshape(-1), minlength=256)
            except FileFault as fault:
                fault.found = f"{self._name(*records.place(number))}: {fault.found}"
                return fault

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for found in pool.map(count, places):
                (faults if isinstance(found, FileFault) else counts).append(found)
        if not faults:
            try:
                values, notes = infer_values(counts, self._settings.ignore_label)
            except ValueError as error:
                where = f"{error} (in {self.root}, or as settings=PATH)"
                faults = [FileFault("classes unclear", where)]
        if faults:
            raise DatasetError(str(self.root), faults)
        for note in notes:
            logger.warning("%s: %s", self.root, note)
        return replace(self._settings, values=values)


def open_tfds(address: str) -> TFDS:
    """Opens `NAME[:CONFIG][/SPLIT][?OPTION=VALUE&...]`, or `FOLDER[?OPTION=VALUE&...]`.

    The options are the arguments of `TFDS`, and train, val and test for `splits`.
    """
    name, _, query = address.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    for key in options:
        validation.one_of("name", key, OPTIONS)
    splits = {split: options.pop(split) for split in SPLIT_NAMES if split in options}
    if "download" in options:
        text = validation.one_of("download", options["download"], ("true", "false"))
        options["download"] = text == "true"
    if is_folder(name):
        return TFDS(name, splits=splits, **options)
    name, _, split = name.partition("/")
    if split:
        base = re.match(r"\w*", split)[0]
        here = next((key for key, names in SPLIT_NAMES.items() if base in (key, *names)), None)
        if here is None or splits:
            rule = "a name with /train, /validation or /test, or with options such as ?val=test"
            raise validation.error("name", rule, address)
        # The others are left out.
        splits = dict.fromkeys(SPLIT_NAMES, "") | {here: split}
    return TFDS(name.replace(":", "/", 1), splits=splits, **options)


def _image_features(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The image features and their names, those of inner features after a slash.

    An image of other channels is a tensor named `image`, as `data.prepare` writes it.
    """
    import tensorflow_datasets as tfds

    for key, feature in features.items():
        is_tensor = isinstance(feature, tfds.features.Tensor) and feature.np_dtype == np.uint8
        if isinstance(feature, tfds.features.Image) or (key == "image" and is_tensor):
            yield prefix + key, feature
        elif isinstance(feature, tfds.features.FeaturesDict):
            yield from _image_features(feature, f"{prefix}{key}/")


def _masks(features: Mapping[str, Any]) -> list[str]:
    """The names of the features that look like label maps."""
    named = [key for key, feature in features.items() if hasattr(type(feature), "names")]
    return named or [key for key in features if _MASK_NAMES.search(key.lower())]


def _chosen(argument: str, given: str | None, found: list[str], known: Mapping[str, Any]) -> str:
    """The feature that is given, or the only one found."""
    if given is None and len(found) == 1:
        return found[0]
    names = ", ".join(map(repr, sorted(found or known))) or "none: the data set has no images"
    if given not in known:
        raise validation.error(argument, f"one of the features {names}", given)
    return given


def _example(record: bytes) -> Mapping[str, Any]:
    try:
        return tf.train.Example.FromString(record).features.feature
    except Exception as error:  # of protobuf
        raise FileFault("unreadable file", str(error), "records of tf.train.Example") from error


def _bytes(example: Mapping[str, Any], key: str) -> bytes:
    values = example[key].bytes_list.value if key in example else ()
    if len(values) != 1:
        raise FileFault("unreadable file", f"{len(values)} values of {key}", "one image")
    return values[0]
