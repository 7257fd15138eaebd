"""Scripts to run in a clone: the commands, the benchmark and the table of models."""

from keras_deeplab_launcher import import_tensorflow

import_tensorflow()
