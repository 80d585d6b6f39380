"""CIFAR-10: networks, purification and published defenses, chosen and compared.

``python -m apudae.experiments cifar10`` trains the classifier, lets :mod:`apudae.selection` choose
a DAE and settings on validation images (record ``cifar10_selection``), trains a classifier
adversarially, and compares all of them on test images (record ``cifar10``). It goes on where it was
stopped. The authors' log has its place beside it, so each weak attack is made twice, as it should
be and as their code does (:mod:`apudae.authors`).

Either set will do: ``"cifar10"``, the original, or ``"cifar10-jpeg"``, a copy that was stored as
JPEG files. Records and weights say which it was.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from . import attacks, authors, checkpoints, data, recipes, records, selection, training, versus
from .data import Split
from .lineup import CW, SEARCHES, Lineup, Profile
from .plan import BUDGETS, Budget
from .recipes import Recipe
from .selection import DEFAULT, Plan, Selection
from .variants import PRESETS

SETS = ("cifar10", "cifar10-jpeg")
EPS = 8 / 255
CALIBRATED_ON = 1000  # validation images
TRAINED = "adversarial training"

_SGD = {"optimizer": "sgd", "weight_decay": 5e-4, "augment": True, "ema": 0.998, "seed": 0}
_SGD |= {"epochs": 15, "batch_size": 256, "lr": 0.15}
RECIPES = {
    "cifar10-resnet": Recipe("cifar10-resnet", options=_SGD, model={"width": 48}),
    "cifar10-adversarial": Recipe(
        "cifar10-resnet",
        recipes.pgd_training(EPS, 1, 10 / 255),  # from a random point (Wong et al. 2020)
        _SGD | {"epochs": 10},
        {"width": 32},
    ),
}


def _dae(sigma: float, depth: int, epochs: int) -> Recipe:
    """A REDNet for one noise level."""
    options = {"batch_size": 128, "lr": 1e-3, "augment": True, "epochs": epochs, "seed": 0}
    return Recipe("rednet", lambda _: training.denoising(sigma), options, {"depth": depth})


_SIZES = ({}, {"step_size": 4 / 255})
PLAN = Plan(
    record="cifar10_selection",
    dae="cifar10-dae",
    recipe=_dae,
    sigmas=(0.05, 0.1, 0.2, 0.3, 0.4),
    depths=(10, 30),
    brief=1,
    long=8,
    epsilons=(EPS,),
    variants={name: _SIZES for name in PRESETS}
    | {
        "l2": ({}, {"step_size": 0.03}, {"step_size": 0.3}),
        "sign": ({}, {"step_size": 0.5 / 255}, {"step_size": 2 / 255}),
    },
    images=500,
)
WEIGHTS = (*RECIPES, PLAN.dae)

_BIM = {"steps": authors.STEPS, "step_size": authors.STEP_SIZE}
WEAK = {
    "noise": attacks.noise,
    "FGSM": attacks.fgsm,
    "R-FGSM": partial(attacks.rfgsm, alpha=authors.ALPHA),
    "BIM": partial(attacks.bim, **_BIM),
    "authors' noise": authors.noise,
    "authors' FGSM": authors.fgsm,
    "authors' R-FGSM": authors.rfgsm,
    "authors' BIM": authors.bim,
    "PGD": partial(attacks.pgd, steps=selection.PGD_STEPS),
}
_FEW = {name: (100, 20) for name in (*PLAN.ours, DEFAULT) if name.startswith("adaptive")}
PROFILES = {
    "quick": Profile(
        data="quick",
        weak=20,
        cw=4,
        strong=4,
        epsilons=(EPS,),
        budget=Budget(pgd=5, apgd=5, targets=1, queries=20, draws=1, weights=(0.1,), scoring=2),
        fewer={name: (20, 0) for name in _FEW},
    ),
    "full": Profile(
        data="full",
        weak=authors.LOGGED_N,
        cw=20,
        strong=100,
        epsilons=(EPS,),
        budget=BUDGETS["quick"],
        fewer=_FEW
        | {DEFAULT: (100, 10)}
        | {"jpeg": (authors.LOGGED_N, 50), "resize and pad": (authors.LOGGED_N, 10)},
    ),
}

CHOSEN = {"quick": (20, 2), "full": (500, 50)}  # images of the chosen variant


def defenses(
    weights: Path, device: torch.device | str = "cpu", *, results: Path = records.RESULTS
) -> dict[str, nn.Module]:
    """All defenses whose networks and settings are there, by name.

    Raises:
        ValueError: the settings were chosen for other networks than those that are there.
    """
    load = partial(checkpoints.load, folder=weights, device=device)
    found = selection.defenses(PLAN, load("cifar10-resnet"), weights, device, results)
    if "cifar10-adversarial" in checkpoints.names(weights):
        found[TRAINED] = load("cifar10-adversarial")
    return found


def made_on(results: Path = records.RESULTS) -> str:
    """Which of :data:`SETS` a folder's choice was made on; the original where there is none."""
    if PLAN.record not in records.names(results):
        return SETS[0]
    title = records.load(PLAN.record, results)["data"]["name"]
    return next(name for name in SETS if data.TITLES[name] == title)


