"""What is read from the record of the comparison, against counts made by hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from apudae.plan import BUDGETS
from apudae.scores import Accuracy, paired_difference
from apudae.standings import Standings

from apudae import (
    attacks,
    baselines,
    checkpoints,
    data,
    lineup,
    plots,
    records,
    robustness,
    scores,
)
from apudae.evaluation import evaluate, model_fingerprint


def packed(*right):
    return {
        "n": len(right),
        "correct": sum(right),
        "outcomes": records.pack(torch.tensor(right).bool()),
    }


@pytest.fixture
def record():
    """Three defenses on eight digits, a random one among them."""
    rows = {
        "no defense | clean | 0": packed(1, 1, 1, 1, 1, 1, 1, 0),
        "no defense | PGD | 0.3": packed(0, 0, 0, 0, 0, 0, 0, 0),
        "no defense | C&W | 0": packed(0, 0, 0, 1),
        "no defense | protocol | 0.3": packed(0, 0, 0, 0) | {"stands": {"PGD": 0.0}},
        "adversarial training | clean | 0": packed(1, 1, 1, 1, 1, 1, 0, 0),
        "adversarial training | PGD | 0.3": packed(1, 1, 1, 1, 1, 0, 0, 0),
        "resize and pad | clean | 0": packed(1, 1, 1, 1, 1, 1),
        "resize and pad | C&W | 0": packed(1, 0, 0, 1),
        "resize and pad | protocol | 0.3": packed(0, 1)
        | {"misread": [15, 0], "draws": 20, "stands": {"PGD": 1.6, "Square": 1.25}},
    }
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(BUDGETS["quick"]).items()}
    return {"rows": rows, "ms_per_image": {"no defense": 0.123}, "profile": {"budget": plain}}


def test_rows_are_read_as_they_were_written(record, tmp_path):
    found = Standings(record, tmp_path)
    assert found.names() == ["no defense", "resize and pad", "adversarial training"]
    assert found.right("no defense", "C&W").tolist() == [False, False, False, True]
    assert found.right("resize and pad", "protocol", 0.3).tolist() == [0.25, 1.0]
    assert str(found.accuracy("adversarial training", "PGD", 0.3)) == str(Accuracy(5, 8))
    assert found.stands("resize and pad", 0.3) == {"PGD": 80.0, "Square": 62.5}
    assert not found.has("adversarial training", "protocol", 0.3)
    with pytest.raises(ValueError, match=r"no row 'adversarial training \| protocol \| 0\.3'"):
        found.right("adversarial training", "protocol", 0.3)
    assert "adversarial training, ε = 0.3" in found.missing()
    assert "no defense, ε = 0.3" not in found.missing()


def test_differences_are_taken_on_the_digits_that_both_have(record, tmp_path):
    found = Standings(record, tmp_path)
    gap = found.minus("adversarial training", "resize and pad", "clean")
    ones = torch.ones(6, dtype=torch.bool)
    assert str(gap) == str(paired_difference(ones, ones)) and gap.points == 0
    rates = found.minus("resize and pad", "no defense", "protocol", 0.3)
    assert rates.points == pytest.approx(62.5)


def test_each_defense_is_checked_against_its_own_attack(record, tmp_path):
    checks = {check.name: check for check in Standings(record, tmp_path).checks()}
    assert checks.keys() == {"resize and pad", "adversarial training"}
    trained = checks["adversarial training"]
    assert (trained.attack, trained.eps) == ("PGD", 0.3)
    assert trained.before.correct == 0 and trained.after.correct == 5 and trained.holds
    assert not checks["resize and pad"].holds  # one digit of four is no evidence


def test_the_table_says_what_it_does_not_know(record, tmp_path):
    table = Standings(record, tmp_path).table(0.3)
    rows = {row[0]: row for row in table.rows}
    assert rows["adversarial training"][3:6] == ["–", "–", "not run"]
    assert rows["resize and pad"][3:6] == [str(Accuracy(1.25, 2)), "2", "quick"]
    assert rows["no defense"][6] == "0.12" and rows["resize and pad"][6] == "–"
    assert rows["adversarial training"][7] == "retrained"
    assert Standings(record, tmp_path).weak(0.3).rows[0][1] == "8"


def test_relative_to_what_the_bare_classifier_reads(record, tmp_path):
    record["rows"]["no defense | clean | 0"] = packed(0, 1, 1, 1, 0, 1, 1, 1)
    found = Standings(record, tmp_path)
    assert found.relative("no defense", "clean") == Accuracy(6, 6)
    assert found.relative("adversarial training", "PGD", 0.3) == Accuracy(3, 6)
    # On the first two images, of which one counts: 20 fresh draws, none misread.
    assert found.relative("resize and pad", "protocol", 0.3) == Accuracy(1.0, 1)
    rows = {row[0]: row for row in found.table(0.3, relative=True).rows}
    assert rows["adversarial training"][1:3] == [str(Accuracy(4, 6)), str(Accuracy(3, 6))]
    assert rows["resize and pad"][3:5] == [str(Accuracy(1, 1)), "1"]
    gap = found.minus("adversarial training", "no defense", "PGD", 0.3, relative=True)
    shares = [found.relative(k, "PGD", 0.3).percent for k in ("adversarial training", "no defense")]
    whole = found.minus("adversarial training", "no defense", "PGD", 0.3)
    assert gap.points == pytest.approx(shares[0] - shares[1]) and gap.points != whole.points
    assert found.minus("resize and pad", "no defense", "protocol", 0.3, relative=True).points == 100
    weak = found.weak(0.3, ("clean", "PGD"), relative=True).rows
    assert weak[0][:3] == ["no defense", "6", "100.0 % [61.0, 100.0]"]


def test_a_table_of_some_attacks(record, tmp_path):
    found = Standings(record, tmp_path)
    whole, some = found.weak(0.3), found.weak(0.3, ("PGD", "clean"))
    assert some.header == ["defense", "n", "PGD", "clean"]
    places = [whole.header.index(name) for name in some.header]
    assert some.rows == [[row[k] for k in places] for row in whole.rows]
    with pytest.raises(ValueError, match=r"some of clean, noise.*got DeepFool"):
        found.weak(0.3, ("DeepFool",))


def test_the_verdict_on_our_own_comes_from_its_records(record):
    found = Standings(record)
    report = robustness.load("direct", 0.3)
    assert found.has("direct", "protocol", 0.3)
    assert torch.equal(found.right("direct", "protocol", 0.3), report.right())
    assert found.budget_of("direct", 0.3) == "reference"
    assert found.budget_of("adaptive, default", 0.3) == "light"
    assert found.budget_of("no defense", 0.3) == "quick"
    left = found.stands("direct", 0.3)
    assert list(left.values()) == sorted(left.values(), reverse=True)
    assert list(left.values())[-1] == pytest.approx(report.worst.percent)


def test_a_sortable_table_carries_its_numbers():
    table = plots.SortableTable(["who", "right", "n"], [["a | b", "9.5 % [8.0, 11.0]", "–"]])
    page = table._repr_html_()
    assert re.findall(r"<td([^>]*)>", page)[1] == ' data-v="9.5" style="text-align:right"'
    assert page.count("<button") == 3 and page.count('aria-sort="none"') == 3
    assert "<td style=" in page and "a | b" in page
    assert "https:" not in page and "http:" not in page
    assert r"a \| b" in table._repr_markdown_()


def test_every_weak_attack_that_a_defense_was_made_for_is_run():
    for baseline in baselines.BASELINES.values():
        assert baseline.made_for in lineup.MNIST.attacked(lineup.PROFILES["full"], "jpeg")


# --- a slice of the shipped record, made again -------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    """The first 200 official test digits, the record, and the models."""
    bundle = np.load(Path(__file__).parent / "first_test_digits.npz")
    x = torch.from_numpy(bundle["images"])[:, None].float() / 255
    y = torch.from_numpy(bundle["labels"]).long()
    return x, y, Standings.load(), lineup.MNIST.build(checkpoints.WEIGHTS, "cpu")


def agree(one, other):
    assert len(one) == len(other) == 200
    return (one == other).double().mean() >= 0.97


@pytest.mark.parametrize(
    ("name", "attack", "eps"),
    [
        ("adaptive, chosen", "PGD", 0.2),
        ("defense-vae", "BIM", 0.3),
        ("resize and pad", "FGSM", 0.1),
    ],
)
def test_a_slice_of_the_weak_rows_is_what_is_measured_now(name, attack, eps, shipped):
    x, y, found, models = shipped
    options = attacks.taken(lineup.WEAK[attack], {"eps": eps, "index": torch.arange(200)})
    images = lineup.WEAK[attack](models["no defense"], x, y, **options)
    now = scores.outcomes(models[name], images, y, index=torch.arange(200))
    assert agree(now, found.right(name, attack, eps)[:200])
    assert now.double().mean() > 0.05  # agreement on nothing but failures would show little


def test_a_slice_of_the_protocol_is_what_is_measured_now(shipped):
    """The first 200 of 1,000 digits: what befalls one does not depend on the others."""
    x, y, found, models = shipped
    name, budget = "adversarial training", lineup.PROFILES["full"].budget
    report = evaluate(models[name], x, y, eps=0.3, budget=budget, curves=False, progress=False)
    assert agree(report.right(), found.right(name, "protocol", 0.3)[:200])
    assert report.worst.percent > 5


def test_the_bundled_digits_are_the_records(shipped):
    """Where the full MNIST is at hand."""
    x, y, _, _ = shipped
    try:
        test = data.load("mnist", "test", profile="full")
    except (FileNotFoundError, RuntimeError) as error:
        pytest.skip(str(error))
    assert torch.equal(test.images[:200], x) and torch.equal(test.labels[:200], y)
    assert records.load("mnist")["data"]["sha256"] == data.fingerprint(test.images)


def test_the_record_was_made_with_the_shipped_models_and_settings(shipped):
    _, _, _, models = shipped
    record = records.load("mnist")
    assert len(models) == len(lineup.DEFENSES)
    profile = lineup.PROFILES["full"]
    for text, row in record["rows"].items():
        name, attack, _ = text.split(" | ")
        assert row["model"] == model_fingerprint(models[name])[:16], text
        assert row["n"] == profile.n(name, attack), text
    assert record["profile"] == json.loads(json.dumps(asdict(profile)))
    assert not records.older(record["rows"])
    assert (records.RESULTS / "mnist.json").stat().st_size <= 1_000_000
    weak = [text for text in lineup.MNIST.missing("full") if "protocol" not in text]
    assert weak == []


def test_each_defense_does_what_its_paper_says_against_its_weak_attack(shipped):
    """The recorded check; a defense that fails it would be no fair opponent."""
    checks = shipped[2].checks()
    assert [check.name for check in checks] == list(baselines.BASELINES)
    assert [check.name for check in checks if not check.holds] == []


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_click_on_a_header_sorts(tmp_path):
    """In a browser: numbers from the largest, then round; texts from a; gaps always last."""
    rows = [["b", "9.5 %", "–"], ["a", "99.5 %", "5"], ["c", "0.0 %", "12"]]
    table = plots.SortableTable(["who", "right", "n"], rows)._repr_html_()
    script = """
    const buttons = [...document.querySelectorAll('button')], log = [];
    for (const k of [1, 1, 0, 0, 2, 2]) {
      buttons[k].click();
      const rows = [...document.querySelectorAll('tbody tr')];
      log.push(rows.map(r => r.cells[0].textContent).join(''));
    }
    const sorted = [...document.querySelectorAll('th')].map(h => h.getAttribute('aria-sort'));
    document.title = [...log, ...sorted].join(' ');
    """
    page = tmp_path / "table.html"
    page.write_text(f"<body>{table}<script>{script}</script></body>", encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(r"<title>(.*)</title>", shown)[1].split() == (
        ["abc", "cba", "abc", "cba", "cab", "acb", "none", "none", "ascending"]
    )
