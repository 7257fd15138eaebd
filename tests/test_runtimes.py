"""Exported files, also damaged and hostile ones, in their own runtimes."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from export.small import encoded, pictures, small_model
from tensorflow.core.protobuf import saved_model_pb2

import keras_deeplab
from keras_deeplab import data, export, runtimes
from keras_deeplab.inference import model_functions
from keras_deeplab.runtimes import METADATA, Metadata


@pytest.fixture(scope="module")
def model():
    return small_model(6)


@pytest.fixture(scope="module", params=["saved_model", "litert"])
def path(request, model, tmp_path_factory):
    """An export in each format, with the classes of `data.Shapes`."""
    if request.param == "litert":
        pytest.importorskip("ai_edge_litert")
    name = {"litert": "model.tflite"}.get(request.param, "folder")
    path, info = tmp_path_factory.mktemp("runtimes") / name, data.Shapes().info
    return getattr(export, request.param)(model, path, info=info)


@pytest.fixture(scope="module")
def scores(model):
    dataset = data.evaluation_dataset(data.Shapes(train=1, val=3))
    return dataset, keras_deeplab.evaluate(model, dataset, verbose=0)


@pytest.mark.slow
def test_an_export_is_evaluated_as_its_model_is(path, scores):
    exported = runtimes.open_exported(path)
    assert exported.num_classes == 6
    assert exported.classes == data.Shapes().info.classes
    dataset, expected = scores
    found = keras_deeplab.evaluate(exported, dataset, verbose=0)
    assert found["images"] == 3
    assert found["mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-4)


@pytest.mark.slow
def test_threads_do_not_share_what_they_compute(path, model):
    exported = runtimes.open_exported(path)
    images = [pictures((side, 70, 3), seed=side) for side in range(40, 56)]
    expected = [keras_deeplab.predict(exported, image, probabilities=True) for image in images]

    def predicted(image):
        return keras_deeplab.predict(exported, image, probabilities=True)

    with ThreadPoolExecutor(8) as threads:
        for one, other in zip(threads.map(predicted, images * 4), expected * 4, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_an_export_predicts_as_its_model_does_also_in_windows(path, model):
    exported = runtimes.open_exported(path)
    pixels = pictures((60, 70, 3))
    for options in ({}, {"window": (32, 48), "overlap": 8}):
        expected = keras_deeplab.predict(model, pixels, probabilities=True, **options)
        found = keras_deeplab.predict(exported, pixels, probabilities=True, **options)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        labels = keras_deeplab.predict(exported, pixels.astype(np.float32), **options)
        assert np.mean(labels == expected.argmax(-1)) > 0.99


def test_an_export_of_labels_alone_cannot_be_blended(monkeypatch):
    def brighter(images):
        return {"labels": images[..., 0].astype(np.uint8)}

    metadata = Metadata(256, (None, None, 3), ("labels",))
    exported = runtimes.ExportedModel(Path("path"), metadata, brighter)
    pixels = np.full((300, 300, 3), 7, np.uint8)
    monkeypatch.setattr("keras_deeplab.inference.windows.MEMORY", pixels.size)  # it takes no window
    assert (keras_deeplab.predict(exported, pixels) == 7).all()
    with pytest.raises(ValueError, match=r"`model` must be an export with probabilities or logits"):
        keras_deeplab.predict(exported, pixels, window=(64, 64))
    fixed = runtimes.ExportedModel(
        Path("path"), Metadata(256, (300, 300, 3), ("labels",)), brighter
    )
    assert (keras_deeplab.predict(fixed, pixels) == 7).all()
    for shape in ((299, 300, 3), (400, 400, 3)):
        with pytest.raises(ValueError, match=r"`image` must be exactly of the size \(300, 300\)"):
            keras_deeplab.predict(fixed, np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((1, 8, 8, 4), "uint8"),
        ((0, 8, 8, 3), "uint8"),
        ((8, 8), "uint8"),
        ((1, 8, 8, 3), "float32"),
    ],
)
def test_images_are_checked_before_a_runtime_gets_them(shape, dtype):
    metadata = Metadata(3, (None, None, 3), ("labels",))
    exported = runtimes.ExportedModel(Path("path"), metadata, pytest.fail)
    with pytest.raises(ValueError, match=r"`images` must be uint8 of the shape \(None, None, Non"):
        exported(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    "fault, kind, message",
    [
        (MemoryError("too large"), MemoryError, "too large"),
        (
            tf.errors.ResourceExhaustedError(None, None, "too large"),
            MemoryError,
            "^path: too large",
        ),
        (RuntimeError("no kernel"), ValueError, "^path failed: no kernel"),
    ],
)
def test_errors_of_a_runtime(fault, kind, message):
    def run(images):
        raise fault

    exported = runtimes.ExportedModel(Path("path"), Metadata(3, (None, None, 3), ("labels",)), run)
    with pytest.raises(kind, match=message):
        exported(np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_pixels_are_rounded(dtype):
    """A resized image may have 126.99999, and values outside 0..255."""
    seen = []

    def run(images):
        seen.append(images)
        return {"logits": images.astype(np.float32)}

    exported = runtimes.ExportedModel(Path("path"), Metadata(3, (None, None, 3), ("logits",)), run)
    pixels = np.array([-1, 126.99999, 300], dtype).reshape(1, 1, 1, 3)
    for given in (pixels, tf.constant(pixels)):
        exported.labels(given)
        exported.probabilities(given)
    assert len(seen) == 4
    for images in seen:
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, np.rint(pixels).clip(0, 255))


def test_pixels_of_a_model_on_integers_are_rounded():
    inputs = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(inputs, keras.layers.Rescaling(1.0)(inputs))
    images = np.full((1, 2, 2, 3), [126.99999, 255.0, 254.6], np.float32)
    logits = np.array([127.0, 255.0, 255.0])
    expected = np.exp(logits - 255) / np.exp(logits - 255).sum()
    found = keras_deeplab.predict(model, images, probabilities=True)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scales", [(0.25,), (1.0, 2.0)])
def test_an_export_takes_the_windows_of_its_model(model, tmp_path, scales):
    several = keras_deeplab.MultiScale(model, scales, flip=len(scales) > 1)
    export.saved_model(several, tmp_path / "saved")
    exported = runtimes.open_exported(tmp_path / "saved")
    assert exported.bytes_per_pixel == model_functions(several).bytes_per_pixel
    assert exported.bytes_per_pixel != runtimes.BYTES_PER_PIXEL


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["saved_model", "onnx"])
@pytest.mark.parametrize("size", [None, (48, 64)])
def test_a_model_for_batches_of_one_size(tmp_path, kind, size):
    if kind == "onnx":
        pytest.importorskip("tf2onnx")
    inputs = keras.Input((None, None, 3), batch_size=4)
    logits = keras.layers.Conv2D(3, 3, padding="same")(keras.layers.Rescaling(1 / 50)(inputs))
    model = keras.Model(inputs, logits)
    path = getattr(export, kind)(model, tmp_path / f"model.{kind}", image_size=size)
    exported = runtimes.open_exported(path)
    for shape in ((48, 64, 3), (2, 48, 64, 3)):
        image = pictures(shape)
        expected = keras_deeplab.predict(model, image, probabilities=True)
        found = keras_deeplab.predict(exported, image, probabilities=True)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_file_for_single_images_takes_batches(model, tmp_path):
    pytest.importorskip("ai_edge_litert")
    path = export.litert(model, tmp_path / "model.tflite", image_size=(48, 64))
    images = pictures((3, 48, 64, 3))
    exported = runtimes.open_exported(path)
    found = keras_deeplab.predict(exported, images, probabilities=True)
    expected = keras_deeplab.predict(model, images, probabilities=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_without_labels_they_are_those_of_the_scores():
    metadata, images = Metadata(2, (None, None, 3), ("logits",)), np.zeros((1, 2, 1, 3), np.uint8)
    scores = np.array([0, 3, 2, 1], np.float32).reshape(1, 2, 1, 2)
    outputs = {"logits": scores, "more": scores}
    exported = runtimes.ExportedModel(Path("path"), metadata, lambda images: outputs)
    assert exported(images).keys() == {"logits"}
    labels = exported.labels(images)
    assert (labels.dtype, labels.ravel().tolist()) == (np.uint8, [1, 0])
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(exported.probabilities(images), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"logits must have the shape \(1, 3, 1, 2\). Rec"):
        exported(np.zeros((1, 3, 1, 3), np.uint8))
    outputs["logits"] = scores.repeat(2, -1)  # of other classes
    with pytest.raises(ValueError, match=r"logits must have the shape \(1, 2, 1, 2\). Rec"):
        exported(images)


def test_files_are_read_in_the_value_range_of_an_export(tmp_path):
    seen, info = [], data.DatasetInfo(("a", "b"), value_range=(0, 100))

    def run(images):
        seen.append(images)
        return {"labels": images[..., 0]}

    metadata = Metadata(2, (None, None, 3), ("labels",), info)
    pixels = pictures((5, 6, 3)) // 4
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    exported = runtimes.ExportedModel(Path("path"), metadata, run)
    keras_deeplab.predict(exported, tmp_path / "a.png")
    keras_deeplab.predict(exported, tmp_path / "a.png", value_range=(0, 255))
    for images, factor in zip(seen, (2.55, 1), strict=True):
        np.testing.assert_array_equal(images[0], np.rint(pixels * factor))


def test_names_and_colors_are_those_in_the_file():
    info, shape = data.Shapes().info, (None, None, 3)
    bare, named = (
        runtimes.ExportedModel(Path("path"), Metadata(6, shape, ("labels",), given), pytest.fail)
        for given in (None, info)
    )
    assert (named.classes, named.colors) == (info.classes, info.colors)
    assert bare.classes == ("0", "1", "2", "3", "4", "5")
    assert bare.colors == data.voc_colors(6) != info.colors


def test_other_paths(tmp_path):
    (tmp_path / "a.keras").touch()
    for path in (tmp_path, tmp_path / "a.keras", tmp_path / "missing.tflite"):
        with pytest.raises(ValueError, match="`path` must be a SavedModel folder"):
            runtimes.open_exported(path)


def test_a_saved_model_of_another_program(tmp_path):
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ValueError, match="it has no metadata of keras_deeplab"):
        runtimes.open_exported(tmp_path)


@pytest.mark.slow
def test_damaged_files_get_one_clear_error(path, tmp_path):
    """Or run; cut ones are never run."""
    copy = tmp_path / path.name
    shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    file = copy / "saved_model.pb" if copy.is_dir() else copy
    content = file.read_bytes()
    for size in (0, 3, 9, len(content) // 2):
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match="is not an export of keras_deeplab: ."):
            runtimes.open_exported(copy)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_classes": True}, "`num_classes` must be"),
        ({"num_classes": 65537}, "`num_classes` must be an integer from 2 to 65536"),
        ({"num_classes": 5}, "`classes` must be 5 names"),
        ({"classes": "abcdef"}, "`classes` must be a list"),
        ({"image_shape": [None, -1, 3]}, "`image_shape` must be"),
        ({"outputs": ["labels", "boxes"]}, "`outputs` must be a list of labels"),
        ({"image_scale": 0}, "`image_scale` must be a positive number"),
        ({"bytes_per_pixel": 0}, "`bytes_per_pixel` must be a positive integer"),
        (None, "`metadata` must be a JSON object"),
    ],
)
def test_metadata_is_checked(change, message):
    stored = json.loads(Metadata(6, (None, 9, 3), ("labels",), data.Shapes().info).to_json())
    assert Metadata.from_dict(stored).image_shape == (None, 9, 3)
    assert Metadata.from_dict(stored).image_scale == 1
    assert Metadata.from_dict({**stored, "image_scale": 0.25}).image_scale == 0.25
    assert Metadata.from_dict({**stored, "bytes_per_pixel": 70}).bytes_per_pixel == 70
    del stored["bytes_per_pixel"]  # of files of earlier versions
    assert Metadata.from_dict(stored).bytes_per_pixel == runtimes.BYTES_PER_PIXEL
    with pytest.raises(ValueError, match=message):
        Metadata.from_dict({**stored, **change} if change else [1])


def aborted(value):
    with tf.control_dependencies([tf.raw_ops.Abort(exit_without_error=True)]):
        return tf.identity(value)


class Hostile(tf.Module):
    """A SavedModel whose graph does more than compute."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def serve(self, images):
        with tf.control_dependencies([tf.cond(tf.size(images) > 0, self.act, self.act)]):
            return {"labels": tf.argmax(images, -1)}


