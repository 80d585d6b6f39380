"""What is compared on a data set: defenses, weak attacks, how many images, and what a row costs.

A :class:`Lineup` says it; :data:`MNIST` is the first. :mod:`apudae.versus` runs it,
:mod:`apudae.standings` reads what it found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import attacks, baselines, checkpoints, data, records, robustness
from .checks import ask
from .data import Split
from .plan import BUDGETS, Budget, plan, seconds_per_pass
from .purification import Defended

EPSILONS = (0.1, 0.2, 0.3)
OURS = {"direct": "direct", "adaptive, chosen": "chosen", "adaptive, default": "default"}
DEFENSES = ("no defense", *OURS, *baselines.BASELINES)
WEAK: dict[str, Callable[..., Tensor]] = {
    "noise": attacks.noise,
    "FGSM": attacks.fgsm,
    "R-FGSM": attacks.rfgsm,
    "BIM": attacks.bim,
    "PGD": partial(attacks.pgd, steps=50),
}
CLEAN, CW, STRONG = "clean", "C&W", "protocol"
SEARCHES = {"steps": 200, "searches": 5}  # of C&W


@dataclass(frozen=True)
class Profile:
    """How much of everything.

    Attributes:
        data: profile of the test images, see :func:`apudae.data.load`.
        weak: images under the weak attacks.
        cw: images under C&W, which is slow.
        strong: images under the protocol.
        epsilons: of the protocol, in this order; the weak attacks have all of :data:`EPSILONS`.
        budget: of the protocol.
        fewer: images under the weak attacks and the protocol, of defenses that are slow; with 0
            there is no protocol.
        ours: whether :data:`OURS` are put under the protocol here.
    """

    data: str
    weak: int
    cw: int
    strong: int
    epsilons: tuple[float, ...]
    budget: Budget
    fewer: dict[str, tuple[int, int]] = field(default_factory=dict)
    ours: bool = True

    def n(self, name: str, attack: str) -> int:
        """Images of a row."""
        weak, strong = self.fewer.get(name, (self.weak, self.strong))
        return strong if attack == STRONG else min(self.cw, weak) if attack == CW else weak

    def within(self, images: int) -> Profile:
        """The same for a set of so many images, if that is fewer."""

        def least(*sizes: int) -> tuple[int, ...]:
            return tuple(min(size, images) for size in sizes)

        weak, cw, strong = least(self.weak, self.cw, self.strong)
        fewer = {name: least(*sizes) for name, sizes in self.fewer.items()}
        return replace(self, weak=weak, cw=cw, strong=strong, fewer=fewer)


PROFILES = {
    "quick": Profile(
        data="quick",
        weak=500,
        cw=50,
        strong=20,
        epsilons=(0.2,),
        budget=Budget(pgd=20, apgd=20, targets=2, queries=100, draws=1, weights=(0.1,)),
        fewer={"soap": (200, 10), "defense-gan": (100, 5), "diffpure": (200, 10)},
    ),
    "full": Profile(
        data="full",
        weak=10_000,
        cw=500,
        strong=1000,
        epsilons=(0.2, 0.3, 0.1),
        budget=BUDGETS["quick"],
        fewer={
            "resize and pad": (10_000, 200),
            "soap": (2000, 50),
            "diffpure": (10_000, 50),
            "defense-gan": (1000, 20),
        },
        ours=False,
    ),
}
RECORDS = {"quick": "mnist_quick", "full": "mnist"}


def defense(name: str, classifier: nn.Module, dae: nn.Module, folder: Path) -> nn.Module:
    """One of :data:`DEFENSES`, images -> logits."""
    if name == "no defense":
        return classifier
    if name in OURS:
        return robustness.defended(OURS[name], classifier, dae)
    return baselines.build(name, classifier, folder)


def key(name: str, attack: str, eps: float = 0.0) -> str:
    """Of a row in the record."""
    return f"{name} | {attack} | {eps:g}"


@dataclass(frozen=True)
class Lineup:
    """What is compared on a data set.

    Attributes:
        what: the images are, in the plural.
        load: the test images of a profile; called with ``profile`` and ``root``.
        build: weights folder and device -> the defenses whose weights are there, by name; all of
            them stand before or instead of one and the same classifier.
        needs: weights without which nothing can be built.
        trained_by: the command that makes the other weights.
        defenses: names of all, in the book's order.
        weak: attacks that aim at the bare classifier, by name.
        epsilons: of the weak attacks.
        gradients: passes with a gradient that each weak attack takes; 0 if it is not named.
        told: what a record says of the weak attacks.
        about_data: what a record says of the data, besides its fingerprint.
        profiles: how much of everything, by name.
        records: their records' names.
        retrained: defenses with another classifier than the defended one.
        verdicts: names of records of the protocol, by defense and ε, that stand for rows.
        norm: of all attacks.
        batch: images at a time for which time and memory of the full gradient are measured; with 0
            they are not.
    """

    what: str
    load: Callable[..., Split]
    build: Callable[[Path, torch.device | str], dict[str, nn.Module]]
    needs: tuple[str, ...]
    trained_by: str
    defenses: tuple[str, ...]
    weak: dict[str, Callable[..., Tensor]]
    epsilons: tuple[float, ...]
    gradients: dict[str, int]
    told: dict[str, Any]
    about_data: dict[str, str]
    profiles: dict[str, Profile]
    records: dict[str, str]
    retrained: frozenset[str] = frozenset()
    verdicts: dict[tuple[str, float], str] = field(default_factory=dict)
    norm: str = "linf"
    batch: int = 0

    def attacked(self, profile: Profile, name: str) -> list[tuple[str, float]]:
        """Attacks and ε of all rows that a defense has under a profile."""
        found = [(CLEAN, 0.0), *((a, eps) for a in self.weak for eps in self.epsilons), (CW, 0.0)]
        strong = (profile.ours or name not in OURS) and profile.n(name, STRONG) > 0
        return found + [(STRONG, eps) for eps in profile.epsilons if strong]

    def missing(self, profile: str, results: Path = records.RESULTS) -> list[str]:
        """Keys of the rows that a record does not have yet, in no order of cost."""
        p, record = self.profiles[profile], self.records[profile]
        wanted = [key(name, *pair) for name in self.defenses for pair in self.attacked(p, name)]
        there = records.load(record, results)["rows"] if record in records.names(results) else {}
        return [text for text in wanted if text not in there]


def mnist_models(weights: Path, device: torch.device | str = "cpu") -> dict[str, nn.Module]:
    """All of :data:`DEFENSES` whose weights are there, by name."""
    load = partial(checkpoints.load, folder=weights, device=device)
    classifier, dae = load("mnist-cnn"), load("mnist-dae")
    return {
        name: defense(name, classifier, dae, weights)
        for name in DEFENSES
        if name not in baselines.BASELINES or baselines.is_trained(name, weights)
    }


MNIST = Lineup(
    what="digits",
    load=partial(data.load, "mnist", "test"),
    build=mnist_models,
    needs=("mnist-cnn", "mnist-dae"),
    trained_by="mnist-baselines",
    defenses=DEFENSES,
    weak=WEAK,
    epsilons=EPSILONS,
    gradients={"FGSM": 1, "R-FGSM": 1, "BIM": 10, "PGD": 50},
    told={"BIM": "10 steps", "PGD": "50 steps", CW: SEARCHES, "seed": 0},
    about_data={"split": "test"},
    profiles=PROFILES,
    records=RECORDS,
    retrained=frozenset(name for name, base in baselines.BASELINES.items() if base.retrains),
    verdicts={
        (name, eps): robustness.record_name(ours, eps)
        for name, ours in OURS.items()
        for eps in robustness.EPSILONS
    },
)


class Prices:
    """What rows cost at most on this machine, from one pass through each model.

    Args:
        lineup: what is compared.
        models: by name.
        profile: how much of everything.
        x: a few images.
        y: labels.
    """

    def __init__(
        self,
        lineup: Lineup,
        models: dict[str, nn.Module],
        profile: Profile,
        x: Tensor,
        y: Tensor,
    ) -> None:
        self.lineup, self.models, self.profile, self.x = lineup, models, profile, x
        with torch.no_grad():
            self.classes = ask(next(iter(models.values())), x).shape[1]
        self.passes = {name: seconds_per_pass(model, x, y) for name, model in models.items()}

    def seconds(self, name: str, attack: str, eps: float) -> float:
        """Of a row. Weak attacks count where they are made: on classifiers without a defense."""
        model, n = self.models[name], self.profile.n(name, attack)
        gradient, forward = self.passes[name]
        if attack == STRONG:
            is_random = getattr(model, "random", False)
            ball = {"eps": eps, "norm": self.lineup.norm, "seed": 0, "batch_size": None}
            known = {"random": is_random, "classes": self.classes}
            ways = plan(model, self.x, self.profile.budget, **known, **ball)
            scoring = len(ways) * (self.profile.budget.scoring if is_random else 1)
            spent = sum(way.gradients * gradient + way.forwards * forward for way in ways)
            return n * (spent + scoring * forward)
        steps = self.lineup.gradients.get(attack, 0)
        if attack == CW:
            steps = SEARCHES["steps"] * SEARCHES["searches"]
        return n * (forward + (0 if isinstance(model, Defended) else steps * gradient))
