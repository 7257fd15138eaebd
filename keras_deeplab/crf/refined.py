"""A segmentation model with a dense CRF after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deeplab.crf.dense_crf import DenseCRF, bytes_per_pixel
from keras_deeplab.labels import label_dtype
from keras_deeplab.validation import error


@dataclass(frozen=True)
class RefinedModel:
    """A model whose probabilities are refined by a CRF, for `predict`, `predict_files`, `evaluate`.

    A large image is refined in the windows in which it is predicted.

    Args:
        model: Segmentation model on pixels in 0..255, or an export with probabilities or logits
            that `runtimes.open_exported` opened.
        crf: The CRF.

    Example:

    >>> refined = keras_deeplab.crf.RefinedModel(model, keras_deeplab.crf.DenseCRF())
    >>> keras_deeplab.predict(refined, "street.jpg").shape
    (360, 480)
    """

    model: Any  # or its compiled functions, which have the methods below
    crf: DenseCRF

    def __post_init__(self) -> None:
        if not isinstance(self.crf, DenseCRF):
            raise error("crf", "a DenseCRF, such as PRESETS['v2']", self.crf)
        if isinstance(self.model, RefinedModel):
            raise error("model", "without a CRF", self.model)

    def probabilities(self, pixels: Any) -> np.ndarray:
        """Returns probabilities `(batch, height, width, num_classes)`, float32."""
        return self.crf(np.asarray(pixels), np.asarray(self.model.probabilities(pixels)))

    def labels(self, pixels: Any) -> np.ndarray:
        """Returns labels `(batch, height, width)`."""
        found = self.probabilities(pixels)
        return found.argmax(-1).astype(label_dtype(found.shape[-1]).as_numpy_dtype)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """That of an export."""
        return getattr(self.model, "value_range", None)

    @property
    def bytes_per_pixel(self) -> int:
        """About the memory of a prediction."""
        spec, num_classes = self.model.spec
        return max(self.model.bytes_per_pixel, bytes_per_pixel(spec.shape[-1], num_classes))
