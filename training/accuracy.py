"""Mean IoU after the same minutes of training: `python -m training.accuracy --data textures`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_deeplab as kd
from keras_deeplab.cli.options import Parser, command, one_of
from keras_deeplab.files import read_json, write_json
from keras_deeplab.metrics import confusion_matrix
from keras_deeplab.recipes import Recipe
from keras_deeplab.trainer import ModelBuilder
from keras_deeplab.trainer.defaults import for_data
from training.folds import check_same, row
from training.textures import Textures

DRAWN = {"shapes40": partial(kd.data.Shapes, train=40, val=100), "textures": Textures}
PILOT = 4  # steps, from which the time of a step is measured
SMP, SMP_MODULE = "segmentation_models.pytorch", "segmentation_models_pytorch"
STRIDE = 16  # sizes of the images that segmentation_models.pytorch takes are divisible by it
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of its pixels in 0..1


@dataclasses.dataclass(frozen=True)
class Trained:
    """A training: its steps, their seconds after the first, and the scores on `val`."""

    steps: int
    seconds: float
    mean_iou: float
    per_class: dict[str, float | None]


# From a source, the recipe with its crop size and seconds to a training with a seed.
Contender = Callable[[kd.data.Source, Recipe, float], Callable[[int], Trained]]


def own(
    builder: ModelBuilder, source: kd.data.Source, recipe: Recipe, seconds: float
) -> Callable[[int], Trained]:
    """A model of this package with the recipe, in as many steps as the time allows."""
    recipe = kd.recipes.get(recipe.name, builder.network).replace(crop_size=recipe.crop_size)

    ends: list[float] = []

    def train(steps: int, seed: int) -> Trained:
        ends.clear()
        clock = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda *_, **__: ends.append(time.perf_counter())
        )
        fitted = kd.fit(
            builder,
            source,
            recipe.replace(steps=steps),
            steps_per_epoch=steps,
            seed=seed,
            callbacks=[clock],
            verbose=0,
        )
        scores = fitted.scores
        return Trained(steps, ends[-1] - ends[0], scores["mean_iou"], scores["per_class"])

    train(PILOT, 0)
    return partial(train, 1 + round(seconds / np.median(np.diff(ends))))


def segmentation_models_pytorch(
    source: kd.data.Source, recipe: Recipe, seconds: float
) -> Callable[[int], Trained]:
    """Its DeepLabV3+, by Dice and cross-entropy and Adam at 1e-4."""
    import segmentation_models_pytorch as smp
    import torch

    def tensor(image: np.ndarray) -> torch.Tensor:
        pixels = (image / 255 - MEAN) / np.array(DEVIATION)
        return torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)

    def train(seed: int) -> Trained:
        torch.manual_seed(seed)
        classes = source.info.num_classes
        model = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=classes)
        dice = smp.losses.DiceLoss("multiclass", ignore_index=kd.data.IGNORE_LABEL)
        cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=kd.data.IGNORE_LABEL)
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        batches = kd.data.training_dataset(
            source,
            crop_size=[-(-side // STRIDE) * STRIDE for side in recipe.crop_size],
            batch_size=recipe.batch_size,
            scales=(0.5, 1.5),
            seed=seed,
            repeat=True,
        )
        begin, steps = None, 0
        for images, labels in batches.as_numpy_iterator():
            logits, truth = model(tensor(images)), torch.from_numpy(labels).long()
            optimizer.zero_grad()
            (dice(logits, truth) + cross_entropy(logits, truth)).backward()
            optimizer.step()
            steps += 1
            begin = begin or time.perf_counter()
            elapsed = time.perf_counter() - begin
            if elapsed >= seconds:
                break
        scores = kd.metrics.scores(confusion(model.eval()), source.info.classes)
        return Trained(steps, elapsed, scores["mean_iou"], scores["per_class"])

    @torch.no_grad()
    def confusion(model: torch.nn.Module) -> np.ndarray:
        total, classes = 0, source.info.num_classes
        for image, (truth,) in kd.data.evaluation_dataset(source).as_numpy_iterator():
            height, width = truth.shape
            margins = [(0, -height % STRIDE), (0, -width % STRIDE)]
            image = np.pad(image, [(0, 0), *margins, (0, 0)], mode="reflect")
            predicted = model(tensor(image))[0, :, :height, :width].argmax(0).numpy()
            valid = truth != kd.data.IGNORE_LABEL
            total += confusion_matrix(truth[valid], predicted[valid], classes)
        return total

    return train


CONTENDERS: dict[str, Contender] = {
    "deeplab_v3_plus": partial(own, ModelBuilder("deeplab_v3_plus")),
    "unet": partial(own, ModelBuilder("unet")),
    SMP: segmentation_models_pytorch,
}


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="python -m training.accuracy",
        description="Trains DeepLabV3+ and U-Net by the recipe `scratch`, and DeepLabV3+ of "
        "segmentation_models.pytorch by Dice, cross-entropy and Adam, for the same minutes, all "
        "from random weights, and prints the mean IoU on `val`, its deviation over the seeds, "
        "and the IoU of the classes. The same command resumes.",
    )
    add = made.add_argument
    add("--data", default="textures", help=f"{', '.join(DRAWN)}, or as `keras-deeplab train` reads")
    add("--models", **one_of(CONTENDERS), nargs="+", default=tuple(CONTENDERS))
    add("--minutes", type=float, default=5.0, help="of training steps, for each model and seed")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    add("--weights", help="file from which DeepLabV3+ starts in place of random weights")
    add("--output", type=Path, required=True, help="folder of the scores")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    seconds = 60 * kd.validation.positive("--minutes", options.minutes)
    seeds = [kd.validation.integer("--seeds", seed, minimum=0) for seed in options.seeds]
    drawn = DRAWN.get(options.data)
    source = drawn() if drawn else kd.data.open_source(options.data)
    recipe = for_data(
        kd.recipes.get("finetune" if options.weights else "scratch"),
        kd.data.audit(source).splits["train"],
        source.info.classes,
    )
    contenders = dict(CONTENDERS)
    if options.weights:
        pretrained = ModelBuilder("deeplab_v3_plus", weights=options.weights)
        contenders["deeplab_v3_plus"] = partial(own, pretrained)
    arguments = {
        "data_files": source.fingerprint(),
        "minutes": options.minutes,
        "recipe": recipe.to_dict(),
        "weights": options.weights,
    }
    check_same(options.output / "accuracy.json", arguments)
    print(row(["model", "steps", "minutes", "mean IoU", "deviation", *source.info.classes]))
    print(row(["---"] * (5 + source.info.num_classes)), flush=True)
    for name in options.models:
        if name == SMP and importlib.util.find_spec(SMP_MODULE) is None:
            print(row([name, "is not installed"]), flush=True)
            continue
        runs = [options.output / f"{name}-{seed}.json" for seed in seeds]
        train = None
        for seed, path in zip(seeds, runs, strict=True):
            if not path.exists():
                train = train or contenders[name](source, recipe, seconds)
                write_json(path, dataclasses.asdict(train(seed)))
        trained = [read_json(path, "Delete it to train again.") for path in runs]
        print(row([name, *cells(trained)]), flush=True)


def cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The columns of a row, the means of the runs; percent. A class without a score is absent."""
    scores = np.array([run["mean_iou"] for run in runs])
    classes = [[run["per_class"][name] for run in runs] for name in runs[0]["per_class"]]
    present = [[value for value in values if value is not None] for values in classes]
    return [
        f"{np.mean([run['steps'] for run in runs]):.0f}",
        f"{np.mean([run['seconds'] for run in runs]) / 60:.1f}",
        *(f"{100 * value:.1f}" for value in (scores.mean(), scores.std())),
        *(f"{100 * np.mean(values):.1f}" if values else "absent" for values in present),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
