"""Writing a data set in the format of TensorFlow Datasets."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.data.bands import Bands
from keras_deeplab.data.decoding import open_image
from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.formats import format_of
from keras_deeplab.data.held_out import HeldOut
from keras_deeplab.data.opening import open_source
from keras_deeplab.data.orientation import UPRIGHT, stored_orientation
from keras_deeplab.data.records import FORMATS
from keras_deeplab.data.resized import Resized
from keras_deeplab.data.source import Source, reason
from keras_deeplab.data.tfds_source import SPLIT_NAMES
from keras_deeplab.files import atomic_write, digest, move, read_json, write_json, write_text
from keras_deeplab.folder_lock import FolderLock

logger = logging.getLogger(__name__)

CHECKSUMS = "SHA256SUMS"
_PROGRESS = "progress.json"
_SIXTEEN_BITS = 16
_PNG_BITS = 24  # the position of the bit depth in a PNG file


def prepare(
    source: Source | str | os.PathLike,
    output: str | os.PathLike,
    *,
    file_format: str = "tfrecord",
    images_per_shard: int = 1000,
) -> Path:
    """Writes a data set in the format of TensorFlow Datasets.

    Training from it gives the same batches as from `source`: JPEG and 8-bit PNG files are stored as
    they are, other images as PNG, and label maps as PNG with 0..num_classes-1 and 255. Images of
    other channels or values are stored as the 8 bits a channel that training uses, those of 2 or
    more than 4 channels as compressed tensors. Open it with
    `data.TFDS(output)` or with `tfds.builder_from_directory(output)`. Its files:

    - `NAME-SPLIT.FORMAT-00000-of-00010`, the shards, with images in the order of `source.names` and
      the features `"image"`, `"label"` (a `LabeledImage`) and `"name"`;
    - `dataset_info.json`, `features.json`, `label.labels.txt` and `metadata.json` of TensorFlow
      Datasets; `dataset.json` with the classes and their colours;
    - `SHA256SUMS`, which `sha256sum --check` reads.

    They are written beside `output` and moved there at the end. After an interruption, the same
    call continues with the first shard that is missing.

    Args:
        source: A `data.Source`, or what `data.open_source` takes.
        output: The folder to write, which must not exist.
        file_format: `"tfrecord"`, or `"array_record"`, of a package that Windows lacks.
        images_per_shard: The largest number of images in a shard.

    Returns:
        The folder.

    Raises:
        ValueError: If an argument is out of range, `output` exists, a file is damaged, another
            process is writing the data set, or an interrupted call wrote another one or the files
            have changed since.

    Example:

    >>> folder = data.prepare(data.Shapes(4, 2), "prepared")
    >>> data.TFDS(folder).splits
    ('train', 'val')
    """
    validation.one_of("file_format", file_format, FORMATS)
    validation.integer("images_per_shard", images_per_shard)
    output = Path(os.path.abspath(output))
    _check_new(output)
    source = open_source(source)
    for split in source.splits:
        validation.one_of("splits", split, SPLIT_NAMES)
    if "" in (classes := source.info.classes) or len(set(classes)) < len(classes):
        raise validation.error("source", "of different class names that are not empty", classes)
    return _Preparation(source, output, file_format, images_per_shard).run()


def _check_new(output: Path) -> None:
    if output.exists():
        raise validation.error("output", "a folder that does not exist", str(output))


class _Preparation:
    """One data set that is being written, in a folder beside its place."""

    def __init__(
        self, source: Source, output: Path, file_format: str, images_per_shard: int
    ) -> None:
        from keras_deeplab.data.builders.features import features

        self.source, self.output, self.format = source, output, file_format
        self.per_shard = images_per_shard
        self.names = {split: source.names(split) for split in source.splits}
        self.folder = output.with_name(f".{output.name}.incomplete")
        self.lock = FolderLock(self.folder, "prepare.lock")
        self.features = features(source.info.classes, channels=source.info.channels)
        # A valid name of a data set.
        self.dataset = re.sub(r"\W", "_", output.name.lower(), flags=re.ASCII).strip("_")
        if not self.dataset[:1].isalpha():
            self.dataset = f"data_{self.dataset}"

    def run(self) -> Path:
        """Locks the folder, in which others would delete the shard that is being written."""
        plan = self._plan()
        self.lock.acquire()
        try:
            _check_new(self.output)  # another process may have finished in between
            self._write_all(plan)
        finally:
            self.lock.release()
        (self.output / self.lock.file.name).unlink(missing_ok=True)
        logger.info("Wrote %s", self.output)
        return self.output

    def _write_all(self, plan: dict[str, Any]) -> None:
        """Writes the shards that are missing and the metadata, and moves the folder."""
        done = self._done(plan)
        shards = list(self._shards())
        if done:
            logger.info("Resuming with %d of %d shards written", len(done), len(shards))
        start, images = time.monotonic(), 0
        for number, (split, path, positions) in enumerate(shards, 1):
            if path.name in done:
                continue
            size = self._write(split, path, positions)
            done[path.name] = {"sha256": _sha256(path), "bytes": size}
            write_json(self.folder / _PROGRESS, {"plan": plan, "shards": done})
            images += len(positions)
            rate = images / (time.monotonic() - start)
            text = f"{split} to image {positions.stop} of {len(self.names[split])}"
            logger.info("Shard %d of %d: %s, %.0f images/s", number, len(shards), text, rate)
        self._write_metadata(shards, done)
        (self.folder / _PROGRESS).unlink()
        move(self.folder, self.output)

    def _plan(self) -> dict[str, Any]:
        """What the shards depend on; with it an interrupted call is recognised."""
        return {
            "format": self.format,
            "images_per_shard": self.per_shard,
            "data": self.source.fingerprint(),
            "files": digest(_file_states(self.source)),
        }

    def _done(self, plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The shards that an interrupted call finished, without those changed since."""
        path = self.folder / _PROGRESS
        stored = {"plan": plan, "shards": {}}
        if path.exists():
            stored = read_json(path, "Delete it to write all shards again.")
        if stored.get("plan") != plan:
            rule = f"the same files and options as in {self.folder}, or without this folder"
            raise validation.error("source", rule, self.dataset, "Delete it to begin again")
        done = {
            name: shard
            for name, shard in stored["shards"].items()
            if (self.folder / name).is_file() and _sha256(self.folder / name) == shard["sha256"]
        }
        kept = {path, self.lock.file, *(self.folder / name for name in done)}
        for other in set(self.folder.iterdir()) - kept:
            other.unlink()  # such as the temporary file of a process that was killed
        return done

    def _shards(self) -> Iterator[tuple[str, Path, range]]:
        """The split, path and positions of each shard, which hold equal numbers but for one."""
        for split, names in self.names.items():
            count = -(-len(names) // self.per_shard)
            for index in range(count):
                first, last = (round(len(names) * k / count) for k in (index, index + 1))
                stem = f"{self.dataset}-{SPLIT_NAMES[split][0]}.{self.format}"
                path = self.folder / f"{stem}-{index:05d}-of-{count:05d}"
                yield split, path, range(first, last)

    def _write(self, split: str, path: Path, positions: range) -> int:
        """Writes a shard and returns the bytes of its records."""
        from tensorflow_datasets.core import file_adapters

        size = 0

        def records() -> Iterator[tuple[int, bytes]]:
            nonlocal size
            for number, example in zip(positions, self._examples(split, positions), strict=True):
                record = self.features.serialize_example(
                    {"name": self.names[split][number], **example}
                )
                size += len(record)
                yield number, record

        kind = file_adapters.FileFormat.from_value(self.format)
        with atomic_write(path) as temporary:
            try:
                file_adapters.ADAPTER_FOR_FORMAT[kind].write_examples(temporary, records())
            except tf.errors.InvalidArgumentError as error:
                raise ValueError(reason(error)) from error
        return size

    def _examples(self, split: str, positions: range) -> Iterator[dict[str, Any]]:
        """The images and label maps of a shard, decoded and encoded in parallel.

        Images that the feature `Image` cannot hold are arrays.
        """
        from keras_deeplab.data.builders.features import IMAGE_CHANNELS

        info = self.source.info
        numbers = tf.data.Dataset.range(positions.start, positions.stop)
        pairs = self.source.checked_dataset(split, numbers)
        image, _ = pairs.element_spec
        if image.shape[-1] != info.channels or image.dtype != tf.uint8:
            rule = f"a data set of images of uint8 with {info.channels} channels"
            raise validation.error("source", rule, f"{image.dtype.name} {image.shape}")

        # Other programs read files of other channels and values differently.
        is_plain = Bands(info.channels, info.value_range).are_plain
        read = self.source.encoded_images(split) if is_plain else None

        def stored(number: int) -> bytes:
            return _reusable(read(number)) if read else b""

        def encode(number: tf.Tensor, pair: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
            image, label = pair
            label = tf.io.encode_png(label[..., tf.newaxis])
            if info.channels not in IMAGE_CHANNELS:
                return {"image": image, "label": label}
            kept = tf.numpy_function(stored, [number], tf.string, stateful=False)
            kept = tf.ensure_shape(kept, ())
            encoded = tf.cond(kept == b"", lambda: tf.io.encode_png(image), lambda: kept)
            return {"image": encoded, "label": label}

        dataset = tf.data.Dataset.zip(numbers, pairs)
        dataset = dataset.map(encode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return dataset.as_numpy_iterator()

    def _write_metadata(
        self, shards: list[tuple[str, Path, range]], done: dict[str, dict[str, Any]]
    ) -> None:
        import tensorflow_datasets as tfds

        splits = [
            tfds.core.SplitInfo(
                name=SPLIT_NAMES[split][0],
                shard_lengths=[len(positions) for one, _, positions in shards if one == split],
                num_bytes=sum(done[path.name]["bytes"] for one, path, _ in shards if one == split),
            )
            for split, names in self.names.items()
            if names
        ]
        names = {path.name: self.names[split][at.start : at.stop] for split, path, at in shards}
        limits = self.source.info.value_range
        scaled = {} if limits is None else {"range": limits}
        tfds.folder_dataset.write_metadata(
            data_dir=self.folder,
            features=self.features,
            split_infos=splits,
            check_data=False,
            disable_shuffling=True,
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict({"names": names, **scaled}),
        )
        write_json(self.folder / "dataset.json", self.source.info.to_dict())
        sums = "".join(f"{done[path.name]['sha256']}  {path.name}\n" for _, path, _ in shards)
        write_text(self.folder / CHECKSUMS, sums)


def _file_states(source: Source) -> list[tuple[int, float]]:
    """Sizes and times of a source's files, which show whether they were repaired."""
    while isinstance(source, HeldOut | Resized):
        source = source.source
    if not isinstance(source, FileSource):
        return []
    paths = {path for split in source.splits for _, *pair in source.pairs(split) for path in pair}
    with ThreadPoolExecutor() as pool:
        states = list(pool.map(lambda path: path.stat(), sorted(paths)))
    return [(state.st_size, state.st_mtime) for state in states]


def _reusable(encoded: bytes) -> bytes:
    """Returns an image file if all programs decode it to the pixels used here, otherwise none.

    They do not with an EXIF orientation, which most do not apply, or with 16 bits.
    """
    if format_of(encoded) not in ("JPEG", "PNG"):
        return b""
    name, image = open_image(encoded)
    deep = name == "PNG" and encoded[_PNG_BITS] == _SIXTEEN_BITS
    return b"" if deep or stored_orientation(image, encoded) != UPRIGHT else encoded


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
