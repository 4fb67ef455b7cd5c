"""The pages of docs/ and the README: their examples run, the API page is complete, and links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import cvxcnn

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples_run(path: Path) -> None:
    assert doctest.testfile(str(path), module_relative=False, encoding="utf-8").failed == 0


def test_every_kind_of_part_has_an_example_that_runs() -> None:
    examples = doctest.DocTestParser().get_examples(page("docs/extending.md"))
    classes = re.findall(r"class \w+\((\w+)\)", "".join(example.source for example in examples))
    assert {"Relu", "Neurons", "Pooling", "Solver", "GateSampler", "Penalty", "Loss"} <= set(classes)
    assert "METRICS.append(" in "".join(example.source for example in examples)


def test_api_lists_every_public_name_with_its_arguments() -> None:
    listed = {name: arguments for name, arguments in re.findall(r"^\| `(\w+)\((.*?)\)` \|", page("docs/api.md"), re.M)}
    assert set(listed) == set(cvxcnn.__all__)
    for name, arguments in listed.items():
        if arguments == "...":
            continue
        given = [part.split("=")[0].strip() for part in re.split(r", (?=[\w*])", arguments)]
        parameters = inspect.signature(getattr(cvxcnn, name)).parameters
        assert [part for part in given if part != "*"] == list(parameters), name
        for part in re.split(r", (?=[\w*])", arguments):
            if "=" in part:
                argument, default = part.split("=", 1)
                given_default = eval(default, {"inf": float("inf"), "nan": float("nan")})
                # repr, because nan is not equal to itself
                assert repr(given_default) == repr(parameters[argument].default), (name, part)


def test_api_lists_names_of_modules_that_exist() -> None:
    rows = re.findall(r"^\| `(cvxcnn\.\w+)` \| (.*) \|$", page("docs/api.md"), re.M)
    assert len(rows) > 5
    for module, text in rows:
        for name in re.findall(r"`(\w+)(?:`|\()", text):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_every_name_in_the_mathematics_is_in_the_code() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "cvxcnn").rglob("*.py")))
    known = set(re.findall(r"\w+", code))
    names = re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", page("docs/mathematics.md"))))
    assert len(names) > 80
    assert [name for name in names if name not in known] == []


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{path.name}" for path in PAGES)])
def test_links_lead_somewhere(name: str) -> None:
    here = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#]+)\)", page(name)):
        assert target.startswith("https://") or (here / target).exists(), target


def test_readme_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    snippets = re.findall(r"```python\n(.*?)```", page("README.md"), re.S)
    assert len(snippets) == 3
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert (tmp_path / "path.png").exists()
