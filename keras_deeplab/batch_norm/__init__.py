"""Batch norms of a whole model: how they are trained, and how their statistics are re-estimated."""

from keras_deeplab.batch_norm.policy import POLICIES, momentum_for, set_policy
from keras_deeplab.batch_norm.refreshing import refresh_batch_norm

__all__ = ["POLICIES", "momentum_for", "refresh_batch_norm", "set_policy"]
