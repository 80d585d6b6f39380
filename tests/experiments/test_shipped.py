"""The shipped records: whole, of the shipped weights and data, and still what is measured now.

Slices of cheap rows are the first 100 images. Of a fault that flips the outcome of every seventh
image they miss one in ten thousand.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import support
import torch
from scipy.stats import binom
from torch.nn import functional as F

from apudae import attacks, data, experiments, models
from apudae.attacks import losses
from apudae.core import scores
from apudae.core.files import model_fingerprint
from apudae.core.prints import data_print, differences
from apudae.core.record import outdated, unpack
from apudae.data import Split
from apudae.evaluation import BUDGETS, Report, certify, evaluate, verify
from apudae.experiments import (
    CLEAN,
    STRONG,
    Place,
    colours,
    digit_choices,
    digits,
    photographs,
    plans,
    recipes,
)
from apudae.experiments.__main__ import parser
from apudae.experiments.choose import best, outcomes
from apudae.experiments.commands import COMMANDS
from apudae.purification import PRESETS, Adaptive, Calibration, Defended, Direct, calibrate

pytestmark = pytest.mark.filterwarnings("ignore::apudae.core.arguments.AttackWarning")

N = 100
PLACE = Place()  # shared: each network is loaded once
UNDER_WAY = ("mnist_sampled",)  # being measured; nothing reads it yet
STUDIES = {name: row for name, row in experiments.STUDIES.items() if name not in UNDER_WAY}
VERDICTS = (*digits.ROBUSTNESS, digits.PURIFIER_VERDICT)
CHOICES = ("mnist_selection", "mnist_variants", "mnist_tuning", "mnist_purifier_choice")
SELECTED = {"cifar10": "cifar10_selection", "imagenet": "imagenet_selection"}


def agree(now, then, least=0.97):
    assert len(now) == len(then) > 0
    return (now == then).double().mean() >= least


@pytest.fixture(scope="module")
def built():
    """All defenses of a study, built once."""
    made = {}

    def build(study):
        if study not in made:
            made[study] = STUDIES[study].build(PLACE)
        return made[study]

    return build


def bundled(name):
    bundle = np.load(Path(__file__).parents[1] / f"{name}_test_digits.npz")
    images = torch.from_numpy(bundle["images"])[:, None].float() / 255
    return Split(images, torch.from_numpy(bundle["labels"]).long())


@pytest.fixture(scope="module")
def first():
    """The first 200 official test digits."""
    return bundled("first")


@pytest.fixture(scope="module")
def asked(first):
    """The first 200 digits of a study, in the order in which it asks them."""
    return {name: bundled("asked") if study.order else first for name, study in STUDIES.items()}


@pytest.fixture(scope="module")
def validation():
    """The first validation digits under PGD on the classifier, as all choices were made on.

    That was with the cross-entropy of before 0.4.0, whose gradient float32 rounds.
    """
    x, y = support.digits(N)
    with mock.patch.dict(losses.LOSSES, ce=partial(F.cross_entropy, reduction="none")):
        net, options = support.shipped("mnist-cnn"), {"steps": 50}
        hit = [attacks.pgd(net, x, y, eps=eps, **options) for eps in digit_choices.EPSILONS]
    return [x, *hit], y


@pytest.fixture
def copied(tmp_path, full_data):
    """A place with a copy of the shipped records, the shipped weights, and the full data."""
    shutil.copytree(PLACE.results, tmp_path / "results")
    return replace(PLACE, root=full_data, results=tmp_path / "results", work=tmp_path / "work")


def unchanged(place):
    """Whether every record of a place is the shipped one, byte for byte."""
    shipped = {path.name: path.read_bytes() for path in PLACE.results.iterdir()}
    assert shipped == {path.name: path.read_bytes() for path in place.results.iterdir()}
    return not place.work.exists() or not list(place.work.iterdir())


@pytest.fixture(scope="module")
def at_hand(full_data):
    """Images and labels of a record of colours, or the reason why there are none."""

    @cache
    def found(name):
        study, stored = STUDIES[name], PLACE.record(name)
        try:
            test = study.images(replace(PLACE, root=full_data), "full").take(stored["data"]["n"])
        except (FileNotFoundError, RuntimeError) as error:
            pytest.skip(str(error))
        if data.fingerprint(test.images) != stored["data"]["sha256"]:
            pytest.skip("other images than the record's are at hand")
        return test

    return found


@pytest.fixture(scope="module")
def weakly(built):
    """Outcomes of some images under a weak attack: now, and in the record."""
    known = {}

    def attacked(study, model, attack, eps, x, y, index):
        key = study, id(model), attack, eps, len(x)  # models live as long as this fixture
        if key not in known:
            weak = STUDIES[study].attacks[attack]
            options = attacks.taken(weak, {"eps": eps, "index": index})
            known[key] = weak(model, x, y, **options)
        return known[key]

    def found(study, defense, attack, eps, images):
        (x, y), whole = images, built(study)[defense]
        then = experiments.results(study).outcomes(defense, attack, eps)
        aimed, index = getattr(whole, "classifier", whole), then.places[: len(x)]
        hit = x if attack == CLEAN else attacked(study, aimed, attack, eps, x, y, index)
        return scores.outcomes(whole, hit, y, index=index), then.right[: len(x)]

    return found


# --- what each of them says of itself ----------------------------------------------------------


@pytest.mark.parametrize("name", experiments.names())
def test_a_record_is_whole_and_made_by_code_with_these_outcomes(name):
    record = experiments.record(name)
    assert not outdated(record) and record["made"]["device"]
    assert (PLACE.results / f"{name}.json").stat().st_size <= 1_000_000
    if "complete" in record:
        report = Report.load(name, PLACE.results)
        assert report.complete and len(report.right()) == report.n
        assert report.worst.correct <= report.clean.correct
        return
    several = any(isinstance(record.get(k), list) for k in ("eps", "versions"))  # outcomes of each
    for row in record["rows"]:
        assert "apudae" not in row or not outdated(row)
        if "votes" in row:
            assert len(row["votes"]) == len(row["predictions"]) == record["data"]["n"]
            continue
        texts = row["outcomes"] if several else [row["outcomes"]]
        counts = [int(unpack(text, row["n"]).sum()) for text in texts]
        assert {len(text) for text in texts} == {2 * -(-row["n"] // 8)}
        if "misread" in row:
            assert len(row["misread"]) == row["n"]
            assert max(row["misread"]) <= row["draws"]
            right = sum(1 - k / row["draws"] for k in row["misread"])
            assert row["correct"] == pytest.approx(right, abs=0.01)
            assert counts == [sum(k == 0 for k in row["misread"])]
        else:
            assert counts == (row["correct"] if several else [row["correct"]])


@pytest.mark.parametrize("name", STUDIES)
def test_a_comparison_is_of_the_shipped_models_and_as_it_is_declared(name, built):
    study, record = STUDIES[name], PLACE.record(name)
    profile, here = study.at(PLACE).profiles["full"].within(record["data"]["n"]), built(name)
    told = json.loads(json.dumps([asdict(profile), study.about_attacks, study.about_data]))
    assert differences(told[0], record["profile"]) == []
    assert record["weak"] == told[1] | {"C&W": study.cw, "seed": 0}
    assert record["data"].items() >= told[2].items()
    kept = study.at(PLACE).defenses
    assert here.keys() == record["ms_per_image"].keys() == kept.keys()
    sha256 = {defense: model_fingerprint(model)[:16] for defense, model in here.items()}
    for row in record["rows"]:
        assert row["model"] == sha256[row["defense"]], row["defense"]
        assert row["n"] == profile.n(row["defense"], row["attack"])
    # What falls at the smallest ε falls further out, too: the rest of the protocol may be missing.
    missing = study.missing(PLACE)
    assert {attack for _, attack, _ in missing} <= {STRONG}
    assert min(study.epsilons) not in {eps for *_, eps in missing}


@pytest.mark.parametrize("name", STUDIES)
def test_the_worst_case_is_never_above_any_of_its_attacks(name):
    found, asked = experiments.results(name), 0
    for defense in found.names():
        for eps in found.epsilons:
            if not found.has(defense, STRONG, eps):
                continue
            asked += 1
            worst = found.right(defense, STRONG, eps).double()
            left = list(found.stands(defense, eps).values())
            if (defense, eps) in found.reports:
                clean = found.reports[defense, eps].right("clean")
            else:
                clean = found.right(defense, CLEAN)[: len(worst)]
            assert left == sorted(left, reverse=True)
            if (worst == worst.round()).all():
                assert (worst <= clean.double()).all()
                assert left[-1] == pytest.approx(100 * worst.mean().item(), abs=0.1)
    assert asked >= 5


def test_the_records_of_colours_say_what_their_images_are():
    assert "JPEG copy" in PLACE.record("cifar10")["data"]["name"]
    assert colours.chosen_set(PLACE) == "cifar10-jpeg"
    assert "probably" in PLACE.record("imagenet")["data"]["name"]


def test_each_defense_does_what_its_paper_says_against_its_weak_attack():
    """The recorded check; a defense that fails it would be no fair opponent."""
    checks = experiments.results("mnist").checks()
    assert [check.name for check in checks] == list(digits.defenses.PUBLISHED)
    assert [check.name for check in checks if not check.holds] == []


# --- choices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_was_made_on_the_bundled_digits_with_the_shipped_networks(name):
    record = PLACE.record(name)
    x, _ = data.load("mnist", "validation")
    stored = {part: record["data"][part] for part in ("split", "n", "sha256")}
    n = stored["n"]
    assert stored == {"split": "validation", "n": n, "sha256": data.fingerprint(x[:n])}
    assert n == (500 if name == "mnist_purifier_choice" else 1000)
    for network, sha256 in record.get("weights_sha256", {}).items():
        assert PLACE.sha256(network) == sha256
    known = record.get("classifier_sha256", PLACE.sha256("mnist-cnn"))
    assert known in (PLACE.sha256("mnist-cnn"), model_fingerprint(PLACE.model("mnist-cnn")))


def test_what_was_chosen_follows_from_the_recorded_rows():
    levels, variants = PLACE.record("mnist_selection"), PLACE.record("mnist_variants")
    tuning, purifier = PLACE.record("mnist_tuning"), PLACE.record("mnist_purifier_choice")
    assert digit_choices.choose_level(levels["rows"]) == levels["chosen"]
    rows = [row for row in variants["rows"] if row["split"] == "validation"]
    assert digit_choices.choose_variant(rows) == variants["chosen"]
    assert {k: best(tuning["rows"], k)["options"] for k in digit_choices.PUBLISHED} == tuning[
        "chosen"
    ]
    score = {row["defense"]: sum(row["correct"]) for row in purifier["rows"]}
    assert max(score, key=score.get) == purifier["chosen"]


def test_all_that_was_to_be_tried_has_been():
    def tried(name, split=""):
        rows = [r for r in PLACE.record(name)["rows"] if r.get("split", "") == split]
        return [(row["defense"], row["options"]) for row in rows]

    levels = [
        ("adaptive" if walk else "direct", {"sigma": sigma} | walk)
        for sigma in digit_choices.SIGMAS
        for walk in ({}, *digit_choices.WALKS)
    ]
    assert tried("mnist_selection") == levels
    grid = [(name, options) for name, several in digit_choices.GRID.items() for options in several]
    assert tried("mnist_variants", "validation") == [*digit_choices.OTHERS.items(), *grid]
    assert digit_choices.GRID.keys() == PRESETS.keys()
    rows = [r for r in PLACE.record("mnist_variants")["rows"] if r["split"] == "validation"]
    assert tried("mnist_variants", "test") == digit_choices.tested(rows)
    assert len(digit_choices.tested(rows)) == len(digit_choices.OTHERS) + len(PRESETS)
    assert all("ms_per_image" in row for row in rows)
    settings = [
        (name, options) for name, several in digit_choices.PUBLISHED.items() for options in several
    ]
    assert tried("mnist_tuning") == settings
    for one in (
        digit_choices.PURIFIERS,
        digit_choices.STRONGER_PURIFIERS,
        digit_choices.BEGUN_PURIFIERS,
    ):
        assert tried(one.record) == list(one.table.items())


def test_the_shipped_networks_are_those_that_were_chosen():
    chosen = PLACE.record("mnist_selection")["chosen"]
    assert models.about("mnist-dae")["training"]["sigma"] == chosen["sigma"]
    default = Adaptive(torch.nn.Identity())
    assert (default.steps, default.step_size) == (chosen["steps"], chosen["step_size"])
    row = best(PLACE.record("mnist_selection")["rows"], "direct")
    rows = PLACE.record("mnist_selection")["rows"]
    kept = {r["dae_sha256"] for r in rows if r["options"]["sigma"] == chosen["sigma"]}
    assert kept == {PLACE.sha256("mnist-dae")} and row["dae_sha256"]
    x, _ = data.load("mnist", "validation")
    level = PLACE.record("mnist_variants")["calibration"]
    assert calibrate(PLACE.model("mnist-dae"), x)[:2] == pytest.approx(level[:2], rel=1e-4)
    purifier = dict(digit_choices.CANDIDATES[PLACE.record("mnist_purifier_choice")["chosen"]])
    purifier.pop("weight")
    about = models.about("mnist-purifier")
    assert about["options"] == purifier
    assert about["classifier_sha256"] == PLACE.sha256("mnist-cnn")
    later = digit_choices.purifier_recipe(digit_choices.strongest(PLACE))
    about = models.about("mnist-purifier-strong")
    assert (about["options"], about["training"]) == (later.model, later.options)
    assert about["task"] == later.task(PLACE.model("mnist-cnn")).name
    for record in SELECTED.values():
        selected = PLACE.record(record)
        dae = record.replace("_selection", "-dae")
        assert selected["dae_sha256"] == PLACE.sha256(dae)
        assert models.about(dae)["options"]["depth"] == selected["chosen"]["depth"]


@pytest.mark.parametrize("use", ["direct", "adaptive"])
def test_a_slice_of_the_levels_is_what_is_measured_now(use, validation):
    record = PLACE.record("mnist_selection")
    options = record["chosen"] if use == "adaptive" else {"sigma": record["chosen"]["sigma"]}
    (row,) = (r for r in record["rows"] if (r["defense"], r["options"]) == (use, options))
    walk = {k: v for k, v in options.items() if k != "sigma"}
    dae, net = PLACE.model("mnist-dae"), PLACE.model("mnist-cnn")
    purifier = Adaptive(dae, **walk) if walk else digit_choices.Direct(dae)
    recompute(row, digit_choices.Defended(net, purifier), *validation)


@pytest.mark.parametrize("variant", ["chosen", "direct, twice", "sign"])
def test_a_slice_of_the_variants_is_what_is_measured_now(variant, validation):
    record = PLACE.record("mnist_variants")
    name = record["chosen"]["variant"] if variant == "chosen" else variant
    rows = [row for row in record["rows"] if row["split"] == "validation"]
    row = best(rows, name)
    recompute(row, purified(record, row), *validation)


def test_a_slice_of_the_tested_variant_is_what_is_measured_now(full_data):
    record = PLACE.record("mnist_variants")
    x, y = data.load("mnist", "test", profile="full", root=full_data)
    stored = record["data"]["test"]
    assert stored == {"n": 5000, "sha256": data.fingerprint(x[:5000])}
    rows = [row for row in record["rows"] if row["split"] == "test"]
    row, (x, y) = best(rows, record["chosen"]["variant"]), (x[:N], y[:N])
    hit = digit_choices.attacked(PLACE.model("mnist-cnn"), x, y, record["eps"], 200)
    assert record["attack"]["steps"] == {"validation": 50, "test": 200}
    recompute(row, purified(record, row), hit, y)


def test_a_slice_of_the_published_settings_is_what_is_measured_now(validation):
    rows = PLACE.record("mnist_tuning")["rows"]
    (row,) = (r for r in rows if r["options"] == {"quality": 10})
    recompute(row, experiments.build("mnist", "jpeg", quality=10), *validation)


def purified(record, row):
    parts = PLACE.model("mnist-cnn"), PLACE.model("mnist-dae"), Calibration(*record["calibration"])
    return digit_choices.purified(*parts, row["defense"], row["options"])


def recompute(row, model, images, y):
    """At every ε."""
    for hit, then in zip(images, outcomes(row), strict=True):
        assert agree(scores.outcomes(model, hit, y), then[: len(y)])


@pytest.mark.parametrize("defense", list(experiments.PROVED.defenses))
def test_a_slice_of_the_proofs_is_what_is_proved_now(defense, full_data):
    proved = experiments.PROVED
    x, y = proved.images(Place(root=full_data)).take(100)
    model = proved.defenses[defense].build(PLACE)
    assert torch.equal(verify(model, x, y, eps=0.3).right, proved.right(defense, 0.3, PLACE)[:100])
    assert agree(scores.outcomes(model, x, y), proved.right(defense, 0.0, PLACE)[:100])


def test_no_attack_fells_a_digit_that_is_proved():
    proved, verdict = experiments.PROVED, experiments.PROVED_VERDICT
    left = verdict.outcomes(PLACE)
    sure = proved.right(verdict.defense, verdict.eps, PLACE)[left.places]
    assert sure.sum() > 800 and left.right[sure].all()
    for name in proved.defenses:  # what is proved is proved within less, too, and read rightly
        rows = [proved.right(name, eps, PLACE) for eps in (0.0, *proved.epsilons)]
        assert all((more >= less).all() for more, less in pairwise(rows))
    x, y = data.load("mnist", "test").take(60)
    model = proved.defenses[verdict.defense].build(PLACE)
    sure = verify(model, x, y, eps=0.3).right
    view = Defended(model.classifier, Direct(Sliding(model.purifier.dae)))
    past = attacks.StraightThrough(model, clamps=True)
    for target in (model, attacks.Surrogate(model, view), past):
        hit = attacks.apgd(target, x, y, eps=0.3, steps=20)
        assert scores.outcomes(model, hit, y)[sure].all()


class Sliding(torch.nn.Module):
    """A purifier that is made for proofs, with slopes where its clamps are flat."""

    def __init__(self, dae):
        super().__init__()
        self.dae = dae

    def forward(self, x):
        z = ((x - 0.3) / 0.4).sigmoid()
        leads = self.dae.leads(self.dae.features[1:](z))
        return self.dae.drawing[1](0.2 * leads.sigmoid())


# --- comparisons -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("study", "defense", "attack", "eps"),
    [
        ("mnist", "adaptive, chosen", "PGD", 0.2),
        ("mnist", "defense-vae", "BIM", 0.3),
        ("mnist", "resize and pad", "FGSM", 0.1),
        ("mnist_purifier", "purifier, mlp", "PGD", 0.3),
        ("mnist_purifier", "steps alone", "PGD", 0.3),
        ("mnist_purifier_l2", "purifier", "PGD", 2.0),
        ("mnist_purifier_l2", "purifier, trained in L2", "PGD", 2.0),
    ],
)
def test_a_slice_of_the_weak_rows_is_what_is_measured_now(
    study, defense, attack, eps, weakly, asked
):
    now, then = weakly(study, defense, attack, eps, asked[study].take(N))
    assert agree(now, then)
    assert now.double().mean() > 0.05  # agreement on nothing but failures would show little


@pytest.mark.parametrize(
    ("study", "defense", "fell", "stood", "least"),
    [
        ("mnist", "adversarial training", 23, 60, 0.97),
        ("mnist_purifier", "purifier, small", 8, 16, 0.95),
    ],
)
def test_a_slice_of_the_protocol_is_what_is_measured_now(
    study, defense, fell, stood, least, built, asked
):
    """Few fell, so all that did: what befalls one digit does not depend on the others."""
    budget = STUDIES[study].profiles["full"].budget
    found = experiments.results(study).outcomes(defense, STRONG, 0.3)
    then, places = found.right[:200], found.places
    some = torch.cat([(~then).nonzero()[:fell], then.nonzero()[:stood]]).flatten()
    assert len(some) == fell + stood
    options = {"eps": 0.3, "budget": budget, "curves": False, "progress": False}
    report = evaluate(built(study)[defense], *asked[study].at(some), index=places[some], **options)
    assert agree(report.right(), then[some], least)
    assert 5 < report.worst.percent < 95


@pytest.mark.parametrize("attack", [CLEAN, "authors' BIM", "R-FGSM"])
@pytest.mark.parametrize("defense", ["no defense", "direct", "jpeg", "adversarial training"])
def test_a_slice_of_cifar10_is_what_is_measured_now(defense, attack, weakly, at_hand):
    eps = 0.0 if attack == CLEAN else recipes.COLOUR_EPS
    assert agree(*weakly("cifar10", defense, attack, eps, at_hand("cifar10").take(N)))


def test_a_slice_of_the_cifar10_protocol_is_what_is_measured_now(built, at_hand):
    n, name, eps = 20, "adversarial training", recipes.COLOUR_EPS
    budget = STUDIES["cifar10"].profiles["full"].budget
    options = {"eps": eps, "budget": budget, "curves": False, "progress": False}
    report = evaluate(built("cifar10")[name], *at_hand("cifar10").take(n), **options)
    then = experiments.results("cifar10").right(name, STRONG, eps)[:n]
    assert agree(report.right(), then, 0.9)
    assert then.any() and not then.all()  # so that agreement says something


def test_a_slice_of_imagenet_is_what_is_measured_now(weakly, at_hand):
    images, compared = at_hand("imagenet").take(8), []
    variant = plans.adaptively(PLACE.record("imagenet_selection")["chosen"]["variant"])
    for defense in ("no defense", "direct", "jpeg", variant):
        for attack, eps in ((CLEAN, 0.0), ("FGSM", 4 / 255)):
            now, then = weakly("imagenet", defense, attack, eps, images)
            compared.append(now == then)
    assert torch.cat(compared).double().mean() >= 0.95


def test_what_was_trained_or_chosen_on_is_not_in_the_record_of_imagenet(at_hand, full_data):
    test = at_hand("imagenet")
    seen = set(PLACE.record("imagenet_selection")["data"]["seen_sha256"])
    kept = photographs.unseen(photographs.find(None, full_data), seen)
    kept = data.Listing(*(part[: len(test.images)] for part in kept))
    assert not seen & set(photographs.keys(kept)) and len(seen) == sum(colours.DIVIDED.values())
    again = photographs.centres(kept)
    assert torch.equal(again.images, test.images) and torch.equal(again.labels, test.labels)


# --- verdicts, the ladder, certificates --------------------------------------------------------


@pytest.mark.parametrize("verdict", VERDICTS, ids=[verdict.record for verdict in VERDICTS])
def test_a_verdict_is_of_the_shipped_defense_as_it_is_declared(verdict):
    report, settings = verdict.load(PLACE), PLACE.record(verdict.record)["settings"]
    assert settings["model_sha256"] == model_fingerprint(verdict.row.build(PLACE))
    assert (report.n, settings["eps"], settings["norm"]) == (verdict.n, verdict.eps, "linf")
    told = settings["options"] | {"search": "auto"}  # which 0.1.0 did not write
    assert told == json.loads(json.dumps(asdict(verdict.budget)))
    assert settings["title"] == verdict.title and settings["seed"] == 0
    assert settings["own_attacks"] == list(verdict.attacks)
    assert settings["curves"] == verdict.curves == bool(report.curves)
    assert report.draws == (20 if verdict.title == "default" else 1)
    whole = {"PGD", "transfer", "BPDA", "APGD-CE", "APGD-DLR", "Square"}
    assert whole <= {row.name for row in report.rows}
    assert settings["options"]["pgd"] == BUDGETS["reference"].pgd


@pytest.mark.parametrize("name", ["direct", "adaptive, chosen"])
def test_shipped_images_of_the_worst_case_are_misread_again(name, full_data):
    report = experiments.verdict("mnist", name, 0.2)
    x, y = data.load("mnist", "test", profile="full", root=full_data).take(report.n)
    assert data.fingerprint(x) == report.settings["data_sha256"]
    assert (report.images - x).abs().max() <= 0.2 + 1e-6
    assert report.images.min() >= 0 and report.images.max() <= 1
    now = scores.outcomes(experiments.build("mnist", name), report.images, y)
    assert agree(now, report.right(), 0.99)  # another processor may round otherwise


def test_a_slice_of_the_verdict_is_what_is_measured_now(built, first):
    """Six digits that fell and six that stood: what befalls one does not depend on the others."""
    verdict, model = digits.PURIFIER_VERDICT, built("mnist_purifier")["purifier"]
    assert verdict.budget.queries == 5000 and verdict.budget.restarts == 10
    report = verdict.load(PLACE)
    then = report.right()[:200]
    some = torch.cat([then.logical_not().nonzero()[:6], then.nonzero()[:6]]).flatten()
    x, y = (part[some] for part in first)
    options = {"eps": verdict.eps, "budget": verdict.budget, "index": some}
    now = evaluate(model, x, y, curves=False, progress=False, **options).right()
    assert (now == then[some]).sum() >= 11
    assert 0.2 <= now.double().mean() <= 0.8
    assert torch.equal(scores.outcomes(model, *first), report.right("clean")[:200])


def test_the_second_purifier_is_judged_on_digits_that_no_sampled_verdict_has(full_data):
    """Places after the first thousand of the order; a slice of it, attacked again."""
    verdict, n = digits.STRONGER_VERDICTS[1], 40
    assert torch.equal(verdict.places, digit_choices.ORDER.places(3000)[1000:])
    report, settings = verdict.load(PLACE), PLACE.record(verdict.record)["settings"]
    model, places = verdict.row.build(PLACE), verdict.places[:n]
    assert settings["model_sha256"] == model_fingerprint(model)
    assert (settings["eps"], settings["budget"], report.n) == (0.3, "quick", 2000)
    x, y = verdict.images(Place(root=full_data)).at(places)
    hit = attacks.pgd(model, x, y, eps=0.3, steps=50, early_stop=True, index=places)
    assert agree(scores.outcomes(model, hit, y), report.right("PGD")[:n], 0.9)
    assert torch.equal(scores.outcomes(model, x, y), report.right("clean")[:n])
    assert 0.8 < report.right().double().mean() < 1


@pytest.mark.parametrize("name", ["white-box choice", "white-box choice, then R"])
def test_a_slice_of_the_second_verdict_is_what_is_measured_now(name):
    verdict = next(v for v in digits.KNOWN if (v.defense, v.eps) == (name, 0.2))
    report, model, n = verdict.load(PLACE), verdict.row.build(PLACE), 24
    (x, y), places = bundled("asked").take(n), verdict.places[:n]
    assert report.n == verdict.n and report.settings["eps"] == 0.2
    hit = attacks.pgd(model, x, y, eps=0.2, steps=50, early_stop=True, index=places)
    then = report.right("PGD")[:n]
    assert agree(scores.outcomes(model, hit, y), then, 0.9) and 0.5 <= then.double().mean() < 1
    assert (report.right()[:n] <= then).all()


def test_a_slice_of_the_ladder_is_what_is_measured_now():
    """The same digits under three attackers; the surrogates are not needed for them."""
    record = PLACE.record("mnist_ladder")
    x, y = data.load("mnist", "validation").take(record["data"]["n"])
    assert data.fingerprint(x) == record["data"]["sha256"]
    assert digits.LADDER.missing(PLACE) == [] and record["models_sha256"] == {
        name: model_fingerprint(defense.build(PLACE))
        for name, defense in digits.LADDER.defenses.items()
    }
    model, then = experiments.build("mnist", "direct"), experiments.ladder("direct", 0.3)
    rungs = digits.LADDER.rungs(model, x, 0.3)
    assert then.keys() == {*rungs, "full gradient, PGD", "Square"}
    for rung in ("classifier alone", "BPDA", "full gradient"):
        stop = rung != "classifier alone"
        hit = attacks.apgd(rungs[rung], x[:N], y[:N], eps=0.3, steps=50, early_stop=stop)
        assert agree(scores.outcomes(model, hit, y[:N]), then[rung][:N])
    attackers = experiments.ladder("adaptive, chosen", 0.2).keys()
    assert {"surrogate: descent", "BPDA, the DAE", "aware, λ = 0.003"} <= attackers


def test_the_certificates_are_those_of_the_shipped_models():
    subject, record = digits.CERTIFIED, PLACE.record("mnist_certified")
    assert subject.missing(PLACE) == []
    assert record["options"] == {"n": 10_000, "n0": 100, "alpha": 0.001}
    for sigma in subject.sigmas:
        for kind in subject.kinds:
            base = subject.base(kind, sigma, PLACE)
            assert record["models_sha256"][f"{kind}, {sigma:g}"] == model_fingerprint(base)
            assert len(subject.certificates(kind, sigma, PLACE).votes) == 500


@pytest.mark.parametrize("kind", digits.CERTIFIED.kinds)
def test_a_slice_of_the_certificates_is_what_is_counted_now(kind, first):
    """The same draws; another processor may read a few of them otherwise."""
    subject, some, sigma = digits.CERTIFIED, torch.tensor([3, 8, 150]), 0.5
    x, y = (part[some] for part in first)
    assert subject.labels(PLACE)[some].tolist() == y.tolist()
    options = {"sigma": sigma, "noise_trained": True, "index": some}
    now = certify(subject.base(kind, sigma, PLACE), x, **options)
    then = subject.certificates(kind, sigma, PLACE)
    assert torch.equal(now.predictions, then.predictions[some])
    assert ((now.votes - then.votes[some]).abs() <= 20).all()
    assert now.votes.unique().numel() > 1


def test_no_certified_digit_fell_within_its_radius_beyond_chance():
    subject, asked, fell = digits.CERTIFIED, 0, 0
    labels = subject.labels(PLACE)
    for sigma in subject.sigmas:
        found = subject.certificates("denoised", sigma, PLACE)
        for radius in subject.radii:
            right = subject.standing(sigma, radius, PLACE)
            inside = found.certified(labels, radius * sigma)[: len(right)]
            asked, fell = asked + int(inside.sum()), fell + int((inside & ~right).sum())
    assert asked > 100
    assert fell <= binom.ppf(0.9999, asked, subject.alpha)


# --- each is gone on with ----------------------------------------------------------------------


def test_the_first_digits_are_the_records(first, full_data):
    test = data.load("mnist", "test", profile="full", root=full_data)
    assert torch.equal(test.images[:200], first.images)
    assert torch.equal(test.labels[:200], first.labels)
    in_order, stored = test.at(digit_choices.ORDER.places()), PLACE.record("mnist_sampled")["data"]
    assert all(map(torch.equal, in_order.take(200), bundled("asked")))
    assert stored["order"] == asdict(digit_choices.ORDER)
    assert stored.items() >= data_print(*in_order).items()


def test_choices_and_the_ladder_go_on_and_find_nothing_to_do(tmp_path, capsys):
    """Their data are bundled."""
    shutil.copytree(PLACE.results, tmp_path / "results")
    place = replace(PLACE, results=tmp_path / "results", work=tmp_path / "work")
    for row in (
        digit_choices.SELECTION,
        digit_choices.TUNING,
        digit_choices.PURIFIER_CHOICE,
        digits.LADDER,
    ):
        row.run(place)
    assert unchanged(place) and capsys.readouterr().out == ""


def test_what_needs_the_official_test_digits_goes_on_and_finds_nothing_to_do(copied, capsys):
    """Of the verdicts two: that all are as declared is tested above, and one takes ten seconds."""
    studies = (digits.COMPARISON, digits.PURIFIER, digits.PURIFIER_L2)
    verdicts = [v for v in VERDICTS if v.title == "default" and v.eps == 0.1]
    for row in (
        *(digit_choices.VARIANTS, *studies, *verdicts),
        *(digits.PURIFIER_VERDICT, digits.CERTIFIED),
    ):
        assert row.missing(copied) == []  # what is missing takes hours
        row.run(copied)
    assert unchanged(copied) and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_the_commands_for_colours_go_on_and_find_nothing_to_do(name, copied, at_hand, capsys):
    at_hand(name)
    assert STUDIES[name].missing(copied) == []  # what is missing takes hours
    asked = parser().parse_args([name, "--data", colours.chosen_set(copied)])
    COMMANDS[name].run(copied, asked)
    if name == "imagenet":  # the command needs no photographs to choose on where it has chosen
        colours.imagenet_choice(None, copied).run(copied)
    assert unchanged(copied) and capsys.readouterr().out == ""


def test_other_settings_than_the_records_are_refused(tmp_path):
    shutil.copytree(PLACE.results, tmp_path / "results")
    place = replace(PLACE, results=tmp_path / "results")
    with pytest.raises(ValueError, match=r"mnist_tuning\.json was made with another attack; move"):
        replace(digit_choices.TUNING, steps=3).run(place)
    with pytest.raises(ValueError, match=r"mnist_selection\.json was made with another eps; move"):
        replace(digit_choices.SELECTION, epsilons=(0.0, 0.1)).run(place)
    with pytest.raises(ValueError, match=r"mnist_ladder\.json was made with another attack, data"):
        replace(digits.LADDER, steps=3, images=lambda p: digit_choices.validation(p, 6)).run(place)
