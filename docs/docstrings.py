"""Examples of docstrings as code: griffe knows them under "Examples:" and indented only."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

EXAMPLE = re.compile(r"\nExample:\n\n(.*?)(?=\n\nReferences?:\n|\Z)", re.DOTALL)


class Examples(griffe.Extension):
    """Turns "Example:" into a section of griffe's."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Is called for each object with its docstring."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(
                lambda found: "\nExamples:\n" + textwrap.indent(found[1], "    "),
                obj.docstring.value,
            )
