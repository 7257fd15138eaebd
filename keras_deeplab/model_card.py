"""The model card of a run: a README with its figures, in the format of the Hugging Face Hub."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path, PurePath
from typing import Any

import keras

from keras_deeplab.data import DatasetInfo
from keras_deeplab.data.bands import Bands
from keras_deeplab.evaluation import class_scores
from keras_deeplab.files import read_json
from keras_deeplab.inference import logits_spec
from keras_deeplab.models import SegmentationModel
from keras_deeplab.models.multi_scale import multi_scales, unwrapped
from keras_deeplab.names import printable
from keras_deeplab.trainer.run_data import Columns, columns
from keras_deeplab.trainer.run_folder import MONITOR, RunFolder
from keras_deeplab.validation import error, is_number
from keras_deeplab.weights.hub import checked_repo

ADVICE = "A model card needs the folder of a finished run of segmentation."
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#|~!&$@:.^])")  # also of links that begin with www.
# Fields of a recipe that change the images, beside the scales.
_AUGMENTATION = "flip color_jitter rotation blur jpeg_quality cutout copy_paste mosaic".split()
_WORST = 3


def card(
    model: keras.Model,
    run: str | os.PathLike,
    *,
    license: str,
    repo: str | None = None,
    data: str | None = None,
    description: str = "",
) -> str:
    """Returns the model card of a finished run, as Markdown with the Hub's YAML front matter.

    It describes the network, its input and output, how to load it, the scores of each class, the
    training and the limits. All figures are those in the files of the run: `metrics.json` and
    `dataset.json`, `run.json` and `history.csv` where they are there. Names are escaped, and of
    paths on this machine only the last part is written.

    Args:
        model: The model of the run, as in its `model.keras`.
        run: Folder of the run.
        license: Identifier of the licence that you give the model, such as `"cc-by-4.0"` or
            `"other"`. The licences of the data and of the initial weights may restrict it.
        repo: Repository on the Hub, `"USER/NAME"`, from which readers load the model.
        data: Name of the data set; by default that in `run.json`.
        description: Text after the title, in Markdown, which is not escaped.

    Returns:
        The text of `README.md`.

    Raises:
        ValueError: If the folder lacks a file, the model does not fit it, or an argument is
            malformed.

    Example:

    >>> model = keras_deeplab.load_model("runs/mine/model.keras", compile=False)
    >>> text = keras_deeplab.card(model, "runs/mine", license="cc-by-4.0", data="mydata")
    """
    if not isinstance(license, str) or not _LICENSE.fullmatch(license):
        rule = "the identifier of a licence, such as 'apache-2.0', 'cc-by-4.0' or 'other'"
        raise error("license", rule, license)
    if repo is not None:
        checked_repo(repo)
    folder = RunFolder(Path(run))
    info = DatasetInfo.from_dict(read_json(folder.dataset, ADVICE))
    scores = _scores(folder, info)
    spec, num_classes = logits_spec(model)
    if num_classes != info.num_classes:
        raise error("model", f"a model of {info.num_classes} classes, as the run's", num_classes)
    arguments = read_json(folder.arguments, ADVICE) if folder.arguments.exists() else {}
    data = data or _last_part(str(arguments.get("data", "")))
    if not data:
        raise error("data", "the name of the data set, as there is no run.json", data)
    name = repo.partition("/")[2] if repo else folder.path.resolve().name
    history = columns(folder.history)
    try:
        training = _training_section(arguments, history)
    except (KeyError, TypeError, ValueError) as fault:
        raise ValueError(
            f"{folder.arguments} lacks parts of a recipe: {fault}. {ADVICE}"
        ) from fault
    parts = [
        _front_matter(name, license, data, scores),
        f"# {escaped(name)}",
        description.strip(),
        f"![Images of {escaped(scores['split'])}, ground truth and predictions]"
        f"({folder.picture.name})"
        if folder.picture.exists()
        else "",
        _model_section(model, spec.shape, info),
        _use_section(repo, info, isinstance(unwrapped(model), SegmentationModel)),
        _scores_section(scores, info, data, history),
        training,
        _limits_section(scores, info, license),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """Returns plain text as Markdown: on one line, at most 1,000 characters, without markup."""
    return _SPECIAL.sub(r"\\\1", printable(text))


def _quoted(text: str) -> str:
    """A text as a double-quoted scalar of YAML, which has no unprintable characters."""
    plain = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text[:1000])
    return f'"{"".join(plain)}"'


def _last_part(path: str) -> str:
    """The name of a file or folder, with the reader before it; a relative path inside as it is."""
    is_path = re.match(r"[/\\~.]", path)
    reader, mark, place = ("", "", path) if is_path else path.rpartition(":")
    is_here = re.match(r"[/\\~.]", place) or (len(reader) == 1 and reader.isalpha())
    if not is_here:
        return path
    shown = PurePath(place.replace("\\", "/")).name
    return f"{reader}{mark}{shown}" if len(reader) > 1 else shown


def _scores(folder: RunFolder, info: DatasetInfo) -> dict[str, Any]:
    scores = read_json(folder.metrics, ADVICE)
    per_class = scores.get("per_class")
    tables = [per_class, *class_scores(scores).values()]
    numbers = [scores.get(key) for key in ("mean_iou", "pixel_accuracy", "images")]
    valid = all(isinstance(table, dict) for table in tables)
    valid = valid and isinstance(scores.get("split"), str)
    valid = valid and len(per_class) == info.num_classes and all(map(is_number, numbers))
    if not valid or not all(v is None or is_number(v) for v in per_class.values()):
        rule = f"scores of the {info.num_classes} classes of {folder.dataset.name}"
        raise ValueError(f"{folder.metrics} must hold {rule}. {ADVICE}")
    return scores


def _front_matter(name: str, license: str, data: str, scores: dict[str, Any]) -> str:
    metrics = {"mean IoU": "mean_iou", "pixel accuracy": "pixel_accuracy"}
    lines = [
        "---",
        "library_name: keras",
        f"license: {_quoted(license)}",
        "pipeline_tag: image-segmentation",
        "tags:",
        *(f"- {tag}" for tag in ("semantic-segmentation", "deeplab", "keras_deeplab")),
        "model-index:",
        f"- name: {_quoted(name)}",
        "  results:",
        "  - task:",
        "      type: image-segmentation",
        "    dataset:",
        f"      name: {_quoted(data)}",
        f"      type: {_quoted(data)}",
        f"      split: {_quoted(scores['split'])}",
        "    metrics:",
    ]
    for title, key in metrics.items():
        lines += [f"    - type: {key}", f"      name: {title}", f"      value: {scores[key]:.4f}"]
    return "\n".join([*lines, "---"])


def _model_section(model: keras.Model, shape: Any, info: DatasetInfo) -> str:
    network = unwrapped(model)
    config = network.get_config()
    backbone = config.get("backbone")
    kind = f"`{type(network).__name__}`"
    if isinstance(backbone, str):
        kind += f" on {escaped(backbone)}"
    if stride := getattr(network, "output_stride", None):
        kind += f", output stride {stride}"
    height, width = shape[1:3]
    size = "any size" if None in (height, width) else f"{width}x{height} (width x height)"
    colors = {1: "grey", 3: "RGB"}.get(info.channels, f"{info.channels} channels")
    lines = [
        "## Model\n",
        f"- **Network**: {kind}; {network.count_params():,} parameters.",
        f"- **Input**: {colors} pixels in 0..255 `(batch, height, width, {info.channels})`, "
        f"{size}.",
        f"- **Output**: logits `(batch, height, width, {info.num_classes})`.",
    ]
    if info.value_range is not None:
        low, high = info.value_range
        lines.append(f"- **Values**: {low:g} and {high:g} in image files become 0 and 255.")
    for around in multi_scales(model):
        scales = ", ".join(f"{scale:g}" for scale in around.scales)
        if around.is_image_scale:
            lines.append(f"- **Scale**: the network computes on the image at {scales} of its size.")
            continue
        mirrored = ", each also mirrored" if around.flip else ""
        lines.append(
            f"- **Test-time augmentation**: {around.fusion} of the scales {scales}{mirrored}; "
            "`model.model` is the network without it."
        )
    return "\n".join(lines)


def _use_section(repo: str | None, info: DatasetInfo, has_head: bool) -> str:
    source = f"hf://{repo}" if repo else "model.keras"
    extra = "\n`hf://` needs `pip install keras_deeplab[hub]`.\n" if repo else ""
    more = ""
    if has_head:
        more = f"""
