"""Our attacks beside those of other libraries, on the shipped classifier and at equal budgets."""

from __future__ import annotations

import foolbox
import numpy as np
import pytest
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
from art.estimators.classification import PyTorchClassifier

from apudae import attacks, checkpoints, data
from apudae.norms import length

EPSILONS = {"linf": (0.05, 0.1, 0.15), "l2": (1.0, 1.5, 2.0)}
POINT = 0.01


@pytest.fixture(scope="module")
def model():
    return checkpoints.load("mnist-cnn").eval()


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist", "validation").take(1000)


def standing(model, images, y):
    with torch.no_grad():
        return (model(images).argmax(1) == y).float().mean().item()


def foolboxes(model, attack, x, y, eps):
    torch.manual_seed(0)  # foolbox starts at random from the global generator
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return attack(wrapped, x, y, epsilons=eps)[1]


def arts(attack, model, x, **options):
    np.random.seed(0)  # so does ART, from numpy's
    estimator = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu"
    )
    made = attack(estimator, batch_size=len(x), verbose=False, **options)
    return made


def never_more_than_a_point_above(ours, theirs):
    """Both lists over the same ε; somewhere the question must not be trivial."""
    print("ours", ours, "theirs", theirs)
    assert any(0.2 <= share <= 0.8 for share in theirs)
    assert all(a <= b + POINT for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("norm", EPSILONS)
def test_fgsm_beside_foolbox(norm, model, digits):
    x, y = digits
    kind = foolbox.attacks.LinfFastGradientAttack if norm == "linf" else foolbox.attacks.FGM
    ours, theirs = [], []
    for eps in (0.1, 0.15, 0.2) if norm == "linf" else (1.0, 1.5, 2.0):
        ours.append(standing(model, attacks.fgsm(model, x, y, eps=eps, norm=norm), y))
        theirs.append(standing(model, foolboxes(model, kind(), x, y, eps), y))
    never_more_than_a_point_above(ours, theirs)


@pytest.mark.parametrize("norm", EPSILONS)
def test_bim_beside_foolbox(norm, model, digits):
    x, y = digits
    linf = foolbox.attacks.LinfBasicIterativeAttack
    kind = linf if norm == "linf" else foolbox.attacks.L2BasicIterativeAttack
    ours, theirs = [], []
    for eps in EPSILONS[norm]:
        theirs_at = kind(steps=10, abs_stepsize=eps / 4, random_start=False)
        made = attacks.bim(model, x, y, eps=eps, norm=norm, steps=10, step_size=eps / 4)
        ours.append(standing(model, made, y))
        theirs.append(standing(model, foolboxes(model, theirs_at, x, y, eps), y))
    never_more_than_a_point_above(ours, theirs)


@pytest.mark.parametrize("norm", EPSILONS)
def test_pgd_beside_foolbox(norm, model, digits):
    x, y = digits
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    ours, theirs = [], []
    for eps in EPSILONS[norm]:
        size = 2.5 * eps / 20
        made = attacks.pgd(model, x, y, eps=eps, norm=norm, steps=20, step_size=size)
        ours.append(standing(model, made, y))
        theirs_at = kind(steps=20, abs_stepsize=size, random_start=True)
        theirs.append(standing(model, foolboxes(model, theirs_at, x, y, eps), y))
    never_more_than_a_point_above(ours, theirs)


@pytest.mark.parametrize("norm", EPSILONS)
def test_apgd_beside_art(norm, model, digits):
    x, y = digits
    ours, theirs = [], []
    for eps in EPSILONS[norm][1:]:
        made = attacks.apgd(model, x, y, eps=eps, norm=norm, steps=20, early_stop=True)
        ours.append(standing(model, made, y))
        attack = arts(
            AutoProjectedGradientDescent,
            model,
            x,
            norm=np.inf if norm == "linf" else 2,
            eps=eps,
            eps_step=2 * eps,
            max_iter=20,
            nb_random_init=1,
            loss_type="cross_entropy",
        )
        theirs.append(standing(model, torch.from_numpy(attack.generate(x.numpy(), y.numpy())), y))
    never_more_than_a_point_above(ours, theirs)


def test_square_in_l2_beside_art(model, digits):
    x, y = (part[:500] for part in digits)
    made = attacks.square(model, x, y, eps=3.0, norm="l2", queries=100)
    options = {"norm": 2, "eps": 3.0, "max_iter": 100, "p_init": 0.8, "nb_restarts": 1}
    attack = arts(SquareAttack, model, x, **options)
    with np.errstate(divide="ignore", invalid="ignore"):
        theirs = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
    assert length(theirs - x, "l2").max() <= 3.0 + 1e-4
    never_more_than_a_point_above([standing(model, made, y)], [standing(model, theirs, y)])


def no_longer_and_no_rarer(model, ours, theirs, x, y, norm):
    right = model(x).argmax(1) == y
    lengths, fallen = [], []
    for images in (ours, theirs):
        lengths.append(length(images - x, norm)[right].median().item())
        fallen.append((model(images).argmax(1) != y)[right].float().mean().item())
    print("median", lengths, "fallen", fallen)
    assert fallen[0] >= fallen[1]
    assert lengths[0] <= 1.02 * lengths[1]


@pytest.mark.parametrize("norm", EPSILONS)
def test_deepfool_beside_foolbox(norm, model, digits):
    x, y = digits
    linf, l2 = foolbox.attacks.LinfDeepFoolAttack, foolbox.attacks.L2DeepFoolAttack
    kind = (linf if norm == "linf" else l2)(steps=50, candidates=10, overshoot=0.02)
    theirs = foolboxes(model, kind, x, y, None)
    no_longer_and_no_rarer(model, attacks.deepfool(model, x, y, norm=norm), theirs, x, y, norm)


def cw_beside_foolbox(model, x, y, steps, searches, step_size):
    budget = {"steps": steps, "initial_const": 1e-3, "stepsize": step_size}
    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=searches, **budget)
    theirs = foolboxes(model, attack, x, y, None)
    ours = attacks.cw(model, x, y, steps=steps, searches=searches, step_size=step_size)
    no_longer_and_no_rarer(model, ours, theirs, x, y, "l2")


def test_cw_beside_foolbox(model, digits):
    cw_beside_foolbox(model, *digits, steps=50, searches=5, step_size=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("step_size", [0.01, 0.03])
def test_cw_beside_foolbox_at_a_longer_budget(step_size, model, digits):
    cw_beside_foolbox(model, *digits, steps=300, searches=7, step_size=step_size)
