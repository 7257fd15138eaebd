"""The papers' recipes, and those for small data sets."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

from keras_deeplab import validation
from keras_deeplab.files import read_json
from keras_deeplab.recipes.recipe import Recipe

V1 = Recipe(
    name="v1",  # 1412.7062, section 5
    model={"align_corners": True},
    output_stride=8,
    crop_size=(321, 321),
    batch_size=20,
    steps=6_000,
    scales=(1.0, 1.0),
    loss="cross_entropy(stride=8)",
    learning_rate=1e-3,
    schedule="step",
    weight_decay=5e-4,
    classifier_lr_multiplier=10,
    classifier_bias_lr_multiplier=20,
)

V2 = Recipe(
    name="v2",  # 1606.00915, section 4.1
    model={"align_corners": True},
    output_stride=8,
    crop_size=(321, 321),
    batch_size=10,
    steps=20_000,
    scales=(0.5, 1.5),
    loss="cross_entropy(stride=8)",
    multi_scale=(0.5, 0.75, 1.0),
    learning_rate=2.5e-4,
    weight_decay=5e-4,
    classifier_lr_multiplier=10,
    classifier_bias_lr_multiplier=20,
    batch_norm="freeze",
)

V3 = Recipe(
    name="v3",  # 1706.05587, section 4
    output_stride=16,
    crop_size=(513, 513),
    batch_size=16,
    steps=30_000,
    weight_decay=1e-4,
    batch_norm_memory=1 / 9,  # a momentum of 0.9997
    stage2_share=1.0,
    stage2_lr_multiplier=1 / 7,  # 0.001
)

V3_PLUS = V3.replace(
    name="v3_plus",  # 1802.02611, section 4
    scale_step=0.25,
    weight_decay=4e-5,
)

# For a few hundred photographs; examples/camvid shows what it reaches. Scales around 1 and many
# small batches: on recordings held out of CamVid's training this gained about three points over
# half as many batches of 8 at scales of 0.75 to 2.5, in less time. Without class weights CamVid's
# poles were predicted on a third as many pixels as they have, in a sequence like those of the
# training; with the square root of median frequency balancing on twice as many, in another one. Its
# fourth root is between.
FINETUNE = Recipe(
    name="finetune",
    model={"detail_layer": "auto", "decoder_filters": 128},
    batch_size=4,
    steps=4_800,
    color_jitter={
        "brightness": 0.5,
        "contrast": 0.4,
        "saturation": 0.4,
        "gamma": 0.5,
        "white_balance": 0.15,
    },
    class_focus=0.3,
    loss="cross_entropy + 0.5 * lovasz_softmax(stride=2)",
    class_weights="median",
    class_weights_power=0.25,
    optimizer="adamw",
    learning_rate=6e-4,
    warmup_share=1 / 24,
    weight_decay=1e-2,
    clipnorm=5.0,
)

# For weights that begin at random: at the learning rate of `finetune` 550 steps reached 24 % mean
# IoU on drawn textures, at this one 47 %; 126 steps on micrographs 48 % and 62 %.
SCRATCH = FINETUNE.replace(name="scratch", learning_rate=3e-3)

# For `data.Shapes`, which are drawn in all sizes and colours, with no class rare or thin: most of
# the augmentation only costs time.
SHAPES = FINETUNE.replace(
    name="shapes",
    batch_size=8,
    steps=800,
    scales=(1.0, 1.0),
    color_jitter=None,
    class_focus=0.0,
    loss="cross_entropy + 0.5 * lovasz_softmax(stride=4)",
    class_weights=None,
    learning_rate=6e-3,
    warmup_share=0.1,
)

RECIPES = {recipe.name: recipe for recipe in (V1, V2, V3, V3_PLUS, FINETUNE, SCRATCH, SHAPES)}

# Overrides by recipe and pattern (of the module fnmatch) of the network's name:
# the papers', and smaller steps for networks without batch norm.
OVERRIDES = {
    ("v2", "vgg16"): {"learning_rate": 1e-3},
    ("v3_plus", "resnet*"): {"weight_decay": 1e-4},
}
for _recipe in (FINETUNE, SCRATCH, SHAPES):
    for _network in ("vgg16", "unet"):
        OVERRIDES[_recipe.name, _network] = {"learning_rate": 3e-4}


CHOICES = (*RECIPES, "FILE.json")
ADVICE = "It must be run.json of a run, tuning.json of a search, or an object of a recipe's values."


def get(name: str | os.PathLike, network: str | None = None) -> Recipe:
    """Returns the recipe of a name or in a file.

    Args:
        name: "v1", "v2", "v3", "v3_plus", "finetune", "scratch" or "shapes"; or the path of a
            `.json` file: `run.json` of a run, `tuning.json` of a search, or an object of a recipe's
            values, of which those that are not given are the defaults of `Recipe`.
        network: Name of the backbone to train, or "unet" for U-Net's own network, for the values
            of a name that differ with it.

    Raises:
        ValueError: If there is no such recipe, or the file does not hold one.

    Example:

    >>> keras_deeplab.recipes.get("v3_plus").weight_decay
    4e-05
    >>> keras_deeplab.recipes.get("v3_plus", "resnet101_beta").weight_decay
    0.0001
    """
    if is_file(name):
        return _read(Path(name))
    recipe = RECIPES[validation.one_of("name", name, CHOICES)]
    for (of, pattern), changes in OVERRIDES.items():
        if of == name and fnmatchcase(network or "", pattern):
            recipe = recipe.replace(**changes)
    return recipe


def is_file(name: str | os.PathLike) -> bool:
    """Whether `name` of `get` is the path of a file."""
    return str(name).lower().endswith(".json")


def _read(path: Path) -> Recipe:
    if not path.is_file():
        raise validation.error("name", "an existing file", str(path), ADVICE)
    content = read_json(path, ADVICE)
    values = content.get("recipe", content)
    try:
        if not isinstance(values, dict):
            raise validation.error("recipe", "an object of values", values)
        return Recipe.from_dict({"name": path.stem, **values})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
