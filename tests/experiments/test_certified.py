"""The record of certificates, brief; and what is read from it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from apudae.certification import certify

from apudae import certified, checkpoints, data, experiments, recipes, records


@pytest.fixture
def brief(monkeypatch, tmp_path):
    """Six digits, one noise level, and a DAE trained on a few digits."""
    load = data.load

    def few(name, split, **options):
        options.pop("profile", None)
        return load(name, split, profile="quick", dtype=options.get("dtype", torch.float32)).take(
            200
        )

    monkeypatch.setattr(certified.data, "load", few)
    monkeypatch.setattr(
        certified, "DAE_TRAINING", recipes.DAE_TRAINING | {"epochs": 1, "batch_size": 50}
    )
    for name, value in {
        "SIGMAS": (0.25,),
        "N": 6,
        "DRAWS": 200,
        "ATTACKED": 4,
        "RADII": (0.5, 2.0),
        "STEPS": 2,
        "PER_GRADIENT": 2,
        "JUDGES": 100,
    }.items():
        monkeypatch.setattr(certified, name, value)
    folders = {part: tmp_path / part for part in ("weights", "results", "work")}
    folders["weights"].mkdir()
    whole = checkpoints.WEIGHTS
    known = json.loads((whole / "manifest.json").read_text())
    (folders["weights"] / "manifest.json").write_text(json.dumps({"mnist-cnn": known["mnist-cnn"]}))
    for path in whole.glob("mnist-cnn*"):
        shutil.copy(path, folders["weights"])
    return folders


def test_a_run_and_what_it_says(brief, capsys):
    arguments = [part for name, path in brief.items() for part in (f"--{name}", str(path))]
    experiments.main(["mnist-certified", *arguments])
    assert capsys.readouterr().out.count(" s\n") == 4
    record = records.load(certified.RECORD, brief["results"])
    assert certified.missing(brief["results"]) == []
    assert list(brief["work"].iterdir()) == []
    x, y = data.load("mnist", "test")
    assert torch.equal(certified.labels(record), y[:6])
    model = certified.base("denoised", 0.25, brief["weights"])
    again = certify(model, x[:6], sigma=0.25, n=200)
    found = certified.certificates(record, "denoised", 0.25)
    assert torch.equal(found.predictions, again.predictions)
    assert torch.equal(found.votes, again.votes) and (found.n, found.alpha) == (200, 0.001)
    for radius in certified.RADII:
        assert certified.attacked(record, 0.25, radius).shape == (4,)
    bare = certified.certificates(record, "bare", 0.25)
    assert bare.accuracy(y[:6]).correct >= 5  # the shipped classifier, under slight noise
    experiments.main(["mnist-certified", *arguments])  # nothing is left to do
    assert capsys.readouterr().out == ""


def test_a_record_made_otherwise_is_not_gone_on_with(brief, monkeypatch):
    where = [brief[part] for part in ("weights", "results", "work")]
    certified.run(None, *where)
    monkeypatch.setattr(certified, "STEPS", 3)
    with pytest.raises(ValueError, match=r"mnist_certified\.json was made with another attack"):
        certified.run(None, *where)
