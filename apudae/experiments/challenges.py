"""Exercises that are judged: a defense or an attack of the reader's own, beside the book's.

:func:`challenge` runs a small fixed protocol on fixed images, and once more on the same images
shifted by one pixel, so that storing them is not enough. A score with a warning is no pass. (What
runs in the reader's own Python can always be fooled by who looks up how; the tricks of chapter 8 do
not fool it.)
"""

from __future__ import annotations

import copy
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks, data, purification
from ..core import scores
from ..core.arguments import AttackWarning, check_choice, require
from ..core.calling import evaluating, is_random
from ..core.files import read_json, write_json
from ..core.norms import in_ball, length
from ..core.prints import data_print, model_print
from ..core.record import Record, Row, counted
from ..evaluation import Budget, evaluate
from ..evaluation.diagnostics import inspect_model
from ..evaluation.isolation import PAST, isolated, spare
from ..purification import Defended, Direct, Purifier
from .defenses import KNOWN, PURIFIER
from .digit_choices import CLASSIFIER, DAE, validation
from .place import Place

BUDGET = Budget(pgd=20, apgd=20, targets=2, queries=150, weights=(0.1,), scoring=10, curve=20)
DIGITS = 40
VERSIONS = ("as they are", "shifted")
OUTSIDE, MEDDLES, INVALID = "outside the ball", "changes how modules answer", "not images"
RECITES = "turned images come back unturned"
Function = Callable[..., Any]


@dataclass(frozen=True)
class Challenge:
    """What is asked, and what passes.

    Attributes:
        what: it is, in a sentence.
        eps: radius of the ball, L∞.
        mark: per cent of the digits: a defense has to keep as many, of either version, an attack
            must not leave more.
        model: what stands behind the defense, or what is attacked, images -> logits.
        own: the book's entries by name, from a place.
        attack: whether an attack is asked for.
        images: loads digits and labels from a place.
    """

    what: str
    eps: float
    mark: float
    model: Callable[[Place], nn.Module]
    own: Mapping[str, Callable[[Place], Function]] = field(default_factory=dict)
    attack: bool = False
    images: Callable[[Place], data.Split] = lambda place: validation(place, DIGITS)

    @property
    def worst(self) -> Callable[..., int]:
        """Of counts of images that are left, the one that is worse for who is judged."""
        return max if self.attack else min

    @property
    def better(self) -> Callable[..., int]:
        """And the one that is better."""
        return min if self.attack else max

    def versions(self, place: Place) -> list[data.Split]:
        """The digits as they are, and shifted by a pixel: up, down, left or right in turn."""
        x, y = place.here(self.images(place))
        moved = [_shifted(one, *_MOVES[k % 4]) for k, one in enumerate(x)]
        return [data.Split(x, y), data.Split(torch.stack(moved), y)]

    def judge(self, mine: Function, place: Place) -> Row:
        """What is left of each version, warnings, and what felled how many: plain data."""
        (x, y), (moved, _) = self.versions(place)
        patched = _restored()
        try:
            if self.attack:
                found = [self._attacked(mine, z, y, place) for z in (x, moved)]
            else:
                purifier = mine if isinstance(mine, Purifier) else Written(mine)
                recited = _recited(purifier, x)
                found = [self._defended(purifier, z, y, place, curves=z is x) for z in (x, moved)]
                found[0][1].update(recited)
        finally:
            patched |= _restored()
        rights, warned, felled = zip(*found, strict=True)
        seen = {name: seen for part in warned for name, seen in part.items()}
        return {
            "n": len(rights[0]),
            **{k: [counted(one)[k] for one in rights] for k in ("correct", "outcomes")},
            "warnings": seen | ({MEDDLES: ", ".join(sorted(patched))} if patched else {}),
            "felled": dict(sum(felled, Counter())),
        }

    def _defended(
        self, purifier: nn.Module, x: Tensor, y: Tensor, place: Place, curves: bool
    ) -> tuple[Tensor, dict[str, str], Counter[str]]:
        model = Defended(self.model(place), purifier).eval()
        if warned := _warned(model, x, y, self.eps):
            z = attacks.pgd(model.classifier, x, y, eps=self.eps, steps=BUDGET.pgd)
            right = scores.outcomes(model, z, y)
            return right, warned, Counter({"transfer": int((~right).sum())})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttackWarning)  # the score names them
            options = {"eps": self.eps, "budget": BUDGET, "curves": curves, "progress": False}
            report = evaluate(model, x, y, **options)
        right = report.right() == 1
        by = zip(report.chosen(), right.tolist(), strict=True)
        felled = Counter(name for name, stands in by if not stands)
        return right, {finding.name: finding.seen for finding in report.findings}, felled

    def _attacked(
        self, mine: Function, x: Tensor, y: Tensor, place: Place
    ) -> tuple[Tensor, dict[str, str], Counter[str]]:
        model = self.model(place)
        z = mine(copy.deepcopy(model), x.clone(), y.clone(), self.eps)
        if not (isinstance(z, Tensor) and z.shape == x.shape and z.isfinite().all()):
            got = list(z.shape) if isinstance(z, Tensor) else type(z).__name__
            return torch.ones_like(y, dtype=torch.bool), {INVALID: f"got {got}"}, Counter()
        z = z.detach().to(x)
        far = torch.maximum(length(z - x) - self.eps, length(z - z.clamp(0, 1)))
        beyond, seen = far > 1e-5, {}
        if beyond.any():
            seen[OUTSIDE] = f"{int(beyond.sum())} of {len(x)}, by up to {far.max():.3g}"
        z = torch.where(beyond[:, None, None, None], x, z.clamp(0, 1))
        right = scores.outcomes(model, z, y) | beyond
        return right, seen, Counter({"yours": int((~right).sum())})


