"""Keeps the runtime's start-up chatter out of the commands' output."""

from __future__ import annotations

import os
import re
import sys
import tempfile

# TensorFlow writes these lines before it reads TF_CPP_MIN_LOG_LEVEL (tensorflow issue 100442).
_CHATTER = re.compile(rb"^([IW]\d{4} |WARNING: All log messages before absl::InitializeLog)")


def import_tensorflow() -> None:
    """Imports TensorFlow and looks for devices, passing on errors but not its other messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            lines = [line for line in caught if not _CHATTER.match(line)]
            os.write(2, b"".join(lines))
