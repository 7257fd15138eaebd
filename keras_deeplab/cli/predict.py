"""`keras-deeplab predict --model FILE --images FILES`: label maps and overlays of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras_deeplab
from keras_deeplab.cli.options import Parser, add_model, command, load_model
from keras_deeplab.prediction import list_images, stored_info


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="keras-deeplab predict",
        description="Writes NAME_labels.png (class numbers) and NAME_overlay.png for each image.",
    )
    add_model(made)
    add = made.add_argument
    add("--images", type=Path, nargs="+", required=True, help="images, or folders of them")
    add("--output", type=Path, default=Path("predictions"), help="folder to write to")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    images = list_images(options.images)  # before the model is loaded
    model = load_model(options)
    info = stored_info(options.model, model.output_shape[-1])
    keras_deeplab.predict_files(model, images, options.output, info)
    print(f"Wrote {len(images)} label maps and overlays to {options.output}")
    return 0
