"""Runs `keras-deeplab evaluate` in a clone: `python -m training.evaluate`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
