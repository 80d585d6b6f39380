"""CIFAR-10: what is trained, chosen and compared, on a handful of small coloured images."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from apudae.plan import Budget
from apudae.variants import PRESETS

from apudae import (
    authors,
    checkpoints,
    cifar,
    data,
    experiments,
    lineup,
    overview,
    records,
    scores,
    selection,
    tuning,
    versus,
)

pytestmark = pytest.mark.filterwarnings("ignore::apudae.checks.AttackWarning")


def coloured(n, dtype, seed):
    """Faintly coloured stripes: class k has one of three colours at one of four places."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 10
    images = 0.3 + 0.1 * torch.rand(n, 3, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label % 3, :, 2 * (label // 3) % 8] += 0.15
    pixels = (255 * images.clamp(0, 1)).round().to(torch.uint8)
    return data.Split(pixels if dtype == torch.uint8 else pixels.float() / 255, labels)


RECIPE = cifar.PLAN.recipe


def brief(sigma, depth, epochs):
    recipe = RECIPE(sigma, depth, epochs)
    return replace(recipe, options=recipe.options | {"batch_size": 20, "augment": False})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Everything brief and run once; its folders."""
    sizes = {"train": (200, 0), "validation": (40, 1), "test": (20, 2)}

    def load(name, split, *, root=None, dtype=torch.float32):
        assert name in (*cifar.SETS, "cifar10-20")
        n, seed = sizes[split]
        return coloured(n, dtype, seed)

    classifier = {"epochs": 8, "batch_size": 20, "ema": 0.0, "augment": False}
    short = {k: replace(r, options=r.options | classifier) for k, r in cifar.RECIPES.items()}
    plan = replace(
        cifar.PLAN,
        recipe=brief,
        sigmas=(0.1, 0.2),
        depths=(4, 6),
        brief=1,
        long=3,
        variants={name: ({"steps": 2},) for name in PRESETS},
    )
    budget = Budget(pgd=2, apgd=2, targets=1, queries=3, draws=1, weights=(0.1,), scoring=2)
    fewer = {name: (4, 0) for name in cifar.PLAN.ours if name != "direct"}
    tiny = replace(cifar.PROFILES["full"], weak=20, cw=2, strong=2, budget=budget, fewer=fewer)
    searches = {"steps": 2, "searches": 1}
    with pytest.MonkeyPatch.context() as patch:
        for where, name, value in (
            (cifar.data, "load", load),
            (cifar, "RECIPES", short),
            (cifar, "PLAN", plan),
            (selection, "PGD_STEPS", 2),
            (versus, "SEARCHES", searches),
            (lineup, "SEARCHES", searches),
        ):
            patch.setattr(where, name, value)
        patch.setitem(cifar.PROFILES, "full", tiny)
        patch.setattr(cifar, "CHOSEN", {"full": (6, 2)})
        top = tmp_path_factory.mktemp("cifar")
        folders = {"weights": top / "w", "results": top / "r", "work": top / "k"}
        cifar.run("cifar10-jpeg", None, *folders.values(), "full")
        yield folders


@pytest.fixture
def own(done, tmp_path):
    """A copy to change."""
    for path in done.values():
        shutil.copytree(path, tmp_path / path.name)
    return {kind: tmp_path / path.name for kind, path in done.items()}


def test_one_command_trains_chooses_and_compares_once(own, capsys):
    weights, results = own["weights"], own["results"]
    names = {"cifar10-resnet", "cifar10-dae", "cifar10-adversarial"}
    assert names == set(checkpoints.names(weights))
    record = records.load("cifar10_selection", results)
    assert record["data"]["name"] == "CIFAR-10 (JPEG copy)"
    chosen = record["chosen"]
    assert chosen["sigma"] in cifar.PLAN.sigmas
    assert checkpoints.about("cifar10-dae", weights)["options"] == {"depth": chosen["depth"]}
    assert records.load("cifar10", results)["data"]["name"] == "CIFAR-10 (JPEG copy)"
    what = cifar.lineup("cifar10-jpeg", results)
    assert len(set(what.defenses) & set(selection.TRANSFORMS)) == 3
    assert what.missing("full", results) == []
    rows = records.load("cifar10", results)["rows"]
    columns = {text.split(" | ")[1] for text in rows}
    assert columns == {"clean", "C&W", "protocol", *cifar.WEAK}
    strong = {text.split(" | ")[0] for text in rows if "protocol" in text}
    variants = {name for name in strong if name.startswith("adaptive")}
    assert variants == {f"adaptive, {chosen['variant']}", selection.DEFAULT}
    assert {"direct", "adversarial training", "no defense"} <= strong
    assert rows["no defense | clean | 0"]["correct"] >= 15  # it has learned something
    files = {path: path.read_bytes() for path in (*weights.iterdir(), *results.iterdir())}
    cifar.run("cifar10-jpeg", None, *own.values(), "full")
    assert capsys.readouterr().out == ""
    assert files == {path: path.read_bytes() for path in files}


def test_a_row_is_what_a_direct_measurement_says(done):
    found = cifar.defenses(done["weights"], results=done["results"])
    x, y = coloured(20, torch.float32, 2)
    rows = records.load("cifar10", done["results"])["rows"]
    attacked = authors.bim(found["no defense"], x, y, eps=8 / 255)
    record = records.load("cifar10_selection", done["results"])
    chosen = f"adaptive, {record['chosen']['variant']}"
    other = next(n for n in cifar.PLAN.ours[1:] if n != chosen)
    for name, n in (("no defense", 20), ("direct", 20), (chosen, 6), (other, 4)):
        row = rows[lineup.key(name, "authors' BIM", 8 / 255)]
        now = scores.outcomes(found[name], attacked[:n], y[:n])
        assert torch.equal(records.unpack(row["outcomes"], row["n"]), now)


def test_the_adversarially_trained_network_is_another(done):
    rows = records.load("cifar10", done["results"])["rows"]
    found = cifar.defenses(done["weights"], results=done["results"])
    x, y = coloured(20, torch.float32, 2)
    assert rows["adversarial training | clean | 0"]["correct"] == int(
        scores.outcomes(found["adversarial training"], x, y).sum()
    )
    assert found["adversarial training"] is not found["no defense"]
    for name in cifar.PLAN.ours:
        assert found[name].classifier is found["no defense"]


def test_the_choice_follows_the_rule(done):
    record = records.load("cifar10_selection", done["results"])
    rows, chosen = record["rows"], record["chosen"]

    def tried(sigma, depth):
        label = f"depth {depth}, σ = {sigma:g}:"
        return sum(sum(row["correct"]) for row in rows if row["defense"].startswith(label))

    best = max(cifar.PLAN.sigmas, key=lambda sigma: tried(sigma, 4))
    assert chosen["sigma"] == best
    depths = {4: [], 6: []}
    for layers, trials in depths.items():
        for row in rows:
            if row["defense"].startswith(f"depth {layers}, σ = {best:g}:"):
                trials += [records.unpack(text, row["n"]) for text in row["outcomes"]]
        assert len(trials) == 4  # two uses, with and without an attack
    share = [sum(trial.double() for trial in trials) / 4 for trials in depths.values()]
    gain = scores.paired_difference(*share)
    assert chosen["depth"] == (6 if gain.low > 0 else 4)
    score = {
        name: max(sum(r["correct"]) for r in rows if r["defense"] == name)
        for name in (*selection.TRANSFORMS, *cifar.PLAN.ours)
    }
    left_out = set(selection.TRANSFORMS) - set(chosen["published"])
    assert max(score[name] for name in left_out) <= min(score[n] for n in chosen["published"])
    variants = [score[name] for name in cifar.PLAN.ours if name != "direct"]
    assert score[f"adaptive, {chosen['variant']}"] == max(variants)
    for name, (_, grid) in selection.TRANSFORMS.items():
        assert tuning.choose(rows, name) in grid


@pytest.mark.parametrize(("gained", "taken"), [(40, True), (0, False)])
def test_a_deeper_network_must_gain_what_cannot_be_chance(gained, taken):
    """One that reads ``gained`` more of 100 images in all trials, and one that reads as many."""
    n = 100
    right = {10: torch.arange(n) < 30, 30: torch.arange(n) < 30 + gained}
    selected = object.__new__(selection.Selection)
    selected._tried = lambda sigma, layers: 0
    selected.table = type("Table", (), {})()
    selected.table.rows = [
        {
            "defense": f"depth {layers}, σ = 0.1: {use}",
            "n": n,
            "outcomes": [records.pack(part)] * 2,
        }
        for layers, part in right.items()
        for use in ("direct", "adaptive, simple")
    ]
    assert selected._gains(0.1, 10, 30) is taken


def test_the_status_goes_on_with_the_set_of_the_choice(own, tmp_path):
    assert cifar.made_on(tmp_path) == "cifar10"  # nothing was chosen yet
    assert cifar.made_on(own["results"]) == "cifar10-jpeg"
    (own["results"] / "cifar10.json").unlink()
    lines = overview.lines(own["weights"], own["results"])
    (state,) = [state for _, name, state in lines if name == "cifar10"]
    assert "experiments cifar10 --data cifar10-jpeg (" in state


def test_other_weights_than_the_record_knows_are_refused(own):
    path = own["results"] / "cifar10_selection.json"
    known = checkpoints.about("cifar10-dae", own["weights"])["sha256"]
    path.write_text(path.read_text().replace(known, "0" * 64))
    with pytest.raises(ValueError, match=r"selection\.json was made with another DAE"):
        cifar.defenses(own["weights"], results=own["results"])
    folders = [part for kind, path in own.items() for part in (f"--{kind}", str(path))]
    with pytest.raises(SystemExit, match="another DAE"):
        experiments.main(["cifar10", "--data", "cifar10-jpeg", *folders])


def test_the_originals_do_not_go_on_with_the_copys_record(own):
    with pytest.raises(ValueError, match=r"selection\.json was made with CIFAR-10 \(JPEG copy\)"):
        cifar.run("cifar10", None, *own.values(), "full")
    with pytest.raises(ValueError, match="data: expected cifar10 or cifar10-jpeg, got 'cifar100'"):
        cifar.lineup("cifar100")
