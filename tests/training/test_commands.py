from __future__ import annotations

import csv
import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_run
from PIL import Image

import keras_deeplab
from keras_deeplab import data, recipes
from keras_deeplab.cli import audit, evaluate, export, options, predict
from keras_deeplab.files import write_json
from keras_deeplab.prediction import stored_info
from training import building, callbacks, finishing, run_folder, train


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


def test_a_run_leaves_its_files(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) >= {"mean_iou", "per_class", "pixel_accuracy", "split"}
    assert metrics["split"] == "val"
    assert metrics["images"] == 3
    model = keras.models.load_model(run / "model.keras")
    assert type(model).__name__ == "DeepLabV3Plus"
    assert keras.models.load_model(run / "last.keras").num_classes == 6
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(0 <= float(row["val_mean_iou"]) <= 1 for row in rows)
    picture = np.asarray(Image.open(run / "predictions.png"))
    assert picture.std() > 10
    served = tf.saved_model.load(str(run / "saved_model"))
    x = np.random.default_rng(0).integers(0, 255, (2, 33, 47, 3), "uint8")
    labels = served.signatures["serving_default"](images=tf.constant(x))["labels"]
    np.testing.assert_array_equal(labels, np.argmax(model(x), -1))
    assert not (run / "run.lock").exists()
    assert not list(run.glob(".*"))


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
    parsed = train.parser().parse_args(arguments)
    assert finishing.finished(model, parsed) is model  # as after a stop in front of the export
    command = ["--model", str(folder / "model.keras"), "--output", str(tmp_path)]
    assert evaluate.main([*command, "--output-stride", "8"]) == 0
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert (stored["test_time_augmentation"], stored["output_stride"]) == (own, 8)
    assert evaluate.main([*command, "--scales", "0.5", "1"]) == 0  # around the model's own
    stored = json.loads((tmp_path / "metrics.json").read_text())
    outer = {"scales": [0.5, 1.0], "flip": False, "fusion": "mean"}
    assert stored["test_time_augmentation"] == [outer, *own]


