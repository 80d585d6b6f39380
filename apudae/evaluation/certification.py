"""Guarantees by randomised smoothing, with or without a denoiser before the classifier.

The *smoothed* classifier reads an image as what the base model reads most often under Gaussian
noise of standard deviation σ. Its answer cannot change within an L2 radius that follows from how
often the answer comes (Cohen et al. 2019, theorem 1)::

    base = Defended(classifier, Direct(dae))     # denoised smoothing (Salman et al. 2020)
    found = certify(base, x, sigma=0.5)
    found.accuracy(y, radius=1.0)

What is certified is the smoothed classifier, never the base model, and it holds up to chance: with
probability of at most ``alpha`` per image the radius is too large or the answer wrong.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from scipy.special import ndtri
from torch import Tensor, nn

from ..attacks.objective import keys_of
from ..core.arguments import (
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_number,
    check_writable,
    checked,
    require,
    warn,
)
from ..core.calling import (
    ask,
    bounded,
    evaluating,
    is_random,
    logits_of,
    looks_at_the_batch,
    takes_keys,
    unwrapped,
)
from ..core.files import fingerprint, held, model_fingerprint
from ..core.norms import keyed
from ..core.prints import exact, identity
from ..core.record import Record, whole_numbers
from ..core.scores import Accuracy
from ..purification.purifier import Defended

ABSTAINED = -1
BLOCK = 100  # draws with one key; batches are made of whole blocks


@dataclass(frozen=True)
class Certificates:
    """What was certified of some images.

    Attributes:
        predictions: of the smoothed classifier, int64 ``[N]``; :data:`ABSTAINED` where it abstains.
        votes: how many of ``n`` draws were read as the first draws said, int64 ``[N]``.
        sigma: of the noise, in pixel units.
        n: draws per image.
        alpha: the probability per image that a certificate is wrong.
    """

    predictions: Tensor
    votes: Tensor
    sigma: float
    n: int
    alpha: float

    @cached_property
    def radii(self) -> Tensor:
        """L2 radii in pixel units, float64 ``[N]``; NaN where the classifier abstains."""
        counts, place = self.votes.unique(return_inverse=True)
        bounds = [lower_bound(k, self.n, self.alpha) for k in counts.tolist()]
        radii = self.sigma * ndtri(bounds)[place.numpy()]
        return torch.as_tensor(radii).where(self.predictions != ABSTAINED, math.nan)

    def radius(self, place: int) -> float:
        """Of one image.

        Raises:
            ValueError: the classifier abstained, so that there is none.
        """
        if self.predictions[place] == ABSTAINED:
            raise ValueError(
                f"image {place}: the smoothed classifier abstains, so there is no radius; "
                f"{int(self.votes[place])} of {self.n} draws agree, too few to tell"
            )
        return self.radii[place].item()

    def certified(self, y: Tensor, radius: float = 0.0) -> Tensor:
        """Which images are read rightly, and certified up to a radius: bool ``[N]``."""
        check_labels(y, len(self.predictions))
        check_number(radius, "radius")
        return (self.predictions == y.cpu()) & (self.radii >= radius)

    def accuracy(self, y: Tensor, radius: float = 0.0) -> Accuracy:
        """The share of images that are read rightly and certified up to a radius."""
        return Accuracy.of(self.certified(y, radius))


@checked
def lower_bound(votes: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's lower bound for a probability, one-sided, at confidence 1 − α."""
    from scipy.stats import binomtest  # takes longer to import than the rest of this room

    check_count(n, "n")
    check_count(votes, "votes", minimum=0, maximum=n)
    check_number(alpha, "alpha", exclusive=True, below=1)
    test = binomtest(votes, n, alternative="greater")
    return float(test.proportion_ci(confidence_level=1 - alpha, method="exact").low)


@checked
@torch.no_grad()
def certify(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float,
    n: int = 10_000,
    n0: int = 100,
    alpha: float = 0.001,
    noise_trained: bool = False,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int = 1000,
    record: str | Path | None = None,
) -> Certificates:
    """The procedure CERTIFY (Cohen et al. 2019, §3.2.2) on each image.

    The first ``n0`` draws say which class; ``n`` fresh ones how probable it is at least. If that is
    not above one half the classifier abstains, else the radius is σ · Φ⁻¹ of it.

    Args:
        model: images -> logits. It is fed noisy images whose values leave [0, 1].
        x: images ``[N, C, H, W]`` in [0, 1].
        sigma: standard deviation of the noise, in pixel units.
        n: draws that count.
        n0: draws that choose the class.
        alpha: the probability per image that a certificate is wrong.
        noise_trained: the model was trained on noise of this size and needs no denoiser.
        seed: of the noise.
        index: of the images, int64 ``[N]``, keys of their noise; by default their places.
        batch_size: draws per pass; changes speed and memory, not results.
        record: a path where what is done is kept (in a ``.json``), and gone on with.

    Raises:
        ValueError: an argument out of range, a record made otherwise, or a model whose answers
            depend on the batch, or that is random and takes no ``index`` and ``draw``.
    """
    check_images(x)
    check_number(sigma, "sigma", exclusive=True)
    for value, name in ((n, "n"), (n0, "n0")):
        check_count(value, name)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a probability between 0 and 1, got {alpha!r}")
    least = math.floor(math.log(alpha) / math.log(0.5)) + 1
    if n < least:
        raise ValueError(
            f"n: even {n} of {n} votes certify nothing at alpha = {alpha:g}; expected at least "
            f"{least} draws"
        )
    if not noise_trained and not isinstance(unwrapped(model), Defended):
        warn(
            f"model: no denoiser stands before it, and it was not said to be trained on noise. "
            f"Under sigma = {sigma:g} most classifiers read noise, and abstain or err. Put a "
            "denoiser before it (Defended(classifier, Direct(dae))), or pass noise_trained=True"
        )
    index = keys_of(x, index)
    check_labels(index, len(x), name="index")
    options = {"sigma": float(sigma), "n": n, "n0": n0, "alpha": alpha, "seed": seed}
    path = None if record is None else Path(f"{str(record).removesuffix('.json')}.json")
    with held(path, "record"), evaluating(model):
        for image in x[:1]:  # under noise, as the votes will be
            few = image + sigma * _normal(8, image, seed)
            named = takes_keys(model) or not is_random(model, few)
            require(named, "model: it is random; let its forward take index and draw, its keys")
            together = looks_at_the_batch(model, few)
            require(not together, "model: its answers depend on the batch: no votes on one image")
        log = None if path is None else _log(path, model, x, index, options)
        rows: list[tuple[int, int]] = log.more["votes"] if log else []
        if path is not None and len(rows) < len(x):
            check_writable(path.parent, "record")
        for k in range(len(rows), len(x)):
            shared = {"seed": seed, "batch_size": batch_size}
            first, counted = votes(model, x[k], int(index[k]), sigma, (n0, n), **shared)
            choice = int(first.argmax())
            kept = int(counted[choice])
            rows.append((choice if lower_bound(kept, n, alpha) > 0.5 else ABSTAINED, kept))
            if log:
                log.save(at_most_every=0 if k == len(x) - 1 else 5)
    found = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
    return Certificates(found[:, 0], found[:, 1], float(sigma), n, alpha)


