"""The cost of a network, estimated from its geometry: parameters, multiply-adds, peak memory."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_deeplab.analysis.receptive_field import stage_name
from keras_deeplab.analysis.table import text_table
from keras_deeplab.graph import Geometry, geometry, multiply_adds
from keras_deeplab.graph.network import functional, is_network, top_level_calls
from keras_deeplab.validation import integer

LARGEST_BATCH = 4096
# Fitted to the growth of a process by training steps of seven networks on a CPU in float32, within
# 10 %: what a traced step takes besides tensors, the trained weights again for their
# gradients and reordered kernels, the share of all layers' outputs that is kept, and the outputs
# that are in use at one time for their gradients.
TRACED_BYTES = 243_000_000
GRADIENT_COPIES = 1.8
KEPT_SHARE = 0.98
WORKING_COPIES = 2.1
# Fitted to predictions of eight networks, within 11 %: what TensorFlow takes, what each layer of a
# graph takes, and the share of the maps in use.
PREDICTION_BYTES = 172_000_000
LAYER_BYTES = 140_000
MAP_SHARE = 0.9


@dataclass(frozen=True)
class StageCost:
    """Parameters and multiply-adds, for one image, of a stage of `receptive_field`."""

    name: str
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class CostEstimate:
    """The cost of a network; `print` shows it. `trainer.training_cost` measures it instead.

    Attributes:
        size: `(height, width)` of the image.
        batch_size: Images in a batch.
        parameters: Of the layers of predictions (an auxiliary head has none), trained or not.
        multiply_adds: For one image, as `graph.multiply_adds` counts them.
        stages: A `StageCost` for each stage that has weights.
        training_bytes: By how much a training step lets the process grow at most.
        inference_bytes: By how much a prediction of logits lets the process grow at most.
        largest_training_batch, largest_inference_batch: The most images, up to 4096, whose peak is
            within the memory (0: not even one); None if no memory was given.
    """

    size: tuple[int, int]
    batch_size: int
    parameters: int
    multiply_adds: int
    stages: tuple[StageCost, ...]
    training_bytes: int
    inference_bytes: int
    largest_training_batch: int | None
    largest_inference_batch: int | None

    def __str__(self) -> str:
        rows: list[tuple[object, ...]] = [("stage", "parameters", "multiply-adds (M)")]
        for stage in self.stages:
            rows.append((stage.name, f"{stage.parameters:,}", f"{stage.multiply_adds / 1e6:,.1f}"))
        rows.append(("total", f"{self.parameters:,}", f"{self.multiply_adds / 1e6:,.1f}"))
        height, width = self.size
        lines = [
            text_table(rows),
            f"Estimated peak memory for {self.batch_size} images of {width}x{height}: training "
            f"{self.training_bytes / 1e9:.2f} GB, inference {self.inference_bytes / 1e9:.2f} GB",
        ]
        if self.largest_training_batch is not None:
            lines.append(
                f"Largest batch for the memory: training {self.largest_training_batch}, inference "
                f"{self.largest_inference_batch}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict for `json.dump`."""
        return asdict(self)