def test_a_finished_run_is_not_written_over(run, capsys):
    before = (run / "model.keras").read_bytes()
    assert train.main([*SHORT, "--output", str(run)]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert (run / "model.keras").read_bytes() == before


class _Stop(Exception):
    pass


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "stopped"
    arguments = [*SHORT, "--epochs", "3", "--output", str(folder)]
    original, seen = callbacks.KeepModels.on_epoch_end, []

    def stop_after_second(self, epoch, logs=None):
        if epoch == 1 and not seen:
            seen.append(epoch)
            raise _Stop  # after this epoch's log, before its models
        original(self, epoch, logs)

    monkeypatch.setattr(callbacks.KeepModels, "on_epoch_end", stop_after_second)
    with pytest.raises(_Stop):
        train.main(arguments)
    (folder / ".123-last.keras").write_bytes(b"half a model")
    (folder / ".saved_model.0a1b").mkdir()
    epochs = []
    monkeypatch.setattr(
        callbacks.KeepModels,
        "on_epoch_begin",
        lambda self, epoch, logs=None: epochs.append((epoch, int(self.model.optimizer.iterations))),
    )
    assert train.main(arguments) == 0
    assert not list(folder.glob(".*"))
    assert epochs == [(1, 3), (2, 6)]  # the optimiser's steps, so the schedule goes on too
    with (folder / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_a_run_whose_export_failed_is_only_finished(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    arguments = [*SHORT, "--output", str(folder)]

    def fail(*args, **kwargs):
        raise keras_deeplab.export.ExportError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_deeplab.export, "saved_model", fail)
        assert train.main(arguments) == 2
    assert "mean IoU" in capsys.readouterr().out
    trained = keras.models.load_model(folder / "model.keras", compile=False).get_weights()
    epochs = []
    monkeypatch.setattr(
        callbacks.KeepModels, "on_epoch_begin", lambda self, epoch, logs=None: epochs.append(epoch)
    )
    assert train.main(arguments) == 0
    assert epochs == []
    again = keras.models.load_model(folder / "model.keras", compile=False).get_weights()
    for one, other in zip(again, trained, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (folder / "metrics.json").exists()
    assert len((folder / "history.csv").read_text().splitlines()) == 3


def test_a_lost_model_is_not_kept(tmp_path, capsys):
    arguments = [*SHORT, "--learning-rate", "1e30", "--output", str(tmp_path / "lost")]
    assert train.main(arguments) == 2
    assert "the loss became nan in epoch 1, step" in capsys.readouterr().err
    assert not (tmp_path / "lost" / "model.keras").exists()


def test_another_run_is_not_mixed_with_an_unfinished_one(tmp_path, capsys):
    folder = run_folder.RunFolder(tmp_path / "unfinished")
    folder.begin({"seed": 0})
    folder.unlock()
    folder.last_model.write_bytes(b"hours of work")
    assert train.main([*SHORT, "--seed", "1", "--output", str(folder.path)]) == 2
    assert "seed was 0, is 1" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert train.main([*SHORT, "--output", str(tmp_path / "other")]) == 2
    assert "holds files, but no run" in capsys.readouterr().err


def test_weights_to_start_from(run, tmp_path, capsys, logs):
    start = keras.models.load_model(run / "model.keras")
    parsed = train.parser().parse_args(["--weights", str(run / "model.keras")])
    source = building.start(parsed)
    recipe = train.chosen_recipe(parsed, data.audit(TinyShapes()))
    assert (parsed.model, parsed.backbone) == ("deeplab_v3_plus", "mobilenet_v2")
    model = building.build(parsed, recipe, TinyShapes().info, source)
    for old, new in zip(start.weights, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert "missing keys: none" in logs.text
    model = building.build(parsed, recipe, data.DatasetInfo(("a", "b")), source)
    assert "missing keys: logits" in logs.text
    start.save_weights(tmp_path / "start.weights.h5")
    parsed.weights = str(tmp_path / "start.weights.h5")
    assert building.start(parsed) is None
    model = building.build(parsed, recipe, TinyShapes().info, None)
    np.testing.assert_array_equal(start.weights[0], model.weights[0])
    assert train.main([*SHORT, "--weights", "nowhere.keras", "--output", str(tmp_path / "x")]) == 2
    assert "nowhere.keras: there is no such file" in capsys.readouterr().err
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
    assert options.load_model(run / "model.keras", 8).output_stride == 8
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


def test_the_recipe_depends_on_the_data_and_on_what_is_said(tmp_path):
    report = data.audit(data.Shapes(train=40, val=4))
    parsed = train.parser().parse_args([])
    assert building.start(parsed) is None
    assert parsed.backbone == "mobilenet_v2"
    recipe = train.chosen_recipe(parsed, report)
    assert all(64 <= side <= 112 for side in recipe.crop_size)
    assert (recipe.scales, recipe.learning_rate, recipe.epochs) == ((1.0, 1.0), 6e-3, 5)
    parsed = train.parser().parse_args(["--data", "photos"])
    building.start(parsed)
    recipe = train.chosen_recipe(parsed, report)
    assert recipe.replace(crop_size=None) == recipes.find("finetune")
    said = "--recipe v3_plus --steps 70 --fine-epochs 2 --crop-size 65 97 --batch-size 4"
    said += " --learning-rate 0.01 --loss lovasz_softmax --class-weights median"
    said += " --set power=0.5 color_jitter={'gamma':0.3} momentum=0.95"
    parsed = train.parser().parse_args(said.split())
    building.start(parsed)
    recipe = train.chosen_recipe(parsed, report)
    changes = {"steps": 70, "fine_epochs": 2, "crop_size": (65, 97), "batch_size": 4}
    changes |= {"learning_rate": 0.01, "loss": "lovasz_softmax", "class_weights": "median"}
    changes |= {"power": 0.5, "color_jitter": {"gamma": 0.3}, "momentum": 0.95}
    assert recipe == recipes.find("v3_plus").replace(**changes)
    parsed = train.parser().parse_args(["--recipe", "v3_plus", "--backbone", "resnet50"])
    building.start(parsed)
    assert train.chosen_recipe(parsed, report).weight_decay == 1e-4
    parsed = train.parser().parse_args(["--set", "powr=1"])
    building.start(parsed)
    with pytest.raises(ValueError, match=r"--set must be NAME=VALUE with one of .*power.*'powr=1'"):
        train.chosen_recipe(parsed, report)
    parsed = train.parser().parse_args("--set momentum=0.8 --set power=1 --epochs 2".split())
    building.start(parsed)
    assert (train.chosen_recipe(parsed, report).momentum, parsed.set[1]) == (0.8, "power=1")
    parsed.set.append("epochs=3")
    with pytest.raises(ValueError, match="`epochs` is given twice: 2 and 3"):
        train.chosen_recipe(parsed, report)


@pytest.mark.parametrize(
    "name",
    [
        "deeplab_v1",
        *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(options.MODELS)[1:]),
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
    assert type(model) is options.MODELS[name]


def test_a_second_stage_that_cannot_be_is_said_before_the_first(tmp_path, capsys):
    arguments = [*SHORT, "--output", str(tmp_path / "run")]
    model = ["--model", "unet", "--backbone", "mobilenet_v2", "--fine-epochs", "1"]
    assert train.main([*arguments, *model]) == 2
    assert "UNet has no output stride to change" in capsys.readouterr().err
    assert train.main([*arguments, "--fine-epochs", "1", "--set", "fine_output_stride=12"]) == 2
    said = capsys.readouterr()
    assert "`output_stride`" in said.err
    assert "Epoch 1" not in said.out


def test_a_whole_model_of_the_file_keeps_its_arguments(run, capsys, tmp_path):
    weights = ["--weights", str(run / "model.keras"), "--output", str(tmp_path / "run")]
    assert train.main([*SHORT, *weights, "--set", "model={'decoder_filters': 8}"]) == 2
    assert "--weights holds a whole deeplab_v3_plus" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_models_have_their_own_defaults(capsys):
    parsed = train.parser().parse_args(["--model", "unet"])
    building.start(parsed)
    recipe = train.chosen_recipe(parsed, data.audit(TinyShapes()))
    assert (parsed.backbone, recipe.learning_rate) == (None, 3e-4)
    parsed.output_stride = 8
    with pytest.raises(ValueError, match="--output-stride: unet has none to set, received 8"):
        building.build(parsed, recipe, TinyShapes().info, None)
    parsed = train.parser().parse_args(["--model", "deeplab_v1"])
    building.start(parsed)
    recipe = train.chosen_recipe(parsed, data.audit(TinyShapes()))
    assert building.build(parsed, recipe, TinyShapes().info, None).output_stride == 8
