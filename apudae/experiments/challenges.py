"""Exercises that are judged: a defense or an attack of the reader's own, beside the book's.

:func:`challenge` runs a small fixed protocol on fixed images, and once more on the same images
shifted by one pixel, so that storing them is not enough. A score with a warning is no pass. (What
runs in the reader's own Python can always be fooled by who looks up how; the tricks of chapter 8 do
not fool it.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks, purification
from ..core import scores
from ..core.arguments import check_choice, require
from ..core.files import read_json, write_json
from ..core.prints import data_print
from ..core.record import Record, Row
from ..purification import Defended
from .defenses import KNOWN, PURIFIER
from .digit_choices import CLASSIFIER
from .judging import BUDGET, VERSIONS, Challenge, Function
from .place import Place


def _purifier(defense: str, table: Mapping[str, Any]) -> Callable[[Place], Function]:
    return lambda place: table[defense].build(place).purifier


def _always(function: Function) -> Callable[[Place], Function]:
    return lambda place: function


def _attack(attack: Function, view: Callable[[nn.Module], nn.Module] = lambda m: m, **options: Any):
    """One of the book's attacks as an entry."""

    def mine(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return attack(view(model), x, y, eps=eps, **options)

    return _always(mine)


_OURS = {"direct": _purifier("direct", KNOWN), "purifier": _purifier("purifier", PURIFIER)}
_OURS |= {"nothing": _always(lambda x: x), "median": _always(purification.Median(3))}
_STEPS = {"steps": 20}


def _classifier(place: Place) -> nn.Module:
    return place.model(CLASSIFIER)


def _rounded(place: Place) -> nn.Module:
    return Defended(place.model(CLASSIFIER), purification.BitDepth(3)).eval()


def _compressed(place: Place) -> nn.Module:
    return Defended(place.model("cifar10-resnet"), purification.JPEG(25)).eval()


CHALLENGES = {
    "attack-0.1": Challenge(
        "an attack on the bare classifier, ε = 0.1",
        eps=0.1,
        mark=65,
        model=_classifier,
        own={
            "noise": _attack(attacks.noise),
            "FGSM": _attack(attacks.fgsm),
            "PGD, 20 steps": _attack(attacks.pgd, **_STEPS),
            "APGD, 20 steps": _attack(attacks.apgd, **_STEPS),
        },
        attack=True,
    ),
    "digits-0.2": Challenge(
        "a defense, images -> images, before the classifier, ε = 0.2",
        eps=0.2,
        mark=70,
        model=_classifier,
        own=_OURS,
    ),
    "attack-rounding-0.2": Challenge(
        "an attack on the classifier behind rounding to 3 bits, ε = 0.2",
        eps=0.2,
        mark=25,
        model=_rounded,
        own={
            "PGD, 20 steps": _attack(attacks.pgd, **_STEPS),
            "Square, 300 queries": _attack(attacks.square, queries=300),
            "BPDA, APGD, 20 steps": _attack(attacks.apgd, attacks.BPDA, **_STEPS),
        },
        attack=True,
    ),
    "digits-0.3": Challenge(
        "a defense, images -> images, before the classifier, ε = 0.3",
        eps=0.3,
        mark=70,
        model=_classifier,
        own=_OURS,
    ),
    "attack-jpeg": Challenge(
        "an attack on the classifier of CIFAR-10 behind strong JPEG compression, ε = 4/255",
        eps=4 / 255,
        mark=50,
        model=_compressed,
        own={
            "transfer: PGD, 10 steps": _attack(attacks.pgd, lambda m: m.classifier, steps=10),
            "Square, 100 queries": _attack(attacks.square, queries=100),
            "BPDA, APGD, 20 steps": _attack(attacks.apgd, attacks.BPDA, **_STEPS),
        },
        attack=True,
        images=partial(Place.load, name="cifar10-20"),
    ),
}


@dataclass(frozen=True)
class Standings:
    """The book's own entries, judged in the same way.

    Attributes:
        record: its name.
    """

    record: str = "challenges"

    def missing(self, place: Place) -> list[tuple[str, str]]:
        """Challenges and entries that are not judged yet."""
        wanted = [(name, who) for name, asked in CHALLENGES.items() for who in asked.own]
        return place.lacking(self.record, _KEYS, wanted)

    def run(self, place: Place) -> None:
        """Judge them; goes on where it was stopped."""
        about = {
            "what": "how many images are read rightly behind a defense under the small "
            "protocol of a challenge, or after an attack",
            "data": {
                name: [data_print(*digits) for digits in asked.versions(place)]
                for name, asked in CHALLENGES.items()
            },
            "versions": list(VERSIONS),
            "budget": asdict(BUDGET),
            "outcomes": "per version, in the order of the split: record.unpack(text, n)",
        }
        record = Record(self.record, about, place.results, keys=_KEYS, device=place.device)
        for name, asked in CHALLENGES.items():
            for who, make in asked.own.items():
                record.measure(
                    (name, who), lambda asked=asked, make=make: asked.judge(make(place), place)
                )


STANDINGS, _KEYS = Standings(), ("challenge", "who")
YOURS = "YOURS"


@dataclass(frozen=True)
class Score:
    """How an entry did; shows itself as text.

    Attributes:
        name: of the challenge.
        row: what :meth:`Challenge.judge` found.
        others: the book's own, by name, the same of each.
        before: images left by the best that passed before; None if none did.
    """

    name: str
    row: Row
    others: Mapping[str, Row] = field(default_factory=dict)
    before: int | None = None

    @property
    def asked(self) -> Challenge:
        """The challenge."""
        return CHALLENGES[self.name]

    @property
    def kept(self) -> list[scores.Accuracy]:
        """What is left of each version."""
        return [scores.Accuracy(count, self.row["n"]) for count in self.row["correct"]]

    @property
    def counts(self) -> int:
        """Images left of the version that counts: of a defense the fewer, else the more."""
        return self.asked.worst(self.row["correct"])

    @property
    def passed(self) -> bool:
        """Whether the mark is met by both versions, without a warning."""
        least, percent = self.asked.mark, 100 * self.counts / self.row["n"]
        met = percent <= least if self.asked.attack else percent >= least
        return met and not self.row["warnings"]

    @property
    def place(self) -> list[str]:
        """All entries, the best first; of two alike the book's, and those with a warning last."""
        rows, sign = {**self.others, YOURS: self.row}, 1 if self.asked.attack else -1

        def order(who: str) -> tuple[bool, float]:
            row = rows[who]
            return bool(row["warnings"]), sign * self.asked.worst(row["correct"]) / row["n"]

        return sorted(rows, key=order)

    def __repr__(self) -> str:
        asked, rows = self.asked, {**self.others, YOURS: self.row}
        found = [f"{self.name}: {asked.what}", "left of the images, in the worst case:"]
        for version, kept in zip(VERSIONS, self.kept, strict=True):
            found.append(f"  {version:12}{kept}, n = {kept.n}")
        felled = sorted(self.row["felled"].items(), key=lambda pair: -pair[1])
        if not asked.attack and felled:
            found.append(
                "felled by, of both versions: "
                + ", ".join(f"{name} {count}" for name, count in felled)
            )
        found.append("among the book's own (as they are, shifted):")
        for who in self.place:
            two = ", ".join(map(str, rows[who]["correct"]))
            note = f"  ({', '.join(rows[who]['warnings'])})" if rows[who]["warnings"] else ""
            found.append(f"  {who:25}{two}{note}")
        found += [f"warning: {name}: {seen}" for name, seen in self.row["warnings"].items()]
        if self.row["warnings"] and not asked.attack:
            found.append("with a warning the number is not to be trusted, and it is no pass")
        limit = "at most" if asked.attack else "at least"
        rule = f"{limit} {asked.mark:g} % of both versions, and no warning"
        found.append(f"{'PASSED' if self.passed else 'not passed'} (asked for: {rule})")
        if self.before is not None:
            found.append(f"your best before: {self.before} of {self.row['n']}")
        return "\n".join(found)


_BEST: dict[str, int] = {}  # of this session


def challenge(name: str, mine: Function, *, keep: str | Path | None = None) -> Score:
    """Judge a defense or an attack of one's own on fixed images; within a minute.

    A defense, ``mine(images) -> images`` or a module, stands before the classifier, and is attacked
    by :func:`apudae.evaluation.evaluate` with a small budget. (If a first look at it warns, it can
    pass no more, and PGD on the classifier is all it is attacked by.) It is not told which images
    it is asked about.

    An attack, ``mine(model, images, labels, eps) -> images``, gets a copy of the model.

    Images are ``[N, C, H, W]`` in [0, 1]. Both are judged on the images as they are, and shifted by
    a pixel; the worse counts.

    Args:
        name: of :data:`CHALLENGES`.
        mine: the defense or the attack.
        keep: folder where the best that passed is remembered beyond this session.

    Raises:
        ValueError: another name, no function, or a defense that returns no images.
        RuntimeError: a damaged file in ``keep``.
    """
    check_choice(name, CHALLENGES, "name")
    require(callable(mine), f"mine: expected a function, got {type(mine).__name__}")
    place, asked = Place(device=torch.device("cpu")), CHALLENGES[name]
    others = {r["who"]: r for r in place.rows(STANDINGS.record) if r["challenge"] == name}
    path = keep and Path(keep) / f"{name}.json"
    before = read_json(path)["images"] if path and path.exists() else _BEST.get(name)
    score = Score(name, asked.judge(mine, place), others, before)
    if score.passed:
        _BEST[name] = asked.better(score.counts, score.counts if before is None else before)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"images": _BEST[name]})
    return score
