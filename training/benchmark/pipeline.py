"""Images a second of the training pipeline, and the time that training steps wait for it."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import keras_deeplab
from keras_deeplab import data

CLASSES = 19
SKIPPED = 2  # batches or steps to warm up
OCTAVES = 6
GRAIN = 2.5  # standard deviation of a sensor's noise, in grey levels

Pair = tuple[tf.Tensor, tf.Tensor]


class Files(NamedTuple):
    """A kind of files that are generated for the measurement; sizes are (height, width)."""

    name: str
    size: tuple[int, int]
    suffix: str
    crop_size: tuple[int, int]


Sources = Sequence[tuple[Files, data.Source]]


def kinds(crop_size: tuple[int, int]) -> tuple[Files, ...]:
    """Files as those of Cityscapes, and small JPEGs as those of CamVid and VOC."""
    small = tuple(min(side, most) for side, most in zip(crop_size, (360, 480), strict=True))
    return (
        Files("1024x2048 PNG", (1024, 2048), ".png", crop_size),
        Files("360x480 JPEG", (360, 480), ".jpg", small),
    )


def write_folder(root: Path, kind: Files, count: int, seed: int = 0) -> Path:
    """Writes images with label maps as `data.Folder` reads them.

    The pixels are smooth patches of all sizes under fine grain, so that the files decode as slowly
    as those of a camera: noise alone would take longer, plain areas no time.
    """
    random = np.random.default_rng(seed)
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


def _cases(
    sources: Sources, batch_size: int
) -> Iterator[tuple[dict[str, Any], tf.data.Dataset, int]]:
    """The pipeline of training on each source, uncached and cached: row, batches, first to skip.

    Those to skip are the batches in which tf.data finds its parallelism or fills its cache.
    """
    for (kind, source), cached in itertools.product(sources, (False, True)):
        print(f"{kind.name}, {'cached' if cached else 'uncached'}")
        batches = data.training_dataset(
            source, crop_size=kind.crop_size, batch_size=batch_size, cache=cached, repeat=True
        )
        skipped = -(-len(source.names("train")) // batch_size) + 1 if cached else SKIPPED
        yield {"files": kind.name, "cached": cached, "crop_size": kind.crop_size}, batches, skipped


def _started(batches: tf.data.Dataset, skipped: int) -> Iterator[Pair]:
    iterator = iter(batches)
    for _ in range(skipped):
        next(iterator)
    return iterator


def rates(sources: Sources, *, batch_size: int, batches: int, rounds: int) -> list[dict[str, Any]]:
    """Measures the pipeline of every source, with and without its cache, in turn.

    Nothing is done with the batches, so that reading is the only work.

    Returns:
        A row per source, uncached and cached, with the `images_per_second` of each round.
    """
    measured = []
    for row, pairs, skipped in _cases(sources, batch_size):
        _started(pairs, skipped)
        measured.append(({**row, "images_per_second": []}, pairs))
    for _ in range(rounds):
        for row, pairs in measured:
            batch = _started(pairs, SKIPPED)
            begin = time.perf_counter()
            for _ in range(batches):
                next(batch)
            seconds = time.perf_counter() - begin
            row["images_per_second"].append(batches * batch_size / seconds)
            del batch  # its threads read ahead as long as it exists
    return [row for row, _ in measured]


def waiting(
    sources: Sources, *, batch_size: int, steps: int, backbone: str = "mobilenet_v2"
) -> list[dict[str, Any]]:
    """Measures how long training steps wait for their data, with and without the cache.

    The loop is that of `fit`: take a batch, make a step on it, while the pipeline prepares the next
    one. The same steps on one batch in memory show how much processor time the pipeline takes from
    them. The model is a DeepLabV3+ in float32; the lighter its backbone, the more it waits.

    Returns:
        A row per source, uncached and cached: the seconds `waited` and `computed` of each step and
        those `without_pipeline`; `waiting_share` of the steps' time; `slowdown`, how many times as
        long a step takes with the pipeline as without.
    """
    num_classes = sources[0][1].info.num_classes
    model = keras_deeplab.DeepLabV3Plus(num_classes, backbone, separable=True)
    model.compile(
        keras.optimizers.AdamW(1e-4, global_clipnorm=5.0),
        keras_deeplab.losses.CrossEntropy(),
        metrics=[keras_deeplab.metrics.SegmentationMetrics(num_classes)],
    )
    rows = []
    for row, pairs, skipped in _cases(sources, batch_size):
        batch = _started(pairs, skipped)
        first = next(batch)
        waited, computed = _timed_steps(model, batch, steps)
        del batch
        _, alone = _timed_steps(model, itertools.repeat(first), steps)
        rows.append({**row, **waiting_figures(waited, computed, alone)})
    return rows


def waiting_figures(
    waited: list[float], computed: list[float], alone: list[float]
) -> dict[str, Any]:
    """Returns the seconds of steps with their share of waiting and their slowdown."""
    both = [sum(pair) for pair in zip(waited, computed, strict=True)]
    return {
        "waited": waited,
        "computed": computed,
        "without_pipeline": alone,
        "waiting_share": sum(waited) / sum(both),
        "slowdown": statistics.median(both) / statistics.median(alone),
    }


def _timed_steps(
    model: keras.Model, batches: Iterator[Pair], steps: int
) -> tuple[list[float], list[float]]:
    """Seconds of waiting for the batch and of computing, after steps to warm up."""
    waited, computed = [], []
    for _ in range(SKIPPED + steps):
        begin = time.perf_counter()
        images, labels = next(batches)
        taken = time.perf_counter()
        model.train_on_batch(images, labels)
        waited.append(taken - begin)
        computed.append(time.perf_counter() - taken)
    return waited[SKIPPED:], computed[SKIPPED:]
