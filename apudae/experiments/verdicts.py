"""Runners whose rows are verdicts: the whole protocol, ladders of attackers, certificates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks, data
from ..attacks import BPDA, EOT, Averaged, ReconstructionAware, Surrogate
from ..core import scores
from ..core.arguments import AttackWarning
from ..core.files import model_fingerprint
from ..core.record import Record, Row, pack, unpack
from ..data import Split
from ..evaluation import Budget, Certificates, Report, Smoothed, certify, evaluate, votes
from ..purification import Adaptive, Defended, Direct, smooth
from .defenses import Defense
from .place import Place
from .recipes import Recipe


@dataclass(frozen=True)
class Verdict:
    """The protocol on one defense at one ε, in a record of its own.

    Attributes:
        record: its name.
        defense: name of the defense in its study.
        row: the defense.
        images: loads test images and labels from a place; the first ones are taken.
        n: how many.
        eps: radius of the ball.
        budget: of the attacks.
        title: of the report.
        attacks: more attacks, see :func:`apudae.evaluation.evaluate`.
        curves: whether to draw them.
    """

    record: str
    defense: str
    row: Defense
    images: Callable[[Place], Split]
    n: int
    eps: float
    budget: Budget
    title: str
    attacks: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    curves: bool = True

    def missing(self, place: Place) -> list[str]:
        """Whether the record is not complete."""
        return [] if place.record(self.record).get("complete") else ["verdict"]

    def run(self, place: Place) -> Report:
        """Ask for it; goes on where it was stopped."""
        x, y = self.images(place).take(self.n)
        return evaluate(
            self.row.build(place),
            x,
            y,
            eps=self.eps,
            budget=self.budget,
            attacks=self.attacks,
            curves=self.curves,
            title=self.title,
            record=place.results / self.record,
        )

    def load(self, place: Place) -> Report | None:
        """The report, if it is complete."""
        return None if self.missing(place) else Report.load(self.record, place.results)


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
    images: Callable[[Place], Split]
    epsilons: tuple[float, ...]
    weights: tuple[float, ...]
    steps: int = 50
    queries: int = 500

    def rungs(self, model: Defended, x: Tensor, eps: float) -> dict[str, nn.Module]:
        """What attackers follow, by name."""
        found = {
            "classifier alone": model.classifier,
            "classifier, judged by the defense": Surrogate(model, model.classifier),
            **{f"aware, λ = {w:g}": ReconstructionAware(model, w) for w in self.weights},
            "BPDA": BPDA(model),
            "BPDA, averaged": Averaged(model),
            "full gradient": model,
        }
        if isinstance(model.purifier, Adaptive):
            found["BPDA, the DAE"] = BPDA(model, Direct(model.purifier.dae))
            for name, other in smooth(model.purifier, x[:50], radius=eps).items():
                found[f"surrogate: {name}"] = Surrogate(model, Defended(model.classifier, other))
        return found

    def missing(self, place: Place) -> list[str]:
        """Whether the last row is not there."""
        keys = {(r["defense"], r["eps"], r["attack"]) for r in self.rows(place)}
        last = (list(self.defenses)[-1], self.epsilons[-1], "Square")
        return [] if last in keys else ["rungs"]

    def rows(self, place: Place) -> list[Row]:
        """Those that are stored."""
        return place.record(self.record).get("rows", [])

    def outcomes(self, defense: str, eps: float, place: Place) -> dict[str, Tensor]:
        """Outcomes per attack: bool ``[N]``."""
        mine = [r for r in self.rows(place) if (r["defense"], r["eps"]) == (defense, eps)]
        return {row["attack"]: unpack(row["outcomes"], row["n"]) for row in mine}

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
            "data": {"split": "validation", "n": len(x), "sha256": data.fingerprint(x)},
            "models_sha256": {name: model_fingerprint(model) for name, model in models.items()},
            "outcomes": "in the order of the split: record.unpack(text, n)",
        }
        keys = ("defense", "eps", "attack")
        record = Record(self.record, about, place.results, keys=keys, device=place.device)
        for eps in self.epsilons:
            for name, model in models.items():
                follow = {"steps": self.steps, "early_stop": True}
                jobs = {
                    rung: (attacks.apgd, view, follow)
                    for rung, view in self.rungs(model, x, eps).items()
                }
                alone = "classifier alone"
                jobs[alone] = (*jobs[alone][:2], follow | {"early_stop": False})
                jobs["full gradient, PGD"] = (attacks.pgd, model, follow)
                jobs["Square"] = (attacks.square, model, {"queries": self.queries})
                for rung, (attack, view, options) in jobs.items():

                    def row(attack=attack, view=view, options=options, model=model, eps=eps) -> Row:
                        found = attack(view, x, y, eps=eps, **options)
                        return _counted(scores.outcomes(model, found, y))

                    record.measure((name, eps, rung), row)


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
    images: Callable[..., Split]
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
        rows = [("denoised", sigma, 0.0) for sigma in self.sigmas]
        rows += [("denoised", sigma, radius) for sigma in self.sigmas for radius in self.radii]
        return rows + [("bare", sigma, 0.0) for sigma in self.sigmas]

    def missing(self, place: Place) -> list[tuple[str, float, float]]:
        """Keys of the rows that the record does not have yet."""
        stored = place.record(self.record).get("rows", [])
        there = {(row["kind"], row["sigma"], row["radius"]) for row in stored}
        return [key for key in self.wanted() if key not in there]

    def row(self, kind: str, sigma: float, place: Place, radius: float = 0.0) -> Row:
        """One of the record's."""
        rows = place.record(self.record)["rows"]
        wanted = {"kind": kind, "sigma": sigma, "radius": radius}
        return next(row for row in rows if wanted.items() <= row.items())

    def certificates(self, kind: str, sigma: float, place: Place) -> Certificates:
        """Those of the record."""
        row = self.row(kind, sigma, place)
        predictions, kept = (torch.tensor(row[part]) for part in ("predictions", "votes"))
        return Certificates(predictions, kept, sigma, self.draws[0], self.alpha)

    def standing(self, sigma: float, radius: float, place: Place) -> Tensor:
        """Which of the first images the smoothed one still reads rightly: bool ``[n]``."""
        row = self.row("denoised", sigma, place, radius)
        return unpack(row["outcomes"], row["n"])

    def labels(self, place: Place) -> Tensor:
        """Of the certified images, int64 ``[N]``."""
        return torch.tensor([int(digit) for digit in place.record(self.record)["labels"]])

    def run(self, place: Place) -> None:
        """Certify, attack; each row is stored when it is done.

        Raises:
            ValueError: the record was made with other settings; each is named.
        """
        x, y = self.images(place).take(self.n)
        options = {"n": self.draws[0], "n0": self.draws[1], "alpha": self.alpha}
        models = {
            (kind, sigma): self.base(kind, sigma, place)
            for sigma in self.sigmas
            for kind in self.kinds
        }
        about = {
            "what": f"votes under Gaussian noise for the first official test {self.what}, and "
            "which of them the smoothed classifier still reads rightly under an attack in L2",
            "options": options,
            "attack": {"name": "pgd", "norm": "l2", "steps": self.steps, "draws": self.per_gradient}
            | {"judges": self.judges, "seed": 0},
            "data": self.about_data | {"split": "test", "n": len(x), "sha256": data.fingerprint(x)},
            "labels": "".join(map(str, y.tolist())),
            "models_sha256": {
                f"{kind}, {sigma:g}": model_fingerprint(model)
                for (kind, sigma), model in models.items()
            },
        }
        keys = ("kind", "sigma", "radius")
        record = Record(self.record, about, place.results, keys=keys, device=place.device)
        for kind, sigma, radius in self.wanted():
            model = models[kind, sigma]
            if radius:
                few = x[: self.attacked], y[: self.attacked]
                row = partial(self._attack, model, *few, sigma, radius)
            else:
                path = place.work / f"{self.record}_{kind}_{sigma:g}"
                row = partial(_certify, model, x, sigma=sigma, record=path, **options)
            record.measure((kind, sigma, radius), row)

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, sigma: float, radius: float) -> Row:
        """PGD on the stand-in; then a vote of fresh draws, which the attack has not seen."""
        view = EOT(Smoothed(model, sigma, draws=self.per_gradient), 1)
        ball = {"eps": radius * sigma, "norm": "l2", "steps": self.steps, "early_stop": False}
        hit = attacks.pgd(view, x, y, **ball, batch_size=50)
        with torch.no_grad():
            read = [
                votes(model, image, k, sigma, (self.judges,), seed=1)[0].argmax()
                for k, image in enumerate(hit)
            ]
        return _counted(torch.stack(read) == y.cpu())


def _certify(model: nn.Module, x: Tensor, *, record: Any, **options: Any) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)  # without a denoiser: that is the question
        found = certify(model, x, record=record, **options)
    record.with_name(f"{record.name}.json").unlink()
    return {"predictions": found.predictions.tolist(), "votes": found.votes.tolist()}


def _counted(right: Tensor) -> Row:
    return {"n": len(right), "correct": int(right.sum()), "outcomes": pack(right)}
