"""What mkdocs is told beside mkdocs.yml: pages from elsewhere in the repository, and one of the API for each room.

README, CONTRIBUTING, CHANGELOG, the results and the notebooks stay where readers of the repository look for them. On
the site, docs/ is the root and all else lies at its place in the repository; links are written for the repository and
turned here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
HOME = "README.md"
ELSEWHERE = (HOME, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md")
# What the pages elsewhere show, or link to.
BESIDE = ("benchmarks/figures/*.png", "benchmarks/profiles/*.txt")
# The page of a room: its heading is the page's title, and its modules follow, each name where it is written.
ROOM = """# `cvxcnn.{name}`

::: cvxcnn.{name}
    options:
      members: {members}
      show_root_heading: false
      show_root_toc_entry: false
      heading_level: 2
"""
MODULE = """
::: {name}
    options:
      heading_level: 2
"""

LINK = re.compile(r"(\]\()([^)#\s]+)")
FENCED = re.compile(r"(^```.*?^```)", re.S | re.M)
DISPLAYED = re.compile(r"\$\$(.+?)\$\$", re.S)
INLINE = re.compile(r"\$([^$\n]+(?:\n[^$\n]+)*)\$")


def site_path(path: str) -> str:
    """Return where a file of the repository lies on the site.

    Examples
    --------
    >>> site_path("docs/theory.md"), site_path("README.md"), site_path("notebooks/01_first_block.ipynb")
    ('theory.md', 'index.md', 'notebooks/01_first_block.md')
    """
    if path == HOME:
        return "index.md"
    return path.removeprefix("docs/").removesuffix(".ipynb") + (".md" if path.endswith(".ipynb") else "")


def repository_path(page: str) -> str:
    """Return the file of the repository that a page of the site is made of, a notebook's with the page's ending."""
    elsewhere = {site_path(path): path for path in ELSEWHERE}
    return elsewhere.get(page, page if page.startswith("notebooks/") else f"docs/{page}")


def with_site_links(text: str, page: str) -> str:
    """Return Markdown whose links, written for the repository, are those of the site."""
    here = posixpath.dirname(repository_path(page))

    def turned(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target or target.startswith("data:"):
            return match[0]
        path = site_path(posixpath.normpath(posixpath.join(here, target)))
        return match[1] + posixpath.relpath(path, posixpath.dirname(page) or ".")

    return outside_code(text, lambda part: LINK.sub(turned, part))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Return Markdown changed everywhere but between fences, where brackets and dollars are code's own."""
    return "".join(part if part.startswith("```") else change(part) for part in FENCED.split(text))


def with_mathml(text: str) -> str:
    """Return Markdown whose LaTeX is MathML, which browsers show without a script from elsewhere."""
    text = DISPLAYED.sub(lambda match: convert(match[1].strip(), display="block"), text)
    return INLINE.sub(lambda match: convert(match[1].replace("\n", " ")), text)


def notebook_files(path: Path, config: MkDocsConfig) -> list[File]:
    """Return the page of a notebook and its pictures, as they are stored in it."""
    notebook = nbformat.read(path, as_version=4)
    # Notebooks are stored without the language, which changes with the kernel; it colours the code.
    notebook.metadata["language_info"] = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    text = outside_code(text, with_mathml)
    found = []
    for name, content in resources["outputs"].items():
        text = text.replace(f"({name})", f"({path.stem}-{name})")
        found.append(File.generated(config, f"notebooks/{path.stem}-{name}", content=content))
    return [File.generated(config, f"notebooks/{path.stem}.md", content=text), *found]


def room_page(room: Path, name: str) -> str:
    """Return the page of a room: a package, or a module that is alone."""
    if room.stem != "__init__":
        return ROOM.format(name=name, members="null")
    modules = (path for path in sorted(room.parent.rglob("*.py")) if not path.stem.startswith("_"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
    return ROOM.format(name=name, members="false") + "".join(MODULE.format(name=module) for module in names)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies elsewhere, and a page of the API for each room."""
    for path in ELSEWHERE:
        files.append(File.generated(config, site_path(path), content=(ROOT / path).read_text(encoding="utf-8")))
    for pattern in BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            place = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, place, content=path.read_bytes()))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for file in notebook_files(path, config):
            files.append(file)
    for room in sorted([*(ROOT / "cvxcnn").glob("*/__init__.py"), ROOT / "cvxcnn" / "errors.py"]):
        name = (room.parent if room.stem == "__init__" else room).stem
        files.append(File.generated(config, f"api/{name}.md", content=room_page(room, name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page."""
    return with_site_links(markdown, page.file.src_uri)
