"""Runs `keras-deeplab convert` in a clone."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # as a file, Python sets the folder of the file
    from keras_deeplab_launcher import main

    raise SystemExit(main(["convert", *sys.argv[1:]]))
