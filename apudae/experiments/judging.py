"""Judging what a reader wrote: a defense or an attack, on fixed images, by a small protocol.

A :class:`Challenge` says what is asked and judges it; :mod:`.challenges` holds those there are.
Whatever hides a gradient, remembers, looks at the batch, draws by chance, stores the images or
changes how modules answer is a warning, and no pass.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks, data
from ..core import scores
from ..core.arguments import AttackWarning, require
from ..core.calling import evaluating, is_random
from ..core.norms import in_ball, length
from ..core.prints import model_print
from ..core.record import Row, counted
from ..evaluation import Budget, evaluate
from ..evaluation.diagnostics import inspect_model
from ..evaluation.isolation import PAST, isolated, spare
from ..purification import Defended, Purifier
from .digit_choices import validation
from .place import Place

BUDGET = Budget(pgd=20, apgd=20, targets=2, queries=150, weights=(0.1,), scoring=10, curve=20)
DIGITS = 40
VERSIONS = ("as they are", "shifted")
OUTSIDE, MEDDLES, INVALID = "outside the ball", "changes how modules answer", "not images"
RECITES = "turned images come back unturned"
_CHANGED = "what it keeps is other after it was asked"
Function = Callable[..., Any]


@dataclass(frozen=True)
class Challenge:
    """What is asked, and what passes.

    Attributes:
        what: it is, in a sentence.
        eps: radius of the ball, L∞.
        mark: per cent of the digits: a defense has to keep as many, of either version, an attack
            must not leave more.
        model: what stands behind the defense, or what is attacked, images -> logits.
        own: the book's entries by name, from a place.
        attack: whether an attack is asked for.
        images: loads digits and labels from a place.
    """

    what: str
    eps: float
    mark: float
    model: Callable[[Place], nn.Module]
    own: Mapping[str, Callable[[Place], Function]] = field(default_factory=dict)
    attack: bool = False
    images: Callable[[Place], data.Split] = lambda place: validation(place, DIGITS)

    @property
    def worst(self) -> Callable[..., int]:
        """Of counts of images that are left, the one that is worse for who is judged."""
        return max if self.attack else min

    @property
    def better(self) -> Callable[..., int]:
        """And the one that is better."""
        return min if self.attack else max

    def versions(self, place: Place) -> list[data.Split]:
        """The digits as they are, and shifted by a pixel: up, down, left or right in turn."""
        x, y = place.here(self.images(place))
        moved = [_shifted(one, *_MOVES[k % 4]) for k, one in enumerate(x)]
        return [data.Split(x, y), data.Split(torch.stack(moved), y)]

    def judge(self, mine: Function, place: Place) -> Row:
        """What is left of each version, warnings, and what felled how many: plain data."""
        (x, y), (moved, _) = self.versions(place)
        patched = _restored()
        try:
            if self.attack:
                found = [self._attacked(mine, z, y, place) for z in (x, moved)]
            else:
                purifier = mine if isinstance(mine, Purifier) else Written(mine)
                recited = _recited(purifier, x)
                found = [self._defended(purifier, z, y, place, curves=z is x) for z in (x, moved)]
                found[0][1].update(recited)
        finally:
            patched |= _restored()
        rights, warned, felled = zip(*found, strict=True)
        seen = {name: seen for part in warned for name, seen in part.items()}
        return {
            "n": len(rights[0]),
            **{k: [counted(one)[k] for one in rights] for k in ("correct", "outcomes")},
            "warnings": seen | ({MEDDLES: ", ".join(sorted(patched))} if patched else {}),
            "felled": dict(sum(felled, Counter())),
        }

    def _defended(
        self, purifier: nn.Module, x: Tensor, y: Tensor, place: Place, curves: bool
    ) -> tuple[Tensor, dict[str, str], Counter[str]]:
        model, before = Defended(self.model(place), purifier).eval(), _kept(purifier)
        if warned := _warned(model, x, y, self.eps):
            z = attacks.pgd(model.classifier, x, y, eps=self.eps, steps=BUDGET.pgd)
            right = scores.outcomes(model, z, y)
            return right, warned, Counter({"transfer": int((~right).sum())})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttackWarning)  # the score names them
            options = {"eps": self.eps, "budget": BUDGET, "curves": curves, "progress": False}
            report = evaluate(model, x, y, **options)
        right = report.right() == 1
        by = zip(report.chosen(), right.tolist(), strict=True)
        felled = Counter(name for name, stands in by if not stands)
        seen = {finding.name: finding.seen for finding in report.findings}
        if _kept(purifier) != before:  # it began to remember later
            seen[PAST] = _CHANGED
        return right, seen, felled

    def _attacked(
        self, mine: Function, x: Tensor, y: Tensor, place: Place
    ) -> tuple[Tensor, dict[str, str], Counter[str]]:
        model = self.model(place)
        z = mine(copy.deepcopy(model), x.clone(), y.clone(), self.eps)
        if not (isinstance(z, Tensor) and z.shape == x.shape and z.isfinite().all()):
            got = list(z.shape) if isinstance(z, Tensor) else type(z).__name__
            return torch.ones_like(y, dtype=torch.bool), {INVALID: f"got {got}"}, Counter()
        z = z.detach().to(x)
        far = torch.maximum(length(z - x) - self.eps, length(z - z.clamp(0, 1)))
        beyond, seen = far > 1e-5, {}
        if beyond.any():
            seen[OUTSIDE] = f"{int(beyond.sum())} of {len(x)}, by up to {far.max():.3g}"
        z = torch.where(beyond[:, None, None, None], x, z.clamp(0, 1))
        right = scores.outcomes(model, z, y) | beyond
        return right, seen, Counter({"yours": int((~right).sum())})


def _warned(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, str]:
    """What is seen before any attack, for which an entry cannot pass."""
    index, before = torch.arange(len(x)), _kept(model.purifier)
    with evaluating(model):
        moved = in_ball(x, eps, "linf", index, seed=1)
        chance = is_random(model, x) or is_random(model, moved)
        _, odd = isolated(model, spare(model), x, index)
    found = inspect_model(model, x, y, eps=eps, random=chance)
    if _kept(model.purifier) != before:
        odd = {PAST: _CHANGED} | odd
    return odd | {finding.name: finding.seen for finding in found}


def _kept(purifier: nn.Module) -> str:
    """A print of what a reader's purifier keeps, counts aside."""
    return "" if isinstance(purifier, Purifier) else model_print(purifier, counts=False)


