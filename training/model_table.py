"""Tables of models and published weights: `python -m training.model_table`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import keras

import keras_deeplab as kd
from keras_deeplab.cli.options import Parser, command

SIDE = 513
HEAD = ("model", "backbone", "paper", "parameters", "multiply-adds", "stride", "receptive field")


class Row(NamedTuple):
    """A model of the table; `last` is the last layer that widens the receptive field."""

    label: str
    backbone_label: str
    paper: str
    model: type[keras.Model]
    backbone: str | None
    arguments: dict[str, object] = {}
    last: str = "logits"


V1, V2, V3, V3_PLUS = "1412.7062", "1606.00915", "1706.05587", "1802.02611"
U_NET, SPP = "1505.04597", "1406.4729"
V3_MOBILE = {"aspp_rates": (), "head_filters": None}

ROWS = (
    Row("DeepLabV1", "VGG16", V1, kd.DeepLabV1, "vgg16"),
    Row("DeepLabV2", "VGG16", V2, kd.DeepLabV2, "vgg16", last="aspp_sum"),
    Row("DeepLabV2", "ResNet101", V2, kd.DeepLabV2, "resnet101", last="aspp_sum"),
    Row("DeepLabV3", "ResNet50", V3, kd.DeepLabV3, "resnet50"),
    Row("DeepLabV3", "ResNet101", V3, kd.DeepLabV3, "resnet101"),
    Row("DeepLabV3, cascade", "ResNet50", V3, kd.DeepLabV3, "resnet50", {"cascade": True}),
    Row("DeepLabV3", "MobileNetV3 large", V3, kd.DeepLabV3, "mobilenet_v3_large"),
    Row("DeepLabV3, no rates", "MobileNetV2", V3, kd.DeepLabV3, "mobilenet_v2", V3_MOBILE),
    Row("DeepLabV3Plus", "Xception41", V3_PLUS, kd.DeepLabV3Plus, "xception41"),
    Row("DeepLabV3Plus", "Xception65", V3_PLUS, kd.DeepLabV3Plus, "xception65"),
    Row("DeepLabV3Plus", "Xception71", V3_PLUS, kd.DeepLabV3Plus, "xception71"),
    Row("DeepLabV3Plus", "ResNet101 beta", V3_PLUS, kd.DeepLabV3Plus, "resnet101_beta"),
    Row("DeepLabV3Plus", "MobileNetV2", V3_PLUS, kd.DeepLabV3Plus, "mobilenet_v2"),
    Row("UNet", "its own", U_NET, kd.UNet, None),
    Row("SPPNet", "VGG16", SPP, kd.SPPNet, "vgg16", last="backbone"),
)


def parser() -> Parser:
    """Returns the parser of the command line."""
    return Parser(
        prog="python -m training.model_table",
        description=f"Parameters, multiply-adds at {SIDE}x{SIDE}, stride and receptive field of "
        "the models, measured on the networks themselves, and the published weights.",
    )


@command(parser)
def main(_: argparse.Namespace) -> None:
    """Runs the command."""
    print(table(), kd.weights.markdown(), sep="\n", end="")


def table(rows: Sequence[Row] = ROWS) -> str:
    """Returns the table as Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *(cells(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(row: Row) -> list[str]:
    """Returns one line of the table."""
    classes = 1000 if row.model is kd.SPPNet else 21
    model = row.model(classes, row.backbone, **row.arguments)
    cost = sum(kd.graph.multiply_adds(model, SIDE, SIDE).values())
    found = kd.graph.geometry(model, SIDE, SIDE)
    features = kd.graph.geometry(model.backbone, SIDE, SIDE).outputs[0]
    last = found[row.last].axes[0]
    # Global pooling adds the whole image to the receptive field of the kernels.
    field = f"{int(last.field)}{' + image' if last.unbounded else ''}"
    return [
        row.label,
        row.backbone_label,
        f"[{row.paper}](https://arxiv.org/abs/{row.paper})",
        f"{model.count_params():,}",
        f"{cost / 1e9:.1f} G",
        str(int(features.stride[0])),
        field,
    ]


if __name__ == "__main__":
    raise SystemExit(main())
