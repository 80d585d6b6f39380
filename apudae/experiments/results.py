"""What the comparison of defenses has found, read from its records: tables, pairs, checks.

The record of :mod:`.compare` holds everything; only where a study leaves the protocol of a defense
to a verdict, in a record of its own, that takes the row's place. Each outcome knows of which image
it is, so pairs are taken on the images that both sides have::

    found = results("mnist")
    found.table(0.2)
    found.minus("adversarial training", "direct", STRONG, 0.2)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.arguments import check_choice, require
from ..core.files import require_whole
from ..core.record import Row, load, unpack
from ..core.scores import Accuracy, Difference, Outcomes, paired_difference, same_images
from ..data import Order
from ..evaluation import BUDGETS, Report
from ..plots import Picture, SortableTable, rungs
from . import colours, digits
from .compare import CLEAN, CW, KEYS, STRONG, Study
from .place import Place


@dataclass(frozen=True)
class Check:
    """Whether a defense does against a weak attack what it was made for.

    Attributes:
        name: of the defense.
        attack: that it was made for, at ``eps``.
        eps: its radius; 0 for C&W, which looks for the nearest misread image.
        before: accuracy of the classifier without a defense.
        after: with it.
        gain: after minus before, on the same images.
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


def studies(place: Place) -> dict[str, Study]:
    """All that are compared, by name; CIFAR-10 on the set that a choice was made on."""
    rows = (
        digits.COMPARISON,
        colours.cifar10(colours.chosen_set(place)),
        colours.imagenet(),
        digits.PURIFIER,
        digits.PURIFIER_L2,
        digits.SAMPLED,
    )
    return {study.name: study for study in rows}


def find(name: str, place: Place) -> Study:
    """A study by name.

    Raises:
        ValueError: there is none; the known ones are listed.
    """
    known = studies(place)
    check_choice(name, known, "study")
    return known[name]


def results(name: str, profile: str = "full", place: Place | None = None) -> Results:
    """What a study has found.

    Args:
        name: of a study.
        profile: which of its records.
        place: of the records; by default the package's own.

    Raises:
        ValueError: it has not been made, or there is no such study.
    """
    place = place or Place()
    return Results(find(name, place), place, profile)


