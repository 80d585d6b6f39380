"""Two processes on this machine's CPU, started as torchrun starts them."""

import json
import os
import socket
import subprocess
import sys
from contextvars import ContextVar

import pytest
import torch

from apudae import data, models, training
from apudae.core import processes
from apudae.core.scores import accuracy

WORKER = """
import json, os, runpy, sys, torch
from apudae import data, models, training
from apudae.core import processes
from apudae.evaluation import accuracy, outcomes

out = sys.argv[1]
torch.set_num_threads(1)
with processes.processes("cpu") as device:
    train = data.load("mnist", "train").take(1003)
    x, _ = train
    y = torch.arange(1003)  # a label is an image's own number
    seen = []

    def task(model, images, labels, generator):
        seen.append(labels.tolist())
        return training.classification(model, images, train.labels[labels], generator)

    model = models.build("mnist-cnn", width=8)
    history = training.fit(
        model, x, y, task=task, epochs=2, batch_size=50, checkpoint=out + "/run.pt",
        precision="float32",
    )
    held = data.load("mnist", "validation")
    score = accuracy(model, *held)
    loss = training.measure(model, *held, training.classification)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    normed = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(784), torch.nn.Linear(784, 10)
    )
    training.fit(normed, *train.take(1000), epochs=1, batch_size=50, ema=0.9, precision="float32")
    buffers = torch.cat([b.flatten().double() for b in normed.buffers()]).tolist()
    report = {
        "rank": processes.rank(), "world": processes.world(), "seen": seen, "loss": history.loss,
        "correct": score.correct, "measured": loss, "buffers": buffers, "weights": weights.tolist(),
    }
    open(f"{out}/{processes.rank()}.json", "w").write(json.dumps(report))
# A command, in the same two processes, for imports take long: they meet anew, at another port.
os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": sys.argv[2]}
sys.argv = ["", *sys.argv[3:]]
runpy.run_module("apudae.training", run_name="__main__", alter_sys=True)
"""


def torchrun(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each process says of itself, the folder of the command they run then, what it shows."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "worker.py"
    script.write_text(WORKER)
    options = ["--model", "mnist-dae", "--option", "width=4", "--data", "mnist", "--epochs", "1"]
    options += ["--task", "denoising", "--sigma", "0.3", "--out", str(folder / "command")]
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    shown = torchrun(str(script), str(folder), str(port), *options)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return found, folder / "command", shown


@pytest.fixture(scope="module")
def reports(both):
    return both[0]


def test_every_image_is_seen_once_per_epoch_by_one_of_two(reports):
    assert [report["world"] for report in reports] == [2, 2]
    steps = len(reports[0]["seen"])
    assert steps == len(reports[1]["seen"]) == 2 * 21
    for epoch in (slice(0, 21), slice(21, 42)):
        parts = [labels for report in reports for labels in report["seen"][epoch]]
        assert sorted(i for labels in parts for i in labels) == list(range(1003))


def test_two_processes_make_the_network_that_one_makes(reports):
    first, second = (torch.tensor(report["weights"]) for report in reports)
    assert torch.equal(first, second)
    x, y = data.load("mnist", "train").take(1003)
    model = models.build("mnist-cnn", width=8)
    history = training.fit(model, x, y, epochs=2, batch_size=50, precision="float32")
    alone = torch.cat([p.detach().flatten() for p in model.parameters()])
    # The same batches and the same gradients, but for the order in which they are added up.
    torch.testing.assert_close(first, alone, rtol=0, atol=2e-2)
    assert reports[0]["loss"] == reports[1]["loss"] == pytest.approx(history.loss, rel=1e-2)
    held = data.load("mnist", "validation")
    assert reports[0]["correct"] == reports[1]["correct"]
    assert abs(reports[0]["correct"] - accuracy(model, *held).correct) <= 15
    found = training.measure(model, *held, training.classification)
    assert reports[0]["measured"] == reports[1]["measured"] == pytest.approx(found, rel=0.1)


def test_batch_norm_ends_the_same_in_both(reports):
    assert reports[0]["buffers"] == reports[1]["buffers"]


def test_the_command_under_torchrun_writes_once(both):
    _, folder, shown = both
    assert shown.count("mean squared error") == 1
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".pt", ".safetensors"]
    about = models.about("mnist-dae", folder)
    assert about["training"]["sigma"] == [0.3]
    assert models.load("mnist-dae", folder).encoder[0].out_channels == 4


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with processes.processes("cpu") as device:
        assert (device.type, processes.world(), processes.rank()) == ("cpu", 1, 0)
    with pytest.raises(ValueError, match="device: expected 'auto', 'cpu' or 'cuda', got 'tpu'"):
        processes.processes("tpu").__enter__()
    with pytest.raises(ValueError, match="device: 1 processes need as many GPUs"):
        processes.processes("cuda").__enter__()


def test_a_store_that_is_gone_ends_a_process_with_the_words_of_the_others(monkeypatch):
    """Its holder had missed the dead one before this process did."""

    class Gone:
        def add(self, name, more):
            raise torch.distributed.DistNetworkError("recvValue failed")

    store = ContextVar("store")
    store.set(Gone())
    monkeypatch.setattr(processes, "_STORE", store)
    for ask in (lambda: processes.count("met"), lambda: processes.wait_for("met", 3)):
        with pytest.raises(SystemExit, match=r"process 0: another process has died.*run it again"):
            ask()
