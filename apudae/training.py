"""One training loop for every network of the book.

What is learned is an *objective*: a function ``(model, x, y, generator) -> loss`` with the mean
loss of a batch. ``classification`` and ``denoising`` are two; anything of that form will do.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from tqdm import TqdmWarning

from .checks import check_count, check_images, check_labels, check_number, evaluating

with warnings.catch_warnings():
    # Without ipywidgets the bar in a notebook is plain text, which is fine.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

Objective = Callable[[nn.Module, Tensor, Tensor, Generator], Tensor]


def classification(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
    """Cross-entropy of the logits, the mean over the batch."""
    return F.cross_entropy(model(x), y)


def denoising(sigma: float) -> Objective:
    """The objective of a DAE: ``‖R(x + σ·n) − x‖²`` per pixel, ``n`` standard normal.

    The noisy image is *not* clipped to [0, 1]: the residual ``R(x) − x`` then points along the
    score of the data smoothed by that noise (Vincent 2011; Alain & Bengio 2014).
    """
    check_number(sigma, "sigma", exclusive=True)

    def objective(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return F.mse_loss(model(x + sigma * noise), x)

    return objective


@dataclass
class History:
    """What happened, one entry per epoch: mean training loss, validation loss, seconds."""

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    objective: Objective = classification,
    epochs: int = 5,
    batch_size: int = 128,
    lr: float = 2e-3,
    weight_decay: float = 0.0,
    validation: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train ``model`` in place with AdamW and a one-cycle learning rate.

    The model is moved to the device of ``images``; the data set stays there, so there is no
    loader. The order of images and the objective's noise follow from ``seed`` alone.

    Args:
        model: to train; its modes are as before afterwards.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``; a denoising objective ignores them.
        objective: the mean loss of a batch.
        epochs: passes over the images.
        batch_size: images per step.
        lr: the peak learning rate, reached after 30 % of the steps.
        weight_decay: of AdamW.
        validation: images and labels on which to measure the objective after each epoch, with
            the same noise each time.
        seed: of order and noise.
        progress: show a tqdm bar (``TQDM_DISABLE=1`` hides it everywhere).

    Raises:
        ValueError: images, labels or an option out of range.
        RuntimeError: the loss became NaN or infinite; the message says at which step.
    """
    check_images(images, "images")
    check_labels(labels, len(images), name="labels")
    for value, what in ((epochs, "epochs"), (batch_size, "batch_size"), (len(images), "images")):
        check_count(value, what)
    check_number(lr, "lr", exclusive=True)
    if validation is not None:
        check_images(validation[0], "validation images")
        check_labels(validation[1], len(validation[0]), name="validation labels")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model: no parameter is trainable; call model.requires_grad_(True) first")

    model.to(images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    per_epoch = math.ceil(len(images) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=epochs * per_epoch, cycle_momentum=False
    )
    # Two streams: the order must not depend on how much noise an objective draws.
    order = torch.Generator().manual_seed(seed)
    noise = torch.Generator(images.device).manual_seed(seed + 1)
    history, modes = History(), [(module, module.training) for module in model.modules()]
    bar = tqdm(total=epochs * per_epoch, desc="training", disable=not progress or None)
    try:
        for epoch in range(epochs):
            model.train()
            start, total = time.perf_counter(), torch.zeros((), device=images.device)
            batches = torch.randperm(len(images), generator=order).split(batch_size)
            for step, batch in enumerate(batches):
                batch = batch.to(images.device)
                loss = objective(model, images[batch], labels[batch], noise)
                if not torch.isfinite(loss):
                    raise RuntimeError(
                        f"the loss became {loss.item()} at epoch {epoch + 1}, step {step + 1}; "
                        f"try a learning rate below {lr:g}"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach() * len(batch)
                bar.update()
            history.loss.append((total / len(images)).item())
            if validation is not None:
                history.validation.append(measure(model, *validation, objective, batch_size, seed))
            history.seconds.append(time.perf_counter() - start)
            bar.set_postfix(epoch=f"{epoch + 1}/{epochs}", loss=f"{history.loss[-1]:.4f}")
    finally:
        bar.close()
        for module, mode in modes:
            module.training = mode
    return history


@torch.no_grad()
def measure(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    batch_size: int = 500,
    seed: int = 0,
) -> float:
    """The mean objective over a data set, in evaluation mode, with noise fixed by ``seed``."""
    noise = torch.Generator(images.device).manual_seed(seed)
    total = 0.0
    with evaluating(model):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            total += objective(model, x, y, noise).item() * len(x)
    return total / len(images)
