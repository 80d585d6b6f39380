"""How the networks of the recorded runs are trained, and stored with what made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from . import attacks, checkpoints, data, models, records, training
from .data import Split
from .tasks import Task, classification

Given = Callable[[nn.Module], Task]

# Of the classifier and the DAE of digits.
CLASSIFIER_TRAINING = {"epochs": 10, "batch_size": 128, "lr": 2e-3, "weight_decay": 1e-4, "seed": 0}
DAE_TRAINING = {"epochs": 15, "batch_size": 128, "lr": 3e-3, "weight_decay": 0.0, "seed": 0}


def _classification(classifier: nn.Module) -> Task:
    return classification


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        architecture: a key of :data:`apudae.models.MODELS`.
        task: given the classifier that is defended, what the network learns.
        options: of :func:`apudae.training.fit`.
        model: options of the architecture.
        warm_up: a task and options that come before.
    """

    architecture: str
    task: Given = _classification
    options: dict[str, Any] = field(default_factory=dict)
    model: dict[str, int] = field(default_factory=dict)
    warm_up: tuple[Given, dict[str, Any]] | None = None


def pgd_training(eps: float, steps: int, step_size: float) -> Given:
    """Adversarial training (Madry et al. 2018); with one step that of Wong et al. (2020)."""
    pgd = {"eps": eps, "steps": steps, "step_size": step_size, "early_stop": False}
    return lambda classifier: training.adversarial(attacks.pgd, **pgd)


def train(
    name: str,
    recipe: Recipe,
    images: Split,
    folder: str | Path,
    defended: str = "",
    *,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> nn.Module:
    """Train a network by its recipe, and save it.

    Args:
        name: of the weights.
        recipe: what to do.
        images: and labels, to train on: float32 in [0, 1] or uint8.
        folder: of the defended classifier's weights, and where the new ones go.
        defended: name of the classifier that the network is to defend, if it needs one.
        checkpoint: of :func:`apudae.training.fit`.
        progress: show a bar.
        changes: options that differ from the recipe's, such as ``epochs=1``.

    Returns:
        The network as it is stored, rounded to half precision.
    """
    device = images.images.device
    classifier = checkpoints.load(defended, folder, device=device) if defended else nn.Identity()
    net, options = models.build(recipe.architecture, **recipe.model).to(device), recipe.options
    if recipe.warm_up is not None:
        task, before = recipe.warm_up
        path = checkpoint and Path(checkpoint).with_suffix(".warm-up.pt")
        go_on = {"checkpoint": path, "progress": progress}
        training.fit(net, *images, task=task(classifier), **before | changes, **go_on)
    go_on = {"checkpoint": checkpoint, "progress": progress}
    training.fit(net, *images, task=recipe.task(classifier), **options | changes, **go_on)
    told = options | changes
    return store(name, recipe, net, images, folder, defended, training=told)


def store(
    name: str,
    recipe: Recipe,
    net: nn.Module,
    images: Split,
    folder: str | Path,
    defended: str = "",
    **about: Any,
) -> nn.Module:
    """Save a network with what made it, and return it as it is stored."""
    device = images.images.device
    if defended:
        about["classifier_sha256"] = checkpoints.about(defended, folder)["sha256"]
    about["data"] = {"n": len(images.images), "sha256": data.fingerprint(images.images)}
    about["made"] = records.provenance(device)
    how = {"architecture": recipe.architecture, "options": recipe.model}
    checkpoints.save(name, net, **how, about=about, folder=folder)
    return checkpoints.load(name, folder, device=device)


def resumably(name: str, work: Path, train: Callable[..., nn.Module]) -> nn.Module:
    """Run ``train(checkpoint=...)`` with a file that waits in a folder until it is done."""
    print(f"training {name}", flush=True)
    work.mkdir(parents=True, exist_ok=True)
    net = train(checkpoint=work / f"{name}.pt")
    for done in work.glob(f"{name}.pt"), work.glob(f"{name}.warm-up.pt"):
        for path in done:
            path.unlink()
    return net
