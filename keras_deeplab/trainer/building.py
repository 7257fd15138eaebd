"""Building a model by name when a run begins."""

from __future__ import annotations

import inspect
import logging
import os
from typing import Any

import keras
import tensorflow as tf

from keras_deeplab import backbones, models, validation
from keras_deeplab.recipes import Recipe
from keras_deeplab.weights import Checkpoint, load, open_checkpoint, unfold_batch_norms

MODELS: dict[str, type[models.SegmentationModel]] = {
    "deeplab_v1": models.DeepLabV1,
    "deeplab_v2": models.DeepLabV2,
    "deeplab_v3": models.DeepLabV3,
    "deeplab_v3_plus": models.DeepLabV3Plus,
    "unet": models.UNet,
}
DEFAULT_MODEL = "deeplab_v3_plus"
# A small one, unless the paper has only one; U-Net has its own network.
DEFAULT_BACKBONES = dict.fromkeys(MODELS, "mobilenet_v2") | {"deeplab_v1": "vgg16", "unet": None}
PRECISIONS = ("bfloat16", "float16")
# Arguments of a model that `Recipe.model` does not set.
SET_ELSEWHERE = {"num_classes", "backbone", "weights", "output_stride", "dtype"}
# Batches from which batch norms that were folded away in a file get their statistics.
UNFOLDING_BATCHES = 8
logger = logging.getLogger(__name__)


class ModelBuilder:
    """A model by name, built by `fit` for the classes of the source.

    Unlike a built model, it uses the `model` and `output_stride` of the recipe, and it is built
    inside the distribution strategy.

    Args:
        name: One of "deeplab_v1", "deeplab_v2", "deeplab_v3", "deeplab_v3_plus" and "unet"; None
            for the model that `weights` holds, or "deeplab_v3_plus".
        backbone: Name of a backbone; None for that of `weights`, or a small one (VGG16 for V1, for
            U-Net its own network).
        weights: Where training starts: a file, or the name of published weights.
        mixed_precision: "bfloat16" or "float16"; None for float32.

    Raises:
        ValueError: If an argument is out of its range.
        weights.WeightsError: If the weights cannot be read or are for another backbone.

    Example:

    >>> builder = keras_deeplab.trainer.ModelBuilder("deeplab_v1")
    >>> builder.backbone
    'vgg16'
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        backbone: str | None = None,
        weights: str | os.PathLike | None = None,
        mixed_precision: str | None = None,
    ) -> None:
        if name is not None:
            validation.one_of("name", name, MODELS)
        if mixed_precision is not None:
            validation.one_of("mixed_precision", mixed_precision, PRECISIONS)
        self.weights = weights
        self.mixed_precision = mixed_precision
        self._checkpoint: Checkpoint | None = None
        # Weights without a network are loaded into the model that is built.
        if weights is not None and not str(weights).endswith(".weights.h5"):
            wanted = backbone or DEFAULT_BACKBONES[name or DEFAULT_MODEL]
            kind = name and MODELS[name].__name__
            self._checkpoint = open_checkpoint(weights, kind, wanted)
        found = self._checkpoint and self._checkpoint.model
        stored = next((key for key, kind in MODELS.items() if kind.__name__ == found), None)
        self.name = name or stored or DEFAULT_MODEL
        self._is_whole_model = stored == self.name
        self.backbone = backbone or (self._checkpoint and self._checkpoint.backbone)
        # A user's own network comes with the weights of a model of this class.
        if self.backbone is None and not self._is_whole_model:
            self.backbone = DEFAULT_BACKBONES[self.name]
        self._known = set(inspect.signature(MODELS[self.name]).parameters)

    @property
    def network(self) -> str:
        """Network name that selects the overrides of a recipe (`recipes.get`)."""
        return self.backbone or self.name

    @property
    def has_output_stride(self) -> bool:
        """Whether the model has an output stride to choose."""
        return "output_stride" in self._known

    @property
    def model_arguments(self) -> set[str]:
        """Names of what `Recipe.model` can set; none for a whole model in a file."""
        return set() if self._is_whole_model else self._known - SET_ELSEWHERE

    def to_dict(self) -> dict[str, Any]:
        """The arguments as JSON stores them."""
        return {
            "model": self.name,
            "backbone": self.backbone,
            "weights": None if self.weights is None else str(self.weights),
            "mixed_precision": self.mixed_precision,
        }

    def check(self, recipe: Recipe) -> None:
        """Raises a ValueError if no model has an argument of `Recipe.model`.

        Arguments of other models are left out, as a recipe is for all of them.
        """
        known = set().union(*(inspect.signature(kind).parameters for kind in MODELS.values()))
        for name in recipe.model:
            validation.one_of("model", name, sorted(known - SET_ELSEWHERE))

    def build(
        self,
        num_classes: int,
        recipe: Recipe,
        images: tf.data.Dataset | None = None,
        channels: int = 3,
    ) -> keras.Model:
        """Builds the model for the first stage of a recipe.

        Batch norms that were folded into convolutions in the file of weights are restored with
        statistics of `images`, batches of training images; None leaves them folded.
        """
        arguments: dict[str, Any] = {}
        if "separable" in self.model_arguments:
            arguments["separable"] = backbones.get(self.backbone).separable
        arguments |= {name: recipe.model[name] for name in self.model_arguments & set(recipe.model)}
        if self.mixed_precision is not None:
            arguments["dtype"] = f"mixed_{self.mixed_precision}"
        if recipe.output_stride is not None and self.has_output_stride:
            arguments["output_stride"] = recipe.output_stride
        if self.backbone is not None:
            arguments["backbone"] = self.backbone
        if channels != 3:
            arguments["input_shape"] = (None, None, channels)
        model = MODELS[self.name](num_classes, weights=self._checkpoint, **arguments)
        if self._checkpoint is None:
            if self.weights is not None:
                load(model, self.weights)
        elif self._checkpoint.folded and images is not None:
            count = unfold_batch_norms(model, images.take(UNFOLDING_BATCHES))
            logger.info("%d batch norms had been folded away: re-estimated from the data", count)
        return model
