"""`keras-deeplab tune --data FOLDER --minutes N`: a search of the recipe's values."""

from __future__ import annotations

import argparse
import shlex

import keras_deeplab
from keras_deeplab.cli.options import DATA, Parser, command, file_path, positive, run_folder
from keras_deeplab.cli.recipe_options import HINTS, add_builder, add_recipe, open_recipe
from keras_deeplab.trainer.tuning import RESULT


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        "Searches learning rate, crop size, scales, class weights and loss by short "
        "trainings, scored on a fifth of the training images. The same command resumes a search.",
        HINTS,
    )
    add = made.add_argument
    add("--data", default="shapes", help=DATA)
    add("--minutes", type=positive, required=True, help="of the whole search")
    add("--output", type=file_path, help="default: runs/DATA-MODEL-BACKBONE-tuning")
    add("--seed", type=int, default=0)
    add_builder(made)
    group = made.add_argument_group("recipe", "The values that the search begins with.")
    add_recipe(group, steps_per_epoch=False)
    return made


@command(parser)
def main(options: argparse.Namespace) -> int | None:
    """Runs the command."""
    builder, recipe, _ = open_recipe(options)
    folder = run_folder(options, builder.name, f"{builder.backbone or 'own'}-tuning")
    try:
        result = keras_deeplab.tune(
            builder,
            options.data,
            recipe,
            minutes=options.minutes,
            output=folder,
            seed=options.seed,
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted: run the same command again to resume {folder}.")
        return 130  # the exit status of shells
    print(result)
    if result.trials[0].values != result.baseline.values:
        print(f"Train with --recipe {shlex.quote(str(folder / RESULT))}")
    else:
        print("No values were better than those of the recipe.")
