"""Who may look into whom, and what a plain import does."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_deeplab

PACKAGE = Path(keras_deeplab.__file__).parent

FREE = {"data", "losses", "metrics", "schedules", "labels"}
# A room may look into itself and into these.
ROOMS: dict[str, set[str]] = {
    "layers": set(),
    "graph": {"layers"},
    "backbones": {"layers"},
    "weights": {"backbones", "graph", "layers"},
    "models": {"weights", "backbones", "graph", "layers"},
    "batch_norm": {"graph", "layers"},
