"""What a network is trained for.

A task is a function ``(model, x, y, generator) -> loss``: the mean loss of a batch of images ``x``
(float32 ``[B, C, H, W]`` in [0, 1]) with labels ``y``. All randomness comes from the generator.
Anything of that form can be handed to :func:`apudae.training.fit`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .checks import check_number, evaluating

Task = Callable[[nn.Module, Tensor, Tensor, Generator], Tensor]
KINDS = ("gaussian", "uniform")


def classification(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
    """Cross-entropy of the logits, the mean over the batch."""
    return F.cross_entropy(model(x).float(), y)


classification.labelled = True  # the labels must fit the model's classes


def denoising(sigma: float | tuple[float, float], *, kind: str = "gaussian") -> Task:
    """The task of a DAE: ``‖R(x + σ·n) − x‖²`` per pixel, ``n`` of mean 0 and variance 1.

    The noisy image is *not* clipped to [0, 1]: with Gaussian noise the residual ``R(x) − x`` then
    points along the score of the data smoothed by it (Vincent 2011; Alain & Bengio 2014).

    Args:
        sigma: standard deviation of the noise; of a pair, each image draws its own in between.
        kind: ``"gaussian"``, or ``"uniform"`` (of the same standard deviation).

    Raises:
        ValueError: a level that is not positive, a pair out of order, an unknown kind.
    """
    low, high = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    check_number(low, "sigma", exclusive=True)
    check_number(high, "sigma", exclusive=True)
    if low > high:
        raise ValueError(f"sigma: expected (low, high), got {sigma}")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        draws = {"generator": generator, "device": x.device, "dtype": x.dtype}
        if kind == "gaussian":
            noise = torch.randn(x.shape, **draws)
        else:
            noise = (2 * torch.rand(x.shape, **draws) - 1) * 3**0.5
        level = low + (high - low) * torch.rand(len(x), 1, 1, 1, **draws) if low < high else low
        return F.mse_loss(model(x + level * noise).float(), x)

    task.name = f"denoising, {kind}, {low:g} to {high:g}"
    return task


def adversarial(attack: Callable[..., Tensor], **options: object) -> Task:
    """Classification of attacked images (Madry et al. 2018): the attack aims at the model itself.

    The attack sees the model in evaluation mode; its random draws differ from batch to batch.

    Args:
        attack: any of :mod:`apudae.attacks`, such as ``attacks.pgd``.
        options: its keyword arguments, such as ``eps=0.3, steps=7, early_stop=True``.
    """

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        bare = model
        while hasattr(bare, "module") or hasattr(bare, "_orig_mod"):  # DDP, torch.compile
            bare = bare.module if hasattr(bare, "module") else bare._orig_mod
        seed = torch.randint(2**31, (1,), generator=generator, device=generator.device).item()
        keyed = {"seed": seed} if "seed" in attack_parameters else {}
        # In full precision: in float16 small image gradients would be 0, and the attack too weak.
        with evaluating(bare), torch.autocast(x.device.type, enabled=False):
            attacked = attack(bare, x, y, **{**keyed, **options})
        return F.cross_entropy(model(attacked).float(), y)

    attack_parameters = inspect.signature(attack).parameters
    name = getattr(attack, "__name__", repr(attack))
    task.labelled = True
    task.name = f"adversarial, {name}, {sorted(options.items())}"
    return task
