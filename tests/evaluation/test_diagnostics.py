"""Signs that a robustness is none: each is raised where it should be, and only there."""

import pytest
import support
import torch
from support import SMALL, Hot, Noisy, Opaque, Rarely, names, run, shipped
from torch import nn

from apudae import evaluation
from apudae.core.arguments import AttackWarning
from apudae.evaluation import RULES, Finding, __main__, inspect_model, protocol
from apudae.evaluation.diagnostics import is_random
from apudae.purification import Adaptive, Calibration, Defended, Direct


@pytest.fixture(scope="module")
def classifier():
    return shipped("mnist-cnn")


@pytest.fixture(scope="module")
def digits():
    return support.digits(60)


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


def test_a_radius_that_holds_all_images_is_a_finding_also_from_the_command(
    classifier, digits, capsys
):
    for eps, norm, raised in ((8, "linf", True), (1, "linf", False), (28.1, "l2", True)):
        report = run(classifier, digits.take(4), eps=eps, norm=norm, budget=SMALL, curves=False)
        assert ("everything in reach" in names(report)) == raised
    assert __main__.main(["--eps", "8", "--n", "2", "--no-curves"]) == 0
    assert "everything in reach: 8 is more than any two images differ by" in capsys.readouterr().out


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
