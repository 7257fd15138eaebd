"""Runs `keras-deeplab train-classifier` in a clone: `python -m training.train_classifier`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["train-classifier", *sys.argv[1:]]))
