"""The protocol against defenses of which the truth is known."""

from dataclasses import replace

import pytest
import support
import torch
from support import Detached, Hot, Noisy, Opaque, Quantise, Rarely, names, run, shipped
from torch import nn

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


def test_a_cut_inner_loop_hides_nothing(classifier, digits):
    dae = shipped("mnist-dae")
    budget = replace(BUDGETS["quick"], pgd=20, apgd=10, queries=50)
    options = {"eps": 0.2, "curves": False, "budget": budget}
    digits = digits.take(30)
    honest = Adaptive(dae, stepper="descent", steps=3, step_size=0.05)
    truth = run(Defended(classifier, honest), digits, **options)
    assert truth.findings == []
    report = run(Defended(classifier, Detached(dae, 3, 0.05)), digits, **options)
    assert {"zero gradients", "unseen optimisation"} <= names(report)
    assert differ(report, truth) <= 1


def test_a_defense_that_fails_by_chance_is_scored_by_its_mean(classifier, digits, base):
    few = replace(BUDGETS["quick"], queries=50)
    report = run(Rarely(classifier), digits.take(30), eps=0.1, curves=False, budget=few)
    assert "random forward" in names(report)
    truth = 95 * base.right()[:30].double().mean().item()
    assert abs(report.worst.percent - truth) <= 3
    assert abs(report.clean.percent - 95) <= 3
    assert report.always.percent < report.worst.percent - 5  # what "any draw" would have said


class Stripe(nn.Module):
    """Two classes, linear in the pixels."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        score = (x - 0.5).flatten(1) @ self.weight
        return torch.stack([-score, score], 1)


def test_noise_on_a_linear_model_against_the_exact_answer():
    """The best attack moves every pixel by ε; then the score is normal."""
    generator = torch.Generator().manual_seed(3)
    weight, eps, sigma = torch.randn(36, generator=generator), 0.05, 0.2
    x = 0.2 + 0.6 * torch.rand(200, 1, 6, 6, generator=generator)
    score = (x - 0.5).flatten(1) @ weight
    y = (score > 0).long()
    left = score.abs() - eps * weight.abs().sum()
    rates = torch.special.ndtr(left / (sigma * weight.norm()))
    truth = 100 * rates.mean().item()
    model = Defended(Stripe(weight), Noisy(sigma))
    report = run(model, (x, y), eps=eps)
    assert "random forward" in names(report)
    assert 20 < truth < 80 and abs(report.worst.percent - truth) <= 3
    assert {"one known draw", "APGD-margin"} <= {row.name for row in report.rows}
    assert set(report.curves) == {"ε", "steps", "draws"}
