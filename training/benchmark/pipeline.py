"""Images a second of the training pipeline."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_deeplab import data

CLASSES = 19
IMAGES = 24
SKIPPED = 2  # batches in which tf.data finds its parallelism
OCTAVES = 6
GRAIN = 2.5  # standard deviation of a sensor's noise, in grey levels


class Files(NamedTuple):
    """A kind of files that are generated for the measurement."""

    name: str
    size: tuple[int, int]
    suffix: str


KINDS = (
    Files("1024x2048 PNG", (1024, 2048), ".png"),  # as those of Cityscapes
    Files("360x480 JPEG", (360, 480), ".jpg"),  # as those of CamVid and VOC
)


def write_folder(root: Path, kind: Files, count: int = IMAGES) -> Path:
    """Writes images with label maps as `data.Folder` reads them.

    The pixels are smooth patches of all sizes under fine grain, so that the files decode as slowly
    as those of a camera: noise alone would take longer, plain areas no time.
    """
    random = np.random.default_rng(0)
    for part in ("images", "labels"):
        (root / "train" / part).mkdir(parents=True)
    names = [f"class {number}" for number in range(CLASSES)]
    (root / "dataset.json").write_text(json.dumps({"classes": names}))
    for number in range(count):
        pixels = clouds(random, kind.size, 3) + random.normal(0, GRAIN, (*kind.size, 3))
        image = Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))
        image.save(root / "train" / "images" / f"{number:04d}{kind.suffix}")
        labels = np.uint8(clouds(random, kind.size, 1)[..., 0] * CLASSES / 256)
        Image.fromarray(labels).save(root / "train" / "labels" / f"{number:04d}.png")
    return root


def clouds(random: np.random.Generator, size: tuple[int, int], channels: int) -> np.ndarray:
    """Smooth random patches of every size, `(*size, channels)` in 0..255, the large ones strong."""
    total = np.zeros((*size, channels))
    for octave in range(OCTAVES):
        coarse = random.normal(size=(2 ** (octave + 1), 2 ** (octave + 2), channels))
        total += tf.image.resize(coarse, size, method="bicubic").numpy() / 2**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low) * 255


def measure(
    folder: Path | None, *, size: tuple[int, int], batch_size: int, batches: int
) -> list[dict[str, Any]]:
    """Returns the images a second of a folder, or of generated files, not cached and cached."""
    rows = []
    with tempfile.TemporaryDirectory() as generated:
        if folder is not None:
            sources = [(folder.name, data.open_source(folder), size)]
        else:
            roots = [write_folder(Path(generated) / kind.name, kind) for kind in KINDS]
            sources = [
                (kind.name, data.Folder(root), tuple(map(min, size, kind.size)))
                for kind, root in zip(KINDS, roots, strict=True)
            ]
        for (name, source, crop_size), cached in itertools.product(sources, (False, True)):
            dataset = data.training_dataset(
                source, crop_size=crop_size, batch_size=batch_size, cache=cached, repeat=True
            )
            iterator = iter(dataset)
            filling = -(-len(source.names("train")) // batch_size) if cached else 0
            for _ in range(filling + SKIPPED):
                next(iterator)
            begin = time.perf_counter()
            for _ in range(batches):  # nothing is done with them: reading is the only work
                next(iterator)
            rate = batches * batch_size / (time.perf_counter() - begin)
            row = {"files": name, "crop_size": crop_size, "batch_size": batch_size}
            rows.append({**row, "cached": cached, "images_per_second": rate})
    return rows
