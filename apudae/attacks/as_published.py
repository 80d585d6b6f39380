"""The attacks as the APuDAE authors' public code makes them, faults included.

Only for comparison with the results that were logged with them: an attack of
:mod:`apudae.attacks` is what you want for anything else. What differs:

- **BIM** never clears its gradient. Each step follows the sign of the *sum* of all gradients so
  far, which hardly turns any more after a few steps, and the ball is looked after at the end only.
- **R-FGSM** goes a full ε after a random step of α: its budget is ε + α.
- **FGSM** and **BIM** clip to [−1, 1] and the noise to [−1, 2], so pixels may end below 0, and
  those of the noise above 1. A network may be fed such a thing; no image file can hold it.

Each takes ``clip``: with it (the default) the result is cut to [0, 1] at last, as a camera or a
file would. Without, it is what the authors' networks saw.

They are called like all attacks (see :mod:`apudae.attacks`), and each image's result is its own.
The sign of a gradient does not depend on whether losses are added or averaged, so here too a batch
gives what its images give one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.arguments import check_count, check_number, checked
from ..core.norms import Ball, uniforms
from .objective import Objective, by_chunk, check_attack, keys_of

EPS = 8 / 255
ALPHA = 2 / 255  # of R-FGSM
STEPS, STEP_SIZE = 7, 2 / 255  # of BIM
# The authors' CIFAR-10 log: right of 1,616 images, in percent, behind their purification. Which
# variant made it is not said; the code's default is "probabilistic".
LOGGED = {"clean": 87.0, "noise": 86.0, "FGSM": 79.2, "R-FGSM": 77.7, "BIM": 72.3}
LOGGED_N = 1616


@checked
def noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int = 0,
    index: Tensor | None = None,
    clip: bool = True,
) -> Tensor:
    """Each pixel moved by a uniform draw from [−ε, ε], then cut to [−1, 2].

    ``model`` and ``y`` are not used.
    """
    check_attack(model, x, y, eps, "linf", index=index)
    return _cut(_random(x.detach(), eps, keys_of(x, index), seed), clip)


@checked
def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    clip: bool = True,
    batch_size: int | None = None,
) -> Tensor:
    """One step of ε along the gradient's sign, cut to [−1, 1]."""
    return rfgsm(model, x, y, eps=eps, alpha=0.0, clip=clip, batch_size=batch_size)


@checked
def rfgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float = ALPHA,
    seed: int = 0,
    index: Tensor | None = None,
    clip: bool = True,
    batch_size: int | None = None,
) -> Tensor:
    """Noise of size α, and *then* FGSM with all of ε: a pixel may move by ε + α."""
    check_attack(model, x, y, eps, "linf", index=index, batch_size=batch_size)
    check_number(alpha, "alpha")
    objective = Objective(model)

    def attack(ball: Ball, y: Tensor, index: Tensor) -> Tensor:
        z = _random(ball.x, alpha, index, seed) if alpha else ball.x
        _, _, gradient = objective.gradient(z, y)
        return _cut((z + eps * gradient.sign()).clamp(-1, 1), clip)

    return by_chunk(attack, objective, Ball(x), y, index=index, batch_size=batch_size)


@checked
def bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = STEPS,
    step_size: float = STEP_SIZE,
    clip: bool = True,
    batch_size: int | None = None,
) -> Tensor:
    """Steps along the sign of the sum of all gradients so far; cut to the ball after the last."""
    check_attack(model, x, y, eps, "linf", batch_size=batch_size)
    check_count(steps, "steps")
    check_number(step_size, "step_size", exclusive=True)
    objective = Objective(model)

    def attack(ball: Ball, y: Tensor, index: Tensor) -> Tensor:
        z, total = ball.x, torch.zeros_like(ball.x)
        for _ in range(steps):
            total = total + objective.gradient(z, y)[2]
            z = (z + step_size * total.sign()).clamp(-1, 1)
        return _cut(ball.x + (z - ball.x).clamp(-eps, eps), clip)

    return by_chunk(attack, objective, Ball(x), y, batch_size=batch_size)


def _random(x: Tensor, size: float, index: Tensor, seed: int) -> Tensor:
    draws = uniforms(tuple(x.shape[1:]), index, seed, 0, device=x.device).to(x.dtype)
    return (x + size * (2 * draws - 1)).clamp(-1, 2)


def _cut(z: Tensor, clip: bool) -> Tensor:
    return z.clamp(0, 1) if clip else z
