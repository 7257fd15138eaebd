"""`keras-deeplab train-classifier`: an SPP-net trained at several image sizes."""

from __future__ import annotations

import argparse
import tempfile

import keras

import keras_deeplab
from keras_deeplab.cli.options import Parser, command, file_path, one_of, positive, run_folder

# For the generated images, which are small and few; for a folder the paper's sizes and head.
SMALL = {"sizes": [64, 80], "levels": [3, 2, 1], "dense": [256], "dropout": 0.2}
SMALL |= {"batch_size": 16, "epochs": 18, "learning_rate": 1e-3}
PAPER = {"sizes": [180, 224], "levels": [6, 3, 2, 1], "dense": [4096, 4096], "dropout": 0.5}
PAPER |= {"batch_size": 32, "epochs": 60, "learning_rate": 3e-4}


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser("Trains an SPP-net at several image sizes in turn, scores and exports it.")
    made.epilog = f"Defaults for shapes: {SMALL}; for a folder: {PAPER}."
    add = made.add_argument
    add("--data", default="shapes", help="'shapes' or a folder root/{train,val}/CLASS")
    add("--backbone", **one_of(keras_deeplab.backbones.NAMES), default="alexnet")
    add("--sizes", type=positive, nargs="+", help="image sizes to train at")
    add("--test-size", type=positive, help="size not trained at; default: above the largest")
    add("--levels", type=positive, nargs="+", help="bins per side of the pyramid")
    add("--dense", type=positive, nargs="+", help="widths of the dense layers")
    add("--dropout", type=float)
    add("--batch-size", type=positive)
    add("--epochs", type=positive)
    add("--learning-rate", type=float)
    add("--seed", type=int, default=0)
    add("--output", type=file_path, help="folder of the run; default: runs/DATA-spp_net-BACKBONE")
    return made


@command(parser)
def main(options: argparse.Namespace) -> int | None:
    """Runs the command."""
    for name, value in (SMALL if options.data == "shapes" else PAPER).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    sizes = sorted(set(options.sizes))
    run_dir = run_folder(options, "spp_net", options.backbone, resumes=False)
    keras.utils.set_random_seed(options.seed)
    further = options.test_size or sizes[-1] + (sizes[-1] - sizes[0] or sizes[-1] // 4)
    try:
        with tempfile.TemporaryDirectory() as generated:
            root = generated if options.data == "shapes" else options.data
            if options.data == "shapes":
                keras_deeplab.data.write_shape_images(root)
            model = keras_deeplab.SPPNet(
                len(keras_deeplab.data.classification_dataset(root, size=sizes[0]).class_names),
                options.backbone,
                levels=tuple(options.levels),
                dense=tuple(options.dense),
                dropout=options.dropout,
            )
            result = keras_deeplab.fit_classifier(
                model,
                root,
                sizes,
                epochs=options.epochs,
                batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                seed=options.seed,
                test_sizes=[further],
                run_dir=run_dir,
                verbose=2,
            )
    except KeyboardInterrupt:
        print(f"\nInterrupted: {run_dir} cannot be resumed.")
        return 130  # the exit status of shells
    print(f"Wrote {run_dir}. Accuracy on val:")
    for size, value in result.accuracy.items():
        print(f"  {size}x{size}  {value:.3f}" + ("" if size in sizes else "  (not trained at)"))