def cost(
    model: keras.Model,
    height: int,
    width: int,
    batch_size: int = 1,
    *,
    slots: int = 1,
    memory: int | None = None,
) -> CostEstimate:
    """Estimates what a network takes, without running it.

    Training takes the weights, their gradients, the optimizer's slots, the maps of all layers, a
    working set for their gradients, and the traced step. Inference takes the weights, the maps that
    a later layer still reads, and the graph. The factors were fitted to measurements on a CPU;
    another processor or a GPU has others.

    Args:
        model: A functional Keras model or a built Sequential, channels last.
        height, width: Size of the image in pixels.
        batch_size: Images in a batch.
        slots: Values that the optimizer keeps for each weight: 1 for SGD with momentum, 2 for Adam.
        memory: Bytes for which the largest batch is computed.

    Returns:
        A `CostEstimate`.

    Raises:
        ValueError: If an argument is out of its range, or as of `graph.geometry`.

    Example:

    >>> network = keras.applications.VGG16(include_top=False, weights=None)
    >>> estimate = keras_deeplab.analysis.cost(network, 224, 224)
    >>> estimate.parameters, estimate.multiply_adds
    (14714688, 15346630656)

    Reference:
        [Chen et al., 2016](https://arxiv.org/abs/1604.06174), section 3: the maps that training
        keeps.
    """
    size = (integer("height", height), integer("width", width))
    batch_size = integer("batch_size", batch_size)
    slots = integer("slots", slots, minimum=0)
    graph = getattr(model, "training_graph", None)
    inference, sizes = _maps(model, size)
    training, trained_sizes = (inference, sizes) if graph is None else _maps(graph, size)

    weights, trained = _bytes(model.weights), _bytes(model.trainable_weights)
    kept = KEPT_SHARE * sum(trained_sizes[id(output)] for _, _, output in training.calls)
    kept += WORKING_COPIES * _live_bytes(training, trained_sizes)

    live = _live_bytes(inference, sizes)

    def training_bytes(images: int) -> int:
        of_weights = weights + (GRADIENT_COPIES + slots) * trained
        return TRACED_BYTES + int(of_weights + images * kept)

    def inference_bytes(images: int) -> int:
        graph_bytes = PREDICTION_BYTES + LAYER_BYTES * len(inference.calls)
        return graph_bytes + weights + int(MAP_SHARE * images * live)

    peaks, largest = (training_bytes, inference_bytes), [None, None]
    if memory is not None:
        memory, batches = integer("memory", memory), range(1, LARGEST_BATCH + 1)
        largest = [bisect.bisect_right(batches, memory, key=peak) for peak in peaks]
    counts = multiply_adds(model, *size)
    networks = {call.path for call in top_level_calls(model) if is_network(call.operation)}
    parameters: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    counted: set[int] = set()
    for call, _, _ in inference.calls:
        name = stage_name(call.path, networks)
        for weight in getattr(call.operation, "weights", ()):
            if id(weight) not in counted:  # a layer may be used at several places
                parameters[name] += math.prod(weight.shape)
                counted.add(id(weight))
    for path, count in counts.items():
        operations[stage_name(path, networks)] += count
    totals = parameters.total(), operations.total()
    stages = tuple(StageCost(name, n, operations[name]) for name, n in parameters.items())
    return CostEstimate(
        size, batch_size, *totals, stages, *(peak(batch_size) for peak in peaks), *largest
    )


def _maps(model: keras.Model, size: tuple[int, int]) -> tuple[Geometry, dict[int, int]]:
    """The geometry of a network, and by the id of a tensor's geometry its bytes for one image."""
    found = geometry(model, *size)
    maps = list(zip(functional(model).inputs, found.inputs, strict=True))
    maps += [(call.outputs[0], output) for call, _, output in found.calls]
    sizes = {}
    for tensor, of_map in maps:
        values = math.prod(n or 1 for n in (*of_map.size, tensor.shape[-1]))
        sizes[id(of_map)] = values * tf.as_dtype(tensor.dtype).size
    return found, sizes


def _bytes(weights: Any) -> int:
    return sum(math.prod(weight.shape) * tf.as_dtype(weight.dtype).size for weight in weights)


def _live_bytes(found: Geometry, sizes: dict[int, int]) -> int:
    """The peak for one image of the maps that a later layer reads."""
    read = [{id(of_map) for of_map in inputs} for _, inputs, _ in found.calls]
    last = {number: index for index, numbers in enumerate(read) for number in numbers}
    live = peak = sum(sizes[number] for numbers in read[:1] for number in numbers)
    for index, (_, _, output) in enumerate(found.calls):
        live += sizes[id(output)]
        peak = max(peak, live)
        live -= sum(sizes[number] for number in read[index] if last[number] == index)
    return peak
