from __future__ import annotations

import importlib
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from export.small import encoded, expected, pictures, small_model
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from models.networks import calibrated, tiny
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

import keras_deeplab
from keras_deeplab import data, export
from keras_deeplab.export import ExportError
from keras_deeplab.inference import predict

MODULE = importlib.import_module("keras_deeplab.export.saved_model")  # the name is the function's


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (3, 40, 31, 3)])
def test_serving_default_at_any_size_and_batch(exported, shape):
    model, _, signatures = exported
    images = pictures(shape)
    output = signatures["serving_default"](images=tf.constant(images))
    assert set(output) == {"labels", "probabilities"}
    assert output["labels"].dtype == tf.uint8
    assert output["probabilities"].dtype == tf.float32
    right = expected(model, images)
    assert right.std() > 0.01
    np.testing.assert_allclose(output["probabilities"], right, atol=1e-5)
    np.testing.assert_array_equal(output["labels"], np.argmax(output["probabilities"], -1))


def test_signatures_are_as_documented_and_weights_constants(exported):
    _, path, signatures = exported
    inputs = {name: f.structured_input_signature[1] for name, f in signatures.items()}
    assert inputs == {
        "serving_default": {"images": tf.TensorSpec((None, None, None, 3), tf.uint8, "images")},
        "serving_encoded": {"encoded": tf.TensorSpec((None,), tf.string, "encoded")},
    }
    names = [name for name, _ in tf.train.list_variables(str(path / "variables" / "variables"))]
    assert names == ["_CHECKPOINTABLE_OBJECT_GRAPH"]
    parsed = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    functions = parsed.meta_graphs[0].graph_def.library.function
    kinds = {node.op for function in functions for node in function.node_def}
    assert "Conv2D" in kinds
    assert not {kind for kind in kinds if "BatchNorm" in kind or "Variable" in kind}


def test_serving_encoded_reads_files_as_predict_does(exported, tmp_path):
    """A JPEG with an EXIF orientation, and another format."""
    model, _, signatures = exported
    exif, paths = Image.Exif(), [tmp_path / "a.jpg", tmp_path / "b.webp"]
    exif[0x0112] = 6
    Image.fromarray(pictures((21, 34, 3))).save(paths[0], exif=exif)
    Image.fromarray(pictures((34, 21, 4))).save(paths[1], lossless=True)
    files = tf.constant([path.read_bytes() for path in paths])
    output = signatures["serving_encoded"](encoded=files)
    np.testing.assert_array_equal(output["labels"], [predict(model, path) for path in paths])


@pytest.mark.slow
def test_mixed_precision_and_four_channels(tmp_path):
    model = small_model(shape=(None, None, 4), policy="mixed_bfloat16")
    export.saved_model(model, tmp_path / "out")
    signatures = tf.saved_model.load(str(tmp_path / "out")).signatures
    assert "serving_encoded" not in signatures
    images = pictures((2, 30, 41, 4))
    output = signatures["serving_default"](images=tf.constant(images))["probabilities"]
    assert output.dtype == tf.float32
    np.testing.assert_allclose(output, expected(model, images), atol=2e-2)


@pytest.mark.slow
def test_files_are_not_decoded_for_models_of_a_value_range(tmp_path):
    """The graph keeps the upper 8 of 16 bits, not those of the range."""
    info = data.DatasetInfo(tuple("abcde"), channels=3, value_range=(0, 4095))
    export.saved_model(small_model(), tmp_path / "out", info=info)
    opened = tf.saved_model.load(str(tmp_path / "out"))
    assert set(opened.signatures) == {"serving_default"}


