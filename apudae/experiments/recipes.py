"""How networks are trained for the recorded studies, and stored with what made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import attacks, data, models, training
from ..attacks.gradient import corner_pgd
from ..core import record, scores
from ..core.files import locked, sha256_of, sweep
from ..core.prints import data_print
from ..core.processes import barrier, rank, together
from .place import Options, Place

# The classifier that is defended -> what a network learns.
Given = Callable[[nn.Module], training.Task]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        architecture: a key of :data:`apudae.models.MODELS`.
        task: given the classifier that is defended, what the network learns.
        options: of :func:`apudae.training.fit`.
        model: options of the architecture.
        warm_up: whose task and options come before.
        defended: name of the classifier that the network is to defend, if it needs one.
        fit: what trains it: called with network, images, labels and ``task``, ``checkpoint``,
            ``progress`` and the options.
    """

    architecture: str
    task: Given = lambda classifier: training.classification
    options: Options = field(default_factory=dict)
    model: dict[str, int] = field(default_factory=dict)
    warm_up: Recipe | None = None
    defended: str = ""
    fit: Callable[..., object] = training.fit


def fit_gan(
    net: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    task: training.Task,
    progress: bool,
    **options: Any,
) -> None:
    """Train a generator beside a critic that is not kept.

    Args:
        net: the generator.
        images: float32 in [0, 1], or uint8.
        labels: not used.
        task: not used.
        progress: tell the distance now and then.
        options: of :func:`apudae.training.train_gan`.
    """

    def say(step: int, distance: float) -> None:
        if progress and step % 500 == 0:
            print(f"step {step}: distance {distance:.2f}", flush=True)

    real = images.float() / 255 if images.dtype == torch.uint8 else images
    critic = models.build("mnist-critic").to(images.device)
    training.train_gan(net, critic, real, progress=say, **options)


def fit_reader(
    net: models.CertifiedDAE, images: torch.Tensor, labels: torch.Tensor, **options: Any
) -> None:
    """Train the classifier inside a purifier that is made for proofs; options of ``fit``."""
    training.fit(net.reader, images, labels, **options)


def fit_drawing(
    net: models.CertifiedDAE, images: torch.Tensor, labels: torch.Tensor, **options: Any
) -> None:
    """Train what draws from it, and leave it as it is; options of ``fit``."""
    net.reader.requires_grad_(False)
    training.fit(net, images, labels, **options)


def denoising(sigma: float) -> Given:
    """Plain denoising at one noise level."""
    return lambda classifier: training.denoising(sigma)


def pgd_training(eps: float, steps: int, step_size: float) -> Given:
    """Adversarial training (Madry et al. 2018); with one step that of Wong et al. (2020)."""
    return lambda classifier: training.adversarial(
        attacks.pgd, eps=eps, steps=steps, step_size=step_size, early_stop=False
    )


def both_ways(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int = 0, **options: Any
) -> torch.Tensor:
    """PGD from corners, for half of the images with a gradient that passes thresholds.

    Both halves begin at the same draws.
    """
    views, half = (model, attacks.StraightThrough(model, clamps=True)), len(x) // 2
    parts = zip(views, x.tensor_split([half]), y.tensor_split([half]), strict=True)
    attack = partial(corner_pgd, seed=seed, **options)
    return torch.cat([attack(*part) for part in parts if len(part[1])])


def through(eps: float, attack: Callable[..., torch.Tensor] = attacks.pgd, **options: Any) -> Given:
    """A purifier trained through the classifier: 7 steps of PGD on both, ε growing at first."""
    pgd = {"warm_up": 0.3, "steps": 7, "relative_step": 0.25, "early_stop": False} | options
    return lambda classifier: training.purifying(classifier, attack, eps=eps, **pgd)


