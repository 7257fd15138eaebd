"""`keras-deeplab evaluate --model FILE --data FOLDER`: scores of a model on a labelled split."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.calibration import write_calibrated
from keras_deeplab.cli.options import (
    DATA,
    FILE,
    Parser,
    add_crf,
    add_model,
    check_classes,
    check_left_out,
    command,
    file_path,
    load_model_or_export,
    positive,
    write,
)
from keras_deeplab.crf import PRESETS, RefinedModel, open_crf
from keras_deeplab.evaluation import prediction_settings, scores_table, search_crf
from keras_deeplab.evaluation_page import evaluation_page
from keras_deeplab.files import read_json_object, write_json
from keras_deeplab.prediction import stored_info
from keras_deeplab.runtimes import ExportedModel
from keras_deeplab.validation import error
from keras_deeplab.weights.hub import is_address


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser("Computes the scores of a model on whole images at their own size.")
    add_model(made, exported=True)
    add_crf(made)
    add = made.add_argument
    add("--data", default="shapes", help=DATA)
    add("--split", default="val", help="train, val or test")
    add("--boundary", action="store_true", help="compute scores along boundaries too")
    add(
        "--search-crf",
        type=positive,
        metavar="N",
        help="search the constants of a dense CRF on the first N images of the split, write them "
        "to crf.json for --crf, and compute the scores with it on the others",
    )
    add("--calibration", action="store_true", help="compute the calibration error too")
    add("--html", **FILE, help="write a page with the worst images first")
    add(
        "--calibrate",
        **FILE,
        help="fit a temperature on the split, write the calibrated model (.keras), and evaluate it",
    )
    add("--overwrite", action="store_true", help="replace an existing file of --calibrate")
    add(
        "--output",
        type=file_path,
        help="folder for metrics.json; default: evaluation-SPLIT beside the model's file",
    )
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    crf = open_crf(options.crf) if options.crf else None
    if options.search_crf and options.html:
        raise ValueError("--html is for whole splits: use --crf with the file of --search-crf.")
    if options.calibrate and options.calibrate.exists() and not options.overwrite:
        advice = "Use --overwrite to replace it."
        raise error("--calibrate", "a new file", str(options.calibrate), advice)
    if options.calibrate and options.calibrate.suffix != ".keras":
        raise error("--calibrate", "a path that ends in .keras", str(options.calibrate))
    source = data.open_source(options.data)
    data.audit(source, [options.split])
    beside = Path() if is_address(options.model) else options.model.parent
    folder = options.output or beside / f"evaluation-{options.split}"
    model = load_model_or_export(options)
    if isinstance(model, ExportedModel):
        check_left_out(options, ("calibrate",), "for an export: export the calibrated .keras file")
    check_classes(options, model, source.info.classes)
    if options.calibrate:
        stored = stored_info(options.calibrate)
        if stored is not None and stored.classes != source.info.classes:
            rule = "in a folder without the dataset.json of other classes"
            raise error("--calibrate", rule, str(options.calibrate))
    folder.mkdir(parents=True, exist_ok=True)  # an error now, not after the work
    dataset = data.evaluation_dataset(source, options.split, cache=False)  # read once or twice
    names = source.names(options.split)
    if options.calibrate:
        write_calibrated(model, dataset, options.calibrate)
        classes = options.calibrate.with_name("dataset.json")
        if not classes.exists():
            write_json(classes, source.info.to_dict())
    if options.search_crf:
        found = search_crf(model, dataset, options.search_crf, crf or PRESETS["v2"])
        crf = found.best
        print(found)
        write(folder / "crf.json", crf.to_dict)
        dataset, names = dataset.skip(options.search_crf), names[options.search_crf :]
    model = RefinedModel(model, crf) if crf else model
    report = keras_deeplab.evaluate(
        model,
        dataset,
        class_names=source.info.classes,
        boundary=options.boundary,
        calibration=options.calibration or bool(options.calibrate or options.html),
        confusion=bool(options.html),
        image_names=names,
    )
    path = folder / "metrics.json"
    used = {"model": str(options.model), "data": options.data, "split": options.split}
    settings = json.loads(json.dumps(prediction_settings(model)))
    print(scores_table(report, options.split))
    old: dict[str, Any] = {}
    if path.is_file():
        with suppress(ValueError):  # a damaged file is replaced without a word
            old = read_json_object(path)
    others = any(key in old and old[key] != value for key, value in used.items())
    if others or any(old.get(key) != settings.get(key) for key in (*settings, "crf") if old):
        at = "" if others else " at other settings"
        print(f"Replacing the scores of {', '.join(str(old.get(key)) for key in used)}{at}")
    write(path, lambda: {**used, **settings, **report})
    page = partial(evaluation_page, report, model, source, options.split, options.model.name)
    write(options.html, page)
