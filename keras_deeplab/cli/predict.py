"""`keras-deeplab predict --model FILE --images FILES`: label maps and overlays of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras_deeplab
from keras_deeplab.cli.options import Parser, add_model, command, load_model_or_export
from keras_deeplab.evaluation import number_of_classes
from keras_deeplab.prediction import list_images, stored_info


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="keras-deeplab predict",
        description="Writes NAME_labels.png (class numbers) and NAME_overlay.png for each image.",
    )
    add_model(made, exported=True)
    add = made.add_argument
    add("--images", type=Path, nargs="+", required=True, help="images, or folders of them")
    add("--output", type=Path, default=Path("predictions"), help="folder to write to")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    images = list_images(options.images)  # before the model is loaded
    model = load_model_or_export(options)
    info = stored_info(options.model, number_of_classes(model))
    keras_deeplab.predict_files(model, images, options.output, info)
    print(f"Wrote {len(images)} label maps and overlays to {options.output}")
    return 0
