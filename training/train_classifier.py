"""Trains an SPP-net on images with one class each: `python -m training.train_classifier`."""

from __future__ import annotations

import argparse
import csv
import functools
import math
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, for which Python looks for packages beside it alone
    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module("training.train_classifier", run_name="__main__")

import keras
import numpy as np
import tensorflow as tf

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.cli.options import Parser, command, one_of, positive, positive_float
from keras_deeplab.files import atomic_write, full_disk_named, stored_bytes, write_json
from keras_deeplab.trainer.run_folder import RunFolder, next_free

Classes = data.ShapeClasses | data.ClassFolders
# For the embedded pictures, which are small and few; for a folder the paper's sizes and head.
DEFAULTS = {
    "sizes": ([64, 80], [180, 224]),
    "levels": ([3, 2, 1], [6, 3, 2, 1]),
    "dense": ([256], [4096, 4096]),
    "dropout": (0.2, 0.5),
    "batch_size": (16, 32),
    "epochs": (18, 60),
    "learning_rate": (1e-3, 3e-4),
}
TOLERANCE = 1e-4  # of a probability of the exported model


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        formatter_class=argparse.HelpFormatter,
        prog="python -m training.train_classifier",
        description="Trains an SPP-net at several image sizes in turn, one epoch each, scores it "
        "at these and at another size, and exports it.",
    )
    add = made.add_argument
    add("--data", default="shapes", help="'shapes' (default) or a folder root/{train,val}/CLASS")
    add("--backbone", **one_of(keras_deeplab.backbones.NAMES), default="alexnet")
    add("--sizes", type=positive, nargs="+", help=f"sizes to train at; {_default('sizes')}")
    add("--test-size", type=positive, help="default: as far above the sizes as they are apart")
    add("--levels", type=positive, nargs="+", help=f"bins per side; {_default('levels')}")
    add("--dense", type=positive, nargs="+", help=f"dense layers; {_default('dense')}")
    add("--dropout", type=float, help=_default("dropout"))
    add("--batch-size", type=positive, help=_default("batch_size"))
    add("--epochs", type=positive, help=_default("epochs"))
    add("--learning-rate", type=positive_float, help=_default("learning_rate"))
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="new folder of the run; default: runs/DATA-spp_net-BACKBONE")
    return made


def _default(option: str) -> str:
    shapes, folder = (str(value).strip("[]").replace(",", "") for value in DEFAULTS[option])
    return f"default: {shapes} for shapes, {folder} for a folder"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    complete(options)
    source = open_classes(options.data)
    folder = RunFolder(output_folder(options))
    folder.check_empty()  # before the model is built
    keras.utils.set_random_seed(options.seed)
    model = keras_deeplab.SPPNet(
        len(source.classes),
        options.backbone,
        levels=tuple(options.levels),
        dense=tuple(options.dense),
        dropout=options.dropout,
    )
    folder.claim(folder.check_empty)
    try:
        print(f"Writing to {folder.path}")
        with full_disk_named(folder.path):
            write_json(folder.arguments, {**vars(options), "output": str(folder.path)})
            write_json(folder.dataset, {"classes": list(source.classes)})
            train(model, source, options, folder)
            finish(source, options, folder)
        folder.done()
    finally:
        folder.unlock()
    return 0


def complete(options: argparse.Namespace) -> None:
    """Fills in the options whose defaults depend on the data."""
    for name, (shapes, folder) in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, shapes if options.data == "shapes" else folder)
    options.sizes = sorted(set(options.sizes))
    if len(options.sizes) < 2:
        raise ValueError(f"--sizes must be two or more sizes, received {options.sizes}.")
    if options.test_size is None:
        options.test_size = 2 * options.sizes[-1] - options.sizes[0]
    if options.test_size in options.sizes:
        raise ValueError(
            f"--test-size must be none of the sizes {options.sizes}, received {options.test_size}."
        )


def open_classes(name: str) -> Classes:
    """The embedded pictures, or a folder after all of its images were looked at."""
    if name == "shapes":
        return data.ShapeClasses()
    source = data.ClassFolders(name)
    for split, images in source.audit().items():
        print(f"{split}: " + ", ".join(f"{count} {name}" for name, count in images.items()))
    return source


def output_folder(options: argparse.Namespace) -> Path:
    """The folder asked for, or else the next free one."""
    name = f"{Path(options.data).resolve().name}-spp_net-{options.backbone}"
    return options.output or next_free(Path("runs") / name)


def batches(source: Classes, options: argparse.Namespace) -> Callable[..., tf.data.Dataset]:
    """What gives a split at a size."""
    shared = {"batch_size": options.batch_size, "seed": options.seed}
    return functools.partial(data.classification_dataset, source, **shared)


