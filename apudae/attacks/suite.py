"""Several attacks one after the other, each image's worst case kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .autoattack import apgd, square
from .gradient import pgd
from .minimal import cw
from .objective import Best, Objective, by_chunk, check_attack, check_inside, keys_of


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


def suite(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    attacks: Mapping[str, Callable[..., Tensor]] | None = None,
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
            is called as ``attack(model, x, y, ...)`` with those of ``eps``, ``norm``, ``seed``,
            ``index`` and ``batch_size`` that it takes; fix its other options with
            :func:`functools.partial`.

    Raises:
        ValueError: an argument that no attack can use, or an attack whose images leave the ball.
    """
    check_attack(model, x, y, eps, norm, index=index, batch_size=batch_size)
    if attacks is not None and not attacks:
        raise ValueError("attacks: expected at least one")
    for name, attack in (attacks or {}).items():
        if norm != "l2" and getattr(attack, "func", attack) is cw:
            raise ValueError(f"attacks: {name!r} knows L2 only, and would take ε as its L2 length")
    index = keys_of(x, index)
    objective = Objective(model)
    felled_by = torch.full((len(x),), -1, device=x.device)
    best = Best(x.detach())

    def judge(place: Tensor, images: Tensor, number: int) -> None:
        def ask(images: Tensor, labels: Tensor, _: Tensor) -> Tensor:
            value, fell = objective.value(images, labels)
            return torch.stack([value.double(), fell.double()], 1)

        score, fell = by_chunk(ask, objective, images, y[place], batch_size=batch_size).unbind(1)
        best.offer(place, images, score, fell.bool())
        felled_by[place[fell.bool()]] = number

    if len(x):
        judge(torch.arange(len(x), device=x.device), x.detach(), 0)
    attacks = standard(objective.classes or 10) if attacks is None else attacks
    for number, (name, attack) in enumerate(attacks.items(), 1):
        place = best.places(standing=True)
        if len(place) == 0:
            continue
        ball = {"eps": eps, "norm": norm, "seed": seed, "batch_size": batch_size}
        options = taken(attack, ball | {"index": index[place.cpu()]})
        attacked = attack(model, x[place], y[place], **options).detach().to(x.dtype)
        check_inside(attacked, x[place], eps, norm, name)
        judge(place, attacked, number)
    return WorstCase(best.images, felled_by, ("clean", *attacks))


def taken(attack: Callable[..., Tensor], options: dict) -> dict:
    """Those of ``options`` that an attack takes, and that were not fixed by ``partial``."""
    parameters = inspect.signature(attack).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    fixed = attack.keywords if isinstance(attack, partial) else {}
    return {k: v for k, v in options.items() if (takes_any or k in parameters) and k not in fixed}
