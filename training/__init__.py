"""Command lines: train, evaluate, predict and export."""

from training.quiet import import_tensorflow

import_tensorflow()
