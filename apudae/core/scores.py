"""How often a model is right, and how sure we can be: each number comes with its interval.

- :func:`outcomes`, :func:`accuracy`, :class:`Accuracy`: images read rightly
- :class:`Outcomes`, :func:`same_images`: outcomes that know which images they are of
- :func:`paired_difference`, :class:`Difference`: two models on the same images
- :func:`roc`, :func:`auc`, :class:`Auc`: how well a score tells attacked images from clean ones
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import ndtri, stdtrit  # scipy.stats takes a second longer to import
from torch import Tensor, nn

from .arguments import check_count, check_images, check_labels, check_logits, check_number, checked
from .calling import ask, evaluating, logits_of
from .processes import rank, total, world


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``n`` images; prints as ``89.2 % [87.1, 91.0]``.

    Of a random model ``correct`` is a sum of per-image rates. Rates in [0, 1] spread no more than
    hits and misses of the same mean, so the interval is then rather too wide than too narrow.
    """

    correct: float
    n: int

    @classmethod
    def of(cls, right: Tensor) -> Accuracy:
        """Count outcomes, bool ``[N]`` with at least one image, or add up rates ``[N]``."""
        check_count(len(right), "number of images")
        rates = right.is_floating_point()
        return cls(right.double().sum().item() if rates else int(right.sum()), len(right))

    @property
    def percent(self) -> float:
        """The accuracy in percent."""
        return 100 * self.correct / self.n

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval for the accuracy, in percent (Wilson 1927)."""
        check_number(confidence, "confidence", exclusive=True, below=1)
        z, n, p = float(ndtri(0.5 + confidence / 2)), self.n, self.correct / self.n
        half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        ends = ((p + z * z / (2 * n) + side * half) / (1 + z * z / n) for side in (-1, 1))
        low, high = (100 * min(max(end, 0.0), 1.0) for end in ends)
        return (0.0 if self.correct <= 0 else low), (100.0 if self.correct >= n else high)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.percent:.1f} % [{low:.1f}, {high:.1f}]"


@checked
@torch.no_grad()
def outcomes(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    index: Tensor | None = None,
    batch_size: int = 250,
) -> Tensor:
    """Which images the model gets right: bool ``[N]``, in evaluation mode, mode restored.

    Several processes share the images, and each gets all the answers.

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]`` in [0, 1].
        y: int64 labels ``[N]``.
        index: numbers of the images, int64 ``[N]``. With them a random model makes draw 0 of each
            image, see ``core.calling.ask``; without, it is called as it is.
        batch_size: images per forward pass.
    """
    check_images(x)
    check_labels(y, len(x))
    if index is not None:
        check_labels(index, len(x), name="index")
    right = torch.zeros(len(x), dtype=torch.int32, device=x.device)
    with evaluating(model):
        for start in range(rank() * batch_size, len(x), world() * batch_size):
            part = slice(start, start + batch_size)
            if index is None:
                logits = logits_of(model, x[part])
            else:
                logits = ask(model, x[part], index=index[part])
            check_logits(logits, y[part])
            right[part] = (logits.argmax(1) == y[part]).int()
    return total(right).bool()


@checked
def accuracy(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 250) -> Accuracy:
    """Accuracy of ``model`` on at least one image, with its confidence interval at hand."""
    return Accuracy.of(outcomes(model, x, y, batch_size=batch_size))


@checked
@dataclass(frozen=True)
class Outcomes:
    """What became of which images: outcomes alone are a list that may be of any.

    Attributes:
        right: bool ``[N]``, or rates ``[N]`` in [0, 1].
        places: of the images in their data set, int64 ``[N]``.
    """

    right: Tensor
    places: Tensor

    def __post_init__(self) -> None:
        if self.right.shape != self.places.shape:
            shapes = f"{list(self.right.shape)}, got {list(self.places.shape)}"
            raise ValueError(f"places: expected one for each outcome, {shapes}")
        if len(self.places.unique()) < len(self.places):
            raise ValueError("places: an image comes twice")


@checked
def same_images(*several: Outcomes) -> list[Tensor]:
    """Outcomes ``[n]`` of each on the images that all of them are of, in the order of the first.

    Raises:
        ValueError: there is no such image.
    """
    check_count(len(several), "number of outcomes")
    common = several[0].places
    for found in several[1:]:
        common = common[torch.isin(common, found.places)]
    if not len(common):
        raise ValueError("outcomes: they have no image in common, and cannot be compared")
    aligned = []
    for found in several:
        places, order = found.places.sort()
        aligned.append(found.right[order[torch.searchsorted(places, common)]])
    return aligned


@dataclass(frozen=True)
class Difference:
    """A difference in points with its interval; prints as ``+1.3 points [+0.2, +2.4]``."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        # Adding 0 turns a rounded -0.0 into +0.0.
        points, low, high = (round(v, 1) + 0.0 for v in (self.points, self.low, self.high))
        return f"{points:+.1f} points [{low:+.1f}, {high:+.1f}]"


