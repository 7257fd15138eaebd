"""Starts `keras-deeplab` without the messages that TensorFlow prints when it is imported.

It is outside the package, because importing any module of the package imports TensorFlow.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence

# TensorFlow writes these lines before it reads TF_CPP_MIN_LOG_LEVEL (tensorflow issue 100442).
_MESSAGES = re.compile(rb"^([IW]\d{4} |WARNING: All log messages before absl::InitializeLog)")


def import_tensorflow() -> None:
    """Imports TensorFlow and lists the devices; of the messages only errors are printed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured:
        stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            os.write(2, b"".join(line for line in captured if not _MESSAGES.match(line)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `keras-deeplab`."""
    import_tensorflow()
    from keras_deeplab.cli.main import main

    return main(argv)