def save_hostile(folder, act):
    module = Hostile(act)
    tf.saved_model.save(module, folder, {"serving_default": module.serve})
    (folder / "assets.extra").mkdir()
    metadata = Metadata(3, (None, None, 3), ("labels",))
    (folder / "assets.extra" / "keras_deeplab.json").write_text(metadata.to_json())


@pytest.mark.parametrize(
    "act, operation",
    [
        (lambda: tf.strings.length(tf.io.read_file("/etc/hostname")), "ReadFile"),
        (lambda: (tf.io.write_file("never", "x"), 1)[1] * tf.ones(()), "WriteFile"),
        (lambda: tf.py_function(lambda: 1.0, [], tf.float32), "EagerPyFunc"),
        (lambda: tf.size(tf.io.matching_files("/etc/*")), "MatchingFiles"),
        (lambda: tf.io.decode_proto([b""], "A", [], [], "file:///etc/hostname")[0], "DecodeProto"),
        (lambda: aborted(tf.ones(())), "Abort"),
        (lambda: (tf.print("x", output_stream="file://never"), 1)[1] * tf.ones(()), "PrintV2"),
        (
            lambda: tf.switch_case(tf.constant(0), [lambda: tf.io.read_file("/etc/hostname")] * 2),
            "ReadFile",
        ),
    ],
)
def test_a_saved_model_that_reaches_out_is_refused(tmp_path, act, operation):
    save_hostile(tmp_path, act)
    with pytest.raises(ValueError, match=f"operations that an export has not: .*{operation}"):
        runtimes.open_exported(tmp_path)


