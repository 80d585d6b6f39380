"""What is verified stands: against exhaustive corners, and against every attack at hand."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from apudae import attacks, data, models
from apudae.core import bounds
from apudae.evaluation import accuracy, verify
from apudae.purification import Adaptive, BitDepth, Defended, Direct

BRIEF = {
    "PGD": partial(attacks.pgd, steps=20),
    "APGD": partial(attacks.apgd, steps=20),
    "Square": partial(attacks.square, queries=50),
}


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist", "validation").take(100)


def test_of_a_linear_model_exactly_those_that_hold_are_verified(generator):
    """Its worst image is a corner, and the margin there is the bound."""
    torch.manual_seed(generator.initial_seed() % 2**31)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    x, eps = torch.rand(30, 1, 3, 3, generator=generator), 0.15
    y = model(x).argmax(1)
    found = verify(model, x, y, eps=eps, batch_size=7)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=9))).view(-1, 1, 3, 3)
    for image, label, margin in zip(x, y.tolist(), found.margins.tolist(), strict=True):
        logits = model((image + eps * signs).clamp(0, 1))
        others = logits[:, torch.arange(3) != label].amax(1)
        assert margin == pytest.approx((logits[:, label] - others).min().item(), abs=1e-4)
    assert 0 < found.accuracy.percent < 100 and found.eps == eps
    assert torch.equal(found.right, found.margins > 0)


@pytest.mark.parametrize("behind", [False, True])
def test_no_attack_fells_a_verified_digit(behind, digits):
    """A plain classifier, and behind a purifier that hardly lets anything through."""
    x, y = digits
    net = models.load("mnist-cnn")
    cut = models.Cut(0.3)
    model = Defended(net, nn.Sequential(cut)) if behind else net
    eps = 0.002
    found = verify(model, x, y, eps=eps)
    assert found.accuracy.percent > 20
    kept = found.right
    hit = attacks.suite(model, x[kept], y[kept], eps=eps, attacks=BRIEF)
    assert accuracy(model, hit.images, y[kept]).percent == 100
    misread = model(x).argmax(1) != y
    assert not (found.right & misread).any()
    larger = verify(model, x, y, eps=2 * eps)
    assert (larger.margins <= found.margins).all()


def test_a_direct_purifier_is_seen_through(digits):
    """As what it computes: the DAE, clamped, as often as it is repeated."""
    x, y = digits.images[:10], digits.labels[:10]
    net, dae = models.load("mnist-cnn"), models.load("mnist-dae")
    layers = [dae, nn.Hardtanh(0, 1)]
    for repeats in (1, 2):
        one = verify(Defended(net, Direct(dae, repeats=repeats)), x, y, eps=1e-4)
        other = verify(nn.Sequential(*repeats * layers, net), x, y, eps=1e-4)
        assert torch.equal(one.margins, other.margins) and one.margins.isfinite().all()


def test_modes_are_put_back_and_nothing_is_verified_of_no_images():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2)).train()
    found = verify(net, torch.rand(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64), eps=0.1)
    assert found.margins.shape == (0,)
    verify(net, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), eps=0.1)
    assert net.training and net[0].training and net[2].training


@pytest.mark.filterwarnings("ignore::apudae.core.arguments.AttackWarning")
@pytest.mark.parametrize(
    ("purifier", "message"),
    [
        (lambda dae: Adaptive(dae), "no bounds are known of Adaptive"),
        (lambda dae: Direct(dae, noise=0.1), "it draws noise"),
        (lambda dae: Direct(dae, precision="auto"), "half precision"),
        (lambda dae: BitDepth(3), "no bounds are known of round"),
    ],
)
def test_what_cannot_be_verified_is_named(purifier, message, digits):
    model = Defended(models.load("mnist-cnn"), purifier(models.load("mnist-dae")))
    with pytest.raises(ValueError, match=message):
        verify(model, *digits, eps=0.1)


class Noisy(nn.Module):
    """A graph would hold one draw for all."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x):
        return self.net(x.flatten(1)) + torch.randn(3)


def test_a_draw_is_not_proved():
    x, y = torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match="its answers are random"):
        verify(Noisy().eval(), x, y, eps=0.01)


def test_a_linear_layer_of_many_axes_keeps_its_bias_in_place(generator):
    net = nn.Sequential(nn.Linear(3, 3), nn.Flatten(), nn.Linear(9, 2)).eval()
    x = torch.rand(4, 1, 3, 3, generator=generator)
    found = bounds.interval(net, bounds.Interval(x, x))
    assert found.low.shape == net(x).shape
    assert (found.low <= net(x)).all() and (net(x) <= found.high).all()
    assert (found.high - found.low).max() < 1e-4