def train(
    model: keras.Model, source: Classes, options: argparse.Namespace, folder: RunFolder
) -> None:
    """One epoch at one size, the next at the next one, with one optimizer; keeps the last model."""
    at = batches(source, options)
    images = {size: at("train", size=size, training=True) for size in options.sizes}
    validation = {size: at("val", size=size) for size in options.sizes}
    compile_model(model, options, steps=int(images[options.sizes[0]].cardinality()))
    one_epoch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: setattr(model, "stop_training", True)
    )
    rows = []
    for epoch in range(options.epochs):
        size = options.sizes[epoch % len(options.sizes)]
        print(f"at {size}x{size}:", end=" ")
        log = model.fit(
            images[size],
            validation_data=validation[size],
            initial_epoch=epoch,
            epochs=options.epochs,
            callbacks=[one_epoch, keras.callbacks.TerminateOnNaN()],
            shuffle=False,  # the data set shuffles itself
            verbose=2,
        ).history
        rows.append({"epoch": epoch, "size": size, **{key: log[key][-1] for key in log}})
        if not math.isfinite(rows[-1]["loss"]):
            raise ValueError(
                f"the loss became {rows[-1]['loss']} in epoch {epoch + 1}. Start again with a "
                "smaller --learning-rate and another --output."
            )
        write_table(folder.history, rows)
        with atomic_write(folder.best_model, stored_bytes(model)) as aside:
            model.save(aside)


def compile_model(model: keras.Model, options: argparse.Namespace, steps: int) -> None:
    """Optimizer and loss for the whole run, of so many steps an epoch."""
    steps *= options.epochs
    schedule = keras_deeplab.schedules.PolynomialDecay(
        options.learning_rate, total_steps=steps, warmup_steps=min(200, steps // 10)
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=5.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    # Without its variables the optimizer makes them in the first step, which is then traced twice.
    model.optimizer.build(model.trainable_variables)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows of equal keys as CSV."""
    with atomic_write(path) as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def finish(source: Classes, options: argparse.Namespace, folder: RunFolder) -> None:
    """Scores the model that was written, at every size, and exports it."""
    model = keras_deeplab.load_model(folder.best_model)
    at = batches(source, options)
    validation = {size: at("val", size=size) for size in [*options.sizes, options.test_size]}
    accuracy = {
        size: model.evaluate(images, return_dict=True, verbose=0)["accuracy"]
        for size, images in validation.items()
    }
    print(scores_table(model, options, accuracy, len(source.names("val"))))
    export(model, folder.saved_model, [next(iter(v))[0] for v in validation.values()])
    write_json(
        folder.metrics,
        {
            "split": "val",
            "images": len(source.names("val")),
            "classes": list(source.classes),
            "sizes": options.sizes,
            "test_size": options.test_size,
            "accuracy": {str(size): value for size, value in accuracy.items()},
        },
    )
    print(f"Scored and exported; see {folder.path}:")
    for path in (folder.best_model, folder.saved_model, folder.metrics, folder.history):
        print(f"  {path}")


def scores_table(
    model: keras.Model, options: argparse.Namespace, accuracy: dict[int, float], images: int
) -> str:
    """What each size becomes in front of the dense layers, and how well they do with it."""
    pooled = model.get_layer("spatial_pyramid").output.shape[-1]
    dense = sum(
        layer.count_params() for layer in model.layers if isinstance(layer, keras.layers.Dense)
    )
    lines = [f"Accuracy on the {images} images of val:", "  image    map    pooled  accuracy"]
    for size, value in accuracy.items():
        found = keras_deeplab.graph.geometry(model, size, size)["backbone"].size
        image, features = (f"{height}x{width}" for height, width in ((size, size), found))
        new = "" if size in options.sizes else "  (not trained at)"
        lines.append(f"  {image:<8} {features:<6} {pooled:<7} {value:.3f}{new}")
    return "\n".join([*lines, f"One dense head of {dense:,} weights served all sizes."])


def export(model: keras.Model, path: Path, examples: Sequence[np.ndarray]) -> None:
    """Writes a SavedModel aside, holds its answers against the model's and puts it in place."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        model.export(aside, verbose=False)
        served = tf.saved_model.load(str(aside))
        for images in examples:
            expected, found = (tf.nn.softmax(f(images)) for f in (model, served.serve))
            difference = np.abs(found - expected).max()
            if not difference <= TOLERANCE:  # true for NaN
                raise keras_deeplab.export.ExportError(
                    f"{path}: at {images.shape[1]}x{images.shape[2]} probabilities differ from the "
                    f"model's by up to {difference:.3g}, more than {TOLERANCE:g}"
                )
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
