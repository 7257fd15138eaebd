"""TensorFlow checkpoints of both kinds, and the authors' networks in them."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import image
from models.networks import tiny, zero_kernels
from parity import write_tf1
from sources import ASPP, HEAD, as_the_authors_write_it, scattered, tar_gz
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import Checkpoint, WeightsError
from keras_deeplab.weights.names import tf1_deeplab
from keras_deeplab.weights.readers.tensorflow import prefix_of

PIXELS = image(65, 97)
AVERAGE, EMA = "/ExponentialMovingAverage", {"moving_averages": True}
AUTHORS = {"align_corners": True, "separable": True}
HALF = {"backbone_options": {"depth_multiplier": 0.5, "padding": "same"}}
# The model, and how its backbone's scope begins in a checkpoint.
NETWORKS = {
    "mobilenet_v2": (
        lambda: keras_deeplab.DeepLabV3Plus(5, "mobilenet_v2", **HALF, **AUTHORS),
        tf1_deeplab.mobilenet_v2(),
    ),
    "xception41": (
        lambda: keras_deeplab.DeepLabV3Plus(19, "xception41", **AUTHORS),
        tf1_deeplab.xception(41),
    ),
    "xception71": (
        lambda: keras_deeplab.DeepLabV3Plus(19, "xception71", output_stride=8, **AUTHORS),
        tf1_deeplab.xception(71),
    ),
    "resnet50_beta": (
        lambda: keras_deeplab.DeepLabV3Plus(21, "resnet50_beta", **AUTHORS),
        tf1_deeplab.resnet_beta(50),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_authors_networks_come_back_whole(tmp_path, name):
    build, layers = NETWORKS[name]
    with zero_kernels():
        model = scattered(build())
    arrays = as_the_authors_write_it(model, {**layers, **HEAD, **ASPP})
    prefix = write_tf1(tmp_path / "model.ckpt-7", arrays)
    found, own = weights.open_checkpoint(prefix), weights.open_checkpoint(model)
    assert (found.model, found.backbone) == (own.model, own.backbone)
    assert found.arrays.keys() == own.arrays.keys()
    for path, array in own.arrays.items():
        np.testing.assert_array_equal(found.arrays[path], array, path)
    config = model.get_config()
    options = found.backbone_arguments.get("backbone_options", {})
    assert options.items() <= (config["backbone_options"] or {}).items()
    assert found.backbone_arguments["preprocessing"] == config["preprocessing"]
    assert found.model_arguments.items() <= config.items()


STEM = "backbone/stem_conv/kernel"


@pytest.mark.slow
def test_slots_and_averages_are_told_apart(authors_model, authors_arrays, tmp_path):
    kernel = "MobilenetV2/Conv/weights"
    extra = {
        "global_step": np.int64(7),
        f"{kernel}/Momentum": np.ones_like(authors_arrays[kernel]),
        f"{kernel}/RMSProp_1": np.ones_like(authors_arrays[kernel]),
        **{f"{name}{AVERAGE}": array + 1 for name, array in authors_arrays.items()},
    }
    prefix = write_tf1(tmp_path / "model.ckpt", {**authors_arrays, **extra})
    plain = weights.open_checkpoint(prefix)
    assert set(plain.arrays) == set(weights.open_checkpoint(authors_model).arrays)
    np.testing.assert_allclose(plain.arrays[STEM], authors_arrays[kernel])
    averaged = weights.open_checkpoint(prefix, moving_averages=True)
    np.testing.assert_allclose(averaged.arrays[STEM], authors_arrays[kernel] + 1)
    with pytest.raises(WeightsError, match="`moving_averages` must be False"):
        weights.open_checkpoint(write_tf1(tmp_path / "bare", {"a": np.zeros(1)}), **EMA)


def test_every_way_to_name_a_checkpoint(authors_arrays, tmp_path):
    folder = tmp_path / "deeplabv3_mnv2_pascal"
    folder.mkdir()
    prefix = write_tf1(folder / "model.ckpt-30000", authors_arrays)
    archive = tmp_path / "deeplabv3_mnv2_pascal.tar.gz"
    archive.write_bytes(tar_gz(folder))
    data = next(folder.glob("*.data-*"))
    for path in (prefix, Path(f"{prefix}.index"), data, folder, archive):
        found = weights.open_checkpoint(path)
        np.testing.assert_array_equal(
            found.arrays[STEM], authors_arrays["MobilenetV2/Conv/weights"]
        )
    write_tf1(folder / "another.ckpt", {"a": np.zeros(1)})
    with pytest.raises(WeightsError, match="several checkpoints"):
        weights.open_checkpoint(folder)


def test_a_checkpoint_by_objects(tmp_path):
    model = scattered(tiny())
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(tmp_path / "objects"))
    found = tiny()
    report = weights.load(found, tmp_path / "objects")
    assert report.missing_keys == report.unexpected_keys == ()
    np.testing.assert_array_equal(found(PIXELS), model(PIXELS))


@pytest.mark.parametrize("graph", [np.array(b"\xff\xff"), np.zeros(3, np.float32), np.array(b"")])
def test_an_object_graph_that_is_none_is_refused(tmp_path, graph):
    prefix = write_tf1(tmp_path / "a", {"_CHECKPOINTABLE_OBJECT_GRAPH": graph})
    with pytest.raises(WeightsError, match=r"a: it"):
        weights.open_checkpoint(prefix)


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_checkpoint_is_refused(tmp_path, suffix, share):
    prefix = write_tf1(tmp_path / "cut", {f"a{n}": np.zeros(99) for n in range(99)})
    file = Path(f"{prefix}.{suffix}")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match="cut: it"):
        weights.open_checkpoint(prefix)


def recognized(arrays: dict[str, np.ndarray]) -> Checkpoint | None:
    return tf1_deeplab.recognize(Checkpoint("a", arrays))


def wide(classes: int) -> np.ndarray:
    return np.broadcast_to(np.zeros((), np.float32), (1, 1, 1, classes))


@pytest.mark.parametrize(
    "without, changes, message",
    [
        ("aspp0/", {}, "aspp0/weights must be a non-empty array"),
        ("expanded_conv_5/", {}, r"lacks \d of its layers: MobilenetV2/expanded_conv_5"),
        ("none", {"aspp1/weights": wide(1)}, "1 atrous branches, whose rates are not known"),
        (
            "none",
            {"decoder/feature_projection0_1/weights": wide(48)},
            "its decoder has two stages",
        ),
        (
            "none",
            {f"aspp{index}/weights": wide(8) for index in (1, 2, 3)}
            | {"decoder/decoder_conv0_depthwise/depthwise_weights": wide(8)},
            "not both separable or both dense",
        ),
        # One wide array makes no large model.
        *(
            ("none", {f"{scope}/weights": wide(200_000)}, f"{scope}/weights must have at most")
            for scope in ("MobilenetV2/expanded_conv_16/project", "logits/semantic", "aspp0")
        ),
        (
            "none",
            {"MobilenetV2/Conv/weights": np.array(["a"])},
            "Conv/weights must hold floating point. Received: dtype=",
        ),
    ],
)
def test_other_networks_and_types_are_refused(authors_arrays, without, changes, message):
    found = {name: array for name, array in authors_arrays.items() if without not in name}
    with pytest.raises(WeightsError, match=message):
        recognized({**found, **changes})


def test_a_sigmoids_logit_becomes_that_of_the_second_class(authors_arrays):
    one = {
        f"logits/semantic/{name}": authors_arrays[f"logits/semantic/{name}"][..., :1]
        for name in ("weights", "biases")
    }
    found = recognized({**authors_arrays, **one})
    assert found.model_arguments["num_classes"] == 2
    for theirs, ours in (("weights", "kernel"), ("biases", "bias")):
        array = found.arrays[f"logits/{ours}"]
        np.testing.assert_array_equal(array[..., 1:], one[f"logits/semantic/{theirs}"])
        assert not array[..., 0].any()
        assert array[..., 1].all()


def test_unknown_networks():
    assert recognized({"InceptionV3/weights": np.zeros(3, np.float32)}) is None
    with pytest.raises(WeightsError, match=r"lacks .*resnet_v1_50/conv1_1"):  # not the "beta" form
        recognized({"resnet_v1_50/conv1/weights": np.zeros((7, 7, 3, 64), np.float32)})


def varint(number: int) -> bytes:
    if number < 128:
        return bytes([number])
    return bytes([number & 127 | 128]) + varint(number >> 7)


def write_index(prefix: Path, *entries: bytes, names: str = "", restart=0, blocks=1) -> Path:
    """A checkpoint of 64 bytes of data; the checksums, which are read later, are wrong."""
    table = b""

    def handle(*items: tuple[bytes, bytes]) -> bytes:
        nonlocal table
        block, before = b"", b""
        for key, value in items:
            shared = len(before) if key.startswith(before) else 0
            block += varint(shared) + varint(len(key) - shared) + varint(len(value))
            block += key[shared:] + value
            before = key
        block += (restart if items else 0).to_bytes(4, "little") + (1).to_bytes(4, "little")
        start = len(table)
        table += block + bytes(5)
        return varint(start) + varint(len(block))

    header = BundleHeaderProto(num_shards=1, version={"producer": 1}).SerializeToString()
    keys = names.split() or [f"a{number}" for number in range(len(entries))]
    named = [(key.encode(), value) for key, value in zip(keys, entries, strict=True)]
    data = handle((b"", header), *named)
    footer = handle() + handle(*[(b"\xff", data)] * blocks)
    magic = (0xDB4775248B80FB57).to_bytes(8, "little")
    Path(f"{prefix}.index").write_bytes(table + footer.ljust(40, b"\0") + magic)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(bytes(64))
    return prefix


def entry(*shape: int, dtype: int = 1) -> bytes:
    found = BundleEntryProto(dtype=dtype, size=64)
    for size in shape:
        found.shape.dim.add().size = size
    return found.SerializeToString()


SLICE = BundleEntryProto(slices=[{"extent": [{"length": 4}]}]).SerializeToString()


@pytest.mark.parametrize(
    "entries, reason",
    [
        ([entry(4, 4)], "it cannot be read: .*[Cc]hecksum"),  # by TensorFlow itself
        ([entry(1 << 34)], "it declares variables of 68719476736 bytes in data of 64 bytes"),
        ([entry(1 << 20, dtype=7)], "it declares variables of 25165824 bytes in data of 64 bytes"),
        # Of the same bytes, more than data could be.
        ([entry(4, 4)] * 5, "it declares variables of 320 bytes in data of 64 bytes"),
        ([entry(-4, 4)], r"declared with the shape \[-4, 4\]"),
        ([entry(*[1] * 300)], r"declared with the shape \[1, 1"),
        ([entry(1 << 40, 1 << 40)], r"declared with the shape \[1099511627776, "),
        ([entry(0, 1 << 40, 1 << 40)], r"declared with the shape \[0, 1099511627776, "),
        ([entry(4, 4, dtype=101)], "must be stored as values. Received: float32_ref"),
        ([entry(4, 4) + SLICE], "a variable is stored in slices: save it without"),
        ([entry(4, 4, dtype=999)], "it cannot be read: "),
        ([b"\xff\xff\xff"], "it cannot be read: "),
    ],
)
def test_an_index_that_would_end_the_process_is_refused(entries, reason, tmp_path):
    with pytest.raises(WeightsError, match=reason):
        weights.open_checkpoint(write_index(tmp_path / "a", *entries))


def with_length(prefix: Path, text: bytes, declared: int) -> Path:
    """Lets the last variable of a checkpoint, which is `text`, declare another length."""
    data = Path(f"{prefix}.data-00000-of-00001")
    content = data.read_bytes()
    begin = content[: -len(text) - 4 - len(varint(len(text)))]
    data.write_bytes((begin + varint(declared)).ljust(len(content), b"\0"))
    return prefix


@pytest.mark.parametrize("declared", [6, 1 << 20, 1 << 40])
def test_the_length_of_a_string_is_that_of_its_data(tmp_path, declared):
    # TensorFlow takes the memory before it looks at the data, or ends the process.
    arrays = {"a": np.zeros(9, np.float32), "of": np.array(b"words")}
    found = weights.open_checkpoint(
        with_length(write_tf1(tmp_path / "a", arrays), b"words", declared)
    )
    assert set(found.arrays) == {"a"}
    graph = {"_CHECKPOINTABLE_OBJECT_GRAPH": np.array(b"words")}
    prefix = with_length(write_tf1(tmp_path / "tree", graph), b"words", declared)
    with pytest.raises(WeightsError, match="its tree of objects is not a string of the length in"):
        weights.open_checkpoint(prefix)


def test_a_string_ends_within_its_data(tmp_path):
    length = 1 << 20  # in the index and in the data alike
    declared = BundleEntryProto(dtype=7, size=len(varint(length)) + 4 + length)
    name = "_CHECKPOINTABLE_OBJECT_GRAPH"
    prefix = write_index(tmp_path / "a", declared.SerializeToString(), names=name)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(varint(length).ljust(64, b"\0"))
    with pytest.raises(WeightsError, match="its tree of objects is not a string of the length in"):
        weights.open_checkpoint(prefix)


def test_a_variable_that_a_tree_of_objects_names_many_times_is_read_once(tmp_path):
    names = [{"full_name": f"v{number}", "checkpoint_key": "a"} for number in range(9)]
    tree = TrackableObjectGraph(nodes=[{"attributes": names}]).SerializeToString()
    arrays = {"_CHECKPOINTABLE_OBJECT_GRAPH": np.array(tree), "a": np.zeros(9, np.float32)}
    found = weights.open_checkpoint(write_tf1(tmp_path / "a", arrays)).arrays
    assert len(found) == 9
    assert len({id(array) for array in found.values()}) == 1


def test_a_tree_of_objects_may_be_in_another_part(tmp_path):
    """As a program with several machines writes a checkpoint."""
    attribute = {"full_name": "v", "checkpoint_key": "a"}
    tree = TrackableObjectGraph(nodes=[{"attributes": [attribute]}]).SerializeToString()
    arrays = ({"a": np.ones(3, np.float32)}, {"_CHECKPOINTABLE_OBJECT_GRAPH": np.array(tree)})
    parts = [str(write_tf1(tmp_path / str(k), each)) for k, each in enumerate(arrays)]
    whole = str(tmp_path / "whole")
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=whole)
    assert weights.open_checkpoint(whole).arrays["v"].tolist() == [1, 1, 1]


def test_a_checkpoint_by_objects_may_hold_strings(tmp_path):
    text = tf.Variable(["a", "layer's configuration"])
    tree = tf.train.Checkpoint(kernel=tf.Variable([1.0]), text=text)
    tree.write(str(tmp_path / "objects"))
    assert set(weights.open_checkpoint(tmp_path / "objects").arrays) == {"Variable"}


@pytest.mark.parametrize(
    "parts, reason",
    [
        ({"names": "a " * 200}, "two entries of the name b'a'"),
        ({"blocks": 2}, "parts that are read more than once"),
        # Names that are one letter longer each make a small index large.
        ({"names": " ".join("a" * 9 * n for n in range(1, 201))}, "parts that are read more than"),
        ({"restart": 1}, "an entry that lies inside another"),  # where TensorFlow begins
        ({"restart": 1 << 30}, "an entry that lies inside another"),
    ],
)
def test_an_index_says_one_thing_once(parts, reason, tmp_path):
    prefix = write_index(tmp_path / "a", *[b""] * 200, **parts)
    with pytest.raises(WeightsError, match=f"its index has {reason}"):
        weights.open_checkpoint(prefix)


def test_a_checkpoint_without_one_of_its_data_files_is_refused(tmp_path):
    prefix = write_tf1(tmp_path / "model.ckpt", {"a": np.zeros(9)})
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    data.rename(tmp_path / "model.ckpt.data-00000-of-00002")
    with pytest.raises(WeightsError, match="it cannot be read: "):
        weights.open_checkpoint(prefix)


def test_the_file_checkpoint_names_one_in_its_own_folder(tmp_path):
    for name in ("model.ckpt-1", "model.ckpt-2"):
        write_tf1(tmp_path / name, {"a": np.zeros(1)})
    listing = tmp_path / "checkpoint"
    for name in ("model.ckpt-2", "/moved/away/model.ckpt-2"):
        listing.write_text(f'model_checkpoint_path: "{name}"')
        assert prefix_of(tmp_path) == tmp_path / "model.ckpt-2"
    for content in (b'model_checkpoint_path: "gone"', b"no protocol buffer", b"\xff\xfe"):
        listing.write_bytes(content)
        with pytest.raises(
            WeightsError, match=r"several checkpoints|checkpoint: it cannot be read"
        ):
            weights.open_checkpoint(tmp_path)
