from __future__ import annotations

import pytest

from keras_deeplab import data


def test_names_and_folders_are_told_apart(tmp_path):
    (tmp_path / "train").mkdir()
    assert isinstance(data.open_source("shapes"), data.Shapes)
    assert isinstance(data.open_source(tmp_path), data.Folder)
    assert isinstance(data.open_source(str(tmp_path)), data.Folder)
    with pytest.raises(ValueError, match=r"an existing folder .*Received: name='.*nowhere'"):
        data.open_source(tmp_path / "nowhere")
