"""How well a denoising autoencoder reconstructs an image, and which error is normal.

- :func:`reconstruct`, :func:`reconstruction_error`: R(x) and d(x) = ‖x − R(x)‖²
- :func:`calibrate`, :class:`Calibration`: μ and s of the error of clean images
- :func:`check_dae`, :func:`check_calibration`: whether either can be used
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.arguments import check_choice, check_count, check_images, check_number, checked
from ..core.calling import called, evaluating
from ..core.processes import precision_of


@checked
def reconstruct(dae: nn.Module, x: Tensor, *, precision: str = "float32") -> Tensor:
    """R(x), returned in the images' own type.

    Args:
        dae: a denoising autoencoder, images -> images of the same shape.
        x: images ``[N, C, H, W]``.
        precision: ``"float32"`` (that is, the images' own), or ``"auto"``: bfloat16 where the
            hardware has it. (float16 is never used: small gradients would be lost.)

    Raises:
        ValueError: the DAE fails on the images, changes them, or returns another shape.
    """
    check_choice(precision, ("float32", "auto"), "precision")
    half = precision_of(x.device) if precision == "auto" else None
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half == torch.bfloat16):
        out = called(dae, x, "dae")
    if not isinstance(out, Tensor) or out.shape != x.shape:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"dae: expected outputs of its input's shape {list(x.shape)}, got {got}")
    return out.to(x.dtype)


@checked
def reconstruction_error(dae: nn.Module, x: Tensor, *, precision: str = "float32") -> Tensor:
    """``d(x) = ‖x − R(x)‖²`` for each image: ``[N, C, H, W]`` -> ``[N]``.

    Raises:
        ValueError: the DAE returns another shape.
    """
    return (x - reconstruct(dae, x, precision=precision)).square().flatten(1).sum(1)


class Calibration(NamedTuple):
    """Mean μ and standard deviation s of the reconstruction error of ``n`` clean images."""

    mu: float
    sigma: float
    n: int = 0


@checked
@torch.no_grad()
def calibrate(
    dae: nn.Module, x: Tensor, *, batch_size: int = 500, precision: str = "float32"
) -> Calibration:
    """What reconstruction error is normal, measured on clean *validation* images.

    The DAE runs in evaluation mode, and keeps its own.

    Args:
        dae: a denoising autoencoder.
        x: at least two clean images ``[N, C, H, W]`` in [0, 1] that it was not trained on.
        batch_size: images per pass.
        precision: as of :func:`reconstruct`.

    Raises:
        ValueError: images or DAE are wrong, or all errors are the same.
    """
    check_images(x)
    check_count(len(x), "number of images", minimum=2)
    check_count(batch_size, "batch_size")
    with evaluating(dae):
        check_dae(dae, x[:batch_size])
        parts = [reconstruction_error(dae, z, precision=precision) for z in x.split(batch_size)]
    d = torch.cat(parts).double()
    return check_calibration(Calibration(d.mean().item(), d.std().item(), len(x)))


@torch.no_grad()
def check_dae(dae: nn.Module, x: Tensor) -> None:
    """Raise ``ValueError`` unless the DAE returns images like the ``x`` it is given.

    Its outputs may leave [0, 1] a little (REDNet's do), but not by more than 0.1 on average: that
    is the output of a network that was trained on another range.
    """
    with evaluating(dae):
        out = reconstruct(dae, x)
    if not out.isfinite().all():
        raise ValueError("dae: its output holds NaN or infinite values")
    outside = (out - out.clamp(0, 1)).abs().mean().item()
    if outside > 0.1:
        raise ValueError(
            f"dae: expected outputs about in [0, 1], got [{out.min().item():.4g}, "
            f"{out.max().item():.4g}]; a network of another range needs a wrapper"
        )


def check_calibration(calibration: Calibration) -> Calibration:
    """The calibration, or ``ValueError`` unless μ is finite and ≥ 0 and s finite and > 0."""
    check_number(calibration.mu, "calibration: mu")
    check_number(calibration.sigma, "calibration: sigma", exclusive=True)
    return calibration
