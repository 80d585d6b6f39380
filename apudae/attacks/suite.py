"""Several attacks one after the other, each image's worst case kept."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from ..core.arguments import check_grid, checked, require, warn
from ..core.calling import is_random, looks_at_the_batch
from ..core.norms import Ball
from .autoattack import apgd, square
from .gradient import pgd
from .minimal import cw
from .objective import Best, Objective, View, by_chunk, check_attack, check_inside, fitting, keys_of


@dataclass(frozen=True)
class WorstCase:
    """What a suite of attacks left.

    Attributes:
        images: each image's worst case ``[N, C, H, W]``: the one that felled it, or if it stands
            the one of the highest cross-entropy.
        felled_by: int64 ``[N]``, a place in ``names``; −1 where the image stands.
        names: ``"clean"`` (misclassified as it was), then the attacks in their order.
    """

    images: Tensor
    felled_by: Tensor
    names: tuple[str, ...]

    @property
    def standing(self) -> Tensor:
        """Images that no attack felled, bool ``[N]``: the worst-case outcomes."""
        return self.felled_by == -1

    def standing_after(self) -> dict[str, int]:
        """How many stood before the first attack (``"clean"``) and after each further one."""
        return {
            name: int((self.standing | (self.felled_by > place)).sum())
            for place, name in enumerate(self.names)
        }


def standard(classes: int) -> dict[str, Callable[..., Tensor]]:
    """The list :func:`suite` runs unless told otherwise, cheapest first: the *quick* budget.

    The two APGDs and Square are AutoAttack (Croce & Hein 2020) without FAB. With fewer than 4
    classes the targeted DLR is not defined; the margin takes its place.
    """
    name, loss = ("APGD-DLR", "dlr-targeted") if classes >= 4 else ("APGD-margin", "margin")
    return {
        "PGD": partial(pgd, steps=50, restarts=1, early_stop=True),
        "APGD-CE": partial(apgd, steps=50, restarts=1, early_stop=True),
        name: partial(apgd, steps=50, loss=loss, early_stop=True),
        "Square": partial(square, queries=500),
    }


@checked
def suite(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    attacks: Mapping[str, Callable[..., Tensor]] | None = None,
    mask: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
) -> WorstCase:
    """Run attacks one after the other on the images that still stand; keep the worst case.

    An image counts as robust only if it withstands *all* attacks. Whatever an attack returns is
    judged here, by the model's prediction, and refused if it left the ball.

    Args besides those of all attacks:
        attacks: name -> attack; by default PGD-50, APGD-50 on the cross-entropy and on the
            targeted DLR (of fewer than 4 classes on the margin), and Square with 500 queries. Each
            is called as ``attack(model, x, y, ...)`` with those of ``eps``, ``norm``, ``mask``,
            ``seed``, ``index`` and ``batch_size`` that it takes; fix its other options with
            :func:`functools.partial`.

    An :class:`~apudae.evaluation.AttackWarning` says where that misleads: of a random model, and of
    one whose answers depend on the batch.

    Raises:
        ValueError: an argument that no attack can use, or an attack whose images leave the ball.
    """
    shared = {"index": index, "batch_size": batch_size}
    ball = check_attack(model, x, y, eps, norm, mask=mask, **shared)
    require(attacks is None or attacks, "attacks: expected at least one")
    check_takes(attacks or {}, ball)
    index = keys_of(x, index)
    objective = Objective(model)
    felled_by = torch.full((len(x),), -1, device=x.device)
    best = Best(x.detach())

    def judge(place: Tensor, images: Tensor, number: int) -> None:
        def ask(ball: Ball, labels: Tensor, _: Tensor) -> Tensor:
            value, fell = objective.value(ball.x, labels)
            return torch.stack([value.double(), fell.double()], 1)

        judged = by_chunk(ask, objective, Ball(images), y[place], batch_size=batch_size)
        score, fell = judged.unbind(1)
        best.offer(place, images, score, fell.bool())
        felled_by[place[fell.bool()]] = number

    if len(x):
        _warn_of_luck(model, x[:8].detach())
        judge(torch.arange(len(x), device=x.device), x.detach(), 0)
    attacks = standard(objective.classes or 10) if attacks is None else attacks
    for number, (name, attack) in enumerate(attacks.items(), 1):
        place = best.places(standing=True)
        if len(place) == 0:
            continue
        inside = ball[place]
        given = {"eps": eps, "norm": norm, "seed": seed, "batch_size": batch_size}
        given |= {"mask": inside.mask, "index": index[place.cpu()]}
        options = taken(attack, given)
        attacked = attack(model, x[place], y[place], **options)
        attacked = check_inside(attacked, inside, name).to(x.dtype)
        judge(place, attacked, number)
    return WorstCase(best.images, felled_by, ("clean", *attacks))


def _warn_of_luck(model: nn.Module, x: Tensor) -> None:
    """Warn of a model whose answers to a few images ``x`` are not theirs alone."""
    if isinstance(model, View):
        return  # which says how it is to be asked
    if is_random(model, x):
        warn(
            "model: it is random. An image counts as fallen here after one unlucky draw of any "
            "attack, or only for the draw that the attacker knows: the accuracy is not the "
            "model's. Use evaluation.evaluate, which averages over draws and scores on fresh ones."
        )
    elif looks_at_the_batch(model, x):
        warn(
            "model: its answers depend on the batch: alone, an image is answered otherwise, so "
            "that what falls here may stand elsewhere. Let no image see its neighbours."
        )


@checked
def quantised(attack: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An attack whose images an 8-bit file can hold: pixels k / 255, inside the ball.

    What an attack finds may lie so close behind the border that rounding brings it back: then the
    accuracy on its images is lower than on any file. Here each pixel goes to the nearest level, or
    towards ``x`` where that would leave the ball; what a mask keeps stays.

    Args:
        attack: called as ``attack(model, x, y, eps=..., ...)``; so is what comes back. One that
            goes on behind the border (``early_stop=False``) loses less by rounding.

    Raises:
        ValueError: on a call, images ``x`` not of levels k / 255 themselves, or none returned.
    """
    signature, inner = inspect.signature(attack), _layers(attack)[-1]
    name = getattr(inner, "__name__", type(inner).__name__)

    @wraps(attack)
    def rounded(*args: Any, **options: Any) -> Tensor:
        given = signature.bind(*args, **options)
        given.apply_defaults()
        given = given.arguments | options
        whole = (*args, *options.values())  # where the argument has another name
        images = (part for part in whole if isinstance(part, Tensor) and part.ndim == 4)
        x = given["x"] if "x" in given else next(images, None)
        check_grid(x, given.get("eps", math.inf))
        norm = given.get("norm", "l2" if inner is _layers(cw)[-1] else "linf")
        z = fitting(attack(*args, **options), x, name)
        return Ball(x.detach().clamp(0, 1), given.get("eps", math.inf), norm).on_grid(z)

    return rounded


