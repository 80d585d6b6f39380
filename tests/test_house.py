"""The plan of the house: nine rooms, imports that only go down, names, and sizes."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from setuptools import find_packages
from support import ROOT

import apudae

PACKAGE = Path(apudae.__file__).parent
# An import leads to a lower level, or stays in its room.
LEVELS = {
    "core": 0,
    "data": 1,
    "models": 1,
    "plots": 1,
    "purification": 1,
    "attacks": 2,
    "training": 3,
    "evaluation": 3,
    "experiments": 4,
}
ROOMS = tuple(LEVELS)
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text())


def imports(path: Path) -> list[tuple[tuple[str, ...], str]]:
    """What a file imports of the package: (path within it, name); a whole module's name is ""."""
    found = []
    here = ("apudae", *path.parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(tuple(alias.name.split(".")), "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) + 1 - node.level] if node.level else ()
            place = base + tuple(node.module.split(".") if node.module else ())
            found += [(place, alias.name) for alias in node.names]
    return [(place[1:], name) for place, name in found if place[0] == "apudae"]


def modules(path: Path) -> set[tuple[str, ...]]:
    """The same as files of the package: ("core", "norms"), or ("data",) for a room as such."""
    targets = set()
    for place, name in imports(path):
        whole = (*place, name) if name else place
        inner = PACKAGE.joinpath(*whole)
        is_file = inner.with_suffix(".py").is_file() or (inner / "__init__.py").is_file()
        targets.add(whole if name and is_file else place)
    return targets


def test_there_are_nine_rooms_and_nothing_beside_them():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ROOMS)
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
    assert {path.parts[0] for path in FILES if len(path.parts) > 1} == set(ROOMS)


def test_imports_between_rooms_lead_down():
    wrong = []
    for path in FILES:
        for target in modules(path):
            if not target:  # the package itself: its version
                continue
            mine, other = path.parts[0], target[0]
            if mine != other and LEVELS.get(other, 9) >= LEVELS.get(mine, -1):
                wrong.append(f"{path} imports {'.'.join(target)}")
    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_within_a_room(room):
    graph = {}
    for path in FILES:
        if path.parts[0] == room:
            mine = path.with_suffix("").parts
            mine = mine[:-1] if mine[-1] == "__init__" else mine
            graph[mine] = {target for target in modules(path) if target[:1] == (room,)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(".".join(one) for one in error.args[1]))


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(module: ast.Module) -> set[str]:
    """Underscored names that a file defines: functions, classes, variables, attributes."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # register_buffer("_kept", ...)
    return found


FOREIGN = ("_version", "_replace")  # of a tensor, of a named tuple


def root_of(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def test_no_underscored_name_crosses_a_file():
    wrong = []
    for path in FILES:
        module = tree(path)
        mine = own_names(module)
        wrong += [f"{path} imports {name}" for _, name in imports(path) if private(name)]
        for node in ast.walk(module):
            if not isinstance(node, ast.Attribute) or not private(node.attr):
                continue
            # A subclass may use what its base class has; the others are not ours to rename.
            known = root_of(node) in ("self", "cls", "sys", "torch", "nn") or node.attr in FOREIGN
            if not known and node.attr not in mine:
                wrong.append(f"{path}:{node.lineno} reaches for .{node.attr}")
    assert wrong == []


def test_nobody_looks_for_a_module_of_old():
    """Package, tests, scripts, benchmarks, chapters: what follows "apudae." is a room."""
    known = {*ROOMS, "__version__", "__file__"}
    wrong = []
    places = ("apudae", "tests", "scripts", "benchmarks", "book")
    files = [path for place in places for path in (ROOT / place).rglob("*")]
    for path in [*files, ROOT / "README.md"]:
        if path.suffix not in (".py", ".md", ".ipynb") or path == Path(__file__):
            continue
        text = path.read_text()
        names = re.findall(r"(?<![\w/-])apudae\.(\w+)", text)
        for line in re.findall(r"\bfrom apudae import \(?([\w, ]+)", text):
            names += [part.split()[0] for part in line.split(",") if part.strip()]
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in set(names) - known]
    assert sorted(wrong) == []


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "core"])
def test_a_room_lists_what_its_first_lines_tell(room):
    text = importlib.import_module(f"apudae.{room}").__doc__
    told = set(re.findall(r":(?:func|class|data|mod):`(\w+)`", text))
    listed = [name for _, name in imports(Path(room, "__init__.py"))]
    assert sorted(listed) == sorted(told)


def test_the_first_lines_of_the_core_name_its_files():
    told = set(
        re.findall(r":mod:`~apudae\.core\.(\w+)`", importlib.import_module("apudae.core").__doc__)
    )
    assert told == {path.stem for path in FILES if path.parts[0] == "core"} - {"__init__"}


@pytest.mark.parametrize(
    ("line", "without"),
    [
        ("import apudae", ("torch", "numpy")),
        ("from apudae import attacks", ("matplotlib", "scipy.stats")),
        ("from apudae import data, models, purification", ("matplotlib", "scipy.stats")),
    ],
)
def test_an_import_brings_no_more_than_it_needs(line, without):
    ask = f"{line}; import sys; print(*[m for m in {without!r} if m in sys.modules])"
    command = [sys.executable, "-c", ask]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_wheel_takes_every_room_and_its_files_along():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = find_packages(PACKAGE.parent, include=tool["packages"]["find"]["include"])
    assert set(packages) == {"apudae", *(f"apudae.{room}" for room in ROOMS)}
    packed = set()
    for package, patterns in tool["package-data"].items():
        folder = PACKAGE.parent.joinpath(*package.split("."))
        packed |= {path for pattern in patterns for path in folder.glob(pattern)}
    data = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert data == packed


def test_text_is_read_and_written_as_utf_8():
    """What the system takes otherwise is another thing on every machine."""
    wrong = []
    places = ("apudae", "scripts", "benchmarks")
    for path in [path for place in places for path in (ROOT / place).rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            given = {word.arg for word in call.keywords} if name else set()
            reads = name == "open" or name.endswith((".read_text", ".write_text"))
            if (reads or ("text" in given and "subprocess" in name)) and "encoding" not in given:
                wrong.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert wrong == []


# --- sizes -------------------------------------------------------------------------------------


def test_no_file_is_longer_than_can_be_read():
    long = {str(p): n for p in FILES if (n := (PACKAGE / p).read_text().count("\n")) > 500}
    assert long == {}


def test_all_weights_together_are_small():
    weights = PACKAGE / "models" / "weights"
    assert sum(path.stat().st_size for path in weights.iterdir()) <= 24e6


def test_a_clone_with_its_history_is_small():
    """What a clone would fetch: all that the last commit leads to, packed."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("no history here")
    pack = [*git, "pack-objects", "--revs", "--stdout", "-q"]
    packed = subprocess.run(pack, input=b"HEAD\n", check=True, capture_output=True).stdout
    assert len(packed) <= 60_000_000
