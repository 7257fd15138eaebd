"""Runs `keras-deeplab card` in a clone: `python -m training.card`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["card", *sys.argv[1:]]))
