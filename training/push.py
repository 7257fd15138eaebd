"""Runs `keras-deeplab push` in a clone: `python -m training.push`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["push", *sys.argv[1:]]))
