"""Runs `keras-deeplab` as `python -m keras_deeplab.cli`."""

from keras_deeplab.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
