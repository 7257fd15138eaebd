"""Models that are built from their constructor's arguments, and can be built again from them."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import logging
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Self

import keras

from keras_deeplab._requirements import check_data_format
from keras_deeplab.backbones import preprocess
from keras_deeplab.graph import geometry, minimum_size
from keras_deeplab.graph.network import all_layers, dtype_policy, finalize_state, own_weights
from keras_deeplab.layers import CropLike, PadToMinimum, ResizeLike
from keras_deeplab.layers.composite import change_settings, changed_settings, without_settings
from keras_deeplab.models.arguments import CHECKS, completed, scaled_rates
from keras_deeplab.models.backbone import (
    build_backbone,
    deserialize_network,
    serialize_network,
    with_feature_taps,
)
from keras_deeplab.models.training import DistributedTraining, LabelMapTraining
from keras_deeplab.validation import error, integer

logger = logging.getLogger(__name__)

LoadWeights = Callable[[keras.Model], Any]
_read_weights: Callable[..., tuple[dict[str, Any], LoadWeights]] | None = None


def register_weights(read: Callable[..., tuple[dict[str, Any], LoadWeights]]) -> None:
    """Sets `weights.loading.read_for_constructor`; importing `weights` calls this."""
    global _read_weights
    _read_weights = read


def _with_given(init: Callable[..., None]) -> Callable[..., None]:
    """Notes which arguments a constructor is given, as `weights` decide on the others only.

    Of the constructors of a user's subclass and of its base the innermost one counts.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def noting(self: ImageModel, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(TypeError):  # which `init` raises
            given = signature.bind_partial(self, *args, **kwargs).arguments
            object.__setattr__(self, "_given", set(given) - {"self", "weights"})
        init(self, *args, **kwargs)

    noting.__signature__ = signature  # Keras reads it by getfullargspec
    return noting


