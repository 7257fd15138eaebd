"""The papers' recipes, and one for small data sets."""

from __future__ import annotations

from fnmatch import fnmatchcase

from keras_deeplab.names import suggestion
from keras_deeplab.recipes.recipe import Recipe

V1 = Recipe(
    name="v1",  # 1412.7062, section 4.1
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
    classifier_learning_rate=10,
    classifier_bias_learning_rate=20,
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
    classifier_learning_rate=10,
    classifier_bias_learning_rate=20,
    batch_norm="freeze",
)

V3 = Recipe(
    name="v3",  # 1706.05587, section 4
    output_stride=16,
    crop_size=(513, 513),
    batch_size=16,
    steps=30_000,
    weight_decay=1e-4,
    batch_norm_momentum=0.9997,
    fine_steps=30_000,
    fine_learning_rate=1e-3,
)

V3_PLUS = V3.replace(
    name="v3_plus",  # 1802.02611, section 4
    scale_step=0.25,
    weight_decay=4e-5,
)

# For a few hundred photographs; examples/camvid shows what it reaches. Larger scales than the
# papers': what is thin is learnt where it is a few pixels wide. Without class weights CamVid's
# poles were predicted on a third as many pixels as they have, in a sequence like those of the
# training; with the square root of median frequency balancing on twice as many, in another one.
# Its fourth root is between.
FINETUNE = Recipe(
    name="finetune",
    model={"detail_layer": "auto", "decoder_filters": 128},
    output_stride=None,
    batch_size=8,
    steps=2_400,
    scales=(0.75, 2.5),
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
    warmup_steps=100,
    weight_decay=1e-2,
    clipnorm=5.0,
)

# What the papers say of some backbones alone; `*` as in the module fnmatch.
OF_BACKBONES = {
    ("v2", "vgg16"): {"learning_rate": 1e-3},
    ("v3_plus", "resnet*"): {"weight_decay": 1e-4},
}

RECIPES = {recipe.name: recipe for recipe in (V1, V2, V3, V3_PLUS, FINETUNE)}


def find(name: str, backbone: str | None = None) -> Recipe:
    """The recipe of a name.

    Args:
        name: "v1", "v2", "v3", "v3_plus" or "finetune".
        backbone: Name of the backbone to train, for what a paper does otherwise with it: V2 is five
            times as fast on VGG16, V3+ decays weights more on ResNets.

    Raises:
        ValueError: If there is no such recipe; the error lists those there are.

    Example:

    >>> keras_deeplab.recipes.find("v3_plus").weight_decay
    4e-05
    >>> keras_deeplab.recipes.find("v3_plus", "resnet101_beta").weight_decay
    0.0001
    """
    if name not in RECIPES:
        raise ValueError(
            f"`name` must be one of {tuple(RECIPES)}, received {name!r}.{suggestion(name, RECIPES)}"
        )
    recipe = RECIPES[name]
    for (of, pattern), changes in OF_BACKBONES.items():
        if of == name and fnmatchcase(backbone or "", pattern):
            recipe = recipe.replace(**changes)
    return recipe
