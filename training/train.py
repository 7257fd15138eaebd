"""Trains a DeepLab: `python -m training.train --data FOLDER`."""

from __future__ import annotations

import argparse
import inspect
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_deeplab
from keras_deeplab import data
from training.files import write_json, write_png
from training.options import (
    MODELS,
    command,
    positive,
    positive_float,
    scores_table,
)
from training.run_folder import KeepModels, RunFolder, next_free

LARGEST_CROP = 513
# Backbones that a dense head would outweigh.
LIGHT = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
OWN_BACKBONES = {"deeplab_v1": "vgg16", "unet": None}
# Backbones without batch norm, which take smaller steps only.
NORM_FREE = ("vgg16", None)
PICTURES = 6
UNFOLDING_BATCHES = 8


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Trains a segmentation model, scores it and exports it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--data", default="shapes", help="'shapes' or a folder root/{train,val}/{images,labels}")
    add("--model", choices=sorted(MODELS), help="default: what --weights holds, or deeplab_v3_plus")
    add(
        "--backbone",
        choices=keras_deeplab.backbones.NAMES,
        help="default: that of --weights, or mobilenet_v2, for deeplab_v1 vgg16, for unet its own "
        "network",
    )
    add(
        "--output-stride",
        type=positive,
        help="default: that of --weights, or 16, for deeplab_v1 and deeplab_v2 8",
    )
    add("--crop-size", type=positive, nargs=2, metavar=("H", "W"), help="default: from the images")
    add("--batch-size", type=positive, default=8)
    add("--epochs", type=positive, help="default: 5 for shapes, 40 for a folder")
    add("--steps-per-epoch", type=positive, help="default: all images once")
    add("--learning-rate", type=positive_float, help="default: by data and backbone, 3e-4 to 6e-3")
    add(
        "--weights",
        help="file to start from, in any format of keras_deeplab.weights.load, or the name of "
        "published weights, such as imagenet",
    )
    add("--mixed-precision", choices=("bfloat16", "float16"), help="default: float32")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="folder of the run; default: runs/DATA-MODEL-BACKBONE")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    source = data.open_source(options.data)
    source.check_split("train")
    report = data.audit(source)
    print(report)
    weights = start(options)
    complete(options, report)
    keras.utils.set_random_seed(options.seed)
    model = build(options, source.info, weights)
    name = f"{Path(options.data).resolve().name}-{options.model}-{options.backbone or 'own'}"
    folder = RunFolder(options.output or next_free(Path("runs") / name))
    epochs_done = folder.begin(run_arguments(options))
    write_json(folder.dataset, source.info.to_dict())
    print(f"{'Going on with' if epochs_done else 'Writing to'} {folder.path}")

    train = data.training_dataset(
        source,
        crop_size=options.crop_size,
        batch_size=options.batch_size,
        scales=options.scales,
        color_jitter=options.color_jitter,
        seed=options.seed + epochs_done,  # a run that goes on does not see its first epoch again
        repeat=options.steps_per_epoch is not None,
    )
    if weights is not None and weights.folded:
        count = keras_deeplab.weights.unfold_batch_norms(model, train.take(UNFOLDING_BATCHES))
        print(f"{count} batch norms had been folded away: they took statistics from the data")
    steps = options.steps_per_epoch or int(train.cardinality())
    model.compile(
        keras.optimizers.AdamW(
            keras_deeplab.schedules.PolynomialDecay(
                options.learning_rate,
                total_steps=steps * options.epochs,
                warmup_steps=min(100, steps * options.epochs // 10),
            ),
            weight_decay=1e-4,
            global_clipnorm=5.0,
        ),
        loss=keras_deeplab.losses.CrossEntropy(),
        metrics=[
            keras_deeplab.metrics.SegmentationMetrics(source.info.num_classes, source.info.classes)
        ],
    )
    # Without its variables the optimizer makes them in the first step, which is then traced twice.
    model.optimizer.build(model.trainable_variables)
    model.fit(
        train,
        validation_data=validation(source, report),
        epochs=options.epochs,
        steps_per_epoch=options.steps_per_epoch,
        callbacks=[
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.CSVLogger(folder.history, append=epochs_done > 0),
            KeepModels(folder),
            # Kept until the run is scored and exported, which may fail or be stopped too.
            keras.callbacks.BackupAndRestore(
                folder.backup, double_checkpoint=True, delete_checkpoint=False
            ),
        ],
        shuffle=False,  # the data set shuffles itself
    )
    finish(folder, source)
    return 0


def start(options: argparse.Namespace) -> keras_deeplab.weights.Source | None:
    """The weights to start from; model and backbone are those that they want, unless given."""
    names = {model.__name__: name for name, model in MODELS.items()}
    source, has_network = None, False
    if options.weights is not None and not options.weights.endswith(".weights.h5"):
        backbone = options.backbone or OWN_BACKBONES.get(options.model, "mobilenet_v2")
        name = MODELS[options.model].__name__ if options.model else None
        source = keras_deeplab.weights.open_source(options.weights, name, backbone)
        options.model = options.model or names.get(source.model)
        options.backbone = options.backbone or source.backbone
        # One that is no backbone by name comes with the weights of a model of this class.
        has_network = source.backbone is None and names.get(source.model, "") == options.model
    options.model = options.model or "deeplab_v3_plus"
    if options.backbone is None and not has_network:
        options.backbone = OWN_BACKBONES.get(options.model, "mobilenet_v2")
    return source


def complete(options: argparse.Namespace, report: data.Report) -> None:
    """Fills in the options whose defaults depend on the data."""
    is_shapes = options.data == "shapes"
    options.epochs = options.epochs or (5 if is_shapes else 40)
    rate = 3e-4 if options.backbone in NORM_FREE else 6e-3 if is_shapes else 1e-3
    options.learning_rate = options.learning_rate or rate
    # `shapes` are drawn in all sizes and colours: changing them further only costs time.
    options.scales = (1.0, 1.0) if is_shapes else (0.5, 2.0)
    options.color_jitter = None if is_shapes else 0.2
    if options.crop_size is None:
        part = report.splits["train"]
        middle = [(low + high) // 2 for low, high in zip(part.smallest, part.largest, strict=True)]
        options.crop_size = [min(side, LARGEST_CROP) for side in middle]


def run_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The options as JSON, without the place they are written to."""
    plain = {key: str(v) if isinstance(v, Path) else v for key, v in vars(options).items()}
    plain["scales"] = list(plain["scales"])
    plain["data"] = os.path.normpath(plain["data"])
    del plain["output"]
    return plain


def build(
    options: argparse.Namespace,
    info: data.DatasetInfo,
    source: keras_deeplab.weights.Source | None,
) -> keras.Model:
    """The model, with the weights it is to start from."""
    model_class = MODELS[options.model]
    known = inspect.signature(model_class).parameters
    arguments: dict[str, Any] = {}
    if options.mixed_precision is not None:
        arguments["dtype"] = f"mixed_{options.mixed_precision}"
    if "separable" in known and (source is None or source.model != model_class.__name__):
        arguments["separable"] = options.backbone in LIGHT
    if options.output_stride is not None:
        if "output_stride" not in known:
            raise ValueError(
                f"--output-stride: {options.model} has none to set, received "
                f"{options.output_stride}."
            )
        arguments["output_stride"] = options.output_stride
    if options.backbone is not None:
        arguments["backbone"] = options.backbone
    model = model_class(info.num_classes, weights=source, **arguments)
    if options.weights is not None and source is None:
        keras_deeplab.weights.load(model, options.weights)
    return model


def validation(source: data.Source, report: data.Report) -> Any:
    """Whole validation images, some at a time where all have one size and are not too large."""
    if "val" not in source.splits:
        return None
    part = report.splits["val"]
    fitting = 4 * LARGEST_CROP**2 // (part.largest[0] * part.largest[1])
    same_size = part.smallest == part.largest
    return data.evaluation_dataset(source, batch_size=max(1, min(4, fitting)) if same_size else 1)


def finish(folder: RunFolder, source: data.Source) -> None:
    """Scores the best model, on images it was not trained on if there are any; exports it."""
    start = time.perf_counter()
    split = "val" if "val" in source.splits else "train"
    model = keras.models.load_model(folder.best_model, compile=False)
    dataset = data.evaluation_dataset(source, split)
    report = keras_deeplab.evaluate(model, dataset, class_names=source.info.classes)
    print(scores_table(report, split))
    if split == "train":
        print("There is no val split: these are scores on the images it was trained on.")
    write_png(folder.picture, pictures(model, dataset, source.info))
    keras_deeplab.export.saved_model(model, folder.saved_model, overwrite=True)
    write_json(folder.metrics, {"split": split, **report})
    folder.done()
    print(f"Scored and exported in {time.perf_counter() - start:.0f} s; see {folder.path}:")
    for path in (folder.best_model, folder.saved_model, folder.metrics, folder.picture):
        print(f"  {path}")


def pictures(model: keras.Model, dataset: Any, info: data.DatasetInfo) -> np.ndarray:
    """A few photographs of a data set beside truth and prediction."""
    count = int(dataset.cardinality())
    every = max(1, count // PICTURES)
    chosen = [
        (np.uint8(images[0]), labels[0])
        for images, labels in dataset.shard(every, 0).take(PICTURES).as_numpy_iterator()
    ]
    return keras_deeplab.comparison_picture(
        [image for image, _ in chosen],
        [label for _, label in chosen],
        [keras_deeplab.predict(model, image) for image, _ in chosen],
        info.classes,
        info.colors,
    )


if __name__ == "__main__":
    raise SystemExit(main())
