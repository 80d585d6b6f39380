import json

import pytest
import torch

from apudae import attacks, checkpoints, data, experiments, purification, records
from apudae.evaluation import outcomes
from apudae.purification import Defended, Direct


def test_a_record_says_what_made_it_and_comes_back(tmp_path):
    records.save("mine", {"rows": [1, 2], "what": "é"}, folder=tmp_path)
    record = records.load("mine", tmp_path)
    assert record["rows"] == [1, 2]
    assert {"apudae", "torch", "numpy", "scipy", "python", "device", "date"} == record[
        "made"
    ].keys()
    assert records.names(tmp_path) == ["mine"]


def test_unknown_damaged_and_foreign_records_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown record 'x' .* known: .*mnist_selection"):
        records.load("x")
    (tmp_path / "cut.json").write_text('{"schema": 1, ')
    with pytest.raises(RuntimeError, match=r"cut\.json is damaged"):
        records.load("cut", tmp_path)
    (tmp_path / "old.json").write_text(json.dumps({"schema": 0}))
    with pytest.raises(ValueError, match=r"old\.json: expected schema 1, got 0"):
        records.load("old", tmp_path)


def test_the_choice_follows_from_the_recorded_rows():
    record = records.load("mnist_selection")
    assert experiments.choose(record["rows"]) == record["chosen"]
    assert record["data"]["split"] == "validation"
    x, _ = data.load("mnist", "validation")
    assert record["data"]["sha256"] == data.fingerprint(x)
    assert record["classifier_sha256"] == checkpoints.about("mnist-cnn")["sha256"]
    chosen = record["chosen"]
    assert checkpoints.about("mnist-dae")["training"]["sigma"] == chosen["sigma"]
    default = purification.Adaptive(torch.nn.Identity())
    assert (default.steps, default.step_size) == (chosen["steps"], chosen["step_size"])


def test_the_rule_of_choice():
    def row(sigma, use, correct, **options):
        return {"sigma": sigma, "use": use, "correct": correct, **options}

    rows = [
        row(0.1, "direct", [9, 9]),
        row(0.1, "adaptive", [1, 1], steps=1, step_size=0.1),
        row(0.2, "direct", [7, 7]),
        row(0.2, "adaptive", [4, 4], steps=1, step_size=0.1),
        row(0.2, "adaptive", [5, 4], steps=2, step_size=0.3),
    ]
    assert experiments.choose(rows) == {"sigma": 0.2, "steps": 2, "step_size": 0.3}


def test_outcomes_survive_packing(generator):
    for n in (1, 7, 8, 1000):
        right = torch.rand(n, generator=generator) > 0.3
        assert torch.equal(records.unpack(records.pack(right), n), right)


def test_counts_and_outcomes_agree():
    record = records.load("mnist_selection")
    for row in record["rows"]:
        right = [records.unpack(text, record["data"]["n"]) for text in row["outcomes"]]
        assert [int(r.sum()) for r in right] == row["correct"]


@pytest.mark.parametrize("use", ["direct", "adaptive"])
def test_a_slice_of_the_record_is_recomputed(use):
    """The first 200 digits of the chosen rows: at least 97 % of the outcomes agree."""
    record = records.load("mnist_selection")
    chosen, n = record["chosen"], record["data"]["n"]
    (row,) = (
        row
        for row in record["rows"]
        if row["use"] == use and all(row[key] == chosen[key] for key in chosen if key in row)
    )
    assert row["dae_sha256"] == checkpoints.about("mnist-dae")["sha256"]
    x, y = data.load("mnist", "validation").take(200)
    classifier, dae = checkpoints.load("mnist-cnn"), checkpoints.load("mnist-dae")
    purifier = Direct(dae) if use == "direct" else purification.Adaptive(dae)
    for eps, text in zip(record["eps"], row["outcomes"], strict=True):
        attacked = attacks.pgd(classifier, x, y, eps=eps, steps=record["attack"]["steps"])
        found = outcomes(Defended(classifier, purifier), attacked, y)
        assert (found == records.unpack(text, n)[:200]).float().mean() >= 0.97
