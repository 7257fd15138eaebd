"""Errors where `keras.Model` would silently misuse a model that is trained on label maps."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.labels import warn_of_masks


class LabelMapTraining:
    """Mixin of models: calls in which Keras would silently do something else are errors."""

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`, but `class_weight` for label maps is an error."""
        self._check_class_weight(kwargs.get("class_weight"))
        if isinstance(y, np.ndarray | tf.Tensor) and len(self.output_shape) == 4:
            loss = getattr(self, "loss", None)
            for part in getattr(loss, "losses", [loss]):  # of a sum of losses each
                if isinstance(part, keras.losses.Loss):
                    warn_of_masks(y, self.output_shape[-1], getattr(part, "ignore_label", None))
        return super().fit(x, y, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`, but `class_weight` for label maps is an error."""
        self._check_class_weight(kwargs.get("class_weight"))
        return super().train_on_batch(x, y, *args, **kwargs)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`, but HDF5, which Keras would write and not load, is an error."""
        if str(filepath).lower().endswith((".h5", ".hdf5")):
            raise ValueError(
                "`filepath` must end in .keras: Keras cannot load this model from its older HDF5 "
                f"format. Received: filepath={str(filepath)!r}. For the weights alone use "
                "`model.save_weights` with a name that ends in .weights.h5."
            )
        super().save(filepath, *args, **kwargs)

    def _check_class_weight(self, class_weight: Any) -> None:
        # Keras looks up one label per image: a TypeError of arrays, and of data sets wrong weights.
        if class_weight is not None and len(self.output_shape) == 4:
            raise ValueError(
                "`class_weight` must be None for label maps. Received: class_weight="
                f"{class_weight!r}. Give the weights to the loss: "
                "`CrossEntropy(class_weights=[...])`, one per class."
            )

    # Only `keras.models.clone_model` passes both of these. It would return a `Functional` without
    # the model's methods, configuration and auxiliary head.
    def _run_through_graph(self, *args: Any, **kwargs: Any) -> Any:
        if {"operation_fn", "call_fn"} <= kwargs.keys():
            name = type(self).__name__
            raise ValueError(
                f"A {name} must not be cloned by `clone_model`, which keeps neither its class nor "
                f"an auxiliary head. Use `{name}.from_config(model.get_config())` for a model with "
                "new weights, `copy.deepcopy(model)` for one with the same, or clone the plain "
                "network `keras.Model(model.inputs, model.outputs)`."
            )
        return super()._run_through_graph(*args, **kwargs)
