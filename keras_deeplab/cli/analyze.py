"""`keras-deeplab analyze --model NAME`: what a network sees of an image."""

from __future__ import annotations

import argparse
from pathlib import Path

import keras

import keras_deeplab
from keras_deeplab import analysis, backbones
from keras_deeplab.analysis.live_taps import taps_table
from keras_deeplab.cli.options import (
    FILE,
    SIZE,
    Parser,
    at_output_stride,
    command,
    height_and_width,
    info_of,
    one_of,
    positive,
    write,
)
from keras_deeplab.graph.network import functional
from keras_deeplab.models.multi_scale import unwrapped
from keras_deeplab.names import match
from keras_deeplab.trainer.building import DEFAULT_BACKBONES, MODELS
from keras_deeplab.validation import error
from keras_deeplab.validation import positive as positive_number
from keras_deeplab.weights.hub import local_path

CLASSES = 21  # of a model by name, as of PASCAL VOC


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        "Prints stride, receptive field and centre of each stage of a network, the "
        "share of the taps of its atrous kernels that lie on the map, and the estimated cost."
    )
    add = made.add_argument
    text = f".keras file or hf:// address (without test-time augmentation), or {', '.join(MODELS)}"
    add("--model", required=True, help=text)
    add("--backbone", **one_of(backbones.NAMES), help="of a model by name; default: a small one")
    add("--output-stride", type=positive, help="default: the model's own")
    add("--size", **SIZE, help="height and width of the image; default: 513, or the model's own")
    add("--batch-size", type=positive, default=1, help="images, for the memory")
    add("--memory", type=float, metavar="GB", help="print the largest batches for it")
    add("--effective", action="store_true", help="measure the effective receptive field too")
    add("--json", **FILE, help="file for all figures")
    add("--html", **FILE, help="page of --image on which a click shows a receptive field")
    add("--image", **FILE, help="image of the page")
    return made


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    if (options.html is None) != (options.image is None):
        raise error("--image", "set together with --html", options.image)
    memory = options.memory
    if memory is not None:
        memory = int(1e9 * positive_number("--memory", memory))
    model = _model(options)
    shape = functional(model).inputs[0].shape
    if len(shape) != 4:
        raise error("--model", "a network on images", shape)
    wanted = height_and_width(options.size or [513])
    size = tuple(own or side for own, side in zip(shape[1:3], wanted, strict=True))
    if options.size and size != tuple(wanted):
        raise error("--size", f"left out, or the model's own {shape[1]}x{shape[2]}", options.size)
    fields, taps = analysis.receptive_field(model, *size), analysis.live_taps(model, *size)
    print(fields)
    if taps:
        print(f"\n{taps_table(taps)}")
    estimate = analysis.cost(model, *size, options.batch_size, memory=memory)
    print(f"\n{estimate}")
    shares = [vars(one) | {"share": one.share} for one in taps]
    figures = fields.to_dict() | {"live_taps": shares, "cost": estimate.to_dict()}
    if options.effective:
        found = analysis.effective_receptive_field(model, size=size)
        figures["effective_side"] = found.side
        print(f"\nEffective receptive field: 95 % of the gradient in {found.side}x{found.side}")
    write(options.json, lambda: figures)
    if options.html is not None:
        info = info_of(options, model) if isinstance(options.model, Path) else None
        names, colors, values = (
            (info.classes, info.colors, info.value_range) if info else (None, None, None)
        )
        page = analysis.receptive_field_page(
            model, options.image, names, colors=colors, value_range=values
        )
        write(options.html, lambda: page)


def _model(options: argparse.Namespace) -> keras.Model:
    """The model by name, file or address, of which `options.model` becomes the local file."""
    known = match(options.model, MODELS)
    if known is None:
        if options.backbone is not None:
            rule = f"left out: {options.model} is a whole model"
            raise error("--backbone", rule, options.backbone)
        options.model = local_path(options.model)
        model = unwrapped(keras_deeplab.load_model(options.model, compile=False))
    else:
        model = MODELS[known](CLASSES, options.backbone or DEFAULT_BACKBONES[known])
    return at_output_stride(model, options)
