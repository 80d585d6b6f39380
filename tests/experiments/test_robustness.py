import pytest
import torch
from apudae.plan import BUDGETS
from apudae.report import Report

from apudae import attacks, checkpoints, data, experiments, records, robustness, scores
from apudae.evaluation import model_fingerprint


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(robustness, "LADDER_EPSILONS", (0.3,))
    monkeypatch.setattr(robustness, "WEIGHTS", (0.1,))


def test_a_ladder_is_stored_rung_by_rung_and_goes_on(small, tmp_path, monkeypatch):
    asked, square = [], attacks.square

    def dies(model, *args, **options):
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return square(model, *args, queries=5, **{k: options[k] for k in ("eps",)})

    monkeypatch.setattr(attacks, "square", dies)
    monkeypatch.setattr(attacks, "apgd", lambda m, x, y, **o: attacks.bim(m, x, y, eps=o["eps"]))
    folder = tmp_path
    with pytest.raises(KeyboardInterrupt):
        robustness.mnist_ladder(checkpoints.WEIGHTS, folder, n=6)
    assert not robustness.is_complete(robustness.LADDER, folder)
    begun = records.load(robustness.LADDER, folder)["rows"]
    robustness.mnist_ladder(checkpoints.WEIGHTS, folder, n=6)
    record = records.load(robustness.LADDER, folder)
    assert begun.items() <= record["rows"].items()
    assert robustness.is_complete(robustness.LADDER, folder)
    assert len(asked) == 3
    for name in ("direct", "chosen"):
        assert all(len(right) == 6 for right in robustness.ladder(record, name, 0.3).values())
    with pytest.raises(ValueError, match="was made with another data; move it"):
        robustness.mnist_ladder(checkpoints.WEIGHTS, folder, n=7)


def test_recomputing_a_part_of_the_shipped_ladder_agrees():
    record = records.load(robustness.LADDER)
    assert robustness.is_complete(robustness.LADDER)
    n = record["data"]["n"]
    x, y = data.load("mnist", "validation").take(n)
    assert data.fingerprint(x) == record["data"]["sha256"]
    parts = [checkpoints.load(name) for name in ("mnist-cnn", "mnist-dae")]
    model = robustness.defended("direct", *parts)
    for rung in ("classifier alone", "BPDA", "full gradient"):
        view = robustness.rungs(model, x, 0.3)[rung]
        stop = rung != "classifier alone"
        found = attacks.apgd(view, x, y, eps=0.3, steps=50, early_stop=stop)
        right = scores.outcomes(model, found, y)
        agree = right == robustness.ladder(record, "direct", 0.3)[rung]
        assert agree.double().mean() >= 0.97


@pytest.mark.parametrize("name", [n for n in robustness.expected() if n in records.names()])
def test_shipped_reports_hold_what_they_say(name):
    if name == robustness.LADDER:
        return
    report = Report.load(name)
    defense, eps = name.removeprefix("mnist_robust_").rsplit("_", 1)
    assert report.n == robustness.digits(defense, float(eps))
    assert report.complete and report.draws in (1, 20)
    assert report.worst.correct <= report.clean.correct
    assert report.settings["options"]["pgd"] == BUDGETS["reference"].pgd
    assert len(report.right()) == report.n


@pytest.mark.parametrize("name", ["direct", "chosen"])
def test_shipped_images_of_the_worst_case_are_misread_again(name, full_data):
    report = robustness.load(name, 0.2)
    x, y = data.load("mnist", "test", profile="full", root=full_data).take(report.n)
    model = robustness.defended(name, *map(checkpoints.load, ("mnist-cnn", "mnist-dae")))
    assert data.fingerprint(x) == report.settings["data_sha256"]
    assert model_fingerprint(model) == report.settings["model_sha256"]
    assert (report.images - x).abs().max() <= 0.2 + 1e-6
    assert report.images.min() >= 0 and report.images.max() <= 1
    agree = scores.outcomes(model, report.images, y) == report.right()
    assert agree.double().mean() >= 0.99  # another processor may round otherwise


def test_the_defenses_are_those_of_the_records():
    parts = [checkpoints.load(name) for name in ("mnist-cnn", "mnist-dae")]
    chosen = robustness.defended("chosen", *parts).purifier
    record = records.load("mnist_variants")["chosen"]
    assert all(chosen.options[k] == v for k, v in record["options"].items())
    default = robustness.defended("default", *parts)
    assert default.random and robustness.budget("default", 0.3) == robustness.LIGHT
    x = torch.rand(2, 1, 28, 28)
    assert robustness.defended("direct", *parts)(x).shape == (2, 10)


def test_the_status_knows_them(tmp_path, capsys):
    experiments.main(["status", "--results", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "missing: python -m apudae.experiments mnist-ladder" in shown
    assert shown.count("missing: python -m apudae.experiments mnist-robustness") == 9
