from __future__ import annotations

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from trainer import tiny_run

import keras_deeplab
from keras_deeplab import data, recipes
from keras_deeplab.cli import audit, evaluate, export, options, predict, train
from keras_deeplab.files import write_json
from keras_deeplab.prediction import stored_info
from keras_deeplab.trainer import MODELS, ModelBuilder
from keras_deeplab.trainer.finishing import final_model


class TinyShapes(data.Shapes):
    def __init__(self) -> None:
        super().__init__(train=6, val=3)


SHORT = ["--epochs", "2", "--batch-size", "2", "--crop-size", "48", "64"]


def tiny_network(input_shape):
    """A network with the strides of a backbone and little else."""
    inputs = x = keras.Input(input_shape)
    for index in range(5):
        x = keras.layers.Conv2D(8, 3, 2, padding="same", activation="relu", name=f"c{index}")(x)
    return keras.Model(inputs, x, name="tiny")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A few images and a small network are enough for what the commands do with them."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.small(patch, TinyShapes, tiny_network)
        yield


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "first"
    assert train.main([*SHORT, "--output", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_run_in_mixed_precision_leaves_a_float32_model_with_test_time_augmentation(tmp_path):
    folder = tmp_path / "run"
    more = ["--mixed-precision", "bfloat16", "--scales", "1", "1.5", "--flip"]
    arguments = [*SHORT, *more, "--output", str(folder)]
    assert train.main(arguments) == 0
    last = keras.models.load_model(folder / "last.keras", compile=False)
    assert last.get_config()["dtype"] == "mixed_bfloat16"
    model = keras.models.load_model(folder / "model.keras", compile=False)
    config = model.get_config()
    assert (config["scales"], config["flip"], config["fusion"]) == ((1.0, 1.5), True, "mean")
    assert model.model.get_config()["dtype"] == "float32"
    assert model.model.count_params() == last.count_params()
    metrics = json.loads((folder / "metrics.json").read_text())
    own = [{"scales": [1.0, 1.5], "flip": True, "fusion": "mean"}]
    assert metrics["test_time_augmentation"] == own
    found = keras_deeplab.evaluate(model, data.evaluation_dataset(TinyShapes()))
    assert found["mean_iou"] == pytest.approx(metrics["mean_iou"], abs=1e-6)
    assert final_model(model, (1.0, 1.5), True) is model  # as after a stop before the export
    command = ["--model", str(folder / "model.keras"), "--output", str(tmp_path)]
    assert evaluate.main([*command, "--output-stride", "8"]) == 0
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert (stored["test_time_augmentation"], stored["output_stride"]) == (own, 8)
    assert evaluate.main([*command, "--scales", "0.5", "1"]) == 0  # around the model's own
    stored = json.loads((tmp_path / "metrics.json").read_text())
    outer = {"scales": [0.5, 1.0], "flip": False, "fusion": "mean"}
    assert stored["test_time_augmentation"] == [outer, *own]


def test_weights_to_start_from(run, tmp_path, capsys, logs):
    start = keras.models.load_model(run / "model.keras")
    builder = ModelBuilder(weights=run / "model.keras")
    assert (builder.name, builder.backbone) == ("deeplab_v3_plus", "mobilenet_v2")
    model = builder.build(6, recipes.FINETUNE)
    for old, new in zip(start.weights, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert "missing keys: none" in logs.text
    builder.build(2, recipes.FINETUNE)
    assert "missing keys: logits" in logs.text
    assert train.main([*SHORT, "--weights", str(run), "--output", str(tmp_path / "x")]) == 2
    assert (
        f"{run}: it is the folder of a run: give {run / 'model.keras'}" in capsys.readouterr().err
    )


def test_evaluate_writes_the_scores(run, tmp_path, capsys):
    model = ["--model", str(run / "model.keras")]
    assert evaluate.main([*model, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    trained = json.loads((run / "metrics.json").read_text())
    assert found["mean_iou"] == pytest.approx(trained["mean_iou"], abs=1e-6)
    assert trained["test_time_augmentation"] == []
    assert "mean IoU" in capsys.readouterr().out
    assert evaluate.main([*model, "--output-stride", "8"]) == 0
    stored = json.loads((run / "evaluation-val" / "metrics.json").read_text())
    assert stored["output_stride"] == 8
    assert evaluate.main([*model, "--split", "test"]) == 2
    assert "test" in capsys.readouterr().err


def test_audit_prints_the_report_or_all_errors(tmp_path, capsys):
    assert audit.main(["shapes", "--splits", "val"]) == 0
    assert "val: 3 images" in capsys.readouterr().out
    image = folder_for(tmp_path, "train", "images") / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    folder_for(tmp_path, "train", "labels")
    assert audit.main([str(tmp_path)]) == 2
    assert "image without label (1)" in capsys.readouterr().err


def test_predict_writes_two_pictures_for_each_image(run, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(0)
    for name, size in (("a.jpg", (40, 60, 3)), ("b.png", (31, 33))):
        Image.fromarray(random.integers(0, 255, size, "uint8")).save(photos / name)
    (photos / "._a.jpg").write_bytes(b"left by a file manager")
    deep = np.full((20, 30), 0x8000, np.uint16)
    Image.fromarray(deep).save(photos / "deep.png")
    model = ["--model", str(run / "model.keras"), "--output", str(tmp_path / "out")]
    assert predict.main([*model, "--images", str(photos)]) == 0
    labels = np.asarray(Image.open(tmp_path / "out" / "a_labels.png"))
    assert labels.shape == (40, 60)
    assert labels.max() < 6
    assert np.asarray(Image.open(tmp_path / "out" / "b_overlay.png")).shape == (31, 33, 3)
    overlay = np.asarray(Image.open(tmp_path / "out" / "deep_overlay.png"))
    deep_labels = np.asarray(Image.open(tmp_path / "out" / "deep_labels.png"))
    colors = np.asarray(data.Shapes().info.colors)[deep_labels]
    assert np.abs(overlay - (0x80 + colors) / 2).max() <= 1  # the upper bytes, as the network saw
    assert "a.jpg: " in capsys.readouterr().out
    for missing in (photos / "none.jpg", tmp_path / "run"):
        assert predict.main([*model, "--images", str(missing)]) == 2
        assert "`images` must be existing regular files" in capsys.readouterr().err
    assert predict.main([*model, "--images", str(tmp_path)]) == 2
    assert "`images` must be files .jpg" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(photos / "a.bmp")
    assert predict.main([*model, "--images", str(photos)]) == 2
    assert (
        "files of different names without their endings. Received: images=['a']"
        in capsys.readouterr().err
    )


def test_memory_that_does_not_suffice_is_one_line(capsys):
    @options.command
    def main(argv=None):
        raise MemoryError("`image` must be small enough")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: `image` must be small enough\n"


def test_predict_prints_which_images_were_turned(run, tmp_path, capsys):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), "uint8"))
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(tmp_path / f"photo{orientation}.jpg", exif=exif)
    photo.save(tmp_path / "plain.png")
    out = tmp_path / "out"
    command = ["--model", str(run / "model.keras"), "--output", str(out)]
    assert predict.main([*command, "--images", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines[:4]] == [
        "photo1.jpg",
        "photo3.jpg (turned by its EXIF orientation)",
        "photo6.jpg (turned by its EXIF orientation)",
        "plain.png",
    ]
    assert [Image.open(out / f"photo{o}_labels.png").size for o in (1, 3, 6)] == [
        (60, 40),
        (60, 40),
        (40, 60),
    ]


def test_predict_numbers_more_classes_than_a_byte_holds(tmp_path, capsys):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(300, 1, name="logits")(inputs))
    bias = np.zeros(300, "float32")
    bias[299] = 1.0
    model.set_weights([np.zeros((1, 1, 3, 300), "float32"), bias])
    model.save(tmp_path / "many.keras")
    Image.new("RGB", (9, 7), (10, 20, 30)).save(tmp_path / "a.png")
    command = ["--model", str(tmp_path / "many.keras"), "--images", str(tmp_path / "a.png")]
    assert predict.main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "a.png: 299 100%" in capsys.readouterr().out
    labels = np.asarray(Image.open(tmp_path / "out" / "a_labels.png"))
    np.testing.assert_array_equal(labels, np.full((7, 9), 299))
    overlay = np.asarray(Image.open(tmp_path / "out" / "a_overlay.png")).astype(int)
    color = np.asarray(data.voc_colors(300)[299])
    assert np.abs(overlay - (np.array([10, 20, 30]) + color) / 2).max() <= 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        bytes(range(256)),
        b"[" * 100_000,
        b'{"ignore_label": 0}',
        b'{"classes": 6}',
        b'{"classes": ["a"], "colors": [[0, 0]]}',
        b'{"classes": []}',
    ],
)
def test_predict_names_an_odd_file_of_classes(tmp_path, content):
    stored = tmp_path / "dataset.json"
    stored.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{stored}.*delete it to use numbers") as raised:
        stored_info(tmp_path / "model.keras", 6)
    assert "\n" not in str(raised.value)


def test_predict_takes_the_names_beside_the_model(tmp_path, logs):
    info = data.DatasetInfo(("sky", "road"), ((1, 2, 3), (4, 5, 6)))
    write_json(tmp_path / "dataset.json", info.to_dict())
    assert stored_info(tmp_path / "model.keras", 2) == info
    assert logs.text == ""
    assert stored_info(tmp_path / "model.keras", 3) is None
    assert "dataset.json has 2 classes, the model 3: not used." in logs.text


def test_export(run, tmp_path, capsys):
    arguments = ["--model", str(run / "model.keras"), "--output", str(tmp_path / "served")]
    assert export.main([*arguments, "--output-stride", "8"]) == 0
    assert (tmp_path / "served" / "saved_model.pb").exists()
    assert export.main(arguments) == 2
    assert "served" in capsys.readouterr().err
    assert export.main([*arguments, "--overwrite", "--max-pixels", "50000"]) == 0
    serve = tf.saved_model.load(tmp_path / "served").signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="must hold 1 to 50000 pixels"):
        serve(images=tf.zeros((1, 160, 320, 3), tf.uint8))
    assert export.main([*arguments, "--overwrite", "--flip"]) == 0
    flipped = tf.saved_model.load(tmp_path / "served").signatures["serving_default"]
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), np.uint8)
    one, mirrored = (
        flipped(images=tf.constant(x))["probabilities"].numpy() for x in (image, image[:, :, ::-1])
    )
    np.testing.assert_allclose(one, mirrored[:, :, ::-1], atol=1e-4)
    assert export.main([*arguments, "--overwrite", "--max-pixels", "100"]) == 2
    assert "`max_pixels` must be an integer of at least 40960" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["evaluate", "predict", "export"])
