"""The runner that chooses: settings are tried on validation images, rows stored, a rule decides.

What is tried is handed in. Each trial is a row of a record, stored as soon as it is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks, data
from ..core import scores
from ..core.calling import ask
from ..core.prints import data_print
from ..core.processes import divided
from ..core.record import Record, Row, counted, unpack
from .place import Options, Place

Asked = tuple[list[Tensor], Tensor]  # images [n, C, H, W] for each ε, and their labels


@dataclass(frozen=True)
class Trial:
    """A setting that is tried.

    Attributes:
        defense: its name.
        options: of the defense, plain data.
        make: builds images -> logits.
        n: ask the first so many images; all without.
        asked: from the model, images and labels of its own; else those of the choice.
        split: of these images, where a record has several.
        more: what the row says besides.
    """

    defense: str
    options: Options
    make: Callable[[], nn.Module]
    n: int | None = None
    asked: Callable[[nn.Module], Asked] | None = None
    split: str = ""
    more: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """Settings that are tried on validation images, and what is chosen among them.

    Attributes:
        record: name of the record.
        trials: from the record so far, the images and a place: what is tried, one after the other.
            It may look at the rows that have come, and ends with ``record.save(chosen=...)``.
        images: loads validation images and labels from a place.
        classifier: from a place, what PGD attacks.
        epsilons: of PGD; 0 are the images as they are.
        steps: of PGD.
        about: what the record says besides, or otherwise.
        keyed: whether random defenses draw anew for each image.
        splits: whether rows say of which split they are.
    """

    record: str
    trials: Callable[[Record, data.Split, Place], Iterable[Trial]]
    images: Callable[[Place], data.Split]
    classifier: Callable[[Place], nn.Module]
    epsilons: tuple[float, ...]
    steps: int
    about: Callable[[Place], Row] = lambda place: {}
    keyed: bool = True
    splits: bool = False

    def chosen(self, place: Place) -> Any:
        """What the record has chosen; empty as long as it has not."""
        return place.record(self.record).get("chosen", {})

    def missing(self, place: Place) -> list[str]:
        """What the record lacks."""
        return [] if self.chosen(place) else ["choice"]

    def run(self, place: Place) -> None:
        """Try what has not been tried, and choose.

        Raises:
            ValueError: the record was made otherwise; what differs is named.
        """
        x, y = self.images(place)
        net = self.classifier(place)
        about = {
            "attack": {"name": "pgd", "steps": self.steps, "seed": 0},
            "data": {"split": "validation"} | data_print(x, y),
            "eps": self.epsilons,
            "outcomes": "per eps, in the order of the split: record.unpack(text, n)",
        }
        for name, value in self.about(place).items():
            about[name] = about[name] | value if isinstance(about.get(name), dict) else value
        keys = ("split", "defense", "options") if self.splits else ("defense", "options")
        record = Record(self.record, about, place.results, keys=keys, device=place.device)
        if "chosen" in record.more:
            return
        record.of({"classifier": net}, x)
        shared = cache(lambda: (attacked(net, x, y, self.epsilons, self.steps), y))
        for trial in self.trials(record, data.Split(x, y), place):
            key = tuple(getattr(trial, k) for k in keys)
            row = record.measure(key, partial(self._row, trial, shared))
            if differ := [
                name for name, value in trial.more.items() if row.get(name, value) != value
            ]:
                raise ValueError(
                    f"{record.path}: the row {list(key)} was made with another "
                    f"{', '.join(differ)}; move it, or take the weights that belong to it"
                )

    def _row(self, trial: Trial, shared: Callable[[], Asked]) -> Row:
        model = trial.make()
        images, y = trial.asked(model) if trial.asked else shared()
        y = y[: trial.n]
        index = torch.arange(len(y)) if self.keyed else None
        rows = [counted(scores.outcomes(model, z[: trial.n], y, index=index)) for z in images]
        found = {k: [row[k] for row in rows] for k in ("correct", "outcomes")}
        return {"n": len(y)} | found | trial.more


def attacked(
    classifier: nn.Module, x: Tensor, y: Tensor, epsilons: Sequence[float], steps: int
) -> list[Tensor]:
    """Images under PGD on the classifier alone, for each ε."""

    def hit(eps: float, part: Tensor) -> Tensor:
        return attacks.pgd(classifier, x[part], y[part], eps=eps, steps=steps, index=part)

    return [divided(partial(hit, eps), len(x)) if eps else x for eps in epsilons]


def score(row: Row) -> int:
    """Of a trial: images read rightly, added up over all ε, 0 included."""
    return sum(row["correct"])


def best(rows: Iterable[Row], defense: str) -> Row:
    """The row of a defense with the highest score; of two alike, the first."""
    return max((row for row in rows if row["defense"] == defense), key=score)


def outcomes(row: Row) -> list[Tensor]:
    """A trial's outcomes per ε, bool ``[n]`` each."""
    return [unpack(text, row["n"]) for text in row["outcomes"]]


def gains(rows: Iterable[Row], others: Iterable[Row]) -> bool:
    """Whether the others are surely better: per image the share of trials read rightly, paired."""
    shares = [
        torch.stack([part for row in several for part in outcomes(row)]).double().mean(0)
        for several in (rows, others)
    ]
    return scores.paired_difference(*shares).low > 0


@torch.no_grad()
def milliseconds(model: nn.Module, x: Tensor) -> float:
    """Per image: the median of five passes over a second's worth of images, after a first one."""
    taken, many, index = [], min(8, len(x)), torch.arange(len(x))
    for _ in range(6):
        start = time.perf_counter()
        ask(model, x[:many], index=index[:many]).sum().item()  # waits for a GPU
        taken.append(1000 * (time.perf_counter() - start) / many)
        many = min(max(int(1000 / taken[0]), 1), len(x))
    return round(statistics.median(taken[1:]), 4)