def _warned(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, str]:
    """What is seen before any attack, for which an entry cannot pass."""
    index = torch.arange(len(x))
    known = isinstance(model.purifier, Purifier)
    before = None if known else model_print(model.purifier, counts=False)
    with evaluating(model):
        moved = in_ball(x, eps, "linf", index, seed=1)
        chance = is_random(model, x) or is_random(model, moved)
        _, odd = isolated(model, spare(model), x, index)
    found = inspect_model(model, x, y, eps=eps, random=chance)
    if not known and model_print(model.purifier, counts=False) != before:
        odd = {PAST: "what it keeps is other after it was asked"} | odd
    return odd | {finding.name: finding.seen for finding in found}


def _recited(purifier: nn.Module, x: Tensor) -> dict[str, str]:
    """Whether images that are turned a little come back as they were: they are stored somewhere.

    By angles that nobody can know beforehand.
    """
    angles = torch.tensor([_SYSTEM.choice((-1, 1)) * _SYSTEM.uniform(8, 14) for _ in x]).deg2rad()
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    turn = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3).to(x)
    grid = nn.functional.affine_grid(turn, list(x.shape), align_corners=False)
    turned = nn.functional.grid_sample(x, grid, align_corners=False).clamp(0, 1)
    with torch.no_grad():
        seen = purifier(turned)
    stored = [x, *(torch.stack([_shifted(one, *move) for one in x]) for move in _MOVES)]
    nearest = torch.stack([length(seen - known, "l2") for known in stored]).amin(0)
    count = int((nearest < length(seen - turned, "l2")).sum())
    return {RECITES: f"{count} of {len(x)}"} if count > len(x) / 2 else {}


def _shifted(image: Tensor, down: int, right: int) -> Tensor:
    """An image ``[C, H, W]`` moved by a pixel; what comes in is like the border."""
    padded = nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    height, width = image.shape[1:]
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def _kinds(kind: type[nn.Module] = nn.Module) -> Iterator[type[nn.Module]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _kinds(one)


# How modules answer, as it was before a reader could change it.
_METHODS = {
    (kind, name): vars(kind).get(name) for kind in _kinds() for name in ("forward", "__call__")
}
_SYSTEM, _MOVES = random.SystemRandom(), ((-1, 0), (1, 0), (0, -1), (0, 1))


def _restored() -> set[str]:
    """Names of the classes that were changed; they are put back."""
    found = set()
    for (kind, name), was in _METHODS.items():
        if vars(kind).get(name) is not was:
            found.add(kind.__name__)
            delattr(kind, name) if was is None else setattr(kind, name, was)
    return found


class Written(nn.Module):
    """What a reader wrote, images -> images, as a module; it is not told which images they are.

    Args:
        function: images -> images.
    """

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the function makes of the images.

        Raises:
            ValueError: it returns no images like those given, with values in [0, 1].
        """
        z = self.function(x)
        fits = isinstance(z, Tensor) and z.shape == x.shape and z.is_floating_point()
        got = f"{list(z.shape)} {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        require(fits, f"mine: expected images {list(x.shape)} in float, got {got}")
        # A first look steps a little out of the range itself.
        low, high = min(0.0, x.min().item()) - 1e-3, max(1.0, x.max().item()) + 1e-3
        require(z.min() >= low and z.max() <= high, "mine: expected values in [0, 1]; clamp them")
        return z


# --- what there is -------------------------------------------------------------------------------


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


def _direct(place: Place) -> nn.Module:
    return Defended(place.model(CLASSIFIER), Direct(place.model(DAE))).eval()


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
            "what": "how many validation images are read rightly behind a defense under the small "
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
                "felled by, both together: "
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


def challenge(name: str, mine: Function, *, keep: Path | None = None) -> Score:
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
