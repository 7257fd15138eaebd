"""The classes of data sets in TensorFlow Datasets whose masks do not name them."""

from __future__ import annotations

from keras_deeplab.data.label_codes import Settings
from keras_deeplab.data.readers.cityscapes import CLASSES, IDS, IGNORED, Cityscapes

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
    "cityscapes": Settings(tuple(CLASSES), IDS, Cityscapes.info.colors, ignore_label=IGNORED),
}
# Masks with the classes in the red channel of RGB.
IN_RED_CHANNEL = ("scene_parse150",)
