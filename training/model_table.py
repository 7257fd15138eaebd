"""Tables of models and published weights: `python -m training.model_table`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # as a file, Python sets the folder of the file

import keras

import keras_deeplab as kd
from keras_deeplab.cli.options import Parser, command
from keras_deeplab.files import atomic_write

SIDE = 513
HEAD = ("model", "backbone", "paper", "parameters", "multiply-adds", "stride", "receptive field")


class Row(NamedTuple):
    """A model of the table; `last` is the last layer that widens the receptive field."""

    model: str
    backbone: str
    paper: str
    build: Callable[[], keras.Model]
    last: str = "logits"


def _v3(backbone: str, **arguments: object) -> Callable[[], keras.Model]:
    return lambda: kd.DeepLabV3(21, backbone, **arguments)


def _v3_plus(backbone: str) -> Callable[[], keras.Model]:
    return lambda: kd.DeepLabV3Plus(21, backbone)


V1, V2, V3, V3_PLUS = "1412.7062", "1606.00915", "1706.05587", "1802.02611"
U_NET, SPP = "1505.04597", "1406.4729"
V3_MOBILE = {"aspp_rates": (), "head_filters": None}

ROWS = (
    Row("DeepLabV1", "VGG16", V1, kd.DeepLabV1),
    Row("DeepLabV2", "VGG16", V2, lambda: kd.DeepLabV2(21, "vgg16"), "aspp_sum"),
    Row("DeepLabV2", "ResNet101", V2, kd.DeepLabV2, "aspp_sum"),
    Row("DeepLabV3", "ResNet50", V3, kd.DeepLabV3),
    Row("DeepLabV3", "ResNet101", V3, _v3("resnet101")),
    Row("DeepLabV3, cascade", "ResNet50", V3, _v3("resnet50", cascade=True)),
    Row("DeepLabV3", "MobileNetV3 large", V3, _v3("mobilenet_v3_large")),
    Row("DeepLabV3, no rates", "MobileNetV2", V3, _v3("mobilenet_v2", **V3_MOBILE)),
    Row("DeepLabV3Plus", "Xception41", V3_PLUS, _v3_plus("xception41")),
    Row("DeepLabV3Plus", "Xception65", V3_PLUS, _v3_plus("xception65")),
    Row("DeepLabV3Plus", "Xception71", V3_PLUS, _v3_plus("xception71")),
    Row("DeepLabV3Plus", "ResNet101 beta", V3_PLUS, _v3_plus("resnet101_beta")),
    Row("DeepLabV3Plus", "MobileNetV2", V3_PLUS, _v3_plus("mobilenet_v2")),
    Row("UNet", "its own", U_NET, kd.UNet),
    Row("SPPNet", "VGG16", SPP, lambda: kd.SPPNet(1000), "backbone"),
)


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        prog="python -m training.model_table",
        description=f"Parameters, multiply-adds at {SIDE}x{SIDE}, stride and receptive field of "
        "the models, measured on the networks themselves, and the published weights.",
    )
    made.add_argument("--write", type=Path, help="file whose tables between marks to replace")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = parser().parse_args(argv)
    if options.write is None:
        print("\n".join(make() for make in TABLES.values()), end="")
        return 0
    text = options.write.read_text()
    found = [name for name in TABLES if all(mark in text for mark in marks(name))]
    if not found:
        raise ValueError(
            f"--write: {options.write} must contain the two lines around a table, such as "
            f"{' and '.join(marks(next(iter(TABLES))))}."
        )
    for name in found:
        begin, end = marks(name)
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{TABLES[name]()}{end}{after}"
    with atomic_write(options.write) as aside:
        aside.write_text(text)
    return 0


def marks(name: str) -> tuple[str, str]:
    """Returns the lines before and after a table."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def table(rows: Sequence[Row] = ROWS) -> str:
    """Returns the table as Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *(cells(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(row: Row) -> list[str]:
    """Returns one line of the table."""
    model = row.build()
    cost = sum(kd.graph.multiply_adds(model, SIDE, SIDE).values())
    found = kd.graph.geometry(model, SIDE, SIDE)
    features = kd.graph.geometry(model.backbone, SIDE, SIDE).outputs[0]
    last = found[row.last].axes[0]
    # Global pooling adds the whole image to the receptive field of the kernels.
    field = f"{int(last.field)}{' + image' if last.unbounded else ''}"
    return [
        row.model,
        row.backbone,
        f"[{row.paper}](https://arxiv.org/abs/{row.paper})",
        f"{model.count_params():,}",
        f"{cost / 1e9:.1f} G",
        str(int(features.stride[0])),
        field,
    ]


TABLES: dict[str, Callable[[], str]] = {"models": table, "weights": kd.weights.markdown}


if __name__ == "__main__":
    raise SystemExit(main())
