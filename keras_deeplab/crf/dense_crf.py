"""Mean-field inference in a fully connected CRF over the pixels of an image."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import sparse

from keras_deeplab.crf.permutohedral import PermutohedralLattice
from keras_deeplab.crf.row_blocks import RowBlocks
from keras_deeplab.files import read_json
from keras_deeplab.validation import error, integer, non_negative, one_of, positive

# Below it, classes that the network excludes would need infinite energies; pydensecrf's value.
SMALLEST_PROBABILITY = 1e-5

# Beyond them float32 overflows, or an image takes hours.
LIMITS = {"weight": (0, 1e6), "sigma": (0.01, 1e6), "steps": (1, 1000)}

Kernel = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class DenseCRF:
    """A fully connected CRF, which moves the borders of a segmentation to those in the image.

    The energy of a labelling is `-log(probability)` of each pixel's label, plus for each pair of
    pixels with different labels (Potts model) the sum of two Gaussian kernels. Mean-field inference
    approximates its marginals. A call refines probabilities, `crf(image, probabilities)`, as
    `dense_crf` does. The defaults are the constants of DeepLabV2.

    As in the authors' code and in pydensecrf, a kernel k is normalised symmetrically, to
    `k(i, j) / sqrt(sum k(i, .) * sum k(j, .))`, and a pixel is a neighbour of itself. The kernel of
    positions alone is exact, up to weights below 1e-6; pydensecrf approximates it. The kernel of
    positions and colours is approximated on the permutohedral lattice, as in the authors' code.

    Args:
        smoothness_weight: Weight of the kernel of positions alone.
        smoothness_sigma: Its standard deviation in pixels.
        appearance_weight: Weight of the kernel of positions and colours.
        appearance_sigma_xy: Its standard deviation of positions in pixels.
        appearance_sigma_rgb: Its standard deviation of pixel values in 0..255, in each channel.
        steps: Number of mean-field iterations.

    Raises:
        ValueError: If a weight is not in 0..1e6, a standard deviation not in 0.01..1e6, or `steps`
            not in 1..1000.

    Example:

    >>> crf = keras_deeplab.crf.DenseCRF(appearance_weight=5.0, appearance_sigma_xy=50.0)
    >>> image = np.zeros((24, 32, 3), "uint8")
    >>> crf(image, np.full((24, 32, 2), 0.5, "float32")).shape
    (24, 32, 2)

    Reference:
        - Krähenbühl and Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge
          Potentials*, [arXiv:1210.5644](https://arxiv.org/abs/1210.5644), sections 2 and 3
        - [Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs](
          https://arxiv.org/abs/1412.7062), section 4.2
    """

    smoothness_weight: float = 3.0
    smoothness_sigma: float = 1.0
    appearance_weight: float = 4.0
    appearance_sigma_xy: float = 67.0
    appearance_sigma_rgb: float = 3.0
    steps: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "steps":
                checked = integer(name, value)
            else:
                checked = (non_negative if name.endswith("weight") else positive)(name, value)
            low, high = LIMITS[name.split("_")[1] if "_" in name else name]
            if not low <= checked <= high:
                raise error(name, f"in {low:g}..{high:g}", value)
            object.__setattr__(self, name, checked)  # Python's own number, for JSON

    def to_dict(self) -> dict[str, float]:
        """Returns the constants by name, for a JSON file."""
        return asdict(self)

    def __call__(self, image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Returns the refined probabilities of an image or a batch, as `dense_crf` does."""
        image, probabilities = checked_pair(image, probabilities)
        if image.ndim == 4:
            pairs = zip(image, probabilities, strict=True)
            return np.stack([self.refined(Kernels(one), of_one) for one, of_one in pairs])
        return self.refined(Kernels(image), probabilities)

    def refined(self, kernels: Kernels, probabilities: np.ndarray) -> np.ndarray:
        """Returns the refined probabilities of the image of the kernels."""
        weighted = []
        if self.smoothness_weight:
            weighted.append((self.smoothness_weight, kernels.smoothness(self.smoothness_sigma)))
        if self.appearance_weight:
            sigmas = self.appearance_sigma_xy, self.appearance_sigma_rgb
            weighted.append((self.appearance_weight, kernels.appearance(*sigmas)))
        return _mean_field(probabilities, weighted, self.steps)


class Kernels:
    """The kernels of an image. The last of each kind is kept, for a search of constants."""

    def __init__(self, image: np.ndarray) -> None:
        smoothness = functools.partial(_smoothness_kernel, *image.shape[:2])
        self.smoothness = functools.lru_cache(1)(smoothness)
        self.appearance = functools.lru_cache(1)(functools.partial(_appearance_kernel, image))


# V1: section 5 of its paper fixes smoothness and searches the appearance constants on validation
# images; these are those of the authors' script run_densecrf.sh. V2: section 4.1.1 of its paper.
PRESETS = {
    "v1": DenseCRF(
        smoothness_sigma=3.0,
        appearance_weight=4.0,
        appearance_sigma_xy=49.0,
        appearance_sigma_rgb=5.0,
    ),
    "v2": DenseCRF(),
}


def dense_crf(
    image: np.ndarray, probabilities: np.ndarray, preset: str = "v2", **constants: Any
) -> np.ndarray:
    """Refines the probabilities of a segmentation with a fully connected CRF.

    A photograph of 513x513 pixels with 21 classes takes about 6 seconds of processor time, which
    the cores share, and 0.7 GB; one of noise 10 seconds and 1.1 GB.

    Args:
        image: Pixels `(height, width, channels)` or `(batch, height, width, channels)` of any
            number of channels, values in 0..255; or in other units in -65535..65535, to which
            `appearance_sigma_rgb` has to fit.
        probabilities: Probabilities of the classes `(height, width, num_classes)` or
            `(batch, height, width, num_classes)`, float in 0..1, such as those of
            `predict(model, image, probabilities=True)`.
        preset: Constants of DeepLab `"v1"` or `"v2"`.
        **constants: Arguments of `DenseCRF` to change.

    Returns:
        Probabilities of the same shape, float32.

    Raises:
        ValueError: If the shapes do not fit, a value is out of its range or not finite, or a
            constant is out of its range.

    Example:

    >>> image = np.zeros((24, 32, 3), "uint8")
    >>> image[:, 16:] = 255
    >>> probabilities = np.full((24, 32, 2), 0.5, "float32")
    >>> probabilities[:, 20:] = (0.1, 0.9)  # 4 pixels to the right of the edge
    >>> probabilities[:, :12] = (0.9, 0.1)
    >>> keras_deeplab.crf.dense_crf(image, probabilities).argmax(-1)[12, 13:19]
    array([0, 0, 0, 1, 1, 1])

    Reference:
        - [DeepLab](https://arxiv.org/abs/1606.00915), section 3.3; see `DenseCRF`
    """
    crf = replace(PRESETS[one_of("preset", preset, PRESETS)], **constants)
    return crf(image, probabilities)


def open_crf(name: str | os.PathLike) -> DenseCRF:
    """Returns the CRF of a preset, `"v1"` or `"v2"`, or of a JSON file of all constants.

    Example:

    >>> keras_deeplab.crf.open_crf("v1").appearance_sigma_xy
    49.0
    """
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name).is_file():
        raise error("crf", f"{', '.join(PRESETS)} or a JSON file of constants", os.fspath(name))
    constants = PRESETS["v2"].to_dict()
    advice = f"It must hold the constants {', '.join(constants)}."
    content = read_json(Path(name), advice)
    if content.keys() != constants.keys():
        raise ValueError(f"{name} has the keys {', '.join(content)}. {advice}")
    return DenseCRF(**content)


def checked_pair(image: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image and its probabilities, or a batch of them, as arrays, or raises."""
    image, probabilities = np.asarray(image), np.asarray(probabilities)
    if image.ndim not in (3, 4) or image.dtype.kind not in "uif" or not image.size:
        rule = "numbers (height, width, channels) or (batch, height, width, channels)"
        raise error("image", rule, f"{image.dtype} {image.shape}")
    low, high = image.min(), image.max()
    if not (low >= -65535 and high <= 65535):  # false for NaN too
        raise error("image", "in 0..255, or in -65535..65535 in other units", f"{low}..{high}")
    if 0 <= low < high <= 1 and image.dtype.kind == "f":
        warnings.warn(
            f"`image` must hold values in 0..255. Received: image of values {low} to {high}: one "
            "colour for the CRF. Do not divide by 255.",
            stacklevel=4,
        )
    if (
        probabilities.dtype.kind != "f"
        or probabilities.shape[:-1] != image.shape[:-1]
        or probabilities.shape[-1] < 2
    ):
        rule = f"float (..., num_classes) with the sides {image.shape[:-1]} of the image"
        raise error("probabilities", rule, f"{probabilities.dtype} {probabilities.shape}")
    if not (probabilities.min() >= 0 and probabilities.max() <= 1 + 1e-3):  # also of NaN
        interval = f"{probabilities.min()}..{probabilities.max()}"
        raise error("probabilities", "in 0..1", interval, "Of logits take the softmax.")
    return image, probabilities


def _mean_field(
    probabilities: np.ndarray, kernels: Sequence[tuple[float, Kernel]], steps: int
) -> np.ndarray:
    """Returns the marginals of a CRF after mean-field iterations, with weighted kernels."""
    clipped = np.clip(probabilities.astype(np.float32), SMALLEST_PROBABILITY, 1)
    log_unary = np.log(clipped).reshape(-1, probabilities.shape[-1])
    marginals = _softmax(log_unary)
    for _ in range(steps):
        energies = log_unary.copy()
        for weight, kernel in kernels:
            message = kernel(marginals)
            message *= weight
            energies += message
        marginals = _softmax(energies)
    return marginals.reshape(probabilities.shape)


def _softmax(logits: np.ndarray) -> np.ndarray:
    with tf.device("CPU"):  # where the kernels are computed
        return tf.nn.softmax(logits).numpy()


def _smoothness_kernel(height: int, width: int, sigma: float) -> Kernel:
    """Returns the normalised Gaussian of the positions in an image, for `(pixels, channels)`.

    It is the product of one along each axis, and so is its normalisation.
    """
    columns, rows = RowBlocks(_gaussian(height, sigma)), RowBlocks(_gaussian(width, sigma))

    def kernel(values: np.ndarray) -> np.ndarray:
        channels = values.shape[1]
        values = (columns @ values.reshape(height, -1)).reshape(height, width, channels)
        values = rows @ values.transpose(1, 0, 2).reshape(width, -1)
        values = values.reshape(width, height, channels).transpose(1, 0, 2)
        return values.reshape(-1, channels)

    return kernel


def _gaussian(length: int, sigma: float) -> sparse.csr_array:
    """Returns the normalised Gaussian between the positions along one axis."""
    radius = min(length - 1, math.ceil(sigma * math.sqrt(2 * math.log(1e6))))
    offsets = np.arange(-radius, radius + 1)
    values = np.exp(-0.5 * (offsets / sigma) ** 2)
    gaussian = sparse.diags_array(values, offsets=offsets, shape=(length, length))
    norm = sparse.diags_array(1 / np.sqrt(gaussian.sum(1)))
    return (norm @ gaussian @ norm).tocsr().astype(np.float32)


def _appearance_kernel(image: np.ndarray, sigma_xy: float, sigma_rgb: float) -> Kernel:
    """Returns the normalised Gaussian of positions and pixel values, for `(pixels, channels)`."""
    height, width, channels = image.shape
    features = np.empty((height, width, 2 + channels), np.float32)
    features[..., 0] = np.arange(width) / sigma_xy
    features[..., 1] = np.arange(height)[:, None] / sigma_xy
    features[..., 2:] = image / sigma_rgb
    return PermutohedralLattice(features.reshape(-1, 2 + channels))


def bytes_per_pixel(channels: int, num_classes: int) -> int:
    """About the memory of a CRF for each pixel, most of it where no two colours are alike."""
    corners = channels + 3
    return corners * (160 + 24 * corners + 12 * num_classes) + 24 * num_classes
