"""The recorded comparison of purification's variants."""

import pytest
import torch
from apudae.variants import PRESETS

from apudae import attacks, checkpoints, comparison, data, evaluation, records
from apudae.purification import Calibration, Defended, calibrate


@pytest.fixture(scope="module")
def record():
    return records.load(comparison.RECORD)


def row(variant, correct, **options):
    return {"variant": variant, "options": options, "correct": correct}


def test_the_rule_of_choice():
    rows = [
        row("direct", [9, 9]),
        row("simple", [5, 5]),
        row("simple", [4, 7], steps=40),
        row("biased", [5, 6], steps=30),
        row("kl", [1, 1]),
    ]
    assert comparison.choose(rows) == {"variant": "biased", "options": {"steps": 30}}
    rows[3]["options"]["steps"] = 50  # of two alike the one with fewer steps
    assert comparison.choose(rows)["variant"] == "simple"


def test_the_choice_follows_from_the_recorded_rows(record):
    assert comparison.choose(record["rows"]["validation"]) == record["chosen"]
    measured = [(r["variant"], r["options"]) for r in record["rows"]["test"]]
    assert measured == comparison.tests(record["rows"]["validation"])
    assert len(measured) == comparison.TEST_ROWS
    tried = [(r["variant"], r["options"]) for r in record["rows"]["validation"]]
    grid = [(name, options) for name, several in comparison.GRID.items() for options in several]
    assert tried == [*comparison.OTHERS.items(), *grid]
    assert comparison.GRID.keys() == PRESETS.keys()


def test_the_record_is_of_the_shipped_weights_and_digits(record):
    for name, sha256 in record["weights_sha256"].items():
        assert checkpoints.about(name)["sha256"] == sha256
    x, _ = data.load("mnist", "validation")
    assert record["data"]["validation"] == {"n": 1000, "sha256": data.fingerprint(x)}
    dae = checkpoints.load("mnist-dae")
    assert calibrate(dae, x)[:2] == pytest.approx(record["calibration"][:2], rel=1e-4)
    for split, rows in record["rows"].items():
        n = record["data"][split]["n"]
        for entry in rows:
            right = [records.unpack(text, n) for text in entry["outcomes"]]
            assert [int(r.sum()) for r in right] == entry["correct"]


@pytest.mark.parametrize("variant", ["chosen", "direct, twice", "sign"])
def test_a_slice_of_the_record_is_recomputed(record, variant):
    """The first 200 validation digits: at least 97 % of the outcomes agree."""
    name = record["chosen"]["variant"] if variant == "chosen" else variant
    entry = max(
        (r for r in record["rows"]["validation"] if r["variant"] == name),
        key=lambda r: sum(r["correct"]),
    )
    recompute(record, "validation", entry, *data.load("mnist", "validation").take(200))


def test_a_slice_of_the_test_is_recomputed(record, full_data):
    x, y = data.load("mnist", "test", profile="full", root=full_data)
    n = record["data"]["test"]["n"]
    assert record["data"]["test"]["sha256"] == data.fingerprint(x[:n])
    (entry,) = (r for r in record["rows"]["test"] if r["variant"] == record["chosen"]["variant"])
    recompute(record, "test", entry, x[:200], y[:200])


def recompute(record, split, entry, x, y):
    classifier, dae = checkpoints.load("mnist-cnn"), checkpoints.load("mnist-dae")
    level = Calibration(*record["calibration"])
    model = Defended(
        classifier, comparison.purifier(entry["variant"], entry["options"], dae, level)
    )
    agree = []
    for eps, text in zip(record["eps"], entry["outcomes"], strict=True):
        z = attacks.pgd(classifier, x, y, eps=eps, steps=record["attack"]["steps"][split])
        right = records.unpack(text, record["data"][split]["n"])[: len(x)]
        agree.append(evaluation.outcomes(model, z, y) == right)
    assert torch.stack(agree).float().mean(1).min() >= 0.97


def test_a_run_in_pieces_adds_up_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    """Forty digits, three steps; cut off after the third row."""
    digits = data.load("mnist", "validation").take(40)
    monkeypatch.setattr(comparison.data, "load", lambda *args, **options: digits)
    monkeypatch.setattr(comparison, "STEPS", {"validation": 3, "test": 3})
    monkeypatch.setattr(comparison, "TEST", 40)
    small = {"direct": {"repeats": 1}, "no defense": {}}
    monkeypatch.setattr(comparison, "OTHERS", small)
    monkeypatch.setattr(comparison, "GRID", {"simple": ({"steps": 2}, {"steps": 3})})
    save, count = records.save, []

    def cut(*args, **options):
        count.append(1)
        path = save(*args, **options)
        if len(count) == 3:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(records, "save", cut)
    run = lambda: comparison.mnist_variants(None, checkpoints.WEIGHTS, tmp_path)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        run()
    capsys.readouterr()
    run()
    assert capsys.readouterr().out.count("validation") == 1  # one row was missing
    record = records.load(comparison.RECORD, tmp_path)
    assert [len(record["rows"][split]) for split in ("validation", "test")] == [4, 3]
    assert record["chosen"]["variant"] == "simple"
    monkeypatch.setattr(comparison, "STEPS", {"validation": 4, "test": 3})
    with pytest.raises(ValueError, match=r"mnist_variants\.json was made with another attack"):
        run()


def test_settings_and_passes():
    assert comparison.setting("simple", {"step_size": 0.05}) == "12 × 0.05"
    assert comparison.passes("simple", {"steps": 30}) == 60
    assert comparison.setting("direct, twice", {"repeats": 2}) == "2 ×"
    assert comparison.passes("direct, twice", {"repeats": 2}) == 2
    assert comparison.passes("no defense", {}) == 0
    assert comparison.setting("no defense", {}) == "–"
    whole = comparison.OTHERS["simple, then R"]
    assert comparison.passes("simple, then R", whole) == 61
