"""The protocol on models that draw: scored by their mean, on fresh draws, and with one known."""

from dataclasses import replace

import support
import torch
from support import SMALL, Noisy, Rarely, components, names, run, small
from torch import nn

from apudae.evaluation import BUDGETS
from apudae.purification import Defended, Direct


def test_a_defense_that_fails_by_chance_is_scored_by_its_mean():
    classifier, digits = small(), support.read(30)
    budget = replace(BUDGETS["quick"], pgd=20, apgd=20, queries=50)
    options = {"eps": 0.08, "curves": False, "budget": budget}
    base = run(classifier, digits, **options)
    assert 40 <= base.worst.percent <= 60
    report = run(Rarely(classifier), digits, **options)
    assert "random forward" in names(report)
    truth = 0.95 * base.worst.percent
    assert abs(report.worst.percent - truth) <= 3
    assert abs(report.clean.percent - 95) <= 3
    assert report.always.percent < report.worst.percent - 5  # what "any draw" would have said
    rates = report.right()
    assert report.always.correct == (rates == 1).sum() <= (rates > 0.5).sum()
    assert report.voted.correct == (rates > 0.5).sum()
    assert f"in most {report.voted}" in report.summary()


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
    budget = replace(BUDGETS["quick"], pgd=20, apgd=20, queries=100)
    report = run(model, (x, y), eps=eps, budget=budget)
    assert "random forward" in names(report)
    assert 20 < truth < 80 and abs(report.worst.percent - truth) <= 3
    assert {"one known draw", "APGD-margin"} <= {row.name for row in report.rows}
    assert set(report.curves) == {"ε", "steps", "draws"}


def test_a_known_draw_is_scored_by_itself():
    model = Defended(small(), Direct(components(), noise=0.2))
    report = run(model, support.read(20), eps=0.1, budget=SMALL, curves=False)
    (row,) = (r for r in report.rows if r.name == "one known draw")
    assert len(row.fixed) == 20 and set(row.fixed) <= {0, 1} and row.kind == "ablation"
    assert "its randomness fixed, and known to the attacker" in report.summary()


class FailsFirst(nn.Module):
    """Wrong in the first so many draws, which the protocol chooses on, and right in all others."""

    random = True

    def __init__(self, model, draws):
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x, index=None, draw=0):
        logits = self.model(x)
        return logits.flip(1) if draw < self.draws else logits


def test_the_draws_that_count_are_not_those_that_chose_the_attack():
    x = torch.cat([torch.full((10, 1, 4, 4), 0.1), torch.full((10, 1, 4, 4), 0.9)])
    y = (x[:, 0, 0, 0] > 0.5).long()
    model = FailsFirst(Stripe(torch.ones(16)), SMALL.scoring)
    report = run(model, (x, y), eps=0.01, budget=SMALL, curves=False)
    assert report.clean.percent == 0  # on the draws that choose
    assert report.worst.percent == 100  # on as many fresh ones
