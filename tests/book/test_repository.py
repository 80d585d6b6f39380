"""The repository's address stands in one place, and everything else repeats it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import apudae

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "repository.py"
CHAPTERS = sorted((ROOT / "book").glob("[01]*.ipynb"))


def script(path=SCRIPT):
    spec = importlib.util.spec_from_file_location("repository", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def disagreements(root: Path) -> list[str]:
    """What does not name the address of ``pyproject.toml`` and the release."""
    tool, lost = script(), []
    url, tag = tool.address(root), tool.release(root)
    short = url.removeprefix("https://github.com/")
    settings = yaml.safe_load((root / "_config.yml").read_text())
    if settings["repository"]["url"] != url:
        lost.append("_config.yml")
    if f"repository-code: {url}\n" not in (root / "CITATION.cff").read_text():
        lost.append("CITATION.cff")
    for path in sorted((root / "book").rglob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        first = notebook.cells[0].source
        lines = f'REPOSITORY = "{url}"\nRELEASE = "{tag}"\n'
        if lines not in first or '"git+{REPOSITORY}@{RELEASE}"' not in first:
            lost.append(path.name)
        badge = f"https://colab.research.google.com/github/{short}/blob/{tag}/book/{path.name})"
        if re.match(r"\d\d_", path.name) and badge not in notebook.cells[1].source:
            lost.append(f"badge of {path.name}")
    return lost


def test_everything_names_one_address_and_one_release():
    assert disagreements(ROOT) == []
    assert len(CHAPTERS) == 13
    assert script().release() == f"v{apudae.__version__}"


@pytest.fixture
def copy(tmp_path):
    """The files that name the address."""
    for path in [*script().files(), SCRIPT]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def test_one_command_writes_it_everywhere(copy):
    command = [sys.executable, copy / "scripts" / "repository.py", "https://github.com/me/a-book/"]
    subprocess.run([*command, "--release", "v9.8.7"], check=True, capture_output=True)
    assert disagreements(copy) == []
    tool = script(copy / "scripts" / "repository.py")
    assert tool.address(copy) == "https://github.com/me/a-book" and tool.release(copy) == "v9.8.7"
    old = script().address()
    for path in tool.files(copy):
        text = path.read_text()
        assert old not in text, path
        if path.suffix == ".ipynb":
            assert "OWNER/" not in text and json.loads(text)["nbformat"] == 4
    subprocess.run([*command, "--release", "v9.8.7"], check=True)  # and again is no harm
    assert disagreements(copy) == []


def test_a_file_that_was_forgotten_is_found(copy):
    path = copy / "book" / CHAPTERS[3].name
    path.write_text(path.read_text().replace(script().release(), "main", 1))
    assert len(disagreements(copy)) == 1


@pytest.mark.parametrize("url", ["github.com/me/book", "https://example.org/me/book", "me"])
def test_what_is_no_address_is_refused(url, copy):
    command = [sys.executable, copy / "scripts" / "repository.py", url]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode != 0 and "expected https://github.com/NAME/REPOSITORY" in run.stderr
    assert disagreements(copy) == []


def test_the_status_page_is_that_of_the_notebooks():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        status = __import__("status")
    finally:
        sys.path.remove(str(SCRIPT.parent))
    assert status.PAGE.read_text() == status.page()
    assert status.page().count("\n| [") == len(list((ROOT / "book").rglob("*.ipynb")))
