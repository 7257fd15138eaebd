"""`keras-deeplab predict --model FILE --images FILES`: label maps and overlays of images."""

from __future__ import annotations

import argparse
from pathlib import Path

import keras_deeplab
from keras_deeplab.cli.options import (
    SIZE,
    Parser,
    add_crf,
    add_model,
    command,
    file_path,
    height_and_width,
    info_of,
    load_model_or_export,
    one_of,
)
from keras_deeplab.crf import RefinedModel, open_crf
from keras_deeplab.prediction import CONFIDENCES, list_images


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        "Writes NAME_labels.png (class numbers) and NAME_overlay.png for each image, "
        "NAME_overlay.mp4 for each video."
    )
    add_model(made, exported=True)
    add_crf(made)
    add = made.add_argument
    add(
        "--images",
        type=file_path,
        nargs="+",
        required=True,
        help="images or videos, or folders of them",
    )
    add("--output", type=file_path, default=Path("predictions"), help="folder to write to")
    add(
        "--window",
        **SIZE,
        help="predict in windows of this size, also images of more than 179 megapixels; default: "
        "the whole image, or windows for which the memory suffices",
    )
    add("--overlap", type=int, help="pixels by which windows overlap; default: up to 128")
    add("--frame-labels", action="store_true", help="write the class numbers of videos too")
    add(
        "--confidence",
        **one_of(CONFIDENCES),
        help="write NAME_confidence.png of images too: white is certain",
    )
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    images = list_images(options.images)  # before the model is loaded
    crf = open_crf(options.crf) if options.crf else None
    model = load_model_or_export(options)
    keras_deeplab.predict_files(
        RefinedModel(model, crf) if crf else model,
        images,
        options.output,
        info_of(options, model),
        window=height_and_width(options.window) if options.window else None,
        overlap=options.overlap,
        frame_labels=options.frame_labels,
        confidence=options.confidence,
    )
    files = f"{len(images)} file{'s' * (len(images) > 1)}"
    print(f"Wrote the predictions of {files} to {options.output}")
