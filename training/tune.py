"""Runs `keras-deeplab tune` in a clone: `python -m training.tune`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["tune", *sys.argv[1:]]))
