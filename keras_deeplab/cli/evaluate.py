"""`keras-deeplab evaluate --model FILE --data FOLDER`: scores of a model on a labelled split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.cli.options import Parser, add_model, command, load_model_or_export
from keras_deeplab.evaluation import number_of_classes, prediction_settings, scores_table
from keras_deeplab.files import write_json


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="keras-deeplab evaluate",
        description="Computes the scores of a model on whole images at their own size.",
    )
    add_model(made, exported=True)
    add = made.add_argument
    add("--data", default="shapes", help="'shapes' or a folder root/{train,val}/{images,labels}")
    add("--split", default="val", help="train, val or test")
    add("--boundary", action="store_true", help="compute scores along boundaries too")
    add("--output", type=Path, help="folder for metrics.json; default: beside the model")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    source = data.open_source(options.data)
    data.audit(source, [options.split])
    model = load_model_or_export(options)
    classes, predicted = source.info.classes, number_of_classes(model)
    if predicted != len(classes):
        raise ValueError(
            f"{options.model} predicts {predicted} classes, but {options.data} has "
            f"{len(classes)}: {', '.join(classes)}."
        )
    report = keras_deeplab.evaluate(
        model,
        data.evaluation_dataset(source, options.split, cache=False),  # read once
        class_names=classes,
        boundary=options.boundary,
    )
    folder = options.output or options.model.parent / f"evaluation-{options.split}"
    path = folder / "metrics.json"
    write_json(path, {"split": options.split, **prediction_settings(model), **report})
    print(scores_table(report, options.split))
    print(f"Wrote {path}")
    return 0
