"""Gradient attacks with a fixed step size: FGSM, R-FGSM, BIM, PGD, and noise beside them.

They are called like all others; see :mod:`apudae.attacks`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.arguments import check_number
from ..core.norms import in_ball, project, steepest, uniforms
from .objective import Best, Objective, View, by_chunk, check_attack


def noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    seed: int = 0,
    index: Tensor | None = None,
) -> Tensor:
    """A point drawn uniformly from the ball: no attack at all, the yardstick for the others.

    ``model`` and ``y`` are not used; they are there so that all attacks are called alike.
    """
    check_attack(model, x, y, eps, norm, index=index)
    if len(x) == 0:
        return x.detach().clone()
    index = torch.arange(len(x)) if index is None else index
    return in_ball(x.detach(), eps, norm, index, seed)


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    loss: str = "ce",
    targeted: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """Fast gradient sign method: one step of size ε (Goodfellow et al. 2015, §4).

    In L2 the step follows the gradient itself ("fast gradient method").

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]`` in [0, 1].
        y: int64 labels ``[N]``: the true ones, or with ``targeted`` those to reach.
        eps: radius of the ball.
        norm: ``"linf"`` or ``"l2"``.
        loss: what is raised: ``"ce"``, ``"margin"`` or ``"dlr"``.
        targeted: lower the loss of ``y`` instead of raising it.
        batch_size: images per pass.

    Raises:
        ValueError: an argument that no attack can use.
    """
    check_attack(model, x, y, eps, norm, batch_size=batch_size)
    objective = Objective(model, loss, targeted)

    def attack(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        _, _, gradient = objective.gradient(x, y)
        return project(x + eps * steepest(gradient, norm), x, eps, norm)

    return by_chunk(attack, objective, x, y, batch_size=batch_size)


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
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """R-FGSM: a random step of size α, then FGSM with what is left (Tramèr et al. 2018, §4.1).

    The random step leaves the neighbourhood of ``x``, where a network trained against FGSM can
    have a misleading gradient. Both steps together cost ε: the second has length ε − α.

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]`` in [0, 1].
        y: int64 labels ``[N]``.
        eps: radius of the ball: the budget of both steps.
        alpha: size of the random step (random signs; in L2 a random direction); by default ε / 2.
        norm: ``"linf"`` or ``"l2"``.
        loss: what is raised.
        targeted: reach ``y`` instead of leaving it.
        seed: of the random step.
        index: of the images, keys of their draws.
        batch_size: images per pass.

    Raises:
        ValueError: an argument that no attack can use, or α above ε.
    """
    check_attack(model, x, y, eps, norm, index=index, batch_size=batch_size)
    alpha = eps / 2 if alpha is None else alpha
    check_number(alpha, "alpha")
    if alpha > eps:
        raise ValueError(f"alpha: expected at most eps = {eps:g}, the budget of both steps")
    objective = Objective(model, loss, targeted)

    def attack(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        draws = uniforms(tuple(x.shape[1:]), index, seed, 0, device=x.device).double()
        normal = torch.special.ndtri(draws.clamp(1e-9, 1 - 1e-9)).to(x.dtype)
        moved = (x + alpha * steepest(normal, norm)).clamp(0, 1)
        _, _, gradient = objective.gradient(moved, y)
        return project(moved + (eps - alpha) * steepest(gradient, norm), x, eps, norm)

    return by_chunk(attack, objective, x, y, index=index, batch_size=batch_size)


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
    batch_size: int | None = None,
) -> Tensor:
    """Basic iterative method, FGSM in small steps (Kurakin et al. 2017): PGD from the image itself.

    The arguments are those of :func:`pgd`.
    """
    return pgd(
        model,
        x,
        y,
        eps=eps,
        norm=norm,
        steps=steps,
        step_size=step_size,
        random_start=False,
        loss=loss,
        early_stop=early_stop,
        targeted=targeted,
        batch_size=batch_size,
    )


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

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]`` in [0, 1].
        y: int64 labels ``[N]``.
        eps: radius of the ball.
        norm: ``"linf"`` or ``"l2"``.
        steps: gradient steps.
        step_size: of each step; by default 2.5 · ε / steps, which can cross the ball.
        random_start: begin at a uniformly drawn point of the ball.
        restarts: runs, each from its own random start; the best is kept.
        loss: what is raised: ``"ce"``, ``"margin"`` (with L∞ often called "C&W L∞") or ``"dlr"``.
        early_stop: leave an image alone from its first misclassified iterate on (``targeted``:
            the first classified as ``y``). Much faster, and no weaker against ``model`` itself.
            Against *another* model, such as the same classifier behind a purifier, it is far
            weaker: an image left just behind the border is easily brought back.
        targeted: reach ``y`` instead of leaving it.
        seed: of the random starts.
        index: of the images, keys of their draws.
        batch_size: images per pass.

    Raises:
        ValueError: an argument that no attack can use.
    """
    check_attack(
        model,
        x,
        y,
        eps,
        norm,
        index=index,
        batch_size=batch_size,
        steps=steps,
        restarts=restarts,
    )
    if step_size is not None:
        check_number(step_size, "step_size", exclusive=True)
    if restarts > 1 and not random_start:
        raise ValueError("restarts: more than one needs random_start, or all runs are the same")
    size = 2.5 * eps / steps if step_size is None else step_size
    objective = Objective(model, loss, targeted)
    noisy = isinstance(model, View) and model.noisy

    def attack(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        best = Best(x)
        if eps == 0:
            objective.value(x, y)  # only checks the model
            return x
        for run in range(restarts):
            place = best.places(standing=early_stop)
            if len(place) == 0:
                break
            keys = index[place.cpu()]
            z = in_ball(x[place], eps, norm, keys, seed, run) if random_start else x[place]
            for _ in range(steps):
                value, fell, gradient = objective.gradient(z, y[place])
                if early_stop or not noisy:
                    best.offer(place, z, value, fell)
                if early_stop and fell.any():
                    place, z, gradient = place[~fell], z[~fell], gradient[~fell]
                    if len(place) == 0:
                        break
                ahead = z.add(steepest(gradient, norm), alpha=size)
                z = project(ahead, x[place], eps, norm)
            if len(place):
                best.offer(place, z, *objective.value(z, y[place]))  # the last is only judged
        return best.images

    return by_chunk(attack, objective, x, y, index=index, batch_size=batch_size)
