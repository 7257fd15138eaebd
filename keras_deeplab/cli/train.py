"""`keras-deeplab train --data FOLDER`: a segmentation model, trained, scored and exported."""

from __future__ import annotations

import argparse
from pathlib import Path

import keras_deeplab
from keras_deeplab import distribution
from keras_deeplab.cli.options import (
    DATA,
    Parser,
    add_test_time_augmentation,
    command,
    file_path,
    one_of,
    positive,
    run_folder,
)
from keras_deeplab.cli.overfit import overfit
from keras_deeplab.cli.recipe_options import HINTS, add_builder, add_recipe, open_recipe
from keras_deeplab.evaluation import scores_table

# The same options of other commands are those of test-time augmentation.
TWO_MEANINGS = {
    name: f"Give --test-{name} for the final model, or --set {name}=VALUE for the training."
    for name in ("scales", "flip")
}


def parser() -> Parser:
    """Returns the parser of the command line."""
    hints = HINTS | TWO_MEANINGS
    made = Parser("Trains a segmentation model, scores it and exports it.", hints)
    add = made.add_argument
    add("--data", default="shapes", help=DATA)
    add_builder(made)
    strategies = one_of(distribution.STRATEGIES)
    add("--distribute", **strategies, default="none", help="see docs/distributed.md")
    add("--seed", type=int, default=0)
    add("--tensorboard", action="store_true", help="write curves and pictures into the run")
    add("--output", type=file_path, help="folder of the run; default: runs/DATA-MODEL-BACKBONE")
    add("--overfit", type=positive, metavar="N", help="only test if the model overfits N images")
    augmentation = made.add_argument_group("test-time augmentation", "Applied to the final model.")
    add_test_time_augmentation(augmentation, "test-")
    add_recipe(made.add_argument_group("recipe", "The hyperparameters of the training."))
    return made


@command(parser)
def main(options: argparse.Namespace) -> int | None:
    """Runs the command."""
    if options.overfit is not None:
        return overfit(options)
    strategy = distribution.open_strategy(options.distribute)
    builder, recipe, _ = open_recipe(options)
    path = run_folder(options, builder.name, builder.backbone or "own")
    try:
        result = keras_deeplab.fit(
            builder,
            options.data,
            recipe,
            run_dir=path,
            steps_per_epoch=options.steps_per_epoch,
            seed=options.seed,
            test_scales=options.test_scales,
            test_flip=options.test_flip,
            tensorboard=options.tensorboard,
            strategy=strategy,
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted: run the same command again to resume {path}.")
        return 130  # the exit status of shells
    if result.scores is not None:
        print(scores_table(result.scores, result.scores["split"]))
        files = result.folder
        paths = (files.best_model, files.saved_model, files.metrics, files.picture, files.report)
        for written in filter(Path.exists, paths):
            print(f"Wrote {written}")
