"""Attacks within an ε-ball: ``attack(model, x, y, *, eps, ...) -> x_adv``.

``model`` is any module images -> logits: a bare classifier, or a whole defended one. All attacks
are called alike:

- ``x``: float32 or float64 images ``[N, C, H, W]`` in [0, 1]; ``y``: int64 labels ``[N]``;
- ``eps``: radius of the ball, in pixel units (``8 / 255``); ``norm``: ``"linf"`` or ``"l2"``;
- ``targeted``: ``y`` are the classes to reach, not those to leave;
- ``seed`` and ``index``: random draws are keyed by the seed and the image's index (int64 ``[N]``,
  by default its place in the batch), so a subset with its indices is attacked as the whole was;
- ``batch_size``: images per pass through the model; changes speed and memory, not results.

Every result lies in the ball and in [0, 1], and no image's result depends on the others. The model
runs in evaluation mode and keeps its modes, parameters, buffers and ``.grad``: gradients are taken
with respect to the images alone. Wrong arguments raise ``ValueError``; a model that returns
probabilities or stands in training mode draws an :class:`~apudae.evaluation.AttackWarning`.

The attacks live in :mod:`apudae.attacks` (FGSM to PGD), :mod:`apudae.attacks` (APGD, Square)
and :mod:`apudae.attacks` (C&W, DeepFool: the *smallest* change that is enough). Here they are
gathered, and :func:`suite` runs several and keeps the worst case.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..core.norms import length
from .autoattack import apgd, square
from .gradient import pgd
from .minimal import cw
from .objective import Best, Objective, by_chunk, check_attack


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


def standard(budget: str = "quick", *, classes: int = 10) -> dict[str, Callable[..., Tensor]]:
    """The list :func:`suite` runs unless told otherwise, cheapest first.

    ``"quick"``: PGD-50, APGD-50 on the cross-entropy and on the targeted DLR, Square with 500
    queries. ``"reference"``: PGD-200 with 10 restarts, APGD-100 with 5 restarts on the
    cross-entropy and once per target on the DLR, Square with 5,000 queries. The two APGDs and
    Square are AutoAttack (Croce & Hein 2020) without FAB. With fewer than 4 classes the targeted
    DLR is not defined; the margin takes its place.
    """
    if budget not in ("quick", "reference"):
        raise ValueError(f"budget: expected 'quick' or 'reference', got {budget!r}")
    quick = budget == "quick"
    steps = 50 if quick else 100
    return {
        "PGD": partial(
            pgd, steps=50 if quick else 200, restarts=1 if quick else 10, early_stop=True
        ),
        "APGD-CE": partial(apgd, steps=steps, restarts=1 if quick else 5, early_stop=True),
        **(
            {"APGD-DLR": partial(apgd, steps=steps, loss="dlr-targeted", early_stop=True)}
            if classes >= 4
            else {"APGD-margin": partial(apgd, steps=steps, loss="margin", early_stop=True)}
        ),
        "Square": partial(square, queries=500 if quick else 5000),
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

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]`` in [0, 1].
        y: int64 labels ``[N]``.
        eps: radius of the ball.
        norm: ``"linf"`` or ``"l2"``.
        attacks: name -> attack; by default :func:`standard`. Each is called as ``attack(model, x,
            y, ...)`` with those of ``eps``, ``norm``, ``seed``, ``index`` and ``batch_size``
            that it takes; fix its other options with :func:`functools.partial`.
        seed: for all of them.
        index: of the images, keys of their draws.
        batch_size: images per pass.

    Raises:
        ValueError: an argument that no attack can use, or an attack whose images leave the ball.
    """
    check_attack(model, x, y, eps, norm, index=index, batch_size=batch_size)
    if attacks is not None and not attacks:
        raise ValueError("attacks: expected at least one")
    for name, attack in (attacks or {}).items():
        if norm != "l2" and getattr(attack, "func", attack) is cw:
            raise ValueError(f"attacks: {name!r} knows L2 only, and would take ε as its L2 length")
    index = torch.arange(len(x)) if index is None else index.cpu()
    objective = Objective(model)
    common = {"eps": eps, "norm": norm, "seed": seed, "batch_size": batch_size}
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
    attacks = standard(classes=objective.classes or 10) if attacks is None else attacks
    for number, (name, attack) in enumerate(attacks.items(), 1):
        place = best.places(standing=True)
        if len(place) == 0:
            continue
        chosen = taken(attack, common | {"index": index[place.cpu()]})
        attacked = attack(model, x[place], y[place], **chosen).detach().to(x.dtype)
        _check_inside(attacked, x[place], eps, norm, name)
        judge(place, attacked, number)
    return WorstCase(best.images, felled_by, ("clean", *attacks))


def taken(attack: Callable[..., Tensor], options: dict) -> dict:
    """Those of ``options`` that an attack takes, and that were not fixed by ``partial``."""
    parameters = inspect.signature(attack).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    fixed = attack.keywords if isinstance(attack, partial) else {}
    return {k: v for k, v in options.items() if (takes_any or k in parameters) and k not in fixed}


def _check_inside(images: Tensor, x: Tensor, eps: float, norm: str, name: str) -> None:
    if images.shape != x.shape:
        raise ValueError(f"attacks: {name!r} returned shape {list(images.shape)}")
    low, high = images.min().item(), images.max().item()
    far = length(images - x, norm).max()
    if not (low >= 0 and high <= 1 and far <= eps + 1e-5):
        raise ValueError(
            f"attacks: {name!r} left the {norm} ball of radius {eps:g} or [0, 1]: it went "
            f"{far.item():.4g} far, to values in [{low:.4g}, {high:.4g}]"
        )
