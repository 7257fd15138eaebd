"""Runs `keras-deeplab train` in a clone: `python -m training.train`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
