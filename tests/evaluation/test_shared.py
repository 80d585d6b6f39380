"""One evaluation by several processes: what comes out, and what happens when one of them dies."""

import json
import os
import subprocess
import sys
import time

import pytest
import support
import torch
from torch.distributed.run import get_args_parser

from apudae.evaluation.__main__ import parser as of_evaluation
from apudae.experiments.__main__ import parser as of_experiments
from apudae.training.__main__ import parser as of_training

WORK = """
from apudae.evaluation import Budget, evaluate
from apudae.evaluation.protocol import Evaluation
from apudae.purification import Adaptive, Defended, Direct

generator = torch.Generator().manual_seed(5)
classifier = support.Linear((1, 4, 4), 5, generator)
dae = support.SmoothDAE(generator)
x = torch.rand(23, 1, 4, 4, generator=generator, dtype=torch.float64)
budget = Budget(pgd=5, apgd=4, targets=2, queries=8, draws=2, weights=(0.1,), curve=9, scoring=4)
walk = {"steps": 2, "step_size": 0.05}
models = {
    "direct": Defended(classifier, Direct(dae)),
    "walk": Defended(classifier, Adaptive(dae, **walk)),
    "noisy": Defended(classifier, Adaptive(dae, noise=0.05, calibration=(0.1, 0.5), **walk)),
    "bare": classifier,
}
with torch.no_grad():
    y = models["walk"](x).argmax(1)

def asked(name, record=None, n=23, **options):
    options = {"eps": 0.03, "budget": budget, "record": record, "progress": False} | options
    report = evaluate(models[name], x[:n], y[:n], **options)
    told = report.to_dict()
    for row in told["rows"]:
        for cost in ("seconds", "calls", "mebibytes"):
            row.pop(cost)
    del told["made"], told["settings"]
    return [told, report.images.tolist()]

def work(rank, size):
    if job == "same":
        return {name: asked(name) for name in models}
    if job == "dies":
        attack = Evaluation._attack
        def dying(self, one):
            if self.report.rows and one.name == "BPDA" and rank == 1:
                os._exit(9)
            attack(self, one)
        Evaluation._attack = dying
        return asked("noisy", out / "record")
    if job == "goes on":
        attack, made = Evaluation._attack, []
        def counted(self, one):
            kept = one.run
            def run(z, labels, **options):
                made.append([one.name, len(z)])
                return kept(z, labels, **options)
            attack(self, type(one)(**vars(one) | {"run": run}) if one.kind != "own" else one)
        Evaluation._attack = counted
        return [asked("noisy", out / "record"), made]
    wrong = {
        "another seed": lambda: asked("noisy", out / "record", seed=1),
        "too many": lambda: asked("direct", n=size - 1),
        "not shared": lambda: asked("direct", out / f"alone-{rank}" / "record"),
        "they differ": lambda: asked("direct", n=20 + rank),
    }
    said = {}
    for name, call in wrong.items():
        try:
            call()
        except ValueError as error:
            said[name] = str(error)
    return said
"""


def start(folder, job, *sizes):
    return support.forked(folder, WORK, job, sizes)


def found(folder, job, size, rank=0):
    return json.loads((folder / f"{job}-{size}-{rank}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With reports of one process, and of 2, 3 and 5; 23 images cannot be divided evenly."""
    folder = tmp_path_factory.mktemp("shared")
    start(folder, "same", 1, 2, 3, 5)
    return folder


@pytest.mark.parametrize("size", [2, 3, 5])
def test_several_processes_find_what_one_finds_outcome_by_outcome(folder, size):
    alone = found(folder, "same", 1)
    for rank in range(size):
        assert found(folder, "same", size, rank) == alone
    rows = {row["name"]: row for row in alone["noisy"][0]["rows"]}
    assert len(rows) > 8 and rows["one known draw"]["fixed"]
    assert alone["noisy"][0]["rescored"]
    assert list(alone["noisy"][0]["curves"]) == ["ε", "steps", "draws"]
    standing = [row["misread"].count(-1) for row in alone["walk"][0]["rows"]]
    assert 0 < standing[-1] < 23  # some fell, and were left alone


def test_what_a_dead_process_left_another_number_of_them_goes_on_with(folder):
    since = time.monotonic()
    said = start(folder, "dies", 3)
    assert time.monotonic() - since < 60
    assert said.count("process 1 has not been heard of") + said.count("another process has") == 2
    assert "run it again to go on" in said and "[3, 3, 9]" in said
    parts = sorted(path.name for path in folder.glob("record*.json"))
    assert parts == [f"record.part-{k}-of-3.json" for k in (1, 2, 3)]
    start(folder, "goes on", 2)
    for rank in range(2):
        report, made = found(folder, "goes on", 2, rank)
        assert report == found(folder, "same", 1)["noisy"]
        names = [name for name, _ in made]
        assert "PGD" not in names and "transfer" not in names  # all three had them
        # BPDA is made for the images of the one that died, and of no other.
        assert sum(n for name, n in made if name == "BPDA") < 23 / 2
    assert [path.name for path in folder.glob("record*.json")] == ["record.json"]
    assert len(list(folder.glob("record*.safetensors"))) == 1


def test_every_process_says_what_is_wrong(folder):
    start(folder, "goes on", 2)  # the record is there
    start(folder, "wrong", 3)
    for rank in range(3):
        said = found(folder, "wrong", 3, rank)
        assert "was made with another seed" in said["another seed"]
        assert "expected an integer >= 3, got 2" in said["too many"]
        assert "is not shared, process [1, 2] does not see it" in said["not shared"]
        assert said["they differ"].startswith("processes: they differ in data_exact, data_sha256")


@pytest.mark.parametrize("parser", [of_evaluation, of_experiments, of_training])
def test_torchrun_hands_every_option_on(parser):
    for action in parser()._actions:
        if options := [o for o in action.option_strings if o.startswith("--")]:
            given = ["--nproc-per-node", "2", "-m", "module", options[0], "1"]
            assert get_args_parser().parse_args(given).training_script_args == [options[0], "1"]


def test_the_command_in_two_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "apudae.evaluation", "--images", "21", "--eps", "0.1", "--no-curves"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    shared = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path}
    done = subprocess.run([*command, "--record", "mine"], timeout=240, **shared)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("n = 21") == 1  # one of them speaks
    alone = support.run(
        support.shipped("mnist-cnn"), support.digits(21, "test"), eps=0.1, curves=False
    )
    stored = json.loads((tmp_path / "mine-0.1.json").read_text())
    both = [[row["misread"] for row in rows] for rows in (alone.to_dict()["rows"], stored["rows"])]
    same = torch.tensor(both[0]) == torch.tensor(both[1])
    assert same.double().mean() >= 0.99
