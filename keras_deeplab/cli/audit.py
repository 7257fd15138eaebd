"""`keras-deeplab audit DATA`: every file of a data set checked."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from keras_deeplab import backbones, data, recipes, validation
from keras_deeplab.audit_page import audit_page, faults_page
from keras_deeplab.cli.options import (
    DATA,
    FILE,
    SIZE,
    Parser,
    check_left_out,
    command,
    height_and_width,
    one_of,
    positive,
    write,
)
from keras_deeplab.files import write_json
from keras_deeplab.trainer import MODELS, ModelBuilder, TrainingCost, training_cost


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        "Decodes every image and label map of a data set. Prints sizes, class shares "
        "and probable mistakes, or all errors with their probable causes and exit status 2."
    )
    made.add_argument("data", help=DATA)
    made.add_argument("--splits", nargs="+", help="default: all")
    made.add_argument("--json", **FILE, help="file for all figures, or all errors")
    made.add_argument("--html", **FILE, help="page with pictures, or with all errors")
    text = "measure what a step of training takes with it, by the recipe finetune"
    made.add_argument("--model", **one_of(MODELS), help=text)
    made.add_argument("--backbone", **one_of(backbones.NAMES), help="default: a small one")
    made.add_argument("--crop-size", **SIZE, help="default: from the images")
    made.add_argument("--batch-size", type=positive)
    text = "write the classes and values that were inferred, to be named, as dataset.json"
    made.add_argument("--write-dataset-json", action="store_true", help=text)
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    source = data.open_source(options.data)
    if options.model is None:
        check_left_out(options, ("backbone", "crop_size", "batch_size"), "without --model")
    elif "train" not in (options.splits or source.splits):
        raise validation.error("--model", "left out without train", options.model)
    try:
        report = data.audit(source, options.splits)
    except data.DatasetError as error:
        write(options.json, error.to_dict)
        write(options.html, partial(faults_page, error, options.data))
        raise
    print(report)
    print("All files are valid.")
    if options.model is not None:
        print(_training_cost(options, source, report))
    write(options.json, report.to_dict)
    write(options.html, partial(audit_page, report, source, options.data))
    if options.write_dataset_json:
        print(f"Wrote {_write_settings(source)}")


def _training_cost(
    options: argparse.Namespace, source: data.Source, report: data.Report
) -> TrainingCost:
    builder = ModelBuilder(options.model, backbone=options.backbone)
    recipe = recipes.get("finetune", builder.network)
    if options.crop_size is not None:
        recipe = recipe.replace(crop_size=height_and_width(options.crop_size))
    if options.batch_size is not None:
        recipe = recipe.replace(batch_size=options.batch_size)
    return training_cost(builder, source, report, recipe)


def _write_settings(source: data.Source) -> Path:
    if not isinstance(source, data.Folder):
        raise ValueError("--write-dataset-json is for folders, whose classes are inferred.")
    path = source.root / "dataset.json"
    if path.exists():
        raise FileExistsError(f"{path} exists: change it, or remove it first.")
    code = source.code
    write_json(
        path,
        source.info.to_dict() | {"values": list(code.values), "ignore_label": list(code.ignored)},
    )
    return path