FLOAT, STRING = tf.float32.as_datatype_enum, tf.string.as_datatype_enum


def add_node(nodes, name, operation, inputs=(), **types):
    node = nodes.add(name=name, op=operation, input=inputs)
    for key, value in types.items():
        node.attr[key].type = value
    return node


def add_call(nodes, name, operation, inputs):
    call = add_node(nodes, name, operation, inputs)
    call.attr["Tin"].list.type.extend([FLOAT] * len(inputs))
    call.attr["Tout"].list.type.append(FLOAT)
    return call


def add_function(library, name):
    """Adds a function that returns its argument x."""
    function = library.function.add()
    function.signature.name = name
    function.signature.input_arg.add(name="x", type=FLOAT)
    function.signature.output_arg.add(name="y", type=FLOAT)
    add_node(function.node_def, "same", "Identity", ["x"], T=FLOAT)
    function.ret["y"] = "same:output:0"
    return function


def add_writing_function(library, path):
    function = add_function(library, "writing")
    function.signature.is_stateful = True
    for name, value in (("path", str(path)), ("text", "x")):
        constant = add_node(function.node_def, name, "Const", dtype=STRING)
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    add_node(function.node_def, "write", "WriteFile", ["path:output:0", "text:output:0"])
    function.node_def[0].input.append("^write")


