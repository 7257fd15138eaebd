"""Runs `keras-deeplab convert` in a clone: `python -m training.convert`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["convert", *sys.argv[1:]]))
