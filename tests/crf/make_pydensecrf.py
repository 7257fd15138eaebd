"""Writes pydensecrf.npz, with pydensecrf2 1.1 and SciPy in an environment of their own.

python tests/crf/make_pydensecrf.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import unary_from_softmax
from scipy.ndimage import gaussian_filter

HEIGHT, WIDTH, CLASSES = 60, 80, 4
# Smoothness weight and sigma; appearance weight and sigmas of positions and of colours.
CONSTANTS = {"v1": (3, 3, 4, 49, 5), "v2": (3, 1, 4, 67, 3)}

random = np.random.default_rng(0)
noise = random.normal(size=(HEIGHT, WIDTH, CLASSES))
logits = 60 * gaussian_filter(noise, (5, 5, 0))
colors = random.integers(0, 256, (CLASSES, 3))
# The image has the regions of the logits, 2 pixels to the right, with texture.
regions = np.roll(logits, 2, 1).argmax(-1)
image = colors[regions] + gaussian_filter(random.normal(0, 20, (HEIGHT, WIDTH, 3)), (1, 1, 0))
image = image.clip(0, 255).astype(np.uint8)
probabilities = np.exp(logits - logits.max(-1, keepdims=True))
probabilities = (probabilities / probabilities.sum(-1, keepdims=True)).astype(np.float16)
unary = unary_from_softmax(probabilities.astype(np.float32).transpose(2, 0, 1).copy())
found = {}
for name, (weight, sigma, appearance, xy, rgb) in CONSTANTS.items():
    crf = DenseCRF2D(WIDTH, HEIGHT, CLASSES)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy=sigma, compat=weight)
    crf.addPairwiseBilateral(sxy=xy, srgb=rgb, rgbim=image, compat=appearance)
    refined = np.array(crf.inference(10)).reshape(CLASSES, HEIGHT, WIDTH)
    found[name] = refined.argmax(0).astype(np.uint8)
path = Path(__file__).with_name("pydensecrf.npz")
np.savez_compressed(path, image=image, probabilities=probabilities, **found)
