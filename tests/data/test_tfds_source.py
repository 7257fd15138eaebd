"""Data sets of TensorFlow Datasets: features, classes, splits and damaged files."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from keras_deeplab import data

TF = tfds.features
MASK = TF.Image(shape=(None, None, 1))
FEATURES = {"image": TF.Image(), "mask": TF.LabeledImage(labels=["a", "b", "c"])}


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "png")
    return file.getvalue()


def photo(seed: int, size=(6, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture
def build(tmp_path):
    """Writes splits of examples as TFRecord or ArrayRecord files, with TFDS' own writer."""

    def write(features, splits, name="mine", file_format="tfrecord", per_shard=2, folder="set"):
        root = tmp_path / folder
        root.mkdir()
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=name, version="1.0.0", data_dir=str(root), module_name=""
        )
        info = tfds.core.DatasetInfo(builder=identity, features=TF.FeaturesDict(features))
        writer = tfds.core.SequentialWriter(info, per_shard, file_format=file_format)
        writer.initialize_splits(list(splits))
        writer.add_examples(splits)
        writer.close_all()
        return root

    return write


@pytest.fixture
def quarters() -> np.ndarray:
    return np.kron(np.array([[0, 1], [2, 255]], np.uint8), np.ones((3, 4), np.uint8))


def labels(source, split="train") -> list[np.ndarray]:
    return [label for _, label in source.dataset(split).as_numpy_iterator()]


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_records_at_any_position(build, quarters, file_format):
    examples = [{"image": photo(k), "mask": png((quarters + k) % 3)} for k in range(5)]
    root = build(FEATURES, {"train": examples, "validation": examples[:1]}, "mine", file_format)
    source = data.open_source(f"tfds:{root}")
    assert source.splits == ("train", "val")
    assert source.info.classes == ("a", "b", "c")
    assert len(set(source.names("train"))) == 5
    assert source.names("train")[3].endswith(f"{file_format}-00001__1")
    numbers = tf.data.Dataset.from_tensor_slices(np.array([4, 0, 3, 3], np.int64))
    found = list(source.dataset("train", numbers).as_numpy_iterator())
    for number, (image, label) in zip([4, 0, 3, 3], found, strict=True):
        np.testing.assert_array_equal(image, photo(number))
        np.testing.assert_array_equal(label, (quarters + number) % 3)


def test_parts_of_splits(build, quarters):
    examples = [{"image": photo(k), "mask": png(quarters)} for k in range(5)]
    root = build(FEATURES, {"train": examples})
    source = data.open_source(f"tfds:{root}?train=train[:60%]&val=train[60%:]")
    assert [len(source.names(split)) for split in source.splits] == [3, 2]
    first = next(source.dataset("val").as_numpy_iterator())[0]
    np.testing.assert_array_equal(first, photo(3))
    for wrong in ({"val": "dev"}, {"train": "train[x"}, {"train": ""}):
        with pytest.raises(ValueError, match="`splits` must be names or parts of train, such as"):
            data.TFDS(root, splits=wrong)
    shard = source.names("train")[0].removesuffix("__0")
    (root / "metadata.json").write_text(json.dumps({"names": {shard: ["a"]}}))
    assert data.TFDS(root).names("train")[:2] == ["a", f"{shard}__1"]
    (root / "metadata.json").write_text('{"names": {"a": [1]}}')
    with pytest.raises(data.DatasetError, match="metadata.json: names must be lists of strings"):
        data.TFDS(root)


def published(name: str) -> dict:
    return dict(tfds.builder(name).info.features.items())


def test_oxford_iiit_pet_counts_from_0(build):
    names = ("image", "label", "segmentation_mask", "species", "file_name", "head_bbox")
    features = published("oxford_iiit_pet")
    assert set(features) == set(names)
    mask = np.array([[1, 2, 3, 3]], np.uint8)
    box = TF.BBox(0.0, 0.0, 1.0, 1.0)
    example = dict(zip(names, (photo(0, (1, 4)), 3, png(mask), 0, "a.jpg", box), strict=True))
    source = data.TFDS(build(features, {"train": [example], "test": [example]}, "oxford_iiit_pet"))
    assert source.info.classes == ("pet", "background", "border")
    assert source.splits == ("train", "test")
    assert labels(source)[0].tolist() == [[0, 1, 2, 2]]


def test_scene_parse150_has_its_classes_in_the_red_channel(build):
    mask = np.stack(np.broadcast_arrays([[0, 1, 100, 7]], [[9, 8, 7, 6]], [[0] * 4]), -1)
    example = {"image": photo(0, (1, 4)), "annotation": png(mask)}
    root = build(published("scene_parse150"), {"train": [example]}, "scene_parse150")
    source = data.TFDS(root)
    assert source.info.num_classes == 100
    assert source.info.classes[99] == "flag"
    assert labels(source)[0].tolist() == [[255, 0, 99, 6]]