@checked
def votes(
    model: nn.Module,
    image: Tensor,
    key: int,
    sigma: float,
    groups: tuple[int, ...],
    *,
    seed: int = 0,
    batch_size: int = 1000,
) -> list[Tensor]:
    """How often each class is read under noise, int64 ``[classes]``, for groups of fresh draws.

    Args:
        model: images -> logits, in evaluation mode.
        image: ``[C, H, W]``.
        key: number of the image; with ``seed`` it names the noise.
        sigma: of the noise.
        groups: sizes, one after the other.
        seed: of the noise.
        batch_size: draws per pass, about.
    """
    check_number(sigma, "sigma", exclusive=True)
    for count, name in ((key, "key"), *((size, "groups") for size in groups)):
        check_count(count, name, minimum=0)
    total, read = sum(groups), []
    whole = max(batch_size // BLOCK, 1) * BLOCK
    for start in range(0, total, whole):
        size = min(whole, total - start)
        blocks = range(start // BLOCK, math.ceil((start + size) / BLOCK))
        noise = torch.cat([_normal(BLOCK, image, seed, key, block) for block in blocks])[:size]
        index = torch.arange(start, start + size)  # of a random model each vote has its own draw
        logits = ask(model, noise.mul_(sigma).add_(image), draw=key, index=index)
        if not start:
            check_logits(logits, torch.zeros(size, dtype=torch.int64, device=image.device))
        read.append(logits.argmax(1))
    classes = logits.shape[1]
    return [part.bincount(minlength=classes).cpu() for part in torch.cat(read).split(groups)]


def _normal(n: int, image: Tensor, *keys: int) -> Tensor:
    """Standard normal draws ``[n, C, H, W]`` that follow from a few numbers."""
    options = {"device": image.device, "dtype": image.dtype}
    return torch.randn((n, *image.shape), generator=keyed(*keys, device=image.device), **options)


@checked
class Smoothed(nn.Module):
    """A differentiable stand-in for the smoothed classifier, to be attacked: images -> logits.

    The logarithm of the mean class probability under noise (Salman et al. 2019, equation 5). The
    certificate is about the most frequent *answer*; where this one falls the other usually does.

    Args:
        model: images -> logits.
        sigma: standard deviation of the noise, in pixel units.
        draws: per image and pass.
        seed: of the noise, which is keyed by it, the image's ``index`` and ``draw``.
    """

    random = True

    def __init__(self, model: nn.Module, sigma: float, *, draws: int = 16, seed: int = 0) -> None:
        super().__init__()
        check_number(sigma, "sigma", exclusive=True)
        check_count(draws, "draws")
        self.model, self.sigma, self.draws, self.seed = model, sigma, draws, seed

    def forward(self, x: Tensor, index: Tensor | None = None, draw: int = 0) -> Tensor:
        numbers = [0] * len(x) if index is None else index.tolist()
        noise = [_normal(self.draws, x[0], self.seed, 1, number, draw) for number in numbers]
        noisy = (x[:, None] + self.sigma * torch.stack(noise)).flatten(0, 1)
        chances = bounded(logits_of(self.model, noisy)).log_softmax(1).view(len(x), self.draws, -1)
        return chances.logsumexp(1) - math.log(self.draws)


def _log(path: Path, model: nn.Module, x: Tensor, index: Tensor, options: dict[str, Any]) -> Record:
    """The record of votes at a path; gone on with if it is there."""
    about = options | {
        "model_sha256": model_fingerprint(model),
        "data_sha256": fingerprint(x),
        "index_sha256": hashlib.sha256(index.cpu().numpy().tobytes()).hexdigest(),
        "data_exact": exact(x),
        "model": identity(model, x, index),
    }
    log = Record(path.stem, about, path.parent, alone=True)
    found = log.more.setdefault("votes", [])
    try:
        require(isinstance(found, list) and len(found) <= len(x), f"votes: for {len(x)} images")
        pairs = [whole_numbers(pair, "votes", 2, ABSTAINED, math.inf) for pair in found]
        whole_numbers([kept for _, kept in pairs], "votes", len(pairs), 0, options["n"])
    except ValueError as error:
        raise RuntimeError(f"{log.path} is damaged: {error}; remove it") from error
    return log
