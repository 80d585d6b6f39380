"""Gradient attacks with a fixed step size: FGSM, R-FGSM, BIM, PGD, and noise beside them.

They are called like all attacks; see :mod:`apudae.attacks`.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ..core.arguments import check_number, checked, require
from ..core.norms import Ball, normals, uniforms
from .objective import Best, Objective, by_chunk, check_attack, keys_of


@checked
def noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    mask: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Tensor:
    """A point drawn uniformly from the ball: no attack at all, the yardstick for the others.

    ``model`` and ``y`` are not used; they are there so that all attacks are called alike.
    """
    ball = check_attack(model, x, y, eps, norm, mask=mask, index=index)
    if len(x) == 0:
        return x.detach().clone()
    return ball.start(keys_of(x, index), seed)


@checked
def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    loss: str = "ce",
    targeted: bool = False,
    mask: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Fast gradient sign method: one step of size ε (Goodfellow et al. 2015, §4).

    In L2 the step follows the gradient itself ("fast gradient method").
    """
    ball = check_attack(model, x, y, eps, norm, mask=mask, batch_size=batch_size)
    objective = Objective(model, loss, targeted)

    def attack(ball: Ball, y: Tensor, index: Tensor) -> Tensor:
        _, _, gradient = objective.gradient(ball.x, y)
        return ball.project(ball.x + eps * ball.steepest(gradient))

    return by_chunk(attack, objective, ball, y, batch_size=batch_size)


@checked
def rfgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float | None = None,
    norm: str = "linf",
    loss: str = "ce",
    targeted: bool = False,
    mask: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """R-FGSM: a random step of size α, then FGSM with what is left (Tramèr et al. 2018, §4.1).

    The random step leaves the neighbourhood of ``x``, where a network trained against FGSM can
    have a misleading gradient. Both steps together cost ε: the second has length ε − α.

    Args besides those of all attacks:
        alpha: size of the random step (random signs; in L2 a random direction), at most ε; by
            default ε / 2.
    """
    ball = check_attack(model, x, y, eps, norm, mask=mask, index=index, batch_size=batch_size)
    alpha = eps / 2 if alpha is None else alpha
    check_number(alpha, "alpha")
    require(alpha <= eps, f"alpha: expected at most eps = {eps:g}, the budget of both steps")
    objective = Objective(model, loss, targeted)

    def attack(ball: Ball, y: Tensor, index: Tensor) -> Tensor:
        x = ball.x
        draws = uniforms(tuple(x.shape[1:]), index, seed, 0, device=x.device)
        moved = (x + alpha * ball.steepest(normals(draws).to(x.dtype))).clamp(0, 1)
        _, _, gradient = objective.gradient(moved, y)
        return ball.project(moved + (eps - alpha) * ball.steepest(gradient))

    return by_chunk(attack, objective, ball, y, index=index, batch_size=batch_size)


@checked
def bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    loss: str = "ce",
    early_stop: bool = False,
    targeted: bool = False,
    mask: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Basic iterative method, FGSM in small steps (Kurakin et al. 2017): PGD from the image itself.

    The arguments are those of :func:`pgd`.
    """
    shared = {"eps": eps, "norm": norm, "loss": loss, "targeted": targeted}
    own = {"steps": steps, "step_size": step_size, "early_stop": early_stop, "mask": mask}
    return pgd(model, x, y, random_start=False, batch_size=batch_size, **shared, **own)


@checked
def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 50,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    loss: str = "ce",
    early_stop: bool = False,
    targeted: bool = False,
    mask: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018, §2.1), keeping each image's best iterate.

    Steps along the gradient's sign (L2: the gradient over its length), each projected back to the
    ball and to [0, 1]. The result is, image by image, the misclassified iterate with the highest
    loss, or if none is misclassified the iterate with the highest loss (``targeted``: classified
    as ``y``, the lowest loss). Along an :class:`~apudae.attacks.EOT` view each value is of other
    draws, and the best would be the luckiest: there each run's last iterate counts.

    Args besides those of all attacks:
        steps: gradient steps.
        step_size: of each step; by default 2.5 · ε / steps, which can cross the ball.
        random_start: begin at a uniformly drawn point of the ball.
        restarts: runs, each from its own random start; the best is kept.
        early_stop: leave an image alone from its first misclassified iterate on (``targeted``:
            the first classified as ``y``). Much faster, and no weaker against ``model`` itself.
            Against *another* model, such as the same classifier behind a purifier, it is far
            weaker: an image left just behind the border is easily brought back.
    """
    given = {"eps": eps, "norm": norm, "steps": steps, "step_size": step_size, "loss": loss}
    given |= {"random_start": random_start, "restarts": restarts, "early_stop": early_stop}
    more = {"targeted": targeted, "mask": mask, "seed": seed, "index": index}
    return _pgd(model, x, y, batch_size=batch_size, **given, **more)


def corner_pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, seed: int = 0, **options: Any
) -> Tensor:
    """PGD in L∞ that begins at a corner of the ball, drawn at random.

    A network that ignores small changes of a pixel has a gradient there. Options are those of
    :func:`pgd` but ``norm`` and ``random_start``.
    """
    usual = inspect.signature(pgd).parameters
    given = {k: p.default for k, p in usual.items() if p.kind is p.KEYWORD_ONLY} | options
    given |= {"eps": eps, "seed": seed, "norm": "linf", "random_start": True}
    return _pgd(model, x, y, **given, corners=True)


def _pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str,
    steps: int,
    step_size: float | None,
    random_start: bool,
    restarts: int,
    loss: str,
    early_stop: bool,
    targeted: bool,
    mask: Tensor | None,
    seed: int,
    index: Tensor | None,
    batch_size: int | None,
    corners: bool = False,
) -> Tensor:
    shared = {"index": index, "batch_size": batch_size}
    counts = {"steps": steps, "restarts": restarts}
    ball = check_attack(model, x, y, eps, norm, mask=mask, **shared, **counts)
    if step_size is not None:
        check_number(step_size, "step_size", exclusive=True)
    if restarts > 1 and not random_start:
        raise ValueError("restarts: more than one needs random_start, or all runs are the same")
    size = 2.5 * eps / steps if step_size is None else step_size
    objective = Objective(model, loss, targeted)

    def attack(ball: Ball, y: Tensor, index: Tensor) -> Tensor:
        best = Best(ball.x)
        for run in range(restarts):
            place = best.places(standing=early_stop)
            if len(place) == 0:
                break
            inside = ball[place]
            key = index[place.cpu()]
            z = inside.start(key, seed, run, corners=corners) if random_start else inside.x
            for _ in range(steps):
                value, fell, gradient = objective.gradient(z, y[place])
                if early_stop or not objective.view.noisy:
                    best.offer(place, z, value, fell)
                if early_stop and fell.any():
                    place, z, gradient, inside = (s[~fell] for s in (place, z, gradient, inside))
                    if len(place) == 0:
                        break
                z = inside.project(z.add(inside.steepest(gradient), alpha=size))
            if len(place):
                best.offer(place, z, *objective.value(z, y[place]))  # the last is only judged
        return best.images

    return by_chunk(attack, objective, ball, y, packed=True, **shared)
