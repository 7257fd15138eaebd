"""Images of other channels and values than 8-bit RGB, on their whole way."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import pyvips
from calibration import calibrate
from PIL import Image

import keras_deeplab as kd
from keras_deeplab import data
from keras_deeplab.data.bands import Bands
from keras_deeplab.data.faults import FileFault
from keras_deeplab.trainer import ModelBuilder

SIZE = (40, 48)


def samples(seed, channels, dtype):
    rng = np.random.default_rng(seed)
    high = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    return (rng.uniform(0, high, (*SIZE, channels))).astype(dtype)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        pyvips.Image.new_from_array(array).tiffsave(str(path), compression="lzw")


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_samples_are_read_as_stored(tmp_path, suffix, channels, dtype):
    array = samples(0, channels, dtype)
    write(tmp_path / f"a{suffix}", array)
    pixels = Bands(channels).read(tmp_path / f"a{suffix}").pixels
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, array if dtype == np.uint8 else array >> 8)
    # 12-bit values fill the range.
    few = array.astype(np.uint16) * 13 & 0xFFF
    write(tmp_path / f"b{suffix}", few)
    pixels = Bands(channels, (0, 4095)).read(tmp_path / f"b{suffix}").pixels
    np.testing.assert_array_equal(pixels, np.rint(few / 4095 * 255))


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_a_file_that_changed_is_read_again(tmp_path, suffix):
    for seed, size in ((1, 5), (2, 5), (3, 4)):
        array = samples(seed, 5, np.uint8)[: 8 * size]
        write(tmp_path / f"a{suffix}", array)
        np.testing.assert_array_equal(Bands(5).read(tmp_path / f"a{suffix}").pixels, array)


def test_dark_images_without_a_range_are_reported(tmp_path, satellite):
    settings = {"classes": ["ground", "roof"], "channels": 5}
    (satellite / "dataset.json").write_text(json.dumps(settings))
    with pytest.raises(data.DatasetError, match=r'16-bit images of few.*"range": \[0, 4095\]'):
        data.audit(satellite)
    inputs = keras.Input((None, None, 5))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs))
    with pytest.warns(UserWarning, match="16 bits a channel and no value above"):
        kd.predict(model, satellite / "val" / "images" / "1.tif")


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_8_bit_images_among_those_of_a_range_are_reported(satellite, suffix):
    assert data.audit(satellite).warnings == ()
    path = next((satellite / "train" / "images").iterdir())
    path.unlink()
    write(path.with_suffix(suffix), samples(0, 5, np.uint8))
    (warning,) = data.audit(satellite).warnings
    assert "1 of " in warning
    assert "no value above a sixteenth of the range" in warning


def test_floats_need_a_range(tmp_path):
    write(tmp_path / "a.npy", samples(0, 3, np.float32))
    with pytest.raises(FileFault, match=r'"range" \[low, high\] in dataset.json'):
        Bands().read(tmp_path / "a.npy")
    assert Bands(3, (0, 1)).read(tmp_path / "a.npy").pixels.max() > 250
    array = samples(0, 3, np.float32)
    array[0, 0, 0] = np.nan
    write(tmp_path / "a.npy", array)
    with pytest.raises(FileFault, match="NaN or infinite"):
        Bands(3, (0, 1)).read(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "content, message",
    [
        (np.zeros((4, 5, 6, 3), np.uint8), r"shape \(4, 5, 6, 3\)"),
        (np.array(["a", "b"]), "type <U1"),
        (np.zeros((4, 5, 2), np.uint8), "2 channels .expected: 3 channels"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.array([[None]]), "Python objects"),
    ],
)
def test_other_arrays_are_refused(tmp_path, content, message):
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    with pytest.raises(FileFault, match=message):
        Bands().read(tmp_path / "a.npy")


def test_a_huge_array_takes_no_memory(tmp_path):
    header = np.lib.format.open_memmap(
        tmp_path / "a.npy", "w+", np.uint8, (2**14, 2**14, 1)
    )  # a sparse file
    del header
    with pytest.raises(FileFault, match="image too large"):
        Bands(1).read(tmp_path / "a.npy")


@pytest.fixture
def satellite(tmp_path):
    """A folder of 5 channels of 12 bits, whose label is where the last channel is bright."""
    root = tmp_path / "satellite"
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            rng = np.random.default_rng([ord(split[0]), number])
            label = np.zeros(SIZE, np.uint8)
            top, left = rng.integers(0, 20, 2)
            label[top : top + 18, left : left + 22] = 1
            image = rng.integers(0, 2000, (*SIZE, 5)).astype(np.uint16)
            image[..., 4] += 2000 * label.astype(np.uint16)
            suffix = ".tif" if number % 2 else ".npy"
            write(root / split / "images" / f"{number}{suffix}", image)
            path = root / split / "labels" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(label).save(path)
    settings = {"classes": ["ground", "roof"], "channels": 5, "range": [0, 4000]}
    (root / "dataset.json").write_text(json.dumps(settings))
    return root


@pytest.mark.slow
def test_the_whole_way(satellite, tmp_path, eager):
    source = data.open_source(satellite)
    report = data.audit(source)
    assert not [one for one in report.findings if one.is_warning]
    assert (source.info.channels, source.info.value_range) == (5, (0, 4000))
    assert data.DatasetInfo.from_dict(source.info.to_dict()) == source.info
    train = data.training_dataset(source, crop_size=(32, 32), batch_size=4, color_jitter=0.2)
    assert train.element_spec[0].shape == (4, 32, 32, 5)
    recipe = kd.recipes.get("finetune", "unet").replace(model={"depth": 1, "filters": 4})
    built = ModelBuilder("unet").build(2, recipe, channels=5)
    assert built.input_shape == (None, None, None, 5)
    val = next(iter(data.evaluation_dataset(source, batch_size=2)))
    inputs = keras.Input((None, None, 5))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(inputs)
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(x))
    model.compile(keras.optimizers.Adam(0.3), kd.losses.CrossEntropy())
    model.fit(train, epochs=12, verbose=0, shuffle=False)
    images = sorted((satellite / "val" / "images").iterdir())
    shares = kd.predict_files(model, images, tmp_path / "out", source.info)
    assert shares.keys() == {"0.npy", "1.tif"}
    for path, pixels in zip(images, val[0].numpy(), strict=True):
        written = np.asarray(Image.open(tmp_path / "out" / f"{path.stem}_labels.png"))
        np.testing.assert_array_equal(written, kd.predict(model, pixels))
    scores = kd.evaluate(model, data.evaluation_dataset(source), class_names=source.info.classes)
    assert scores["mean_iou"] > 0.8  # as only the fifth channel tells


@pytest.mark.slow
def test_exports_take_all_channels(tmp_path):
    inputs = keras.Input((None, None, 5))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 3, padding="same")(inputs))
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 11, 5), np.uint8)
    info = data.DatasetInfo(("a", "b", "c"), channels=5, value_range=(0, 4000))
    for path in (
        kd.export.saved_model(model, tmp_path / "saved", info=info),
        kd.export.litert(model, tmp_path / "m.tflite", info=info),
        kd.export.onnx(model, tmp_path / "m.onnx", info=info),
    ):
        exported = kd.runtimes.open_exported(path)
        assert exported.metadata.info == info
        np.testing.assert_array_equal(exported(image)["labels"], kd.predict(model, image))


def test_all_faults_of_channels_are_listed(satellite):
    write(satellite / "train" / "images" / "0.npy", samples(0, 4, np.uint16))
    write(satellite / "val" / "images" / "1.tif", samples(0, 3, np.uint8))
    with pytest.raises(data.DatasetError) as caught:
        data.audit(satellite)
    message = str(caught.value)
    assert "train/images/0.npy: 4 channels" in message
    assert "val/images/1.tif: 3 channels" in message
    (satellite / "dataset.json").write_text('{"channels": 0, "range": [5, 5]}')
    with pytest.raises(data.DatasetError, match='"channels" must be a positive .*"range" must be'):
        data.audit(satellite)


@pytest.mark.parametrize(
    "channels, mode", [(1, "tf"), (2, "tf"), *((5, mode) for mode in kd.backbones.PREPROCESSING)]
)
def test_weights_for_rgb_fit_other_channels(channels, mode):
    options = {"aspp_filters": 8, "preprocessing": mode}
    rgb = kd.DeepLabV3(3, "alexnet", **options)
    images = np.random.default_rng(0).uniform(0, 255, (2, 79, 97, max(3, channels)))
    if channels < 3:  # grey, on which the response stays
        images[:] = images[..., :1]
    calibrate(rgb, images[..., :3])
    shape = (None, None, channels)
    model = kd.DeepLabV3(3, "alexnet", **options, input_shape=shape, weights=rgb)
    assert "was trained on RGB" in str(model.transfer_report)
    own, its = (m.backbone.get_layer("conv1").kernel for m in (model, rgb))
    if channels > 3:
        for further in (3, 4):
            np.testing.assert_allclose(own[:, :, further], keras.ops.mean(its, 2), rtol=1e-5)
        own.assign(np.concatenate([own[:, :, :3], 0 * own[:, :, 3:]], 2))
    expected, found = (m(images[..., :count]).numpy() for m, count in ((rgb, 3), (model, channels)))
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.std())
