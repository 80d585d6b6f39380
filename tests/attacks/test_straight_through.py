"""Masks that are found while a model runs, against BPDA that is told where they are."""

import pytest
import torch
from support import Detached, Opaque, Quantise, shipped
from torch import nn

from apudae.attacks import BPDA, Objective, StraightThrough
from apudae.purification import Adaptive, Defended


def without_gradient(x):
    with torch.no_grad():
        return (100 * x).round() / 100


MASKS = {
    "round": lambda x: (100 * x).round() / 100,
    "floor": lambda x: torch.floor(100 * x) / 100,
    "ceil": lambda x: torch.ceil(100 * x) / 100,
    "trunc": lambda x: (100 * x).trunc() / 100,
    "fix": lambda x: torch.fix(100 * x) / 100,
    "bytes": lambda x: (255 * x).byte().float() / 255,
    "to and type": lambda x: (255 * x).to(torch.uint8).type(torch.float32) / 255,
    "long": lambda x: (255 * x).long().to(x.dtype) / 255,
    "above": lambda x: (x > 0.5).float(),
    "below": lambda x: 1 - (x <= 0.5).to(torch.float32),
    "detach": lambda x: x.detach() * 1,
    "data": lambda x: x.data.clone(),
    "no_grad": without_gradient,
}


