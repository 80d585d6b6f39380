"""The published defenses that the book compares with: how each is trained, and put together.

What a defense does stands in its own module: :mod:`apudae.transforms`, :mod:`apudae.projection`,
:mod:`apudae.soap`, :mod:`apudae.diffusion`. Here each gets its name, its source, its training and
the settings it is compared at::

    defended = baselines.build("jpeg", classifier)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import attacks, checkpoints, data, diffusion, models, projection, recipes, soap, training
from .data import Split
from .purification import Defended, Direct
from .recipes import Recipe
from .transforms import JPEG, BitDepth, Median, ResizePad

Parts = dict[str, nn.Module]


RECIPES: dict[str, Recipe] = {
    # Against five steps it does not begin to learn; against one (Wong et al. 2020) it does, and
    # unlearns it again if that goes on for long.
    "mnist-adversarial": Recipe(
        "mnist-cnn",
        recipes.pgd_training(0.3, 5, 0.1),
        {"epochs": 12, "batch_size": 128, "lr": 3e-3, "seed": 0},
        {"width": 16},
        (
            recipes.pgd_training(0.3, 1, 0.375),
            {"epochs": 3, "batch_size": 128, "lr": 5e-3, "seed": 0},
        ),
    ),
    "mnist-magnet": Recipe(
        "mnist-magnet",
        lambda classifier: training.denoising(0.1),
        {"epochs": 30, "batch_size": 128, "lr": 3e-3, "seed": 0},
    ),
    "mnist-vae": Recipe(
        "mnist-vae",
        lambda classifier: projection.from_attacked(classifier, attacks.pgd, eps=0.3, steps=3),
        {"epochs": 10, "batch_size": 128, "lr": 2e-3, "seed": 0},
    ),
    "mnist-soap": Recipe(
        "mnist-soap",
        lambda classifier: soap.joint(),
        {"epochs": 20, "batch_size": 128, "lr": 2e-3, "seed": 0},
    ),
    "mnist-diffusion": Recipe(
        "mnist-diffusion",
        lambda classifier: diffusion.noise_prediction,
        {"epochs": 20, "batch_size": 128, "lr": 2e-3, "ema": 0.999, "seed": 0},
    ),
}
GAN = {"steps": 4000, "batch_size": 64, "lr": 2e-4, "seed": 0}  # of the generator


@dataclass(frozen=True)
class Baseline:
    """A published defense.

    Attributes:
        made_for: a weak attack that its paper stops, and ε (0 for C&W).
        source: key of the bibliography.
        what: in a few words.
        make: from the networks it needs and its options, the whole defense, images -> logits.
        options: chosen on validation digits by :mod:`apudae.tuning`, or the paper's.
        weights: names of those networks; ``"classifier"`` is the one that is defended.
        retrains: whether the classifier is another one than the defended.
    """

    made_for: tuple[str, float]
    source: str
    what: str
    make: Callable[..., nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ("classifier",)
    retrains: bool = False


def _before(purifier: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda parts, **options: Defended(parts["classifier"], purifier(parts, **options))


BASELINES: dict[str, Baseline] = {
    "bit depth": Baseline(
        ("FGSM", 0.3),
        "xu2018",
        "rounds every pixel to black or white",
        _before(lambda p, **options: BitDepth(**options)),
        {"bits": 1},
    ),
    "median": Baseline(
        ("C&W", 0.0),
        "xu2018",
        "median of neighbouring pixels",
        _before(lambda p, **options: Median(**options)),
        {"size": 2},
    ),
    "jpeg": Baseline(
        ("C&W", 0.0),
        "guo2018",
        "lossy compression",
        _before(lambda p, **options: JPEG(**options)),
        {"quality": 10},
    ),
    "resize and pad": Baseline(
        ("C&W", 0.0),
        "xie2018",
        "shrinks at random, and moves",
        _before(lambda p, **options: ResizePad(**options)),
        {"smallest": 0.8},
    ),
    "magnet": Baseline(
        ("C&W", 0.0),
        "meng2017",
        "autoencoder trained on slight noise",
        _before(lambda p: Direct(p["mnist-magnet"])),
        weights=("classifier", "mnist-magnet"),
    ),
    "defense-vae": Baseline(
        ("FGSM", 0.3),
        "li2019",
        "variational autoencoder trained on attacked images",
        _before(lambda p: Direct(p["mnist-vae"])),
        weights=("classifier", "mnist-vae"),
    ),
    "defense-gan": Baseline(
        ("FGSM", 0.3),
        "samangouei2018",
        "nearest image that a generator can draw",
        _before(lambda p, **options: projection.DefenseGAN(p["mnist-generator"], **options)),
        {"starts": 1, "steps": 60, "step_size": 30.0},
        ("classifier", "mnist-generator"),
    ),
    "soap": Baseline(
        ("PGD", 0.3),
        "shi2021",
        "sign steps on the error of a decoder that shares the classifier's encoder",
        lambda p: Defended(p["mnist-soap"], soap.Soap(p["mnist-soap"])),
        weights=("mnist-soap",),
        retrains=True,
    ),
    "diffpure": Baseline(
        ("PGD", 0.3),
        "nie2022",
        "noise, and a diffusion model takes it off",
        _before(lambda p, **options: diffusion.DiffPure(p["mnist-diffusion"], **options)),
        {"level": 0.2, "steps": 5},
        ("classifier", "mnist-diffusion"),
    ),
    "adversarial training": Baseline(
        ("PGD", 0.3),
        "madry2018",
        "classifier trained on attacked images",
        lambda p: p["mnist-adversarial"],
        weights=("mnist-adversarial",),
        retrains=True,
    ),
}


def build(
    name: str,
    classifier: nn.Module,
    folder: str | Path = checkpoints.WEIGHTS,
    **changes: Any,
) -> nn.Module:
    """A baseline, images -> logits, around a classifier and with trained weights.

    Args:
        name: a key of :data:`BASELINES`.
        classifier: that is defended; baselines that retrain it have their own.
        folder: of the weights.
        changes: options other than the baseline's own, such as ``quality=50`` of ``"jpeg"``.

    Raises:
        ValueError: an unknown name (the known ones are listed), or weights that are not there.
    """
    if name not in BASELINES:
        raise ValueError(f"name: expected one of {', '.join(BASELINES)}, got {name!r}")
    device = next(classifier.parameters()).device
    parts: Parts = {"classifier": classifier}
    for part in BASELINES[name].weights:
        if part != "classifier":
            parts[part] = checkpoints.load(part, folder, device=device)
    return BASELINES[name].make(parts, **BASELINES[name].options | changes).eval()


def is_trained(name: str, folder: str | Path = checkpoints.WEIGHTS) -> bool:
    """Whether all weights of a baseline are there."""
    return set(BASELINES[name].weights) - {"classifier"} <= set(checkpoints.names(folder))


def needed() -> list[str]:
    """Names of all weights that the baselines need."""
    names = dict.fromkeys(part for base in BASELINES.values() for part in base.weights)
    return [name for name in names if name != "classifier"]


def train(
    name: str,
    images: Split,
    folder: str | Path = checkpoints.WEIGHTS,
    *,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> nn.Module:
    """Train one of the baselines' networks, for the classifier ``mnist-cnn``, and save it.

    Args:
        name: of the weights, one of :func:`needed`.
        images: and labels, to train on.
        folder: of the classifier's weights, and where the new ones go.
        checkpoint: of :func:`apudae.training.fit` or :func:`~apudae.projection.train_gan`.
        progress: show a bar.
        changes: options that differ from the recipe's, such as ``epochs=1``.

    Returns:
        The network as it is stored, rounded to half precision.
    """
    defended, more = "mnist-cnn", {"checkpoint": checkpoint, "progress": progress}
    if name in RECIPES:
        return recipes.train(name, RECIPES[name], images, folder, defended, **more, **changes)
    if name != "mnist-generator":
        raise ValueError(f"name: expected one of {', '.join(needed())}, got {name!r}")
    device, options = images.images.device, GAN | changes
    net, critic = (models.build(part).to(device) for part in (name, "mnist-critic"))
    more["progress"] = _says if progress else None
    projection.train_gan(net, critic, images.images, **options, **more)
    return recipes.store(name, Recipe(name), net, images, folder, defended, training=options)


def _says(step: int, distance: float) -> None:
    if step % 500 == 0:
        print(f"step {step}: distance {distance:.2f}", flush=True)


def train_missing(root: Path | None, folder: Path, work: Path) -> None:
    """Train on the full MNIST what a folder of weights lacks, the quick first.

    Args:
        root: of the data.
        folder: of the weights.
        work: where unfinished trainings wait to be gone on with.
    """
    missing = [name for name in needed() if name not in checkpoints.names(folder)]
    if not missing:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = data.load("mnist", "train", profile="full", root=root)
    images = Split(*(part.to(device) for part in images))
    for name in missing:
        recipes.resumably(name, work, partial(train, name, images, folder))
