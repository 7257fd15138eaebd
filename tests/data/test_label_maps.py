"""Label maps: the values in every kind of file, and the colours of RGB ones."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from keras_deeplab import data
from keras_deeplab.data.bands import Bands
from keras_deeplab.data.faults import FileFault
from keras_deeplab.data.label_maps import ColorCode, read_label

COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
BORDER = (224, 224, 192)
CODE = ColorCode((*COLORS, BORDER), (0, 1, 2, 255))


def write(path, array, **options):
    """Writes an array as a label map and returns its path."""
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def folder(make_folder, blocks):
    """A folder with one RGB label map."""
    root = make_folder(blocks)
    write(root / "train/labels/a.png", colored(blocks))
    return root


def colored(blocks, colors=(*COLORS, BORDER)):
    return np.array(colors, np.uint8)[np.where(blocks == 255, 3, blocks)]


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
def test_every_format_gives_the_values(tmp_path, blocks, suffix, dtype, options):
    values, palette = read_label(write(tmp_path / f"a{suffix}", blocks.astype(dtype), **options))
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, blocks)
    assert palette == ()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_palette_indices_and_listed_colors_are_values(tmp_path, blocks, suffix):
    mask = Image.fromarray(blocks)
    mask.putpalette([part for color in COLORS for part in color] + [7] * 759)
    mask.save(tmp_path / f"a{suffix}")
    values, palette = read_label(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(values, blocks)
    assert palette[:3] == COLORS
    for mode in ("RGB", "RGBA"):
        pixels = np.asarray(Image.fromarray(colored(blocks)).convert(mode))
        path = write(tmp_path / f"b{suffix}", pixels)
        np.testing.assert_array_equal(read_label(path, CODE)[0], blocks)


def test_arrays_may_have_a_last_axis_and_be_masks(tmp_path, blocks):
    for array, expected in (((blocks % 3)[..., None], blocks % 3), (blocks == 1, blocks == 1)):
        np.testing.assert_array_equal(read_label(write(tmp_path / "a.npy", array))[0], expected)


WIDE = np.array([[0, 300]], np.uint16)


@pytest.mark.parametrize(
    "name, array, message",
    [
        *(
            (f"a{suffix}", WIDE, "uint16 values from 0 to 300")
            for suffix in (".png", ".tif", ".npy")
        ),
        ("a.npy", np.full((24, 32), 0.5), "values from .*whole numbers"),
        ("a.npy", np.full((24, 32), np.nan), "values from .*whole numbers"),
        ("a.npy", np.full((24, 32), -1), "from -1 to -1"),
        ("a.npy", np.zeros((24, 32, 3), np.uint8), r"shape \(24, 32, 3\)"),
        ("a.npy", np.zeros(768, np.uint8), r"shape \(768,\)"),
        ("a.npy", np.zeros((24, 32), complex), "complex128 array"),
        ("a.npy", np.array([[None]]), "unreadable file"),  # which would be unpickled
        (
            "a.png",
            np.zeros((2, 3, 3), np.uint8),
            "label map not one-channel: mode RGB of 1 colours",
        ),
        ("a.png", np.zeros((2, 3, 2), np.uint8), "not one-channel: mode LA"),
        ("a.png", np.zeros((2, 3, 4), np.uint8), "mode RGBA, 6 pixels are not opaque"),
    ],
)
def test_other_values_and_channels_are_refused(tmp_path, name, array, message):
    with pytest.raises(FileFault, match=message):
        read_label(write(tmp_path / name, array))


@pytest.mark.parametrize(
    "use, empty", [(read_label, "unreadable file: 0 bytes"), (Bands(1).read, "truncated file")]
)
def test_an_array_file_is_not_believed(tmp_path, use, empty):
    path = write(tmp_path / "a.npy", np.zeros((24, 32), np.uint8))
    content, archive = path.read_bytes(), io.BytesIO()
    np.savez(archive, np.zeros((24, 32), np.uint8))
    # 10 TB by its header, which must not be reserved.
    short, long = b"(24, 32), }", b"(2222222, 4444444), }"
    lying = content.replace(short + b" " * (len(long) - len(short)), long)
    for damaged, kind in (
        (content[:-1], "truncated file"),
        (b"", empty),
        (lying, "truncated file"),
        (b"\x93NUMPY" + bytes(range(100)), "unreadable file"),
        (content.replace(b"(24, 32)", b"(24, 32("), "unreadable file"),
        (archive.getvalue(), "unreadable file"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(FileFault, match=kind):
            use(path)


def test_damaged_and_truncated_files(tmp_path):
    noise = np.random.default_rng(0).integers(0, 3, (24, 32), np.uint8)
    path = write(tmp_path / "a.png", noise)
    content = path.read_bytes()
    for cut in (3, 12, 40, 100):
        path.write_bytes(content[:-cut])
        with pytest.raises(FileFault, match="truncated file"):
            read_label(path)
    start = content.index(b"IDAT") + 6
    path.write_bytes(content[:start] + bytes(20) + content[start + 20 :])
    with pytest.raises(FileFault, match="unreadable file"):
        read_label(path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"format": "JPEG"}, "JPEG label map"),
        ({"format": "TIFF", "compression": "jpeg"}, "JPEG label map"),
        ({"format": "WEBP"}, "WebP data"),
    ],
)
def test_lossy_label_maps_are_refused(tmp_path, blocks, options, message):
    with pytest.raises(FileFault, match=message):
        read_label(write(tmp_path / "a.png", blocks, **options))


def test_color_code_of_all_classes():
    colors = [(index, 255 - index, index) for index in range(255)] + [(1, 1, 1), (2, 2, 2)]
    code = ColorCode(colors, [*range(255), 255, 255])
    np.testing.assert_array_equal(code.values(np.array([colors])), [[*range(255), 255, 255]])


@pytest.mark.parametrize(
    "settings",
    [
        {"classes": ["x", "y", "z"]},
        {"values": [7, 0, 255]},
        {"values": [7, 0, 255], "ignore_label": [9, 8]},
        {"ignore_label": []},
    ],
)
def test_colors_follow_the_order_of_the_classes(folder, write_settings, blocks, settings):
    """Whatever numbers other masks of the folder use for them."""
    write_settings(folder, colors=COLORS, ignore_colors=[BORDER, (1, 2, 3)], **settings)
    assert data.audit(folder).splits["train"].ignored_share == pytest.approx(1 / 12)
    source = data.Folder(folder)
    ((_, label),) = source.dataset("train").as_numpy_iterator()
    np.testing.assert_array_equal(label, blocks)
    assert source.info.colors == COLORS


def test_an_optimiser_may_turn_colors_into_a_palette(folder, write_settings, blocks):
    """Its indices are in the order in which it met the colours, other ones in each file."""
    write_settings(folder, colors=COLORS, ignore_colors=[BORDER])
    for order in ([3, 0, 2, 1], [1, 2, 3, 0], [0, 1, 2, 3]):
        colors = np.array([*COLORS, BORDER])[order]
        indices = np.argsort(order).astype(np.uint8)[np.where(blocks == 255, 3, blocks)]
        mask = Image.fromarray(indices)
        mask.putpalette(colors.reshape(-1).tolist())
        mask.save(folder / "train/labels/a.png")
        source = data.Folder(folder)
        ((_, label),) = source.dataset("train").as_numpy_iterator()
        np.testing.assert_array_equal(label, blocks)
        (warning,) = data.audit(folder).warnings
        assert "1 label maps have the colours of dataset.json in another order" in warning
    # A border of any colour at an ignored index does not change how the others are read.
    for values in (blocks, np.where(blocks == 255, 0, blocks)):
        mask = Image.fromarray(values)
        mask.putpalette([part for k in (0, 2, 1) for part in COLORS[k]] + [5] * 759)
        mask.save(folder / "train/labels/a.png")
        write_settings(folder, colors=COLORS)
        ((_, label),) = data.Folder(folder).dataset("train").as_numpy_iterator()
        np.testing.assert_array_equal(label, np.array([0, 2, 1, *[255] * 253])[values])
    # A palette with colours of its own: its indices are the labels.
    mask = Image.fromarray(np.where(blocks == 255, 0, blocks))
    mask.putpalette([9, 9, 9, *np.array(COLORS)[[2, 0]].reshape(-1)])
    mask.save(folder / "train/labels/a.png")
    ((_, label),) = data.Folder(folder).dataset("train").as_numpy_iterator()
    np.testing.assert_array_equal(label, mask)


def test_masks_of_16_bits_with_0_and_65535(tmp_path):
    mask = np.eye(4, dtype=np.uint16) * 65535
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", mask.astype(">u2"))
    for name in ("a.png", "a.npy"):
        np.testing.assert_array_equal(read_label(tmp_path / name)[0], np.eye(4) * 255)


def test_a_color_that_is_not_listed_is_a_fault(folder, write_settings):
    write_settings(folder, colors=COLORS)
    for use in (data.audit, lambda root: next(iter(data.Folder(root).dataset("train")))):
        with pytest.raises(Exception, match=r"colour without a class[^?]*\[224, 224, 192\]"):
            use(folder)


def test_rgb_label_maps_without_a_list_name_their_colors(folder):
    found = r"a\.png: mode RGB of 4 colours: \[0, 0, 0\], .* \[224, 224, 192\]"
    message = rf'(?s)dataset.json, such as {{"colors".*{found}'
    for use in (data.audit, lambda root: data.open_source(root).info):
        with pytest.raises(data.DatasetError, match=message):
            use(folder)
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    with pytest.raises(FileFault, match=r"mode RGB of 768 colours: .*\], \.\.\. .*smooth edges"):
        read_label(write(folder / "train/labels/a.png", noise))


def test_rgb_label_maps_without_a_list_say_which_dataset_json_reads_them(folder):
    with pytest.raises(data.DatasetError, match="hold 4 colours; write into") as caught:
        data.audit(folder)
    found = re.search(r"write into dataset.json (\{.*?\}),", str(caught.value))[1]
    (folder / "dataset.json").write_text(found)
    assert data.audit(folder).info.num_classes == 4


def test_colors_of_smooth_edges_are_not_proposed_as_classes(folder):
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    write(folder / "train/labels/a.png", noise)
    write(folder / "train/labels/b.png", np.eye(32, dtype=np.uint8)[:24, :, None].repeat(3, 2))
    write(folder / "train/images/b.png", noise)
    with pytest.raises(data.DatasetError, match="there is no readable label map"):
        data.audit(folder)


def test_of_smooth_edges_the_colors_of_most_pixels_are_named(tmp_path):
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:32] = 255, 200, 0
    mask[40:44] = np.arange(256).reshape(4, 64, 1)
    found = r"257 colours: \[255, 200, 0\], \[0, 0, 0\], .*, \.\.\. .*smooth edges.*nearest colour"
    with pytest.raises(FileFault, match=found):
        read_label(write(tmp_path / "a.png", mask))


def test_a_color_listed_twice_is_a_fault_of_rgb_label_maps_only(folder, write_settings, blocks):
    write_settings(folder, colors=[COLORS[0], COLORS[1], COLORS[1]])
    with pytest.raises(data.DatasetError, match="two classes have the same colour"):
        data.audit(folder)
    write(folder / "train/labels/a.png", blocks)
    assert data.audit(folder).info.num_classes == 3