def check_takes(attacks: Mapping[str, Callable[..., Tensor]], ball: Ball) -> None:
    """Raise ``ValueError`` for attacks that know nothing of the ball's norm or mask."""
    for name, attack in attacks.items():
        if ball.norm != "l2" and _layers(attack)[-1] is _layers(cw)[-1]:
            raise ValueError(f"attacks: {name!r} knows L2 only, and would take ε as its L2 length")
        try:
            known = dict.fromkeys(("eps", "norm", "seed", "batch_size", "index", "mask"))
            inspect.signature(attack).bind(None, None, None, **taken(attack, known | {"mask": 1}))
        except TypeError as error:
            told = f"attacks: {name!r} cannot be called as attack(model, x, y, eps=...): {error}"
            raise ValueError(told) from error
        free = ball.mask is None or taken(attack, {"mask": ball.mask})
        require(bool(free), f"attacks: {name!r} takes no mask")


def _layers(attack: Callable[..., Tensor]) -> list[Callable[..., Tensor]]:
    """An attack and what partials and wrappers hold inside, the function itself last."""
    inner = getattr(attack, "func", getattr(attack, "__wrapped__", None))
    return [attack] if inner is None else [attack, *_layers(inner)]


def taken(attack: Callable[..., Tensor], options: dict) -> dict:
    """Those of ``options`` that an attack takes, and that were not fixed by ``partial``."""
    parameters = inspect.signature(attack).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    fixed = {k for layer in _layers(attack) for k in getattr(layer, "keywords", ())}
    if options.get("mask", 0) is None:  # who takes any options need not know of masks
        fixed.add("mask")
    return {k: v for k, v in options.items() if (takes_any or k in parameters) and k not in fixed}
