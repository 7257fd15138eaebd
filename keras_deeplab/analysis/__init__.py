"""Receptive fields, theoretical and effective; live kernel taps; the cost of a network."""

from keras_deeplab.analysis.cost import CostEstimate, StageCost, cost
from keras_deeplab.analysis.effective_field import EffectiveField, effective_receptive_field
from keras_deeplab.analysis.live_taps import LiveTaps, live_taps
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
    "live_taps",
    "receptive_field",
    "transposed_receptive_field",
]
