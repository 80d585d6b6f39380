"""Runners whose rows are verdicts: the whole protocol, ladders of attackers, certificates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from glob import escape
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks, data
from ..core import scores
from ..core.arguments import AttackWarning, require
from ..core.files import model_fingerprint
from ..core.prints import data_print
from ..core.processes import divided, rank, world
from ..core.record import Record, Row, counted, unpack
from ..evaluation import (
    Budget,
    Certificates,
    Report,
    Smoothed,
    certify,
    evaluate,
    verify,
    votes,
)
from ..evaluation.protocol import part_name
from ..purification import Adaptive, Defended, Direct, smooth
from .defenses import Defense
from .place import Place
from .recipes import Recipe, train_missing

_ALONE = "classifier alone"
_RUNG = ("defense", "eps", "attack")
_CERTIFICATE = ("kind", "sigma", "radius")
_PROOF = ("defense", "eps")


@dataclass(frozen=True)
class Verdict:
    """The protocol on one defense at one ε, in a record of its own.

    Attributes:
        record: its name.
        defense: name of the defense in its study.
        row: the defense.
        images: loads test images and labels from a place.
        n: how many of them are asked: the first, after ``skip``.
        eps: radius of the ball.
        budget: of the attacks.
        title: of the report.
        attacks: more attacks, see :func:`apudae.evaluation.evaluate`.
        curves: whether to draw them.
        order: in which the images are asked; without, as they come.
        skip: so many are left to other records.
    """

    record: str
    defense: str
    row: Defense
    images: Callable[[Place], data.Split]
    n: int
    eps: float
    budget: Budget
    title: str
    attacks: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    curves: bool = True
    order: data.Order | None = None
    skip: int = 0

    @property
    def places(self) -> Tensor:
        """Of the images that are asked, in their set: int64 ``[n]``."""
        last = self.skip + self.n
        return (torch.arange(last) if self.order is None else self.order.places(last))[self.skip :]

    def missing(self, place: Place) -> list[str]:
        """Whether the record is not complete."""
        return [] if place.record(self.record).get("complete") else ["verdict"]

    def run(self, place: Place) -> Report:
        """Ask for it; goes on where it was stopped."""
        images = self.images(place)
        places = self.places
        places = places[places < len(images.labels)]
        return evaluate(
            self.row.build(place),
            *images.at(places),
            eps=self.eps,
            index=places,
            budget=self.budget,
            attacks=self.attacks,
            curves=self.curves,
            title=self.title,
            record=place.results / self.record,
        )

    def load(self, place: Place) -> Report | None:
        """The report, if it is complete."""
        return None if self.missing(place) else Report.load(self.record, place.results)

    def outcomes(self, place: Place) -> scores.Outcomes:
        """What stands in the worst case, and of which test images.

        Raises:
            ValueError: the record is not complete.
        """
        report = self.load(place)
        require(report, f"{self.record}: expected a complete record in {place.results}")
        return scores.Outcomes(report.right(), self.places[: report.n])


@dataclass(frozen=True)
class Ladder:
    """Attackers who know more and more of a defense, each on *all* of some validation images.

    Attributes:
        record: name of the record.
        defenses: by name.
        images: loads images and labels from a place.
        epsilons: of the attacks.
        weights: λ of the reconstruction-aware attacks.
        steps: of APGD, and of PGD.
        queries: of Square.
    """

    record: str
    defenses: Mapping[str, Defense]
    images: Callable[[Place], data.Split]
    epsilons: tuple[float, ...]
    weights: tuple[float, ...]
    steps: int = 50
    queries: int = 500

    def rungs(self, model: Defended, x: Tensor, eps: float) -> dict[str, nn.Module]:
        """What attackers follow, by name."""
        found = {
            _ALONE: model.classifier,
            "classifier, judged by the defense": attacks.Surrogate(model, model.classifier),
            **{f"aware, λ = {w:g}": attacks.ReconstructionAware(model, w) for w in self.weights},
            "BPDA": attacks.BPDA(model),
            "BPDA, averaged": attacks.Averaged(model),
            "full gradient": model,
        }
        if isinstance(model.purifier, Adaptive):
            found["BPDA, the DAE"] = attacks.BPDA(model, Direct(model.purifier.dae))
            for name, other in smooth(model.purifier, x[:50], radius=eps).items():
                found[f"surrogate: {name}"] = attacks.Surrogate(
                    model, Defended(model.classifier, other)
                )
        return found

    def missing(self, place: Place) -> list[str]:
        """Whether the last row is not there."""
        last = (list(self.defenses)[-1], self.epsilons[-1], "Square")
        return ["rungs"] if place.lacking(self.record, _RUNG, [last]) else []

    def rows(self, place: Place) -> list[Row]:
        """Those that are stored."""
        return place.rows(self.record)

    def outcomes(self, defense: str, eps: float, place: Place) -> dict[str, Tensor]:
        """Outcomes per attack: bool ``[N]``."""
        return {
            row["attack"]: unpack(row["outcomes"], row["n"])
            for row in self.rows(place)
            if (row["defense"], row["eps"]) == (defense, eps)
        }

    def run(self, place: Place) -> None:
        """Attack with every rung, and store after each what stands."""
        x, y = self.images(place)
        models = {name: defense.build(place) for name, defense in self.defenses.items()}
        about = {
            "what": "which validation digits are read correctly under attackers who know more and "
            "more",
            "attack": f"APGD-{self.steps} on the cross-entropy, 'PGD' rows PGD-{self.steps}; "
            f"Square with {self.queries} queries; seed 0, L∞; an image is left alone once the "
            "whole defense misreads it, except where the attack sees the classifier alone",
            "data": {"split": "validation"} | data_print(x, y),
            "models_sha256": {name: model_fingerprint(model) for name, model in models.items()},
            "outcomes": "in the order of the split: record.unpack(text, n)",
        }
        record = Record(self.record, about, place.results, keys=_RUNG, device=place.device)
        record.of(models, x)
        for eps, (name, model) in product(self.epsilons, models.items()):
            jobs = {
                rung: partial(attacks.apgd, view, steps=self.steps, early_stop=rung != _ALONE)
                for rung, view in self.rungs(model, x, eps).items()
            }
            pgd = partial(attacks.pgd, model, steps=self.steps, early_stop=True)
            square = partial(attacks.square, model, queries=self.queries)
            jobs |= {"full gradient, PGD": pgd, "Square": square}
            for rung, attack in jobs.items():
                record.measure((name, eps, rung), partial(_left, model, attack, x, y, eps))


@dataclass(frozen=True)
class Proved:
    """Of which images bounds prove that no change within ε makes a defense misread them.

    At ε = 0 it is asked plainly, and what the purifier draws is counted.

    Attributes:
        record: name of the record.
        defenses: by name; purifiers are images -> images in a :class:`~apudae.purification.Direct`.
        images: loads test images and labels from a place.
        epsilons: of the balls, in L∞.
    """

    record: str
    defenses: Mapping[str, Defense]
    images: Callable[[Place], data.Split]
    epsilons: tuple[float, ...]

    def wanted(self) -> list[tuple[str, float]]:
        """Names and ε of all rows, in their order."""
        return list(product(self.defenses, (0.0, *self.epsilons)))

    def missing(self, place: Place) -> list[tuple[str, float]]:
        """Keys of the rows that the record does not have yet."""
        return place.lacking(self.record, _PROOF, self.wanted())

    def row(self, defense: str, eps: float, place: Place) -> Row:
        """One of the record's."""
        wanted = {"defense": defense, "eps": eps}
        return next(row for row in place.rows(self.record) if wanted.items() <= row.items())

    def right(self, defense: str, eps: float, place: Place) -> Tensor:
        """Which images are proved, or at ε = 0 read rightly: bool ``[N]``."""
        row = self.row(defense, eps, place)
        return unpack(row["outcomes"], row["n"])

    def run(self, place: Place) -> None:
        """Prove what can be proved; each row is stored when it is done."""
        x, y = self.images(place)
        models = {name: defense.build(place) for name, defense in self.defenses.items()}
        about = {
            "what": "of which official test images interval bounds prove that no change within ε "
            "(L∞) makes the defense misread them; at ε = 0 which are read rightly, the mean "
            "squared error per pixel of what is drawn, and how many drawings differ in 8 bits",
            "data": {"split": "test"} | data_print(x, y),
            "models_sha256": {name: model_fingerprint(model) for name, model in models.items()},
        }
        record = Record(self.record, about, place.results, keys=_PROOF, device=place.device)
        record.of(models, x)
        for name, eps in self.wanted():
            if eps:
                row = partial(lambda *ball, eps: counted(verify(*ball, eps=eps).right), eps=eps)
            else:
                row = _asked
            record.measure((name, eps), partial(row, models[name], x, y))