def test_cityscapes_has_19_of_34_ids(build):
    features = published("cityscapes/semantic_segmentation")
    mask = np.tile(np.arange(34, dtype=np.uint8), (1024, 61))[:, :2048]
    example = {"image_id": "a", "image_left": photo(0, (1024, 2048))}
    example["segmentation_label"] = png(mask)
    source = data.TFDS(build(features, {"train": [example]}, "cityscapes"))
    assert source.info.classes[:2] == ("road", "sidewalk")
    values = labels(source)[0][0, :34]
    assert values[[7, 8, 11, 33, 0, 6, 9, 29]].tolist() == [0, 1, 2, 18, 255, 255, 255, 255]
    assert np.unique(values).tolist() == [*range(19), 255]


def test_panoptic_masks_have_the_labels_of_their_objects(build):
    features = published("coco/2017_panoptic")
    ids = np.array([[0, 70000, 300, 5]])
    mask = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1)
    box = TF.BBox(0.0, 0.0, 1.0, 1.0)
    objects = [
        {"id": one, "area": 1, "bbox": box, "label": label, "is_crowd": crowd}
        for one, label, crowd in ((300, 7, False), (70000, 132, False), (5, 1, True))
    ]
    example = {"image": photo(0, (1, 4)), "image/filename": "a", "image/id": 1}
    example |= {"panoptic_image": png(mask), "panoptic_image/filename": "a"}
    example["panoptic_objects"] = objects
    source = data.TFDS(build(features, {"train": [example]}, "coco"))
    assert source.info.num_classes == 133
    assert labels(source)[0].tolist() == [[255, 132, 7, 255]]


def test_without_names_the_classes_are_those_that_occur(build, logs):
    examples = [{"image": photo(k, (1, 4)), "mask": png([[0, 0, 255, 255]])} for k in range(3)]
    source = data.TFDS(build({"image": TF.Image(), "mask": MASK}, {"train": examples}))
    assert source.info.num_classes == 2
    assert labels(source)[0].tolist() == [[0, 0, 1, 1]]


def test_unclear_values_need_a_dataset_json(build, tmp_path):
    examples = [{"image": photo(0, (1, 4)), "mask": png([[3, 3, 90, 255]])}]
    root = build({"image": TF.Image(), "mask": MASK}, {"train": examples})
    with pytest.raises(data.DatasetError, match=r'"values": \[3, 90, 255\].*settings=PATH'):
        _ = data.TFDS(root).info
    (tmp_path / "mine.json").write_text('{"classes": ["low", "high"], "values": [3, 90]}')
    source = data.open_source(f"tfds:{root}?settings={tmp_path / 'mine.json'}")
    assert labels(source)[0].tolist() == [[0, 0, 1, 255]]
    (root / "dataset.json").write_text('{"values": [90, 3]}')
    assert labels(data.TFDS(root))[0].tolist() == [[1, 1, 0, 255]]


def test_rgb_label_maps_have_the_colors_of_a_dataset_json(build, tmp_path):
    colors = np.array([[0, 0, 0], [9, 200, 30], [255, 255, 255]], np.uint8)
    example = {"image": photo(0, (1, 4)), "mask": png(colors[[[0, 1, 1, 2]]])}
    root = build({"image": TF.Image(), "mask": TF.Image()}, {"train": [example]})
    settings = {"colors": colors[:2].tolist(), "ignore_colors": [[255, 255, 255]]}
    (root / "dataset.json").write_text(json.dumps(settings))
    assert labels(data.TFDS(root, mask="mask"))[0].tolist() == [[0, 1, 1, 255]]
    (root / "dataset.json").write_text(json.dumps({"colors": settings["colors"]}))
    with pytest.raises(data.DatasetError, match=r"colour without a class.*\[255, 255, 255\]"):
        data.audit(data.TFDS(root, mask="mask"))


def test_several_candidates_are_listed(build, quarters):
    features = {"left": TF.Image(), "right": TF.Image(), "mask": MASK}
    features["fine"] = {"segmentation": MASK}
    example = {"left": photo(0), "right": photo(1), "mask": png(quarters)}
    example["fine"] = {"segmentation": png(quarters)}
    root = build(features, {"train": [example]})
    with pytest.raises(ValueError, match="`image` must be one of the features 'left', 'right'"):
        data.TFDS(root, mask="mask")
    with pytest.raises(ValueError, match="`mask` must be .* 'fine/segmentation', 'mask'. Received"):
        data.TFDS(root, image="left")
    source = data.open_source(f"tfds:{root}?image=right&mask=fine/segmentation")
    image, label = next(source.dataset("train").as_numpy_iterator())
    np.testing.assert_array_equal(image, photo(1))
    np.testing.assert_array_equal(label, quarters)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_all_damaged_shards_are_named(build, quarters, file_format):
    examples = [{"image": photo(k, (60, 80)), "mask": png(np.zeros((60, 80)))} for k in range(8)]
    root = build(FEATURES, {"train": examples}, "mine", file_format)
    shards = sorted(root.glob("*-0000?"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:20_000])  # in the second record
    shards[2].unlink()
    with pytest.raises(data.DatasetError) as caught:
        data.TFDS(root)
    message = str(caught.value)
    assert "2 faults" in message
    assert f"{shards[1].name}: 20000 bytes" in message
    assert shards[2].name in message

    damaged = bytearray(whole)
    damaged[20_000:20_004] = b"\0\1\2\3"
    shards[1].write_bytes(damaged)
    shards[2].write_bytes(shards[0].read_bytes())
    source = data.TFDS(root)
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"{shards[1].name}, record 1"):
        list(source.dataset("train"))
    shards[3].write_bytes(damaged)
    with pytest.raises(data.DatasetError) as caught:
        data.audit(data.TFDS(root))
    message = str(caught.value)
    assert "2 faults" in message
    assert all(f"{shard.name}, record 1: " in message for shard in (shards[1], shards[3]))
    assert "function_node" not in message
    assert "Traceback" not in message
    shards[0].unlink()
    shards[0].mkdir()
    with pytest.raises(data.DatasetError, match=f"{shards[0].name}: a folder"):
        data.TFDS(root)
    shards[3].write_bytes(b"")
    with pytest.raises(data.DatasetError, match=f"{shards[3].name}: 0 "):
        data.TFDS(root)


