"""`keras-deeplab train --data FOLDER`: a segmentation model, trained, scored and exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras_deeplab
from keras_deeplab import distribution, names, recipes
from keras_deeplab.cli.options import Parser, add_test_time_augmentation, command, one_of, positive
from keras_deeplab.cli.overfit import overfit
from keras_deeplab.cli.recipe_options import FIELDS, add_recipe, recipe_changes
from keras_deeplab.evaluation import scores_table
from keras_deeplab.trainer import MODELS, ModelBuilder, next_free
from keras_deeplab.trainer.building import PRECISIONS


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        hints={
            **{names.key(field): f"Give it as --set {field}=VALUE." for field in FIELDS},
            "resume": "The same command resumes a run that was stopped.",
        },
        prog="keras-deeplab train",
        description="Trains a segmentation model, scores it and exports it.",
    )
    add = made.add_argument
    add("--data", default="shapes", help="'shapes' or a folder root/{train,val}/{images,labels}")
    add("--model", **one_of(MODELS), help="default: that of --weights, or deeplab_v3_plus")
    backbones = one_of(keras_deeplab.backbones.NAMES)
    add("--backbone", **backbones, help="default: that of --weights, or of the model")
    add("--weights", help="file to start from, or name of published weights, such as imagenet")
    add("--mixed-precision", **one_of(PRECISIONS), help="default: float32")
    strategies = one_of(distribution.STRATEGIES)
    add("--distribute", **strategies, default="none", help="see docs/distributed.md")
    add("--seed", type=int, default=0)
    add("--tensorboard", action="store_true", help="write curves and pictures into the run")
    add("--output", type=Path, help="folder of the run; default: runs/DATA-MODEL-BACKBONE")
    add("--overfit", type=positive, metavar="N", help="only test if the model overfits N images")
    augmentation = made.add_argument_group("test-time augmentation", "Applied to the final model.")
    add_test_time_augmentation(augmentation)
    add_recipe(made.add_argument_group("recipe", "The hyperparameters of the training."))
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    strategy = distribution.open_strategy(options.distribute)
    changes = recipe_changes(options)
    builder = ModelBuilder(
        options.model,
        backbone=options.backbone,
        weights=options.weights,
        mixed_precision=options.mixed_precision,
        arguments=changes.pop("model", None),
    )
    if "output_stride" in changes and not builder.has_output_stride:
        raise ValueError(f"--output-stride: {builder.name} has no output stride to choose.")
    default = "shapes" if options.data == "shapes" else "finetune"
    recipe = recipes.find(options.recipe or default, builder.network).replace(**changes)
    if options.overfit is not None:
        return overfit(options, builder, recipe, changes)
    name = f"{Path(options.data).resolve().name}-{builder.name}-{builder.backbone or 'own'}"
    path = options.output or next_free(Path("runs") / name)
    try:
        result = keras_deeplab.fit(
            builder,
            options.data,
            recipe,
            run_dir=path,
            steps_per_epoch=options.steps_per_epoch,
            seed=options.seed,
            test_scales=options.scales,
            test_flip=options.flip,
            tensorboard=options.tensorboard,
            strategy=strategy,
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted: run the same command again to resume {path}.")
        return 130  # the exit status of shells
    if result.scores is not None:
        print(scores_table(result.scores, result.scores["split"]))
        folder = result.folder
        for file in (folder.best_model, folder.saved_model, folder.metrics, folder.picture):
            print(f"Wrote {file}")
    return 0
