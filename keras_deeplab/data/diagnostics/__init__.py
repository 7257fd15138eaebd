"""Mistakes in data sets that a check of label values cannot see.

`evidence` gathers facts in one pass, `detectors` draws conclusions from them, and the other modules
measure: `structure` label maps, `alignment` pairs, `data.difference_hash` images.
"""

from __future__ import annotations

from keras_deeplab.data.diagnostics.detectors import findings
from keras_deeplab.data.diagnostics.evidence import Evidence, look_closely
from keras_deeplab.data.diagnostics.finding import Finding

__all__ = ["Evidence", "Finding", "findings", "look_closely"]