def test_a_folder_may_not_import_other_packages(build, quarters):
    root = build(FEATURES, {"train": [{"image": photo(0), "mask": png(quarters)}]})
    text = (root / "features.json").read_text()
    known = "tensorflow_datasets.core.features.image_feature.Image"
    evil = text.replace(known, "antigravity.Image")
    assert evil != text
    (root / "features.json").write_text(evil)
    with pytest.raises(data.DatasetError, match="antigravity.Image is not a feature"):
        data.TFDS(root)
    assert "antigravity" not in sys.modules
    info = json.loads((root / "dataset_info.json").read_text())
    (root / "features.json").write_text(text)
    info["splits"][0]["filepathTemplate"] = "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
    (root / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(data.DatasetError, match="expected: files in"):
        data.TFDS(root)
    (root / "dataset_info.json").write_text("{")
    with pytest.raises(data.DatasetError, match="expected: files that TensorFlow Datasets wrote"):
        data.TFDS(root)


def test_wrong_names(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Did you mean 'oxford_iiit_pet'"):
        data.open_source("tfds:oxford_iit_pet")
    with pytest.raises(ValueError, match="`config` must be one of .*Did you mean '2017_panoptic'"):
        data.open_source("tfds:coco:2017_panoptics")
    with pytest.raises(ValueError, match="Did you mean 'mask'"):
        data.open_source("tfds:coco?masks=a")
    with pytest.raises(ValueError, match=r'audit "tfds:oxford_iiit_pet\?download=true&data_dir='):
        data.open_source(f"tfds:oxford_iiit_pet?data_dir={tmp_path}")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ValueError, match=f"For the folder write ./{tmp_path.name}"):
        data.open_source(f"tfds:{tmp_path.name}")
    with pytest.raises(data.DatasetError, match="is not a folder"):
        data.open_source(f"tfds:{tmp_path}/none")
    with pytest.raises(data.DatasetError, match="expected: a dataset_info.json"):
        data.open_source(f"tfds:{tmp_path}")


def test_by_name_with_the_mock_data_of_tensorflow_datasets(build, tmp_path):
    """Examples that TFDS draws for a data set, stored where it would be, and opened by name.

    `mock_data` alone does not do: it replaces `as_dataset` and writes no records, which are read.
    """

    def drawn(self, *_, **__):
        def examples():
            for number in range(4):
                mask = np.random.default_rng(number).integers(1, 4, (6, 8, 1), np.uint8)
                boxes = {"label": 0, "species": 1, "file_name": "a", "head_bbox": np.zeros(4, "f")}
                yield {"image": photo(number), "segmentation_mask": mask, **boxes}

        info = self.info.features
        return tf.data.Dataset.from_generator(
            examples, output_types=info.dtype, output_shapes=info.shape
        )

    with tfds.testing.mock_data(as_dataset_fn=drawn):
        mocked = list(tfds.as_numpy(tfds.load("oxford_iiit_pet", split="train")))
    for example in mocked:
        example["head_bbox"] = TF.BBox(*example["head_bbox"].tolist())
        example["file_name"] = example["file_name"].decode()
        example["image"] = png(example["image"])  # by default JPEG
    splits = {"train": mocked, "test": mocked[:1]}
    root = build(published("oxford_iiit_pet"), splits, "oxford_iiit_pet")
    info = json.loads((root / "dataset_info.json").read_text())
    info["version"] = "4.0.0"
    (root / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "all" / "oxford_iiit_pet").mkdir(parents=True)
    root.rename(tmp_path / "all" / "oxford_iiit_pet" / "4.0.0")
    source = data.open_source(f"tfds:oxford_iiit_pet/train[1:]?data_dir={tmp_path / 'all'}")
    assert source.splits == ("train",)
    assert len(source.names("train")) == 3
    found = source.dataset("train").as_numpy_iterator()
    for number, (image, label) in enumerate(found, 1):
        example = mocked[number]
        np.testing.assert_array_equal(image, photo(number))
        np.testing.assert_array_equal(label, example["segmentation_mask"][..., 0] - 1)
    assert data.audit(source).warnings == ()
