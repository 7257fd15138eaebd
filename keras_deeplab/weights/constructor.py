"""The argument `weights` of the models' constructors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from keras_deeplab.models.arguments import scaled_rates
from keras_deeplab.models.base import LoadWeights
from keras_deeplab.validation import integer
from keras_deeplab.weights.errors import WeightsError
from keras_deeplab.weights.opening import Weights, open_checkpoint
from keras_deeplab.weights.transfer import transfer


def read_for_constructor(
    weights: Weights, model: str, arguments: Mapping[str, Any], given: Collection[str]
) -> tuple[dict[str, Any], LoadWeights]:
    """Reads the `weights` of a model's constructor; see `models.base.register_weights`.

    Raises:
        WeightsError: If they are for another backbone, or as in `load`.
    """
    passed = {name: arguments[name] for name in given}
    own_options = passed.get("backbone_options") or {}
    checkpoint = open_checkpoint(weights, model, arguments["backbone"], own_options)
    needed = checkpoint.arguments(model, arguments)
    backbone = passed.get("backbone", checkpoint.backbone)
    if checkpoint.backbone is not None and backbone != checkpoint.backbone:
        shown = repr(getattr(backbone, "name", backbone))
        raise WeightsError(
            checkpoint.path,
            f"it holds {checkpoint.title} on the backbone {checkpoint.backbone!r}, but `backbone` "
            f"is {shown}",
        )
    if needed.get("aspp_rates") and "output_stride" in given and "aspp_rates" not in given:
        new = integer("output_stride", passed["output_stride"])
        old = needed.get("output_stride", new)
        needed["aspp_rates"] = scaled_rates(needed["aspp_rates"], old, new)
    options = {**needed.get("backbone_options", {}), **own_options}
    needed = {**needed, **passed}
    if options:
        needed["backbone_options"] = options
    return needed, lambda built: transfer(built, checkpoint)
