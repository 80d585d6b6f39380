"""A purifier that is trained through the classifier, on CIFAR-10, for a machine with a GPU.

``python -m apudae.experiments cifar10-purifier`` trains a REDNet of 10 layers against attacks on
REDNet and classifier, ε = 8/255, and asks the whole protocol at the reference budget once, on the
first 1,000 test images. Weights ``cifar10-purifier``, record ``cifar10_purifier_verdict``; both go
on where they were stopped. Nothing is chosen: the one recipe was fixed beforehand. On a CPU it
would take days.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from . import attacks, checkpoints, cifar, data, recipes, records, training
from .data import Split
from .evaluation import evaluate
from .plan import BUDGETS
from .purification import Defended, Direct
from .recipes import Recipe
from .report import Report

PURIFIER, DEFENDED = "cifar10-purifier", "cifar10-resnet"
VERDICT = "cifar10_purifier_verdict"
N = 1000  # test images
BUDGET = BUDGETS["reference"]
EPOCHS, DEPTH = 30, 10


def recipe() -> Recipe:
    """7 steps of PGD through purifier and classifier, ε growing over the first third."""
    task = partial(
        training.purifying,
        attack=attacks.pgd,
        eps=cifar.EPS,
        warm_up=0.3,
        steps=7,
        relative_step=0.25,
        early_stop=False,
    )
    options = {"batch_size": 128, "lr": 1e-3, "augment": True, "epochs": EPOCHS, "ema": 0.998}
    return Recipe("rednet", task, options | {"seed": 0}, {"depth": DEPTH})


def is_judged(results: Path = records.RESULTS) -> bool:
    """Whether the verdict's record is complete."""
    return VERDICT in records.names(results) and records.load(VERDICT, results)["complete"]


def run(source: str, root: Path | None, weights: Path, results: Path, work: Path) -> None:
    """Train it if it is missing, and ask for the verdict.

    Args:
        source: one of :data:`apudae.cifar.SETS`.
        root: folder of the data.
        weights: folder of the networks; the classifier lies there.
        results: folder of the record.
        work: where what was stopped waits.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if PURIFIER not in checkpoints.names(weights):
        train = data.load(source, "train", root=root, dtype=torch.uint8)
        train = Split(*(part.to(device) for part in train))
        fit = partial(recipes.train, PURIFIER, recipe(), train, weights, DEFENDED)
        recipes.resumably(PURIFIER, work, fit)
    print(verdict(source, root, weights, results).summary(), flush=True)


def verdict(source: str, root: Path | None, weights: Path, results: Path) -> Report:
    """The whole protocol on the first test images; goes on where it was stopped."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = partial(checkpoints.load, folder=weights, device=device)
    x, y = (part.to(device) for part in data.load(source, "test", root=root).take(N))
    return evaluate(
        Defended(load(DEFENDED), Direct(load(PURIFIER))).eval(),
        x,
        y,
        eps=cifar.EPS,
        budget=BUDGET,
        title=f"purifier, {data.TITLES[source]}",
        record=results / VERDICT,
    )
