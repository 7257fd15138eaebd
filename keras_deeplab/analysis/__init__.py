"""Receptive fields, theoretical and effective; live kernel taps; the cost of a network."""

from keras_deeplab.analysis.cost import CostEstimate, StageCost, cost
from keras_deeplab.analysis.drawing import fields_picture, pyramid_picture, taps_picture
from keras_deeplab.analysis.effective_field import EffectiveField, effective_receptive_field
from keras_deeplab.analysis.live_taps import LiveTaps, live_taps
from keras_deeplab.analysis.page import receptive_field_page
from keras_deeplab.analysis.receptive_field import ReceptiveFields, Stage, receptive_field
from keras_deeplab.analysis.transposed_field import transposed_receptive_field

__all__ = [
    "CostEstimate",
    "EffectiveField",
    "LiveTaps",
    "ReceptiveFields",
    "Stage",
    "StageCost",
    "cost",
    "effective_receptive_field",
    "fields_picture",
    "live_taps",
    "pyramid_picture",
    "receptive_field",
    "receptive_field_page",
    "taps_picture",
    "transposed_receptive_field",
]
