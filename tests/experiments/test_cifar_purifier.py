"""CIFAR-10's purifier and certificates, brief; and that what is missing is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from apudae.certification import certify
from apudae.plan import Budget
from apudae.recipes import Recipe
from apudae.report import Report

from apudae import certified, checkpoints, cifar_purifier, data, experiments, records, scores
from apudae.purification import Defended, Direct

pytestmark = pytest.mark.filterwarnings("ignore::apudae.checks.AttackWarning")
SMALL = Budget(
    pgd=2, apgd=2, restarts=1, targets=1, queries=3, draws=1, weights=(0.1,), curve=2, scoring=2
)


@pytest.fixture
def brief(monkeypatch, tmp_path):
    """Eight images, and a folder with nothing but the classifier."""
    load = data.load

    def few(name, split, *, root=None, dtype=torch.float32, **options):
        assert name == "cifar10-jpeg" and not options
        images, labels = load("cifar10-20", "test").take(8)
        return data.Split((255 * images).byte() if dtype == torch.uint8 else images, labels)

    monkeypatch.setattr(data, "load", few)
    folders = {part: tmp_path / part for part in ("weights", "results", "work")}
    folders["weights"].mkdir()
    known = json.loads((checkpoints.WEIGHTS / "manifest.json").read_text())
    net = known["cifar10-resnet"]
    shutil.copy(checkpoints.WEIGHTS / net["file"], folders["weights"])
    (folders["weights"] / "manifest.json").write_text(json.dumps({"cifar10-resnet": net}))
    return folders


def run(name, folders):
    told = [part for kind, path in folders.items() for part in (f"--{kind}", str(path))]
    experiments.main([name, "--data", "cifar10-jpeg", *told])


def test_the_purifier_is_trained_through_the_classifier_and_judged_once(brief, monkeypatch, capsys):
    for name, value in {"EPOCHS": 1, "DEPTH": 4, "N": 4, "BUDGET": SMALL}.items():
        monkeypatch.setattr(cifar_purifier, name, value)
    run("cifar10-purifier", brief)
    about = checkpoints.about("cifar10-purifier", brief["weights"])
    assert about["classifier_sha256"] == checkpoints.about("cifar10-resnet")["sha256"]
    report = Report.load(cifar_purifier.VERDICT, brief["results"])
    assert report.complete and report.n == 4 and cifar_purifier.is_judged(brief["results"])
    assert (report.settings["norm"], report.settings["eps"]) == ("linf", 8 / 255)
    assert "CIFAR-10 (JPEG copy)" in report.settings["title"]
    load = checkpoints.load
    whole = Defended(
        load("cifar10-resnet"), Direct(load("cifar10-purifier", brief["weights"]))
    ).eval()
    x, y = data.load("cifar10-jpeg", "test").take(4)
    assert torch.equal(report.right("clean"), scores.outcomes(whole, x, y))
    assert torch.equal(report.right(), scores.outcomes(whole, report.images, y))
    files = {p: p.read_bytes() for k in ("weights", "results") for p in brief[k].iterdir()}
    run("cifar10-purifier", brief)
    assert files == {path: path.read_bytes() for path in files}


def test_colour_images_are_certified_the_same_way(brief, monkeypatch):
    small = {"SIGMAS": (0.25,), "N": 3, "DRAWS": 200, "ATTACKED": 2, "RADII": (0.5,)}
    for name, value in (small | {"STEPS": 2, "PER_GRADIENT": 2, "JUDGES": 100}).items():
        monkeypatch.setattr(certified, name, value)
    options = {"epochs": 1, "batch_size": 4, "seed": 0}
    task = certified.CIFAR10.recipe(0.25).task
    quick = Recipe("rednet", task, options, {"depth": 4})
    subject = certified.Subject("cifar10", "images", "cifar10-resnet", lambda sigma: quick, {})
    monkeypatch.setattr(certified, "CIFAR10", subject)
    assert certified.missing(brief["results"], subject) != []
    run("cifar10-certified", brief)
    assert certified.missing(brief["results"], subject) == []
    record = records.load("cifar10_certified", brief["results"])
    assert record["data"]["name"] == "CIFAR-10 (JPEG copy)"
    x, y = data.load("cifar10-jpeg", "test").take(3)
    assert torch.equal(certified.labels(record), y)
    model = certified.base("denoised", 0.25, brief["weights"], subject=subject)
    found = certified.certificates(record, "denoised", 0.25)
    assert torch.equal(certify(model, x, sigma=0.25, n=200).votes, found.votes)


def test_what_only_a_gpu_makes_is_named(capsys):
    experiments.main(["status"])
    told = capsys.readouterr().out
    for name, command in (
        ("cifar10-purifier", "cifar10-purifier, on a GPU"),
        ("cifar10_purifier_verdict", "cifar10-purifier, on a GPU"),
        ("cifar10_certified", "cifar10-certified, on a GPU"),
    ):
        (line,) = [line for line in told.splitlines() if line.split()[1:2] == [name]]
        assert "there" in line or command in line
