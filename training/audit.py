"""Runs `keras-deeplab audit` in a clone: `python -m training.audit`."""

import sys

from keras_deeplab_launcher import main

if __name__ == "__main__":
    raise SystemExit(main(["audit", *sys.argv[1:]]))
