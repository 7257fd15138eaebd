"""Inference by each package and runtime: uint8 or float32 images to logits at full size."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from training.benchmark.race import Package, Step

CLASSES = 21
ONE_SIZE = ", one size"  # of routes whose files take images of one size
# Class and arguments of ours, and the side of the image.
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "v3_resnet50_stride8": ("DeepLabV3", {"backbone": "resnet50", "output_stride": 8}, 513),
    "v3_plus_resnet50": ("DeepLabV3Plus", {"backbone": "resnet50", "separable": True}, 512),
    "v3_plus_mobilenet_v2": ("DeepLabV3Plus", {"backbone": "mobilenet_v2", "separable": True}, 512),
}


class Case(NamedTuple):
    """What a process computes on one image."""

    package: str
    network: str
    dtype: str
    threads: int


def _own_model(case: Case) -> Any:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(case.threads)
    tf.config.threading.set_inter_op_parallelism_threads(case.threads)
    import keras_deeplab as kd

    name, arguments, _ = NETWORKS[case.network]
    is_half = case.dtype == "bfloat16" and case.package.endswith(("TensorFlow", "predict"))
    return getattr(kd, name)(CLASSES, **arguments, dtype="mixed_bfloat16" if is_half else "float32")


def _image(case: Case) -> Any:
    import numpy as np

    side = NETWORKS[case.network][2]
    return np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)


def tensorflow(case: Case) -> tuple[Step, dict[str, Any]]:
    """A frozen graph, as that of `keras_deeplab.predict`, with logits at full size."""
    import tensorflow as tf

    from keras_deeplab.frozen import FrozenFunction

    model, image = _own_model(case), tf.constant(_image(case))
    spec = [tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")]
    run = FrozenFunction(
        lambda images: {"logits": model(tf.cast(images, tf.float32), training=False)}, spec
    )
    return lambda: float(run(image)["logits"][0, 0, 0, 0]), {}


def predict(case: Case) -> tuple[Step, dict[str, Any]]:
    """`keras_deeplab.predict`: labels."""
    model, (image,) = _own_model(case), _image(case)
    from keras_deeplab import predict

    return lambda: int(predict(model, image)[0, 0]), {}


def litert(case: Case) -> tuple[Step, dict[str, Any]]:
    """Our LiteRT file."""
    from ai_edge_litert.interpreter import Interpreter

    content = _exported(case, "litert", ".tflite")
    interpreter = Interpreter(model_content=content, num_threads=case.threads)
    run, image = interpreter.get_signature_runner("serving_default"), _image(case)
    return lambda: float(run(images=image)["logits"][0, 0, 0, 0]), {"bytes": len(content)}


def _onnx_file(case: Case) -> tuple[bytes, Any]:
    """The ONNX file of our network or the peer's, and an image for it."""
    if case.package.startswith("torch"):
        return _torch_onnx(case)
    return _exported(case, "onnx", ".onnx"), _image(case)


def _exported(case: Case, kind: str, suffix: str) -> bytes:
    """Our file, written by another process, as the memory would be counted to this one's."""
    name, arguments, side = NETWORKS[case.network]
    size = (side, side) if case.package.endswith(ONE_SIZE) else None
    precision = "int8" if case.dtype == "int8" else "float32"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        code = (
            "import keras_deeplab as kd, numpy as np;"
            f"model = kd.{name}({CLASSES}, **{arguments!r});"
            f"image = np.random.default_rng(0).integers(0, 256, ({side}, {side}, 3), np.uint8);"
            f"kd.export.{kind}(model, {str(path)!r}, outputs=('logits',), images=[image], "
            f"precision={precision!r}, image_size={size}, "
            "limits=kd.export.Limits())"  # random weights magnify rounding
        )
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        return path.read_bytes()


def onnx_runtime(case: Case) -> tuple[Step, dict[str, Any]]:
    """The ONNX file in ONNX Runtime."""
    import onnxruntime

    content, image = _onnx_file(case)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda: float(session.run(None, {given.name: image})[0].flat[0]), {"bytes": len(content)}