class Results:
    """The record of a comparison, and the verdicts that belong to it.

    Args:
        study: what was compared.
        place: of the records.
        profile: of the study.

    Raises:
        ValueError: it has not been made.
    """

    def __init__(self, study: Study, place: Place, profile: str = "full") -> None:
        self.study = study.at(place)
        record = load(study.record(profile), place.results, KEYS)
        self.rows: list[Row] = record["rows"]
        self._row = {tuple(row[k] for k in KEYS): row for row in self.rows}
        parts, wanted = record | record.get("profile", {}), ("profile", "budget", "ms_per_image")
        lacking = [part for part in wanted if not isinstance(parts.get(part), dict)]
        lacking += [f"outcomes of {key}" for key, row in self._row.items() if "outcomes" not in row]
        path, why = place.results / study.record(profile), "its run was stopped, or it is damaged"
        require_whole(not lacking, f"{path}.json lacks {', '.join(lacking)}: {why}")
        self.ms: dict[str, float] = record["ms_per_image"]
        self.gradient: dict[str, dict[str, float]] = record.get("gradient", {})
        self.epsilons = tuple(sorted(record["profile"].get("epsilons", study.epsilons)))
        self.budget = _budget(record["profile"]["budget"])
        self._order: Row | None = record.get("data", {}).get("order")
        sizes = self.study.profiles[profile]
        self.reports: dict[tuple[str, float], Report] = {
            (verdict.defense, verdict.eps): report
            for verdict in study.verdicts
            if (STRONG, verdict.eps) not in self.study.rows(sizes, verdict.defense)
            and (verdict.defense, STRONG, verdict.eps) not in self._row
            and (report := verdict.load(place))
        }

    def names(self) -> list[str]:
        """Defenses of which there are rows, in the book's order."""
        there = {row["defense"] for row in self.rows}
        return [name for name in self.study.defenses if name in there]

    def has(self, name: str, attack: str, eps: float = 0.0) -> bool:
        """Whether a row is there."""
        judged = attack == STRONG and (name, eps) in self.reports
        return judged or (name, attack, eps) in self._row

    def right(self, name: str, attack: str, eps: float = 0.0) -> Tensor:
        """Outcomes per test image, from the first that was asked on: bool ``[n]``.

        Of a random model under the protocol float64 rates on fresh draws.

        Raises:
            ValueError: there is no such row.
        """
        require(self.has(name, attack, eps), f"no row {name!r}, {attack!r}, {eps:g} in the record")
        if attack == STRONG and (name, eps) in self.reports:
            return self.reports[name, eps].right()
        row = self._row[name, attack, eps]
        if "misread" in row:
            return 1 - torch.tensor(row["misread"], dtype=torch.float64) / row["draws"]
        return unpack(row["outcomes"], row["n"])

    def outcomes(self, name: str, attack: str, eps: float = 0.0) -> Outcomes:
        """The same, with the places of the images in the test set."""
        right = self.right(name, attack, eps)
        n, places = len(right), torch.arange(len(right))
        if self._order and not (attack == STRONG and (name, eps) in self.reports):
            places = Order(**self._order).places(n)
        return Outcomes(right, places)

    def accuracy(self, name: str, attack: str, eps: float = 0.0) -> Accuracy:
        """Share of images read rightly."""
        return Accuracy.of(self.right(name, attack, eps))

    def relative(self, name: str, attack: str, eps: float = 0.0) -> Accuracy:
        """The same on those images that the classifier without a defense reads rightly, clean.

        For images that the classifier may have been trained on: its accuracy on them says little,
        what an attack or a defense takes from it says more.
        """
        return Accuracy.of(*self.shared([name], attack, eps, relative=True))

    def shared(
        self, names: Sequence[str], attack: str, eps: float = 0.0, *, relative: bool = False
    ) -> list[Tensor]:
        """Outcomes of several defenses on the images that all of them have.

        Args:
            names: of the defenses.
            attack: name of a row.
            eps: of the attack.
            relative: only those images that :meth:`relative` counts.
        """
        found = [self.outcomes(name, attack, eps) for name in names]
        if not relative:
            return same_images(*found)
        *found, known = same_images(*found, self.outcomes("no defense", CLEAN))
        return [part[known] for part in found]

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
        return paired_difference(*self.shared([other, one], attack, eps, relative=relative))

    def budget_of(self, name: str, eps: float) -> str:
        """Of the protocol: ``"quick"``, ``"reference"``, ``"light"`` (between) or ``"own"``."""
        report = self.reports.get((name, eps))
        return _budget(report.settings["options"]) if report else self.budget

    def stands(self, name: str, eps: float) -> dict[str, float]:
        """Per attack of the protocol, in its order, the share in % that stands after it."""
        report = self.reports.get((name, eps))
        if report:
            return {attack: 100 * (left / report.n) for attack, left in report.stands().items()}
        row = self._row[name, STRONG, eps]
        return {attack: 100 * left / row["n"] for attack, left in row["stands"].items()}

    def table(self, eps: float, *, relative: bool = False) -> SortableTable:
        """All defenses: clean, under a weak and a strong attacker, and what they cost.

        Args:
            eps: of the attacks.
            relative: accuracies as :meth:`relative` has them; n counts those images.

        Where an accuracy is of fewer images than n, it says of how many.
        """
        header = ["defense", "n", "clean", "PGD on the classifier", "worst case", "budget"]
        columns, rows = {CLEAN: 0.0, "PGD": eps, STRONG: eps}, []
        for name in self.names():
            strong = self.budget_of(name, eps) if self.has(name, STRONG, eps) else "not run"
            ms = self.ms.get(name)
            ms = "–" if ms is None else f"{ms:.0f}" if ms >= 10 else f"{ms:.2g}"
            kind = "retrained" if self.study.defenses[name].retrained else "as it was"
            rows.append([name, *self._cells(name, columns, relative), strong, ms, kind])
        return SortableTable([*header, "ms per image", "classifier"], rows)

    def weak(
        self, eps: float, attacks: Sequence[str] | None = None, *, relative: bool = False
    ) -> SortableTable:
        """All defenses under attacks on the classifier alone, which do not know of them.

        Args:
            eps: their radius.
            attacks: names of the columns; by default clean images and all attacks.
            relative: accuracies as :meth:`relative` has them; n counts those images.

        Where an accuracy is of fewer images than n, it says of how many.

        Raises:
            ValueError: there is no such attack in the study.
        """
        known = {CLEAN: 0.0} | dict.fromkeys(self.study.attacks, eps) | {CW: 0.0}
        unknown = ", ".join(sorted(set(attacks or ()) - set(known)))
        require(not unknown, f"attacks: expected some of {', '.join(known)}; got {unknown}")
        columns = {name: known[name] for name in (attacks or known)}
        rows = [[name, *self._cells(name, columns, relative)] for name in self.names()]
        return SortableTable(["defense", "n", *columns], rows)

    def chart(
        self, eps: float, attacks: Sequence[str] = ("PGD", STRONG), *, relative: bool = False
    ) -> Picture:
        """A line per defense: what stands under some attacks, with intervals, sorted by the last.

        In brackets stands on how many images the last was measured; who has no such row is left
        out.

        Args:
            eps: of the attacks.
            attacks: names of rows.
            relative: accuracies as :meth:`relative` has them.
        """
        *_, last = attacks
        there = [name for name in self.names() if self.has(name, last, eps)]
        kept = {name: self._share(name, last, eps, relative) for name in there}
        there.sort(key=lambda name: -kept[name].percent)
        marks = {"PGD": "PGD on the classifier", STRONG: "worst case"}
        groups = {
            marks.get(attack, attack): {
                f"{name} ({kept[name].n:,})": self._share(name, attack, eps, relative)
                for name in there
                if self.has(name, attack, eps)
            }
            for attack in reversed(attacks)  # the last has all, in their order
        }
        return rungs(groups)

    def checks(self) -> list[Check]:
        """Each published defense against the weak attack it was made for."""
        found = []
        for name, defense in self.study.defenses.items():
            if defense.made_for and self.has(name, *defense.made_for):
                pair = self.shared(["no defense", name], *defense.made_for)
                gain = paired_difference(*pair)
                found.append(Check(name, *defense.made_for, *map(Accuracy.of, pair), gain))
        return found

    def missing(self) -> list[str]:
        """Verdicts that have not been reached: ``"soap, ε = 0.1"``."""
        return [
            f"{name}, ε = {eps:g}"
            for name in self.names()
            for eps in self.epsilons
            if not self.has(name, STRONG, eps)
        ]

    def _share(self, name: str, attack: str, eps: float, relative: bool) -> Accuracy:
        return (self.relative if relative else self.accuracy)(name, attack, eps)

    def _cells(self, name: str, columns: dict[str, float], relative: bool) -> list[str]:
        """How many clean images, and the accuracies; of how many, where it is another number."""
        n = self._share(name, CLEAN, 0.0, relative).n
        cells = [f"{n:,}"]
        for key in columns.items():
            found = self._share(name, *key, relative) if self.has(name, *key) else None
            of = "" if found is None or found.n == n else f" of {found.n:,}"
            cells.append("–" if found is None else f"{found}{of}")
        return cells


def _budget(options: Row) -> str:
    """Its name, from its settings; whatever precision it was searched in."""
    known, search = BUDGETS | {"light": digits.LIGHT}, {"search": "auto"}
    plain = {name: json.loads(json.dumps(vars(budget))) for name, budget in known.items()}
    return next((name for name, budget in plain.items() if budget == options | search), "own")