def train(
    name: str,
    recipe: Recipe,
    images: data.Split,
    place: Place,
    *,
    folder: Path | None = None,
    test: Callable[[Place], data.Split] | None = None,
    progress: bool = True,
    **changes: Any,
) -> nn.Module:
    """Train a network by its recipe, and save it; a run that was cut off is gone on with.

    Args:
        name: of the weights.
        recipe: what to do.
        images: and labels, to train on: float32 in [0, 1] or uint8, on the device.
        place: of the defended classifier, of unfinished work, and of the new weights.
        folder: of the new weights, if another.
        test: loads images on which a classifier is measured as it is stored.
        progress: show a bar.
        changes: options that differ from the recipe's, such as ``epochs=1``.

    Returns:
        The network as it is stored, rounded to half precision.
    """
    print(f"training {name}", flush=True)
    folder = folder or place.weights
    place.work.mkdir(parents=True, exist_ok=True)
    net = models.build(recipe.architecture, **recipe.model).to(place.device)
    classifier = place.model(recipe.defended) if recipe.defended else nn.Identity()
    before, last = _states(name, place)
    stages = {last: recipe}
    if recipe.warm_up is not None and not last.is_file():
        stages = {before: recipe.warm_up} | stages
    for path, stage in stages.items():
        options = stage.options | changes | {"checkpoint": path, "progress": progress}
        task = stage.task(classifier)
        stage.fit(net, *images, task=task, **options)
    about = {
        "training": recipe.options | changes,
        "task": getattr(task, "name", getattr(task, "__name__", "own")),
        "made": record.provenance(place.device),
        "data": data_print(*images),
    }
    if recipe.warm_up is not None:
        about["warm_up"] = recipe.warm_up.options | changes
    if recipe.defended:
        about["classifier_sha256"] = place.sha256(recipe.defended)
    if last.is_file():  # whoever finds it beside these weights knows that it is done with
        about["state_sha256"] = sha256_of(last)
    how = {"architecture": recipe.architecture, "options": recipe.model}
    if test is not None:
        rounded = models.build(recipe.architecture, **recipe.model)  # as it will be stored
        parts = net.state_dict().items()
        rounded.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in parts})
        rounded = rounded.eval().requires_grad_(False).to(place.device)
        found = scores.accuracy(rounded, *test(place))
        about["measured"] = {"split": "test", "n": found.n, "correct": found.correct}
        print(name, found, flush=True)
    if rank() == 0:
        models.save(name, net, about=about, folder=folder, **how)
        _clear(name, folder, place)
    barrier()
    return models.load(name, folder, device=place.device)


def _states(name: str, place: Place) -> tuple[Path, Path]:
    """Files of a training that is under way: of its warm-up, and of itself."""
    return place.work / f"{name}.warm-up.pt", place.work / f"{name}.pt"


def _clear(name: str, folder: Path, place: Place) -> None:
    """Remove what a training has left whose weights are stored; another one's stays."""
    before, last = _states(name, place)
    done = models.about(name, folder).get("state_sha256")
    if last.is_file() and sha256_of(last) == done:
        before.unlink(missing_ok=True)  # the last one last: it says whose they are
        last.unlink(missing_ok=True)


def train_missing(
    recipes: Mapping[str, Recipe], images: Callable[[], data.Split], place: Place, **options: Any
) -> None:
    """Train, in their order, the networks whose weights are not there.

    One that another process trains is waited for.

    Args:
        recipes: by the name of the weights.
        images: loads what is trained on; called only if something is missing.
        place: see :func:`train`.
        options: of :func:`train`.
    """
    split = None
    for name, recipe in recipes.items():
        with alone(name, place.weights, place):
            if not together(partial(place.has, name), first=True):
                split = split or images()
                train(name, recipe, split, place, **options)


def tried(name: str, recipe: Recipe, images: Callable[[], data.Split], place: Place) -> nn.Module:
    """A network that is only tried: its weights stay where unfinished work waits."""
    with alone(name, place.tried, place):
        if together(lambda: name in models.names(place.tried), first=True):
            return models.load(name, place.tried, device=place.device)
        return train(name, recipe, images(), place, folder=place.tried)


@contextmanager
def alone(name: str, folder: Path, place: Place) -> Iterator[None]:
    """Wait until nobody else trains these weights; what is left of a finished training goes."""
    if rank():  # the first of several processes waits, and clears, for all
        yield
        return
    sweep(folder)
    if name in models.names(folder):
        _clear(name, folder, place)
        yield
        return
    with locked(folder / name, wait=-1):
        yield


def keep(tried_name: str, name: str, place: Place) -> None:
    """Put a network that was tried among the weights, under its own name."""
    copy(tried_name, place.tried, place.weights, name)


def copy(name: str, folder: Path, other: Path, new_name: str = "") -> None:
    """Put a network into another folder of weights, with all that is known of it."""
    about, net = models.about(name, folder), models.load(name, folder)
    how = {k: about[k] for k in ("architecture", "options")}
    if rank() == 0:
        models.save(new_name or name, net, about=about, folder=other, **how)
    barrier()


# Digits. The purifier's recipe depends on what is chosen: see `digit_choices`.
CLASSIFIER_TRAINING = {"epochs": 10, "batch_size": 128, "lr": 2e-3, "weight_decay": 1e-4, "seed": 0}
DAE_TRAINING = {"epochs": 15, "batch_size": 128, "lr": 3e-3, "weight_decay": 0.0, "seed": 0}


