"""A training step of a segmentation network, as each package has it."""

from __future__ import annotations

from typing import Any, NamedTuple

from training.benchmark.race import Package, Step

CLASSES = 21
IGNORED = 255
LEARNING_RATE = 1e-4
DTYPES = ("float32", "bfloat16")
# The networks that several packages have: class and arguments of ours.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "v3_plus_resnet50": ("DeepLabV3Plus", {"backbone": "resnet50", "separable": True}),
    "v3_plus_mobilenet_v2": ("DeepLabV3Plus", {"backbone": "mobilenet_v2", "separable": True}),
    # KerasHub's: convolutions that are not separable, on features of stride 32.
    "v3_plus_resnet50_stride32": (
        "DeepLabV3Plus",
        {"backbone": "resnet50", "separable": False, "output_stride": 32},
    ),
    "v3_resnet50_stride16": ("DeepLabV3", {"backbone": "resnet50", "output_stride": 16}),
    "v3_resnet50_stride8": ("DeepLabV3", {"backbone": "resnet50", "output_stride": 8}),
    "v2_resnet101": ("DeepLabV2", {"backbone": "resnet101"}),
}


class Case(NamedTuple):
    """What a process trains, on images of `size` `(height, width)`."""

    package: str
    network: str
    dtype: str
    size: tuple[int, int]
    batch_size: int
    threads: int


def keras_deeplab(case: Case) -> tuple[Step, dict[str, Any]]:
    """This package's network."""
    policy = _policy(case)
    import keras_deeplab as kd

    name, arguments = NETWORKS[case.network]
    model = getattr(kd, name)(CLASSES, **arguments, dtype=policy)
    return _keras_step(model, kd.losses.CrossEntropy(IGNORED), case)


def keras_hub(case: Case) -> tuple[Step, dict[str, Any]]:
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


def _keras_step(model: Any, loss: Any, case: Case) -> tuple[Step, dict[str, Any]]:
    import keras
    import tensorflow as tf

    # KerasHub's compile counts an accuracy unless metrics are None.
    model.compile(keras.optimizers.AdamW(LEARNING_RATE), loss, metrics=None)
    # Without its variables the optimizer makes them in the first step, which is traced twice.
    model.optimizer.build(model.trainable_variables)
    shape = (case.batch_size, *case.size)
    images = tf.random.uniform((*shape, 3), 0.0, 255.0)
    labels = tf.random.uniform(shape, 0, CLASSES, tf.int32)
    facts = {"parameters": model.count_params()}
    return lambda: float(model.train_on_batch(images, labels)), facts


def segmentation_models_pytorch(case: Case) -> tuple[Step, dict[str, Any]]:
    """The network of segmentation_models.pytorch."""
    import segmentation_models_pytorch as smp

    name, arguments = NETWORKS[case.network]
    options = {"decoder_atrous_rates": (6, 12, 18)}
    if name == "DeepLabV3Plus":
        options["decoder_aspp_separable"] = arguments["separable"]
    stride = arguments.get("output_stride", 16)
    if stride == 8:
        options["decoder_atrous_rates"] = (12, 24, 36)
    model = getattr(smp, name)(
        arguments["backbone"],
        encoder_weights=None,
        encoder_output_stride=stride,
        classes=CLASSES,
        **options,
    )
    return _torch_step(model, case)


def torchvision(case: Case) -> tuple[Step, dict[str, Any]]:
    """The network of torchvision, without its auxiliary head."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
    return _torch_step(model, case)


def _torch_step(model: Any, case: Case) -> tuple[Step, dict[str, Any]]:
    """A step in the memory format that is faster."""
    import torch

    torch.set_num_threads(case.threads)
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    loss_of = torch.nn.CrossEntropyLoss(ignore_index=IGNORED)
    # Scaled pixels: this package leaves the scaling to the user, who does it while reading.
    images = torch.randn(case.batch_size, 3, *case.size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (case.batch_size, *case.size))

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
            outputs = model(images)
            loss = loss_of(outputs["out"] if isinstance(outputs, dict) else outputs, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, {"parameters": sum(p.numel() for p in model.parameters())}


SMP = ("segmentation_models_pytorch", "torch")
PACKAGES = {
    "keras_deeplab": Package(keras_deeplab, ("keras_deeplab",), tuple(NETWORKS)),
    "segmentation_models.pytorch": Package(
        segmentation_models_pytorch,
        SMP,
        (
            "v3_plus_resnet50",
            "v3_plus_mobilenet_v2",
            "v3_resnet50_stride16",
            "v3_resnet50_stride8",
        ),
    ),
    "torchvision": Package(torchvision, ("torchvision", "torch"), ("v3_resnet50_stride8",)),
    "KerasHub": Package(keras_hub, ("keras_hub",), ("v3_plus_resnet50_stride32",)),
}
