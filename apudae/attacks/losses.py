"""What attacks raise, each per image: ``(logits [N, K], labels [N]) -> [N]``, :data:`LOSSES`.

Higher is worse for the classifier.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.calling import bounded

_NEVER_0 = 1e-12  # added to a denominator: logits may tie


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """−log softmax(z)_y, as log(1 + Σ_{k≠y} exp(z_k − z_y)).

    The usual form has the gradient p_y − 1, which float32 rounds to noise or 0 where the classifier
    is sure; this one has what is left, Σ_{k≠y} p_k, to the last digits.
    """
    logits = bounded(logits)
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf)
    return F.softplus(others.logsumexp(1) - own)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} z_k − z_y: above 0 where another class wins (Carlini & Wagner 2017, f₆)."""
    logits = bounded(logits)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{k≠y} z_k − z_y) / (z_π1 − z_π3) (Croce & Hein 2020, eq. 6).

    Like the margin, but the same for z and for 10·z: a model cannot hide behind its scale.
    Needs 3 classes.
    """
    check_classes(logits, 3, "dlr")
    logits = bounded(logits)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + _NEVER_0)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(z_t − z_y) / (z_π1 − (z_π3 + z_π4) / 2) (Croce & Hein 2020, eq. 7). Needs 4 classes."""
    check_classes(logits, 4, "dlr-targeted")
    logits = bounded(logits)
    top = logits.topk(4, dim=1).values
    own, other = (logits.gather(1, label[:, None])[:, 0] for label in (y, target))
    return (other - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _NEVER_0)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
}


def check_classes(logits: Tensor, least: int, loss: str) -> None:
    """Raise ``ValueError`` if a loss that looks at ``least`` classes cannot."""
    if logits.shape[1] < least:
        raise ValueError(f"loss: {loss!r} needs {least} classes, the model has {logits.shape[1]}")
