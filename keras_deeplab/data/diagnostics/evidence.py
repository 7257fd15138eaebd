"""What a diagnosis looks at: counts of all label maps, and a closer look at some pairs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_deeplab.data.bands import Bands
from keras_deeplab.data.decoding import read_picture
from keras_deeplab.data.diagnostics.alignment import Agreement, agreement
from keras_deeplab.data.diagnostics.structure import Structure, structure
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.file_source import FileSource
from keras_deeplab.data.label_codes import LabelCode
from keras_deeplab.data.orientation import turned
from keras_deeplab.data.source import DatasetInfo, Source, evenly_spaced, pairs_or_reasons

SAMPLED = 128  # pairs of a split that are looked at closely
ALIGNED = 48  # of these, pairs whose edges are compared
SIZE = 2**22  # pixels of the largest images that are looked at closely
PICTURE_COLORS = 200  # colours of a photograph
DRAWING_COLORS = 32  # colours of a label map


@dataclass
class Evidence:
    """Facts of a data set.

    Attributes:
        info: The classes, None if they are unclear.
        code: The meaning of the values of label maps, None if it is unclear.
        names: Names of the images of each split, of which both files can be read.
        counts: For each split the pixels of each value in each label map.
        hashes: For each split the difference hash of each image.
        structure: Sums over the sampled label maps.
        agreements: Of the sampled pairs, in all splits.
        listed_colors: Colours that RGB label maps may have.
        colors: Colours of label maps that could not be read.
        swapped: Names of sampled pairs whose image has few colours and whose label map has many.
        looked_at: Number of pairs of which `swapped` are.
    """

    info: DatasetInfo | None = None
    code: LabelCode | None = None
    names: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    hashes: dict[str, list[bytes]] = field(default_factory=dict)
    structure: Structure = field(default_factory=Structure)
    agreements: list[Agreement] = field(default_factory=list)
    listed_colors: frozenset[tuple[int, ...]] = frozenset()
    colors: set[tuple[int, ...]] = field(default_factory=set)
    swapped: list[str] = field(default_factory=list)
    looked_at: int = 0

    @property
    def totals(self) -> np.ndarray:
        """The pixels of each value in all label maps."""
        return sum((c.sum(0) for c in self.counts.values()), np.zeros(256, np.int64))


def look_closely(evidence: Evidence, source: Source, split: str) -> None:
    """Adds what some evenly spaced pairs of a split show; unreadable ones are left out."""
    is_files = isinstance(source, FileSource)
    found = source.files(split).pairs() if is_files else source.names(split)
    places = evenly_spaced(len(found), SAMPLED)
    aligned = np.arange(len(places)) % max(1, len(places) // ALIGNED) == 0
    if is_files:
        look, chosen = partial(_look_at_files, source, source.bands), [found[k] for k in places]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            _add(evidence, pool.map(look, chosen, aligned))
        return
    decoded = source.dataset(split, tf.data.Dataset.from_tensor_slices(places))
    pairs = zip(pairs_or_reasons(decoded), aligned, strict=True)
    _add(evidence, (_look(*pair, one) for pair, one in pairs if not isinstance(pair, str)))


def _look(image: np.ndarray, values: np.ndarray, is_aligned: bool) -> dict:
    if image.shape[:2] != values.shape:
        return {}  # a fault
    if values.size > SIZE:
        image, values = image[:2048, :2048], values[:2048, :2048]
    found = {"structure": structure(values)}
    if is_aligned:
        found["agreement"] = agreement(image, values)
    return found


def _look_at_files(
    source: FileSource, bands: Bands, pair: tuple[str, Path, Path], is_aligned: bool
) -> dict:
    name, image_path, label_path = pair
    found: dict = {}
    picture = values = None
    with suppress(FileFault, OSError):
        picture = bands.read(image_path)
    try:
        values = source.read_values(name, label_path)
    except (FileFault, OSError):
        found["colors"] = _colors_of(label_path)
    if picture is not None and bands.channels == 3:
        many = found["colors"] if values is None else np.unique(values)
        few = len(_unique_colors(picture.pixels, DRAWING_COLORS)) <= DRAWING_COLORS
        found["swapped"] = name if few and len(many) >= 100 else None
    if picture is None or values is None:
        return found
    try:
        pixels = turned(picture.pixels, picture.facts.orientation_for(values.shape))
    except FileFault:
        return found
    return found | _look(pixels, values, is_aligned)


def _colors_of(path: os.PathLike) -> set[tuple[int, ...]]:
    """Colours of a label map that cannot be read as one."""
    try:
        return _unique_colors(read_picture(path).pixels, PICTURE_COLORS)
    except (FileFault, OSError):
        return set()


def _unique_colors(pixels: np.ndarray, limit: int) -> set[tuple[int, ...]]:
    flat = pixels[::4, ::4].reshape(-1, pixels.shape[-1]).astype(np.int32)
    packed = np.unique(flat[:, 0] << 16 | flat[:, 1] << 8 | flat[:, 2])[: limit + 1]
    return {(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in packed}


def _add(evidence: Evidence, looks: Iterable[dict]) -> None:
    for found in looks:
        evidence.looked_at += 1
        evidence.structure += found.get("structure", Structure())
        evidence.colors |= found.get("colors", set())
        if found.get("agreement") is not None:
            evidence.agreements.append(found["agreement"])
        if found.get("swapped"):
            evidence.swapped.append(found["swapped"])
