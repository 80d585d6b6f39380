"""Colour images: what is trained, chosen and compared on CIFAR-10 and on photographs, as tables.

Either set of CIFAR-10 will do: the original, or a copy that was stored as JPEG files. Records and
weights say which it was. The authors' log has its place beside it, so each weak attack is made
twice, as it should be and as their code does (:mod:`apudae.attacks.as_published`).

The classifier of photographs has probably seen such images in its own training, so what counts is
accuracy *relative to the clean one on the same images*.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import attacks, data
from ..attacks import as_published
from ..core.files import model_fingerprint
from ..core.record import Record, Row
from ..data import Split
from ..evaluation import BUDGETS, Budget
from ..purification import (
    JPEG,
    PRESETS,
    Adaptive,
    BitDepth,
    Calibration,
    Defended,
    Direct,
    Median,
    ResizePad,
    calibrate,
)
from . import defenses, photographs, recipes
from .choose import Choice, Options, Trial, best, gains, score
from .compare import Profile, Study
from .defenses import Defense
from .place import Place
from .recipes import COLOUR_EPS, Recipe
from .verdicts import Certified, Verdict

SETS = ("cifar10", "cifar10-jpeg")
CLASSIFIERS = (
    "efficientnet-lite0",
    "resnet50",
)  # settings of photographs are chosen round the first
NET, DAE = "cifar10-resnet", "cifar10-dae"
# What a network that is only tried is called in a row, and how it is used.
TRIED = {"tried, direct": "direct", "tried, adaptive": "simple"}
DEFAULT = "adaptive, default"  # the authors' variant at the authors' steps
# Published defenses that need no network of their own, and the options that are tried.
TRANSFORMS: dict[str, tuple[type[nn.Module], tuple[Options, ...]]] = {
    "bit depth": (BitDepth, tuple({"bits": bits} for bits in (2, 3, 4, 5))),
    "median": (Median, ({"size": 2}, {"size": 3})),
    "jpeg": (JPEG, tuple({"quality": quality} for quality in (10, 25, 50, 75))),
    "resize and pad": (
        ResizePad,
        tuple({"smallest": scale} for scale in (0.7, 0.8, 0.9)),
    ),
}
_ONE = (4 / 255,)
_SMALL = Budget(pgd=20, apgd=20, targets=1, queries=100, draws=1, weights=(0.1,), scoring=5)
_TINY = Budget(pgd=5, apgd=5, targets=1, queries=20, draws=1, weights=(0.1,), scoring=2)


@dataclass(frozen=True)
class Plan:
    """A DAE and settings, chosen before a test image is seen; each step is stored when it is done.

    1. Denoising autoencoders of several noise levels are trained briefly at the least depth, and of
       several depths at the best level; a deeper one costs more at every image for ever, so it is
       taken only if its interval of the difference lies above zero.
    2. The best of them is trained longer.
    3. Every variant of adaptive purification gets its steps, and the published defenses that need
       no network of their own get their settings.

    The score is always the number of validation images read rightly, without an attack and under
    PGD on the classifier alone, added up over all ε.

    Attributes:
        dae: name of the weights of the DAE that is kept.
        recipe: of a DAE, from its noise level, depth and epochs.
        train: loads images for it from a place.
        validation: loads images and labels from a place; μ and σ are measured on all.
        sigmas: noise levels.
        depths: layers.
        brief: epochs of a DAE that is tried.
        long: and of the one that is kept.
        variants: options that are tried of each variant of :data:`apudae.purification.PRESETS`.
        published: how many of :data:`TRANSFORMS` are kept.
    """

    dae: str
    recipe: Callable[[float, int, int], Recipe]
    train: Callable[[Place], Split]
    validation: Callable[[Place], Split]
    sigmas: tuple[float, ...]
    depths: tuple[int, ...]
    brief: int
    long: int
    variants: Mapping[str, tuple[Options, ...]]
    published: int
    classifier: Callable[[Place], nn.Module]

    def trials(self, record: Record, images: Split, place: Place) -> Iterator[Trial]:
        """What is tried, one after the other."""
        net, train = self.classifier(place), cache(partial(self.train, place))

        def purified(dae: nn.Module, level: tuple, use: str, **options: Any) -> nn.Module:
            direct = use == "direct"
            purifier = Direct(dae) if direct else Adaptive.preset(use, dae, level, **options)
            return Defended(net, purifier)

        def networks(sigma: float, depth: int) -> Iterator[Trial]:
            file, recipe = f"{self.dae}-{depth}-{sigma:g}", self.recipe(sigma, depth, self.brief)
            for name, use in TRIED.items():

                def make(use: str = use) -> nn.Module:
                    dae = recipes.tried(file, recipe, train, place)
                    return purified(dae, (0.0, 1.0, 0), use)

                yield Trial(name, {"depth": depth, "sigma": sigma}, make)

        def of(**options: Any) -> list[Row]:
            return [r for r in record.rows if r["defense"] in TRIED and r["options"] == options]

        depth = self.depths[0]
        for sigma in self.sigmas:
            yield from networks(sigma, depth)
        sigma = max(self.sigmas, key=lambda s: sum(map(score, of(depth=depth, sigma=s))))
        for deeper in self.depths[1:]:
            yield from networks(sigma, deeper)
            if gains(of(depth=depth, sigma=sigma), of(depth=deeper, sigma=sigma)):
                depth = deeper
        kept = {self.dae: self.recipe(sigma, depth, self.long)}
        recipes.train_missing(kept, train, place)
        self.check(record.about | record.more, place)
        dae = place.model(self.dae)
        level = calibrate(dae, self.validation(place).images, batch_size=50)
        record.save(dae_sha256=place.sha256(self.dae), calibration=list(level))
        yield Trial("no defense", {}, lambda: net)
        yield Trial("direct", {}, partial(purified, dae, level, "direct"))
        for name, several in self.variants.items():
            for options in several:
                yield Trial(
                    adaptively(name), options, partial(purified, dae, level, name, **options)
                )
        for name, (_, several) in TRANSFORMS.items():
            for options in several:
                yield Trial(name, options, partial(transformed, net, name, options, place))
        at_best = {row["defense"]: score(best(record.rows, row["defense"])) for row in record.rows}
        variant = max(self.variants, key=lambda name: at_best[adaptively(name)])
        published = sorted(TRANSFORMS, key=at_best.get, reverse=True)[: self.published]
        chosen = {"sigma": sigma, "depth": depth, "variant": variant, "published": published}
        record.save(chosen=chosen)

    def check(self, record: Row, place: Place, classifier: nn.Module | None = None) -> None:
        """Raise ``ValueError`` if a choice was made for another DAE, or another classifier."""
        here = {"DAE": place.sha256(self.dae)}
        if classifier is not None:
            here["classifier"] = model_fingerprint(classifier)
        for what, sha256 in here.items():
            if record.get(f"{what.lower()}_sha256", sha256) != sha256:
                raise ValueError(
                    f"the settings for {self.dae} were chosen with another {what} than is here; "
                    "move the record, or take the weights that belong to it"
                )

    def choice(self, record: str, n: int, about_data: Row, **more: Any) -> Choice:
        """The choice that this plan is for, on the first ``n`` validation images."""
        return Choice(
            record=record,
            trials=self.trials,
            images=lambda place: self.validation(place).take(n),
            classifier=self.classifier,
            steps=20,
            about=lambda place: {
                "what": "which validation images are read correctly without an attack and under "
                "PGD on the classifier alone, by purification and published defenses at several "
                "settings",
                "data": about_data,
                "classifier_sha256": model_fingerprint(self.classifier(place)),
                "epochs": {"tried": self.brief, "kept": self.long},
            },
            **more,
        )

    def defenses(
        self, choice: Choice, classifier: Callable[[Place], nn.Module], weights: tuple[str, ...]
    ) -> dict[str, Defense]:
        """Every use and every published defense, at the settings that were chosen.

        Args:
            choice: whose record holds them.
            classifier: from a place, the classifier; settings hold for another one, too.
            weights: that it needs.
        """

        def settings(place: Place, name: str) -> tuple[Options, Calibration]:
            record, net = place.record(choice.record), classifier(place)
            self.check(record, place, net if classifier is self.classifier else None)
            options = {} if name == DEFAULT else best(record["rows"], name)["options"]
            return options, Calibration(*record["calibration"])

        def used(name: str, preset: str, place: Place, **changes: Any) -> nn.Module:
            options, level = settings(place, name)
            dae = place.model(self.dae)
            if name == "direct":
                return Defended(classifier(place), Direct(dae, **changes))
            preset = Adaptive.preset(preset, dae, level, **options | changes)
            return Defended(classifier(place), preset)

        def made(name: str, place: Place, **changes: Any) -> nn.Module:
            options, _ = settings(place, name)
            return transformed(classifier(place), name, options | changes, place)

        uses = {"direct": "", **{adaptively(k): k for k in self.variants}, DEFAULT: "probabilistic"}
        needed = (*weights, self.dae)
        return {
            "no defense": Defense(classifier, weights),
            **{k: Defense(partial(used, k, v), needed) for k, v in uses.items()},
            **{
                k: replace(defenses.PUBLISHED[k], make=partial(made, k), weights=needed, options={})
                for k in TRANSFORMS
            },
        }


def adaptively(variant: str) -> str:
    """What a table calls a variant of adaptive purification."""
    return f"adaptive, {variant}"


def transformed(classifier: nn.Module, name: str, options: Options, place: Place) -> nn.Module:
    """A classifier behind one of :data:`TRANSFORMS`."""
    return Defended(classifier, TRANSFORMS[name][0](**options).to(place.device)).eval()


def kept(chosen: Row) -> tuple[set[str], str]:
    """Published defenses that a choice leaves out, and the variant it prefers."""
    return set(TRANSFORMS) - set(chosen["published"]), adaptively(chosen["variant"])


def take_along(choice: Choice, plan: Plan, place: Place) -> None:
    """Put the shipped choice into a place, if the DAE there is the one it was made for."""
    shipped = Place().record(choice.record)
    if place.record(choice.record) or not shipped or not place.has(plan.dae):
        return
    if place.sha256(plan.dae) == shipped["dae_sha256"]:
        place.results.mkdir(parents=True, exist_ok=True)
        shutil.copy(Place().results / f"{choice.record}.json", place.results)


# CIFAR-10.


def cifar10_plan(name: str = SETS[0]) -> Plan:
    """What is tried on one of :data:`SETS`, the original or the JPEG copy."""
    return Plan(
        dae=DAE,
        recipe=recipes.rednet,
        train=lambda place: place.load(name, "train", dtype=torch.uint8),
        validation=lambda place: place.load(name, "validation").take(1000),
        sigmas=(0.05, 0.1, 0.2, 0.3, 0.4),
        depths=(10, 30),
        brief=1,
        long=8,
        variants={preset: ({}, {"step_size": 4 / 255}) for preset in PRESETS}
        | {
            "l2": ({}, {"step_size": 0.03}, {"step_size": 0.3}),
            "sign": ({}, {"step_size": 0.5 / 255}, {"step_size": 2 / 255}),
        },
        published=3,
        classifier=lambda place: place.model(NET),
    )


def cifar10_choice(name: str = SETS[0]) -> Choice:
    """What was chosen on one of :data:`SETS`."""
    about, epsilons = {"name": data.TITLES[name]}, (0.0, COLOUR_EPS)
    return cifar10_plan(name).choice("cifar10_selection", 500, about, epsilons=epsilons)


def cifar10(name: str = SETS[0]) -> Study:
    """What is compared on one of :data:`SETS`."""
    if name not in SETS:
        raise ValueError(f"data: expected {' or '.join(SETS)}, got {name!r}")
    plan, choice = cifar10_plan(name), cifar10_choice(name)
    few = [*map(adaptively, plan.variants), DEFAULT]
    logged, eps = as_published.LOGGED_N, (COLOUR_EPS,)
    bim = {"steps": as_published.STEPS, "step_size": as_published.STEP_SIZE}
    return Study(
        name="cifar10",
        images=lambda place, profile: place.load("cifar10-20" if profile == "quick" else name),
        defenses=plan.defenses(choice, plan.classifier, (NET,))
        | {"adversarial training": defenses.alone("cifar10-adversarial", retrained=True)},
        attacks={
            "noise": attacks.noise,
            "FGSM": attacks.fgsm,
            "R-FGSM": partial(attacks.rfgsm, alpha=as_published.ALPHA),
            "BIM": partial(attacks.bim, **bim),
            "authors' noise": as_published.noise,
            "authors' FGSM": as_published.fgsm,
            "authors' R-FGSM": as_published.rfgsm,
            "authors' BIM": as_published.bim,
            "PGD": partial(attacks.pgd, steps=20),
        },
        epsilons=eps,
        about_attacks={
            "BIM": "7 steps of 2/255",
            "R-FGSM": "2/255 of ε at random; the authors' on top of ε",
            "authors'": "as their code attacks, then cut to [0, 1]",
            "PGD": "20 steps",
        },
        about_data={"name": data.TITLES[name], "split": "test"},
        profiles={
            "quick": Profile(20, 4, 4, eps, _TINY, "quick", dict.fromkeys(few, (20, 0))),
            "full": Profile(
                weak=logged,
                cw=20,
                strong=100,
                epsilons=eps,
                budget=BUDGETS["quick"],
                fewer=dict.fromkeys(few, (100, 20))
                | {DEFAULT: (100, 10), "jpeg": (logged, 50), "resize and pad": (logged, 10)},
            ),
        },
        choice=choice,
        kept=kept,
        chosen={"quick": (20, 2), "full": (500, 50)},
    )


def chosen_set(place: Place) -> str:
    """Which of :data:`SETS` a place's choice was made on; the original where there is none."""
    about = place.record(cifar10_choice().record).get("data", {"name": data.TITLES[SETS[0]]})
    return next(name for name in SETS if data.TITLES[name] == about["name"])


