"""What each command but `convert` and `train-classifier` does, prints and writes."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import re
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from eagerly import eagerly
from PIL import Image
from trainer import tiny_run

import keras_deeplab
from keras_deeplab import data
from keras_deeplab.cli import analyze, audit, compare, evaluate, export, predict, prepare, train
from keras_deeplab.cli.options import Parser, command, run_folder
from keras_deeplab.crf import DenseCRF, RefinedModel, open_crf
from keras_deeplab.crf.search import COARSE_GRID
from keras_deeplab.trainer import MODELS

SHORT = "--steps 2 --steps-per-epoch 1 --batch-size 2 --crop-size 48 64"
SMALL = "--set model={'aspp_rates':(6,),'aspp_filters':8,'decoder_filters':8}"


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A few images and a small network are enough for what the commands do with them."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.small(patch)
        yield


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "first"
    with contextlib.redirect_stdout(io.StringIO()) as printed, eagerly():
        assert train.main([*SHORT.split(), *SMALL.split(), "--output", str(folder)]) == 0
    (folder / "printed").write_text(printed.getvalue())
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several kinds, one of them turned."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(random.integers(0, 255, (40, 60, 3), "uint8"))
    photo.save(folder / "a.jpg", exif=exif)
    Image.fromarray(random.integers(0, 255, (31, 33), "uint8")).save(folder / "b.png")
    Image.fromarray(np.full((20, 30), 0x8000, np.uint16)).save(folder / "deep.png")
    (folder / "._a.jpg").write_bytes(b"left by a file manager")
    return folder


@pytest.mark.slow
def test_a_run_prints_its_scores_and_files(run):
    printed = (run / "printed").read_text()
    for text in (
        "Recipe shapes:",
        f"Writing to {run}",
        "Epoch 2/2",
        "Scores per class on the 3",
    ):
        assert text in printed
    for name in ("model.keras", "saved_model", "metrics.json", "predictions.png"):
        assert f"Wrote {run / name}\n" in printed
        assert (run / name).exists()
    stored = json.loads((run / "saved_model" / "assets.extra" / "keras_deeplab.json").read_text())
    assert tuple(stored["classes"]) == data.Shapes().info.classes


@pytest.mark.slow
def test_evaluate_writes_the_scores(run, tmp_path, capsys, eager):
    assert evaluate.main(["--model", str(run / "model.keras"), "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    trained = json.loads((run / "metrics.json").read_text())
    assert found["mean_iou"] == pytest.approx(trained["mean_iou"], abs=1e-6)
    assert trained["test_time_augmentation"] == []
    assert "mean IoU" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluate_prints_scores_that_cannot_be_written(run, tmp_path, capsys, monkeypatch, eager):
    def fail(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("keras_deeplab.cli.options.write_json", fail)
    command = ["--model", str(run / "model.keras"), "--output", str(tmp_path)]
    assert evaluate.main(command) not in (None, 0)
    printed = capsys.readouterr()
    assert "mean IoU" in printed.out
    assert "Permission denied" in printed.err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_of_any_characters_are_printed(capsys, monkeypatch, encoding):
    written = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", written)

    @command(Parser)
    def main(options):
        print("sky \u5929 caf\udce9")
        logging.getLogger("keras_deeplab").info("road \u9053")
        keras.utils.Progbar(2).update(2, finalize=True)

    assert main([]) == 0
    written.flush()
    shown = written.buffer.getvalue().decode(encoding)
    assert "\\udce9" in shown
    assert ("\u9053" in shown) == (encoding == "utf-8")
    assert ("\u2501" if encoding == "utf-8" else "=") * 20 in shown
    assert "Traceback" not in shown + capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_with_every_option(run, capsys, eager):
    path = run / "model.keras"
    options = "--output-stride 8 --scales 0.5 --flip --boundary --split val"
    assert evaluate.main(["--model", str(path), *options.split()]) == 0
    stored = json.loads((run / "evaluation-val" / "metrics.json").read_text())
    assert stored["output_stride"] == 8
    augmentation = {"scales": [0.5], "flip": True, "fusion": "mean"}
    assert stored["test_time_augmentation"] == [augmentation]
    printed = capsys.readouterr().out
    assert re.search(rf"  boundary mean IoU +{stored['boundary_mean_iou']:.3f}\n", printed)
    assert printed.count("of a boundary") == 6


@pytest.mark.slow
def test_analyze_prints_fields_and_live_taps(run, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    command = ["--model", str(run / "model.keras"), "--size", "97", "129", "--json", str(figures)]
    command += ["--batch-size", "2", "--memory", "4"]
    assert analyze.main([*command, "--effective"]) == 0
    printed = capsys.readouterr().out
    stored = json.loads(figures.read_text())
    assert "Effective receptive field: 95 % of the gradient in" in printed
    assert stored["stages"][-1]["stride"] == [1, 1]
    assert str(stored["stages"][-1]["receptive_field"][0]) in printed
    assert "memory for 2 images of 129x97" in printed
    largest = stored["cost"]["largest_training_batch"]
    assert f"Largest batch for the memory: training {largest}" in printed
    assert analyze.main(["--model", "unet", "--output-stride", "8"]) == 2
    assert "`--output-stride` must be left out: unet has none" in capsys.readouterr().err


@pytest.mark.slow
def test_a_crf_is_searched_and_used(run, photos, tmp_path, capsys, monkeypatch, eager):
    for name, value in DenseCRF(3, 1, 5, 50, 10).to_dict().items():
        if name in COARSE_GRID:
            monkeypatch.setitem(COARSE_GRID, name, (value,))
    model = ["--model", str(run / "model.keras"), "--output", str(tmp_path)]
    assert evaluate.main([*model, "--search-crf", "2"]) == 0
    printed = capsys.readouterr().out
    assert "without a CRF\nWrote" in printed
    assert "on the 1 images of val" in printed
    path = tmp_path / "crf.json"
    constants = json.loads(path.read_text())
    assert DenseCRF(**constants) == DenseCRF(3, 1, 5, 50, 10)
    assert json.loads((tmp_path / "metrics.json").read_text())["crf"] == constants
    photo = photos / "b.png"
    assert predict.main([*model, "--images", str(photo), "--crf", str(path)]) == 0
    refined = RefinedModel(keras_deeplab.load_model(run / "model.keras"), open_crf(path))
    labels = np.asarray(Image.open(tmp_path / "b_labels.png"))
    np.testing.assert_array_equal(labels, keras_deeplab.predict(refined, photo))
    assert evaluate.main([*model, "--search-crf", "3"]) == 2
    assert "`images` must be below the 3 images of the dataset" in capsys.readouterr().err


@pytest.mark.slow
def test_analyze_writes_a_page_of_an_image(run, tmp_path, capsys):
    image, page = tmp_path / "a.png", tmp_path / "new" / "a.html"
    Image.effect_mandelbrot((48, 32), (-2, -1, 1, 1), 50).save(image)
    command = ["--model", str(run / "model.keras"), "--size", "64", "--html", str(page)]
    assert analyze.main(command) == 2
    assert "`--image` must be set together with --html" in capsys.readouterr().err
    assert analyze.main([*command, "--image", str(image)]) == 0
    assert f"Wrote {page}" in capsys.readouterr().out
    content = page.read_text()
    assert '"size": [32, 48]' in content
    assert json.dumps(list(data.Shapes.info.classes)) in content  # of dataset.json in the run


def test_audit_prints_the_report_or_all_errors(tmp_path, capsys):
    assert audit.main(["shapes", "--splits", "val"]) == 0
    assert "val: 3 images" in capsys.readouterr().out
    for part in ("images", "labels"):
        (tmp_path / "train" / part).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "images" / "a.png")
    page, figures = tmp_path / "a.html", tmp_path / "a.json"
    assert audit.main([str(tmp_path), "--html", str(page), "--json", str(figures)]) == 2
    assert "image without label (1)" in capsys.readouterr().err
    assert "image without label (1)" in page.read_text()
    (fault, *_) = json.loads(figures.read_text())["faults"]
    assert (fault["kind"], fault["found"]) == ("image without label", ["train/images/a.png"])


def test_prepare_writes_a_data_set_that_train_takes(tmp_path, capsys):
    output = str(tmp_path / "prepared")
    command = ["--data", "shapes", "--output", output, "--file-format", "tfrecord"]
    assert prepare.main([*command, "--images-per-shard", "2"]) == 0
    printed = capsys.readouterr().out
    assert "Shard 1 of " in printed
    assert printed.endswith(f"Use it with --data tfds:{output}\n")
    assert audit.main([f"tfds:{output}"]) == 0
    assert "val: 3 images" in capsys.readouterr().out
    assert prepare.main(command) == 2
    assert "`output` must be a folder that does not exist" in capsys.readouterr().err
    options = argparse.Namespace(data="tfds:oxford_iiit_pet?val=train[:9%]", output=None)
    assert run_folder(options, "m", "b").name == "tfds-oxford_iiit_pet-val-train-9-m-b"


@pytest.mark.slow
def test_evaluate_calibrates_and_writes_a_page(run, tmp_path, capsys, eager):
    calibrated, page = tmp_path / "calibrated.keras", tmp_path / "pages" / "page.html"
    model = ["--model", str(run / "model.keras"), "--output", str(tmp_path)]
    assert evaluate.main([*model, "--calibrate", str(calibrated), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    temperature = float(re.search(r"logits divided by (\d+\.\d+)", printed)[1])
    assert f"Wrote {page}" in printed
    found = json.loads((tmp_path / "metrics.json").read_text())
    plain = json.loads((run / "metrics.json").read_text())
    assert found["mean_iou"] == pytest.approx(plain["mean_iou"], abs=1e-6)
    assert f"{found['expected_calibration_error']:.3f}" in page.read_text()
    assert [row["name"] for row in found["worst_images"]] == [
        row["name"] for row in plain["worst_images"]
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 40, 50, 3)).astype(np.float32)
    before, after = (
        keras_deeplab.load_model(path)(pixels).numpy() for path in (run / "model.keras", calibrated)
    )
    np.testing.assert_allclose(after, before / temperature, rtol=2e-3, atol=1e-5)
    stored = json.loads((tmp_path / "dataset.json").read_text())
    assert stored["classes"] == list(plain["per_class"])
    assert evaluate.main([*model, "--calibrate", str(calibrated)]) == 2
    assert "`--calibrate` must be a new file" in capsys.readouterr().err
    assert evaluate.main([*model, "--calibrate", str(tmp_path / "model.h5")]) == 2
    assert "`--calibrate` must be a path that ends in .keras" in capsys.readouterr().err
    others = [f"other {name}" for name in stored["classes"]]
    for classes in (others, [*stored["classes"], "one more"]):
        (tmp_path / "dataset.json").write_text(json.dumps({"classes": classes}))
        assert evaluate.main([*model, "--calibrate", str(tmp_path / "new.keras")]) == 2
        assert "without the dataset.json of other classes" in capsys.readouterr().err
        assert not (tmp_path / "new.keras").exists()


@pytest.mark.slow
def test_the_classes_of_a_model_are_those_of_the_data(run, tmp_path, write_pair, capsys, eager):
    """By name where both have names: the same ones in another order would be swapped."""
    classes = list(data.Shapes().info.classes)
    for name, listed in (("swapped", classes[::-1]), ("others", [f"{c}s" for c in classes])):
        pixels = np.arange(80 * 80, dtype=np.uint8).reshape(80, 80) % len(classes)
        write_pair(tmp_path / name, "val", "a", pixels, pixels)
        (tmp_path / name / "dataset.json").write_text(json.dumps({"classes": listed}))
    model = ["--model", str(run / "model.keras"), "--output", str(tmp_path / "scores")]
    assert evaluate.main([*model, "--data", str(tmp_path / "swapped")]) == 2
    assert "the same classes in another order" in capsys.readouterr().err
    assert evaluate.main([*model, "--data", str(tmp_path / "others")]) == 0
    assert "backgrounds" in (printed := capsys.readouterr().out)
    assert "compared by their order" in printed


@pytest.mark.slow
def test_compare_prints_a_table_and_writes_a_page(run, tmp_path, capsys):
    other, page = tmp_path / "other", tmp_path / "pages" / "page.html"
    shutil.copytree(run, other)
    arguments = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**arguments, "seed": 5}))
    assert compare.main([str(run), str(other), "--html", str(page)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["first", "other"]
    mean_iou = f"{json.loads((run / 'metrics.json').read_text())['mean_iou']:.3f}"
    assert lines[1].split() == ["mean", "IoU", mean_iou, mean_iou]
    assert lines[-2].split() == ["seed", "0", "5"]
    assert lines[-1] == f"Wrote {page}"
    assert mean_iou in page.read_text()


@pytest.mark.slow
def test_predict_writes_two_pictures_for_each_image(run, photos, tmp_path, capsys, eager):
    model = ["--model", str(run / "model.keras"), "--output", str(tmp_path)]
    assert predict.main([*model, "--images", str(photos)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.partition(": ")[0] for line in lines[:3]]
    assert names == ["a.jpg (turned by its EXIF orientation)", "b.png", "deep.png"]
    labels = np.asarray(Image.open(tmp_path / "a_labels.png"))
    assert labels.shape == (60, 40)
    assert labels.max() < 6
    assert np.asarray(Image.open(tmp_path / "b_overlay.png")).shape == (31, 33, 3)
    overlay = np.asarray(Image.open(tmp_path / "deep_overlay.png"))
    colors = np.asarray(data.Shapes().info.colors)[
        np.asarray(Image.open(tmp_path / "deep_labels.png"))
    ]
    assert np.abs(overlay - (0x80 + colors) / 2).max() <= 1  # the upper bytes, as the network saw


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["margin", "entropy"])
def test_predict_writes_the_confidence(kind, run, photos, tmp_path, eager):
    model = ["--model", str(run / "model.keras"), "--output", str(tmp_path)]
    assert predict.main([*model, "--images", str(photos / "b.png"), "--confidence", kind]) == 0
    grey = np.asarray(Image.open(tmp_path / "b_confidence.png"))
    loaded = keras_deeplab.load_model(run / "model.keras")
    p = keras_deeplab.predict(loaded, photos / "b.png", probabilities=True)
    certain = {"margin": np.ptp(np.sort(p)[..., -2:], axis=-1)}
    certain["entropy"] = 1 + (p * np.log(p)).sum(-1) / np.log(p.shape[-1])
    assert grey.dtype == np.uint8
    assert np.abs(grey - 255 * certain[kind]).max() <= 0.51
    assert grey.max() > 2
    labels = np.asarray(Image.open(tmp_path / "b_labels.png"))
    np.testing.assert_array_equal(labels, keras_deeplab.predict(loaded, photos / "b.png"))


@pytest.mark.slow
def test_predict_in_windows(run, photos, tmp_path, capsys, eager):
    model = ["--model", str(run / "model.keras"), "--images", str(photos / "a.jpg")]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert predict.main([*model, "--output", str(whole)]) == 0
    options = "--window 40 32 --overlap 8"
    assert predict.main([*model, "--output", str(parts), *options.split()]) == 0
    assert f"Wrote the predictions of 1 file to {parts}" in capsys.readouterr().out
    model = keras_deeplab.load_model(run / "model.keras")
    for folder, windows in ((whole, {}), (parts, {"window": (40, 32), "overlap": 8})):
        expected = keras_deeplab.predict(model, photos / "a.jpg", **windows)
        found = np.asarray(Image.open(folder / "a_labels.png"))
        np.testing.assert_array_equal(found, expected)
        assert found.shape == (60, 40)


@pytest.fixture
def wide(tmp_path):
    """A model of more classes than a byte holds, without file of classes; it predicts the last."""
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(300, 1, name="logits")(inputs))
    model.set_weights([np.zeros((1, 1, 3, 300)), np.eye(300)[299]])
    model.save(tmp_path / "wide.keras")
    return tmp_path / "wide.keras"


def test_predict_numbers_more_classes_than_a_byte_holds(wide, tmp_path, capsys):
    Image.new("RGB", (9, 7), (10, 20, 30)).save(tmp_path / "a.png")
    command = ["--model", str(wide), "--images", str(tmp_path / "a.png"), "--flip"]
    assert predict.main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "a.png: 299 100%" in capsys.readouterr().out
    labels = np.asarray(Image.open(tmp_path / "out" / "a_labels.png"))
    np.testing.assert_array_equal(labels, np.full((7, 9), 299))
    overlay = np.asarray(Image.open(tmp_path / "out" / "a_overlay.png")).astype(int)
    color = np.asarray(data.voc_colors(300)[299])
    assert np.abs(overlay - (np.array([10, 20, 30]) + color) / 2).max() <= 1


@pytest.mark.slow
def test_export(tmp_path, capsys):
    inputs = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(3, 5, padding="same")(keras.layers.Rescaling(1 / 100)(inputs))
    keras.Model(inputs, logits).save(tmp_path / "model.keras")
    arguments = ["--model", str(tmp_path / "model.keras"), "--output", str(tmp_path / "served")]
    assert export.main([*arguments, "--max-pixels", "50000"]) == 0
    nameless, compared, written = capsys.readouterr().out.splitlines()
    assert nameless.startswith("The export has no class names: there is no dataset.json")
    assert compared.startswith("Compared with the model: 100.00% of labels equal")
    assert written == f"Wrote {tmp_path / 'served'}"
    serve = tf.saved_model.load(tmp_path / "served").signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="must hold 1 to 50000 pixels"):
        serve(images=tf.zeros((1, 160, 320, 3), tf.uint8))


@pytest.mark.slow
def test_an_exported_file_is_evaluated_and_predicts(run, photos, tmp_path, capsys, eager):
    pytest.importorskip("ai_edge_litert")
    path, model = str(tmp_path / "model.tflite"), str(run / "model.keras")
    options = "--data shapes --outputs labels"  # in LiteRT, as the file's name says
    assert export.main(["--model", model, "--output", path, *options.split()]) == 0
    assert re.search(r"100.00% of labels equal, mean IoU 0\.\d{4} of", capsys.readouterr().out)
    assert evaluate.main(["--model", path, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    trained = json.loads((run / "metrics.json").read_text())
    assert found["mean_iou"] == pytest.approx(trained["mean_iou"], abs=1e-4)
    assert found["export"] == "model.tflite"
    assert "Replacing" not in capsys.readouterr().out
    assert evaluate.main(["--model", model, "--output", str(tmp_path)]) == 0
    assert f"Replacing the scores of {path}, shapes, val\n" in capsys.readouterr().out
    (tmp_path / "metrics.json").write_text("{")
    assert evaluate.main(["--model", model, "--output", str(tmp_path)]) == 0
    assert "Replacing" not in capsys.readouterr().out
    flipped = ["--model", model, "--flip", "--output", str(tmp_path)]
    assert evaluate.main(flipped) == 0
    assert f"Replacing the scores of {model}, shapes, val at other" in capsys.readouterr().out
    assert evaluate.main(["--model", model, "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["model"] == model
    arguments = ["--model", path, "--images", str(photos), "--output", str(tmp_path)]
    assert predict.main(arguments) == 0
    assert np.asarray(Image.open(tmp_path / "a_labels.png")).shape == (60, 40)
    capsys.readouterr()
    for options in ("--flip", "--scales 0.5", "--output-stride 8", "--calibrate new.keras"):
        assert evaluate.main(["--model", path, *options.split()]) == 2
        assert f"`{options.split()[0]}` must be left out for an export" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message",
    [
        ("--precision int8", "`--data` must be a folder of images for int8"),
        ("--precision float16", "`precision` must be one of 'float32', 'bfloat16'"),
        ("--format litert --max-pixels 9", "`--max-pixels` must be left out except for a Saved"),
        ("--format litert", "`path` must be a file name that ends in .tflite"),
    ],
)
def test_exports_that_do_not_exist(run, tmp_path, capsys, options, message):
    command = ["--model", str(run / "model.keras"), "--output", str(tmp_path / "out")]
    assert export.main([*command, *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_in_mixed_precision_leaves_a_float32_model_with_test_time_augmentation(
    tmp_path, monkeypatch, eager
):
    monkeypatch.setattr(keras_deeplab.export, "saved_model", lambda *_, **options: None)
    folder = tmp_path / "run"
    more = "--model deeplab_v3 --set model={'aspp_rates':(),'aspp_filters':8,'head_filters':None} "
    more += "--mixed-precision bfloat16 --test-scales 1 1.5 --test-flip"
    assert train.main([*SHORT.split(), *more.split(), "--output", str(folder)]) == 0
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
    found = keras_deeplab.evaluate(model, data.evaluation_dataset(data.open_source("shapes")))
    assert found["mean_iou"] == pytest.approx(metrics["mean_iou"], abs=1e-6)
    command = ["--model", str(folder / "model.keras"), "--output", str(tmp_path)]
    for scales in ([0.5, 1.0], [1.0]):  # in place of the model's own
        assert evaluate.main([*command, "--scales", *map(str, scales)]) == 0
        stored = json.loads((tmp_path / "metrics.json").read_text())
        found = [{"scales": scales, "flip": False, "fusion": "mean"}]
        assert stored["test_time_augmentation"] == (found if len(scales) > 1 else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains(name, tmp_path, eager, monkeypatch):
    monkeypatch.setattr(keras_deeplab.export, "saved_model", lambda *_, **options: None)
    folder = tmp_path / name
    stride = "" if name == "unet" else "--output-stride 16"  # U-Net over a backbone
    arguments = f"--model {name} --backbone mobilenet_v2 {stride} --output {folder}"
    short = "--epochs 1 --steps-per-epoch 1 --batch-size 2"
    assert train.main([*arguments.split(), *short.split()]) == 0
    assert type(keras.models.load_model(folder / "model.keras")) is MODELS[name]
