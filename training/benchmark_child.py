"""A network that trains in a process of its own, step by step as `training.benchmark` asks.

It is run by its path, so that a process with torch does not hold TensorFlow's memory too: nothing
of the project is imported but where its own network is built.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CLASSES = 21
IGNORED = 255
LEARNING_RATE = 1e-4
WARM_UP = 2  # the first step traces, the second still fills caches of memory and kernels

Step = Callable[[], float]


@dataclass(frozen=True)
class Network:
    """A DeepLabV3+ as it can be had in several packages."""

    backbone: str
    separable: bool
    output_stride: int


NETWORKS = {
    "resnet50": Network("resnet50", True, 16),
    "mobilenet_v2": Network("mobilenet_v2", True, 16),
    # What KerasHub has: convolutions that are not separable, on features of stride 32.
    "resnet50_dense_32": Network("resnet50", False, 32),
}
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """What a process trains; `size` is (height, width), `threads` are those that compute."""

    package: str
    network: str
    dtype: str
    size: tuple[int, int]
    batch_size: int
    threads: int

    def to_json(self) -> str:
        """The command line of the process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        """The case of a command line."""
        return cls(**json.loads(text))


def keras_deeplab(case: Case) -> tuple[Step, int]:
    """This package's network and its number of parameters."""
    _limit_tensorflow(case.threads)
    import keras_deeplab as kd

    network = NETWORKS[case.network]
    model = kd.DeepLabV3Plus(
        CLASSES,
        network.backbone,
        output_stride=network.output_stride,
        separable=network.separable,
        dtype=_policy(case),
    )
    return _keras_step(model, kd.losses.CrossEntropy(IGNORED), case)


def keras_hub(case: Case) -> tuple[Step, int]:
    """KerasHub's network, built as its preset for PASCAL VOC is."""
    _limit_tensorflow(case.threads)
    import keras
    import keras_hub as hub

    if case.network != "resnet50_dense_32":
        raise ValueError(f"KerasHub has no {case.network}.")
    keras.config.set_dtype_policy(_policy(case))
    encoder = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
    )
    backbone = hub.models.DeepLabV3Backbone(
        image_encoder=encoder,
        spatial_pyramid_pooling_key="P5",
        low_level_feature_key="P2",
        projection_filters=48,
        upsampling_size=8,
        dilation_rates=[6, 12, 18],
        # Its resizing cannot be traced with sizes that are not known.
        image_shape=(*case.size, 3),
    )
    # It compiles itself, with an accuracy that a second compilation would not take away again.
    model = hub.models.DeepLabV3ImageSegmenter(backbone, num_classes=CLASSES, compile=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)
    return _keras_step(model, loss, case)


def _limit_tensorflow(threads: int) -> None:
    """Sets the threads that compute, before anything has started them."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def _policy(case: Case) -> str:
    return "float32" if case.dtype == "float32" else f"mixed_{case.dtype}"


def _keras_step(model: Any, loss: Any, case: Case) -> tuple[Step, int]:
    import keras
    import tensorflow as tf

    # KerasHub's compile counts an accuracy unless it is told not to.
    model.compile(keras.optimizers.AdamW(LEARNING_RATE), loss, metrics=None)
    model.optimizer.build(model.trainable_variables)
    shape = (case.batch_size, *case.size)
    images = tf.random.uniform((*shape, 3), 0.0, 255.0)
    labels = tf.random.uniform(shape, 0, CLASSES, tf.int32)
    step = lambda: float(model.train_on_batch(images, labels))  # noqa: E731
    return step, model.count_params()


def segmentation_models_pytorch(case: Case, channels_last: bool = False) -> tuple[Step, int]:
    """The network of segmentation_models.pytorch."""
    import torch

    _declare_operators(torch)
    import segmentation_models_pytorch as smp

    torch.set_num_threads(case.threads)
    network = NETWORKS[case.network]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = smp.DeepLabV3Plus(
        network.backbone,
        encoder_weights=None,
        encoder_output_stride=network.output_stride,
        decoder_atrous_rates=(6, 12, 18),
        decoder_aspp_separable=network.separable,
        classes=CLASSES,
    )
    model = model.train().to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    loss_of = torch.nn.CrossEntropyLoss(ignore_index=IGNORED)
    shape = (case.batch_size, *case.size)
    # Scaled pixels: it leaves the scaling to the user, who does it while reading.
    images = torch.randn(case.batch_size, 3, *case.size).to(memory_format=layout)
    labels = torch.randint(0, CLASSES, shape)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
            loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, sum(parameter.numel() for parameter in model.parameters())


def segmentation_models_pytorch_channels_last(case: Case) -> tuple[Step, int]:
    """The same with channels last in memory, as torch's performance guide advises."""
    return segmentation_models_pytorch(case, channels_last=True)


def _declare_operators(torch: Any) -> None:
    """Lets torchvision be imported where its compiled operators are for another build of torch.

    The networks need none of them, but the import describes these two and fails where they are
    not there (torch for the CPU beside a torchvision for CUDA).
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT: list[Any] = []  # a library's operators go with it

PACKAGES: dict[str, Callable[[Case], tuple[Step, int]]] = {
    "keras_deeplab": keras_deeplab,
    "segmentation_models_pytorch": segmentation_models_pytorch,
    "segmentation_models_pytorch_channels_last": segmentation_models_pytorch_channels_last,
    "keras_hub": keras_hub,
}


def peak_bytes() -> int:
    """The most memory that this process had, in bytes.

    Linux hands `ru_maxrss` of the parent, which may be large, down to a child; its own high-water
    mark begins with the program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Builds the network, then answers every line of the input with one timed step."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    case = Case.from_json(sys.argv[1])
    step, parameters = PACKAGES[case.package](case)
    for _ in range(WARM_UP):
        step()
    answer(parameters=parameters)
    for _ in sys.stdin:
        begin, begin_processor = time.perf_counter(), time.process_time()
        loss = step()
        seconds, processor = time.perf_counter() - begin, time.process_time() - begin_processor
        answer(seconds=seconds, processor_seconds=processor, loss=loss)
    answer(peak_bytes=peak_bytes())


if __name__ == "__main__":
    main()