def _asked(model: nn.Module, x: Tensor, y: Tensor) -> Row:
    """Outcomes without an attack, and what is drawn."""
    row = counted(scores.outcomes(model, x, y))
    if isinstance(model, Defended):
        with torch.no_grad():
            drawn = torch.cat([model.purifier(part) for part in x.split(500)])
        levels = (255 * drawn).round().to(torch.uint8).flatten(1)
        row |= {"error": (drawn - x).square().mean().item(), "drawings": len(levels.unique(dim=0))}
    return row


@dataclass(frozen=True)
class Certified:
    """Certificates of denoised smoothing (Salman et al. 2020), and attacks on what is certified.

    At several noise levels, each with a DAE that was trained on that noise, and for comparison
    without one. Beside it stands what an attacker in L2 reaches on the smoothed classifier:
    certified accuracy bounds the truth from below, attacked accuracy from above.

    Attributes:
        name: of the data; record and weights are named after it.
        what: its images are.
        classifier: name of its weights; it stays as it is.
        recipe: noise level -> how its DAE is trained.
        images: loads a split of the data from a place, test images by default.
        about_data: what the record says of it.
        sigmas: noise levels.
        n: images that are certified, the first ones.
        draws: noisy copies that count, and that choose the class.
        alpha: probability per image that a certificate is wrong.
        attacked: images that are attacked, the first ones.
        radii: of the attacks, as multiples of σ.
        steps: of PGD on the mean probability of some draws.
        per_gradient: how many draws.
        judges: fresh draws whose vote judges the attack.
    """

    name: str
    what: str
    classifier: str
    recipe: Callable[[float], Recipe]
    images: Callable[..., data.Split]
    about_data: Row = field(default_factory=dict)
    sigmas: tuple[float, ...] = (0.25, 0.5, 1.0)
    n: int = 500
    draws: tuple[int, int] = (10_000, 100)
    alpha: float = 0.001
    attacked: int = 100
    radii: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    steps: int = 50
    per_gradient: int = 16
    judges: int = 1000

    kinds = ("denoised", "bare")

    @property
    def record(self) -> str:
        """Name of the record."""
        return f"{self.name}_certified"

    def recipes(self) -> dict[str, Recipe]:
        """Of the DAEs, by the name of their weights."""
        return {self.weights(sigma): self.recipe(sigma) for sigma in self.sigmas}

    def weights(self, sigma: float) -> str:
        """Of the DAE for a noise level."""
        return f"{self.name}-smoothing-{sigma:g}"

    def base(self, kind: str, sigma: float, place: Place) -> nn.Module:
        """What is smoothed: the classifier, with the DAE before it or not."""
        classifier = place.model(self.classifier)
        if kind == "bare":
            return classifier
        return Defended(classifier, Direct(place.model(self.weights(sigma))))

    def wanted(self) -> list[tuple[str, float, float]]:
        """Kind, σ and radius (0 for a certificate) of all rows, in their order."""
        return [
            *product(["denoised"], self.sigmas, [0.0]),
            *product(["denoised"], self.sigmas, self.radii),
            *product(["bare"], self.sigmas, [0.0]),
        ]

    def missing(self, place: Place) -> list[tuple[str, float, float]]:
        """Keys of the rows that the record does not have yet."""
        return place.lacking(self.record, _CERTIFICATE, self.wanted())

    def row(self, kind: str, sigma: float, place: Place, radius: float = 0.0) -> Row:
        """One of the record's."""
        wanted = {"kind": kind, "sigma": sigma, "radius": radius}
        return next(row for row in place.rows(self.record) if wanted.items() <= row.items())

    def certificates(self, kind: str, sigma: float, place: Place) -> Certificates:
        """Those of the record."""
        row = self.row(kind, sigma, place)
        parts = (torch.tensor(row[part]) for part in ("predictions", "votes"))
        return Certificates(*parts, sigma, self.draws[0], self.alpha)

    def standing(self, sigma: float, radius: float, place: Place) -> Tensor:
        """Which of the first images the smoothed one still reads rightly: bool ``[n]``."""
        row = self.row("denoised", sigma, place, radius)
        return unpack(row["outcomes"], row["n"])

    def labels(self, place: Place) -> Tensor:
        """Of the certified images, int64 ``[N]``."""
        return torch.tensor([int(digit) for digit in place.record(self.record)["labels"]])

    def run(self, place: Place) -> None:
        """Train the DAEs that are missing, certify, attack; each row is stored when it is done.

        Raises:
            ValueError: the record was made with other settings; each is named.
        """
        train = partial(self.images, place, split="train", dtype=torch.uint8)
        train_missing(self.recipes(), train, place)
        x, y = self.images(place).take(self.n)
        few = x[: self.attacked], y[: self.attacked]
        options = {"n": self.draws[0], "n0": self.draws[1], "alpha": self.alpha}
        models = {
            (kind, sigma): self.base(kind, sigma, place)
            for sigma, kind in product(self.sigmas, self.kinds)
        }
        named = {f"{kind}, {sigma:g}": model for (kind, sigma), model in models.items()}
        about = {
            "what": f"votes under Gaussian noise for the first official test {self.what}, and "
            "which of them the smoothed classifier still reads rightly under an attack in L2",
            "options": options,
            "attack": {"name": "pgd", "norm": "l2", "steps": self.steps, "draws": self.per_gradient}
            | {"judges": self.judges, "seed": 0},
            "data": self.about_data | {"split": "test"} | data_print(x, y),
            "labels": "".join(map(str, y.tolist())),
            "models_sha256": {name: model_fingerprint(model) for name, model in named.items()},
        }
        record = Record(self.record, about, place.results, keys=_CERTIFICATE, device=place.device)
        record.of(named, x)
        for kind, sigma, radius in self.wanted():
            model = models[kind, sigma]
            row = partial(self._attack, model, *few, sigma, radius)
            path = place.work / f"{self.record}_{kind}_{sigma:g}.json"
            if not radius:
                row = partial(_certify, model, x, sigma=sigma, record=path, **options)
            record.measure((kind, sigma, radius), row)
            if not radius and rank() == 0:  # its votes are stored in the row
                for left in [path, *path.parent.glob(f"{escape(path.stem)}.part-*.json")]:
                    left.unlink(missing_ok=True)

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, sigma: float, radius: float) -> Row:
        """PGD on the stand-in; then a vote of fresh draws, which the attack has not seen."""
        view = attacks.EOT(Smoothed(model, sigma, draws=self.per_gradient), 1)
        options = {"norm": "l2", "steps": self.steps, "early_stop": False, "batch_size": 50}

        def read(part: Tensor) -> Tensor:
            hit = attacks.pgd(view, x[part], y[part], eps=radius * sigma, index=part, **options)
            with torch.no_grad():
                found = [
                    votes(model, image, k, sigma, (self.judges,), seed=1)[0].argmax().item()
                    for image, k in zip(hit, part.tolist(), strict=True)
                ]
            return torch.tensor(found, dtype=torch.int64)

        return counted(divided(read, len(x)) == y.cpu())


def _certify(model: nn.Module, x: Tensor, *, record: Any, **options: Any) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)  # without a denoiser: that is the question
        found = divided(partial(_certified, model, x, record, options), len(x))
    return {"predictions": found[:, 0].tolist(), "votes": found[:, 1].tolist()}


def _certified(model: nn.Module, x: Tensor, record: Path, options: Row, part: Tensor) -> Tensor:
    """Predictions and votes of some of the images; what is done is kept for each process."""
    if world() > 1:
        record = record.with_name(f"{part_name(record.with_suffix(''))}.json")
    found = certify(model, x[part], index=part, record=record, **options)
    return torch.stack([found.predictions, found.votes], 1)


def _left(model: nn.Module, attack: Callable[..., Tensor], x: Tensor, y: Tensor, eps: float) -> Row:
    hit = divided(lambda part: attack(x[part], y[part], eps=eps, index=part), len(x))
    return counted(scores.outcomes(model, hit, y))
