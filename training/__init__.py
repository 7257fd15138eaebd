"""Command lines: train, evaluate, predict and export."""

import os

# The runtime's own start-up messages would bury ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
