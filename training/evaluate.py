"""Scores a model on a labelled split: `python -m training.evaluate --model FILE --data FOLDER`."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, for which Python looks for packages beside it alone
    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module("training.evaluate", run_name="__main__")

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.cli.options import (
    Parser,
    add_views,
    command,
    innermost,
    load_model,
    positive,
    scores_table,
    views,
    with_views,
)
from keras_deeplab.files import write_json


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="python -m training.evaluate",
        description="Scores a model on whole images at their own size.",
    )
    add = made.add_argument
    add("--model", type=Path, required=True, help=".keras file")
    add("--data", default="shapes", help="'shapes' or a folder root/{train,val}/{images,labels}")
    add("--split", default="val", help="train, val or test")
    add("--output-stride", type=positive, help="default: the model's own")
    add_views(made)
    add("--boundary", action="store_true", help="scores the pixels along boundaries too")
    add("--output", type=Path, help="folder for metrics.json; default: beside the model")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    source = data.open_source(options.data)
    data.audit(source, [options.split])
    model = load_model(options.model, options.output_stride)
    classes = source.info.classes
    if model.output_shape[-1] != len(classes):
        raise ValueError(
            f"{options.model} predicts {model.output_shape[-1]} classes, but {options.data} has "
            f"{len(classes)}: {', '.join(classes)}."
        )
    model = with_views(model, options.scales, options.flip)
    dataset = data.evaluation_dataset(source, options.split, cache=False)  # read once
    report = keras_deeplab.evaluate(
        model,
        dataset,
        class_names=classes,
        boundary=options.boundary,
    )
    how = {
        "split": options.split,
        "output_stride": getattr(innermost(model), "output_stride", None),
        "views": views(model),
    }
    default = options.model.parent / f"evaluation-{options.split}"
    path = (options.output or default) / "metrics.json"
    write_json(path, {**how, **report})
    print(scores_table(report, options.split))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
