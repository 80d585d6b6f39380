"""The purifier that is trained through the classifier: a brief run, and what is read from it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from apudae.plan import Budget
from apudae.report import Report

from apudae import (
    attacks,
    checkpoints,
    data,
    experiments,
    lineup,
    models,
    recipes,
    records,
    robust_purifier,
    scores,
)

pytestmark = pytest.mark.filterwarnings("ignore::apudae.checks.AttackWarning")
SMALL = Budget(
    pgd=2, apgd=2, restarts=2, targets=1, queries=3, draws=1, weights=(0.1,), curve=4, scoring=2
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two candidates, trained on 100 digits, judged on six."""
    load = data.load

    def few(name, split, **options):
        options.pop("profile", None)
        return load(name, split, profile="quick", dtype=options.get("dtype", torch.float32)).take(
            100
        )

    top = tmp_path_factory.mktemp("purifier")
    folders = {part: top / part for part in ("weights", "results", "work")}
    folders["weights"].mkdir()
    whole = checkpoints.WEIGHTS
    known = json.loads((whole / "manifest.json").read_text())
    known = {name: known[name] for name in ("mnist-cnn", "mnist-dae", "mnist-adversarial")}
    (folders["weights"] / "manifest.json").write_text(json.dumps(known))
    for about in known.values():
        shutil.copy(whole / about["file"], folders["weights"])
    searches = {"steps": 2, "searches": 1}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "CANDIDATES": {"narrow": ({"width": 4}, 1.0), "toned": ({"width": 4, "tones": 2}, 2.0)},
            "_FIT": {"batch_size": 20, "lr": 2e-3, "seed": 0},
            "BRIEF": 1,
            "LONG": 2,
            "N": 6,
            "FEW": 3,
            "FEWEST": 2,
            "CHOSEN_ON": 20,
            "SEARCHES": searches,
            "budget": lambda: SMALL,
            "BUDGETS": {"quick": SMALL},
            "OTHERS": {
                k: recipes.Recipe(r.architecture, options={"epochs": 1}, model={"width": 8})
                for k, r in robust_purifier.OTHERS.items()
            },
        }.items():
            patch.setattr(robust_purifier, name, value)
        patch.setattr(data, "load", few)
        patch.setattr(lineup, "SEARCHES", searches)
        patch.setattr("apudae.versus.SEARCHES", searches)
        arguments = [part for kind, path in folders.items() for part in (f"--{kind}", str(path))]
        experiments.main(["mnist-purifier", *arguments])
        yield folders, arguments


def test_one_command_chooses_trains_and_asks_once(done, capsys):
    folders, arguments = done
    assert set(robust_purifier.WEIGHTS) <= set(checkpoints.names(folders["weights"]))
    record = records.load(robust_purifier.CHOICE, folders["results"])
    best = max(record["rows"], key=lambda row: sum(row["correct"]))
    assert [row["defense"] for row in record["rows"]] == ["narrow", "toned"]
    assert record["chosen"] == best["defense"] == robust_purifier.chosen(folders["results"])
    options = checkpoints.about(robust_purifier.PURIFIER, folders["weights"])["options"]
    assert options == robust_purifier.CANDIDATES[record["chosen"]][0]
    for norm in robust_purifier.EPS:
        assert robust_purifier.lineup(norm).missing("full", folders["results"]) == []
    files = {p: p.read_bytes() for kind in ("weights", "results") for p in folders[kind].iterdir()}
    capsys.readouterr()
    experiments.main(["mnist-purifier", *arguments])
    assert "of the" not in capsys.readouterr().out.split("\n")[-1]
    assert files == {path: path.read_bytes() for path in files}


def test_the_verdict_is_the_whole_protocol_with_restarts(done):
    folders, _ = done
    report = Report.load(robust_purifier.VERDICT, folders["results"])
    assert report.complete and report.n == 6 and robust_purifier.is_judged(folders["results"])
    names = [row.name for row in report.rows]
    assert {"PGD", "APGD-CE", "APGD-DLR", "Square", "PGD, 10 restarts"} <= set(names)
    whole = robust_purifier.models(folders["weights"])["purifier"]
    x, y = data.load("mnist", "test").take(6)
    assert torch.equal(report.right("clean"), scores.outcomes(whole, x, y))
    assert torch.equal(report.right(), scores.outcomes(whole, report.images, y))


def test_rows_are_what_a_direct_measurement_says(done):
    folders, _ = done
    found = robust_purifier.models(folders["weights"])
    x, y = data.load("mnist", "test").take(6)
    assert list(found) == sorted(found, key=robust_purifier.NAMES.index)
    for norm, name in (("linf", "mnist_purifier"), ("l2", "mnist_purifier_l2")):
        rows, eps = records.load(name, folders["results"])["rows"], robust_purifier.EPS[norm]
        for defense in ("purifier, mlp", "steps alone", "purifier, trained in L2"):
            whole = found[defense]
            hit = attacks.pgd(whole.classifier, x, y, eps=eps, norm=norm, steps=50)
            row = rows[lineup.key(defense, "PGD", eps)]
            now = scores.outcomes(whole, hit, y)
            n = row["n"]  # fewer of those with steps
            assert torch.equal(records.unpack(row["outcomes"], n), now[:n])
    assert (
        lineup.key("purifier", "protocol", 0.3)
        not in records.load("mnist_purifier", folders["results"])["rows"]
    )


def test_the_recipe_attacks_in_its_norm():
    name = next(iter(robust_purifier.CANDIDATES))
    seen = robust_purifier.recipe(name, "l2").task(models.build("mnist-cnn").eval())
    assert "'norm', 'l2'" in seen.name and "('eps', 2.0)" in seen.name


def test_tones_are_functions_of_a_single_pixel():
    net = models.build("mnist-dae", tones=3)
    x = torch.rand(2, 1, 28, 28)
    assert net(x).shape == x.shape
    assert net.encoder[0].kernel_size == (1, 1) and net.encoder[0].out_channels == 3
    assert (
        models.build("mnist-dae").state_dict().keys()
        == models.build("mnist-dae", tones=0).state_dict().keys()
    )