@checked
def paired_difference(first: Tensor, second: Tensor, *, confidence: float = 0.95) -> Difference:
    """How many points ``second`` is better than ``first`` on the *same* images.

    Two intervals may overlap while the difference is certain, since both models fail on the
    same hard images. This is Newcombe's hybrid score interval for paired proportions (Newcombe
    1998, method 10): Wilson's interval of each, joined by their correlation. It keeps its promise
    also where only a handful of images differ, and is never of width zero.

    Where either holds rates of a random model, the interval is Student's for the mean of the
    per-image differences, joined by the width that Newcombe's has for no difference at all.

    Args:
        first: outcomes of one model, bool ``[N]``, or rates ``[N]`` in [0, 1].
        second: outcomes of the other on the same images.
        confidence: of the interval.
    """
    check_number(confidence, "confidence", exclusive=True, below=1)
    if first.shape != second.shape:
        raise ValueError(f"second: expected shape {list(first.shape)}, got {list(second.shape)}")
    if first.is_floating_point() or second.is_floating_point():
        return _paired_rates(first.double(), second.double(), confidence)
    a, b = Accuracy.of(first), Accuracy.of(second)
    n = a.n
    both = int((first & second).sum())
    # Correlation of the outcomes, shrunk towards 0 as Newcombe does.
    lean = both * (n - a.correct - b.correct + both) - (a.correct - both) * (b.correct - both)
    lean = max(lean - n / 2, 0) if lean > 0 else lean
    spread = a.correct * (n - a.correct) * b.correct * (n - b.correct)
    phi = lean / math.sqrt(spread) if spread else 0.0

    (low_a, high_a), (low_b, high_b) = a.interval(confidence), b.interval(confidence)
    difference = b.percent - a.percent

    def reach(u: float, v: float) -> float:
        return math.sqrt(max(u * u - 2 * phi * u * v + v * v, 0.0))

    return Difference(
        difference,
        difference - reach(b.percent - low_b, high_a - a.percent),
        difference + reach(high_b - b.percent, a.percent - low_a),
    )


def _paired_rates(first: Tensor, second: Tensor, confidence: float) -> Difference:
    gap, n = 100 * (second - first), len(first)
    check_count(n, "number of images")
    mean = gap.mean().item()
    spread = (gap.var().item() if n > 1 else 0.0) / n
    # A handful of images never shows its whole spread: add what Wilson grants 0 of n.
    least = Accuracy(0, n).interval(confidence)[1]
    t = float(stdtrit(max(n - 1, 1), 0.5 + confidence / 2))
    reach = math.hypot(t * spread**0.5, least)
    return Difference(mean, max(mean - reach, -100.0), min(mean + reach, 100.0))


@checked
def roc(clean: Tensor, attacked: Tensor) -> tuple[Tensor, Tensor]:
    """A detector that flags high scores: false alarms and detections at every threshold.

    Args:
        clean: scores of clean images ``[N]``.
        attacked: scores of attacked images ``[M]``.

    Returns:
        Shares in [0, 1] of the clean and of the attacked images at or above each threshold, from
        (0, 0) to (1, 1).
    """
    thresholds = torch.cat([clean, attacked]).unique().flip(0)
    shares = [
        torch.searchsorted(-scores.sort(descending=True).values, -thresholds, right=True)
        / len(scores)
        for scores in (clean.contiguous(), attacked.contiguous())
    ]
    return tuple(torch.cat([share.new_zeros(1), share]) for share in shares)


@dataclass(frozen=True)
class Auc:
    """Area under a ROC curve with its interval, in percent; prints as ``95.3 % [94.4, 96.1]``."""

    percent: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.percent:.1f} % [{self.low:.1f}, {self.high:.1f}]"


@checked
def auc(clean: Tensor, attacked: Tensor, *, confidence: float = 0.95) -> Auc:
    """How often an attacked image scores higher than a clean one, ties counted half.

    The interval is DeLong's (1988), on the logit scale so that it stays below 100 %. It takes the
    clean and the attacked images as two samples; of the same images under attack it is a little
    wide. Where every pair is ordered alike that variance is 0, and Wilson's interval for the
    smaller of the two samples stands in.

    Raises:
        ValueError: fewer than two scores of either kind.
    """
    check_number(confidence, "confidence", exclusive=True, below=1)
    check_count(len(clean), "number of clean scores", minimum=2)
    check_count(len(attacked), "number of attacked scores", minimum=2)
    clean, attacked = clean.double(), attacked.double()
    wins = (attacked[:, None] > clean).double() + 0.5 * (attacked[:, None] == clean)
    area = wins.mean().item()
    if not 0 < area < 1:
        n = min(len(clean), len(attacked))
        return Auc(100 * area, *Accuracy(round(area * n), n).interval(confidence))
    variance = (wins.mean(1).var() / len(attacked) + wins.mean(0).var() / len(clean)).item()
    reach = float(ndtri(0.5 + confidence / 2)) * math.sqrt(variance) / (area * (1 - area))
    centre = math.log(area / (1 - area))
    low, high = (100 / (1 + math.exp(-(centre + side * reach))) for side in (-1, 1))
    return Auc(100 * area, low, high)
