"""The protocol against defenses of which the truth is known."""

from dataclasses import replace

import pytest
import support
import torch
from support import Detached, Hot, Opaque, Quantise, names, run, shipped

from apudae import models
from apudae.evaluation import BUDGETS
from apudae.purification import Adaptive, Defended


@pytest.fixture(scope="module")
def classifier():
    return shipped("mnist-cnn")


@pytest.fixture(scope="module")
def digits():
    """Sixty: masked and plain models are compared image by image."""
    return support.digits(60)


@pytest.fixture(scope="module")
def base(classifier, digits):
    return run(classifier, digits, eps=0.1)


def differ(one, other):
    """On how many of the same images two reports differ, by rates where one is random."""
    return (one.right().double() - other.right().double()).abs().sum().item()


def test_the_plain_network_raises_nothing_and_keeps_its_numbers_consistent(base, digits):
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


def test_the_hardened_network_raises_nothing(digits):
    report = run(shipped("mnist-adversarial"), digits, eps=0.31)
    assert report.findings == [] and 20 <= report.worst.percent <= 80


def test_logits_times_1000_hide_nothing(classifier, digits, base):
    report = run(Hot(classifier), digits, eps=0.1, curves=False)
    assert "zero gradients" in names(report)
    assert differ(report, base) <= 2


def test_a_rounding_hides_nothing(classifier, digits, base):
    report = run(Defended(classifier, Quantise(100)), digits, eps=0.1)
    assert {"zero gradients", "black box wins", "does not fall"} <= names(report)
    assert differ(report, base) <= 2


def test_a_rounding_inside_a_model_hides_nothing(classifier, digits, base):
    report = run(Opaque(Quantise(100), classifier), digits, eps=0.1, curves=False)
    assert "zero gradients" in names(report)
    assert "straight-through" in {row.name for row in report.rows}
    assert differ(report, base) <= 2


@pytest.mark.parametrize(
    ("n", "budget"),
    [
        (24, {"pgd": 20, "apgd": 20, "queries": 50}),
        pytest.param(70, {"queries": 100}, marks=pytest.mark.slow),
    ],
)
def test_a_cut_inner_loop_hides_nothing(n, budget, classifier):
    """Two images may stand that an attack through the loop fells."""
    dae, digits = shipped("mnist-dae"), support.digits(n)
    options = {"eps": 0.2, "curves": False, "budget": replace(BUDGETS["quick"], **budget)}
    honest = Adaptive(dae, stepper="descent", steps=3, step_size=0.05)
    truth = run(Defended(classifier, honest), digits, **options)
    assert truth.findings == []
    report = run(Defended(classifier, Detached(dae, 3, 0.05)), digits, **options)
    assert {"zero gradients", "unseen optimisation"} <= names(report)
    assert abs(report.worst.correct - truth.worst.correct) <= 2
