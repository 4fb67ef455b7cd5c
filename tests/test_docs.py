"""The pages of docs/ and the README: examples run, the API is complete, links lead somewhere, numbers were measured."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripts import script

import cvxcnn

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
README_PAGES = ["README.md", *(f"docs/{path.name}" for path in PAGES)]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def keys_of(text: str) -> list[str]:
    """The pages that mkdocs.yml has in its navigation; it is read without a YAML parser, which nothing else needs."""
    return re.findall(r"^ +- [^:\n]+: (\S+\.md)$", text, re.M)


# torch's exporters warn of torch's own use of a deprecated function.
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples_run(path: Path) -> None:
    if path.name == "onnx.md":
        pytest.importorskip("onnxscript", reason='onnxscript is not installed: pip install -e ".[onnx]"')
    assert doctest.testfile(str(path), module_relative=False, encoding="utf-8").failed == 0


def test_every_kind_of_part_has_an_example_that_runs() -> None:
    examples = doctest.DocTestParser().get_examples(page("docs/extending.md"))
    classes = re.findall(r"class \w+\((\w+)\)", "".join(example.source for example in examples))
    assert {"Relu", "Neurons", "Pooling", "Solver", "GateSampler", "Penalty", "Loss"} <= set(classes)
    assert "METRICS.append(" in "".join(example.source for example in examples)


def test_api_has_every_public_name_once() -> None:
    listed = re.findall(r"^::: cvxcnn\.(\w+)$", page("docs/api.md"), re.M)
    assert sorted(listed) == sorted(cvxcnn.__all__)


def test_dir_shows_the_public_names_alone() -> None:
    assert dir(cvxcnn) == sorted([*cvxcnn.__all__, "__version__"])
    assert all(hasattr(cvxcnn, name) for name in dir(cvxcnn))


def test_every_room_has_its_page_of_the_api() -> None:
    rooms = {path.parent.name for path in (ROOT / "cvxcnn").glob("*/__init__.py")} | {"errors"}
    assert set(re.findall(r"api/(\w+)\.md", page("mkdocs.yml"))) == rooms
    assert set(re.findall(r"\(api/(\w+)\.md\)", page("docs/api.md"))) == rooms


def test_every_page_and_notebook_is_in_the_navigation() -> None:
    shown = set(keys_of(page("mkdocs.yml")))
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.name for path in PAGES} | notebooks <= shown


def test_every_name_in_the_mathematics_is_in_the_code() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "cvxcnn").rglob("*.py")))
    known = set(re.findall(r"\w+", code))
    names = re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", page("docs/mathematics.md"))))
    assert len(names) > 80
    assert [name for name in names if name not in known] == []


@pytest.mark.parametrize("name", README_PAGES)
def test_links_lead_somewhere(name: str) -> None:
    here = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#]+)\)", page(name)):
        # The pages of the rooms are made by docs/hooks.py.
        made = name == "docs/api.md" and target.startswith("api/")
        assert made or target.startswith("https://") or (here / target).exists(), target


def test_readme_example_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", page("README.md"), re.S)
    assert len([line for line in snippet.splitlines() if line]) == 5
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    images, labels = names["images"] / 16, names["labels"]
    assert names["model"].score(images, labels) > 0.95
    assert names["model"].stack_.blocks_[0].certificate_.kind == "searched"


def test_the_tables_of_the_readme_are_what_its_benchmark_printed() -> None:
    readme = script("benchmarks/readme.py")
    blocks = readme.blocks(json.loads(page("benchmarks/readme.json")))
    assert set(blocks) == {"layers", "classifiers", "stamp"}
    for block in blocks.values():
        assert block in page("README.md"), block


def test_the_picture_of_the_readme_is_drawn_from_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = script("benchmarks/readme.py")
    points = readme.read_history(readme.HISTORY)
    layers = json.loads(page("benchmarks/readme.json"))[f"main-{readme.THREADS[0]}"]["layers"]
    last = [point for point in points if point.layer == 1 and point.method == "convex"][-1]
    assert (last.objective, last.bound) == (layers[0]["convex"]["objective"], layers[0]["convex"]["global_bound"])
    monkeypatch.setattr(readme, "PICTURE", tmp_path / "certificate.png")
    readme.draw(points)
    assert (tmp_path / "certificate.png").stat().st_size > 10_000


def test_new_numbers_take_the_place_of_those_before() -> None:
    readme = script("benchmarks/readme.py")
    before = json.loads(page("benchmarks/readme.json"))
    numbers = json.loads(page("benchmarks/readme.json"))
    numbers["date"] = "2030-01-01"
    for threads in readme.THREADS:
        numbers[f"main-{threads}"]["layers"][0]["convex"]["objective"] = 123.45
    text = readme.renewed(page("README.md"), before, numbers)
    assert "on 2030-01-01:" in text and "| 1 | convex | 123.45 |" in text
    assert readme.renewed(text, numbers, before) == page("README.md")


def test_ranges_show_what_varies() -> None:
    span = script("benchmarks/readme.py").span
    assert span([1.04, 0.96], "{:.1f}") == "1.0"
    assert span([0.5, 2.0, 1.0], "{:.1f}", " s") == "0.5 to 2.0 s"


def test_links_of_the_repository_become_links_of_the_site() -> None:
    pytest.importorskip("mkdocs", reason='mkdocs is not installed: pip install -e ".[docs]"')
    hooks = script("docs/hooks.py")
    turned = hooks.with_site_links
    assert turned("[a](docs/theory.md#b)", "index.md") == "[a](theory.md#b)"
    assert turned("![a](docs/images/a.png)", "index.md") == "![a](images/a.png)"
    assert turned("[a](../README.md)", "theory.md") == "[a](index.md)"
    assert turned("[a](../notebooks/03_certificates.ipynb)", "gallery.md") == "[a](notebooks/03_certificates.md)"
    assert turned("[a](figures/relu.png) [b](../docs/depth.md)", "benchmarks/RESULTS.md") == (
        "[a](figures/relu.png) [b](../depth.md)"
    )
    assert turned("[a](https://arxiv.org/abs/2006.14798) [b](#c)", "theory.md") == (
        "[a](https://arxiv.org/abs/2006.14798) [b](#c)"
    )


def test_formulas_of_the_notebooks_become_mathml() -> None:
    pytest.importorskip("latex2mathml", reason='latex2mathml is not installed: pip install -e ".[docs]"')
    shown = script("docs/hooks.py").with_mathml("one $u_i$ and $$|A(u)| > 1$$")
    assert shown.count("<math") == 2 and 'display="block"' in shown and "$" not in shown
