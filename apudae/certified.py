"""The recorded certificates: ``python -m apudae.experiments mnist-certified``.

Denoised smoothing (Salman et al. 2020) on the first official test digits, at three noise levels,
each with a DAE that was trained on that noise, and for comparison without one. Beside it stands
what an attacker in L2 reaches on the smoothed classifier: certified accuracy bounds the truth from
below, attacked accuracy from above. Record ``mnist_certified``; it goes on where it was stopped.
``cifar10-certified`` asks the same on CIFAR-10, of a REDNet; on a CPU that takes days.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import attacks, checkpoints, data, recipes, records, training
from .certification import Certificates, Smoothed, certify, votes
from .checks import AttackWarning
from .data import Split
from .evaluation import model_fingerprint
from .lineup import key
from .purification import Defended, Direct
from .recipes import DAE_TRAINING, Recipe
from .whitebox import EOT

SIGMAS = (0.25, 0.5, 1.0)
KINDS = ("denoised", "bare")
N, DRAWS, CHOOSING, ALPHA = 500, 10_000, 100, 0.001
# The attack on the smoothed classifier: PGD in L2 on the mean probability of some draws, judged by
# a vote of fresh ones. Radii are multiples of σ.
ATTACKED, RADII = 100, (0.5, 1.0, 1.5, 2.0)
STEPS, PER_GRADIENT, JUDGES = 50, 16, 1000


def recipe(sigma: float) -> Recipe:
    """How a DAE for digits is trained: plain denoising, at this noise level alone; half as wide."""
    return Recipe(
        "mnist-dae", lambda _: training.denoising(sigma), DAE_TRAINING, model={"width": 16}
    )


def _rednet(sigma: float) -> Recipe:
    """The same for colour images: as the one of the comparison, trained for longer."""
    options = {"batch_size": 128, "lr": 1e-3, "augment": True, "epochs": 30, "seed": 0}
    return Recipe("rednet", lambda _: training.denoising(sigma), options, {"depth": 10})


@dataclass(frozen=True)
class Subject:
    """What is certified.

    Attributes:
        name: of the data; record and weights are named after it.
        what: its images are.
        classifier: name of its weights; it stays as it is.
        recipe: noise level -> how its DAE is trained.
        options: of :func:`apudae.data.load`, besides name, split and root.
    """

    name: str
    what: str
    classifier: str
    recipe: Callable[[float], Recipe]
    options: dict[str, str]

    @property
    def record(self) -> str:
        """Name of the record."""
        return f"{self.name}_certified"

    def weights_name(self, sigma: float) -> str:
        """Of the DAE for a noise level."""
        return f"{self.name}-smoothing-{sigma:g}"


MNIST = Subject("mnist", "digits", "mnist-cnn", recipe, {"profile": "full"})
CIFAR10 = Subject("cifar10", "images", "cifar10-resnet", _rednet, {})
RECORD = MNIST.record


def base(
    kind: str,
    sigma: float,
    weights: Path,
    device: torch.device | str = "cpu",
    subject: Subject = MNIST,
) -> nn.Module:
    """What is smoothed, one of :data:`KINDS`: the classifier, with the DAE before it or not."""
    load = partial(checkpoints.load, folder=weights, device=device)
    classifier = load(subject.classifier)
    if kind == "bare":
        return classifier
    return Defended(classifier, Direct(load(subject.weights_name(sigma))))


def certificates(record: dict[str, Any], kind: str, sigma: float) -> Certificates:
    """Those of the record."""
    row, options = record["rows"][key(kind, "certified", sigma)], record["options"]
    predictions, kept = (torch.tensor(row[part]) for part in ("predictions", "votes"))
    return Certificates(predictions, kept, sigma, options["n"], options["alpha"])


def labels(record: dict[str, Any]) -> Tensor:
    """Of the certified digits, int64 ``[N]``."""
    return torch.tensor([int(digit) for digit in record["labels"]])


def attacked(record: dict[str, Any], sigma: float, radius: float) -> Tensor:
    """Which of the first digits are still read rightly by the smoothed one: bool ``[n]``."""
    row = record["rows"][key("denoised", _attack_name(radius), sigma)]
    return records.unpack(row["outcomes"], row["n"])


def run(
    root: Path | None,
    weights: Path,
    results: Path,
    work: Path,
    subject: Subject = MNIST,
    source: str = "mnist",
) -> None:
    """Train the DAEs that are missing, certify, attack; each row is stored when it is done.

    Args:
        root: folder of the data.
        weights: folder of the networks.
        results: folder of the record.
        work: where what was stopped waits.
        subject: what is certified.
        source: name of its data in :func:`apudae.data.load`.

    Raises:
        ValueError: the record was made with other settings; each is named.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = partial(data.load, source, root=root, **subject.options)
    _train_missing(subject, load, weights, work, device)
    test = load("test").take(N)
    x, y = (part.to(device) for part in test)
    options = {"n": DRAWS, "n0": CHOOSING, "alpha": ALPHA}
    about = {
        "what": f"votes under Gaussian noise for the first official test {subject.what}, and which "
        "of them the smoothed classifier still reads rightly under an attack in L2",
        "options": options,
        "attack": {"name": "pgd", "norm": "l2", "steps": STEPS, "draws": PER_GRADIENT}
        | {"judges": JUDGES, "seed": 0},
        "data": _told(source) | {"split": "test", "n": len(x), "sha256": data.fingerprint(x)},
        "labels": "".join(map(str, y.tolist())),
        "models_sha256": {
            f"{kind}, {sigma:g}": model_fingerprint(base(kind, sigma, weights, subject=subject))
            for sigma in SIGMAS
            for kind in KINDS
        },
    }
    rows = _stored(subject.record, about, results)
    for kind, what, sigma, radius in _wanted():
        text = key(kind, what, sigma)
        if text in rows:
            continue
        model, start = base(kind, sigma, weights, device, subject), time.perf_counter()
        if radius:
            row = _attack(model, x[:ATTACKED], y[:ATTACKED], sigma, radius)
        else:
            path = work / f"{subject.record}_{kind}_{sigma:g}.json"
            row = _certify(model, x, path, sigma=sigma, **options)
        rows[text] = row | {"seconds": round(time.perf_counter() - start, 1)}
        records.save(subject.record, about | {"rows": rows}, device=device, folder=results)
        print(f"{text}: {rows[text]['seconds']:.0f} s", flush=True)