`kd.from_pretrained("{source}", num_classes=5)` is the network with a new predictor, to train it on
other classes."""
    name, limits = "photo.jpg", ""
    if not Bands(info.channels, info.value_range).are_plain:
        name = "image.tif"
    if info.value_range is not None:
        limits = f", value_range=({info.value_range[0]:g}, {info.value_range[1]:g})"
    return f"""## Use

```python
import keras_deeplab as kd

model = kd.load_model("{source}")
labels = kd.predict(model, "{name}"{limits})  # (height, width): the class of each pixel
kd.export.saved_model(model, "saved_model")  # also export.litert, export.onnx
```

```
keras-deeplab predict --model {source} --images {name}
```
{extra}{more}""".replace("\n\n\n", "\n\n").rstrip()


def _scores_section(scores: dict[str, Any], info: DatasetInfo, data: str, history: Columns) -> str:
    split = escaped(scores["split"])
    lines = [
        "## Scores\n",
        f"On the {scores['images']:,} images of {split} of {escaped(data)}, whole images: "
        f"{_percent(scores['mean_iou'])} mean IoU, {_percent(scores['pixel_accuracy'])} pixel "
        "accuracy (in percent).",
    ]
    if scores["split"] == "train":
        lines.append("**These are images of the training**: expect lower scores on others.")
    elif scores["split"] == "val" and any(map(math.isfinite, history.get(MONITOR, ()))):
        lines.append(
            "The checkpoint with the best mean IoU on this split was kept: expect slightly lower "
            "scores on other images."
        )
    if is_number(scores.get("expected_calibration_error")):
        lines.append(
            f"The expected calibration error is {scores['expected_calibration_error']:.3f}."
        )
    columns = class_scores(scores)
    heads = ["class", "color", *columns]
    lines += ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, color in zip(scores["per_class"], info.colors, strict=True):
        red, green, blue = color
        cells = [escaped(name), f"`#{red:02x}{green:02x}{blue:02x}`"]
        cells += [_percent(values.get(name)) for values in columns.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return f"{100 * value:.1f}" if is_number(value) else "absent"


def _training_section(arguments: dict[str, Any], history: Columns) -> str:
    recipe = arguments.get("recipe")
    if not isinstance(recipe, dict):
        return ""
    steps = len(history.get("epoch", ())) * arguments.get("steps_per_epoch", 0) or recipe.get(
        "steps"
    )
    length = f"{steps:,} steps of {recipe['batch_size']:d} images" if steps else "no steps"
    height, width = recipe["crop_size"]
    low, high = recipe["scales"]
    changes = [key.replace("_", " ") for key in _AUGMENTATION if recipe.get(key)]
    lines = [
        "## Training\n",
        f"- **Recipe**: {escaped(str(recipe['name']))}, {length}, crops of {width:d}x{height:d} "
        "(width x height).",
        f"- **Optimizer**: {escaped(str(recipe['optimizer']))}, learning rate "
        f"{recipe['learning_rate']:g}, weight decay {recipe['weight_decay']:g}.",
        f"- **Loss**: {escaped(str(recipe['loss']))}.",
        f"- **Augmentation**: scales {low:g} to {high:g}{''.join(f', {c}' for c in changes)}.",
    ]
    if "weights" in arguments:
        weights = arguments["weights"]
        start = escaped(_last_part(str(weights))) if weights else "random weights"
        lines.append(f"- **Started from**: {start}.")
    if arguments.get("mixed_precision"):
        lines.append(f"- **Mixed precision**: {escaped(arguments['mixed_precision'])}.")
    return "\n".join(lines)


def _limits_section(scores: dict[str, Any], info: DatasetInfo, license: str) -> str:
    known = {name: iou for name, iou in scores["per_class"].items() if iou is not None}
    worst = sorted(known, key=known.__getitem__)[:_WORST]
    absent = [name for name in scores["per_class"] if name not in known]
    lines = [
        "## Limits and licence\n",
        f"- Every pixel gets one of the {info.num_classes} classes, also where none of them is "
        "there.",
        "- Expect lower scores on images of other places, cameras and light.",
    ]
    if worst:
        scored = ", ".join(f"{escaped(name)} ({_percent(known[name])})" for name in worst)
        lines.append(f"- Lowest IoU: {scored}.")
    if absent:
        lines.append(f"- Without a score, as they do not occur: {', '.join(map(escaped, absent))}.")
    lines.append(
        f"- Licence of the model: {escaped(license)}. The licences of the data and of the initial "
        "weights may restrict its use."
    )
    return "\n".join(lines)
