"""The models that the page offers, and the settings of a prediction."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_deeplab.crf import PRESETS, RefinedModel
from keras_deeplab.data import DatasetInfo
from keras_deeplab.data.bands import Bands
from keras_deeplab.data.readers.cityscapes import Cityscapes
from keras_deeplab.data.readers.voc import Voc
from keras_deeplab.data.source import MAX_CLASSES
from keras_deeplab.inference import Predictor, logits_spec
from keras_deeplab.models import MultiScale
from keras_deeplab.models.multi_scale import (
    image_scale,
    unwrapped,
    with_test_time_augmentation,
    without_views,
)
from keras_deeplab.prediction import stored_info
from keras_deeplab.runtimes import ExportedModel, is_exported, open_exported
from keras_deeplab.validation import error, one_of
from keras_deeplab.weights import PUBLISHED, from_pretrained, load_model
from keras_deeplab.weights.hub import local_path

# Others would let one request take any amount of time and memory.
OUTPUT_STRIDES = (8, 16, 32)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
SIDES = (512, 1024, 2048)
CONFIGURED = 4  # models at other settings that are kept, each with its compiled functions

_PUBLISHED_INFO = {
    "pascal_voc": Voc.info,
    "pascal_voc_trainval": Voc.info,
    "coco_voc": Voc.info,
    "cityscapes": Cityscapes.info,
}


@dataclass(frozen=True)
class Settings:
    """The settings of a prediction.

    Args:
        side: Longer side in pixels to which a larger image is reduced, of `SIDES`; None for none.
        output_stride: Of `OUTPUT_STRIDES`; None for the model's own.
        scales: Distinct ones of `SCALES`; with `flip` in place of the model's own test-time
            augmentation. Empty, and without `flip`, for the model's own.
        flip: Whether to use the mirrored image too.
        crf: A preset of `crf.PRESETS`, or None.
    """

    side: int | None = None
    output_stride: int | None = None
    scales: tuple[float, ...] = ()
    flip: bool = False
    crf: str | None = None

    def __post_init__(self) -> None:
        one_of("side", self.side, (None, *SIDES))
        one_of("output_stride", self.output_stride, (None, *OUTPUT_STRIDES))
        if not set(self.scales) <= set(SCALES) or len(set(self.scales)) < len(self.scales):
            raise error("scales", f"distinct ones of {SCALES}", self.scales)
        one_of("flip", self.flip, (False, True))
        one_of("crf", self.crf, (None, *PRESETS))

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Settings:
        """Returns the settings of the parameters of an address, of which "" is left out."""
        parse = {
            "side": int,
            "output_stride": int,
            "scales": lambda text: tuple(map(float, text.split())),
            "flip": lambda text: {"0": False, "1": True}.get(text, text),
            "crf": str,
        }
        found = {}
        for name, text in query.items():
            one_of("query", name, parse)
            try:
                found |= {name: parse[name](text)} if text else {}
            except ValueError as fault:
                raise error(name, "a number, or several with spaces", text) from fault
        return cls(**found)


class Choice:
    """A model that the page offers, with the names and colours of its classes.

    Args:
        name: Its name on the page.
        model: A segmentation model on images in RGB or grey, or an export.
        info: The names and colours of the classes; by default their numbers.

    Raises:
        ValueError: If the model is of another kind or takes other images.
    """

    def __init__(
        self, name: str, model: keras.Model | ExportedModel, info: DatasetInfo | None = None
    ) -> None:
        spec, self.num_classes = logits_spec(model)
        self.name, self.model, self.channels = name, model, spec.shape[-1]
        if isinstance(model, ExportedModel):
            model.check_probabilities()
        if self.num_classes > MAX_CLASSES:
            raise error("model", f"one of at most {MAX_CLASSES} classes", name)
        self.info = info or DatasetInfo(tuple(map(str, range(self.num_classes))))
        if not Bands(self.channels, self.info.value_range).are_plain:
            raise error("model", "one for 8-bit images in RGB or grey", name)
        # With a bound method the cache would be that of all choices, and keep them.
        self._configured = functools.lru_cache(CONFIGURED)(functools.partial(_configured, model))

    def predictor(self, settings: Settings) -> Predictor:
        """Returns the model at these settings."""
        model = self._configured(settings.output_stride, settings.scales, settings.flip)
        return RefinedModel(model, PRESETS[settings.crf]) if settings.crf else model

    def to_dict(self) -> dict[str, Any]:
        """Returns what the page needs to know, ready for `json.dump`."""
        views, strides, own = 0, (), None
        if isinstance(self.model, ExportedModel):
            scale = self.model.metadata.image_scale
        else:
            scale = image_scale(self.model)
            config = unwrapped(self.model).get_config()
            if "output_stride" in config:
                strides, own = OUTPUT_STRIDES, config["output_stride"]
            if isinstance(self.model, MultiScale) and not self.model.is_image_scale:
                views = self.model.num_views
        return {
            "name": self.name,
            "classes": self.info.classes,
            "colors": self.info.colors,
            "changes": isinstance(self.model, keras.Model),
            "output_strides": strides,
            "output_stride": own,
            "views": views,
            "reduces": scale < 1,
        }


def open_choice(text: str) -> Choice:
    """Opens a `.keras` file, one on the Hub, an export, or weights as NAME/MODEL/BACKBONE."""
    path = local_path(text)
    if is_exported(path):
        exported = open_exported(path)
        return Choice(text, exported, exported.metadata.info)
    name = text.partition("/")[0]
    if path.suffix == ".keras" or name not in {entry.name for entry in PUBLISHED}:
        model = load_model(path, compile=False)
        return Choice(text, model, stored_info(path, logits_spec(model)[1]))
    return Choice(text, from_pretrained(text), _PUBLISHED_INFO.get(name))


def _configured(
    model: keras.Model | ExportedModel,
    output_stride: int | None,
    scales: tuple[float, ...],
    flip: bool,
) -> keras.Model | ExportedModel:
    if output_stride is None and not scales and not flip:
        return model
    if isinstance(model, ExportedModel):
        raise error("model", "a .keras file to change its output stride or scales", str(model.path))
    if scales or flip:
        model = without_views(model)
    if output_stride is not None:
        config = unwrapped(model).get_config()
        if "output_stride" not in config:
            raise error("output_stride", "left out for this model", output_stride)
        if output_stride != config["output_stride"]:
            model = model.with_output_stride(output_stride)
    return with_test_time_augmentation(model, scales or None, flip)
