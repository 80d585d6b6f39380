"""How strong the attacks are on the shipped classifier, and in which order."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from support import call, read, shipped, small
from torch import nn
from torch.nn import functional as F

from apudae import attacks, data
from apudae.core.norms import NORMS


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist", "validation").take(100)


def standing(x_adv, y):
    return (shipped("mnist-cnn")(x_adv).argmax(1) == y).float().mean().item()


class Counting(nn.Module):
    """How many images the model has been shown."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, x):
        self.seen += len(x)
        return self.model(x)


def test_stopping_early_at_a_large_epsilon_asks_far_less():
    x, y = data.load("mnist", "validation").take(100)
    seen = []
    for early in (False, True):
        model = Counting(shipped("mnist-cnn"))
        attacks.pgd(model, x, y, eps=0.3, steps=40, early_stop=early)
        seen.append(model.seen)
    assert seen[0] == 100 * 41
    assert seen[0] > 5 * seen[1]


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "square", "cw", "deepfool"])
def test_half_precision_models_are_attacked_as_well(name, generator):
    """bf16 keeps 8 bits: the images differ, the strength hardly does.

    DeepFool stops just past the border, where rounding the image takes some back.
    """
    x, y = read(100)
    model = deepcopy(small())
    eps, norm = (1.5, "l2") if name in ("cw", "deepfool") else (0.1, "linf")
    standing = {}
    for dtype in (torch.float32, torch.bfloat16):
        adversarial = call(name, model.to(dtype), x, y, eps=eps, norm=norm)
        assert adversarial.dtype == torch.float32
        right = model(adversarial.to(dtype)).argmax(1) == y
        standing[dtype] = right.float().mean().item()
    slack = 0.25 if name == "deepfool" else 0.15
    assert abs(standing[torch.float32] - standing[torch.bfloat16]) < slack


@pytest.mark.parametrize(("norm", "eps", "huge"), [("linf", 0.1, 0.3), ("l2", 1.5, 5.0)])
def test_strength_on_the_shipped_classifier_is_in_the_right_order(norm, eps, huge, digits):
    x, y = digits
    model = shipped("mnist-cnn")
    clean, few = standing(x, y), {"eps": eps, "norm": norm}
    scores = {name: standing(call(name, model, x, y, **few), y) for name in ("noise", "fgsm")}
    scores |= {
        "pgd": standing(attacks.pgd(model, x, y, steps=40, **few), y),
        "apgd": standing(attacks.apgd(model, x, y, steps=40, **few), y),
        "square": standing(attacks.square(model, x, y, queries=200, **few), y),
    }
    assert clean >= scores["noise"] > scores["fgsm"] > scores["pgd"] >= scores["apgd"] - 0.02
    assert scores["noise"] > 0.95
    assert scores["noise"] > scores["square"] > scores["pgd"]  # white box beats black box
    assert standing(attacks.pgd(model, x, y, eps=huge, norm=norm), y) == 0


def test_pgd_raises_the_loss_beyond_fgsm(digits):
    """At an ε at which few fall, so that early stopping hides nothing."""
    x, y = digits
    model = shipped("mnist-cnn")
    attacked = (attack(model, x, y, eps=0.02) for attack in (attacks.fgsm, attacks.pgd))
    losses = [F.cross_entropy(model(z), y) for z in attacked]
    assert losses[1] > losses[0]


@pytest.mark.parametrize("norm", NORMS)
def test_more_epsilon_steps_and_restarts_never_leave_more_standing(norm, digits):
    x, y = digits
    model = shipped("mnist-cnn")
    unit = 0.1 if norm == "linf" else 1.5
    attack = partial(attacks.pgd, model, x, y, norm=norm, early_stop=True)
    slack = 0.02  # two images of 100: one run and one random start
    for smaller, larger in ((0.3, 0.6), (0.6, 0.9), (0.9, 1.2)):
        few, many = (standing(attack(eps=unit * k, steps=20), y) for k in (smaller, larger))
        assert many <= few
    few, many = (standing(attack(eps=unit, steps=steps), y) for steps in (5, 40))
    assert many <= few + slack
    felled = []
    for restarts in (1, 2, 8):  # of two steps each: more of them find what few restarts find, too
        attacked = attack(eps=unit, steps=2, restarts=restarts)
        felled.append(model(attacked).argmax(1) != y)
    assert (felled[0] <= felled[1]).all()  # image by image: what fell once stays felled
    assert (felled[1] <= felled[2]).all()
    assert felled[2].sum() > felled[0].sum()