def certified(name: str = SETS[0]) -> Certified:
    """The certificates of digits for colours, of a REDNet that is trained for longer; for a GPU."""
    return Certified(
        name="cifar10",
        what="images",
        classifier=NET,
        recipe=lambda sigma: recipes.rednet(sigma, 10, 30),
        images=partial(Place.load, name=name),
        about_data={"name": data.TITLES[name]},
    )


def purifier_verdict(name: str = SETS[0]) -> Verdict:
    """Nothing is chosen: the one recipe of the purifier was fixed beforehand; for a GPU."""
    return Verdict(
        record="cifar10_purifier_verdict",
        defense="purifier",
        row=defenses.before(Direct, "cifar10-purifier", classifier=NET),
        images=lambda place: place.load(name),
        n=1000,
        eps=COLOUR_EPS,
        budget=BUDGETS["reference"],
        title=f"purifier, {data.TITLES[name]}",
    )


# Photographs of ImageNet's classes.

IMAGENET = "ImageNet (500 training images, probably)"
DIVIDED = {"train": 260, "validation": 40}  # photographs; the rest are test images


def network(name: str, place: Place) -> nn.Module:
    """A pretrained classifier of :data:`CLASSIFIERS`."""
    return photographs.classifier(name, place.device)


def imagenet_plan(folder: Path | None = None) -> Plan:
    """What is tried on a folder of photographs; by default ``imagenet_sample`` below the root."""

    def part(split: str, place: Place) -> Split:
        listing = photographs.divide(photographs.find(folder, place.root), **DIVIDED)[split]
        take = photographs.crops if split == "train" else photographs.centres
        return place.here(take(listing))

    return Plan(
        dae="imagenet-dae",
        # Half as wide as CIFAR-10's: a photograph has fifty times the pixels.
        recipe=partial(recipes.rednet, batch_size=32, width=32),
        train=partial(part, "train"),
        validation=partial(part, "validation"),
        sigmas=(0.05, 0.1, 0.2, 0.3),
        depths=(10,),
        brief=4,
        long=24,
        variants={
            "simple": ({}, {"step_size": 4 / 255}),
            "probabilistic": ({}, {"step_size": 4 / 255}),
            "l2": ({"step_size": 0.5}, {"step_size": 2.0}),
            "sign": ({}, {"step_size": 0.5 / 255}),
        },
        published=1,
        classifier=partial(network, CLASSIFIERS[0]),
    )