def test_what_is_no_model_is_one_line(run, tmp_path, capsys, name):
    main = {"evaluate": evaluate, "predict": predict, "export": export}[name].main
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rest = {"predict": ["--images", str(tmp_path / "a.png")]}.get(name, [])
    content = (run / "model.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[:5000])
    directory = content.rindex(b"PK\x01\x02")
    (tmp_path / "bent.keras").write_bytes(content[:directory] + b"XX" + content[directory + 2 :])
    with zipfile.ZipFile(tmp_path / "lacking.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    for path, message in (
        (tmp_path / "none.keras", "there is no such file"),
        (tmp_path / "cut.keras", "it is damaged or cut off"),
        (tmp_path / "bent.keras", "it cannot be loaded as a Keras model: Bad magic number"),
        (tmp_path / "lacking.keras", "it lacks metadata.json"),
        (run, f"it is the folder of a run: give {run / 'model.keras'}"),
        (run / "saved_model", "it is a SavedModel"),
    ):
        arguments = ["--model", str(path), *rest, "--output", str(tmp_path / "out")]
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"error: {path}: {message}")
    assert not (tmp_path / "out").exists()


def test_bad_data_is_said_before_anything_is_written(tmp_path, capsys):
    assert train.main(["--data", str(tmp_path / "nowhere"), "--output", str(tmp_path / "r")]) == 2
    assert "nowhere" in capsys.readouterr().err
    broken = tmp_path / "broken" / "train" / "images"
    broken.mkdir(parents=True)
    (broken / "a.jpg").write_bytes(b"no picture")
    assert train.main(["--data", str(tmp_path / "broken"), "--output", str(tmp_path / "r")]) == 2
    assert "a.jpg" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    Image.new("RGB", (8, 8)).save(folder_for(tmp_path / "only", "val", "images") / "a.png")
    Image.new("L", (8, 8)).save(folder_for(tmp_path / "only", "val", "labels") / "a.png")
    assert train.main(["--data", str(tmp_path / "only"), "--output", str(tmp_path / "r")]) == 2
    assert "`split` must be one of ('val',)" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["train", "train/images", ""])
