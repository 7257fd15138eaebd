"""Runs `keras-deeplab prepare` in a clone: `python -m training.prepare`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare", *sys.argv[1:]]))
