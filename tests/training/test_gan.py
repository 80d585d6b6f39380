"""Networks of the published defenses: two that are trained against each other, and the others."""

from __future__ import annotations

import pytest
import support
import torch
from torch import nn

from apudae import attacks, data, models, training
from apudae.models import SharedAutoencoder
from apudae.purification import DiffPure, Direct, Soap
from apudae.training import from_attacked, joint, noise_prediction, train_gan


def test_a_gan_learns_a_mean():
    """One Gaussian blob per image: after a while drawn images are about as bright as real ones."""
    spread = torch.linspace(-1, 1, 28)
    blob = torch.exp(-8 * (spread[:, None] ** 2 + spread**2))[None, None]
    real = blob * (0.5 + 0.5 * torch.rand(500, 1, 1, 1, generator=torch.manual_seed(0)))
    parts = models.build("mnist-generator", latent=4), models.build("mnist-critic")
    distances = train_gan(*parts, real, steps=100, batch_size=16, critic_steps=3, lr=1e-3)
    with torch.no_grad():
        drawn = parts[0](torch.randn(200, 4, generator=torch.manual_seed(1)))
    assert len(distances) == 1
    assert (drawn.mean(0) - real.mean(0)).abs().mean() < 0.05


class Drawn(nn.Sequential):
    """The smallest generator: two numbers to 4 × 4 pixels."""

    latent = 2


def pair():
    torch.manual_seed(5)
    drawing = Drawn(nn.Linear(2, 16), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))
    return drawing, nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))


def test_a_gan_goes_on_where_it_was_killed(tmp_path):
    real = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    options = {"steps": 300, "batch_size": 2, "critic_steps": 1, "seed": 3}

    def dies(step, distance):
        if step == 200:
            raise KeyboardInterrupt

    whole, path = pair(), tmp_path / "gan.pt"
    distances = train_gan(*whole, real, **options)
    with pytest.raises(KeyboardInterrupt):
        train_gan(*pair(), real, **options, checkpoint=path, progress=dies)
    seen, again = [], pair()
    go_on = {"checkpoint": path, "progress": lambda step, distance: seen.append(step)}
    assert train_gan(*again, real, **options, **go_on) == distances
    assert seen == [300] and len(distances) == 3
    for one, other in zip(whole, again, strict=True):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key])
    other, (drawing, critic) = options | {"seed": 4}, pair()
    critic[2] = nn.ReLU()
    for networks, asked in ((pair(), other), ((drawing, critic), options)):
        with pytest.raises(ValueError, match=r"gan\.pt was made with other settings or networks"):
            train_gan(*networks, real, **asked, checkpoint=path)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("mnist-soap", lambda c: joint()),
        ("mnist-magnet", lambda c: training.denoising(0.1)),
        ("mnist-vae", lambda c: from_attacked(c, attacks.fgsm, eps=0.3)),
        ("mnist-diffusion", lambda c: noise_prediction),
    ],
)
def test_each_is_trained_by_the_books_loop(name, task):
    classifier = support.shipped("mnist-cnn")
    few = data.load("mnist", "train").take(100 if name == "mnist-diffusion" else 300)
    net = models.build(name)
    history = training.fit(net, *few, task=task(classifier), epochs=8, progress=False)
    losses = history.loss
    assert losses[-1] < 0.9 * losses[0]
    x = data.load("mnist", "validation").images[:4]
    if name in ("mnist-magnet", "mnist-vae"):
        assert Direct(net.eval())(x).shape == x.shape
    elif name == "mnist-soap":
        assert isinstance(net, SharedAutoencoder) and net(x).shape == (4, 10)
        assert Soap(net.eval())(x).shape == x.shape
    else:
        assert DiffPure(net.eval())(x).shape == x.shape


def test_a_bad_level_is_named():
    with pytest.raises(ValueError, match="sigma"):
        joint(-1)