def call_by_an_attribute(graph):
    """Calls a function that calls the one that its attribute is."""
    function = add_function(graph.library, "clean")
    function.signature.attr.add(name="given", type="func")
    call = add_call(function.node_def, "call", "StatefulPartitionedCall", ["x"])
    call.attr["f"].placeholder = "given"
    function.ret["y"] = "call:output:0"
    call = add_call(graph.node, "call", "StatefulPartitionedCall", ["one"])
    call.attr["f"].func.name = "clean"
    call.attr["f"].func.attr["given"].func.name = "writing"


def call_as_a_gradient(graph):
    add_function(graph.library, "clean")
    graph.library.gradient.add(function_name="clean", gradient_func="writing")
    call = add_call(graph.node, "call", "SymbolicGradient", ["one", "one"])
    call.attr["f"].func.name = "clean"


def call_as_a_branch(graph):
    """Names an operation in place of a function."""
    add_node(graph.node, "yes", "Const", dtype=tf.bool.as_datatype_enum)
    graph.node[-1].attr["value"].tensor.CopyFrom(tf.make_tensor_proto(True))
    writing = next(each for each in graph.library.function if each.signature.name == "writing")
    constants = [node for node in writing.node_def if node.op == "Const"]
    for constant in constants:
        graph.node.add().CopyFrom(constant)
    inputs = ["yes", *(constant.name for constant in constants)]
    call = add_node(graph.node, "call", "If", inputs, Tcond=tf.bool.as_datatype_enum)
    call.attr["Tin"].list.type.extend([STRING, STRING])
    call.attr["Tout"].list.SetInParent()
    for branch in ("then_branch", "else_branch"):
        call.attr[branch].func.name = "WriteFile"
    call.attr["_lower_using_switch_merge"].b = True