def missing(results: Path = records.RESULTS, subject: Subject = MNIST) -> list[str]:
    """Keys of the rows that the record does not have yet."""
    name = subject.record
    there = records.load(name, results)["rows"] if name in records.names(results) else {}
    return [text for row in _wanted() if (text := key(*row[:3])) not in there]


def _wanted() -> list[tuple[str, str, float, float]]:
    """Kind, what is done, σ and the attack's radius (0 for a certificate) of all rows."""
    found = [("denoised", "certified", sigma, 0.0) for sigma in SIGMAS]
    found += [("denoised", _attack_name(r), sigma, r) for sigma in SIGMAS for r in RADII]
    return found + [("bare", "certified", sigma, 0.0) for sigma in SIGMAS]


def _attack_name(radius: float) -> str:
    return f"attacked, {radius:g} σ"


def _certify(model: nn.Module, x: Tensor, path: Path, **options: Any) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)  # without a denoiser: that is the question
        found = certify(model, x, record=path, **options)
    path.unlink()
    return {"predictions": found.predictions.tolist(), "votes": found.votes.tolist()}


def _attack(model: nn.Module, x: Tensor, y: Tensor, sigma: float, radius: float) -> dict[str, Any]:
    """PGD on the stand-in; then a vote of fresh draws, which the attack has not seen."""
    view = EOT(Smoothed(model, sigma, draws=PER_GRADIENT), 1)
    ball = {"eps": radius * sigma, "norm": "l2", "steps": STEPS, "early_stop": False}
    hit = attacks.pgd(view, x, y, **ball, batch_size=50)
    with torch.no_grad():
        read = [
            votes(model, image, k, sigma, (JUDGES,), seed=1)[0].argmax()
            for k, image in enumerate(hit)
        ]
    return {"n": len(x), "outcomes": records.pack(torch.stack(read) == y.cpu())}


def _told(source: str) -> dict[str, str]:
    """Which data, where the record's name leaves it open."""
    return {} if source == MNIST.name else {"name": data.TITLES[source]}


def _train_missing(
    subject: Subject, load: Callable[..., Split], weights: Path, work: Path, device: torch.device
) -> None:
    there = checkpoints.names(weights)
    missing = [s for s in SIGMAS if subject.weights_name(s) not in there]
    if not missing:
        return
    train = Split(*(part.to(device) for part in load("train", dtype=torch.uint8)))
    for sigma in missing:
        name = subject.weights_name(sigma)
        fit = partial(recipes.train, name, subject.recipe(sigma), train, weights)
        recipes.resumably(name, work, fit)


def _stored(name: str, about: dict[str, Any], results: Path) -> dict[str, Any]:
    """Rows that are there."""
    if name not in records.names(results):
        return {}
    old = records.load(name, results)
    differ = [k for k, v in about.items() if old.get(k) != v]
    if differ:
        raise ValueError(
            f"{results / name}.json was made with another {', '.join(differ)}; move it or name "
            "another folder"
        )
    return old["rows"]
