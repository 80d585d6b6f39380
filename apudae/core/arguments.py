"""Checks of what a caller hands in, and the package's own warning.

Each ``check_...`` raises a ``ValueError`` that names the argument, what came and what was expected.
They stand at public entry points only and are never called inside ``forward``: smoothing and
training feed images with noise, whose values rightly leave [0, 1].
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor

# Arithmetic in float32 may put a pixel a rounding error outside [0, 1].
_SLACK = 1e-6


def require(met: bool, message: str) -> None:
    """Raise ``ValueError`` with a message unless a condition is met."""
    if not met:
        raise ValueError(message)


def check_images(x: Tensor, name: str = "x") -> None:
    """Raise ``ValueError`` unless ``x`` is a batch of images ``[N, C, H, W]`` in [0, 1].

    Any floating dtype passes; an empty batch passes.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name}: expected a tensor [N, C, H, W], got {type(x).__name__}")
    require(x.ndim == 4, f"{name}: expected 4 dimensions [N, C, H, W], got shape {list(x.shape)}")
    require(
        x.is_floating_point(),
        f"{name}: expected floating-point images in [0, 1], got {x.dtype}; "
        "divide 8-bit images by 255",
    )
    if len(x) == 0:
        return
    require(x.numel() > 0, f"{name}: expected images of at least one pixel, got {list(x.shape)}")
    low, high = (value.item() for value in torch.aminmax(x.detach()))
    require(not math.isnan(low), f"{name}: holds NaN, expected values in [0, 1]")
    require(
        low >= -_SLACK and high <= 1 + _SLACK,
        f"{name}: expected values in [0, 1], got [{low:.4g}, {high:.4g}]; "
        "normalisation belongs inside the model",
    )


def check_labels(y: Tensor, n: int, classes: int | None = None, name: str = "y") -> None:
    """Raise ``ValueError`` unless ``y`` holds ``n`` int64 labels in ``0 .. classes - 1``."""
    if not isinstance(y, Tensor) or y.ndim != 1:
        what = f"shape {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{name}: expected a tensor of labels [N], got {what}")
    require(y.dtype == torch.int64, f"{name}: expected int64 labels, got {y.dtype}")
    require(len(y) == n, f"{name}: expected {n} labels, one per image, got {len(y)}")
    if n and (y.min() < 0 or (classes is not None and y.max() >= classes)):
        upper = "" if classes is None else f" .. {classes - 1}"
        raise ValueError(
            f"{name}: expected labels in 0{upper}, got {y.min().item()} .. {y.max().item()}"
        )


def check_number(value: float, name: str, *, minimum: float = 0.0, exclusive: bool = False) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number above ``minimum``."""
    sign = ">" if exclusive else ">="
    ok = isinstance(value, Real) and math.isfinite(value)
    if not ok or value < minimum or (exclusive and value == minimum):
        raise ValueError(f"{name}: expected a finite number {sign} {minimum:g}, got {value!r}")


def check_count(value: int, name: str, *, minimum: int = 1, maximum: float = math.inf) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer from ``minimum`` to ``maximum``."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not minimum <= value <= maximum:
        bounds = f">= {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
        raise ValueError(f"{name}: expected an integer {bounds}, got {value!r}")


def check_choice(value: str, known: Collection[str], name: str) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the ``known`` names."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def check_logits(logits: Tensor, y: Tensor) -> None:
    """Raise ``ValueError`` unless a model's output fits the labels: ``[N, classes]``, no NaN."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(y):
        what = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits)
        raise ValueError(f"model: expected logits [{len(y)}, classes], got {what}")
    require(logits.shape[1] >= 2, "model: expected logits of at least 2 classes, got 1")
    check_labels(y, len(y), classes=logits.shape[1])
    bad = int(logits.detach().isnan().any(1).sum())
    require(not bad, f"model: NaN logits for {bad} of {len(y)} images")


class AttackWarning(UserWarning):
    """A measurement that runs, but may not mean what it seems to."""


def warn(message: str) -> None:
    """An :class:`AttackWarning`, shown at the line outside this package that led to it."""
    package, level = str(Path(__file__).parents[1]), 1
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, AttackWarning, stacklevel=level + 1)