@pytest.mark.parametrize("call", [call_by_an_attribute, call_as_a_gradient, call_as_a_branch])
def test_a_function_that_is_called_indirectly_is_checked_too(tmp_path, call):
    save_hostile(tmp_path, lambda: tf.ones(()))
    path = tmp_path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = saved.meta_graphs[0].graph_def
    one = add_node(graph.node, "one", "Const", dtype=FLOAT)
    one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0))
    add_writing_function(graph.library, tmp_path / "written")
    call(graph)
    labels = saved.meta_graphs[0].signature_def["serving_default"].outputs["labels"]
    add_node(graph.node, "last", "Identity", [labels.name, "^call"], T=labels.dtype)
    labels.name = "last:0"
    path.write_bytes(saved.SerializeToString())
    with pytest.raises(ValueError, match="operations that an export has not: (Write|Symbolic)"):
        runtimes.open_exported(tmp_path)(np.zeros((1, 4, 4, 3), np.uint8))
    assert not (tmp_path / "written").exists()


def onnx_file(path, external):
    """A network of one convolution whose kernel may lie in another file."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    values = np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(np.float32)
    kernel = onnx.numpy_helper.from_array(values, "kernel")
    if external:
        (path.parent / "secret").write_bytes(values.tobytes())
        onnx.external_data_helper.set_external_data(kernel, "secret")
        kernel.ClearField("raw_data")
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=kinds.FLOAT),
        helper.make_node("Transpose", ["float"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "kernel"], ["maps"]),
        helper.make_node("Transpose", ["maps"], ["logits"], perm=[0, 2, 3, 1]),
    ]
    axes = ["batch", "height", "width"]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", kinds.UINT8, [*axes, 3])],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, [*axes, 2])],
        [kernel],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, {METADATA: Metadata(2, (None, None, 3), ("logits",)).to_json()})
    path.write_bytes(made.SerializeToString())
    return values[..., 0, 0]


def test_onnx(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    path, images = tmp_path / "model.ONNX", pictures((2, 5, 7, 3))
    kernel = onnx_file(path, external=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = runtimes.open_exported("~/model.ONNX")(images)
    np.testing.assert_allclose(found["logits"], images @ kernel.T, rtol=1e-4, atol=1e-2)
    onnx_file(path, external=True)
    with pytest.raises(ValueError, match="is not an export of keras_deeplab: .* other files"):
        runtimes.open_exported(path)
    for content in (b"", b"text", bytes(99)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not an export of keras_deeplab: ."):
            runtimes.open_exported(path)


def elsewhere(onnx, model, place):
    """Adds what is not in the file itself to a model."""
    helper, (kernel,) = onnx.helper, model.graph.initializer
    outside = onnx.TensorProto()
    outside.CopyFrom(kernel)
    onnx.external_data_helper.set_external_data(outside, "secret")
    outside.ClearField("raw_data")
    sparse = onnx.SparseTensorProto(values=outside)
    inner = helper.make_graph([], "inner", [], [], [outside])
    if place == "function":
        node, opset = helper.make_node("Identity", ["x"], ["y"]), helper.make_opsetid("", 17)
        model.functions.append(helper.make_function("own", "Own", ["x"], ["y"], [node], [opset]))
    elif place == "sparse_initializer":
        model.graph.sparse_initializer.append(sparse)
    else:
        value = {"value": outside, "sparse_value": sparse, "then_branch": inner}
        value |= {f"list of {one}": [found] for one, found in value.items()}
        value = value[place]
        model.graph.node.append(helper.make_node("Constant", [], ["more"], **{place: value}))


PLACES = ["value", "sparse_value", "then_branch"]
PLACES += [f"list of {place}" for place in PLACES]  # as own operations may have


@pytest.mark.parametrize("place", ["function", "sparse_initializer", *PLACES])
def test_an_onnx_file_is_whole(tmp_path, place):
    onnx, path = pytest.importorskip("onnx"), tmp_path / "model.onnx"
    onnx_file(path, external=False)
    model = onnx.load(path)
    elsewhere(onnx, model, place)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="it has tensors in other files, or functions"):
        runtimes.open_exported(path)


def test_an_onnx_file_of_another_program(tmp_path):
    onnx, path = pytest.importorskip("onnx"), tmp_path / "model.onnx"
    pytest.importorskip("onnxruntime")
    onnx_file(path, external=False)
    model = onnx.load(path)
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="it has no metadata of keras_deeplab"):
        runtimes.open_exported(path)


@pytest.mark.parametrize(
    "name, module, extra", [("a.tflite", "ai_edge_litert", "litert"), ("a.onnx", "onnx", "onnx")]
)
def test_a_missing_runtime_is_named(tmp_path, monkeypatch, name, module, extra):
    (tmp_path / name).touch()
    for known in (module, f"{module}.interpreter"):
        monkeypatch.setitem(sys.modules, known, None)
    with pytest.raises(ImportError, match=rf"pip install keras_deeplab\[{extra}\]"):
        runtimes.open_exported(tmp_path / name)


@pytest.mark.parametrize(
    "path, height, batches",
    [("model.tflite", 5, [1] * 3), ("model.tflite", None, [3]), (".", 5, [3])],
)
def test_only_a_file_of_one_size_gets_image_by_image(tmp_path, monkeypatch, path, height, batches):
    """In any working directory."""
    received = []

    def run(images):
        received.append(len(images))
        return {"labels": images[..., 0]}

    monkeypatch.chdir(tmp_path)
    Path("model.tflite").touch()
    metadata = Metadata(256, (height, 6, 3), ("labels",))
    exported = runtimes.ExportedModel(Path(path), metadata, run)
    monkeypatch.chdir("/")
    images = np.arange(3 * 5 * 6 * 3, dtype=np.uint8).reshape(3, 5, 6, 3)
    np.testing.assert_array_equal(exported(images)["labels"], images[..., 0])
    assert received == batches
