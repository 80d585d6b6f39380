"""A substitute of a model, learned from its answers, to attack in its place.

Whoever may ask a model can copy it well enough to find images that mislead it (Papernot et al.
2017): no gradient of its own is needed, and none can mislead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.calling import ask, bounded, evaluating
from ..core.norms import Ball, keyed, per_image

_WIDTH, _ROUNDS, _EPOCHS, _BATCH = 16, 4, 8, 100


class Substitute(nn.Module):
    """A small convolutional network, images ``[N, C, H, W]`` of any size -> logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, _WIDTH, 5, 2, 2),
            nn.Softplus(4),
            nn.Conv2d(_WIDTH, 2 * _WIDTH, 3, 2, 1),
            nn.Softplus(4),
            nn.AdaptiveAvgPool2d(7),
            nn.Flatten(),
        )
        self.head = nn.Linear(49 * 2 * _WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(2 * x - 1))


def distil(
    model: nn.Module, ball: Ball, y: Tensor, *, classes: int, queries: int, seed: int = 0
) -> nn.Module:
    """A substitute that answers as a model does, near the images of a ball and between them.

    In each of four rounds the model is asked about new images: at first mixtures of two, with noise
    and small shifts, then also those to which the substitute's own gradient leads, within ε and
    twice ε. It learns which class the model names, and by how much: the logits, centred and over
    their spread.

    Args:
        model: images -> logits; it is only asked.
        ball: the images ``[N, C, H, W]`` and ε.
        y: int64 labels ``[N]``.
        classes: how many logits.
        queries: how often the model is asked, per image.
        seed: of the draws.

    Returns:
        A module in evaluation mode, the same for the same seed and images.
    """
    x, device = ball.x.float(), ball.x.device
    draws = keyed(seed, 77)
    with torch.random.fork_rng([]):
        torch.random.default_generator.manual_seed(seed)
        net = Substitute(x.shape[1], classes).to(device)
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    images, answers = [], []
    each = max(1, queries // _ROUNDS)
    with evaluating(model), torch.enable_grad():
        for number in range(_ROUNDS):
            new = [x] if number == 0 else []
            for k in range(each):
                led = number > 0 and k % 3 < 2
                new.append(_led(net, ball, y, k, draws) if led else _mixed(x, ball.eps, draws))
            with torch.no_grad():
                for part in new:
                    images.append(part)
                    answers.append(bounded(ask(model, part.to(ball.x.dtype))).float())
            _learn(net, adam, torch.cat(images), torch.cat(answers), draws)
    return net.eval().requires_grad_(False)


def _mixed(x: Tensor, eps: float, draws: torch.Generator) -> Tensor:
    """Each image mixed with another, shifted by a pixel or two, under noise."""
    other = x[torch.randperm(len(x), generator=draws).to(x.device)]
    share = 0.6 * torch.rand(len(x), generator=draws).to(x) ** 2
    z = x + per_image(share, x) * (other - x)
    shift = torch.randint(-1, 2, (2,), generator=draws).tolist()
    z = z.roll(shift, (2, 3))
    size = torch.rand(len(x), generator=draws).to(x) * min(2 * eps, 0.5)
    return (z + per_image(size, x) * torch.randn(x.shape, generator=draws).to(x)).clamp(0, 1)


def _led(net: nn.Module, ball: Ball, y: Tensor, k: int, draws: torch.Generator) -> Tensor:
    """Where the substitute's gradient leads from the images, within ε or twice ε."""
    x = ball.x.float()
    wide = Ball(x, ball.eps * (1 + k % 2), ball.norm, ball.mask)
    noise = (2 * torch.rand(x.shape, generator=draws) - 1).to(x)
    z = wide.project(x + wide.eps * wide.steepest(noise) * torch.rand(1, generator=draws).item())
    steps = 1 + k % 7
    for _ in range(steps):
        z.requires_grad_(True)
        logits = net(z)
        own = F.one_hot(y, logits.shape[1]).bool()
        target = logits.masked_fill(own, -torch.inf).amax(1) - logits[own]
        (slope,) = torch.autograd.grad(target.sum(), z)
        z = wide.project(z.detach() + 1.5 * wide.eps / steps * wide.steepest(slope))
    return z.detach()


def _learn(
    net: nn.Module, adam: torch.optim.Optimizer, x: Tensor, z: Tensor, draws: torch.Generator
) -> None:
    z = z - z.mean(1, keepdim=True)
    z = z / z.std().clamp(min=1e-12)
    label = z.argmax(1)
    for _ in range(_EPOCHS):
        for some in torch.randperm(len(x), generator=draws).to(x.device).split(_BATCH):
            guess = net(x[some])
            loss = F.mse_loss(guess, 3 * z[some]) + 0.3 * F.cross_entropy(guess, label[some])
            adam.zero_grad()
            loss.backward()
            adam.step()
