"""A recipe on several folds and seeds: `python -m training.folds --data DATA --folds 0 1`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import keras_deeplab as kd
from keras_deeplab.cli.options import DATA, Parser, command
from keras_deeplab.cli.recipe_options import HINTS, add_builder, add_recipe, open_recipe
from keras_deeplab.files import read_json, write_json
from keras_deeplab.models.multi_scale import with_test_time_augmentation, without_views
from keras_deeplab.trainer.run_folder import RESTORE, RunFolder, differences
from keras_deeplab.validation import error


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        hints=HINTS,
        prog="python -m training.folds",
        description="Trains on the training images without a fold of them, scores on the fold, and "
        "prints mean and standard deviation over folds and seeds. `val` is not used. The same "
        "command resumes.",
    )
    add = made.add_argument
    add("--data", default="shapes", help=DATA)
    parts = {"nargs": "+", "metavar": "FOLD"}
    add("--folds", **parts, required=True, help="0 to 4, or prefixes of names, such as recordings")
    add("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    text = "score one view at each of these scales of the image"
    add("--test-scales", type=float, nargs="+", default=[1.0], metavar="S", help=text)
    add("--output", type=Path, required=True, help="folder of the runs")
    add_builder(made)
    add_recipe(made.add_argument_group("recipe"))
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    source = kd.data.open_source(options.data)
    builder, recipe, _ = open_recipe(options)
    arguments = {
        **builder.to_dict(),
        "data_files": source.fingerprint(),
        "recipe": recipe.to_dict(),
        "steps_per_epoch": options.steps_per_epoch,
    }
    check_same(options.output / "folds.json", arguments)
    rows = []
    print(row(["fold", "seed", *(f"scale {scale:g}" for scale in options.test_scales)]))
    print(row(["---"] * (2 + len(options.test_scales))), flush=True)
    for fold in options.folds:
        part = {"fold": int(fold)} if fold in {*"01234"} else {"prefix": fold}
        held_out = kd.data.HeldOut(source, **part)
        for seed in options.seeds:
            folder = RunFolder(options.output / f"{fold}-{seed}")
            if not folder.metrics.exists():
                kd.fit(
                    builder,
                    held_out,
                    recipe,
                    run_dir=folder.path,
                    steps_per_epoch=options.steps_per_epoch,
                    seed=seed,
                )
            rows.append([score(folder, held_out, scale) for scale in options.test_scales])
            print(row([fold, seed, *(f"{100 * value:.1f}" for value in rows[-1])]), flush=True)
    for name, values in (("mean", np.mean(rows, 0)), ("deviation", np.std(rows, 0))):
        print(row([name, "", *(f"{100 * value:.1f}" for value in values)]))


def check_same(path: Path, arguments: dict[str, Any]) -> None:
    """Raises a ValueError if a folder has runs of other arguments; else writes them there."""
    if not path.exists():
        write_json(path, arguments)
    elif changes := differences(read_json(path, RESTORE), arguments):
        rule = "a new folder, or that of the same recipe and data"
        raise error("--output", rule, str(path.parent), changes)


def score(folder: RunFolder, source: kd.data.HeldOut, scale: float) -> float:
    """Returns the mean IoU of a run's network at a scale, computed once.

    At 1 it is that of the run, but for one of a recipe with `multi_scale`.
    """
    scores = read_json(folder.metrics, RESTORE)
    if scale == 1 and not scores["test_time_augmentation"]:
        return scores["mean_iou"]
    path = folder.path / f"scale_{scale:g}.json"
    if not path.exists():
        model = kd.load_model(folder.best_model, compile=False)
        model = with_test_time_augmentation(without_views(model), [scale])
        report = kd.evaluate(model, kd.data.evaluation_dataset(source), verbose=0)
        write_json(path, report)
    return read_json(path, "Delete it to compute it again.")["mean_iou"]


def row(cells: Sequence[object]) -> str:
    """Returns a row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    raise SystemExit(main())
