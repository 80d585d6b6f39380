"""The protocol against defenses of which the truth is known."""

from dataclasses import replace

import pytest
import support
import torch
from support import SMALL, Detached, Hot, Noisy, Opaque, Quantise, Rarely, names, run, shipped
from torch import nn

from apudae import evaluation, models
from apudae.core.arguments import AttackWarning
from apudae.evaluation import BUDGETS, RULES, Finding, inspect_model, protocol
from apudae.evaluation.diagnostics import is_random
from apudae.purification import Adaptive, Calibration, Defended, Direct


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
    hardened = shipped("mnist-adversarial")
    assert run(hardened, digits, eps=0.2).findings == []
    report = run(hardened, digits, eps=0.31, curves=False)
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
    budget = replace(BUDGETS["quick"], pgd=20, apgd=20, queries=100)
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
    report = run(Rarely(classifier), digits, eps=0.1, curves=False, budget=few)
    assert "random forward" in names(report)
    truth = 0.95 * base.worst.percent
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


def test_probabilities_noise_that_wins_and_steps_that_weaken_are_seen(classifier, digits):
    x, y = digits.take(40)
    found = inspect_model(nn.Sequential(classifier, nn.Softmax(1)), x, y, eps=0.1)
    assert "probabilities" in {finding.name for finding in found}
    report = run(classifier, digits.take(40), eps=0.1, budget=SMALL)
    for row in report.rows:
        if row.name == "noise":
            row.misread = [1] * 40
        if row.name == "PGD":
            row.misread = [0] * 40
    report.curves["steps"] = {"5": [1] * 20, "10": [0] * 20}
    report.curves["ε"] = {"0.1": [0] * 20, "0.5": [0] * 15 + [1] * 5}
    assert {f.name for f in protocol.judge(report)} == {
        "noise wins",
        "more steps are weaker",
        "does not fall",
    }


def test_adam_steps_mask_the_gradient_and_plain_descent_does_not(classifier, digits):
    x, y = digits.take(40)
    dae = shipped("mnist-dae")
    for stepper, expected in (("adam", ["unseen optimisation"]), ("descent", [])):
        model = Defended(classifier, Adaptive(dae, stepper=stepper, steps=13, step_size=0.05))
        assert [f.name for f in inspect_model(model, x, y, eps=0.2)] == expected


def test_every_rule_is_told_whole_and_drawn_as_a_warning(classifier, digits):
    for name, rule in RULES.items():
        text = str(Finding(name, "this"))
        assert all(part in text for part in (name, rule.raised_if, rule.means, rule.do))
    with pytest.warns(AttackWarning, match="MnistCNN: few images: 5 images"):
        evaluation.evaluate(
            classifier, *digits.take(5), eps=0.1, budget=SMALL, curves=False, progress=False
        )


def test_randomness_is_found(classifier, digits):
    x = digits.images[:50]
    dae = shipped("mnist-dae")
    assert is_random(Rarely(classifier), x) and is_random(Defended(classifier, Noisy(0.1)), x)
    assert is_random(Defended(classifier, Direct(dae, noise=0.1)), x)
    assert not is_random(classifier, x) and not is_random(Defended(classifier, Direct(dae)), x)


def test_noise_that_wakes_under_attack_is_found(classifier, digits):
    """Noise may depend on the image: none at clean ones says nothing."""
    dae = shipped("mnist-dae")
    level = Calibration(50.0, 1.0)
    awake = Adaptive(dae, steps=2, step_size=0.05, noise=0.2, objective="hinge", calibration=level)
    model = Defended(classifier, awake)
    assert model.random and is_random(model, digits.images[:20])

    class Waking(nn.Module):
        def forward(self, x):
            rough = (x - x.roll(1, 3)).abs().mean((1, 2, 3), keepdim=True) > 0.12
            return x + rough * 0.3 * torch.randn_like(x)

    model = Defended(classifier, Waking())
    assert not is_random(model, digits.images[:20])
    report = run(model, digits.take(20), eps=0.3, budget=SMALL, curves=False)
    assert report.settings["random"] and "random forward" in names(report)


def test_masks_that_are_not_found_are_named(classifier, digits):
    def far(x):
        return torch.from_numpy((100 * x.detach().numpy()).round() / 100)

    model, few = Opaque(far, classifier), digits.take(20)
    report = run(model, few, eps=0.1, budget=SMALL, curves=False)
    assert {"zero gradients", "mask not found"} <= names(report)
    named = run(Defended(classifier, Opaque(far, nn.Identity())), few, eps=0.1, budget=SMALL)
    assert "mask not found" not in names(named)
    assert "mask not found" not in names(run(Hot(classifier), few, eps=0.1, budget=SMALL))
    floored = Opaque(lambda x: (100 * x) // 1 / 100, classifier)  # torch has no derivative of it
    report = run(floored, few, eps=0.1, budget=SMALL, curves=False)
    assert "straight-through" in {row.name for row in report.rows}


def test_an_inner_loop_is_seen_however_it_was_imported(classifier, digits):
    from torch.autograd import grad

    def walk(x):
        with torch.enable_grad():
            z = x.detach().requires_grad_(True)
            return (x - 0.01 * grad(z.square().sum(), z)[0]).detach()

    found = inspect_model(Opaque(walk, classifier), *digits.take(20), eps=0.1)
    assert "unseen optimisation" in {finding.name for finding in found}
