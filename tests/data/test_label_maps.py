"""Label maps: the values in every kind of file, and the colours of RGB ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.label_maps import ColorCode, read_label

COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
BORDER = (224, 224, 192)


def replace_label(root, array, suffix=".png", **options):
    """Puts another label map in the place of train/labels/a.png and returns its path."""
    (root / "train/labels/a.png").unlink(missing_ok=True)
    path = root / f"train/labels/a{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path, write_pair, blocks):
    write_pair(tmp_path, "train", "a", blocks)
    return tmp_path


def write_settings(root, **settings):
    (root / "dataset.json").write_text(json.dumps(settings))


def labels_of(root):
    """The label map that training gets, after an audit without faults."""
    data.audit(root)
    ((_, label),) = data.Folder(root).dataset("train").as_numpy_iterator()
    assert label.dtype == np.uint8
    return label


@pytest.mark.parametrize(
    "suffix, dtype, options",
    [
        (".png", "uint16", {}),
        (".bmp", "uint8", {}),
        (".tif", "uint8", {}),
        (".tiff", "uint16", {"compression": "tiff_lzw"}),
        (".tif", "int32", {}),
        *((".npy", dtype, {}) for dtype in ("uint8", "int64", ">i2", "float32", "float64")),
    ],
)
def test_every_format_gives_the_values(folder, blocks, suffix, dtype, options):
    replace_label(folder, blocks.astype(dtype), suffix, **options)
    np.testing.assert_array_equal(labels_of(folder), blocks)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_palette_indices_are_values_in_every_format(folder, blocks, suffix):
    path = replace_label(folder, blocks, suffix)
    mask = Image.fromarray(blocks)
    mask.putpalette([part for color in COLORS for part in color] + [7] * 759)
    mask.save(path)
    np.testing.assert_array_equal(labels_of(folder), blocks)
    assert data.Folder(folder).info.colors == COLORS


def test_arrays_may_have_a_last_axis_and_be_masks(folder, blocks):
    replace_label(folder, (blocks % 3)[..., None], ".npy")
    np.testing.assert_array_equal(labels_of(folder), blocks % 3)
    replace_label(folder, blocks == 1, ".npy")
    np.testing.assert_array_equal(labels_of(folder), blocks == 1)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_values_above_255_are_refused(folder, blocks, suffix):
    wide = blocks.astype(np.uint16)
    wide[0, 0] = 300
    with pytest.raises(FileFault, match="uint16 values from 0 to 300"):
        read_label(replace_label(folder, wide, suffix))


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((24, 32), 0.5), "values from .*whole numbers"),
        (np.full((24, 32), np.nan), "values from .*whole numbers"),
        (np.full((24, 32), -1), "from -1 to -1"),
        (np.zeros((24, 32, 3), np.uint8), r"shape \(24, 32, 3\)"),
        (np.zeros(768, np.uint8), r"shape \(768,\)"),
        (np.zeros((24, 32), complex), "complex128 array"),
    ],
)
def test_other_arrays_are_refused(folder, array, message):
    path = replace_label(folder, array, ".npy")
    with pytest.raises(FileFault, match=message):
        read_label(path)


def test_an_array_file_is_neither_unpickled_nor_believed(folder, tmp_path):
    path = replace_label(folder, np.array([[None]]), ".npy")
    with pytest.raises(FileFault, match="unreadable file"):
        read_label(path)
    replace_label(folder, np.zeros((24, 32), np.uint8), ".npy")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(FileFault, match="truncated file"):
        read_label(path)
    # 10 TB by its header, which must not be reserved.
    short, long = b"(24, 32), }", b"(2222222, 4444444), }"
    path.write_bytes(content.replace(short + b" " * (len(long) - len(short)), long))
    with pytest.raises(FileFault, match="truncated file"):
        read_label(path)
    path.write_bytes(b"\x93NUMPY" + bytes(range(100)))
    with pytest.raises(FileFault, match="unreadable file"):
        read_label(path)


def colored(blocks, colors=(*COLORS, BORDER)):
    return np.array(colors, np.uint8)[np.where(blocks == 255, 3, blocks)]


@pytest.mark.parametrize("suffix, mode", [(".png", "RGBA"), (".bmp", "RGB"), (".tif", "RGB")])
def test_listed_colors_are_classes(folder, blocks, suffix, mode):
    pixels = np.asarray(Image.fromarray(colored(blocks)).convert(mode))
    replace_label(folder, pixels, suffix)
    write_settings(folder, colors=COLORS, ignore_colors=[BORDER])
    np.testing.assert_array_equal(labels_of(folder), blocks)
    assert data.Folder(folder).info.colors == COLORS
    report = data.audit(folder).splits["train"]
    assert report.ignored_share == pytest.approx(1 / 12)


@pytest.mark.parametrize(
    "settings",
    [
        {"classes": ["x", "y", "z"]},
        {"values": [7, 0, 255]},
        {"values": [7, 0, 255], "ignore_label": [9, 8]},
        {"ignore_label": []},
    ],
)
def test_colors_follow_the_order_of_the_classes(folder, write_pair, blocks, settings):
    """Whatever numbers other masks of the folder use for them."""
    replace_label(folder, colored(blocks))
    write_settings(folder, colors=COLORS, ignore_colors=[BORDER, (1, 2, 3)], **settings)
    np.testing.assert_array_equal(labels_of(folder), blocks)


def test_a_color_that_is_not_listed_is_a_fault(folder, blocks):
    replace_label(folder, colored(blocks))
    write_settings(folder, colors=COLORS)
    message = r"colour without a class(.|\n)*\[224, 224, 192\]"
    for use in (data.audit, lambda root: next(iter(data.Folder(root).dataset("train")))):
        with pytest.raises(Exception, match=message) as caught:
            use(folder)
        assert "a.png: " in str(caught.value)


def test_colors_without_a_list_are_proposed(folder, write_pair, blocks):
    """The proposal, written as it stands, makes the audit pass."""
    replace_label(folder, colored(blocks))
    _, other = write_pair(folder, "val", "b", blocks)
    Image.fromarray(colored(np.zeros_like(blocks), [(9, 9, 9)])).save(other)
    with pytest.raises(data.DatasetError, match=r"a\.png: mode RGB of 4 colours") as caught:
        data.audit(folder)
    text = str(caught.value)
    assert "[9, 9, 9]" in text
    proposal = json.loads(text[text.index("{") : text.index("}") + 1])
    assert sorted(map(tuple, proposal["colors"])) == sorted((*COLORS, BORDER, (9, 9, 9)))
    write_settings(folder, **proposal)
    assert data.audit(folder).info.num_classes == 5


def test_a_photograph_as_a_label_map_proposes_nothing(folder):
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    replace_label(folder, noise)
    with pytest.raises(data.DatasetError, match=r"mode RGB of \d+ colours: .*\.\.\.") as caught:
        data.audit(folder)
    assert "such as" not in str(caught.value)


def test_transparent_pixels_are_a_fault(folder, blocks):
    pixels = np.dstack([colored(blocks), np.where(blocks == 255, 0, 255).astype(np.uint8)])
    replace_label(folder, pixels)
    write_settings(folder, colors=[*COLORS, BORDER])
    with pytest.raises(data.DatasetError, match="64 pixels are not opaque"):
        data.audit(folder)


def test_a_color_listed_twice_is_a_fault_of_rgb_label_maps_only(folder, blocks):
    write_settings(folder, colors=[COLORS[0], COLORS[1], COLORS[1]])
    assert data.audit(folder).info.num_classes == 3
    replace_label(folder, colored(blocks))
    with pytest.raises(data.DatasetError, match="lists a colour twice"):
        data.audit(folder)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_masks_of_several_channels_are_refused(folder, blocks, mode):
    path = replace_label(folder, np.asarray(Image.fromarray(blocks).convert(mode)))
    with pytest.raises(FileFault, match=f"label map not one-channel: mode {mode}"):
        read_label(path)


def test_damaged_and_truncated_files(folder):
    noise = np.random.default_rng(0).integers(0, 3, (24, 32), np.uint8)
    path = replace_label(folder, noise)
    content = path.read_bytes()
    for cut in (3, 12, 40, 100):
        path.write_bytes(content[:-cut])
        with pytest.raises(FileFault, match="truncated file"):
            read_label(path)
    start = content.index(b"IDAT") + 6
    path.write_bytes(content[:start] + bytes(20) + content[start + 20 :])
    with pytest.raises(FileFault, match="unreadable file"):
        read_label(path)


def test_lossy_label_maps_are_refused(folder, blocks):
    path = replace_label(folder, blocks)
    Image.fromarray(blocks).save(path, "JPEG")
    with pytest.raises(FileFault, match="JPEG label map"):
        read_label(path)
    Image.fromarray(blocks).save(path, "TIFF", compression="jpeg")
    with pytest.raises(FileFault, match="JPEG label map"):
        read_label(path)
    Image.fromarray(blocks).convert("RGB").save(path, "WEBP")
    with pytest.raises(FileFault, match="WebP data"):
        read_label(path)


def test_color_code_of_all_classes():
    colors = [(index, 255 - index, index) for index in range(255)] + [(1, 1, 1), (2, 2, 2)]
    code = ColorCode(colors, [*range(255), 255, 255])
    np.testing.assert_array_equal(code.values(np.array([colors])), [[*range(255), 255, 255]])