class Mask(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Smooth(nn.Module):
    """Ten smooth logits, whose gradient is never zero by chance."""

    def __init__(self, generator):
        super().__init__()
        self.first = nn.Parameter(torch.randn(36, 16, generator=generator))
        self.second = nn.Parameter(torch.randn(16, 10, generator=generator))

    def forward(self, x):
        return (x.flatten(1) @ self.first).tanh() @ self.second


@pytest.fixture
def smooth(generator):
    return Smooth(generator)


@pytest.fixture
def x(generator):
    return torch.rand(8, 1, 6, 6, generator=generator)


@pytest.mark.parametrize("name", MASKS)
def test_it_is_bpda_without_being_told(smooth, x, name):
    mask, y = MASKS[name], torch.arange(8)
    view = StraightThrough.of(Opaque(mask, smooth), x)
    told = BPDA(Defended(smooth, Mask(mask)))
    *judged, gradient = Objective(view).gradient(x, y)
    *expected, other = Objective(told).gradient(x, y)
    for found, wanted in zip(judged, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient, other)
    assert gradient.flatten(1).norm(dim=1).min() > 0


def test_integers_keep_the_direction(smooth, x):
    bits = lambda z: ((255 * z).long() // 16 * 16).float() / 255  # noqa: E731
    view = StraightThrough.of(Opaque(bits, smooth), x)
    told = BPDA(Defended(smooth, Mask(bits)))
    y = torch.arange(8)
    gradient, other = (Objective(v).gradient(x, y)[2] for v in (view, told))
    torch.testing.assert_close(gradient, other)


def test_nothing_masked_is_no_view(smooth, x):
    assert StraightThrough.of(smooth, x) is None
    assert StraightThrough.of(Opaque(lambda z: 2 * z.clamp(0.1, 0.9), smooth), x) is None
    assert StraightThrough.of(nn.Sequential(smooth, nn.Softmax(1)), x) is None


CLAMPS = {
    "clamp": lambda z: ((z - 0.4) / 0.3).clamp(0, 1),
    "clip": lambda z: torch.clip((z - 0.4) / 0.3, 0, 1),
    "in place": lambda z: ((z - 0.4) / 0.3).clamp_(0, 1),
    "hardtanh": lambda z: nn.functional.hardtanh((z - 0.4) / 0.3, 0, 1),
    "ReLU": nn.Sequential(nn.Identity(), Mask(lambda z: (z - 0.4) / 0.3), nn.ReLU()),
    "from below": lambda z: ((z - 0.4) / 0.3).clamp_min(0),
    "ReLU in place": nn.Sequential(Mask(lambda z: (z - 0.4) / 0.3), nn.ReLU(inplace=True)),
}


@pytest.mark.parametrize("name", CLAMPS)
def test_clamps_are_passed_where_it_is_asked_for(smooth, x, name):
    """By hand: the gradient of the linear part alone, at the clamp's own output."""
    model = nn.Sequential(Mask(CLAMPS[name]), smooth)
    view, y = StraightThrough.of(model, x, clamps=True), torch.arange(8)
    assert StraightThrough.of(model, x) is None
    with torch.no_grad():
        assert torch.equal(view(x), model(x))
    found = Objective(view).gradient(x, y)[2]
    wanted = Objective(smooth).gradient(model[0](x), y)[2] / 0.3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    plain = Objective(model).gradient(x, y)[2]
    assert (plain == 0).sum() > 50 and (found == 0).sum() == 0


def test_a_choice_between_branches_keeps_their_gradients(smooth, x):
    """``where`` is no threshold if what it chooses from has a gradient of its own."""
    model = nn.Sequential(Mask(lambda z: torch.where(z > 0.5, 2 * z, z.square()).round()), smooth)
    y, inner = torch.arange(8), torch.where(x > 0.5, 2 * torch.ones_like(x), 2 * x)
    found = Objective(StraightThrough.of(model, x)).gradient(x, y)[2]
    wanted = Objective(smooth).gradient(model[0](x), y)[2] * inner
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    scale = nn.Parameter(torch.ones(6, 6))  # whose gradient is none of the image's
    assert StraightThrough.of(nn.Sequential(Mask(lambda z: (z > 0.5) * scale), smooth), x)


def test_only_the_first_relu_is_passed(smooth, x):
    body = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.ReLU(), nn.Unflatten(1, (1, 6, 6)))
    model = nn.Sequential(nn.ReLU(), body, smooth)
    z, y = x - 0.5, torch.arange(8)
    found = Objective(StraightThrough.of(model, z, clamps=True)).gradient(z, y)[2]
    wanted = Objective(nn.Sequential(body, smooth)).gradient(z.relu(), y)[2]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_model_that_minds_is_no_view(smooth, x):
    def counting(z):
        with torch.no_grad():
            smooth.first.mul_(1.0)  # in place on a parameter: allowed only without gradients
        return z.round()

    assert StraightThrough.of(Opaque(counting, smooth), x) is None
    never = Opaque(lambda z: torch.zeros_like(z), smooth)
    assert StraightThrough.of(never, x) is None


def test_the_mode_is_closed_behind_it(smooth, x):
    view = StraightThrough.of(Opaque(MASKS["no_grad"], smooth), x)
    Objective(view).gradient(x, torch.arange(8))
    with torch.no_grad():
        assert not torch.is_grad_enabled()
    z = x.clone().requires_grad_(True)
    assert not z.detach().requires_grad and z.round().grad_fn.name() == "RoundBackward0"


def test_weights_keep_out_of_it(smooth, x):
    """Only images pass: a detached weight or a rounded constant is no mask."""
    fixed = torch.linspace(0, 1, 36).view(6, 6)
    assert StraightThrough.of(Opaque(lambda z: z + (4 * fixed).round().detach(), smooth), x) is None


def test_a_cut_inner_loop_is_seen(generator):
    dae, classifier = shipped("mnist-dae"), shipped("mnist-cnn")
    x = torch.rand(4, 1, 28, 28, generator=generator)
    view = StraightThrough.of(Opaque(Detached(dae, 2, 0.05), classifier), x)
    gradient = Objective(view).gradient(x, torch.arange(4))[2]
    assert gradient.flatten(1).norm(dim=1).min() > 0
    assert StraightThrough.of(Opaque(Quantise(100), classifier), x) is not None
    honest = Adaptive(dae, stepper="descent", steps=2, step_size=0.05)
    with torch.no_grad():
        torch.testing.assert_close(
            view(x), Defended(classifier, Detached(dae, 2, 0.05))(x), rtol=0, atol=0
        )
        torch.testing.assert_close(view(x), Defended(classifier, honest)(x), rtol=1e-3, atol=1e-3)