def lineup(name: str = SETS[0], results: Path = records.RESULTS) -> Lineup:
    """What is compared on one of :data:`SETS`."""
    if name not in SETS:
        raise ValueError(f"data: expected {' or '.join(SETS)}, got {name!r}")
    return Lineup(
        what="images",
        load=partial(_test_images, name),
        build=partial(defenses, results=results),
        needs=("cifar10-resnet",),
        trained_by="cifar10",
        defenses=(*PLAN.kept(results), TRAINED),
        weak=WEAK,
        epsilons=(EPS,),
        gradients={"FGSM": 1, "R-FGSM": 1, "BIM": 7, "PGD": selection.PGD_STEPS}
        | {"authors' FGSM": 1, "authors' R-FGSM": 1, "authors' BIM": 7},
        told={
            "BIM": "7 steps of 2/255",
            "R-FGSM": "2/255 of ε at random; the authors' on top of ε",
            "authors'": "as their code attacks, then cut to [0, 1]",
            "PGD": f"{selection.PGD_STEPS} steps",
            CW: SEARCHES,
            "seed": 0,
        },
        about_data={"name": data.TITLES[name], "split": "test"},
        profiles=selection.with_chosen(PROFILES, PLAN, results, CHOSEN),
        records={"quick": "cifar10_quick", "full": "cifar10"},
        retrained=frozenset({TRAINED}),
    )


def _test_images(name: str, *, profile: str, root: Path | None) -> Split:
    return data.load("cifar10-20" if profile == "quick" else name, "test", root=root)


def run(
    name: str,
    root: Path | None,
    weights: Path,
    results: Path,
    work: Path,
    profile: str,
    only: list[str] | None = None,
) -> None:
    """Train and choose what is missing, and fill the record of a profile.

    With the shipped weights goes the shipped choice. The quick profile takes both as they are, and
    20 images.
    """
    selection.take_along(PLAN, weights, results)
    if profile != "quick":
        prepare(name, root, weights, results, work)
    where = {"root": root, "weights": weights, "results": results, "work": work}
    versus.compare(lineup(name, results), profile, only, **where)


def prepare(name: str, root: Path | None, weights: Path, results: Path, work: Path) -> None:
    """Train and choose what is missing."""
    there = checkpoints.names(weights)
    if set(WEIGHTS) <= set(there) and selection.chosen_of(PLAN, results):
        about = records.load(PLAN.record, results)["data"]["name"]
        if about != data.TITLES[name]:
            raise ValueError(f"{PLAN.record}.json was made with {about}; name other folders")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = data.load(name, "train", root=root, dtype=torch.uint8)
    train = Split(*(part.to(device) for part in train))
    held_out = data.load(name, "validation", root=root).take(CALIBRATED_ON)

    def trained(net: str) -> nn.Module:
        if net in checkpoints.names(weights):
            return checkpoints.load(net, weights, device=device)
        fit = partial(recipes.train, net, RECIPES[net], train, weights)
        return recipes.resumably(net, work, fit)

    classifier = trained("cifar10-resnet")
    where = {"weights": weights, "results": results, "work": work}
    named = {"about_data": {"name": data.TITLES[name]}}
    validation = Split(*(part.to(device) for part in held_out))
    Selection(PLAN, classifier, train, validation, **named, **where).run()
    trained("cifar10-adversarial")
