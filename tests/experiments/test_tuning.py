"""The settings of the baselines are those that validation digits have chosen."""

from __future__ import annotations

import pytest

from apudae import attacks, baselines, checkpoints, data, records, scores, tuning


def test_the_chosen_settings_are_the_ones_in_use():
    rows = records.load(tuning.RECORD)["rows"]
    assert {row["defense"] for row in rows} == set(tuning.GRID)
    for name, grid in tuning.GRID.items():
        assert [row["options"] for row in rows if row["defense"] == name] == list(grid)
        assert baselines.BASELINES[name].options == tuning.choose(rows, name)


def test_a_row_of_the_record_is_what_is_measured_now():
    rows = records.load(tuning.RECORD)["rows"]
    row = next(r for r in rows if r["options"] == {"quality": 10})
    classifier, (x, y) = checkpoints.load("mnist-cnn"), data.load("mnist", "validation").take(200)
    jpeg = baselines.build("jpeg", classifier, quality=10)
    for eps, text in zip(tuning.EPSILONS, row["outcomes"], strict=True):
        attacked = attacks.pgd(classifier, x, y, eps=eps, steps=tuning.PGD_STEPS)
        now = scores.outcomes(jpeg, attacked, y)
        assert (records.unpack(text, row["n"])[:200] == now).double().mean() >= 0.97


def test_tuning_goes_on_and_refuses_other_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "GRID", {"jpeg": ({"quality": 10}, {"quality": 75})})
    monkeypatch.setattr(tuning, "DIGITS", {"jpeg": 30})
    monkeypatch.setattr(tuning, "PGD_STEPS", 2)
    tuning.tune(checkpoints.WEIGHTS, tmp_path)
    record = records.load(tuning.RECORD, tmp_path)
    assert [row["n"] for row in record["rows"]] == [30, 30]
    capsys.readouterr()
    tuning.tune(checkpoints.WEIGHTS, tmp_path)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(tuning, "PGD_STEPS", 3)
    with pytest.raises(ValueError, match=r"mnist_tuning\.json was made with another attack"):
        tuning.tune(checkpoints.WEIGHTS, tmp_path)


def test_the_best_mean_wins_and_the_first_of_two_alike():
    rows = [
        {"defense": "a", "options": {"k": k}, "correct": correct}
        for k, correct in enumerate(([9, 0], [5, 5], [6, 4], [0, 9]))
    ]
    assert tuning.choose(rows, "a") == {"k": 1}
