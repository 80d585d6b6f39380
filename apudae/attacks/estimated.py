"""Attackers who only see answers: a gradient estimated from them, and a walk along the border.

- :class:`NES`: a view whose gradient is estimated from queries
- :func:`boundary`: from a misread image far away towards the one that is attacked
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..core.arguments import check_count, check_images, check_number, checked
from ..core.calling import ask, bounded
from ..core.norms import Ball, length, normals, per_image, uniforms, within_reach
from .adaptive import Exact
from .objective import Best, Objective, by_chunk, check_attack

_AT_ONCE = 2**20  # pixels in one pass


class NES(Exact):
    """The gradient of the smoothed logits, estimated from queries (Ilyas et al. 2018, §2.1).

    E[z(x + σu)] has a slope also where z has none: on plateaus, behind roundings, of hard votes.
    It is estimated from pairs x ± σu, u normal, clipped to [0, 1]::

        mean z(x ± σu) + mean_k (z(x + σu_k) − z(x − σu_k)) / 2σ · ⟨u_k, x' − x⟩

    is linear in x', and handed to autograd: every loss and every attack works along it. All images
    share the directions of a query, which are keyed by the seed and its number.

    Args:
        model: images -> logits, whose answers count.
        sigma: σ, in pixel units. About ε where the model answers in steps, else less.
        samples: pairs per query.
        seed: of the directions.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        sigma: float,
        *,
        samples: int = 50,
        tiles: tuple[int, ...] = (1,),
        seed: int = 0,
    ) -> None:
        super().__init__(model)
        check_number(sigma, "sigma", exclusive=True)
        check_count(samples, "samples")
        self.sigma, self.samples, self.tiles, self.seed = sigma, samples, tiles, seed

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        draw, flat = self.number(turn), x.flatten(1)
        key = torch.tensor([turn])
        (height, width), tile = x.shape[2:], self.tiles[turn % len(self.tiles)]
        shape = (self.samples, x.shape[1], -(-height // tile), -(-width // tile))
        normal = normals(uniforms(shape, key, self.seed, 1, device=x.device)[0]).to(x.dtype)
        ways = normal.repeat_interleave(tile, 2).repeat_interleave(tile, 3)[..., :height, :width]
        change = flat - flat.detach()
        size = max(1, _AT_ONCE // (2 * max(x.numel(), 1)))
        total, slope = 0, 0
        for u in ways.split(size):
            with torch.no_grad():
                step = self.sigma * u[:, None]
                near = torch.stack([x + step, x - step]).clamp(0, 1)  # [2, S, N, C, H, W]
                answers = bounded(ask_each(self.model, near.flatten(0, 2), len(x), draw))
                there, back = answers.view(2, len(u), len(x), -1)
            total = total + (there + back).sum(0) / 2
            along = change @ u.flatten(1).T  # [N, S]; zero, but its slope is u
            slope = slope + torch.einsum("ns,snk->nk", along.to(there), there - back)
        yield (total + slope / (2 * self.sigma)) / self.samples, False


def ask_each(model: nn.Module, z: Tensor, n: int, draw: int) -> Tensor:
    """Logits of many images near each of ``n``, in passes of at most :data:`_AT_ONCE` pixels."""
    size = max(n, _AT_ONCE // max(z[0].numel(), 1) // n * n)
    return torch.cat([ask(model, part, draw=draw) for part in z.split(size)])


@checked
def boundary(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 20,
    starts: Tensor | None = None,
    targeted: bool = False,
    mask: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Walk along the border of the class, from a misread image towards ``x``.

    As HopSkipJump (Chen et al. 2020, alg. 2) and the attack of Brendel et al. (2019): a point at
    the border is found by bisection; a step along the margin's gradient there leads back among the
    misread; bisection towards ``x`` gives a nearer point. The model needs a slope where it is
    unsure only, and along an :class:`~apudae.attacks.NES` view none at all: its answers suffice.

    Args besides those of all attacks:
        steps: from border to border.
        starts: images ``[M, C, H, W]`` to begin from, those nearest first; uniform noise besides.
    """
    shared = {"index": index, "batch_size": batch_size}
    ball = check_attack(model, x, y, eps, norm, mask=mask, steps=steps, **shared)
    if starts is not None:
        check_images(starts, "starts")
    objective, reach = Objective(model, "margin", targeted), within_reach(float("inf"), norm, x)

    def attack(ball: Ball, y: Tensor, index: Tensor) -> Tensor:
        best = Best(ball.x)
        best.offer(torch.arange(len(y), device=y.device), ball.x, *objective.value(ball.x, y))
        z, found = _far(objective, ball, y, starts, index, seed)
        objective.at(_WALK)  # however many starts were tried: draws are keyed by the turn
        place = (found & ~best.fallen).nonzero().flatten()
        if len(place) == 0:
            return best.images
        z = _nearer(objective, ball[place], z[place], y[place], reach)
        for step in range(steps + 1):
            inside, labels = ball[place], y[place]
            far = length(z - inside.x, norm)
            near = far <= eps * (1 + 1e-6)
            if near.any():
                best.offer(place[near], inside[near].project(z[near]), far[near], near[near])
                place, z = place[~near], z[~near]
                inside, labels, far = ball[place], y[place], far[~near]
            if len(place) == 0 or step == steps:
                break
            way = inside.steepest(objective.gradient(z, labels)[2])
            size = far / (step + 1) ** 0.5
            moved, done = z, torch.zeros_like(near[~near])
            for _ in range(_TRIES):
                trial = inside.keep(z + per_image(size, z) * way).clamp(0, 1)
                fell = objective.value(trial, labels)[1] & ~done
                moved = torch.where(per_image(fell, z), trial, moved)
                done, size = done | fell, size / 2
            z = _nearer(objective, inside, moved, labels, reach)
        if len(place):
            z = ball[place].project(z)
            best.offer(place, z, *objective.value(z, y[place]))
        return best.images

    return by_chunk(attack, objective, ball, y, **shared)


_TRIES, _BISECTIONS, _STARTS = 6, 10, 8
_WALK = 100  # the turn at which the walk begins


def _far(
    objective: Objective, ball: Ball, y: Tensor, starts: Tensor | None, index: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """A misread image for each, and whether there is one: the nearest start, or noise."""
    x, found = ball.x, torch.zeros_like(y, dtype=torch.bool)
    z, shape = x.clone(), tuple(x.shape[1:])
    order = None
    if starts is not None and len(starts):
        starts = starts.to(x)
        gaps = torch.stack([length(starts - one, ball.norm) for one in x])
        order = gaps.argsort(1)
    for k in range(len(starts) if order is not None else 0):
        trial = ball.keep(starts[order[:, k]])
        fell = objective.value(trial, y)[1] & ~found
        z, found = torch.where(per_image(fell, z), trial, z), found | fell
        if found.all() or k >= 4 * _STARTS:
            break
    for k in range(_STARTS):
        trial = ball.keep(uniforms(shape, index, seed, 1000 + k, device=x.device).to(x))
        trial = trial if k % 2 else trial.round()
        fell = objective.value(trial, y)[1] & ~found
        z, found = torch.where(per_image(fell, z), trial, z), found | fell
    return z, found


def _nearer(objective: Objective, ball: Ball, z: Tensor, y: Tensor, reach: float) -> Tensor:
    """The misread image nearest to ``x`` between it and each ``z``, which is misread."""
    x = ball.x
    low = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    high = length(z - x, ball.norm).clamp(max=reach)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        trial = _within(ball, z, middle)
        fell = objective.value(trial, y)[1]
        low, high = torch.where(fell, low, middle), torch.where(fell, middle, high)
        z = torch.where(per_image(fell, z), trial, z)
    return z


def _within(ball: Ball, z: Tensor, radius: Tensor) -> Tensor:
    """``z`` brought into balls of these radii ``[N]``."""
    change = z - ball.x
    if ball.norm == "linf":
        most = per_image(radius, z)
        return ball.x + change.clamp(-most, most)
    size = length(change, "l2").clamp(min=torch.finfo(z.dtype).tiny)
    return ball.x + per_image((radius / size).clamp(max=1), z) * change
