from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_deeplab import data
from keras_deeplab.audit_page import LISTED_FAULTS, audit_page, faults_page
from keras_deeplab.data.diagnostics import Finding
from keras_deeplab.data.faults import FileFault


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_data(self, text):
        self.found.append(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def read(page):
    """The texts of a page, and its tags with their attributes."""
    parsed = Text()
    parsed.feed(page)
    return parsed.found, parsed.tags


def test_the_page_shows_findings_shares_and_pictures():
    source = data.Shapes(train=5, val=2)
    report = data.audit(source)
    finding = Finding("kind <b>", "text", "advice", 0.9, ("<script>x</script>",))
    object.__setattr__(report, "findings", (finding,))
    page = audit_page(report, source, "a & <b>")
    found, tags = read(page)
    text = " ".join(found)
    assert "kind <b>" in text
    assert "<script>x</script>" in text
    assert not [tag for tag, _ in tags if tag in ("script", "link")]
    assert "triangle" in text
    height, width = report.splits["train"].crop_size
    assert f"crop {width}x{height}" in text
    assert "Random scales 0.5 to 2" in text
    assert report.to_dict()["splits"]["train"]["crop_size"] == (height, width)
    assert report.to_dict()["class_weights"] == list(report.class_weights)
    shares = np.array(report.splits["train"].where_present)
    np.testing.assert_allclose(report.class_weights, np.median(shares) / shares)
    assert f"{100 * report.splits['train'].class_share[0]:.2f} %" in text
    sources = [attrs["src"] for tag, attrs in tags if tag == "img"]
    assert len(sources) == 7
    assert all(re.fullmatch(r"data:image/jpeg;base64,[\w+/=]+", one) for one in sources)
    picture = Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1])))
    image, label = next(source.dataset("train").as_numpy_iterator())
    assert picture.size == (2 * label.shape[1], label.shape[0])
    left = np.asarray(picture)[:, : label.shape[1]].astype(int)
    assert np.abs(left - image).mean() < 12


def test_names_of_splits_are_text():
    class Named(data.Shapes):
        splits = ("train", "<script>")

        def names(self, split):
            return super().names("train")

        def dataset(self, split, numbers=None):
            return super().dataset("train", numbers)

    source = Named(train=2, val=1)
    page = audit_page(data.audit(source), source, "x")
    assert "<script>" not in page
    for tag in ("td", "th", "h2"):  # sizes, shares and pictures
        assert f"<{tag}>&lt;script&gt;" in page


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channel_counts_are_drawn(channels):
    class Bands(data.Shapes):
        def dataset(self, split, numbers=None):
            pairs = super().dataset(split, numbers)
            return pairs.map(lambda i, v: (tf.concat([i, i], -1)[..., :channels], v))

    source = Bands(train=2, val=1)
    assert audit_page(data.audit(data.Shapes(train=2, val=1)), source, "x").count("<img") == 3


def test_faults_are_listed_with_their_causes():
    faults = [FileFault("truncated file", f"<i>{n}\udcff") for n in range(LISTED_FAULTS + 5)]
    error = data.DatasetError("x", [*faults, FileFault("empty split", "val")], ["cause <b>"])
    page = faults_page(error, "a")
    text = " ".join(read(page)[0])
    for part in ("cause <b>", f"truncated file ({LISTED_FAULTS + 5})", "<i>0\\udcff", "and 5 more"):
        assert part in text
    assert f"<i>{LISTED_FAULTS}" not in text
    assert "empty split (1)" in text
    page.encode("utf-8")