def test_a_folder_without_splits_gets_a_proposal(tmp_path, capsys, part):
    image = folder_for(tmp_path / "whole", "train", "images") / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    folder_for(tmp_path / "whole", "train", "labels")
    given = str(tmp_path / "whole" / part if part else tmp_path)
    output = ["--output", str(tmp_path / "r")]
    for command, arguments in ((train, output), (evaluate, ["--model", "no.keras"])):
        assert command.main(["--data", given, *arguments]) == 2
        said = capsys.readouterr().err
        assert "ive " + str(tmp_path / "whole") + " instead" in said
        assert "there is no folder train, val or test" in said
    assert not (tmp_path / "r").exists()


def folder_for(root, *parts):
    path = root.joinpath(*parts)
    path.mkdir(parents=True)
    return path


def test_numbers_out_of_range_are_refused(capsys):
    for arguments in (["--epochs", "0"], ["--learning-rate", "-1"], ["--crop-size", "0"]):
        with pytest.raises(SystemExit):
            train.main(arguments)
    assert "must be an integer of at least 1" in capsys.readouterr().err
    assert options.positive("3") == 3


@pytest.mark.parametrize(
    "name",
    [
        "deeplab_v1",
        *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(MODELS)[1:]),
    ],
)
def test_every_model_trains(name, tmp_path):
    folder = tmp_path / name
    if name == "unet":  # over a backbone: its own network is a large one
        arguments = ["--backbone", "mobilenet_v2"]
    else:
        arguments = ["--backbone", "mobilenet_v2", "--output-stride", "16"]
    short = ["--epochs", "1", "--steps-per-epoch", "1", "--batch-size", "2"]
    assert train.main(["--model", name, *arguments, *short, "--output", str(folder)]) == 0
    assert (folder / "saved_model" / "saved_model.pb").exists()
    model = keras.models.load_model(folder / "model.keras")
    assert type(model) is MODELS[name]