def imagenet_choice(folder: Path | None = None, place: Place | None = None) -> Choice:
    """What was chosen on photographs; the record knows which were trained and chosen on."""
    about: Row = {"name": IMAGENET}
    if place is not None:
        parts = photographs.divide(photographs.find(folder, place.root), **DIVIDED)
        about["seen_sha256"] = [k for split in DIVIDED for k in photographs.keys(parts[split])]
    epsilons = (0.0, *_ONE)
    return imagenet_plan(folder).choice("imagenet_selection", 40, about, epsilons=epsilons)


def imagenet(folder: Path | None = None, classifier: str = CLASSIFIERS[0]) -> Study:
    """What is compared on photographs around a classifier of :data:`CLASSIFIERS`."""
    if classifier not in CLASSIFIERS:
        known = " or ".join(CLASSIFIERS)
        raise ValueError(f"classifier: expected {known}, got {classifier!r}")
    plan, choice, ours = imagenet_plan(folder), imagenet_choice(), classifier == CLASSIFIERS[0]
    net = plan.classifier if ours else partial(network, classifier)
    few = [*map(adaptively, plan.variants), DEFAULT]

    def images(place: Place, profile: str) -> Split:
        if profile == "quick":
            return place.load("photographs")
        record = place.record(choice.record)
        seen = record["data"]["seen_sha256"] if record else ()
        left = photographs.unseen(photographs.find(folder, place.root), seen)
        return photographs.centres(data.Listing(*(part[:100] for part in left)))

    return Study(
        name="imagenet" if ours else f"imagenet_{classifier}",
        images=images,
        defenses=plan.defenses(choice, net, ()),
        attacks={
            "noise": attacks.noise,
            "FGSM": attacks.fgsm,
            "R-FGSM": partial(attacks.rfgsm, alpha=as_published.ALPHA),
            "BIM": partial(attacks.bim, steps=as_published.STEPS),
            "PGD": partial(attacks.pgd, steps=20),
        },
        epsilons=(*_ONE, 8 / 255),
        about_attacks={"BIM": "7 steps", "PGD": "20 steps"},
        about_data={"name": IMAGENET, "classifier": classifier, "size": photographs.SIZE},
        profiles={
            "quick": Profile(
                weak=2,
                cw=1,
                strong=1,
                epsilons=_ONE,
                budget=replace(_TINY, pgd=2, apgd=2, queries=2),
                data="quick",
                fewer=dict.fromkeys(few, (2, 0)),
            ),
            "full": Profile(
                weak=100,
                cw=4,
                strong=100,
                epsilons=(*_ONE, 8 / 255),
                budget=_SMALL,
                fewer=dict.fromkeys(few, (10, 0)) | {"jpeg": (100, 40)},
            ),
        },
        choice=choice,
        kept=kept,
        chosen={"quick": (2, 1), "full": (100, 100)},
        batch=8,
    )
