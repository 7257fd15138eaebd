"""`keras-deeplab export --model FILE --output PATH`: an export, compared with the model."""

from __future__ import annotations

import argparse
import logging

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.cli.options import (
    SIZE,
    Parser,
    add_model,
    check_classes,
    command,
    file_path,
    height_and_width,
    info_of,
    load_model,
    one_of,
    positive,
)
from keras_deeplab.export.comparison import LIMITS, scored_split
from keras_deeplab.export.placing import SUFFIXES, checked_target
from keras_deeplab.export.single_file import calibration_split
from keras_deeplab.runtimes import OUTPUTS
from keras_deeplab.validation import error

logger = logging.getLogger(__name__)

FORMATS = ("saved_model", *SUFFIXES)


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser("Writes a model for another runtime after comparing its outputs there.")
    add_model(made)
    add = made.add_argument
    add("--output", type=file_path, required=True, help="folder of a SavedModel, or file to write")
    text = "default: by the ending of --output, else saved_model"
    add("--format", help=text, **one_of(FORMATS))
    add("--precision", help="default: float32; of a SavedModel the model's", **one_of(LIMITS))
    add("--data", help="data set, as of train: mean IoU before and after; calibrates int8")
    add("--outputs", nargs="+", help="default: labels probabilities", **one_of(OUTPUTS))
    add("--image-size", help="of all images; default: any", **SIZE)
    add(
        "--max-pixels",
        type=positive,
        help="largest number of pixels of a request to a SavedModel; default: 2^24, or what the "
        "model's fixed size needs",
    )
    add("--overwrite", action="store_true", help="replace an existing export")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    if options.format is None:
        formats = {suffix: name for name, suffix in SUFFIXES.items()}
        options.format = formats.get(options.output.suffix.lower(), "saved_model")
    if options.max_pixels is not None and options.format != "saved_model":
        raise error("--max-pixels", "left out except for a SavedModel", options.max_pixels)
    if options.precision == "int8" and options.data is None:
        raise error("--data", "a folder of images for int8, to calibrate on", None)
    checked_target(options.output, SUFFIXES.get(options.format), options.overwrite)
    source = None if options.data is None else data.open_source(options.data)
    if source is not None:
        read = [scored_split(source)]
        if options.precision == "int8":
            read.append(calibration_split(source))
        data.audit(source, list(dict.fromkeys(read)))
    model = load_model(options)
    if source is None:
        info = info_of(options, model)
        if info is None:
            logger.warning(
                "The export has no class names: there is no dataset.json beside the model that "
                "fits it."
            )
    else:
        info = check_classes(options, model, source.info.classes) or source.info
    settings = {
        "precision": options.precision,
        "outputs": options.outputs,
        "info": info,
        "image_size": options.image_size and height_and_width(options.image_size),
        "source": source,
        "max_pixels": options.max_pixels,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    write = getattr(keras_deeplab.export, options.format)
    path = write(model, options.output, overwrite=options.overwrite, **given)
    print(f"Wrote {path}")
