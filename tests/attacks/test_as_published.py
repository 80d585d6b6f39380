"""The authors' attacks, against the same steps written out without this package's machinery."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apudae import attacks
from apudae.attacks import as_published


@pytest.fixture
def problem(generator):
    """A small smooth network, images with black and white pixels, labels."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 4)
    ).double()
    x = (1.4 * torch.rand(12, 3, 6, 6, generator=generator).double() - 0.2).clamp(0, 1)
    return model, x, torch.randint(4, (12,), generator=generator)


def gradient(model, z, y):
    z = z.clone().requires_grad_(True)
    F.cross_entropy(model(z), y).backward()  # the mean, as the authors take it
    return z.grad


def test_fgsm_clips_to_minus_one(problem):
    model, x, y = problem
    expected = (x + 0.1 * gradient(model, x, y).sign()).clamp(-1, 1)
    assert torch.allclose(as_published.fgsm(model, x, y, eps=0.1, clip=False), expected)
    assert expected.min() < 0
    cut = as_published.fgsm(model, x, y, eps=0.1)
    assert torch.allclose(cut, expected.clamp(0, 1))
    assert torch.allclose(cut, attacks.fgsm(model, x, y, eps=0.1))  # this fault costs nothing


def test_rfgsm_spends_alpha_on_top_of_eps(problem):
    model, x, y = problem
    start = as_published.noise(model, x, y, eps=0.05, clip=False, seed=3)
    expected = (start + 0.1 * gradient(model, start, y).sign()).clamp(-1, 1)
    found = as_published.rfgsm(model, x, y, eps=0.1, alpha=0.05, clip=False, seed=3)
    assert torch.allclose(found, expected)
    assert 0.1 < (found - x).abs().max() <= 0.15 + 1e-12
    assert (attacks.rfgsm(model, x, y, eps=0.1, alpha=0.05) - x).abs().max() <= 0.1 + 1e-12


def test_bim_never_clears_its_gradient(problem):
    model, x, y = problem
    z, kept = x.clone(), torch.zeros_like(x, requires_grad=True)
    for _ in range(7):
        F.cross_entropy(model(z + kept), y).backward()  # adds to what is there
        z = (z + 0.05 * kept.grad.sign()).clamp(-1, 1)
    expected = x + (z - x).clamp(-0.1, 0.1)
    found = as_published.bim(model, x, y, eps=0.1, step_size=0.05, clip=False)
    assert torch.allclose(found, expected)
    assert found.min() < 0 and (found - x).abs().max() <= 0.1 + 1e-12


def test_noise_fills_the_ball_and_leaves_the_range(problem):
    model, x, y = problem
    found = as_published.noise(model, x, y, eps=0.1, clip=False)
    assert found.min() < 0 and found.max() > 1
    assert (found - x).abs().max() <= 0.1 + 1e-7
    cut = as_published.noise(model, x, y, eps=0.1)
    assert cut.min() >= 0 and cut.max() <= 1


def test_an_images_result_is_its_own(problem):
    model, x, y = problem
    for attack in (as_published.noise, as_published.rfgsm):
        whole = attack(model, x, y, eps=0.1, index=torch.arange(12))
        part = attack(model, x[5:9], y[5:9], eps=0.1, index=torch.arange(5, 9))
        assert torch.allclose(whole[5:9], part)
    for attack in (as_published.fgsm, as_published.bim):
        assert torch.allclose(
            attack(model, x, y, eps=0.1)[5:9], attack(model, x[5:9], y[5:9], eps=0.1)
        )


def test_the_log_is_that_of_whole_images():
    for percent in as_published.LOGGED.values():
        right = round(percent * as_published.LOGGED_N / 100)
        assert round(100 * right / as_published.LOGGED_N, 1) == percent


@pytest.mark.parametrize("name", ["noise", "fgsm", "rfgsm", "bim"])
def test_bad_arguments_are_named(problem, name):
    model, x, y = problem
    attack = getattr(as_published, name)
    with pytest.raises(ValueError, match="eps"):
        attack(model, x, y, eps=-0.1)
    with pytest.raises(ValueError, match=r"x: expected values in \[0, 1\]"):
        attack(model, x + 1, y, eps=0.1)
