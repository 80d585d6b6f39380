import re

import pytest
import torch

from apudae import data, experiments, gpu_runs, records


def test_status_lists_what_is_missing_and_what_is_there(tmp_path, capsys):
    experiments.main(["status"])
    shown = capsys.readouterr().out
    assert re.search("mnist-dae +there", shown)
    for name in gpu_runs.RUNS:
        assert name in shown
    experiments.main(["status", "--weights", str(tmp_path), "--results", str(tmp_path)])
    shown = capsys.readouterr().out
    assert shown.count("missing: python -m apudae.experiments mnist-weights") == 3
    assert shown.count("missing: python -m apudae.experiments mnist-baselines") == 7
    assert shown.count("not measured: python -m apudae.experiments gpu-training") == 4


def test_without_a_gpu_nothing_is_guessed(tmp_path):
    with pytest.raises(SystemExit, match="gpu-training needs a GPU"):
        experiments.main(["gpu-training", "--results", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_gpu_runs_are_recorded_one_by_one_and_not_repeated(tmp_path, monkeypatch):
    """The same steps on the CPU, with a few digits for every set."""
    asked, load = [], data.load

    def small(name, split, *, profile, root, dtype):
        asked.append(name)
        x, y = load("mnist", split, profile="quick", dtype=dtype).take(64)
        if name != "mnist":
            x = torch.nn.functional.pad(x, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
        return data.Split(x, y)

    monkeypatch.setattr(gpu_runs.data, "load", small)
    runs = {name: recipe | {"epochs": 1} for name, recipe in gpu_runs.RUNS.items()}
    monkeypatch.setattr(gpu_runs, "RUNS", {"REDNet-30": runs["REDNet-30"]})
    gpu_runs.run(None, tmp_path, device="cpu")
    monkeypatch.setattr(gpu_runs, "RUNS", runs)
    asked.clear()
    gpu_runs.run(None, tmp_path, device="cpu")
    assert asked == ["mnist"] * 4 + ["cifar10-jpeg"] * 2  # REDNet was not run again
    found = records.load("gpu_training", tmp_path)["runs"]
    assert found.keys() == runs.keys()
    assert found["REDNet-30"]["data"] == "CIFAR-10 (JPEG copy)"
    assert found["REDNet-30"]["mse"] > 0
    assert found["CIFAR-10 classifier"]["n"] == 64
    rows = experiments.status(tmp_path, tmp_path)
    assert [state for kind, _, state in rows if kind == "GPU figure" and "not" in state] == []
