"""Attacks within an ε-ball: ``attack(model, x, y, *, eps, ...) -> x_adv``.

``model`` is any module images -> logits: a bare classifier, or a whole defended one. Every result
lies in the L∞ ball of radius ε around the image and in [0, 1]. Attacks run the model in evaluation
mode and leave its modes, parameters, buffers and ``.grad`` as found: gradients are taken with
respect to the image alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import (
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_number,
    evaluating,
)


def noise(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, seed: int = 0) -> Tensor:
    """Uniform noise in ±ε: no attack at all, the yardstick for the others.

    ``model`` and ``y`` are not used; they are there so that all attacks are called alike.
    """
    x = _checked(x, y, eps)
    return project(x + eps * _uniform(x, seed), x, eps)


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, targeted: bool = False) -> Tensor:
    """Fast gradient sign method: one step of size ε (Goodfellow et al. 2015, §4).

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]`` in [0, 1].
        y: int64 labels ``[N]``: the true ones, or with ``targeted`` those to reach.
        eps: radius of the L∞ ball, in pixel units (``8 / 255``).
        targeted: lower the loss of ``y`` instead of raising it.

    Raises:
        ValueError: images, labels or ε out of range.
    """
    x = _checked(x, y, eps)
    if len(x) == 0:
        return x
    with evaluating(model):
        _, _, gradient = _gradient(model, x, y)
    return project(x + (-eps if targeted else eps) * gradient.sign(), x, eps)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 50,
    step_size: float | None = None,
    random_start: bool = True,
    early_stop: bool = False,
    targeted: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018, §2.1), keeping each image's best iterate.

    Sign steps on the cross-entropy, each projected back to the ball and to [0, 1]. The result is,
    image by image, the misclassified iterate with the highest loss, or if none is misclassified the
    iterate with the highest loss (``targeted``: classified as ``y``, the lowest loss).

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]`` in [0, 1].
        y: int64 labels ``[N]``.
        eps: radius of the L∞ ball.
        steps: gradient steps.
        step_size: of each step; by default 2.5 · ε / steps, which can cross the ball.
        random_start: begin at a uniformly drawn point of the ball.
        early_stop: leave an image alone from its first misclassified iterate on (``targeted``:
            the first classified as ``y``). Much faster, and no weaker against ``model`` itself.
            Against *another* model, such as the same classifier behind a purifier, it is far
            weaker: an image left just behind the border is easily brought back.
        targeted: reach ``y`` instead of leaving it.
        seed: of the random start, drawn image by image.
        batch_size: images per pass through the model. It does not change the result. By default
            250 on a CPU, where larger ones mostly move memory, and all at once elsewhere.

    Raises:
        ValueError: images, labels, ε, steps or step size out of range.
    """
    x = _checked(x, y, eps)
    check_count(steps, "steps")
    if step_size is not None:
        check_number(step_size, "step_size", exclusive=True)
    if batch_size is not None:
        check_count(batch_size, "batch_size")
    if len(x) == 0 or eps == 0:
        return x
    step = 2.5 * eps / steps if step_size is None else step_size
    chunk = batch_size or (250 if x.device.type == "cpu" else len(x))
    sign = -1 if targeted else 1
    best = project(x + eps * _uniform(x, seed), x, eps) if random_start else x.clone()
    # What is still being moved: places in the batch and iterates. What was best there so far.
    place, current = torch.arange(len(x), device=x.device), best.clone()
    score = torch.full((len(x),), -torch.inf, device=x.device)
    fallen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    with evaluating(model):
        for t in range(steps + 1):
            # The last iterate is only judged.
            judge = _gradient if t < steps else _loss
            chunks = zip(current.split(chunk), y[place].split(chunk), strict=True)
            parts = zip(*(judge(model, *images) for images in chunks), strict=True)
            loss, label, *gradient = (torch.cat(part) for part in parts)
            now, was = (label == y[place]) == targeted, fallen[place]
            better = (now & ~was) | ((now == was) & (sign * loss.float() > score[place]))
            best[place[better]] = current[better]
            score[place[better]] = sign * loss.float()[better]
            fallen[place] |= now
            if early_stop:
                place, current = place[~now], current[~now]
            if t == steps or len(place) == 0:
                break
            direction = sign * gradient[0].sign()
            if early_stop:
                direction = direction[~now]
            current = project(current + step * direction, x[place], eps)
    return best


def project(z: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point to ``z`` in the L∞ ball of radius ε around ``x`` and in [0, 1]."""
    return torch.clamp(z, min=(x - eps).clamp(min=0), max=(x + eps).clamp(max=1))


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and predicted class of each image."""
    with torch.no_grad():
        logits = model(x)
        check_logits(logits, y)
        return F.cross_entropy(logits, y, reduction="none"), logits.argmax(1)


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, predicted class, and the loss's gradient with respect to each image.

    The losses are summed, not averaged: an image's gradient must not shrink with its batch.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_(True)  # a clone: the images may come from inference mode
        y = y.clone()
        logits = model(x)
        check_logits(logits, y)
        loss = F.cross_entropy(logits, y, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), logits.argmax(1), gradient


def _uniform(x: Tensor, seed: int) -> Tensor:
    """Draws in [-1, 1), keyed by seed and place in the batch, the same on every device."""
    generator = torch.Generator()
    draws = torch.empty(x.shape)
    for place, row in enumerate(draws):
        # The CPU generator keeps 32 bits of its seed: spread the seeds over them.
        generator.manual_seed((seed * 0x9E3779B1 + place) % 2**32)
        row.uniform_(-1, 1, generator=generator)
    return draws.to(device=x.device, dtype=x.dtype)


def _checked(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """A copy of the images that carries no graph."""
    check_images(x)
    check_labels(y, len(x))
    check_number(eps, "eps")
    return x.detach().clone()