@pytest.mark.slow
def test_one_channel_of_a_fixed_size_many_classes_and_uint8_input(tmp_path, monkeypatch):
    """By default the largest request is what was compared, where that is more than 2^24 pixels."""
    monkeypatch.setattr(MODULE, "MAX_PIXELS", 1000)
    model = small_model(classes=300, shape=(32, 48, 1), dtype="uint8")
    export.saved_model(model, tmp_path / "out")
    signatures = tf.saved_model.load(str(tmp_path / "out")).signatures
    images = pictures((2, 32, 48, 1))
    files = tf.constant([encoded(image[..., 0]) for image in images])
    for output in (
        signatures["serving_default"](images=tf.constant(images)),
        signatures["serving_encoded"](encoded=files),
    ):
        assert output["labels"].dtype == tf.int32
        np.testing.assert_allclose(output["probabilities"], expected(model, images), atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="48"):
        signatures["serving_encoded"](encoded=tf.constant([encoded(images[0, :31, :, 0])]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must hold 1 to 4096 pixels"):
        signatures["serving_default"](images=tf.zeros((3, 32, 48, 1), tf.uint8))


def test_metadata_and_the_warm_up_of_a_server_are_beside_the_graph(exported):
    """The requests, decoded by the names of TensorFlow Serving's API, run."""
    _, path, signatures = exported
    stored = json.loads((path / "assets.extra" / "keras_deeplab.json").read_text())
    assert stored == {
        "keras_deeplab": keras_deeplab.__version__,
        "images": "RGB in 0..255, uint8 (batch, height, width, channels)",
        "image_shape": [None, None, 3],
        "outputs": ["labels", "probabilities"],
        "num_classes": 5,
        "image_scale": 1,
        "bytes_per_pixel": 4 * 4 * 5,  # the enlarged logits
    }
    file = str(path / "assets.extra" / "tf_serving_warmup_requests")
    found = []
    for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
        log = prediction_log().FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        name = request.model_spec.signature_name
        ((key, value),) = request.inputs.items()
        inputs = {key: tf.constant(tf.make_ndarray(tf.make_tensor_proto(0).FromString(value)))}
        assert signatures[name](**inputs)["labels"].shape == (2, 97, 129)
        found.append(name)
    assert found == ["serving_default", "serving_encoded"]


def prediction_log():
    """The message as tensorflow_serving/apis declares it, as far as the file has it."""
    file = descriptor_pb2.FileDescriptorProto(name="log.proto", package="log", syntax="proto3")

    def message(name, *fields, parent=file.message_type):
        added = parent.add(name=name)
        for field, number, kind in fields:
            type_name = f".log.{kind}" if kind[0].isupper() else None
            added.field.add(
                name=field,
                number=number,
                label=1,
                type={"string": 9, "bytes": 12}.get(kind, 11),
                type_name=type_name,
            )
        return added

    message("ModelSpec", ("name", 1, "string"), ("signature_name", 3, "string"))
    request = message("PredictRequest", ("model_spec", 1, "ModelSpec"))
    entry = message(
        "InputsEntry", ("key", 1, "string"), ("value", 2, "bytes"), parent=request.nested_type
    )
    entry.options.map_entry = True
    inputs = request.field.add(name="inputs", number=2, label=3, type=11)
    inputs.type_name = ".log.PredictRequest.InputsEntry"
    message("PredictLog", ("request", 1, "PredictRequest"))
    log = message("PredictionLog", ("predict_log", 6, "PredictLog"))
    log.oneof_decl.add(name="log_type")
    log.field[0].oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("log.PredictionLog"))


@pytest.mark.slow
def test_outputs_classes_and_one_size(tmp_path):
    model, info = small_model(), data.DatasetInfo(("a", "b", "c", "d", "e"))
    outputs = ("logits", "labels")
    export.saved_model(model, tmp_path, outputs=outputs, info=info, image_size=(40, 33))
    serve = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    images = pictures((1, 40, 33, 3))
    found = serve(images=tf.constant(images))
    assert set(found) == set(outputs)
    np.testing.assert_array_equal(found["labels"], predict(model, images))
    with pytest.raises(tf.errors.InvalidArgumentError, match="33"):
        serve(images=tf.zeros((1, 40, 34, 3), tf.uint8))
    stored = json.loads((tmp_path / "assets.extra" / "keras_deeplab.json").read_text())
    assert stored["classes"] == ["a", "b", "c", "d", "e"]
    assert len(stored["colors"]) == 5


@pytest.mark.slow
def test_bfloat16(tmp_path):
    model = calibrated("v1")
    export.saved_model(model, tmp_path, precision="bfloat16")
    images = pictures((1, 97, 129, 3))
    serve = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    found = serve(images=tf.constant(images))["probabilities"]
    assert 1e-5 < np.abs(found - expected(model, images)).max() < 0.05


@pytest.fixture
def copied(exported, monkeypatch):
    """Exports are copies of the one of `exported`, changed by the function that is given."""
    change = []

    def write(definition, path, max_pixels):
        shutil.copytree(exported[1], path)
        for function in change:
            function(path)

    monkeypatch.setattr(MODULE, "_write", write)
    return change.append


@pytest.mark.slow
def test_existing_paths(exported, copied, tmp_path, monkeypatch):
    model = exported[0]
    for check in ("check_export", "_check_encoded"):
        monkeypatch.setattr(MODULE, check, lambda *arguments: None)
    out = tmp_path / "deep" / "out"
    export.saved_model(model, out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="a SavedModel to replace with overwrite=True"):
        export.saved_model(model, out)
    copied(lambda path: (path / "second").touch())
    export.saved_model(model, out, overwrite=True)
    (out / "second").unlink()
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    export.saved_model(model, tmp_path / "empty")
    (other := tmp_path / "other").mkdir()
    (other / "precious.txt").write_text("kept")
    for path in (other, other / "precious.txt"):
        with pytest.raises(FileExistsError, match="must be a new folder"):
            export.saved_model(model, path, overwrite=True)
    assert (other / "precious.txt").read_text() == "kept"
    with pytest.raises(ValueError, match=r"^`path` must be the name of a folder: \.tflite is anot"):
        export.saved_model(model, tmp_path / "model.tflite")


def test_an_export_with_other_outputs_never_reaches_the_path(exported, copied, tmp_path):
    other = small_model()
    other.get_layer("conv").kernel.assign(other.get_layer("conv").kernel * 1.2)
    message = r"[0-9.]+% of labels equal, probabilities differ by up to 0\.\d+. .*=0.001"
    with pytest.raises(ExportError, match=message):
        export.saved_model(other, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def truncate(path):
    (path / "saved_model.pb").write_bytes((path / "saved_model.pb").read_bytes()[:1000])


def with_other_labels(path):
    file = path / "saved_model.pb"
    parsed = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for function in parsed.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            node.op = {"ArgMax": "ArgMin"}.get(node.op, node.op)
    file.write_bytes(parsed.SerializeToString())


@pytest.mark.parametrize(
    "change, message",
    [
        (truncate, "cannot be opened: Error parsing"),
        (with_other_labels, "labels differ from those of the probabilities"),
    ],
)
def test_a_wrong_export_leaves_the_old_one(exported, copied, tmp_path, change, message):
    shutil.copytree(exported[1], tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    copied(change)
    with pytest.raises(ExportError, match=message):
        export.saved_model(exported[0], tmp_path / "out", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    tf.saved_model.load(str(tmp_path / "out"))


def test_a_model_with_its_logits_in_a_dict(tmp_path):
    model = small_model()
    export.saved_model(keras.Model(model.inputs, {"out": model.outputs[0]}), tmp_path / "out")


def test_models_that_cannot_be_exported(copied, tmp_path):
    inputs = keras.Input((None, None, 3))
    coarse = keras.Model(inputs, keras.layers.Conv2D(4, 3, strides=2)(inputs))
    broken = small_model()
    broken.get_layer("head").bias.assign(np.full(5, np.nan))
    with pytest.raises(ExportError, match="at the input's size"):
        export.saved_model(coarse, tmp_path / "out")
    with (
        pytest.warns(UserWarning, match=r"NaN or infinite values \(1, such as head/bias\)"),
        pytest.raises(ExportError, match="finite"),
    ):
        export.saved_model(broken, tmp_path / "out")
    one_class = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    with pytest.raises(ValueError, match="at least 2 classes"):
        export.saved_model(one_class, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_crf_an_export_and_a_precision_that_cannot_be_exported(exported, tmp_path):
    model, folder, _ = exported
    opened = keras_deeplab.runtimes.open_exported(folder)
    for other in (opened, keras_deeplab.crf.RefinedModel(model, keras_deeplab.crf.DenseCRF())):
        with pytest.raises(ValueError, match="`model` must be a functional keras.Model. Received"):
            export.saved_model(other, tmp_path / "out")
    inputs = keras.Input((None, None, 3))
    half = keras.layers.Conv2D(3, 1, dtype="mixed_float16")(inputs)
    for write, path in ((export.litert, "out.tflite"), (export.onnx, "out.onnx")):
        with pytest.raises(
            ValueError, match="no method `with_dtype`.* Build it in float32 and copy"
        ):
            write(keras.Model(inputs, half), tmp_path / path, precision="float16")
    several = keras_deeplab.MultiScale(keras_deeplab.MultiScale(model, (1.0,)), (1.0,))
    with pytest.raises(ValueError, match="`precision` must .* no method `with_dtype`"):
        export.saved_model(several, tmp_path / "out", precision="bfloat16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_backbone_that_keeps_its_half_precision_is_refused(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = tiny()
    finally:
        keras.config.set_dtype_policy("float32")
    model = keras_deeplab.DeepLabV3(
        3, network, aspp_filters=8, head_filters=8, aspp_rates=(), dtype="mixed_bfloat16"
    )
    for write in (export.saved_model, export.litert, export.onnx):
        with pytest.raises(ValueError, match="`precision` must be that of the backbone.*'float32'"):
            write(model, tmp_path / "out", precision="float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_files_that_are_decoded_wrongly_are_seen(tmp_path, monkeypatch):
    decode = MODULE.decode_image
    monkeypatch.setattr(MODULE, "decode_image", lambda *arguments: decode(*arguments)[::-1])
    with pytest.raises(ExportError, match=r"serving_encoded: \d\d\.\d\d% of the labels equal"):
        export.saved_model(small_model(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_pixels": 0}, "`max_pixels` must be an integer of at least 40960"),  # as compared
        ({"max_pixels": 40_959}, "`max_pixels` must be an integer of at least 40960"),
        ({"precision": "int8"}, "`precision` must be one of 'float32', 'bfloat16'"),
        ({"precision": "bfloat16"}, "no method `with_dtype`"),
        ({"outputs": ()}, "`outputs` must be a list of labels"),
        ({"outputs": ("labels", "labels")}, "`outputs` must be"),
        ({"info": data.DatasetInfo(("a", "b"))}, "`info` must be of the model's 5 classes"),
        ({"image_size": (0, 5)}, "`image_size` must be"),
        ({"images": []}, "`images` must be a list"),
        ({"images": [np.zeros((4, 4), np.uint8)]}, "`images` must be files or uint8"),
    ],
)
def test_arguments_are_checked_first(exported, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        export.saved_model(exported[0], tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []
