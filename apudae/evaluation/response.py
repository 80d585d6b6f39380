"""What the protocol does after a warning, before it reports.

A warning prescribes what to do; :func:`respond` does it, on the images that still stand: attacks
along the classifier found inside the model, past custom backward passes and past flat clamps, along
the border of a class, along estimated gradients, from a substitute learned from the answers, and
the random search again with another seed and more queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from .. import attacks
from ..attacks.inside import views_of
from ..core.norms import Ball
from ..purification.purifier import Defended, Purifier
from .abstention import towards_each
from .attackers import Attack, Budget
from .diagnostics import MASKS, Finding
from .isolation import BATCH, PAST, Isolated
from .report import Report
from .substitutes import distil

_LOOK = (*MASKS, "mask not found", PAST, BATCH)
_LOST = ("black box wins", "noise wins", "the attack cannot win", "the loss does not rise")
CALLS = (*_LOOK, *_LOST)  # warnings that call for a response


def called_for(model: nn.Module, found: Iterable[Finding]) -> bool:
    """Whether warnings call for more attacks than were planned.

    Of a purifier of this package the plan holds them already: BPDA and smooth stand-ins.
    """
    known = isinstance(model, Defended) and isinstance(model.purifier, Purifier)
    return not {finding.name for finding in found}.isdisjoint(_LOST if known else CALLS)


def respond(
    model: nn.Module,
    ball: Ball,
    y: Tensor,
    budget: Budget,
    *,
    random: bool,
    classes: int,
    **options: Any,
) -> list[Attack]:
    """Attacks for a model whose gradients are not to be trusted, the cheap before the expensive.

    Together they cost some six times as many passes as ``budget.queries``.

    Args:
        model: images -> logits.
        ball: all images of the evaluation, and ε.
        y: int64 labels ``[N]``.
        budget: what attacks may cost.
        random: whether to average over draws.
        classes: that the model knows.
        options: ``eps``, ``norm``, ``seed`` and ``batch_size`` of all of them.
    """
    draws, eps, seed = budget.draws if random else 1, options["eps"], options["seed"]
    found, bank = [], ball[slice(0, 100)]
    pixels = ball.x[0].numel() ** 0.5 if options["norm"] == "l2" else 1

    def add(name: str, kind: str, attack: Any, view: nn.Module, cost: float, **more: Any) -> None:
        view = attacks.EOT(view, draws) if random else view
        if attack is not attacks.boundary:
            more["early_stop"] = not random
        run = partial(attack, view, **options | more)
        found.append(Attack(name, kind, run, forwards=cost * draws))

    hidden = (model.model,) if isinstance(model, Isolated) else ()
    for name, view in views_of(model, ball.x, y, skip=hidden).items():
        for loss in ("ce", "margin"):
            more = {"steps": budget.apgd, "loss": loss, "restarts": 2}
            add(f"{name}, {loss}", "surrogate", attacks.apgd, view, 4 * budget.apgd, **more)
    through = attacks.StraightThrough.of(model, ball.x[:5], clamps=True)
    for loss in ("ce", "margin") if through is not None else ():
        more = {"steps": budget.apgd, "loss": loss, "restarts": 2}
        add(f"past clamps, {loss}", "surrogate", attacks.apgd, through, 4 * budget.apgd, **more)
    steps = max(2, budget.apgd // 3)
    walk = {"starts": bank.x, "steps": steps}
    add("border", "white box", attacks.boundary, attacks.Uncut(model), 18 * steps, **walk)
    sampled = max(4, min(budget.queries // 20, 50))
    for share in (0.5, 1):
        sigma = share * eps / pixels
        view = attacks.NES(model, sigma, samples=sampled, tiles=(2,), seed=seed)
        more = {"steps": 10, "loss": "margin", "random_start": False}
        add(f"NES, σ = {sigma:.2g}", "black box", attacks.pgd, view, 20 * sampled, **more)
    again, view = {"queries": 2 * budget.queries, "seed": seed + 1}, attacks.Exact(model)
    add("Square, again", "black box", attacks.square, view, again["queries"], **again)
    view = attacks.NES(model, eps / 2 / pixels, samples=sampled, tiles=(2,), seed=seed)
    more = {"starts": bank.x, "steps": 10}
    add("border, NES", "black box", attacks.boundary, view, 20 * sampled, **more)

    @cache
    def learned() -> nn.Module:
        queries = max(5, min(budget.queries // 8, 4000 // len(bank)))
        kept = replace(bank, x=bank.x.clone())
        return distil(model, kept, y[: len(bank)], classes=classes, queries=queries, seed=seed)

    def copied(x: Tensor, labels: Tensor, *, eps: float, norm: str, **more: Any) -> Tensor:
        view = attacks.Surrogate(model, learned())
        view = attacks.EOT(view, draws) if random else view
        more |= {"eps": eps, "norm": norm, "steps": budget.apgd, "loss": "margin"}
        return attacks.apgd(view, x, labels, **options | more)

    run = partial(_told_all(copied), **_ball(options), early_stop=not random)
    found.append(Attack("learned substitute", "black box", run, forwards=budget.queries // 4))
    return found


def _ball(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("eps", "norm")}


def _told_all(attack: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An attack that names what others look for: the ball, the keys, where it may stop."""

    def named(
        x: Tensor,
        y: Tensor,
        *,
        eps: float,
        norm: str,
        early_stop: bool,
        index: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        given = {"eps": eps, "norm": norm, "early_stop": early_stop}
        return attack(x, y, **given, index=index, mask=mask)

    return named


def transfer(
    model: nn.Module,
    other: nn.Module,
    name: str,
    budget: Budget,
    *,
    random: bool,
    **options: Any,
) -> list[Attack]:
    """APGD on a substitute that the caller hands over, and along it while the model answers."""
    view, steps = attacks.Surrogate(model, other), {"steps": budget.apgd}
    view = attacks.EOT(view, budget.draws) if random else view
    alone = partial(attacks.apgd, other, **options | steps)
    led = partial(attacks.apgd, view, early_stop=not random, **options | steps)
    cost = budget.apgd * (budget.draws if random else 1)
    return [
        Attack(f"transfer from {name}", "black box", alone, forwards=1),
        Attack(f"along {name}", "surrogate", led, forwards=cost),
    ]


def speaking(
    model: nn.Module,
    budget: Budget,
    abstain: int,
    *,
    random: bool,
    classes: int,
    **options: Any,
) -> Attack:
    """The attack on a model that may abstain which wants a wrong answer, on all images."""
    draws, view = budget.draws if random else 1, attacks.Uncut(model)
    view = attacks.EOT(view, draws) if random else view
    targets = max(1, min(budget.targets, classes - 2))
    more = {"abstain": abstain, "targets": targets, "steps": budget.apgd}

    def aimed(x: Tensor, y: Tensor, **given: Any) -> Tensor:
        return towards_each(view, x, y, **options | more | given | {"loss": "margin"})

    run = partial(_told_all(aimed), **_ball(options), early_stop=not random)
    cost = targets * budget.apgd * draws
    return Attack("towards each class", "white box", run, gradients=cost, everywhere=True)


def answered(report: Report, found: list[Finding], first: set[str]) -> list[Finding]:
    """Findings, with what was done about those that call for a response.

    Args:
        report: of all attacks.
        found: that were raised.
        first: names of the rows before the response.
    """
    more = [row.name for row in report.rows if row.name not in first]
    before, after = report.stood(first), report.stood({row.name for row in report.rows})
    told = f"; {len(more)} attacks more were run in response, {before:g} images stood before"
    told += f" and {after:g} after them"
    return [replace(f, seen=f.seen + told) if f.name in CALLS else f for f in found]
