"""Notebooks as Colab runs them: its old IPython, its torch, and nothing of ours.

An environment of its own gets Colab's IPython and ipywidgets. torch, numpy and what else Colab
brings for the package are linked into it from here; nothing else is. Each notebook runs alone in an
empty folder, and the first cell installs the package, from a clone in place of its address.

Without a package index the tests are skipped, and say so; with ``APUDAE_REQUIRED=1`` that is a
failure.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import venv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(
    p.relative_to(ROOT / "book").as_posix() for p in (ROOT / "book").rglob("*.ipynb")
)
pytestmark = pytest.mark.slow  # an environment of its own, and whole chapters
COLAB = ("ipython==7.34.0", "ipywidgets==7.7.1", "ipykernel==6.17.1")
BROUGHT = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "matplotlib",
    "safetensors",
    "tqdm",
    "filelock",
)
REPOSITORY = re.compile(r'REPOSITORY = "[^"]*"')


def brought() -> set[Path]:
    """Files and folders of what Colab brings, with all that these need."""
    wanted, seen, found = list(BROUGHT), set(), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            dist = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on another system
        for need in dist.requires or []:
            if "extra ==" not in need:
                wanted.append(re.match(r"[\w.-]+", need)[0])
        for file in dist.files or []:
            if ".." not in file.parts:
                found.add(Path(dist.locate_file(file.parts[0])))
    return found


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Python of the environment, and the clone that stands in place of the repository."""
    top = tmp_path_factory.mktemp("colab")
    venv.create(top / "env", with_pip=True)
    python = top / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    told = subprocess.run([*pip, *COLAB, "setuptools"], capture_output=True, text=True)
    if told.returncode:
        why = f"Colab's packages cannot be had here: {told.stderr[-300:]}"
        (pytest.fail if os.environ.get("APUDAE_REQUIRED") == "1" else pytest.skip)(why)
    site = next((top / "env" / "lib").glob("python*/site-packages"))
    for path in brought():
        if path.exists() and not (site / path.name).exists():
            (site / path.name).symlink_to(path)

    clone = top / "clone"
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "-co",
            "--exclude-standard",
            "apudae",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    release = re.search(r'RELEASE = "(\S+)"', first(NOTEBOOKS[0]))[1]
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        [*who, "commit", "-qm", "all"],
        ["tag", release],
    ):
        subprocess.run(["git", *command], cwd=clone, check=True)

    kernel = top / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(top / "jupyter"))
        patch.setenv("HOME", str(top))
        patch.setenv("TQDM_DISABLE", "1")
        for name in ("APUDAE_DATA", "APUDAE_PROFILE", "PYTHONPATH"):
            patch.delenv(name, raising=False)
        yield python, clone


def first(name: str) -> str:
    return nbformat.read(ROOT / "book" / name, as_version=4).cells[0].source


def ask(python: Path, what: str) -> str:
    told = subprocess.run([python, "-I", "-c", what], capture_output=True, text=True)
    return told.stdout.strip() or told.stderr.strip().splitlines()[-1]


def test_the_environment_is_colabs_and_has_nothing_of_ours(colab):
    python, _ = colab
    import torch

    assert ask(python, "import IPython; print(IPython.__version__)") == "7.34.0"
    assert ask(python, "import ipywidgets; print(ipywidgets.__version__)") == "7.7.1"
    assert ask(python, "import torch; print(torch.__version__)") == torch.__version__
    for name in ("pytest", "jupyter_book", "foolbox", "efficientnet_lite_pytorch"):
        assert "ModuleNotFoundError" in ask(python, f"import {name}")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_in_colab(name, colab, tmp_path):
    python, clone = colab
    pip = [python, "-m", "pip", "--quiet", "uninstall", "--yes", "apudae"]
    subprocess.run(pip, capture_output=True)
    assert "ModuleNotFoundError" in ask(python, "import apudae")
    notebook = nbformat.read(ROOT / "book" / name, as_version=4)
    cell = notebook.cells[0]
    cell.source, changed = REPOSITORY.subn(f'REPOSITORY = "file://{clone}"', cell.source)
    assert changed == 1
    before = ask(python, "import torch; print(torch.__version__)")
    options = {
        "timeout": 600,
        "kernel_name": "colab",
        "resources": {"metadata": {"path": tmp_path}},
    }
    NotebookClient(notebook, **options).execute()  # an error in a cell is raised
    assert "site-packages" in ask(python, "import apudae; print(apudae.__file__)")
    assert ask(python, "import torch; print(torch.__version__)") == before
    shown = [output for c in notebook.cells if c.cell_type == "code" for output in c.outputs]
    assert any("apudae-slider" in o.get("data", {}).get("text/html", "") for o in shown) or (
        "reference" in name
    )


def test_with_the_placeholder_the_first_cell_says_what_to_do(colab, tmp_path):
    python, _ = colab
    subprocess.run([python, "-m", "pip", "-q", "uninstall", "-y", "apudae"], capture_output=True)
    source = REPOSITORY.sub(
        'REPOSITORY = "https://github.com/OWNER/apudae-book"', first(NOTEBOOKS[0])
    )
    cell = nbformat.v4.new_code_cell(source)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    options = {"kernel_name": "colab", "resources": {"metadata": {"path": tmp_path}}}
    NotebookClient(notebook, allow_errors=True, **options).execute()
    (error,) = [o for o in notebook.cells[0].outputs if o.output_type == "error"]
    assert error.ename == "SystemExit" and "Put the address of this book" in error.evalue
