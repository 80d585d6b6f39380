"""Purification by diffusion: :class:`DiffPure` (Nie et al., ICML 2022), and what it is made of.

:func:`signal`, :func:`guess` and :class:`OneStep` are the levels of noise, the guess of a clean
image at one of them, and that guess as a denoising autoencoder. A network learns to predict the
noise in a noisy image, at every level (Ho et al. 2020)::

    net = models.build("mnist-diffusion")
    training.fit(net, *train, task=training.noise_prediction)
    defended = purification.Defended(classifier, purification.DiffPure(net, level=0.3))
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core.arguments import check_count, check_number, checked
from ..core.calling import half
from ..core.norms import clip
from .purifier import Purifier, Watch, keepable, recomputed

LEVELS = 1000  # of noise; β grows linearly from 1e-4 to 0.02 (Ho et al. 2020, §4)


@checked
def signal(t: Tensor) -> Tensor:
    """ᾱ at the levels ``t`` (int64, 0 to 1000): the variance that is signal, 1 at level 0."""
    beta = torch.linspace(1e-4, 0.02, LEVELS, dtype=torch.float64)
    kept = torch.cat([beta.new_ones(1), (1 - beta).cumprod(0)])
    return kept.to(t.device)[t]


@checked
class OneStep(nn.Module):
    """A diffusion model as a denoising autoencoder: its guess of the clean image at one level."""

    def __init__(self, net: nn.Module, level: int) -> None:
        super().__init__()
        check_count(level, "level", maximum=LEVELS)
        self.net, self.level = net, level

    def forward(self, x: Tensor) -> Tensor:
        z = signal(torch.tensor(self.level)).sqrt().item() * (2 * x - 1)
        return clip((guess(self.net, z, self.level)[0] + 1) / 2)


@checked
def guess(net: nn.Module, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """The clean image and the noise that a noisy image at level ``t`` is made of, as guessed."""
    with half(z):
        noise = net(z, torch.full((len(z),), t, device=z.device)).to(z.dtype)
    kept = signal(torch.tensor(t)).item()
    return (z - math.sqrt(1 - kept) * noise) / math.sqrt(kept), noise


@checked
class DiffPure(Purifier):
    """Add noise up to a level, then take it off step by step.

    Simplified: the paper solves a stochastic differential equation with an adaptive number of
    steps, and its gradient with the adjoint method. Here the steps are those of the discrete chain,
    some levels left out (Song et al. 2021, eq. 12 with η = 1, which is Ho et al.'s chain when none
    is), and the gradient is exact: each step is worked out again on the way back.

    All noise is keyed by seed, draw, index of the image and step.

    Args:
        net: such as :class:`~apudae.models.UNet`.
        level: up to which noise is added, in (0, 1]: t* of the paper.
        steps: on the way back.
        seed: of the noise.
    """

    def __init__(
        self, net: nn.Module, *, level: float = 0.3, steps: int = 10, seed: int = 0
    ) -> None:
        check_number(level, "level", exclusive=True)
        check_count(steps, "steps")
        start = round(level * LEVELS)
        if not steps <= start <= LEVELS:
            raise ValueError(f"level: expected {steps / LEVELS:g} to 1 for {steps} steps")
        super().__init__(OneStep(net, start), seed, "float32")
        self.level, self.noise = level, 1.0
        self.levels = torch.linspace(start, 0, steps + 1).round().int().tolist()

    def extra_repr(self) -> str:
        return f"level={self.level:g}, steps={len(self.levels) - 1}"

    def _purify(self, x: Tensor, index: Tensor | None, draw: int, watch: Watch | None) -> Tensor:
        kept = signal(torch.tensor(self.levels[0])).item()
        z = math.sqrt(kept) * (2 * x - 1) + math.sqrt(1 - kept) * self._normal(x, index, draw, 0)
        graph, first = torch.is_grad_enabled(), self.levels[:2]
        kept = keepable(self, x, lambda one: self._step(one, one.detach(), *first)) if graph else 0
        for k, (t, s) in enumerate(zip(self.levels, self.levels[1:], strict=False), 1):
            fresh = self._normal(x, index, draw, k) if s else None
            z = recomputed(self._step, z, fresh, t, s, graph=graph and k > kept)
            if watch:
                watch(((z + 1) / 2).clamp(0, 1))
        return (z + 1) / 2

    def _step(self, z: Tensor, fresh: Tensor | None, t: int, s: int) -> Tensor:
        """From level ``t`` to the lower level ``s``."""
        clean, noise = guess(self.dae.net, z, t)
        if fresh is None:
            return clean
        here, there = (signal(torch.tensor(level)).item() for level in (t, s))
        spread = math.sqrt((1 - there) / (1 - here) * (1 - here / there))
        rest = math.sqrt(max(1 - there - spread**2, 0))
        return math.sqrt(there) * clean + rest * noise + spread * fresh
