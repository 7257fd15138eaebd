"""Runs `keras-deeplab export` in a clone: `python -m training.export`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["export", *sys.argv[1:]]))
