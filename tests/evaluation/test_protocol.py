"""The protocol against defenses of which the truth is known."""

from dataclasses import replace

import pytest
import support
import torch
from support import Detached, Hot, Opaque, Quantise, components, names, run, shipped, small

from apudae import models
from apudae.evaluation import BUDGETS
from apudae.purification import Adaptive, Defended

EPS = 0.08  # at which half of what the small network reads falls


@pytest.fixture(scope="module")
def digits():
    """Sixty: masked and plain models are compared image by image."""
    return support.read(60)


@pytest.fixture(scope="module")
def base(digits):
    """What masked models hide: the same attacks on a plain one."""
    report = run(small(), digits, eps=EPS)
    assert report.findings == [] and 40 <= report.worst.percent <= 60
    return report


def differ(one, other):
    """On how many of the same images two reports differ, by rates where one is random."""
    return (one.right().double() - other.right().double()).abs().sum().item()


def test_the_plain_network_raises_nothing_and_keeps_its_numbers_consistent():
    digits = support.digits(60)
    base = run(shipped("mnist-cnn"), digits, eps=0.1)
    assert base.findings == [] and base.clean.percent >= 99
    assert 20 <= base.worst.percent <= 80
    assert base.worst.correct <= base.right("PGD").sum() <= base.right("noise").sum()
    stands = base.right()
    for row in base.rows[3:]:  # later attacks see only what still stands
        ran = torch.tensor(row.misread) >= 0
        assert (ran | ~stands).all()
    radii = [sum(v) for v in base.curves["ε"].values()]
    assert radii == sorted(radii) and radii[-1] == 50
    again = models.build("mnist-cnn")
    again.load_state_dict(models.load("mnist-cnn").state_dict())
    with torch.no_grad():
        misread = again.eval()(base.images).argmax(1) != digits.labels
    assert torch.equal(misread, ~stands)


def test_the_hardened_network_raises_nothing():
    report = run(shipped("mnist-adversarial"), support.digits(60), eps=0.31)
    assert report.findings == [] and 20 <= report.worst.percent <= 80


def test_logits_times_1000_hide_nothing(digits, base):
    report = run(Hot(small()), digits, eps=EPS, curves=False)
    assert "zero gradients" in names(report)
    assert differ(report, base) <= 2


def test_a_rounding_hides_nothing(digits, base):
    report = run(Defended(small(), Quantise(100)), digits, eps=EPS)
    assert {"zero gradients", "black box wins", "does not fall"} <= names(report)
    assert differ(report, base) <= 2


def test_a_rounding_inside_a_model_hides_nothing(digits, base):
    report = run(Opaque(Quantise(100), small()), digits, eps=EPS, curves=False)
    assert "zero gradients" in names(report)
    assert "straight-through" in {row.name for row in report.rows}
    assert differ(report, base) <= 2


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cut_inner_loop_hides_nothing(whole):
    """Two images may stand that an attack through the loop fells."""
    if whole:
        classifier, dae = shipped("mnist-cnn"), shipped("mnist-dae")
        digits, eps, budget = support.digits(70), 0.1, {"queries": 100}
    else:
        classifier, dae, digits, eps = small(), components(), support.read(24), EPS
        budget = {"pgd": 20, "apgd": 20, "queries": 50}
    options = {"eps": eps, "curves": False, "budget": replace(BUDGETS["quick"], **budget)}
    honest = Adaptive(dae, stepper="descent", steps=3, step_size=0.05)
    truth = run(Defended(classifier, honest), digits, **options)
    assert truth.findings == [] and 40 <= truth.worst.percent <= 90
    report = run(Defended(classifier, Detached(dae, 3, 0.05)), digits, **options)
    assert {"zero gradients", "unseen optimisation"} <= names(report)
    assert abs(report.worst.correct - truth.worst.correct) <= 2
