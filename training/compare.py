"""Runs `keras-deeplab compare` in a clone: `python -m training.compare`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["compare", *sys.argv[1:]]))