class ImageModel(LabelMapTraining, DistributedTraining, keras.Model):
    """Base of the functional models on a backbone.

    A subclass's constructor is its signature and `super().__init__(locals())`. The arguments are
    checked here, and "auto" and None replaced by their values: `_arguments` is the read-only
    result, from which the subclass's `_output` builds the head.
    """

    checks = CHECKS  # by the name of the argument
    transfer_report: Any = None  # what was loaded from the constructor's `weights`
    # From features and feature taps. Not abstract, as Keras makes an instance of each base.
    _output: Callable[..., Any]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "__init__" in vars(cls):
            cls.__init__ = _with_given(cls.__init__)

    def __init__(self, arguments: dict[str, Any]) -> None:
        check_data_format()
        arguments = {k: v for k, v in arguments.items() if k not in ("self", "__class__")}
        weights, load = arguments.pop("weights"), None
        if weights is not None:
            given = self._given & arguments.keys()  # set by `_with_given`
            needed, load = _read_weights(weights, type(self).__name__, arguments, given)
            arguments |= needed
        checked = {
            name: self.checks[name](name, value) if name in self.checks else value
            for name, value in arguments.items()
        }
        final = completed(self._with_defaults(checked))
        with dtype_policy(final["dtype"]):
            network = self._network(final)
            taps = self._feature_taps(network, final)
            final |= taps
            backbone = with_feature_taps(network, final, taps)
            final["backbone"] = serialize_network(final["backbone"])
            inputs = image = keras.Input(final["input_shape"], name="images")
            minimum = minimum_size(keras.Model(backbone.inputs[0], backbone.outputs[0]))
            if minimum not in ((1, 1), tuple(inputs.shape[1:3])):
                image = PadToMinimum(minimum, name="pad_to_minimum")(inputs)
            values = {"_arguments": MappingProxyType(final), "_backbone": backbone}
            for name, value in {**values, "_images": (inputs, image)}.items():
                # Past Keras' tracking, which would wrap the dict and count the network twice.
                object.__setattr__(self, name, value)
            if final["preprocessing"] is not None:
                image = preprocess(image, final["preprocessing"])
            features = keras.tree.flatten(backbone(image))
            super().__init__(inputs, self._output(*features), name=final["name"])
            self._add_training_outputs(*features)
        if load is not None:
            object.__setattr__(self, "transfer_report", load(self))
            logger.info("%s", self.transfer_report)

    def _with_defaults(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Returns the checked arguments with the class's own defaults."""
        return arguments

    def _network(self, arguments: dict[str, Any]) -> keras.Model:
        """Returns the backbone at its own output stride."""
        return build_backbone(arguments)

    def _feature_taps(self, network: Any, arguments: Any) -> dict[str, Any]:  # noqa: ARG002
        """Returns the layers of the backbone that the head uses too, by the argument for them."""
        return {}

    def _add_training_outputs(self, features: Any, *taps: Any) -> None:
        """Adds what only training needs; nothing by default."""

    def _options(self, *names: str) -> dict[str, Any]:
        return {name: self._arguments[name] for name in names}

    def _upsampled(self, logits: Any, prefix: str = "") -> Any:
        """Logits at the size of the image, float32."""
        images, enlarged = self._images
        options = {"align_corners": self.aligns_corners, "dtype": "float32"}
        x = ResizeLike(name=f"{prefix}upsample", **options)(logits, enlarged)
        if enlarged is images:
            return x
        return CropLike(name=f"{prefix}crop", dtype="float32")(x, images)

    @property
    def backbone(self) -> keras.Model:
        """The network inside that turns pixels into features."""
        return self._backbone

    @property
    def aligns_corners(self) -> bool:
        """Whether maps are resized with aligned corners, as in the authors' networks."""
        return self._arguments.get("align_corners", False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._arguments["num_classes"]

    @property
    def output_stride(self) -> int:
        """Stride of the backbone's features against the image."""
        own = self._arguments.get("output_stride")
        return own or max(geometry(self.backbone).outputs[0].stride)

    def with_num_classes(self, num_classes: int) -> Self:
        """Returns the same model for another number of classes.

        All weights but the class predictor's are copied; what was not copied is logged.

        Args:
            num_classes: An integer of at least 2.
        """
        model, missing = self._rebuilt("num_classes", num_classes)
        logger.info("%s: missing keys: %s", self.name, ", ".join(missing) or "none")
        return model

    def with_dtype(self, dtype: str) -> Self:
        """Returns the same model computing in another precision; the weights are copied.

        Args:
            dtype: A dtype policy, such as `"float32"` or `"mixed_bfloat16"`. A backbone that was
                given as a network keeps its own.
        """
        return self._rebuilt("dtype", dtype)[0]

    def _rebuilt(self, argument: str, value: Any, **changes: Any) -> tuple[Self, list[str]]:
        """The model with changed arguments and copied weights, and the layers of other shapes.

        Raises:
            ValueError: If a layer has other weights than here, so that they cannot be copied.
        """
        model = type(self).from_config({**self.get_config(), argument: value, **changes})
        missing, lost = [], []
        # Also what a subclass has added.
        layers = {self.name: self, **all_layers(self)}
        for path, layer in {self.name: model, **all_layers(model)}.items():
            old, new = own_weights(layers[path]) if path in layers else {}, own_weights(layer)
            if path not in layers and argument == "num_classes":  # one for each class, for example
                missing += [path] * bool(new)
            elif old.keys() != new.keys():
                lost.append(path)
            elif any(old[name].shape != weight.shape for name, weight in new.items()):
                missing.append(path)
            else:
                for name, weight in new.items():
                    weight.assign(old[name])
        if lost or (missing and argument == "output_stride"):
            advice = f"The weights of the layers {', '.join(lost or missing)} cannot be copied, as "
            advice += "the configuration does not describe them: after LoRA, for example, or where "
            advice += "names of the backbone's layers end in '_pad'"
            raise error(
                argument, "changed on a model of which all layers can be copied", value, advice
            )
        finalize_state(model)
        return model, missing

    def get_config(self) -> dict[str, Any]:
        arguments = copy.deepcopy(dict(self._arguments))
        return {**arguments, "trainable": self.trainable, **changed_settings(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        if "weights" in config:  # that of a `.keras` file opens no other file, starts no download
            raise ValueError("`config` must not have the key 'weights': it loads no weights.")
        config, changes = without_settings(config)
        trainable = config.pop("trainable", True)
        config["backbone"] = deserialize_network(config["backbone"], custom_objects)
        model = cls(**config)
        model.trainable = trainable
        change_settings(model, changes)
        return model


class SegmentationModel(ImageModel):
    """A functional model from pixels to logits, one for each class at each pixel.

    Args:
        num_classes: Number of classes, an integer of at least 2 (the background counts).
        backbone: A name of `keras_deeplab.backbones.NAMES`, or any functional Keras network without
            its classifier, such as `keras.applications` with `include_top=False`. A network is
            copied with its weights and never changed.
        output_stride: Stride of the features: 8, 16 or 32, or another that the backbone has.
        aspp_rates: Atrous rates at this output stride; `None` for the paper's, scaled to it.
        multi_grid: ResNets and Xceptions: rates of the last block's three units; `None` for
            `(1, 2, 4)` on ResNets and `(1, 1, 1)` on Xceptions.
        stride_on: ResNets only: the convolution of a unit that has its stride, `"3x3"`
            (torchvision, the default of V3 and V3+) or `"1x1"` (the default of V2).
        backbone_options: Further options of a backbone by name, such as `{"depth_multiplier": 0.5}`
            for MobileNetV2; see its function in `keras_deeplab.backbones`.
        dropout: Share of the head's values dropped in training.
        activation: Activation of the head's convolutions. The output is always logits.
        epsilon: Epsilon of the head's batch norms.
        align_corners: How maps are resized: True as in the authors' networks, False for half-pixel
            centres, as in torchvision.
        preprocessing: `"auto"` (the scaling of the package's backbones; none for a user's network),
            one of `keras_deeplab.backbones.PREPROCESSING`, or `None`.
        input_shape: (height, width, channels), with `None` for any height or width.
        dtype: Dtype policy such as `"mixed_bfloat16"`; the global one by default.
        weights: Where to start from: the name of published weights, the path of a file of weights
            in any format of `keras_deeplab.weights.load`, or a Keras model. Settings that the
            weights require become the defaults of the other arguments.
        name: Name of the model.

    Input shape:
        `(batch, height, width, channels)`: RGB in 0..255, uint8 or float, of any size from 1x1.

    Output shape:
        `(batch, height, width, num_classes)`: logits, float32.

    Raises:
        ValueError: If an argument is out of its range; the error names it.
    """

    # The rates of the paper, and the output stride that they are for.
    paper_rates: tuple[int, ...] = (6, 12, 18)
    paper_stride = 16

    def _with_defaults(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments.get("aspp_rates", ()) is not None:
            return arguments
        rates = scaled_rates(self.paper_rates, self.paper_stride, arguments["output_stride"])
        return {**arguments, "aspp_rates": rates}

    def with_output_stride(self, output_stride: int) -> Self:
        """Returns the same model with finer or coarser features; weights copied, rates scaled.

        As the papers do (V3+, table 3): train at 16, evaluate at 8. Compile the result again.

        Args:
            output_stride: A stride that occurs in the backbone, such as 8, 16 or 32.

        Raises:
            ValueError: If the backbone cannot have that stride, a rate would not be an integer, or
                the model has no output stride to choose (U-Net).
        """
        if "output_stride" not in self._arguments:
            kind = f"a {type(self).__name__} keeps that of its backbone, {self.output_stride}"
            raise error("output_stride", f"left as it is: {kind}", output_stride)
        integer("output_stride", output_stride)
        rates = scaled_rates(self._arguments["aspp_rates"], self.output_stride, output_stride)
        return self._rebuilt("output_stride", output_stride, aspp_rates=rates)[0]
