"""The description of the package on its index page. All other metadata is in setup.cfg."""

import re
from pathlib import Path

from setuptools import setup

# Relative pictures and links lead nowhere from that page: the pictures are left out, and the links
# are replaced by their texts.
_README = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
_PICTURE = re.compile(r"^!\[[^]]*\]\((?!https?:).*\)\n+", re.MULTILINE)
_LINK = re.compile(r"\[([^]]*)\]\((?!https?:)[^)]*\)")

setup(long_description=_LINK.sub(r"\1", _PICTURE.sub("", _README)))
