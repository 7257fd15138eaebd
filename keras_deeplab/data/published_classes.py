"""The classes of data sets in TensorFlow Datasets whose masks do not name them."""

from __future__ import annotations

from keras_deeplab.data.label_codes import Settings

# Label ids of Cityscapes: the 19 classes of the benchmark and their colours; the other ids are not
# evaluated. https://github.com/mcordts/cityscapesScripts (helpers/labels.py)
_CITYSCAPES = {
    7: ("road", (128, 64, 128)),
    8: ("sidewalk", (244, 35, 232)),
    11: ("building", (70, 70, 70)),
    12: ("wall", (102, 102, 156)),
    13: ("fence", (190, 153, 153)),
    17: ("pole", (153, 153, 153)),
    19: ("traffic light", (250, 170, 30)),
    20: ("traffic sign", (220, 220, 0)),
    21: ("vegetation", (107, 142, 35)),
    22: ("terrain", (152, 251, 152)),
    23: ("sky", (70, 130, 180)),
    24: ("person", (220, 20, 60)),
    25: ("rider", (255, 0, 0)),
    26: ("car", (0, 0, 142)),
    27: ("truck", (0, 0, 70)),
    28: ("bus", (0, 60, 100)),
    31: ("train", (0, 80, 100)),
    32: ("motorcycle", (0, 0, 230)),
    33: ("bicycle", (119, 11, 32)),
}
# TFDS' scene_parse150 has the masks of the instance task, with 100 of the 150 classes, in the red
# channel. https://github.com/CSAILVision/placeschallenge (instancesegmentation)
_SCENE_PARSE = (
    "bed|windowpane|cabinet|person|door|table|curtain|chair|car|painting|sofa|shelf|mirror|armchair|"
    "seat|fence|desk|wardrobe|lamp|bathtub|railing|cushion|box|column|signboard|chest of drawers|"
    "counter|sink|fireplace|refrigerator|stairs|case|pool table|pillow|screen door|bookcase|"
    "coffee table|toilet|flower|book|bench|countertop|stove|palm|kitchen island|computer|"
    "swivel chair|boat|arcade machine|bus|towel|light|truck|chandelier|awning|streetlight|booth|"
    "television receiver|airplane|apparel|pole|bannister|ottoman|bottle|van|ship|fountain|washer|"
    "plaything|stool|barrel|basket|bag|minibike|oven|ball|food|step|trade name|microwave|pot|"
    "animal|bicycle|dishwasher|screen|sculpture|hood|sconce|vase|traffic light|tray|ashcan|fan|"
    "plate|monitor|bulletin board|radiator|glass|clock|flag"
).split("|")

PUBLISHED = {
    "oxford_iiit_pet": Settings(("pet", "background", "border"), values=(1, 2, 3)),
    "scene_parse150": Settings(tuple(_SCENE_PARSE), tuple(range(1, 101)), ignore_label=(0,)),
    "cityscapes": Settings(
        tuple(name for name, _ in _CITYSCAPES.values()),
        tuple(_CITYSCAPES),
        tuple(color for _, color in _CITYSCAPES.values()),
        ignore_label=tuple(sorted({*range(34), 255} - set(_CITYSCAPES))),
    ),
}
# Masks with the classes in the red channel of RGB.
IN_RED_CHANNEL = ("scene_parse150",)
