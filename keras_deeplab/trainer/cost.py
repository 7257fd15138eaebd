"""The time and memory that a training will take, measured on its first steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from keras_deeplab import data, recipes
from keras_deeplab.memory import peak_memory
from keras_deeplab.models import MultiScale
from keras_deeplab.trainer.building import ModelBuilder
from keras_deeplab.trainer.defaults import for_data

WARM_UP, TIMED = 2, 3  # steps; the first one traces


@dataclass(frozen=True)
class TrainingCost:
    """What a training takes on this machine; `print` shows it.

    Attributes:
        network: Model and backbone.
        crop_size: `(height, width)` of the images.
        batch_size: Images in a step.
        seconds: Of a step, without reading the images, which is done beside it.
        peak_bytes: Of the whole process since it began.
        steps: Of all stages of the recipe.
    """

    network: str
    crop_size: tuple[int, int]
    batch_size: int
    seconds: float
    peak_bytes: int
    steps: int

    def __str__(self) -> str:
        height, width = self.crop_size
        return (
            f"{self.network}: a step of {self.batch_size} images of {width}x{height} takes "
            f"{self.seconds:.2f} s and the process {self.peak_bytes / 1e9:.1f} GB; {self.steps} "
            f"steps take {self.seconds * self.steps / 3600:.1f} hours, without validation"
        )


def training_cost(
    builder: ModelBuilder, source: data.Source, report: data.Report, recipe: recipes.Recipe
) -> TrainingCost:
    """Measures a few steps of the first stage of a recipe, on random pixels.

    Args:
        builder: The model.
        source: The data set.
        report: Of `data.audit`, with the split "train".
        recipe: The recipe, with the crop size that `fit` would choose if it has none.

    Returns:
        A `TrainingCost`. A second stage at a finer output stride takes longer for a step.

    Example:

    >>> source = data.Shapes(train=9, val=3)
    >>> recipe = keras_deeplab.recipes.get("shapes").replace(crop_size=(32, 32), batch_size=2)
    >>> cost = keras_deeplab.trainer.training_cost(
    ...     keras_deeplab.trainer.ModelBuilder(), source, data.audit(source), recipe
    ... )
    >>> cost.steps
    800
    """
    source.check_split("train")
    info = source.info
    recipe = for_data(recipe, report.splits["train"], info.classes)
    per_epoch = recipe.steps_per_epoch(report.splits["train"].images)
    stages = recipe.stages()
    steps = sum(stage.num_epochs(per_epoch) * per_epoch for stage in stages)
    rng = np.random.default_rng(0)
    shape = (recipe.batch_size, *recipe.crop_size)
    images = rng.integers(0, 256, (*shape, info.channels)).astype("float32")
    labels = rng.integers(0, info.num_classes, shape).astype("int32")
    model = builder.build(info.num_classes, stages[0], None, info.channels)
    if recipe.multi_scale is not None:
        model = MultiScale(model, recipe.multi_scale)
    recipes.compile_model(model, stages[0], total_steps=steps, class_names=info.classes)
    model.optimizer.build(model.trainable_variables)  # else the first step is traced twice
    seconds = []
    for _ in range(WARM_UP + TIMED):
        begin = time.perf_counter()
        model.train_on_batch(images, labels)
        seconds.append(time.perf_counter() - begin)
    network = f"{builder.name} on {builder.backbone or 'its own network'}"
    median = float(np.median(seconds[WARM_UP:]))
    return TrainingCost(network, recipe.crop_size, recipe.batch_size, median, peak_memory(), steps)
