"""Pages of the site that are made from other files: the README, model cards and docstrings."""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files outside docs/ that are pages or pictures of the site.
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/camvid/README.md": "examples/camvid.md",
    "examples/camvid/predictions.png": "examples/predictions.png",
}
SOURCES = {page: source for source, page in MOVED.items()}
LINK = re.compile(r"\]\((?!https?:|#)([^)\s=]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that have no file in docs/."""
    for source, page in MOVED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_bytes()))
    modules = [name for name in public_names() if is_module(name)]
    others = sorted(set(public_names()) - set(modules) - {"__version__"})
    references = {"keras_deeplab": "# keras_deeplab\n" + "".join(map(_reference, others))}
    references |= {name: _reference(name, level=1) for name in modules}
    for name, text in references.items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(text: str, page: Page, **_: object) -> str:
    """Links lead from a page of the site where they lead from its source file."""
    path = page.file.src_uri
    source = SOURCES.get(path, f"docs/{path}")
    return LINK.sub(lambda found: f"]({moved(found[1], source, path)})", text)


def moved(target: str, source: str, page: str) -> str:
    """Returns the link of a page that leads where a link in its source file leads."""
    path, mark, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    found = MOVED.get(path) or MOVED.get(f"{path}/README.md") or path.removeprefix("docs/")
    return posixpath.relpath(found, posixpath.dirname(page) or ".") + mark + anchor


def public_names() -> list[str]:
    """Returns what the package exports, without importing TensorFlow."""
    tree = ast.parse((ROOT / "keras_deeplab/__init__.py").read_text(encoding="utf-8"))
    return ast.literal_eval(
        next(
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        )
    )


def is_module(name: str) -> bool:
    """Whether a public name is that of a module."""
    path = ROOT / "keras_deeplab" / name
    return path.is_dir() or path.with_suffix(".py").is_file()


def _reference(name: str, level: int = 2) -> str:
    return f"::: keras_deeplab.{name}\n    options:\n      heading_level: {level}\n\n"