def openvino(case: Case) -> tuple[Step, dict[str, Any]]:
    """The ONNX file in OpenVINO."""
    import openvino

    content, image = _onnx_file(case)
    core = openvino.Core()
    precision = "bf16" if case.dtype == "bfloat16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": case.threads}
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    return lambda: float(compiled(image)[0].flat[0]), {"bytes": len(content)}


def _torch_model(case: Case) -> tuple[Any, Any]:
    import torch

    torch.set_num_threads(case.threads)
    name, arguments, side = NETWORKS[case.network]
    if name == "DeepLabV3":
        from torchvision.models.segmentation import deeplabv3_resnet50

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = deeplabv3_resnet50(
                    weights=None, weights_backbone=None, num_classes=CLASSES
                )

            def forward(self, images: Any) -> Any:
                return self.network(images)["out"]

        model = Logits()
    else:
        import segmentation_models_pytorch as smp

        model = smp.DeepLabV3Plus(
            arguments["backbone"],
            encoder_weights=None,
            decoder_atrous_rates=(6, 12, 18),
            classes=CLASSES,
        )
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return model.eval(), image


def peer(case: Case) -> tuple[Step, dict[str, Any]]:
    """The peer's network in torch, or compiled by it."""
    import torch

    model, image = _torch_model(case)
    model = model.to(memory_format=torch.channels_last)
    image = image.to(memory_format=torch.channels_last)
    if case.package == "torch.compile":
        model = torch.compile(model)

    def step() -> float:
        is_half = case.dtype == "bfloat16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            return float(model(image)[0, 0, 0, 0])

    return step, {}


def _torch_onnx(case: Case) -> tuple[bytes, Any]:
    import torch

    model, image = _torch_model(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer.onnx"
        torch.onnx.export(
            model,
            (image,),
            path,
            input_names=["images"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        if case.dtype == "int8":
            _quantize(path, image.numpy())
        return path.read_bytes(), image.numpy()


def _quantize(path: Path, image: Any) -> None:
    """To 8 bits as ONNX Runtime advises: prepared, calibrated, the scales per channel."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        images = iter([image])

        def get_next(self) -> dict[str, Any] | None:
            found = next(self.images, None)
            return None if found is None else {"images": found}

    quant_pre_process(path, path)
    quantization.quantize_static(path, path, Images(), per_channel=True)


OWN = ("keras_deeplab",)
OWN_ONNX = (*OWN, "tf2onnx", "onnxruntime")
PEER = ("torch", "torchvision", "segmentation_models_pytorch", "onnxscript")
PACKAGES = {
    "keras_deeplab, TensorFlow": Package(tensorflow, OWN),
    "keras_deeplab, predict": Package(predict, OWN),
    "keras_deeplab, ONNX Runtime": Package(onnx_runtime, OWN_ONNX),
    f"keras_deeplab, ONNX Runtime{ONE_SIZE}": Package(onnx_runtime, OWN_ONNX),
    "keras_deeplab, OpenVINO": Package(openvino, (*OWN_ONNX, "openvino")),
    f"keras_deeplab, OpenVINO{ONE_SIZE}": Package(openvino, (*OWN_ONNX, "openvino")),
    "keras_deeplab, LiteRT": Package(litert, (*OWN, "ai_edge_litert")),
    f"keras_deeplab, LiteRT{ONE_SIZE}": Package(litert, (*OWN, "ai_edge_litert")),
    "torch": Package(peer, PEER),
    "torch.compile": Package(peer, PEER),
    "torch, ONNX Runtime": Package(onnx_runtime, (*PEER, "onnxruntime")),
    "torch, OpenVINO": Package(openvino, (*PEER, "openvino")),
}


def cases(network: str, dtype: str, threads: int) -> list[Case]:
    """The routes of a network that compute in this precision."""
    routes = list(PACKAGES)
    if dtype == "bfloat16":  # the runtimes of ONNX and LiteRT files compute in the file's precision
        routes = [name for name in routes if "ONNX" not in name and "LiteRT" not in name]
    if dtype == "int8":
        routes = [name for name in routes if "ONNX" in name or "LiteRT" in name]
        routes += [name for name in PACKAGES if name.endswith(f"OpenVINO{ONE_SIZE}")]
        routes += ["torch, OpenVINO"]
    return [Case(route, network, dtype, threads) for route in routes]
