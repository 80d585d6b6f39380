"""The training of two networks with opposite aims, which the loop for one cannot turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.arguments import check_count, check_number, check_writable, checked, require
from ..core.files import (
    check_like,
    held,
    read_torch,
    require_whole,
    write_torch,
)
from ..core.prints import exact, model_print
from ..models.checkpoints import check_fits
from .batches import check_set
from .fit import check_optimizer


@checked
def train_gan(
    generator: nn.Module,
    critic: nn.Module,
    images: Tensor,
    *,
    steps: int = 5000,
    batch_size: int = 64,
    critic_steps: int = 5,
    lr: float = 1e-4,
    penalty: float = 10.0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a Wasserstein GAN with a gradient penalty, in place (Gulrajani et al. 2017, alg. 1).

    Args:
        generator: codes -> images.
        critic: images -> numbers ``[N]``.
        images: real ones, float32 ``[N, C, H, W]`` in [0, 1].
        steps: of the generator.
        batch_size: of both.
        critic_steps: of the critic per step of the generator.
        lr: of Adam with β 0 and 0.9, for both.
        penalty: weight of the gradient penalty.
        seed: of order, codes and mixtures.
        checkpoint: a file that holds the whole state, written every 100 steps; if it is there
            already and was made with the same settings and images, training goes on from it.
        progress: called with step and distance every 100 steps.

    Returns:
        The critic's estimate of the Wasserstein distance, every 100 steps.

    Raises:
        ValueError: the checkpoint was made with other settings or networks.
        RuntimeError: the critic's loss is no longer finite, or the checkpoint is damaged or
            another training's that is under way.
    """
    check_set(images)
    require(images.is_floating_point(), f"images: expected float32 in [0, 1], got {images.dtype}")
    for name, value in (("steps", steps), ("critic_steps", critic_steps)):
        check_count(value, name)
    check_number(lr, "lr", exclusive=True)
    check_number(penalty, "penalty")
    require(hasattr(generator, "latent"), "generator: expected one with .latent, numbers of a code")
    draws = {"generator": torch.Generator(images.device).manual_seed(seed), "device": images.device}
    drawing, judging = (
        torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.9)) for net in (generator, critic)
    )
    whole = [generator, critic, drawing, judging]
    settings = {"steps": steps, "batch_size": batch_size, "critic_steps": critic_steps, "lr": lr}
    settings |= {"penalty": penalty, "seed": seed, "images": exact(images)}
    settings |= {"networks": [model_print(net, trained=net) for net in (generator, critic)]}
    path = None if checkpoint is None else Path(checkpoint)
    distances: list[float] = []

    def drawn() -> Tensor:
        return generator(torch.randn(batch_size, generator.latent, **draws))

    with held(path, "checkpoint"):
        if path is not None and path.is_file():
            distances = _resume(path, whole, draws["generator"], settings)
        done = 100 * len(distances)
        if path is not None and done < steps:
            check_writable(path.parent, "checkpoint")
        for step in range(done + 1, steps + 1):
            for _ in range(critic_steps):
                real = images[torch.randint(len(images), (batch_size,), **draws)]
                with torch.no_grad():
                    fake = drawn()
                mix = torch.rand(batch_size, 1, 1, 1, **draws)
                between = (mix * real + (1 - mix) * fake).requires_grad_(True)
                (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
                distance = critic(real).mean() - critic(fake).mean()
                steep = (slope.flatten(1).norm(dim=1) - 1).square().mean()
                judging.zero_grad()
                (penalty * steep - distance).backward()
                judging.step()
            drawing.zero_grad()
            (-critic(drawn()).mean()).backward()
            drawing.step()
            if step % 100 == 0:
                distances.append(distance.item())
                if not math.isfinite(distances[-1]):
                    raise RuntimeError(f"the loss is {distances[-1]} at step {step}; lower lr")
                if path is not None:
                    state = {"whole": [part.state_dict() for part in whole], "step": step}
                    state |= {"draws": draws["generator"].get_state(), "distances": distances}
                    write_torch(path, state | {"settings": settings})
                if progress is not None:
                    progress(step, distances[-1])
    return distances


def _resume(
    path: Path, whole: list, draws: torch.Generator, settings: dict[str, Any]
) -> list[float]:
    """Go on from a checkpoint, if it fits; the distances so far."""
    state = read_torch(path)
    require_whole(
        isinstance(state, dict)
        and state.keys() == {"whole", "step", "draws", "distances", "settings"}
        and isinstance(state["whole"], list)
        and len(state["whole"]) == len(whole),
        f"{path} is not a checkpoint of this training",
    )
    if state["settings"] != settings:
        raise ValueError(f"checkpoint: {path} was made with other settings or networks; move it")
    step = state["step"]
    require_whole(
        type(step) is int and step in range(100, settings["steps"] + 1, 100),
        f"{path}: step: expected hundreds up to {settings['steps']}, got {step!r}",
    )
    check_like([0.0] * (step // 100), state["distances"], f"{path}: distances")
    check_like(draws.get_state(), state["draws"], f"{path}: draws")
    for part, stored in zip(whole, state["whole"], strict=True):
        if isinstance(part, nn.Module):
            check_fits(part.state_dict(), stored, path, f"the {type(part).__name__}")
        else:
            check_optimizer(part, stored, f"{path}: optimizer")
    for part, stored in zip(whole, state["whole"], strict=True):
        part.load_state_dict(stored)
    draws.set_state(state["draws"])
    return state["distances"]
