"""The comparison of all defenses: its rows, its order, its resuming."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from apudae.plan import Budget

from apudae import __version__, attacks, checkpoints, experiments, lineup, records, scores, versus
from apudae.evaluation import evaluate

pytestmark = pytest.mark.filterwarnings("ignore::apudae.checks.AttackWarning")

TINY = lineup.Profile(
    data="quick",
    weak=40,
    cw=3,
    strong=4,
    epsilons=(0.2,),
    budget=Budget(pgd=2, apgd=2, targets=1, queries=3, draws=1, weights=(0.1,), scoring=2),
)

BRIEF = replace(TINY, weak=8, cw=2, strong=2)
FAST = [name for name in lineup.DEFENSES if name not in ("soap", "defense-gan", "diffpure")]


@pytest.fixture(scope="module")
def priced():
    """What defenses cost is measured once for all tests, not by every comparison again."""
    known, measured = versus.Prices, {}

    def prices(lineup, models, profile, *few):
        found = frozenset(models), str(profile)
        if found not in measured:
            measured[found] = known(lineup, models, profile, *few)
        return measured[found]

    return prices


@pytest.fixture
def make(tmp_path, monkeypatch, priced):
    monkeypatch.setattr(versus, "Prices", priced)
    monkeypatch.setitem(lineup.WEAK, "PGD", attacks.bim)
    monkeypatch.setattr(
        attacks, "cw", lambda model, x, y, **searches: attacks.fgsm(model, x, y, eps=0.2)
    )

    def made(profile=TINY, only=None):
        where = {"root": None, "weights": checkpoints.WEIGHTS, "only": only}
        return versus.Comparison("c", profile, **where, results=tmp_path, work=tmp_path / "work")

    return made


def test_every_row_is_made_once_and_a_stopped_run_goes_on(make, tmp_path, monkeypatch):
    first, asked = make(BRIEF, FAST), []
    evaluated = versus.Comparison._evaluate

    def dies(self, name, eps):
        asked.append(name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return evaluated(self, name, eps)

    monkeypatch.setattr(versus.Comparison, "_evaluate", dies)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    begun = records.load("c", tmp_path)["rows"]
    make(BRIEF, FAST).run()
    rows = records.load("c", tmp_path)["rows"]
    assert begun.items() <= rows.items()
    assert len(asked) == len(first.models) + 1
    monkeypatch.setitem(lineup.RECORDS, "full", "c")
    monkeypatch.setitem(lineup.PROFILES, "full", BRIEF)
    left = lineup.MNIST.missing("full", tmp_path)
    untrained = set(lineup.DEFENSES) - set(first.models)
    assert {text.split(" | ")[0] for text in left} == untrained
    before = (tmp_path / "c.json").read_bytes()
    make(BRIEF, FAST).run()
    assert (tmp_path / "c.json").read_bytes() == before
    with pytest.raises(ValueError, match=r"c\.json was made with another profile"):
        make(replace(BRIEF, strong=5), FAST)


def test_a_row_says_what_a_direct_measurement_says(make, tmp_path):
    table = make()
    table.models = {k: table.models[k] for k in ("no defense", "direct", "jpeg", "resize and pad")}
    table.run()
    x, y, classifier = table.x, table.y, checkpoints.load("mnist-cnn")
    attacked = attacks.fgsm(classifier, x, y, eps=0.3)
    for name, model in table.models.items():
        row = table.rows[lineup.key(name, "FGSM", 0.3)]
        right = scores.outcomes(model, attacked, y, index=torch.arange(40))
        assert torch.equal(records.unpack(row["outcomes"], row["n"]), right)
        assert row["correct"] == right.sum() and row["n"] == 40
        strong = table.rows[lineup.key(name, lineup.STRONG, 0.2)]
        clean = table.rows[lineup.key(name, lineup.CLEAN)]
        options = {"eps": 0.2, "budget": TINY.budget, "curves": False, "progress": False}
        report = evaluate(model, x[:4], y[:4], **options)
        assert strong["n"] == 4 and strong["correct"] == round(report.right().sum().item(), 2)
        always = report.right() == 1 if report.draws > 1 else report.right()
        assert torch.equal(records.unpack(strong["outcomes"], 4), always)
        assert "APGD-CE" in strong["stands"]
        assert clean["correct"] >= 0.8 * 40
    assert "random forward" in table.rows[lineup.key("resize and pad", "protocol", 0.2)]["warnings"]
    assert len(table.rows[lineup.key("resize and pad", "protocol", 0.2)]["misread"]) == 4


def test_cheap_rows_come_first(make):
    keys = [text for text, *_ in make().jobs()]
    kinds = [text.split(" | ")[1] for text in keys]
    assert kinds == sorted(kinds, key=["clean", *lineup.WEAK, "C&W", "protocol"].index)
    strong = [text.split(" | ")[0] for text in keys if " protocol " in text]
    assert strong.index("no defense") < strong.index("adaptive, chosen")


def test_the_command_lists_what_is_missing(tmp_path, capsys):
    experiments.main(["status", "--results", str(tmp_path)])
    shown = capsys.readouterr().out
    rows = 14 * 17 + 11 * 3  # the verdict on the book's own three has records of its own
    assert f"missing: python -m apudae.experiments mnist ({rows} rows to go)" in shown
    assert re.search(
        r"jpeg +missing: 17 on 10000 images, 3 of the protocol \(1000 images, quick", shown
    )
    assert len(re.findall(r"at most about \d+ min on this [CG]PU", shown)) >= 7
    assert re.search(r"mnist_robust_direct_0.1 +missing: .* \(reference budget\)", shown)


def test_a_weak_row_goes_on_where_it_was_killed(make, tmp_path, monkeypatch):
    """Killed in the second piece of four: the first is kept, and the row is as if in one go."""
    text = lineup.key("resize and pad", "FGSM", 0.2)
    whole = job(make(), text)()
    monkeypatch.setattr(versus, "PIECE", 10)
    outcomes, seen = scores.outcomes, []

    def dies(model, x, y, **options):
        seen.append(options["index"][0].item())
        if seen == [0, 10]:
            raise KeyboardInterrupt
        return outcomes(model, x, y, **options)

    monkeypatch.setattr(scores, "outcomes", dies)
    (tmp_path / "work" / "c_7_FGSM_0.2.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        job(make(), text)()
    assert job(make(), text)() == whole
    assert seen == [0, 10, 10, 20, 30]
    job(make(replace(TINY, strong=5)), text)()  # other settings: nothing is mixed in
    assert seen[5:] == [0, 10, 20, 30]


def test_a_damaged_beginning_of_a_row_is_named(make, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "c_0_FGSM_0.2.json").write_text('{"done": 1')
    with pytest.raises(RuntimeError, match=r"c_0_FGSM_0\.2\.json is damaged"):
        job(make(), lineup.key("no defense", "FGSM", 0.2))()


def job(table, text):
    return next(run for name, _, run in table.jobs() if name == text)


def test_two_runs_for_different_defenses_share_a_record(make, tmp_path):
    one, two = make(only=["no defense"]), make(only=["jpeg"])
    one.run()
    two.run()
    rows = records.load("c", tmp_path)["rows"]
    assert {text.split(" | ")[0] for text in rows} == {"no defense", "jpeg"}
    assert records.load("c", tmp_path)["ms_per_image"].keys() == {"no defense", "jpeg"}
    with pytest.raises(ValueError, match=r"only: expected no defense, direct, .*; got jpg"):
        make(only=["jpg"])


def test_records_that_do_not_fit_are_refused_by_name(make, tmp_path, capsys, monkeypatch):
    make(only=["no defense"]).run()
    path, good = tmp_path / "c.json", (tmp_path / "c.json").read_text()
    monkeypatch.setitem(lineup.RECORDS, "quick", "c")
    monkeypatch.setitem(lineup.PROFILES, "quick", TINY)
    command = ["mnist", "--profile", "quick", "--results", str(tmp_path), "--only", "no defense"]
    command += ["--work", str(tmp_path)]
    monkeypatch.setattr(versus.baselines, "train_missing", lambda *_: None)
    path.write_text(good.replace('"schema": 1', '"schema": 7'))
    with pytest.raises(SystemExit, match=r"c\.json: expected schema 1, got 7"):
        experiments.main(command)
    path.write_text(good[: len(good) // 2])
    with pytest.raises(SystemExit, match=r"c\.json is damaged"):
        experiments.main(command)
    path.write_text(good.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(SystemExit, match=r"c\.json was made with another weak; move it"):
        experiments.main(command)
    path.write_text(good.replace(f'"apudae": "{__version__}"', '"apudae": "0.0.9"'))
    experiments.main(command)
    assert capsys.readouterr().out.count("made by older code, and kept: no defense | ") == 18
    flagged = records.older(records.load("c", tmp_path)["rows"])
    assert set(flagged.values()) == {"0.0.9"} and len(flagged) == 18


def test_a_full_disk_leaves_the_last_good_record(make, tmp_path, monkeypatch):
    make(only=["no defense"]).run()
    before = (tmp_path / "c.json").read_bytes()
    write = Path.write_bytes

    def full(path, content):
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        make(only=["jpeg"]).run()
    assert (tmp_path / "c.json").read_bytes() == before
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["c.json"]


def test_prices_are_upper_bounds_that_grow_with_the_work(make):
    table = make(only=["no defense", "jpeg", "resize and pad"])
    x, y = table.x[:8], table.y[:8]
    prices = lineup.Prices(lineup.MNIST, table.models, TINY, x, y)
    prices.passes = {"no defense": (3.0, 1.0), "jpeg": (4.0, 2.0), "resize and pad": (5.0, 2.0)}
    assert prices.seconds("jpeg", "PGD", 0.1) == 40 * 2.0  # its images are the classifier's
    assert prices.seconds("no defense", "PGD", 0.1) == 40 * (1.0 + 50 * 3.0)
    # PGD 2, APGD 2, DLR 2 steps; Square 3 queries, noise 1; five rows are scored.
    assert prices.seconds("no defense", "protocol", 0.2) == 4 * (6 * 3.0 + 4 + 5)
    more = replace(TINY, budget=replace(TINY.budget, draws=2))
    again = lineup.Prices(lineup.MNIST, table.models, more, x, y)
    again.passes = prices.passes
    assert again.seconds("jpeg", "protocol", 0.2) == prices.seconds("jpeg", "protocol", 0.2)
    name = "resize and pad", "protocol", 0.2
    assert again.seconds(*name) > prices.seconds(*name)
