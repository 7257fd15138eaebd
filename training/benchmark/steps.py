"""A training step of DeepLabV3+ in each package, in a process of its own.

This file is also the program of these processes. It imports only what their package needs, as the
memory is that of the whole process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CLASSES = 21
IGNORED = 255
LEARNING_RATE = 1e-4
WARM_UP = 2  # the first step traces, the second still fills caches of memory and kernels
DTYPES = ("float32", "bfloat16")
# The DeepLabV3+ that several packages have: arguments of ours.
NETWORKS = {
    "resnet50": {"backbone": "resnet50", "separable": True, "output_stride": 16},
    "mobilenet_v2": {"backbone": "mobilenet_v2", "separable": True, "output_stride": 16},
    # KerasHub's: convolutions that are not separable, on features of stride 32.
    "resnet50_dense_32": {"backbone": "resnet50", "separable": False, "output_stride": 32},
}

Step = Callable[[], float]


class Case(NamedTuple):
    """What a process trains, on images of `size` `(height, width)`."""

    package: str
    network: str
    dtype: str
    size: tuple[int, int]
    batch_size: int
    threads: int
    steps: int


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
    shape = (case.batch_size, *case.size)
    images = tf.random.uniform((*shape, 3), 0.0, 255.0)
    labels = tf.random.uniform(shape, 0, CLASSES, tf.int32)
    return lambda: float(model.train_on_batch(images, labels)), model.count_params()


def segmentation_models_pytorch(case: Case) -> tuple[Step, int]:
    """The network of segmentation_models.pytorch, in the memory format that is faster."""
    import segmentation_models_pytorch as smp
    import torch

    torch.set_num_threads(case.threads)
    network = NETWORKS[case.network]
    model = smp.DeepLabV3Plus(
        network["backbone"],
        encoder_weights=None,
        encoder_output_stride=network["output_stride"],
        decoder_atrous_rates=(6, 12, 18),
        decoder_aspp_separable=network["separable"],
        classes=CLASSES,
    )
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    loss_of = torch.nn.CrossEntropyLoss(ignore_index=IGNORED)
    # Scaled pixels: this package leaves the scaling to the user, who does it while reading.
    images = torch.randn(case.batch_size, 3, *case.size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (case.batch_size, *case.size))

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
            loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, sum(parameter.numel() for parameter in model.parameters())


class Package(NamedTuple):
    """How a package's networks are built, and the modules that must be installed."""

    build: Callable[[Case], tuple[Step, int]]
    modules: tuple[str, ...]
    networks: tuple[str, ...]


SMP = ("segmentation_models_pytorch", "torch")
PACKAGES = {
    "keras_deeplab": Package(keras_deeplab, ("keras_deeplab",), tuple(NETWORKS)),
    "segmentation_models.pytorch": Package(
        segmentation_models_pytorch, SMP, ("resnet50", "mobilenet_v2")
    ),
    "KerasHub": Package(keras_hub, ("keras_hub",), ("resnet50_dense_32",)),
}


def measure(case: Case) -> dict[str, Any]:
    """Returns what a process of its own measures, or `problem`, the reason why there is none."""
    row: dict[str, Any] = {**case._asdict(), "problem": None}
    for module in PACKAGES[case.package].modules:
        if importlib.util.find_spec(module) is None:
            return {**row, "problem": f"{module} is not installed"}
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        # -P keeps the modules beside this file, with their plain names, out of the imports.
        [sys.executable, "-P", __file__, json.dumps(case)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "KERAS_BACKEND": "tensorflow",
        },
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return {**row, "problem": f"ended with status {done.returncode}: {last}"}
    return row | json.loads(done.stdout.splitlines()[-1])  # libraries print too


def train(case: Case) -> dict[str, Any]:
    """Makes the steps in this process; `processor_seconds` are those of all threads together."""
    step, parameters = PACKAGES[case.package].build(case)
    losses, seconds, processor_seconds = [], [], []
    for _ in range(WARM_UP + case.steps):
        begin, begin_processor = time.perf_counter(), time.process_time()
        losses.append(step())
        seconds.append(time.perf_counter() - begin)
        processor_seconds.append(time.process_time() - begin_processor)
    return {
        "parameters": parameters,
        "losses": losses,
        "seconds": seconds[WARM_UP:],
        "processor_seconds": processor_seconds[WARM_UP:],
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """The peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # in `ru_maxrss` Linux counts the process that started this one too
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(kilobytes) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print("\n" + json.dumps(train(Case(*json.loads(sys.argv[1])))))
