"""Steps that are not traced."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def eagerly() -> Iterator[None]:
    """Runs steps without tracing them, which takes most of the time of a short run."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Even though")  # data sets are traced all the same
            yield
    finally:
        tf.config.run_functions_eagerly(False)
