"""The three commands: mistakes end in one line before the work begins, on any console."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ROOT

from apudae import data, evaluation, experiments
from apudae.core import arguments
from apudae.evaluation import __main__ as evaluating
from apudae.evaluation import certify, evaluate
from apudae.experiments import __main__ as running
from apudae.experiments import commands
from apudae.training import __main__ as training

MAINS = {"training": training.main, "evaluation": evaluating.main, "experiments": running.main}
GOOD = {
    "training": ["--model", "mnist-cnn", "--data", "mnist", "--device", "cpu"],
    "evaluation": ["--eps", "0.1", "--n", "20", "--no-curves", "--device", "cpu"],
    "experiments": ["mnist-variants"],
}
MINE = """
import sys, torch
def build(): raise KeyError("lost")
def leaves(): sys.exit(0)
def none(): pass
def text(): return "net"
def cls(): return torch.nn.Linear
net = torch.nn.Linear(3, 3)
number = 3
"""


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """What was begun of the work proper; in a folder of its own."""
    found = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(training, "fit", lambda *a, **k: found.append("fit"))
    monkeypatch.setattr(evaluating, "evaluate", lambda *a, **k: found.append("evaluate"))
    for name, command in commands.COMMANDS.items():
        run = lambda *a, name=name: found.append(name)  # noqa: E731
        monkeypatch.setitem(commands.COMMANDS, name, replace(command, run=run))
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "broken.py").write_text("import torch\nx = 1 / 0\n", encoding="utf-8")
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    return found


def ends(room: str, argv: list[str], capsys) -> tuple[object, str]:
    """Status and the last line that a command ends with."""
    try:
        status = MAINS[room](argv)
    except SystemExit as end:
        status = end.code
    seen = capsys.readouterr()
    if isinstance(status, str):
        return 1, status
    return status or 0, (seen.err.strip() or "\n").splitlines()[-1]


NUMBERS = ["nan", "inf", "-inf", "1e999", "-1", "a", "", "0x1", "1,5", "1_0"]
COUNTS = [*NUMBERS, "0", "1.5", "1e3", "²"]
BAD = [
    *[("training", [f"--{o}", v]) for o in ("epochs", "batch-size") for v in COUNTS],
    *[("training", ["--task", "adversarial", "--attack-steps", v]) for v in COUNTS],
    *[("training", ["--task", "adversarial", "--eps", v]) for v in (*NUMBERS, "0")],
    *[("training", ["--task", "denoising", "--sigma", v]) for v in (*NUMBERS, "0")],
    *[("training", ["--lr", v]) for v in (*NUMBERS, "0")],
    *[("training", [f"--{o}", v]) for o in ("weight-decay", "ema") for v in NUMBERS],
    *[("training", ["--seed", v]) for v in ("-1", "1.5", "a", "nan", "1_0", str(2**63))],
    *[("training", ["--workers", v, "--data", "."]) for v in ("-1", "1.5", "a", "1_0")],
    *[("training", ["--size", v, "--data", "."]) for v in COUNTS],
    *[("training", ["--option", v]) for v in ("width", "width=", "width=a", "width=-1", "width=²")],
    *[("training", ["--option", v]) for v in ("width=0", "wide=3", "=3", "width=1.5")],
    *[("training", ["--device", v]) for v in ("tpu", "cuda:7", "cuda")],
    ("training", ["--sigma", "0.3"]),  # of another task
    ("training", ["--noise", "uniform"]),
    ("training", ["--eps", "0.2"]),
    ("training", ["--attack-steps", "3"]),
    ("training", ["--task", "denoising", "--sigma", "0.3", "0.1"]),
    ("training", ["--task", "denoising", "--sigma", "0.1", "0.2", "0.3"]),
    ("training", ["--workers", "1"]),  # of a folder
    ("training", ["--size", "32"]),
    *[("training", ["--name", v]) for v in ("", "../evil", "a/b", ".", "..", ".a", "a b\n")],
    *[("training", ["--out", v]) for v in ("file", "file/below", "/proc/none", "a\0b")],
    ("training", ["--data", "nowhere"]),
    ("training", ["--data", "file"]),
    ("training", ["--profile", "half"]),
    *[("evaluation", ["--eps", *v.split(" ")]) for v in (*NUMBERS, "0", "0.1 nan")],
    ("evaluation", ["--eps", "0.1", "0.1"]),
    ("evaluation", ["--eps", "0.1", "0.10000001"]),  # one file for both
    *[("evaluation", ["--n", v]) for v in (*COUNTS, "-3")],
    *[("evaluation", ["--seed", v]) for v in ("-1", "1.5", "a", "1_0", str(2**63))],
    *[("evaluation", ["--device", v]) for v in ("tpu", "cuda:7", "cpuu", "")],
    *[("evaluation", ["--steps", v, "--purifier", "adaptive"]) for v in ("-1", "1.5", "a", "1_0")],
    *[("evaluation", ["--step-size", v, "--purifier", "adaptive"]) for v in ("0", "nan", "1_0")],
    *[("evaluation", ["--steps", "3", "--purifier", p]) for p in ("none", "direct", "mine:text")],
    ("evaluation", ["--step-size", "0.1"]),
    *[
        ("evaluation", ["--classifier", f"mine:{f}"])
        for f in ("none", "text", "cls", "net", "gone")
    ],
    *[("evaluation", ["--classifier", f"mine:{f}"]) for f in ("", "number", "a b", "build:build")],
    *[
        ("evaluation", ["--classifier", v])
        for v in (":build", "gone:build", ":", "a/b.py:f", "..:f")
    ],
    *[("evaluation", ["--classifier", v]) for v in ("vgg", "", "mnist-cnn.json", "../mnist-cnn")],
    *[("evaluation", ["--purifier", v]) for v in ("", "soap", "mine:none", ":build")],
    *[("evaluation", ["--record", v]) for v in ("file/r", "/proc/none/r", ".", "/", "", "a\0b/c")],
    *[("evaluation", ["--data", v]) for v in ("", "mnst", "cifar100")],
    ("evaluation", ["--split", "all"]),
    ("evaluation", ["--norm", "l1"]),
    ("evaluation", ["--budget", "huge"]),
    *[("experiments", [f"--{o}", "file"]) for o in ("results", "work")],
    *[("experiments", [f"--{o}", "/proc/none"]) for o in ("results", "work")],
    ("experiments", ["--profile", "quick"]),  # of the comparisons
    ("experiments", ["--only", "direct"]),
    ("experiments", ["--data", "cifar10-jpeg"]),
    ("experiments", ["--folder", "."]),
    ("experiments", ["--classifier", "resnet50"]),
    ("experiments", ["--profile", "half"]),
]


@pytest.mark.parametrize(("room", "bad"), BAD, ids=lambda v: v if isinstance(v, str) else ascii(v))
def test_a_bad_command_line_ends_in_one_line_before_the_work(room, bad, begun, tmp_path, capsys):
    argv = [*GOOD[room], *bad]
    if room == "training" and "--out" not in bad:
        argv += ["--out", "out"]
    if room == "experiments":  # nothing is there yet
        argv += [x for o in ("results", "work") if f"--{o}" not in bad for x in (f"--{o}", o)]
    status, line = ends(room, argv, capsys)
    assert status in (1, 2) and begun == []
    assert "error: " in line and "\n" not in line and "Traceback" not in line
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in left if not name.endswith((".pyc", ".apudae"))} == {
        *("mine.py", "broken.py", "file")
    }


def test_what_is_wrong_with_a_later_radius_is_told_before_the_first_ones_work(
    begun, tmp_path, capsys
):
    (tmp_path / "r-0.2.json").write_text("{", "utf-8")
    for bad, message in (
        (["--record", "r", "--eps", "0.1", "0.2"], "r-0.2.json is damaged"),
        (["--quantised", "--eps", "0.1", "0.001"], "eps: 0.001 is less than a grey level"),
        (["--dae", "mnist-dae"], "--dae: does nothing with --purifier none"),
    ):
        status, line = ends("evaluation", [*GOOD["evaluation"], *bad], capsys)
        assert status == 1 and begun == [] and message in line


@pytest.mark.parametrize("name", ["mnist", "mnist-purifier", "cifar10"])
def test_a_misspelt_defense_is_told_before_networks_are_trained(name, begun, tmp_path, capsys):
    places = [v for part in ("weights", "results", "work") for v in (f"--{part}", part)]
    status, line = ends("experiments", [name, "--only", "dirct", *places], capsys)
    assert status == 1 and begun == [] and line.startswith("error: only: expected ")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("manifest", ['{"name": "a web app"}', "folder"])
def test_a_manifest_of_something_else_is_refused_before_a_training(
    manifest, begun, tmp_path, capsys
):
    path = tmp_path / "out" / "manifest.json"
    path.parent.mkdir()
    path.mkdir() if manifest == "folder" else path.write_text(manifest, "utf-8")
    status, line = ends("training", [*GOOD["training"], "--out", "out"], capsys)
    assert status == 1 and begun == [] and "manifest.json" in line


@pytest.mark.parametrize("room", MAINS)
def test_a_good_command_line_begins(room, begun, capsys, monkeypatch):
    argv = GOOD[room] + (["--results", "r", "--work", "w"] if room == "experiments" else [])
    if room == "training":
        monkeypatch.setattr(training.models, "save", lambda *a, **k: sys.exit(3))
        argv += ["--out", "out"]
    status, line = ends(room, argv, capsys)
    assert len(begun) == 1 and status == (3 if room == "training" else 0), line


@pytest.mark.parametrize(
    "bad", [["--record", v] for v in ("a b", "é b", ".a", "")] + [["--device", "meta"]]
)
def test_what_is_wrong_is_named_by_its_option(bad, begun, capsys):
    status, line = ends("evaluation", [*GOOD["evaluation"], *bad], capsys)
    assert status == 1 and begun == []
    assert line.startswith(f"error: {bad[0]}: expected ") and line.endswith(f"got {bad[1]!r}")


THEIRS = """
import sys
from torch import nn
class Net(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault, self.layer = fault, nn.Linear(3, 3)
    def forward(self, x):
        return self.fault(self, x)
class OneMode(Net):
    def train(self, mode=True):
        raise NotImplementedError("one mode only")
def stop(net, x): raise NotImplementedError
def value(net, x): raise ValueError("one\\ntwo")
def deep(net, x): return deep(net, x)
def key(): return Net(lambda net, x: {}["lost"])
def division(): return Net(lambda net, x: x / (1 // 0))
def file(): return Net(lambda net, x: open("nowhere.npy"))
def attribute(): return Net(lambda net, x: net.head(x))
def values(): return Net(value)
def none(): return Net(stop)
def leaves(): return Net(lambda net, x: sys.exit(0))
def depth(): return Net(deep)
def end(): return Net(lambda net, x: next(iter(())))
def size(): return Net(lambda net, x: net.layer(x))
def one_mode(): return OneMode(lambda net, x: net.layer(x))
"""
FAULTS = {
    "key": "KeyError: 'lost'",
    "division": "ZeroDivisionError: .*zero",
    "file": "FileNotFoundError: .*nowhere.npy",
    "attribute": "AttributeError: .*head",
    "values": "one$",
    "none": "NotImplementedError",
    "leaves": "SystemExit: 0",
    "depth": "recursion",
    "end": "StopIteration",
    "size": "shapes cannot be multiplied",
}


@pytest.fixture
def theirs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    (tmp_path / "theirs.py").write_text(THEIRS, encoding="utf-8")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("option", ["--classifier", "--purifier"])
def test_so_does_one_inside_their_forward(fault, option, theirs, capsys):
    argv = [*GOOD["evaluation"], option, f"theirs:{fault}"]
    assert MAINS["evaluation"](argv) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    first = next(line for line in lines if line.startswith(f"theirs:{fault}: failed with "))
    assert "traceback of that code" in " ".join(lines[: lines.index(first) + 2])
    assert "Traceback (most recent call last):" in lines
    assert any('theirs.py", line' in line for line in lines)
    assert re.match(f"error: theirs:{fault}: failed with .*{FAULTS[fault]}", lines[-1])


def test_a_model_of_one_mode_is_taken(theirs, begun, capsys):
    status, _ = ends("evaluation", [*GOOD["evaluation"], "--classifier", "theirs:one_mode"], capsys)
    assert status == 0 and begun == ["evaluate"]


def test_a_shipped_model_that_does_not_fit_the_images_is_told_in_one_line(monkeypatch, capsys):
    colours = data.Split(torch.rand(20, 3, 28, 28), torch.zeros(20, dtype=torch.int64))
    monkeypatch.setattr(evaluating.data, "load", lambda *args, **options: colours)
    assert MAINS["evaluation"](GOOD["evaluation"]) == 1
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: model: fails on images \[3, 28, 28\].*\n", shown)


@pytest.mark.parametrize("name", ["mine:build", "mine:leaves", "broken:build"])
@pytest.mark.parametrize("option", ["--classifier", "--purifier"])
def test_a_fault_in_ones_own_code_keeps_its_traceback(name, option, begun, capsys):
    argv = [*GOOD["evaluation"], option, name]
    assert MAINS["evaluation"](argv) == 1 and begun == []
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0].startswith(f"{name}: failed with ") and "traceback of that code" in lines[0]
    assert any("Traceback" in line for line in lines)
    assert any(f'{name.split(":")[0]}.py", line' in line for line in lines)
    assert lines[-1].startswith(f"error: {name}: failed with ")


@pytest.mark.parametrize("room", MAINS)
@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped; the same command goes on"),
        (OSError(errno.ENOSPC, "No space left on device", "r.json"), 1, "No space .*r.json"),
        (RuntimeError("Caught X\nOriginal Traceback\n  File\nRuntimeError: a.png\n"), 1, "a.png$"),
        (ValueError("a\nb  c"), 1, "error: a b c$"),
    ],
)
def test_what_stops_the_work_is_told_in_one_line(
    room, error, status, line, begun, monkeypatch, capsys
):
    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(training, "fit", stop)
    monkeypatch.setattr(evaluating, "evaluate", stop)
    one = replace(commands.COMMANDS["mnist-variants"], run=stop)
    monkeypatch.setitem(commands.COMMANDS, "mnist-variants", one)
    more = {"training": ["--out", "o"], "experiments": ["--results", "r", "--work", "w"]}
    found, shown = ends(room, GOOD[room] + more.get(room, []), capsys)
    assert found == status and re.search(line, shown)


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    from apudae.core.files import write_aside

    def full(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write tells it

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*r\.json'"):
        write_aside(tmp_path / "r.json", b"{}")


def test_the_status_names_a_damaged_record_and_shows_the_rest(tmp_path, capsys):
    results = tmp_path / "results"
    results.mkdir()
    for name in ("mnist_tuning", "cifar10_selection"):
        (results / f"{name}.json").write_text('{"schema": 1, "rows": [', encoding="utf-8")
    (results / "mnist_ladder.json").write_text("[]", encoding="utf-8")
    folders = [x for o in ("results", "work") for x in (f"--{o}", str(tmp_path / o))]
    with pytest.raises(SystemExit, match=r"^error: .*mnist_tuning\.json") as end:
        MAINS["experiments"](["status", *folders])
    assert "\n" not in end.value.code and "mnist_ladder.json" in end.value.code
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) >= {*experiments.names(), "mnist-cnn"}
    for name in ("mnist_tuning", "mnist_ladder", "cifar10_selection"):
        assert f"cannot be read: {results / name}.json" in lines[name]
    assert "there" in lines["mnist-cnn"] and "missing" in lines["mnist_selection"]


# --- consoles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437", "latin-1"])
def test_a_report_is_shown_on_any_console(encoding, monkeypatch, tmp_path):
    import io

    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    parser = evaluating.parser()
    arguments.parsed(parser, GOOD["evaluation"])
    print("λ ≤ ε = 0.1 → σ ∞ 字 −1 📈 ·")
    screen.flush()
    shown = screen.buffer.getvalue().decode(encoding)
    assert "= 0.1" in shown and "字" not in shown
    if encoding in ("cp1252", "ascii", "latin-1"):
        assert "lambda <= eps = 0.1 ? sigma inf ? -1 ?" in shown


@pytest.mark.parametrize("room", MAINS)
def test_help_is_shown_on_a_console_that_is_not_utf_8(room):
    command = [sys.executable, "-m", f"apudae.{room}", "--help"]
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = subprocess.run(command, env=env, capture_output=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert b"usage: python -m apudae" in shown.stdout


# --- what stands in records ----------------------------------------------------------------------


def test_numpys_numbers_reach_a_record_as_pythons(tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    x, y = data.load("mnist", "validation").take(np.int64(4))
    tiny = evaluation.Budget(**dict.fromkeys(("pgd", "apgd", "queries"), np.int32(2)))
    options = {"eps": np.float32(0.125), "seed": np.int64(3), "batch_size": np.int16(4)}
    quiet = {"curves": np.bool_(False), "progress": False, "budget": tiny}
    with pytest.warns(evaluation.AttackWarning):
        report = evaluate(net, x, y, record=tmp_path / "new" / "dir" / "r", **options, **quiet)
    stored = report.settings
    assert (stored["eps"], stored["seed"]) == (0.125, 3) and type(stored["seed"]) is int
    assert (tmp_path / "new" / "dir" / "r.json").is_file()
    counts = {"n": np.int64(20), "n0": np.uint8(10), "sigma": np.float64(0.5)}
    made = partial(certify, net, x, noise_trained=True, record=tmp_path / "new2" / "c.json")
    first = made(seed=np.int64(1), alpha=np.float64(0.1), **counts)
    again = made(seed=1, alpha=0.1, n=20, n0=10, sigma=0.5)
    assert torch.equal(first.votes, again.votes)


@pytest.mark.parametrize("call", ["evaluate", "certify"])
@pytest.mark.parametrize("place", ["file/r", "/proc/none/r"])
def test_a_record_that_cannot_be_written_is_refused_before_the_work(call, place, begun):
    class Asked(torch.nn.Module):
        def forward(self, x):
            begun.append(len(x))
            return x.flatten(1)[:, :10]

    x, y = data.load("mnist", "validation").take(4)
    with pytest.raises(ValueError, match="record: cannot write to the folder"):
        if call == "evaluate":
            evaluate(Asked(), x, y, eps=0.1, record=place)
        else:
            certify(Asked(), x, sigma=0.1, noise_trained=True, record=place)
    assert begun == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    value=st.one_of(
        st.none(), st.booleans(), st.text(max_size=3), st.integers(), st.floats(), st.binary()
    )
)
def test_a_seed_a_count_and_a_number_are_taken_or_named(value):
    for check in (arguments.check_seed, arguments.check_count, arguments.check_number):
        try:
            found = check(value, "name") if check is not arguments.check_seed else check(value)
        except ValueError as error:
            assert re.match("name: |seed: ", str(error)) and "\n" not in str(error)
        else:
            assert type(found) in (int, float) and found == value and not isinstance(value, bool)
