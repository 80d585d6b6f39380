"""What the comparison of defenses has found, read from its records: tables, pairs, checks.

The record of :mod:`apudae.versus` holds everything but the protocol on the book's own purification.
That has records of its own, :mod:`apudae.robustness`, on the first 200 of the same test digits::

    found = Standings.load()
    found.table(0.2)
    found.minus("adversarial training", "direct", STRONG, 0.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import records, robustness
from .baselines import BASELINES
from .lineup import CLEAN, CW, MNIST, STRONG, Lineup, key
from .plan import BUDGETS
from .report import Report
from .scores import Accuracy, Difference, paired_difference
from .widgets import SortableTable


@dataclass(frozen=True)
class Check:
    """Whether a defense does against a weak attack what it was made for.

    Attributes:
        name: of the defense.
        attack: that it was made for, at ``eps``.
        eps: its radius; 0 for C&W, which looks for the nearest misread image.
        before: accuracy of the classifier without a defense.
        after: with it.
        gain: after minus before, on the same digits.
    """

    name: str
    attack: str
    eps: float
    before: Accuracy
    after: Accuracy
    gain: Difference

    @property
    def holds(self) -> bool:
        """The interval of the gain lies above zero."""
        return self.gain.low > 0


class Standings:
    """The record of a comparison, and the verdicts that belong to it.

    Args:
        record: as :func:`apudae.records.load` gives it.
        folder: of the verdicts' records.
        lineup: what was compared.
    """

    def __init__(
        self, record: dict[str, Any], folder: Path = records.RESULTS, lineup: Lineup = MNIST
    ) -> None:
        self.rows, self.ms, self.lineup = record["rows"], record["ms_per_image"], lineup
        self.gradient: dict[str, dict[str, float]] = record.get("gradient", {})
        self.epsilons = tuple(sorted(record["profile"].get("epsilons", lineup.epsilons)))
        self.budget = _budget(record["profile"]["budget"])
        self.reports: dict[tuple[str, float], Report] = {}
        for (name, eps), path in lineup.verdicts.items():
            if path in records.names(folder) and key(name, STRONG, eps) not in self.rows:
                report = Report.load(path, folder)
                if report.complete:
                    self.reports[name, eps] = report

    @classmethod
    def load(
        cls, profile: str = "full", folder: Path = records.RESULTS, lineup: Lineup = MNIST
    ) -> Standings:
        """Of a profile of a lineup.

        Raises:
            ValueError: it has not been made.
        """
        return cls(records.load(lineup.records[profile], folder), folder, lineup)

    def names(self) -> list[str]:
        """Defenses of which there are rows, in the book's order."""
        there = {text.split(" | ")[0] for text in self.rows}
        return [name for name in self.lineup.defenses if name in there]

    def has(self, name: str, attack: str, eps: float = 0.0) -> bool:
        """Whether a row is there."""
        return key(name, attack, eps) in self.rows or (
            attack == STRONG and (name, eps) in self.reports
        )

    def right(self, name: str, attack: str, eps: float = 0.0) -> Tensor:
        """Outcomes per test digit, from the first on: bool ``[n]``.

        Of a random model under the protocol float64 rates on fresh draws.

        Raises:
            ValueError: there is no such row.
        """
        if not self.has(name, attack, eps):
            raise ValueError(f"no row {key(name, attack, eps)!r} in the record")
        if (name, eps) in self.reports and attack == STRONG:
            return self.reports[name, eps].right()
        row = self.rows[key(name, attack, eps)]
        if "misread" in row:
            return 1 - torch.tensor(row["misread"], dtype=torch.float64) / row["draws"]
        return records.unpack(row["outcomes"], row["n"])

    def accuracy(self, name: str, attack: str, eps: float = 0.0) -> Accuracy:
        """Share of images read rightly."""
        return Accuracy.of(self.right(name, attack, eps))

    def relative(self, name: str, attack: str, eps: float = 0.0) -> Accuracy:
        """The same on those images that the classifier without a defense reads rightly, clean.

        For images that the classifier may have been trained on: its accuracy on them says little,
        what an attack or a defense takes from it says more.
        """
        right = self.right(name, attack, eps)
        known = self.right("no defense", CLEAN)[: len(right)]
        return Accuracy.of(right[: len(known)][known])

    def minus(
        self, one: str, other: str, attack: str, eps: float = 0.0, *, relative: bool = False
    ) -> Difference:
        """How many points one defense is better than another, on the images that both have.

        Args:
            one: the defense that the difference speaks of.
            other: the one it is held against.
            attack: name of a row.
            eps: of the attack.
            relative: of those images alone that :meth:`relative` counts.
        """
        first, second = self.right(other, attack, eps), self.right(one, attack, eps)
        known = self.right("no defense", CLEAN)
        n = min(len(first), len(second), *([len(known)] if relative else []))
        pair = first[:n], second[:n]
        if relative:
            pair = tuple(part[known[:n]] for part in pair)
        if any(part.is_floating_point() for part in pair):
            pair = tuple(part.double() for part in pair)
        return paired_difference(*pair)

    def budget_of(self, name: str, eps: float) -> str:
        """Of the protocol: ``"quick"``, ``"reference"``, ``"light"`` (between) or ``"own"``."""
        report = self.reports.get((name, eps))
        return _budget(report.settings["options"]) if report else self.budget

    def stands(self, name: str, eps: float) -> dict[str, float]:
        """Per attack of the protocol, in its order, the share in % that stands after it."""
        report = self.reports.get((name, eps))
        if report is None:
            row = self.rows[key(name, STRONG, eps)]
            return {attack: 100 * left / row["n"] for attack, left in row["stands"].items()}
        worst, found = torch.zeros(report.n, dtype=torch.float64), {}
        for attack in report.rows:
            misread = torch.tensor(attack.misread).clamp(min=0).double() / report.draws
            worst = torch.maximum(worst, misread)
            found[attack.name] = 100 * (1 - worst).mean().item()
        return found

    def table(self, eps: float, *, relative: bool = False) -> SortableTable:
        """All defenses: clean, under a weak and a strong attacker, and what they cost.

        Args:
            eps: of the attacks.
            relative: accuracies as :meth:`relative` has them; n counts those images.
        """
        share = self.relative if relative else self.accuracy
        header = ["defense", "clean", "PGD on the classifier", "worst case", "n", "budget"]
        rows = []
        for name in self.names():
            weak = (self._cell(name, *how, relative) for how in ((CLEAN, 0.0), ("PGD", eps)))
            cells = [name, *weak]
            strong = ["–", "–", "not run"]
            if self.has(name, STRONG, eps):
                worst = share(name, STRONG, eps)
                strong = [worst, worst.n, self.budget_of(name, eps)]
            ms = self.ms.get(name)
            ms = "–" if ms is None else f"{ms:.0f}" if ms >= 10 else f"{ms:.2g}"
            retrained = name in self.lineup.retrained
            rows.append([*cells, *strong, ms, "retrained" if retrained else "as it was"])
        return SortableTable([*header, "ms per image", "classifier"], rows)

    def weak(
        self, eps: float, attacks: Sequence[str] | None = None, *, relative: bool = False
    ) -> SortableTable:
        """All defenses under attacks on the classifier alone, which do not know of them.

        Args:
            eps: their radius.
            attacks: names of the columns; by default clean images and all attacks.
            relative: accuracies as :meth:`relative` has them; n counts those images.

        Raises:
            ValueError: there is no such attack in the lineup.
        """
        known = {CLEAN: 0.0} | dict.fromkeys(self.lineup.weak, eps) | {CW: 0.0}
        unknown = sorted(set(attacks or ()) - set(known))
        if unknown:
            raise ValueError(
                f"attacks: expected some of {', '.join(known)}; got {', '.join(unknown)}"
            )
        columns = [(name, known[name]) for name in (attacks or known)]
        header = ["defense", "n", *(attack for attack, _ in columns)]
        rows = []
        for name in self.names():
            share = self.relative if relative else self.accuracy
            cells = (self._cell(name, *column, relative) for column in columns)
            rows.append([name, share(name, CLEAN).n, *cells])
        return SortableTable(header, rows)

    def checks(self) -> list[Check]:
        """Each published defense against the weak attack it was made for."""
        found = []
        for name, baseline in BASELINES.items():
            attack, eps = baseline.made_for
            if self.has(name, attack, eps):
                after = self.right(name, attack, eps)
                before = self.right("no defense", attack, eps)[: len(after)]
                gain = self.minus(name, "no defense", attack, eps)
                found.append(
                    Check(name, attack, eps, Accuracy.of(before), Accuracy.of(after), gain)
                )
        return found

    def missing(self) -> list[str]:
        """Verdicts that have not been reached: ``"soap, ε = 0.1"``."""
        return [
            f"{name}, ε = {eps:g}"
            for name in self.names()
            for eps in self.epsilons
            if not self.has(name, STRONG, eps)
        ]

    def _cell(self, name: str, attack: str, eps: float, relative: bool) -> str:
        share = self.relative if relative else self.accuracy
        return str(share(name, attack, eps)) if self.has(name, attack, eps) else "–"


def _budget(options: dict[str, Any]) -> str:
    """Its name, from its settings."""
    known = BUDGETS | {"light": robustness.LIGHT}
    for name, budget in known.items():
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(budget).items()}
        if plain == options:
            return name
    return "own"