def _recited(purifier: nn.Module, x: Tensor) -> dict[str, str]:
    """Whether images that are turned a little come back as they were: they are stored somewhere.

    By angles that nobody can know beforehand.
    """
    angles = torch.tensor([_SYSTEM.choice((-1, 1)) * _SYSTEM.uniform(8, 14) for _ in x]).deg2rad()
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    turn = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3).to(x)
    grid = nn.functional.affine_grid(turn, list(x.shape), align_corners=False)
    turned = nn.functional.grid_sample(x, grid, align_corners=False).clamp(0, 1)
    with torch.no_grad():
        seen = purifier(turned)
    stored = [x, *(torch.stack([_shifted(one, *move) for one in x]) for move in _MOVES)]
    nearest = torch.stack([length(seen - known, "l2") for known in stored]).amin(0)
    count = int((nearest < length(seen - turned, "l2")).sum())
    return {RECITES: f"{count} of {len(x)}"} if count > len(x) / 2 else {}


def _shifted(image: Tensor, down: int, right: int) -> Tensor:
    """An image ``[C, H, W]`` moved by a pixel; what comes in is like the border."""
    padded = nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    height, width = image.shape[1:]
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def _kinds(kind: type[nn.Module] = nn.Module) -> Iterator[type[nn.Module]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _kinds(one)


# How modules answer, as it was before a reader could change it.
_METHODS = {
    (kind, name): vars(kind).get(name) for kind in _kinds() for name in ("forward", "__call__")
}
_SYSTEM, _MOVES = random.SystemRandom(), ((-1, 0), (1, 0), (0, -1), (0, 1))


def _restored() -> set[str]:
    """Names of the classes that were changed; they are put back."""
    found = set()
    for (kind, name), was in _METHODS.items():
        if vars(kind).get(name) is not was:
            found.add(kind.__name__)
            delattr(kind, name) if was is None else setattr(kind, name, was)
    return found


class Written(nn.Module):
    """What a reader wrote, images -> images, as a module; it is not told which images they are.

    Args:
        function: images -> images.
    """

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the function makes of the images.

        Raises:
            ValueError: it returns no images like those given, with values in [0, 1].
        """
        z = self.function(x)
        fits = isinstance(z, Tensor) and z.shape == x.shape and z.is_floating_point()
        got = f"{list(z.shape)} {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        require(fits, f"mine: expected images {list(x.shape)} in float, got {got}")
        # A first look steps a little out of the range itself.
        low, high = min(0.0, x.min().item()) - 1e-3, max(1.0, x.max().item()) + 1e-3
        require(z.min() >= low and z.max() <= high, "mine: expected values in [0, 1]; clamp them")
        return z
