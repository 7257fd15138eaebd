from __future__ import annotations

import json

import pytest

from keras_deeplab import data


def test_voc_colors_are_the_published_map():
    colors = data.voc_colors(21)
    assert colors[1] == (128, 0, 0)
    assert colors[8] == (64, 0, 0)
    assert colors[15] == (192, 128, 128)
    assert colors[20] == (0, 64, 128)
    assert len(set(data.voc_colors(256))) == 256
    assert data.voc_colors(300)[:256] == data.voc_colors(256)
    assert len(set(data.voc_colors(65_536))) == 65_536
    with pytest.raises(ValueError, match=r"`n` must be in 0\.\.65,536"):
        data.voc_colors(65_537)


def test_info_survives_json():
    info = data.DatasetInfo(("sky", "road"), ((1, 2, 3), (4, 5, 6)))
    assert data.DatasetInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert info.num_classes == 2
    assert hash(info) == hash(data.DatasetInfo(["sky", "road"], [[1, 2, 3], [4, 5, 6]]))


@pytest.mark.parametrize(
    "classes, colors, message",
    [
        ((), (), "`classes`"),
        (tuple(map(str, range(256))), (), "`classes`"),
        (("a", "b"), ((0, 0, 0),), "1 colours for 2 classes"),
        (("a",), ((0, 0, 256),), "0..255"),
        (("a",), ((0, 0),), "0..255"),
    ],
)
def test_info_refuses(classes, colors, message):
    with pytest.raises(ValueError, match=message):
        data.DatasetInfo(classes, colors)
