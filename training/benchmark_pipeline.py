"""Images a second of the training pipeline, for `training.benchmark`."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import keras_deeplab
from keras_deeplab import data

CLASSES = 19
SKIPPED = 2  # batches in which tf.data finds its parallelism
OCTAVES = 6
GRAIN = 2.5  # standard deviation of a sensor's noise, in grey levels


@dataclass(frozen=True)
class Files:
    """A kind of files that is made for the measurement; sizes are (height, width)."""

    name: str
    size: tuple[int, int]
    suffix: str
    crop_size: tuple[int, int]


def kinds(crop_size: tuple[int, int]) -> tuple[Files, ...]:
    """Cityscapes' photographs, and small JPEGs as CamVid's and VOC's are."""
    small = tuple(min(side, most) for side, most in zip(crop_size, (360, 480), strict=True))
    return (
        Files("1024x2048 PNG", (1024, 2048), ".png", crop_size),
        Files("360x480 JPEG", (360, 480), ".jpg", small),
    )


@dataclass
class Rate:
    """Images a second of a pipeline on its own."""

    files: str
    cached: bool
    crop_size: tuple[int, int]
    images_per_second: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.images_per_second)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "median_images_per_second": self.median}


@dataclass
class Waiting:
    """Seconds of training steps: waiting for the batch, computing on it, and without a pipeline."""

    files: str
    cached: bool
    crop_size: tuple[int, int]
    waited: list[float]
    computed: list[float]
    without_pipeline: list[float]

    @property
    def share(self) -> float:
        """The part of the steps' time that was spent waiting."""
        return sum(self.waited) / (sum(self.waited) + sum(self.computed))

    @property
    def slowdown(self) -> float:
        """How many times as long a step takes, waiting included, as on a batch that is there."""
        pairs = zip(self.waited, self.computed, strict=True)
        return statistics.median(map(sum, pairs)) / statistics.median(self.without_pipeline)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "waiting_share": self.share, "slowdown": self.slowdown}


def write_folder(root: Path, kind: Files, count: int, seed: int = 0) -> Path:
    """Writes photographs with label maps as `data.Folder` reads them.

    The pixels are smooth patches of all sizes under fine grain, so that the files decode as slowly
    as those of a camera: noise alone, or plain areas, would take longer or nothing.
    """
    random = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (root / "train" / part).mkdir(parents=True)
    names = [f"class {number}" for number in range(CLASSES)]
    (root / "dataset.json").write_text(json.dumps({"classes": names}))
    for number in range(count):
        photograph = clouds(random, kind.size, 3) + random.normal(0, GRAIN, (*kind.size, 3))
        pixels = Image.fromarray(np.uint8(np.clip(photograph, 0, 255)))
        pixels.save(root / "train" / "images" / f"{number:04d}{kind.suffix}")
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


def pipeline(source: data.Source, kind: Files, cached: bool, batch_size: int) -> tf.data.Dataset:
    """The pipeline of training, with nothing changed but what is measured."""
    return data.training_dataset(
        source, crop_size=kind.crop_size, batch_size=batch_size, cache=cached, repeat=True
    )


def started(dataset: tf.data.Dataset, batches: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Begins to read and passes over the first batches."""
    batch = iter(dataset)
    for _ in range(batches):
        next(batch)
    return batch


def rates(
    sources: Sequence[tuple[Files, data.Source]],
    *,
    batch_size: int,
    batches: int,
    rounds: int,
    report: Callable[[str], None] = print,
) -> list[Rate]:
    """Measures the pipeline of every source, with and without its cache, in turn.

    Nothing is done with the batches, so that none is ever ready before it is asked for.

    Args:
        sources: What the files are, and a data set of them with a train split.
        batch_size: Images a batch.
        batches: Timed batches of a round.
        rounds: How often each is measured.
        report: Is told what is under way.

    Returns:
        A `Rate` per source, uncached and cached.
    """
    measured = []
    for kind, source in sources:
        for cached in (False, True):
            report(f"pipeline: {kind.name}, {'cached' if cached else 'uncached'}")
            dataset = pipeline(source, kind, cached, batch_size)
            if cached:  # one batch more than the images make, to have all of them in memory
                started(dataset, -(-len(source.names("train")) // batch_size) + 1)
            measured.append((Rate(kind.name, cached, kind.crop_size), dataset))
    for _ in range(rounds):
        for rate, dataset in measured:
            batch = started(dataset, SKIPPED)
            begin = time.perf_counter()
            for _ in range(batches):
                next(batch)
            rate.images_per_second.append(batches * batch_size / (time.perf_counter() - begin))
            del batch  # its threads read ahead as long as it is there
    return [rate for rate, _ in measured]


def waiting(
    sources: Sequence[tuple[Files, data.Source]],
    *,
    batch_size: int,
    steps: int,
    backbone: str = "mobilenet_v2",
    report: Callable[[str], None] = print,
) -> list[Waiting]:
    """Measures how long training steps wait for their data, with and without the cache.

    The loop is `fit`'s: take a batch, make a step on it, while the pipeline prepares the next one.
    The same steps on a batch that is already there tell what the pipeline's own work, on the same
    processor, takes away from them.

    Args:
        sources: What the files are, and a data set of them with a train split.
        batch_size: Images a batch.
        steps: Timed steps of each kind.
        backbone: Of the DeepLabV3+, which is trained in float32: the lighter it is, the more it
            waits.
        report: Is told what is under way.

    Returns:
        A `Waiting` per source, uncached and cached.
    """
    found = []
    for kind, source in sources:
        model = _compiled(source.info.num_classes, backbone)
        for cached in (False, True):
            report(f"waiting: {kind.name}, {'cached' if cached else 'uncached'}")
            dataset = pipeline(source, kind, cached, batch_size)
            rounds = -(-len(source.names("train")) // batch_size) + 1 if cached else SKIPPED
            batch = started(dataset, rounds)
            first = next(batch)
            waited, computed = _timed_steps(model, lambda batch=batch: next(batch), steps)
            del batch
            _, alone = _timed_steps(model, lambda first=first: first, steps)
            found.append(Waiting(kind.name, cached, kind.crop_size, waited, computed, alone))
    return found


def _timed_steps(
    model: keras.Model, take: Callable[[], tuple[tf.Tensor, tf.Tensor]], steps: int
) -> tuple[list[float], list[float]]:
    """Seconds until the batch is there, and on the batch, after steps to warm up."""
    waited, computed = [], []
    for _ in range(SKIPPED + steps):
        begin = time.perf_counter()
        images, labels = take()
        there = time.perf_counter()
        model.train_on_batch(images, labels)
        waited.append(there - begin)
        computed.append(time.perf_counter() - there)
    return waited[SKIPPED:], computed[SKIPPED:]


def _compiled(num_classes: int, backbone: str) -> keras.Model:
    """A model that trains as `training.train` does, with its metrics."""
    model = keras_deeplab.DeepLabV3Plus(num_classes, backbone, separable=True)
    model.compile(
        keras.optimizers.AdamW(1e-4, global_clipnorm=5.0),
        keras_deeplab.losses.CrossEntropy(),
        metrics=[keras_deeplab.metrics.SegmentationMetrics(num_classes)],
    )
    model.optimizer.build(model.trainable_variables)
    return model
