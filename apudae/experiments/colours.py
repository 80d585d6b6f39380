"""Colour images: what is trained, chosen and compared on CIFAR-10 and on photographs, as tables.

Either set of CIFAR-10 will do: the original, or a copy that was stored as JPEG files. Records and
weights say which it was. The authors' log has its place beside it, so each weak attack is made
twice, as it should be and as their code does (:mod:`apudae.attacks.as_published`).

The classifier of photographs has probably seen such images in its own training, so what counts is
accuracy *relative to the clean one on the same images*.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .. import attacks, data
from ..attacks import as_published
from ..core.arguments import require
from ..core.record import Row
from ..evaluation import BUDGETS, Budget
from ..purification import PRESETS, Direct
from . import defenses, photographs, recipes
from .choose import Choice
from .compare import Profile, Study
from .place import Place
from .plans import DEFAULT, Plan, adaptively, kept
from .recipes import COLOUR_EPS
from .verdicts import Certified, Verdict

SETS = ("cifar10", "cifar10-jpeg")
# Of photographs; their settings are chosen round the first.
CLASSIFIERS = ("efficientnet-lite0", "resnet50")
NET, DAE = "cifar10-resnet", "cifar10-dae"
_ONE = (4 / 255,)
_SMALL = Budget(pgd=20, apgd=20, targets=1, queries=100, draws=1, weights=(0.1,), scoring=5)
_TINY = Budget(pgd=5, apgd=5, targets=1, queries=20, draws=1, weights=(0.1,), scoring=2)


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
    return cifar10_plan(name).choice(
        "cifar10_selection", 500, {"name": data.TITLES[name]}, epsilons=(0.0, COLOUR_EPS)
    )


def cifar10(name: str = SETS[0]) -> Study:
    """What is compared on one of :data:`SETS`."""
    require(name in SETS, f"data: expected {' or '.join(SETS)}, got {name!r}")
    plan, choice = cifar10_plan(name), cifar10_choice(name)
    few = [*map(adaptively, plan.variants), DEFAULT]
    logged, eps = as_published.LOGGED_N, (COLOUR_EPS,)
    return Study(
        name="cifar10",
        images=lambda place, profile: place.load("cifar10-20" if profile == "quick" else name),
        defenses=plan.defenses(choice, plan.classifier, (NET,))
        | {"adversarial training": defenses.alone("cifar10-adversarial", retrained=True)},
        attacks={
            "noise": attacks.noise,
            "FGSM": attacks.fgsm,
            "R-FGSM": partial(attacks.rfgsm, alpha=as_published.ALPHA),
            "BIM": partial(attacks.bim, steps=as_published.STEPS, step_size=as_published.STEP_SIZE),
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
                cw=100,
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


def imagenet_plan(folder: Path | None = None) -> Plan:
    """What is tried on a folder of photographs; by default ``imagenet_sample`` below the root."""

    def part(split: str, place: Place) -> data.Split:
        parts = photographs.divide(photographs.find(folder, place.root), **DIVIDED)
        take = photographs.crops if split == "train" else photographs.centres
        return place.here(take(parts[split]))

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
        classifier=lambda place: photographs.classifier(CLASSIFIERS[0], place.device),
    )


def imagenet_choice(folder: Path | None = None, place: Place | None = None) -> Choice:
    """What was chosen on photographs; the record knows which were trained and chosen on."""
    about: Row = {"name": IMAGENET}
    if place is not None:
        parts = photographs.divide(photographs.find(folder, place.root), **DIVIDED)
        about["seen_sha256"] = [k for split in DIVIDED for k in photographs.keys(parts[split])]
    return imagenet_plan(folder).choice("imagenet_selection", 40, about, epsilons=(0.0, *_ONE))


def imagenet(folder: Path | None = None, classifier: str = CLASSIFIERS[0]) -> Study:
    """What is compared on photographs around a classifier of :data:`CLASSIFIERS`."""
    known = " or ".join(CLASSIFIERS)
    require(classifier in CLASSIFIERS, f"classifier: expected {known}, got {classifier!r}")
    plan, choice, ours = imagenet_plan(folder), imagenet_choice(), classifier == CLASSIFIERS[0]
    few = [*map(adaptively, plan.variants), DEFAULT]

    def other(place: Place) -> nn.Module:
        return photographs.classifier(classifier, place.device)

    def images(place: Place, profile: str) -> data.Split:
        if profile == "quick":
            return place.load("photographs")
        seen = place.record(choice.record).get("data", {"seen_sha256": ()})["seen_sha256"]
        left = photographs.unseen(photographs.find(folder, place.root), seen)
        return photographs.centres(data.Listing(*(part[:100] for part in left)))

    return Study(
        name="imagenet" if ours else f"imagenet_{classifier}",
        images=images,
        defenses=plan.defenses(choice, plan.classifier if ours else other, ()),
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
