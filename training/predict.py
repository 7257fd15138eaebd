"""Runs `keras-deeplab predict` in a clone: `python -m training.predict`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["predict", *sys.argv[1:]]))
