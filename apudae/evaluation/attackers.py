"""Which attacks a model is put under, and how much each may cost."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks
from ..attacks.adaptive import (
    BPDA,
    EOT,
    KNOWN_DRAW,
    Averaged,
    Fixed,
    HalfPrecision,
    ReconstructionAware,
    Surrogate,
    Uncut,
    half_precision,
)
from ..attacks.losses import cross_entropy
from ..attacks.objective import Objective
from ..attacks.straight_through import StraightThrough
from ..core.arguments import check_choice, check_count, check_number, checked
from ..core.calling import ask, called, differentiable, evaluating
from ..purification.adaptive import Adaptive
from ..purification.purifier import Defended, Purifier
from ..purification.surrogates import smooth
from .cost import Meter

SEARCH = ("auto", "float32")


@checked
@dataclass(frozen=True)
class Budget:
    """How much an attacker may spend.

    Attributes:
        pgd: steps of PGD, and of BPDA, the surrogates and the reconstruction-aware attack.
        apgd: steps of APGD.
        restarts: of APGD on the cross-entropy.
        targets: classes that APGD on the targeted DLR tries.
        queries: of Square.
        draws: of a random model, per gradient (EOT).
        weights: λ of the reconstruction-aware attack.
        curve: images that the curves are drawn for.
        scoring: of a random model, draws per image to choose its attack, and as many fresh ones to
            score it; 2 to 49.
        search: precision that attacks compute in: ``"auto"``, bfloat16 where the hardware has it,
            the model answers there as it does, and a step along its gradient gains about as much;
            or ``"float32"``, the images' own. What they find is scored in the images' own.

    Raises:
        ValueError: another number of scoring draws, which would not be fresh.
    """

    pgd: int = 50
    apgd: int = 50
    restarts: int = 1
    targets: int = 3
    queries: int = 500
    draws: int = 5
    weights: tuple[float, ...] = (0.01, 0.1)
    curve: int = 50
    scoring: int = 20
    search: str = "auto"

    def __post_init__(self) -> None:
        check_choice(self.search, SEARCH, "search")
        for name, value in vars(self).items():
            for part in value if name == "weights" else ():
                check_number(part, "weights")
            if name not in ("weights", "search"):
                check_count(value, name)
        if not 2 <= self.scoring <= KNOWN_DRAW // 2:
            raise ValueError(f"scoring: expected 2 to {KNOWN_DRAW // 2} draws, got {self.scoring}")


BUDGETS = {
    "quick": Budget(),
    "reference": Budget(
        pgd=200,
        apgd=100,
        restarts=5,
        targets=9,
        queries=5000,
        draws=20,
        weights=(0.003, 0.01, 0.03, 0.1, 0.3),
        curve=100,
    ),
}


@dataclass(frozen=True)
class Attack:
    """One attack of the protocol.

    Attributes:
        name: of the attack.
        kind: see ``evaluation.report.Row``.
        run: images, labels -> attacked images; told their ``index`` if it takes one.
        gradients: about how many passes through the model with a gradient it takes per image.
        forwards: and how many without.
        everywhere: attack all images, not only those that still stand.
        what: of PGD, its radius, steps and draws: what is the same twice is made once.
        search: precision that it computes in.
    """

    name: str
    kind: str
    run: Callable[..., Tensor]
    gradients: float = 0
    forwards: float = 0
    everywhere: bool = False
    what: tuple[float, ...] = ()
    search: str = "float32"

    @classmethod
    def pgd(
        cls,
        model: nn.Module,
        budget: Budget,
        random: bool,
        options: dict[str, Any],
        *,
        steps: int = 0,
        draws: int = 0,
        half: bool = False,
    ) -> Attack:
        """PGD along the exact gradient, on all images."""
        steps, draws = steps or budget.pgd, (draws or budget.draws) if random else 1
        view = HalfPrecision(EOT(Uncut(model), draws) if random else Uncut(model), half)
        run = partial(attacks.pgd, view, steps=steps, early_stop=not random, **options)
        what, cost = (options["eps"], steps, draws), steps * draws
        return cls("PGD", "white box", run, cost, everywhere=True, what=what, search=_search(half))

    def rounded(self) -> Attack:
        """Its images rounded to 8 bits, none of them left just behind the border."""
        on = {"early_stop": False} if "early_stop" in inspect.signature(self.run).parameters else {}
        return replace(self, run=attacks.quantised(partial(self.run, **on)))


@checked
def plan(
    model: nn.Module,
    x: Tensor,
    budget: Budget,
    *,
    random: bool,
    classes: int,
    masked: bool = False,
    half: bool = False,
    **options: Any,
) -> list[Attack]:
    """The attacks on a model, in their order.

    Those on all images come first, then those on what still stands; of these the cheap before the
    expensive and the black box last, so that what it finds is what all white boxes missed.

    Args:
        model: images -> logits.
        x: images, for the scale of the smooth surrogates.
        budget: what they may cost.
        random: whether to average over draws.
        classes: that the model knows.
        masked: whether the gradient looks as if something hid it.
        half: whether to search in half precision.
        options: ``eps``, ``norm``, ``seed`` and ``batch_size`` of all of them.
    """
    draws = budget.draws if random else 1
    targets = min(budget.targets, classes - 1)
    noise = partial(attacks.noise, model, **{k: options[k] for k in ("eps", "norm", "seed")})
    found = [
        Attack("noise", "input", noise, forwards=1, everywhere=True),
        Attack.pgd(model, budget, random, options, half=half),
    ]

    def add(
        name: str,
        view: nn.Module,
        share: float = 1,
        *,
        kind: str = "white box",
        attack: Callable[..., Tensor] = attacks.apgd,
        steps: int = budget.apgd,
        **more: Any,
    ) -> None:
        """``share`` is the cost of a pass, relative to one with the exact gradient."""
        fixed = kind == "ablation"
        view = HalfPrecision(EOT(view, draws) if random and not fixed else view, half)
        runs = more.get("restarts", 1) * (targets if more.get("loss") == "dlr-targeted" else 1)
        # A first success is one only if the model gives the same answer again.
        run = partial(attack, view, steps=steps, early_stop=not random, **options, **more)
        cost = share * steps * runs * (1 if fixed else draws)
        found.append(Attack(name, kind, run, cost, everywhere=fixed, search=_search(half)))

    if isinstance(model, Defended):
        bare = HalfPrecision(model.classifier, half)
        transfer = partial(attacks.pgd, bare, steps=budget.pgd, **options)
        on_all = {"everywhere": True, "search": _search(half)}
        found.append(Attack("transfer", "black box", transfer, forwards=1, **on_all))
        if _keeps_shape(model.purifier, x[:1]):
            add("BPDA", BPDA(model), 0.4)
        if isinstance(model.purifier, Purifier):
            add("BPDA, averaged", Averaged(model), 0.5)
            without = isinstance(model.purifier.dae, nn.Identity)  # no error to keep low
            for weight in () if without else budget.weights:
                view, pgd = ReconstructionAware(model, weight), {"steps": budget.pgd}
                add(f"reconstruction-aware, λ = {weight:g}", view, 0.4, attack=attacks.pgd, **pgd)
        walk = getattr(model.purifier, "widest", model.purifier)  # of several walks, as in SOAP
        if isinstance(walk, Adaptive):
            flat = x[0].numel() ** 0.5 if options["norm"] == "l2" else 1
            for name, other in smooth(walk, x[:50], radius=options["eps"] / flat).items():
                view = Surrogate(model, Defended(model.classifier, other))
                add(f"surrogate: {name}", view, 1.3, kind="surrogate")
    if masked and not isinstance(getattr(model, "purifier", None), Purifier):
        view = StraightThrough.of(model, x[:5])
        if view is not None:
            add("straight-through", view)
    if random:
        add("one known draw", Fixed(model), kind="ablation")
    exact = Uncut(model)
    add("APGD-CE", exact, restarts=budget.restarts)
    if classes >= 4:
        add("APGD-DLR", exact, loss="dlr-targeted", targets=targets)
    else:
        add("APGD-margin", exact, loss="margin")
    view = HalfPrecision(EOT(model, draws) if random else model, half)
    more = {"queries": budget.queries, "early_stop": not random}
    square, cost = partial(attacks.square, view, **more, **options), budget.queries * draws
    last = Attack("Square", "black box", square, forwards=cost, search=_search(half))
    return [*found, last]


def _search(half: bool) -> str:
    return "bfloat16" if half else "float32"


@torch.no_grad()
def why_not_half(model: nn.Module, x: Tensor, y: Tensor, norm: str = "linf") -> str:
    """Why attacks on a model should not search in half precision; empty if they may.

    Args:
        model: images -> logits.
        x: a few images ``[N, C, H, W]``.
        y: their labels.
        norm: of the attacks.
    """
    if half_precision(x.device) is None:
        return "this hardware does not compute in bfloat16"
    if x.dtype != torch.float32:
        return f"the images are {x.dtype}".replace("torch.", "")
    with evaluating(model):
        exact, true = ask(model, x), _gradient(Fixed(model, draw=0), x, y)
        half = HalfPrecision(Fixed(model, draw=0))
        try:
            rough = next(half.answers(x, 0))
            gradient = _gradient(half, x, y)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            return f"in bfloat16 the model fails ({str(error).splitlines()[0]:.100})"
    agree = (rough.argmax(1) == exact.argmax(1)).double().mean().item()
    if agree < 0.75 or not (rough.isfinite().all() and gradient.isfinite().all()):
        return f"in bfloat16 the model reads only {100 * agree:.0f} % as it does"
    # What a step along it gains, of the most that a step can gain to first order. Adam's steps turn
    # rounding into another path, and its gradient with it.
    step = gradient.sign() if norm == "linf" else gradient / gradient.norm(dim=1, keepdim=True)
    most = true.norm(p=1 if norm == "linf" else 2, dim=1)
    share = ((true * step.nan_to_num()).sum(1) / most)[most > 0].median().item()
    if (most > 0).any() and not share >= 0.9:
        return f"in bfloat16 a step along its gradient gains only {100 * share:.0f} % of the most"
    return ""


def _gradient(view: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the cross-entropy, in a row for each image; a few at a time, for models that are large."""
    objective = Objective(view)
    objective.size = 4
    return objective.gradient(x, y)[2].flatten(1)


def seconds_per_pass(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Seconds per image with a gradient and without, on up to 32 images, after a first try."""
    x, y = x[:32], y[:32]
    able = differentiable(model, x[:1])

    def once(gradient: bool) -> float:
        with Meter(model, x.device) as cost, torch.set_grad_enabled(gradient):
            z = x.detach().requires_grad_(gradient)
            loss = cross_entropy(ask(model, z), y).sum()
            if loss.requires_grad:
                torch.autograd.grad(loss, z, allow_unused=True)
        return cost.seconds / len(x)

    with evaluating(model), torch.inference_mode(False):
        taken = [once(gradient) for gradient in (able, able, False, False)]
    return taken[1], taken[3]


def _keeps_shape(purifier: nn.Module, x: Tensor) -> bool:
    with torch.random.fork_rng(), torch.enable_grad():
        out = called(purifier, x, "purifier")
    return isinstance(out, Tensor) and out.shape == x.shape
