"""Two runs in one folder lose nothing, and neither does a kill at any step of a writing.

The scenes play in processes of their own: ``python test_together.py FOLDER SCENE...``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from apudae import models, training
from apudae.core import files, record
from apudae.core.record import Record
from apudae.data import Split
from apudae.evaluation import certify
from apudae.experiments import Place, recipes
from apudae.experiments.recipes import Recipe

# --- what is played ----------------------------------------------------------------------------


def forked(work):
    """A child that does some work, silently; its exit status is its number of exceptions."""
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        work()
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying(work, at):
    """Do some work, but be killed at a step of its writing: before it, half way, or after it."""
    left = [at]

    def step(function):
        def act(*args, **options):
            for moment in ("before", "after"):
                left[0] -= 1
                if left[0] < 0:
                    if function is write and moment == "before":
                        write(args[0], args[1][: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                if moment == "before":
                    found = function(*args, **options)
            return found

        return act

    write = Path.write_bytes
    Path.write_bytes = step(write)
    os.replace, os.unlink = step(os.replace), step(os.unlink)
    work()


def killed_everywhere(work, check):
    """Kill some work at its first step, its second, ... until it ends; look each time."""
    steps = 0
    while True:
        status = ended(forked(lambda: dying(work, steps)))  # noqa: B023
        check(status)
        if status == 0:
            return steps
        assert status == -signal.SIGKILL
        steps += 1


def net(seed=0):
    return models.build("mnist-cnn", width=1, seed=seed)


def store(name, folder, seed=0):
    models.save(name, net(seed), architecture="mnist-cnn", options={"width": 1}, folder=folder)


PIXELS = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
IMAGES = Split(PIXELS, torch.arange(4))
OPTIONS = {"epochs": 2, "batch_size": 2, "precision": "float32"}


def recipe():
    def task(classifier):
        os.write(2, b"trained\n")
        return training.classification

    warm = Recipe("mnist-cnn", options=OPTIONS | {"epochs": 1})
    return Recipe("mnist-cnn", task, OPTIONS, {"width": 1}, warm_up=warm)


def place(folder):
    return Place(None, folder / "weights", folder / "results", folder / "work")


def train(folder):
    images = lambda where: IMAGES  # noqa: E731
    recipes.train_missing(
        {"a": recipe()}, lambda: IMAGES, place(folder), test=images, progress=False
    )


def rows(folder, first, last, done=None):
    toy = Record("toy", {"eps": 0.1}, folder, keys=("k",))
    for k in range(first, last):
        toy.measure((k,), lambda: {"n": 4, "correct": 2, "outcomes": "a0"})
        if done is not None:
            done.open("a").write(f"{k}\n")


def pairs(folder):
    """Two processes that begin together a hundred times: rows of one record, weights, names."""
    together = multiprocessing.get_context("fork").Barrier(2)

    def work(who):
        for number in range(100):
            together.wait(60)
            rows(folder / str(number), 2 * who, 2 * who + 2)
            store(f"m{who}", folder / str(number), who)

    children = [forked(lambda who=who: work(who)) for who in (0, 1)]
    assert [ended(pid) for pid in children] == [0, 0]
    for here in folder.iterdir():
        found = [row["k"] for row in record.load("toy", here)["rows"]]
        assert sorted(found) == list(range(4)), found
        assert models.names(here) == ["m0", "m1"]
        for who in (0, 1):
            models.load(f"m{who}", here)
        assert len(list(here.iterdir())) == 4, list(here.iterdir())  # no locks, nothing half


def kills(folder):
    """Kills at every step of saving weights, a row, an epoch."""
    folder.mkdir(exist_ok=True)

    def saved(status):
        known = [net(seed).state_dict() for seed in (0, 1)]
        found = models.load("m", here).state_dict()
        assert any(
            all(torch.equal(found[k], v.half().float()) for k, v in w.items()) for w in known
        )
        store("m", here, 0)  # the next run
        assert len(list(here.iterdir())) == 2, list(here.iterdir())

    here = folder / "weights"
    store("m", here, 0)
    print("weights", killed_everywhere(lambda: store("m", here, 1), saved))

    def measured(status):
        told = done.read_text().split() if done.exists() else []
        there = (here / "toy.json").exists()
        found = [str(row["k"]) for row in record.load("toy", here)["rows"]] if there else []
        assert set(told) <= set(found), (told, found)

    here, done = folder / "record", folder / "done"
    print("record", killed_everywhere(lambda: rows(here, 0, 3, done), measured))
    assert [path.name for path in here.iterdir()] == ["toy.json"]

    def fit():
        model = net()
        training.fit(model, *IMAGES, checkpoint=path, progress=False, **OPTIONS)
        torch.save(model.state_dict(), final)

    path, final, whole = folder / "fit" / "run.pt", folder / "final", []
    print("training", killed_everywhere(fit, lambda status: None))
    whole.append(torch.load(final))
    path.unlink()
    assert ended(forked(fit)) == 0
    for key, value in torch.load(final).items():
        assert torch.equal(value, whole[0][key])
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]


def training_kills(folder):
    """Kills at every step of a whole training: warm-up, training, measuring, saving."""

    def trained(status):
        if status:  # whatever was killed, the next run finds its way
            assert ended(forked(lambda: train(here))) == 0
        about = models.about("a", here / "weights")
        sums.add(about["sha256"])
        assert about["measured"]["n"] == 4
        assert list((here / "work").iterdir()) == [], list((here / "work").iterdir())
        left = sorted(path.name for path in (here / "weights").iterdir())
        assert [name[:2] for name in left] == ["a-", "ma"], left
        for name in left:
            (here / "weights" / name).unlink()

    here, sums = folder / "recipe", set()
    print(killed_everywhere(lambda: train(here), trained))
    assert len(sums) == 1


def alone(folder):
    """Two that miss one network; a training whose file another one has, which is killed then."""
    children = [forked(lambda: train(folder)) for _ in range(2)]
    assert [ended(pid) for pid in children] == [0, 0]
    assert models.names(folder / "weights") == ["a"]
    path = folder / "fit" / "run.pt"

    def long(model, x, y, generator):
        (folder / "begun").touch()
        time.sleep(60)

    def fit(task):
        options = {"epochs": 1, "precision": "float32", "progress": False}
        training.fit(net(), *IMAGES, task=task, checkpoint=path, **options)

    pid = forked(lambda: fit(long))
    while not (folder / "begun").exists():
        time.sleep(0.01)
    start = time.monotonic()
    try:
        fit(training.classification)
    except RuntimeError as error:
        print(str(error).replace(str(folder), ""), time.monotonic() - start < 10)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    fit(training.classification)
    print(sorted(p.name for p in path.parent.iterdir()))


SCENES = {play.__name__: play for play in (pairs, kills, training_kills, alone)}


def played(folder, *scenes):
    """What scenes have said, on both of their channels."""
    command = [sys.executable, __file__, str(folder), *scenes]
    one = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=one)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout.splitlines(), found.stderr.splitlines()


# --- what is asked -----------------------------------------------------------------------------


def test_two_processes_lose_nothing_and_neither_do_kills(tmp_path):
    """A hundred pairs; kills at each step; one of two that trains. In one go: imports take long."""
    said, told = played(tmp_path, "pairs", "kills", "alone")
    steps = dict(line.split() for line in said if len(line.split()) == 2)
    assert steps.keys() == {"weights", "record", "training"}
    assert min(map(int, steps.values())) >= 6  # so that it was hit in the middle
    assert told.count("trained") == 1  # the other one has waited, and found it
    assert said[-2:] == [
        "/fit/run.pt is in use: another run writes it; wait for its end, or name another True",
        "['run.pt']",
    ]


@pytest.mark.slow
def test_a_kill_at_any_step_of_a_training_leaves_what_it_would_have_become(tmp_path):
    said, _ = played(tmp_path, "training_kills")
    assert int(said[-1]) >= 30


def test_who_holds_a_file_may_do_so_again_and_others_are_told(tmp_path):
    path, found = tmp_path / "new" / "x", []

    def other():
        try:
            with files.locked(path, wait=0.05):
                found.append("in")
        except RuntimeError as error:
            found.append(str(error))

    with files.locked(path), files.locked(path):
        files.write_aside(path, b"1")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert found[0] == f"{path} is in use: another run writes it; wait for its end, or name another"
    assert found[1:] == ["in"] and [p.name for p in path.parent.iterdir()] == ["x"]


def test_threads_that_write_one_file_leave_one_of_theirs(tmp_path):
    def write(number):
        for _ in range(20):
            files.write_aside(tmp_path / "x", bytes([number]) * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / "x").read_bytes()
    assert len(content) == 1000 and len(set(content)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_killed_writers_left_goes_and_what_is_being_written_stays(tmp_path):
    left = [".a.json.part.apudae", ".a.json.lock.apudae", ".b.part.apudae"]
    others = [".git", ".a.json.123", "a.part", ".part.apudae-x", ".hidden"]
    for name in left + others:
        (tmp_path / name).touch()
    held = threading.Event(), threading.Event()

    def writes():
        with files.locked(tmp_path / "c"):
            (tmp_path / ".c.part.apudae").touch()
            held[0].set()
            held[1].wait(20)

    thread = threading.Thread(target=writes)
    thread.start()
    held[0].wait(20)
    files.sweep(tmp_path)
    found = {path.name for path in tmp_path.iterdir()}
    held[1].set()
    thread.join()
    assert found == {*others, ".c.lock.apudae", ".c.part.apudae"}
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(others)
    files.sweep(tmp_path / "nowhere")


def test_who_sweeps_a_folder_is_not_taken_for_a_run_at_its_files(tmp_path):
    """Each has a file of its own, and looks after the folder that they share."""

    def holds(number):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with files.held(tmp_path / f"{number}.json", "record"):
                pass

    children = [forked(lambda number=number: holds(number)) for number in range(4)]
    assert [ended(child) for child in children] == [0] * 4


class Fixed(nn.Module):
    def forward(self, x):
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x.flatten(1)[:, :1]


@pytest.mark.parametrize("ending", ["", ".json"])
def test_a_record_that_another_run_fills_is_refused(ending, tmp_path):
    x = torch.rand(2, 1, 4, 4)
    options = {"sigma": 0.5, "n": 20, "noise_trained": True, "record": tmp_path / f"r{ending}"}
    errors = []

    def other():
        try:
            certify(Fixed(), x, **options)
        except RuntimeError as error:
            errors.append(str(error))

    start = time.monotonic()
    with files.locked(tmp_path / "r.json"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert time.monotonic() - start < 30  # before the work, and not when it is stored
    assert errors == [
        f"{tmp_path / 'r.json'} is in use: another run writes it; wait for its end, or name another"
    ]
    certify(Fixed(), x, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_training_goes_on_with_as_many_processes_as_it_was_begun_with(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    options = {"epochs": 1, "checkpoint": path, "precision": "float32", "progress": False}
    training.fit(net(), *IMAGES, **options)
    state = files.read_torch(path)
    assert state["settings"]["processes"] == 1
    state["settings"]["processes"] = 2
    files.write_torch(path, state)
    with pytest.raises(ValueError, match=r"run\.pt belongs to a run with processes 2, this one"):
        training.fit(net(), *IMAGES, **options)


if __name__ == "__main__":
    import torch._dynamo  # an optimizer asks for it: once, and not in each child

    for scene in sys.argv[2:]:
        SCENES[scene](Path(sys.argv[1], scene))
