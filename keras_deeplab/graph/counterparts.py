"""The operations of a rewritten network, each standing for one of the original's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_deeplab.graph.network import Call, clone_operation, copy_weights
from keras_deeplab.layers import BatchNormalization


class Counterparts:
    """Makes and remembers the new operations, their names and where their weights come from.

    Args:
        own_batch_norms: Whether Keras' batch norms become the package's.
    """

    def __init__(self, *, own_batch_norms: bool = False) -> None:
        self._own_batch_norms = own_batch_norms
        self._made: dict[int, tuple[Any, Any, dict[str, Any]]] = {}
        self._names: set[str] = set()

    def name(self, wanted: str) -> str:
        """The wanted name, numbered if it is taken (as when nested models are dissolved)."""
        name, count = wanted, 1
        while name in self._names:
            name, count = f"{wanted}_{count}", count + 1
        self._names.add(name)
        return name

    def clone(self, call: Call, **changes: Any) -> Any:
        """The same operation with changed settings."""
        made_class = type(call.operation)
        if self._own_batch_norms and made_class is keras.layers.BatchNormalization:
            made_class = BatchNormalization
        return self._once(
            call, changes, lambda name: clone_operation(call.operation, name, made_class, **changes)
        )

    def replaced(self, call: Call, layer_class: type[keras.layers.Layer], **settings: Any) -> Any:
        """A layer of another class in the place of an operation without weights."""
        policy = call.operation.dtype_policy
        return self._once(
            call, settings, lambda name: layer_class(name=name, dtype=policy, **settings)
        )

    def _once(self, call: Call, settings: dict[str, Any], build: Callable[[str], Any]) -> Any:
        """One counterpart for all uses of an operation, which must need the same settings."""
        if id(call.operation) not in self._made:
            made = build(self.name(call.operation.name))
            self._made[id(call.operation)] = (call.operation, made, settings)
        _, made, made_with = self._made[id(call.operation)]
        if made_with != settings:
            raise ValueError(
                f"The layer '{call.path}' is used at two strides and would need both {made_with} "
                f"and {settings}: a shared layer must stay at one stride."
            )
        return made

    def copy_weights(self) -> None:
        """Gives every counterpart the weights of its original."""
        for original, made, _ in self._made.values():
            copy_weights(original, made)
