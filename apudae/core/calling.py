"""Asking a model for its logits, always in the same way: its type, its mode, its random draws.

- :func:`logits_of`, :func:`ask`: the logits, of the model as it is or of a known draw
- :func:`evaluating`, :func:`in_training`, :func:`warn_if_training`: its mode
- :func:`takes_keys`, :func:`differentiable`, :func:`looks_like_probabilities`: what it is
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .arguments import require, warn


def takes_keys(model: nn.Module) -> bool:
    """Whether the random draws of a module can be named: ``forward(x, index, draw)``."""
    return {"index", "draw"} <= inspect.signature(model.forward).parameters.keys()


def in_type_of(model: nn.Module, x: Tensor) -> Tensor:
    """``x`` in the type of the model's parameters, where they are all of one type."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return x.to(types.pop()) if len(types) == 1 else x


def logits_of(model: nn.Module, x: Tensor, **keys: object) -> Tensor:
    """Logits in float32 or better, whatever the model computes in; ``keys`` are handed on to it."""
    logits = model(in_type_of(model, x), **keys)
    half = isinstance(logits, Tensor) and logits.dtype in (torch.float16, torch.bfloat16)
    return logits.float() if half else logits


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether no output is negative and each row sums to 1."""
    sums = logits.detach().sum(1)  # in bf16 each term is rounded by up to 0.4 %
    return len(sums) > 0 and bool((logits >= 0).all() & ((sums - 1).abs() < 1e-2).all())


def in_training(model: nn.Module) -> str:
    """Names of the layers in training mode that act differently there; empty if there are none."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU)
    layers = (m for m in model.modules() if m.training and isinstance(m, kinds))
    return ", ".join(sorted({type(layer).__name__ for layer in layers}))


def warn_if_training(model: nn.Module) -> None:
    """Warn if layers that act differently in training are in training mode."""
    if names := in_training(model):
        warn(
            f"model: {names} in training mode. The attack runs in evaluation mode, so its images "
            "fit model.eval(); an accuracy taken in training mode is that of another, random or "
            "batch-coupled model. Call model.eval() before you attack and score."
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode afterwards, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def ask(model: nn.Module, x: Tensor, *, draw: int = 0, index: Tensor | None = None) -> Tensor:
    """Logits of one draw of a model, the same each time it is asked with the same numbers.

    A module whose ``forward`` takes ``index`` and ``draw`` gets them. One that draws from torch's
    global generators finds them seeded by ``draw``, and they are put back afterwards.

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]``.
        draw: number of the draw.
        index: of the images, int64 ``[N]``; without, all get the draws of image 0.
    """
    keys = {"index": index, "draw": draw} if takes_keys(model) else {}
    if keys and index is None:
        wanted = inspect.signature(model.forward).parameters["index"]
        if wanted.default is wanted.empty:
            keys["index"] = torch.zeros(len(x), dtype=torch.int64)
    version = x._version
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        torch.manual_seed((draw * 0x9E3779B1 + 1) % 2**32)
        logits = logits_of(model, x, **keys)
    require(x._version == version, "model: it changes its input in place; let it work on a copy")
    return logits


def differentiable(model: nn.Module, x: Tensor) -> bool:
    """Whether autograd knows the derivative of everything in a model; zero counts as known."""
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_(True)
        try:
            logits = ask(model, z)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), z, allow_unused=True)
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            return False
    return True