def digits_dae(sigma: float, **model: int) -> Recipe:
    """Plain denoising of digits at one noise level."""
    return Recipe("mnist-dae", denoising(sigma), DAE_TRAINING, model)


def for_digits(architecture: str, task: Given, epochs: int, lr: float, **more: Any) -> Recipe:
    """A network of a published defense, for the classifier of digits."""
    options = {"batch_size": 128, "lr": lr, "epochs": epochs, "seed": 0} | more
    return Recipe(architecture, task, options, defended="mnist-cnn")


DIGITS = {"mnist-cnn": Recipe("mnist-cnn", options=CLASSIFIER_TRAINING)}
# Networks of the published defenses, the quick first.
PUBLISHED = {
    "mnist-magnet": for_digits("mnist-magnet", denoising(0.1), 30, 3e-3),
    "mnist-vae": for_digits(
        "mnist-vae",
        lambda classifier: training.from_attacked(classifier, attacks.pgd, eps=0.3, steps=3),
        *(10, 2e-3),
    ),
    "mnist-generator": Recipe(
        "mnist-generator",
        options={"steps": 4000, "batch_size": 64, "lr": 2e-4, "seed": 0},
        defended="mnist-cnn",
        fit=fit_gan,
    ),
    "mnist-soap": for_digits("mnist-soap", lambda classifier: training.joint(), 20, 2e-3),
    "mnist-diffusion": for_digits(
        "mnist-diffusion", lambda classifier: training.noise_prediction, 20, 2e-3, ema=0.999
    ),
    # Against five steps it does not begin to learn; against one (Wong et al. 2020) it does, and
    # unlearns it again if that goes on for long.
    "mnist-adversarial": replace(
        for_digits("mnist-cnn", pgd_training(0.3, 5, 0.1), 12, 3e-3),
        model={"width": 16},
        warm_up=for_digits("mnist-cnn", pgd_training(0.3, 1, 0.375), 3, 5e-3),
    ),
}
# A purifier that is made for proofs: first what reads, on bounds, then what draws.
CERTIFIED_EPS = 0.3
CERTIFIED = {
    "mnist-certified": Recipe(
        "mnist-certified",
        lambda classifier: training.certifying(classifier, eps=CERTIFIED_EPS, weight=20, clean=1),
        {"epochs": 6, "batch_size": 128, "lr": 2e-3, "seed": 0},
        {"width": 32, "hidden": 256, "cut": 30},
        Recipe(
            "mnist-certified",
            lambda classifier: training.certifying(eps=CERTIFIED_EPS, clean=0, ramp=(0.01, 0.55)),
            {"epochs": 60, "batch_size": 128, "lr": 1e-3, "seed": 0},
            fit=fit_reader,
        ),
        defended="mnist-cnn",
        fit=fit_drawing,
    )
}
# Classifiers that no purifier was trained with: narrower and from another seed; not convolutional
# at all.
OTHERS = {
    "mnist-small": replace(
        Recipe("mnist-cnn", options=CLASSIFIER_TRAINING | {"seed": 1}), model={"width": 12}
    ),
    "mnist-mlp": Recipe("mnist-mlp", options=CLASSIFIER_TRAINING | {"seed": 2}),
}

# Colours. A DAE for photographs is half as wide: it has fifty times the pixels.
COLOUR_EPS = 8 / 255
_SGD = {
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "augment": True,
    "ema": 0.998,
    "seed": 0,
    "epochs": 15,
    "batch_size": 256,
    "lr": 0.15,
}
_REDNET = {"batch_size": 128, "lr": 1e-3, "augment": True, "seed": 0}


def rednet(sigma: float, depth: int, epochs: int, *, batch_size: int = 128, **model: int) -> Recipe:
    """A REDNet for one noise level."""
    options = _REDNET | {"epochs": epochs, "batch_size": batch_size}
    return Recipe("rednet", denoising(sigma), options, {"depth": depth, **model})


CIFAR10 = {"cifar10-resnet": Recipe("cifar10-resnet", options=_SGD, model={"width": 48})}
CIFAR10_TRAINED = {
    "cifar10-adversarial": Recipe(
        "cifar10-resnet",
        pgd_training(COLOUR_EPS, 1, 10 / 255),  # from a random point (Wong et al. 2020)
        _SGD | {"epochs": 10},
        {"width": 32},
    )
}
CIFAR10_PURIFIER = {
    "cifar10-purifier": Recipe(
        "rednet",
        through(COLOUR_EPS),
        _REDNET | {"epochs": 30, "ema": 0.998},
        {"depth": 10},
        defended="cifar10-resnet",
    )
}
