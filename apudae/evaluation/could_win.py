"""Could the attack win at all? Tests of the attack, on the model that it is to attack.

An attack that finds nothing has failed, or there was nothing to find. An attack unit test
(Zimmermann et al. 2022) puts the model's logits through a readout of two classes, made so that an
adversarial example is known to exist: an attack that works on this model finds one.

Of the indicators of attack failure (Pintor et al. 2022) the rest is here or elsewhere: gradients
that are not there ("zero gradients"), a loss that does not rise (below), an attack that does not
converge ("more steps are weaker"), one that a weaker one beats ("black box wins", "noise wins").
A success that is thrown away cannot be: ``attacks.Best`` keeps each image's best iterate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import attacks
from ..attacks.losses import margin
from ..core.calling import ask, bounded, evaluating
from ..core.norms import Ball, keyed
from ..core.scores import Accuracy

_IMAGES, _POINTS, _STEPS = 10, 40, 25


def could_win(model: nn.Module, ball: Ball, y: Tensor, *, seed: int = 0) -> dict[str, list[int]]:
    """How often the attack finds what is known to be there, on the first ten images.

    For each image 40 points of half the radius and 40 on the border of its ball are read. The
    readout points from the mean of the inner ones' logits to those of one on the border, over
    their spread; its threshold lies close below that point, above all others. Of the points on
    the border the one that stands out most is taken, so that a random point seldom passes.

    Args:
        model: images -> logits, not a random one.
        ball: images and ε.
        y: int64 labels ``[N]``.
        seed: of the draws.

    Returns:
        Per image 0 or 1: ``"found"``, by APGD along the margin; ``"by chance"``, by 40 fresh
        points; ``"rises"``, whether APGD on the model itself raised the margin above that of 40
        random points. Images all of whose logits are the same are left out of the first two.
    """
    few = ball[slice(0, _IMAGES)]
    draws, found = keyed(seed, 99), {"found": [], "by chance": [], "rises": []}
    options = {"eps": ball.eps, "norm": ball.norm, "seed": seed, "steps": _STEPS}
    with evaluating(model), torch.no_grad():
        labels = y[: len(few)]
        best = _raised(model, few, labels, **options)
        top, readouts = margin(ask(model, best), labels), {}
        for k in range(len(few)):
            one = few[slice(k, k + 1)]
            inner, outer = (bounded(ask(model, _points(one, s, draws))) for s in (0.5, 1.0))
            found["rises"].append(int(top[k] > margin(outer, labels[k].expand(_POINTS)).max()))
            if readout := _readout(inner.float(), outer.float()):
                readouts[k] = readout
        if readouts:
            place = torch.tensor(list(readouts), device=few.x.device)
            tested = _Readouts(model, *map(torch.stack, zip(*readouts.values(), strict=True)))
            best = _raised(tested, few[place], torch.zeros_like(place), **options)
            found["found"] = ask(tested, best).argmax(1).tolist()
        for row, k in enumerate(readouts):
            fresh = ask(model, _points(few[slice(k, k + 1)], 1.0, draws))
            found["by chance"].append(int(tested.read(fresh, row).argmax(1).any()))
    return found


def _raised(model: nn.Module, ball: Ball, y: Tensor, **options: object) -> Tensor:
    """APGD along the margin, all images in one pass."""
    options |= {"mask": ball.mask, "batch_size": len(ball), "loss": "margin"}
    return attacks.apgd(attacks.Uncut(model), ball.x, y, **options)


def told(found: dict[str, list[int]]) -> dict[str, str]:
    """Rules that the outcomes of :func:`could_win` raise, with what was seen."""
    rules = {"the attack cannot win": "found", "the loss does not rise": "rises"}
    seen = {}
    for rule, key in rules.items():
        share = Accuracy.of(torch.tensor(found[key]) == 1) if len(found[key]) >= 5 else None
        if share is not None and share.percent < 80:
            seen[rule] = f"of {share.n} images in {share}"
    return seen


def _points(one: Ball, share: float, draws: torch.Generator) -> Tensor:
    """Points at a share of the radius round one image, ``[40, C, H, W]``."""
    noise = torch.randn(_POINTS, *one.x.shape[1:], generator=draws).to(one.x)
    mask = None if one.mask is None else one.mask.expand_as(noise)
    way = Ball(noise, one.eps, one.norm, mask).steepest(noise)
    return (one.x + share * one.eps * way).clamp(0, 1)


class _Readouts(nn.Module):
    """Two logits, ∓(w · (z − m) − b): the second wins where the first's logits z lie far along w.

    Each image of a batch has its own w, m and b, by its place.
    """

    def __init__(self, model: nn.Module, weight: Tensor, mean: Tensor, above: Tensor) -> None:
        super().__init__()
        self.model, self.weight, self.mean, self.above = model, weight, mean, above

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.model(x), slice(0, len(x)))

    def read(self, logits: Tensor, place: slice | int) -> Tensor:
        """What becomes of the model's logits at a place, or at several."""
        along = (bounded(logits) - self.mean[place]).float() * self.weight[place]
        score = along.sum(1) - self.above[place]
        return torch.stack([-score, score], 1)


def _readout(inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """w, m and b for one image, of logits ``[40, K]``; None where no point of ``outer`` stands out.

    The point that stands out most beyond all others, of either kind, is taken.
    """
    mean, spread = inner.mean(0), inner.std(0)
    if not bool((outer != mean).any()) or not bool(spread.any()):
        return None
    weight = (outer - mean) / (spread + 1e-3 * spread.max()) ** 2
    weight = weight / weight.norm(dim=1, keepdim=True)
    along = (torch.cat([outer, inner]) - mean) @ weight.T  # [80, 40]: of each along each
    top = along.diagonal().clone()
    most = along.fill_diagonal_(-torch.inf).amax(0)
    gap = (top - most) / top.abs().clamp(min=1e-12)
    best = gap.where(top > most, -torch.inf).argmax()
    if not bool(top[best] > most[best]):
        return None
    return weight[best], mean, (top - 0.1 * (top - most))[best]
