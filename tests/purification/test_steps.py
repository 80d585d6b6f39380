"""Objectives and steppers against closed forms and torch's optimisers."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from apudae.purification import OBJECTIVES, STEPPERS, Adam, Descent, Normalised, Sign, Stepper
from apudae.purification.steps import FrozenConvolutions


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        ("error", lambda d, m, s: d),
        ("hinge", lambda d, m, s: max(d - m, 0) ** 2 / s**2),
        ("match", lambda d, m, s: (d - m) ** 2 / s**2),
        ("sigmoid", lambda d, m, s: d / (1 + math.exp(-(d - m) / s))),
    ],
)
def test_objectives_are_their_formulas(name, closed, generator):
    d = 6 * torch.rand(50, generator=generator, dtype=torch.float64)
    found = OBJECTIVES[name](d, 2.2, 1.1)
    expected = torch.tensor([closed(value, 2.2, 1.1) for value in d.tolist()]).double()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("stepper", "optimizer", "options"),
    [
        (Adam(), torch.optim.Adam, {}),
        (Adam(0.8, 0.99, 1e-2), torch.optim.Adam, {"betas": (0.8, 0.99), "eps": 1e-2}),
        (Descent(), torch.optim.SGD, {}),
    ],
    ids=["adam", "adam, other constants", "descent"],
)
def test_steps_are_those_of_torchs_optimisers(stepper, optimizer, options, generator):
    z = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    leaf = z.clone().requires_grad_(True)
    theirs, state = optimizer([leaf], lr=0.1, **options), stepper.start(z)
    for t in range(1, 8):
        leaf.grad = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        direction, state = stepper.step(leaf.grad, state, t)
        z = z - 0.1 * direction
        theirs.step()
        torch.testing.assert_close(z, leaf.detach(), rtol=0, atol=1e-12)


def test_normalised_steps_have_length_one_whatever_the_gradients(generator):
    gradient = torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    gradient *= torch.tensor([1e-6, 1e-3, 1.0, 1e3, 1e6]).double().view(-1, 1, 1, 1)
    direction, _ = Normalised().step(gradient, (), 1)
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), torch.ones(5).double())
    cosine = torch.cosine_similarity(direction.flatten(1), gradient.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(5).double())


@pytest.mark.parametrize("stepper", list(STEPPERS.values()), ids=list(STEPPERS))
def test_a_zero_gradient_moves_nothing_and_has_finite_derivatives(stepper):
    gradient = torch.zeros(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    direction, _ = stepper.step(gradient, stepper.start(gradient), 1)
    assert direction.abs().max() == 0
    (slope,) = torch.autograd.grad(direction.sum(), gradient)
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    ("smooth", "exact", "scale"),
    [
        (Sign(1e-6), Sign(), 1.0),
        (Normalised(1e-6), Normalised(), 1.0),
        (Adam(eps=1e-6), Adam(), 1.0),
        (Adam(eps=1e6), Descent(), 1e6),  # and at the other end the first step is plain descent
    ],
    ids=["tanh", "l2", "adam", "adam to descent"],
)
def test_surrogates_approach_what_they_stand_for(smooth, exact, scale, generator):
    gradient = torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64)
    gradient += 0.1 * gradient.sign()  # none near zero, where a sign is not smooth
    ours, _ = smooth.step(gradient, smooth.start(gradient), 1)
    theirs, _ = exact.step(gradient, exact.start(gradient), 1)
    torch.testing.assert_close(scale * ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_sign_has_no_slope_and_its_surrogate_has(generator):
    gradient = torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64)
    gradient.requires_grad_(True)
    for tau, expected in ((0.0, 0 * gradient), (0.5, (1 - (gradient / 0.5).tanh() ** 2) / 0.5)):
        direction, _ = Sign(tau).step(gradient, (), 1)
        (slope,) = torch.autograd.grad(direction.sum(), gradient, allow_unused=True)
        torch.testing.assert_close(slope, expected.detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sign(-1), "tau: expected a finite number >= 0, got -1"),
        (lambda: Adam(eps=0), "eps: expected a finite number > 0"),
        (lambda: Adam(beta2=1), "beta2: expected a number below 1, got 1"),
        (lambda: Normalised(math.nan), "floor: expected"),
    ],
)
def test_bad_constants_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(0, 1), dilation=(2, 1), groups=2),
        nn.Conv2d(4, 4, 5, padding="same"),  # left to torch
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
        nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
        nn.ConvTranspose2d(4, 2, (2, 3), stride=(3, 1), dilation=(1, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_convolutions_have_torchs_derivatives(layer, frozen, generator):
    """First and second, with sizes that the stride divides and others."""
    layer = copy.deepcopy(layer).double().requires_grad_(not frozen)
    for size in (8, 11):
        x = torch.rand(3, 4, size, size, generator=generator, dtype=torch.float64)
        x.requires_grad_(True)
        found = []
        for mode in (nullcontext(), FrozenConvolutions()):
            with mode:
                value = layer(x).sigmoid().square()
                (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            second = torch.autograd.grad(slope.square().sum(), [x, *_trainable(layer)])
            found.append((value, slope, *second))
        own = type(layer(x).grad_fn).__name__
        with FrozenConvolutions():
            inside = type(layer(x).grad_fn).__name__
        plain = isinstance(layer.padding, tuple)
        assert (inside != own) == (frozen and plain), inside
        for theirs, ours in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)


def _trainable(layer):
    return [p for p in layer.parameters() if p.requires_grad]


def test_a_stepper_without_a_step_cannot_be_made():
    class Idle(Stepper):
        pass

    with pytest.raises(TypeError, match=r"abstract method '?step"):
        Idle()
