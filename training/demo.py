"""Runs `keras-deeplab demo` in a clone: `python -m training.demo`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", *sys.argv[1:]]))
