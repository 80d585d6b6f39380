"""The published purifiers: exact gradients, keyed noise, and what each is known to do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from apudae.evaluation.attackers import BUDGETS, plan
from apudae.models import Generator, SharedAutoencoder
from apudae.purification import Adaptive, Defended, DefenseGAN, DiffPure, Soap, diffusion
from apudae.purification.reconstruction import reconstruction_error
from apudae.purification.soap import RADII, Decoded


class Smooth(nn.Module):
    """Classifier, DAE, generator and noise predictor in one, smooth and in float64."""

    latent = 3

    def __init__(self, generator):
        super().__init__()
        draw = lambda *shape: nn.Parameter(  # noqa: E731
            torch.randn(*shape, generator=generator, dtype=torch.float64) / 3
        )
        self.down, self.up, self.level = draw(5, 16), draw(16, 5), draw(5)
        self.first = draw(5, 3)

    def reconstruct(self, x):
        return torch.sigmoid(torch.tanh(x.flatten(1) @ self.down.T) @ self.up.T).view(x.shape)

    def forward(self, x, t=None):
        if t is None:
            shape = (len(x), 1, 4, 4)
            return torch.sigmoid(torch.tanh(x @ self.first.T) @ self.up.T).view(shape)
        told = torch.tanh(x.flatten(1) @ self.down.T + t[:, None] / 1000 * self.level)
        return (told @ self.up.T).view(x.shape)


def purifiers(net):
    smooth = Soap(net, radii=(0.9,), steps=3, stepper="descent", step_size=0.2)
    return {
        "soap": smooth,
        "diffusion": DiffPure(net, level=0.3, steps=3),
        "gan": DefenseGAN(net, starts=3, steps=4, step_size=2.0),
    }


@pytest.mark.parametrize("name", ["soap", "diffusion", "gan"])
def test_the_gradient_is_a_finite_difference(name, generator):
    purifier = purifiers(Smooth(generator).requires_grad_(False))[name]
    x = 0.3 + 0.4 * torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    purify = lambda z: purifier(z, torch.arange(3), 1)  # noqa: E731
    x = x.requires_grad_(True)
    way, upstream = torch.randn(2, *x.shape, generator=generator, dtype=torch.float64)
    (full,) = torch.autograd.grad(purify(x), x, upstream)
    with torch.no_grad():
        there, back = (purify(x + side * 1e-6 * way) for side in (1, -1))
    measured = ((there - back) / 2e-6 * upstream).sum()
    assert torch.allclose((full * way).sum(), measured, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["diffusion", "gan"])
def test_noise_belongs_to_the_image_and_the_draw(name, generator):
    purifier = purifiers(Smooth(generator))[name]
    x = torch.rand(5, 1, 4, 4, generator=generator, dtype=torch.float64)
    index = torch.arange(5)
    whole = purifier(x, index, 2)
    assert purifier.random
    assert torch.allclose(whole[3:], purifier(x[3:], index[3:], 2), atol=1e-12)
    assert not torch.allclose(whole, purifier(x, index, 3))
    path = purifier.iterates(x, index, 2)
    assert torch.allclose(path[-1], whole, atol=1e-12) and torch.equal(path[0], x)


def test_soap_keeps_each_images_best_radius(generator):
    net = Smooth(generator)
    x = torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    radii, dae = (0.0, 0.1, 0.3), Decoded(net)
    walks = [Adaptive(dae, stepper="sign", steps=5, step_size=0.1, eps=r)(x) for r in radii]
    errors = torch.stack([reconstruction_error(dae, z) for z in walks])
    found = Soap(net, radii=radii)
    assert torch.allclose(reconstruction_error(dae, found(x)), errors.min(0).values)
    assert torch.allclose(found(x)[2:3], found(x[2:3]))
    path = found.iterates(x)
    assert len(path) == 6 and torch.allclose(path[-1], found(x))
    smooth = found.replace(stepper="descent", step_size=0.2)
    assert smooth.walks[1].options["stepper"] == "descent" and smooth.walks[1].eps == 0.1


def test_the_chain_of_levels_is_ho_et_als():
    """ᾱ by its closed product, and one step from a known posterior."""
    product = math.prod(1 - (1e-4 + (0.02 - 1e-4) * k / 999) for k in range(300))
    assert diffusion.signal(torch.tensor(300)).item() == pytest.approx(product, rel=1e-9)
    assert diffusion.signal(torch.tensor(0)).item() == 1

    class Zero(nn.Module):
        def forward(self, z, t):
            return torch.zeros_like(z)

    step = DiffPure(Zero(), level=0.2, steps=200)._step
    z = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    here, there = (diffusion.signal(torch.tensor(t)).item() for t in (200, 199))
    beta = 1 - here / there
    mean = z / math.sqrt(1 - beta)  # Ho et al., eq. 11, where the noise is guessed to be 0
    assert torch.allclose(step(z, torch.zeros_like(z), 200, 199), mean, rtol=1e-9)
    spread = step(z, torch.ones_like(z), 200, 199) - mean
    assert torch.allclose(spread.square(), torch.full_like(z, beta * (1 - there) / (1 - here)))


def test_a_diffusion_model_that_knows_one_image_finds_it(generator):
    """The exact noise predictor of a distribution of one image: every path ends there."""
    one = torch.rand(1, 1, 4, 4, generator=generator, dtype=torch.float64)

    class Knows(nn.Module):
        def forward(self, z, t):
            kept = diffusion.signal(t).view(-1, 1, 1, 1)
            return (z - kept.sqrt() * (2 * one - 1)) / (1 - kept).sqrt()

    x = torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    found = DiffPure(Knows(), level=0.5, steps=7)(x, torch.arange(3))
    assert torch.allclose(found, one.expand(3, -1, -1, -1), atol=1e-9)


def test_defense_gan_finds_what_the_generator_can_draw():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(latent=4).requires_grad_(False)
        x = generator(torch.randn(6, 4))
    errors = []
    for steps in (1, 10, 100):
        found = DefenseGAN(generator, starts=5, steps=steps, step_size=200.0)(x, torch.arange(6))
        errors.append((found - x).square().mean().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1 * errors[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Soap(SharedAutoencoder(), radii=()), "radii: expected at least one"),
        (lambda: DiffPure(nn.Identity(), level=0.005), "level: expected 0.01 to 1"),
        (lambda: DefenseGAN(Generator(), starts=0), "starts"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_radii_beyond_the_reach_of_sign_steps_are_walked_once(generator):
    """Five steps of 0.1: 0.5 to 1 are one walk, and the result is that of all eleven."""
    net = Smooth(generator)
    x = torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    short, long = Soap(net), Soap(net, steps=11)
    assert [walk.eps for walk in short.walks] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert len(long.walks) == 11 and len(short.replace(stepper="descent").walks) == 11
    dae = Decoded(net)
    every = [Adaptive(dae, stepper="sign", steps=5, step_size=0.1, eps=r)(x) for r in RADII]
    best = torch.stack([reconstruction_error(dae, z) for z in every]).argmin(0)
    assert torch.equal(short(x), torch.stack(every)[best, torch.arange(6)])
    assert short.widest is short.walks[-1]


def test_the_protocol_fits_its_attacks_to_the_defense(generator):
    """SOAP's sign steps need surrogates; Defense-GAN has no error that an attacker could keep low.

    The second is found by its absence, so the first shows that the question can be answered yes.
    """
    net = SharedAutoencoder().requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = Generator(latent=4).requires_grad_(False)
    x = torch.rand(4, 1, 28, 28, generator=generator)
    options = {"random": False, "classes": 10, "eps": 0.2, "norm": "linf", "seed": 0}
    options["batch_size"] = None

    def names(purifier):
        found = plan(Defended(net, purifier), x, BUDGETS["quick"], **options)
        return {attack.name for attack in found}

    walks = names(Soap(net))
    assert {"surrogate: descent", "surrogate: smooth steps"} <= walks
    assert any(name.startswith("reconstruction-aware") for name in walks)
    nearest = names(DefenseGAN(draws))
    assert {"BPDA", "APGD-CE", "Square"} <= nearest
    assert not any(name.startswith(("surrogate", "reconstruction-aware")) for name in nearest)
