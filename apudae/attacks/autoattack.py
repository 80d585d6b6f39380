"""Two attacks of AutoAttack: APGD, which sets its own step size, and Square, without gradients.

Both have no step size to tune, which is how attacks most often come out too weak. They are called
like all attacks; see :mod:`apudae.attacks`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.arguments import check_count, check_number, checked, require
from ..core.norms import Ball, length, per_image, uniforms, within_reach
from .losses import dlr_targeted
from .objective import Best, Objective, by_chunk, check_attack

# Croce & Hein 2020, §3: inertia of the step, share of rising steps below which it is halved.
_INERTIA, _RISING = 0.75, 0.75


@checked
def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    loss: str = "ce",
    targets: int = 9,
    early_stop: bool = False,
    targeted: bool = False,
    mask: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Auto-PGD: momentum, and steps that halve when they no longer pay (Croce & Hein 2020, alg. 1).

    The step starts at 2ε. At reviews (the paper: checkpoints), which come ever closer together,
    each image whose loss rose in fewer than three quarters of the steps, or whose step and best
    loss stayed the same, returns to its best point with half the step.

    Args besides those of all attacks:
        steps: gradient steps of each run.
        restarts: runs, each from its own random start; the best is kept.
        loss: also ``"dlr-targeted"``: one run towards each of the ``targets`` classes that the
            model finds likeliest after ``y`` (4 classes or more). The ``targeted`` switch is not
            for this loss: here ``y`` is the true class.
        targets: how many, for ``"dlr-targeted"``.
        early_stop: leave an image alone once it fell; see :func:`apudae.attacks.pgd`.

    Raises:
        ValueError: an argument that no attack can use, or too few classes for the loss.
    """
    counts = {"steps": steps, "restarts": restarts, "targets": targets}
    shared = {"index": index, "batch_size": batch_size}
    ball = check_attack(model, x, y, eps, norm, mask=mask, **shared, **counts)
    to_each = loss == "dlr-targeted"
    if to_each and targeted:
        raise ValueError("targeted: not with loss='dlr-targeted', which leaves y by way of others")
    objective = Objective(model, "dlr" if to_each else loss, targeted)
    ball = replace(ball, eps=within_reach(eps, norm, x))

    def attack(ball: Ball, y: Tensor, index: Tensor) -> Tensor:
        best, goals = Best(ball.x), objective.others(ball.x, y, targets) if to_each else None
        for run in range(restarts * (goals.shape[1] if to_each else 1)):
            place = best.places(standing=early_stop)
            if len(place) == 0:
                break
            goal = goals[:, run // restarts] if to_each else None
            start = ball[place].start(index[place.cpu()], seed, run)
            _climb(objective, best, place, start, ball, y, goal, steps, early_stop)
        return best.images

    return by_chunk(attack, objective, ball, y, packed=True, **shared)


def _climb(
    objective: Objective,
    best: Best,
    place: Tensor,
    start: Tensor,
    ball: Ball,
    y: Tensor,
    goal: Tensor | None,
    steps: int,
    early_stop: bool,
) -> None:
    """One run of APGD on the images at ``place``; every iterate is offered to ``best``."""

    def ask(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, fell, gradient = objective.gradient(z, y[place], None if goal is None else towards)
        best.offer(place, z, value, fell)
        return value, fell, gradient

    def towards(logits: Tensor, part: slice) -> Tensor:
        some = place[part]
        return dlr_targeted(logits, y[some], goal[some])

    reviews, last = _reviews(steps), 0
    z = previous = peak = start
    value, fell, gradient = ask(z)
    top, top_gradient = value, gradient  # of the best point of this run, ``peak``
    step = torch.full_like(value, 2 * ball.eps, dtype=start.dtype)
    rises, step_then, top_then = torch.zeros_like(value), step, top
    for t in range(1, steps + 1):
        if early_stop and fell.any():
            images = (place, z, previous, peak, gradient, top_gradient)
            place, z, previous, peak, gradient, top_gradient = (part[~fell] for part in images)
            numbers = (value, top, step, rises, step_then, top_then)
            value, top, step, rises, step_then, top_then = (part[~fell] for part in numbers)
            if len(place) == 0:
                return
        inside = ball[place]
        straight = inside.project(z + per_image(step, z) * inside.steepest(gradient))
        inertia = 1.0 if t == 1 else _INERTIA
        moved = z + inertia * (straight - z) + (1 - inertia) * (z - previous)
        z, previous = inside.project(moved), z
        new, fell, gradient = ask(z)
        rises = rises + (new > value)
        value = new
        higher = value > top
        top = torch.where(higher, value, top)
        peak = torch.where(per_image(higher, z), z, peak)
        top_gradient = torch.where(per_image(higher, z), gradient, top_gradient)
        if t in reviews:
            halve = (rises < _RISING * (t - last)) | ((step == step_then) & (top == top_then))
            step_then, top_then, last = step, top, t
            step = torch.where(halve, step / 2, step)
            z = torch.where(per_image(halve, z), peak, z)
            gradient = torch.where(per_image(halve, z), top_gradient, gradient)
            rises = torch.zeros_like(rises)


def _reviews(steps: int) -> set[int]:
    """⌈p_j · steps⌉ with p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06) (Croce & Hein, §3.1)."""
    before, p, places = 0.0, 0.22, set()
    while p <= 1:
        places.add(math.ceil(p * steps - 1e-9))  # 0.57 · 100 is 57.000…01
        before, p = p, p + max(p - before - 0.03, 0.06)
    return places


@checked
def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    queries: int = 5000,
    p: float = 0.8,
    early_stop: bool = True,
    targeted: bool = False,
    mask: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Square attack: random search with squares, no gradients (Andriushchenko et al. 2020).

    Each query changes one square of each image, and the change stays if it raises the margin. A
    gradient that misleads does not mislead this attack; where it wins, distrust the gradients.

    Only the model's outputs are used. In L2 images have 6 × 6 pixels or more.

    Args besides those of all attacks:
        queries: how often the model may be asked about each image.
        p: share of the pixels that the first squares cover; it shrinks as the attack goes on.
        early_stop: leave an image alone once it fell. Of a random model that may be one lucky draw:
            without, the margin is raised to the end, and what an image is worth is asked again
            every 100 queries.
    """
    shared = {"index": index, "batch_size": batch_size}
    ball = check_attack(model, x, y, eps, norm, mask=mask, **shared)
    check_count(queries, "queries")
    check_number(p, "p", exclusive=True)
    require(p <= 1, f"p: expected a share of at most 1, got {p!r}")
    if norm == "l2" and len(x) and min(x.shape[2:]) < 6:
        raise ValueError(f"x: Square in L2 needs 6 x 6 pixels or more, got {list(x.shape[2:])}")
    objective = Objective(model, "margin", targeted)
    start, propose = (_stripes, _one_square) if norm == "linf" else (_tiles, _two_squares)
    channels, ball = x.shape[1], replace(ball, eps=within_reach(eps, norm, x))

    def attack(ball: Ball, y: Tensor, index: Tensor) -> Tensor:
        x, found = ball.x, ball.x.clone()
        place = torch.arange(len(x), device=x.device)
        luck = uniforms((channels, *x.shape[2:]), index, seed, 0, device=x.device)
        z = ball.project(start(ball, luck))
        value, fell = objective.value(z, y)
        for query in range(1, queries + 1):
            fell &= early_stop
            if fell.any() or query == queries:
                found[place] = z
                place, z, value, luck = (part[~fell] for part in (place, z, value, luck))
            if query == queries or len(place) == 0:
                break
            turn = (query - 1) % _BLOCK
            if turn == 0:
                keys, block = index[place.cpu()], 1 + query // _BLOCK
                luck = uniforms((_BLOCK, channels + 5), keys, seed, block, device=x.device)
                if query > 1 and not early_stop:
                    value, _ = objective.value(z, y[place])
            side = math.sqrt(_share(p, query - 1, queries) * x.shape[2] * x.shape[3])
            inside = ball[place]
            new = inside.project(propose(z, inside, luck[:, turn], side))
            worth, fell = objective.value(new, y[place])
            better = (fell & early_stop) | (worth > value)
            z = torch.where(per_image(better, z), new, z)
            value = torch.where(better, worth, value)
        return found

    return by_chunk(attack, objective, ball, y, packed=True, **shared)


_BLOCK = 100  # queries whose random numbers are drawn at once


def _share(p: float, query: int, queries: int) -> float:
    """Share of the pixels in a square: halved at set shares of the budget (§4 and its code)."""
    at = query / queries * 10_000
    return p / 2 ** sum(at > q for q in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


def _signs(luck: Tensor) -> Tensor:
    return 1 - 2 * (luck < 0.5).float()


def _stripes(ball: Ball, luck: Tensor) -> Tensor:
    """Vertical stripes of ±ε, one pixel wide."""
    return ball.x + ball.eps * _signs(luck[:, :, :1]).to(ball.x.dtype)


def _one_square(z: Tensor, ball: Ball, luck: Tensor, side: float) -> Tensor:
    """Inside one square every channel becomes x + ε or x − ε."""
    signs = _signs(luck[:, 5:]).to(z.dtype)[:, :, None, None]
    square = _window(ball, luck[:, :2], max(round(side), 1))
    return torch.where(square, ball.x + ball.eps * signs, z)


def _tiles(ball: Ball, luck: Tensor) -> Tensor:
    """Tiles a fifth of the image wide, each with the bump of the attack and random signs."""
    x, (height, width) = ball.x, ball.x.shape[2:]
    side = min(height, width) // 5
    top, left = height % side // 2, width % side // 2
    corners = luck[:, :, top : height - side + 1 : side, left : width - side + 1 : side]
    tiles = torch.kron(_signs(corners).to(x.dtype), _bump(side, x))
    below, right = height - top - tiles.shape[2], width - left - tiles.shape[3]
    return x + ball.eps * ball.steepest(F.pad(tiles, (left, right, top, below)))


def _two_squares(z: Tensor, ball: Ball, luck: Tensor, side: float) -> Tensor:
    """The change of one square is given up; its length goes to another, in the shape of a bump."""
    x, size = ball.x, max(round(side), 3)
    size = min(size + 1 - size % 2, *x.shape[2:])  # odd, as far as the image allows
    change = z - x
    chosen, other = (_window(ball, luck[:, k : k + 2], size) for k in (0, 2))
    # What the ball leaves unused and what the two squares hold now. As in AutoAttack's code each
    # channel gets what all of them held; the whole is brought back to length ε below.
    unused = (ball.eps**2 - length(change, "l2") ** 2).clamp(min=0)
    held = length(change * (chosen | other), "l2") ** 2
    budget = (unused / x.shape[1] + held).sqrt()
    bump = _bump(size, x)
    bumps = torch.where((luck[:, 4] < 0.5)[:, None, None], bump.T, bump).flatten(1)[:, None]
    chosen = chosen.expand_as(change)
    old = F.normalize(change[chosen].view(*x.shape[:2], -1), dim=2)  # each channel over its length
    new = F.normalize(bumps * _signs(luck[:, 5:]).to(x.dtype)[:, :, None] + old, dim=2)
    change = change * ~other
    change[chosen] = (new * per_image(budget, new)).flatten()
    return x + ball.eps * ball.steepest(change)


def _window(ball: Ball, luck: Tensor, size: int) -> Tensor:
    """A square, bool ``[N, 1, H, W]``, its corner drawn as in the authors' code.

    There, a square never touches the last row or column, unless it fills the image. With a mask,
    squares lie where pixels may change.
    """
    spans = []
    for k, whole in enumerate(ball.x.shape[2:]):
        side, low, high = min(size, whole), 0, whole
        if ball.mask is not None:
            lines = ball.mask.any(1).any(2 - k).int()  # rows, then columns
            low = lines.argmax(1)
            high = (whole - lines.flip(1).argmax(1) + 1).clamp(max=whole)
        free = torch.as_tensor(high - low - side, device=luck.device).clamp(min=1)
        first = (low + (luck[:, k] * free).long()).clamp(max=whole - side)
        past = torch.arange(whole, device=luck.device) - first[:, None]
        spans.append((past >= 0) & (past < side))
    return spans[0][:, None, :, None] & spans[1][:, None, None, :]


def _bump(size: int, like: Tensor) -> Tensor:
    """Two opposite hills, Σ 1/k² over nested rectangles, of equal length, together 1 (§4.2)."""
    bump = torch.zeros(size, size)
    for sign, hill in ((1, bump[: size // 2]), (-1, bump[size // 2 :])):
        row, column = len(hill) // 2, size // 2  # the middle
        for k in range(max(row, column) + 1):
            rows, columns = (slice(max(at - k, 0), at + k + 1) for at in (row, column))
            hill[rows, columns] += sign / (k + 1) ** 2
        hill /= hill.norm().clamp(min=1e-12)
    return (bump / bump.norm()).to(like)
