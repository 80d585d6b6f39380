"""The shipped verdict, comparisons and certificates; slices of them made again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from apudae.certification import certify
from apudae.report import Report
from apudae.standings import Standings
from scipy.stats import binom

from apudae import attacks, certified, checkpoints, lineup, records, robust_purifier, scores
from apudae.evaluation import evaluate, model_fingerprint

LINEUPS = {norm: robust_purifier.lineup(norm) for norm in robust_purifier.EPS}


@pytest.fixture(scope="module")
def digits():
    """The first 200 official test digits."""
    bundle = np.load(Path(__file__).parent / "first_test_digits.npz")
    return (
        torch.from_numpy(bundle["images"])[:, None].float() / 255,
        torch.from_numpy(bundle["labels"]).long(),
    )


@pytest.fixture(scope="module")
def models():
    return robust_purifier.models(checkpoints.WEIGHTS)


@pytest.fixture(scope="module")
def verdict():
    return Report.load(robust_purifier.VERDICT)


# --- the verdict -------------------------------------------------------------------------------


def test_the_verdict_is_of_the_shipped_purifier_at_the_whole_budget(models, verdict):
    assert verdict.complete and verdict.n == 1000
    settings = verdict.settings
    assert settings["model_sha256"] == model_fingerprint(models["purifier"])
    assert (settings["norm"], settings["eps"]) == ("linf", 0.3)
    told = settings["options"]
    assert told == {
        k: v
        for k, v in json.loads(json.dumps(asdict(robust_purifier.budget()))).items()
        if k in told
    }
    assert told["queries"] == 5000 and told["restarts"] == 10
    names = {row.name for row in verdict.rows}
    assert {"PGD", "transfer", "BPDA", "APGD-CE", "APGD-DLR", "Square", "PGD, 10 restarts"} <= names
    assert (
        checkpoints.about("mnist-cnn")["sha256"]
        == (checkpoints.about(robust_purifier.PURIFIER)["classifier_sha256"])
    )


def test_a_slice_of_the_verdict_is_what_is_measured_now(models, verdict, digits):
    """Six digits that fell and six that stood: what befalls one does not depend on the others."""
    then = verdict.right()[:200]
    some = torch.cat([then.logical_not().nonzero()[:6], then.nonzero()[:6]]).flatten()
    x, y = (part[some] for part in digits)
    options = {"eps": 0.3, "budget": robust_purifier.budget(), "index": some}
    report = evaluate(models["purifier"], x, y, curves=False, progress=False, **options)
    assert (report.right() == then[some]).sum() >= 11
    assert 0.2 <= report.right().double().mean() <= 0.8
    clean = scores.outcomes(models["purifier"], *digits)
    assert torch.equal(clean, verdict.right("clean")[:200])


# --- the other questions -----------------------------------------------------------------------


@pytest.mark.parametrize("norm", LINEUPS)
def test_the_record_was_made_with_the_shipped_models_and_settings(norm, models):
    line = LINEUPS[norm]
    record, profile = records.load(line.records["full"]), line.profiles["full"]
    assert record["profile"] == json.loads(json.dumps(asdict(profile)))
    assert set(models) == set(line.defenses)
    for text, row in record["rows"].items():
        defense, attack, _ = text.split(" | ")
        assert row["model"] == model_fingerprint(models[defense])[:16], text
        assert row["n"] == profile.n(defense, attack), text
    assert line.missing("full") == []


@pytest.mark.parametrize(
    ("norm", "defense"),
    [
        ("linf", "purifier, mlp"),
        ("linf", "steps alone"),
        ("l2", "purifier"),
        ("l2", "purifier, trained in L2"),
    ],
)
def test_a_slice_of_the_weak_rows_is_what_is_measured_now(norm, defense, models, digits):
    (x, y), eps = digits, robust_purifier.EPS[norm]
    found, whole = Standings.load(lineup=LINEUPS[norm]), models[defense]
    hit = attacks.pgd(whole.classifier, x, y, eps=eps, norm=norm, steps=50)
    now, then = scores.outcomes(whole, hit, y), found.right(defense, "PGD", eps)[:200]
    assert (now[: len(then)] == then).double().mean() >= 0.97
    assert now.double().mean() > 0.05


def test_a_slice_of_the_protocol_is_what_is_measured_now(models, digits):
    n, name, line = 50, "purifier, small", LINEUPS["linf"]
    x, y = (part[:n] for part in digits)
    budget = line.profiles["full"].budget
    report = evaluate(models[name], x, y, eps=0.3, budget=budget, curves=False, progress=False)
    then = Standings.load(lineup=line).right(name, lineup.STRONG, 0.3)[:n]
    assert (report.right() == then).double().mean() >= 0.94
    assert report.worst.percent > 5


# --- certificates ------------------------------------------------------------------------------


def test_the_certificates_are_those_of_the_shipped_models():
    record = records.load(certified.RECORD)
    assert certified.missing() == []
    assert record["options"] == {"n": 10_000, "n0": 100, "alpha": 0.001}
    for sigma in certified.SIGMAS:
        for kind in certified.KINDS:
            base = certified.base(kind, sigma, checkpoints.WEIGHTS)
            assert record["models_sha256"][f"{kind}, {sigma:g}"] == model_fingerprint(base)
            assert len(certified.certificates(record, kind, sigma).votes) == 500


@pytest.mark.parametrize("kind", certified.KINDS)
def test_a_slice_of_the_certificates_is_what_is_counted_now(kind, digits):
    """The same draws; another processor may read a few of them otherwise."""
    record, some, sigma = records.load(certified.RECORD), torch.tensor([3, 8, 150]), 0.5
    x, y = (part[some] for part in digits)
    assert certified.labels(record)[some].tolist() == y.tolist()
    base = certified.base(kind, sigma, checkpoints.WEIGHTS)
    told = {"sigma": sigma, "noise_trained": True, "index": some}
    now, then = certify(base, x, **told), certified.certificates(record, kind, sigma)
    assert torch.equal(now.predictions, then.predictions[some])
    assert ((now.votes - then.votes[some]).abs() <= 20).all()
    assert now.votes.unique().numel() > 1


def test_no_certified_digit_fell_within_its_radius_beyond_chance():
    record = records.load(certified.RECORD)
    labels, asked, fell = certified.labels(record), 0, 0
    for sigma in certified.SIGMAS:
        found = certified.certificates(record, "denoised", sigma)
        for radius in certified.RADII:
            right = certified.attacked(record, sigma, radius)
            n = len(right)
            inside = found.certified(labels, radius * sigma)[:n]
            asked, fell = asked + int(inside.sum()), fell + int((inside & ~right).sum())
    assert asked > 100
    assert fell <= binom.ppf(0.9999, asked, record["options"]["alpha"])
