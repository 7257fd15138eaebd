"""Trains a segmentation model: `python -m training.train --data FOLDER`."""

import runpy
import sys
from pathlib import Path

if not __package__:  # run as a file, for which Python looks for packages beside it alone
    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module("training.train", run_name="__main__")

from keras_deeplab.cli.train import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    raise SystemExit(main())
