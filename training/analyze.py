"""Runs `keras-deeplab analyze` in a clone: `python -m training.analyze`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["analyze", *sys.argv[1:]]))
