"""Files of images that are read by rows, and videos."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import pyvips
from inference.test_predicting import channel_model
from PIL import Image

import keras_deeplab
from keras_deeplab import prediction
from keras_deeplab.data import DatasetInfo
from keras_deeplab.inference import large_image
from keras_deeplab.inference.large_image import LargeImage, is_large
from keras_deeplab.inference.pixels import open_picture, read_image
from keras_deeplab.prediction import predict_files
from keras_deeplab.runtimes import ExportedModel, Metadata

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
PHOTO = Image.fromarray(PIXELS)
DEEP = Image.fromarray(np.random.default_rng(1).integers(0, 2**16, (90, 70), np.uint16))
FILES = {
    "plain.png": (PHOTO, {}),
    "alpha.png": (PHOTO.convert("RGBA"), {}),
    "palette.png": (PHOTO.convert("P"), {}),
    "grey.png": (PHOTO.convert("L"), {}),
    "deep.png": (DEEP, {}),
    "strips.tif": (PHOTO, {}),
    "packed.tif": (PHOTO, {"compression": "tiff_lzw"}),
    "deep.tif": (DEEP, {}),
}


def saved(folder, name):
    image, options = FILES[name]
    image.save(folder / name, **options)
    return folder / name


@pytest.fixture
def small_limit(monkeypatch):
    """Every image of the tests is a large one."""
    monkeypatch.setattr(large_image, "MAX_PIXELS", 5000)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_those_of_the_decoded_file(name, channels, tmp_path):
    path = saved(tmp_path, name)
    whole, rows = read_image(path, channels), LargeImage(path, channels)
    assert rows.shape == whole.shape
    for top, bottom in ((0, 32), (0, 32), (16, 48), (40, 90), (64, 90)):
        for columns in (slice(0, 40), slice(31, 70)):
            difference = rows[top:bottom, columns].astype(int) - whole[top:bottom, columns]
            # TensorFlow's grey of a PNG file in colours is that of libpng.
            rounded = channels == 1 and name in ("plain.png", "alpha.png", "palette.png")
            assert np.abs(difference).max() <= rounded
            assert difference.shape[0] == bottom - top
    assert max(rows.reduced(30).shape[:2]) == 30


@pytest.mark.parametrize(
    "name, value_range",
    [
        ("plain.png", (100, 200)),
        ("grey.png", (200.5, 10.25)),
        ("deep.png", (0, 65535)),
        ("deep.tif", (1000, 40000)),
    ],
)
def test_rows_have_the_value_range_of_the_data_set(name, value_range, tmp_path):
    path = saved(tmp_path, name)
    whole, rows = open_picture(path, 3, value_range).upright, LargeImage(path, 3, value_range)
    np.testing.assert_array_equal(rows[0:50, 0:70], whole[:50])
    np.testing.assert_array_equal(rows[40:90, 10:70], whole[40:, 10:])
    np.testing.assert_array_equal(rows.reduced(100), whole)
    for read in (open_picture, LargeImage):
        with pytest.raises(ValueError, match="`image` must be .* 2 channels"):
            read(path, 2, value_range)


def test_a_large_file_is_predicted_in_the_value_range_of_the_data_set(tmp_path, small_limit):
    path, info = saved(tmp_path, "plain.png"), DatasetInfo(("a", "b", "c"), value_range=(100, 200))
    folders = [tmp_path / "rows", tmp_path / "whole"]
    predict_files(channel_model(), [path], folders[0], info, window=(32, 32), overlap=8)
    predict_files(channel_model(), [path], folders[1], info)
    for name in ("plain_labels.png", "plain_overlay.png"):
        first, second = (np.asarray(Image.open(folder / name)) for folder in folders)
        np.testing.assert_array_equal(first, second)


def test_large_files_of_other_channels_are_as_stored(tmp_path, small_limit):
    for mode, channels in (("RGBA", 4), ("LA", 2)):
        path = tmp_path / f"{mode}.png"
        PHOTO.convert(mode).save(path)
        whole = open_picture(path, channels).upright
        np.testing.assert_array_equal(LargeImage(path, channels)[0:90, 0:70], whole)
        with pytest.raises(ValueError, match=f"of {6 - channels} channels"):
            LargeImage(path, 6 - channels)


def test_a_large_file_that_only_libvips_opens(tmp_path, small_limit):
    pixels = np.random.default_rng(1).integers(0, 256, (90, 70, 5), np.uint8)
    path = tmp_path / "bands.tif"
    pyvips.Image.new_from_array(pixels).write_to_file(str(path))
    assert is_large(path)
    predict_files(channel_model(5, 5), [path], tmp_path, window=(32, 32), overlap=8)
    labels = np.asarray(Image.open(tmp_path / "bands_labels.png"))
    np.testing.assert_array_equal(labels, pixels.argmax(-1))
    path.write_bytes(path.read_bytes()[:50])
    assert not is_large(path)


def test_a_fixed_input_size_is_the_window_of_a_large_file(tmp_path, small_limit):
    PHOTO.save(tmp_path / "a.png")
    predict_files(channel_model(size=(32, 32)), [tmp_path / "a.png"], tmp_path / "out")
    labels = np.asarray(Image.open(tmp_path / "out/a_labels.png"))
    np.testing.assert_array_equal(labels, PIXELS.argmax(-1))


def test_a_large_array_is_given_as_one(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", PIXELS)
    monkeypatch.setattr("keras_deeplab.data.bands.MAX_PIXELS", 5000)
    with pytest.raises(ValueError, match="image too large.*`numpy.load"):
        keras_deeplab.predict(channel_model(), tmp_path / "a.npy", window=(32, 32))


def test_channels_are_counted_before_they_take_memory(tmp_path, monkeypatch):
    path = tmp_path / "bands.tif"
    pyvips.Image.black(64, 64, bands=50).write_to_file(str(path))
    monkeypatch.delattr(pyvips.Image, "numpy")
    with pytest.raises(ValueError, match="other number of channels.*50 channels"):
        open_picture(path, 4)


def test_an_export_has_the_value_range_of_its_training(tmp_path):
    path, limits = saved(tmp_path, "deep.tif"), (5000, 30000)
    info = DatasetInfo(("dark", "grey", "bright"), value_range=limits)
    metadata = Metadata(3, (None, None, 3), ("labels",), info)
    exported = ExportedModel(tmp_path, metadata, lambda x: {"labels": x[..., 0].astype(int) // 86})
    expected = open_picture(path, 3, limits).upright[..., 0] // 86
    assert len(np.unique(expected)) == 3
    for model in (exported, channel_model()):
        plain = keras_deeplab.predict(model, open_picture(path, 3, limits).upright)
        assert plain.dtype == np.uint8
        found = keras_deeplab.predict(model, path, value_range=limits)
        np.testing.assert_array_equal(found, plain)
    np.testing.assert_array_equal(keras_deeplab.predict(exported, path), expected)
    with pytest.raises(ValueError, match="`value_range` must be .low, high. with low < high"):
        keras_deeplab.predict(exported, path, value_range=(3, 3))


def test_no_given_image_is_overwritten(tmp_path):
    for name in ("street.png", "street_labels.png"):
        PHOTO.save(tmp_path / name)
    before = (tmp_path / "street_labels.png").read_bytes()
    with pytest.raises(ValueError, match="`output` must be a folder in which no .*street_labels"):
        predict_files(channel_model(), [tmp_path], tmp_path)
    assert (tmp_path / "street_labels.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_of_arrays(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    PHOTO.save(tmp_path / "b.png")
    assert list(predict_files(channel_model(), tmp_path, tmp_path / "out")) == ["a.npy", "b.png"]


def test_images_of_other_formats_in_a_folder_are_named(tmp_path, logs):
    for name in ("IMG_1.jpg", "IMG_2.HEIC", "IMG_3.avif", "IMG_4.jfif", "notes.txt"):
        PHOTO.save(tmp_path / name, "JPEG")
    found = predict_files(channel_model(), tmp_path, tmp_path / "out")
    assert list(found) == ["IMG_1.jpg", "IMG_4.jfif"]
    assert f"2 images of {tmp_path} are left out: IMG_2.HEIC, IMG_3.avif" in logs.text
    predict_files(channel_model(), tmp_path, tmp_path / "out")
    assert f"Folders in {tmp_path} are not searched: out" in logs.text


@pytest.mark.parametrize("window", [None, (48, 64)])
def test_confidence_is_kept_by_windows(tmp_path, monkeypatch, window):
    PHOTO.save(tmp_path / "a.png")
    model, kept, predict_kept = channel_model(), [], prediction.predict_kept
    probabilities = keras_deeplab.predict(model, PHOTO, probabilities=True, window=window)

    def predicted(*args, **options):
        kept.append(predict_kept(*args, **options))
        return kept[-1]

    monkeypatch.setattr(prediction, "predict_kept", predicted)
    predict_files(model, [tmp_path / "a.png"], tmp_path / "out", None, window, confidence="margin")
    assert [each.shape for each in kept] == [(90, 70, 2)]  # not a value for each class
    labels = np.asarray(Image.open(tmp_path / "out" / "a_labels.png"))
    np.testing.assert_array_equal(labels, probabilities.argmax(-1))
    grey = np.asarray(Image.open(tmp_path / "out" / "a_confidence.png"))
    expected = 255 * keras_deeplab.confidence.margin(probabilities)
    assert np.ptp(grey) > 100
    np.testing.assert_allclose(grey, expected, atol=0.51)
    predict_files(model, [tmp_path / "a.png"], tmp_path / "out")
    assert not (tmp_path / "out" / "a_confidence.png").exists()  # of labels that are replaced


def test_a_failed_prediction_keeps_the_confidence_of_an_earlier_one(tmp_path):
    PHOTO.save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_confidence.png").write_bytes(b"old")
    fixed = ExportedModel(tmp_path, Metadata(3, (30, 40, 3), ("labels",)), lambda x: {})
    with pytest.raises(ValueError, match=r"exactly of the size \(30, 40\)"):
        predict_files(fixed, [tmp_path / "a.png"], tmp_path / "out")
    assert (tmp_path / "out" / "a_confidence.png").exists()


def test_an_export_of_labels_alone_has_no_confidence(tmp_path, logs):
    for name in ("a.png", "b.png"):
        PHOTO.save(tmp_path / name)
    metadata = Metadata(3, (None, None, 3), ("labels",))
    exported = ExportedModel(tmp_path, metadata, lambda x: pytest.fail("begun"))
    for model, options in (
        (exported, {"confidence": "margin"}),
        (keras_deeplab.crf.RefinedModel(exported, keras_deeplab.crf.DenseCRF()), {}),
    ):
        with pytest.raises(ValueError, match="^`model` must be an export with probabilities"):
            predict_files(model, tmp_path, tmp_path / "out", **options)
    assert logs.messages == []


def test_files_that_cannot_be_decoded_do_not_stop_the_others(tmp_path):
    names = [f"{index:02}.png" for index in range(14)]
    for index, name in enumerate(names):
        if index in (1, *range(3, 14)):
            (tmp_path / name).write_bytes(b"no image")
        else:
            PHOTO.save(tmp_path / name)
    with pytest.raises(ValueError, match="12 of 14 files failed:") as caught:
        predict_files(channel_model(), [tmp_path], tmp_path / "out")
    shown = str(caught.value).splitlines()[1:]
    assert len(shown) == 11
    for name, line in zip(("01", *names[3:12]), shown[:10], strict=True):
        assert name in line
    assert shown[-1].strip() == "..."
    labels = sorted(path.name for path in (tmp_path / "out").glob("*_labels.png"))
    assert labels == ["00_labels.png", "02_labels.png"]


@pytest.mark.parametrize("wrong", [{"window": (0, 32)}, {"overlap": -1}])
def test_wrong_windows_are_one_error_whatever_the_files(tmp_path, wrong, logs):
    for name in ("a.png", "b.png"):
        PHOTO.save(tmp_path / name)
    with pytest.raises(ValueError, match=f"^`{next(iter(wrong))}`"):
        predict_files(channel_model(), [tmp_path], tmp_path / "out", **wrong)
    assert logs.messages == []


def test_names_that_do_not_fit_the_model_are_refused(tmp_path):
    path = saved(tmp_path, "plain.png")
    with pytest.raises(ValueError, match="`info` must be of the model's 3 classes"):
        predict_files(channel_model(), [path], tmp_path / "out", DatasetInfo(("a", "b")))
    assert not (tmp_path / "out").exists()


def test_a_large_file_needs_a_window(tmp_path, small_limit, logs, monkeypatch):
    PHOTO.save(tmp_path / "a.png")
    assert is_large(tmp_path / "a.png")
    monkeypatch.setattr("keras_deeplab.data.decoding.MAX_PIXELS", 5000)
    monkeypatch.setattr("keras_deeplab.prediction.OVERLAY_SIDE", 45)
    model, output = channel_model(), tmp_path / "out"
    with pytest.raises(ValueError, match=r"a\.png.*image too large.*`window`"):
        predict_files(model, [tmp_path / "a.png"], output)
    assert not output.exists()
    shares = predict_files(model, [tmp_path / "a.png"], output, window=(32, 32), overlap=8)
    labels = np.asarray(Image.open(output / "a_labels.png"))
    np.testing.assert_array_equal(labels, PIXELS.argmax(-1))
    assert list(shares["a.png"].values()) == [(labels == k).mean() for k in range(3)]
    assert "a.png (the overlay is reduced to 35x45): " in logs.text
    assert np.asarray(Image.open(output / "a_overlay.png")).shape == (45, 35, 3)


def test_what_is_wrong_with_a_large_file_is_one_error(tmp_path, small_limit, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(tmp_path / "turned.png", exif=exif)
    assert LargeImage(tmp_path / "turned.png", 3, (0, 200)).shape == (90, 70, 3)  # as stored
    PHOTO.save(tmp_path / "whole.png")
    encoded = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(encoded[: len(encoded) // 2])
    Image.fromarray(PIXELS[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    PHOTO.convert("CMYK").save(tmp_path / "print.tif")
    for name, message in (
        ("print.tif", "grey or RGB"),
        ("turned.png", "stored upright"),
        ("cut.png", "that can be decoded"),
        ("float.tif", "8 or 16 bits"),
    ):
        with pytest.raises(ValueError, match=f"^`image` must be .*{message}.*{name}") as caught:
            predict_files(channel_model(), [tmp_path / name], tmp_path / "out", window=(32, 32))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(ImportError, match=r"pip install keras_deeplab\[large\]"):
        keras_deeplab.predict(channel_model(), tmp_path / "whole.png", window=(32, 32))


@pytest.fixture
def video(tmp_path):
    """Twelve frames, each in one colour, with odd sides."""
    import imageio.v2

    path = tmp_path / "drive.mkv"
    with imageio.v2.get_writer(
        path, "ffmpeg", fps=4, macro_block_size=1, codec="ffv1", pixelformat="bgr0"
    ) as writer:
        for number in range(12):
            writer.append_data(np.full((35, 51, 3), 250 * np.eye(3)[number % 3], np.uint8))
    return path


@pytest.mark.slow
def test_a_video_is_predicted_frame_by_frame(video, tmp_path, logs):
    import imageio.v2

    (labels := tmp_path / "out" / "drive_labels").mkdir(parents=True)
    for name in ("000012.png", "000013.png", "notes13.png"):
        (labels / name).write_bytes(b"old")
    shares = predict_files(channel_model(), tmp_path, tmp_path / "out", frame_labels=True)
    (labels / "notes13.png").unlink()  # not one of its own files
    assert list(shares["drive.mkv"].values()) == pytest.approx([1 / 3] * 3)
    assert "drive.mkv (12 frames): 0 33%, 1 33%, 2 33%" in logs.text
    predict_files(channel_model(), tmp_path, tmp_path / "out", confidence="margin")
    assert "`confidence` is written for images alone, not for videos." in logs.text
    with imageio.v2.get_reader(tmp_path / "out" / "drive_overlay.mp4", "ffmpeg") as reader:
        assert reader.get_meta_data()["fps"] == 4
        frames = list(reader.iter_data())
    assert [frame.shape for frame in frames] == [(34, 50, 3)] * 12
    colors = keras_deeplab.data.voc_colors(3)
    for number, frame in enumerate(frames):
        expected = (250 * np.eye(3)[number % 3] + colors[number % 3]) / 2
        assert np.abs(frame.mean((0, 1)) - expected).max() < 12
    files = sorted(labels.iterdir())
    assert [file.name for file in files][::11] == ["000001.png", "000012.png"]
    assert [np.unique(Image.open(file)).tolist() for file in files] == [[0], [1], [2]] * 4


def test_a_photograph_and_a_video_of_one_name(video, tmp_path):
    """As telephones store them."""
    Image.new("RGB", (20, 24)).save(tmp_path / "drive.png")
    predict_files(channel_model(), tmp_path, tmp_path / "out")
    names = ["drive_labels.png", "drive_overlay.mp4", "drive_overlay.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    Image.new("RGB", (20, 24)).save(tmp_path / "drive.jpg")
    with pytest.raises(ValueError, match=r"without their endings.*drive\.jpg.*drive\.png'\]"):
        predict_files(channel_model(), tmp_path, tmp_path / "out")


def test_names_that_differ_in_case_alone(tmp_path, monkeypatch):
    """They are different files on Linux, but not on Windows and macOS."""
    for name in ("a/Drive.png", "b/drive.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (20, 24)).save(tmp_path / name)
    folders = [tmp_path / "a", tmp_path / "b"]
    shares = predict_files(channel_model(), folders, tmp_path / "out")
    assert list(shares) == ["Drive.png", "drive.png"]
    monkeypatch.setattr(prediction, "_FOLDED", str.casefold)
    with pytest.raises(ValueError, match=r"without their endings.*Drive\.png.*drive\.png'\]"):
        predict_files(channel_model(), folders, tmp_path / "out")


def test_a_video_without_two_columns_does_not_stop_the_others(video, tmp_path):
    import imageio_ffmpeg

    source = ["-f", "lavfi", "-i", "color=duration=1", "-vf", "scale=1:20", "-c:v", "png"]
    run = [imageio_ffmpeg.get_ffmpeg_exe(), *source, str(tmp_path / "thin.mkv")]
    subprocess.run(run, check=True, capture_output=True)
    with pytest.raises(ValueError, match="videos of at least 2x2 pixels.*1x20 pixels"):
        predict_files(channel_model(), tmp_path, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["drive_overlay.mp4"]


def test_a_video_of_variable_rate_keeps_its_length(tmp_path):
    """Of 60 frames a second three of ten are stored: decoded as they are, it would last longer."""
    import imageio.v2
    import imageio_ffmpeg

    path = tmp_path / "screen.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=rate=60:duration=2:size=64x48"]
    chosen = ["-vf", "select='lt(mod(n,10),3)'", "-fps_mode", "vfr", str(path)]
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *source, *chosen], check=True, capture_output=True
    )
    predict_files(channel_model(), [path], tmp_path / "out")
    with imageio.v2.get_reader(tmp_path / "out" / "screen_overlay.mp4", "ffmpeg") as reader:
        assert reader.get_meta_data()["duration"] == pytest.approx(2, abs=0.2)
        assert reader.count_frames() < 60


def test_a_video_that_is_cut_off(video, tmp_path, logs):
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    predict_files(channel_model(), [video], tmp_path / "out")
    assert "of 12 frames: is it cut off" in logs.text


def test_what_is_wrong_with_a_video_is_one_error(video, tmp_path, monkeypatch):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    with pytest.raises(ValueError, match=r"^`images` must be videos that can be decod.*broken"):
        predict_files(channel_model(), [broken], tmp_path / "out")
    monkeypatch.setattr("keras_deeplab.prediction.overlay", stop)
    with pytest.raises(RuntimeError, match="stop"):
        predict_files(channel_model(), [video], tmp_path / "out")
    assert [*(tmp_path / "out").iterdir()] == []
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"pip install keras_deeplab\[video\]"):
        predict_files(channel_model(), [video], tmp_path / "out")


def stop(*arguments, **options):
    raise RuntimeError("stop")
