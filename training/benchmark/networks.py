"""One network that trains in its own process, a step for each line of its input.

It is run by its path, so that a process with torch does not hold TensorFlow's memory too: nothing
of the project is imported but where its own network is built.
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Case  # package, network, dtype, size, batch_size, threads
from typing import Any

CLASSES = 21
IGNORED = 255
LEARNING_RATE = 1e-4
WARM_UP = 2  # the first step traces, the second still fills caches of memory and kernels

Step = Callable[[], float]


# The DeepLabV3+ that several packages have: arguments of ours.
NETWORKS = {
    "resnet50": {"backbone": "resnet50", "separable": True, "output_stride": 16},
    "mobilenet_v2": {"backbone": "mobilenet_v2", "separable": True, "output_stride": 16},
    # KerasHub's: convolutions that are not separable, on features of stride 32.
    "resnet50_dense_32": {"backbone": "resnet50", "separable": False, "output_stride": 32},
}
DTYPES = ("float32", "bfloat16")


def keras_deeplab(case: Case) -> tuple[Step, int]:
    """This package's network and its number of parameters."""
    policy = _policy(case)
    import keras_deeplab as kd

    model = kd.DeepLabV3Plus(CLASSES, **NETWORKS[case.network], dtype=policy)
    return _keras_step(model, kd.losses.CrossEntropy(IGNORED), case)


def keras_hub(case: Case) -> tuple[Step, int]:
    """KerasHub's network, built as its preset for PASCAL VOC is."""
    policy = _policy(case)
    import keras
    import keras_hub as hub

    keras.config.set_dtype_policy(policy)
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
    # Not compiled: it would count an accuracy that a second compilation does not remove.
    model = hub.models.DeepLabV3ImageSegmenter(backbone, num_classes=CLASSES, compile=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)
    return _keras_step(model, loss, case)


def _policy(case: Case) -> str:
    """Sets the threads, before anything has started them, and returns the dtype policy."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(case.threads)
    tf.config.threading.set_inter_op_parallelism_threads(case.threads)
    return "float32" if case.dtype == "float32" else f"mixed_{case.dtype}"


def _keras_step(model: Any, loss: Any, case: Case) -> tuple[Step, int]:
    import keras
    import tensorflow as tf

    # KerasHub's compile counts an accuracy unless metrics are None.
    model.compile(keras.optimizers.AdamW(LEARNING_RATE), loss, metrics=None)
    model.optimizer.build(model.trainable_variables)
    shape = (case.batch_size, *case.size)
    images = tf.random.uniform((*shape, 3), 0.0, 255.0)
    labels = tf.random.uniform(shape, 0, CLASSES, tf.int32)
    step = lambda: float(model.train_on_batch(images, labels))  # noqa: E731
    return step, model.count_params()


def segmentation_models_pytorch(case: Case, channels_last: bool = False) -> tuple[Step, int]:
    """The network of segmentation_models.pytorch, also in torch's faster memory format."""
    import segmentation_models_pytorch as smp
    import torch

    torch.set_num_threads(case.threads)
    network = NETWORKS[case.network]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = smp.DeepLabV3Plus(
        network["backbone"],
        encoder_weights=None,
        encoder_output_stride=network["output_stride"],
        decoder_atrous_rates=(6, 12, 18),
        decoder_aspp_separable=network["separable"],
        classes=CLASSES,
    )
    model = model.train().to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    loss_of = torch.nn.CrossEntropyLoss(ignore_index=IGNORED)
    # Scaled pixels: this package leaves the scaling to the user, who does it while reading.
    images = torch.randn(case.batch_size, 3, *case.size).to(memory_format=layout)
    labels = torch.randint(0, CLASSES, (case.batch_size, *case.size))

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
            loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, sum(parameter.numel() for parameter in model.parameters())


BUILDERS: dict[str, Callable[[Case], tuple[Step, int]]] = {
    "keras_deeplab": keras_deeplab,
    "segmentation_models_pytorch": segmentation_models_pytorch,
    "segmentation_models_pytorch_channels_last": functools.partial(
        segmentation_models_pytorch, channels_last=True
    ),
    "keras_hub": keras_hub,
}


def peak_bytes() -> int:
    """Returns the largest memory of this process.

    Linux hands `ru_maxrss` of the parent, which may be large, down to a child; the high-water mark
    in /proc begins with the program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(line) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Builds the network, then makes one timed step for every line of the input."""
    # Libraries print to stderr, so that stdout holds the results alone.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def write(**content: Any) -> None:
        print(json.dumps(content), file=results, flush=True)

    case = Case(**json.loads(sys.argv[1]))
    step, parameters = BUILDERS[case.package](case)
    for _ in range(WARM_UP):
        step()
    write(parameters=parameters)
    for _ in sys.stdin:
        begin, begin_processor = time.perf_counter(), time.process_time()
        loss = step()
        seconds, processor = time.perf_counter() - begin, time.process_time() - begin_processor
        write(seconds=seconds, processor_seconds=processor, losses=loss)
    write(peak_bytes=peak_bytes())


if __name__ == "__main__":
    main()
