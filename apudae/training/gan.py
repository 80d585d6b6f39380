"""The training of two networks with opposite aims, which the loop for one cannot turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.files import fingerprint, write_torch


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
        ValueError: the checkpoint was made with other settings.
        RuntimeError: the critic's loss is no longer finite.
    """
    draws = {"generator": torch.Generator(images.device).manual_seed(seed), "device": images.device}
    drawing, judging = (
        torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.9)) for net in (generator, critic)
    )
    whole = [generator, critic, drawing, judging]
    settings = {"steps": steps, "batch_size": batch_size, "critic_steps": critic_steps, "lr": lr}
    settings |= {"penalty": penalty, "seed": seed, "images": fingerprint(images)}
    path, first, distances = Path(checkpoint or ""), 1, []
    if checkpoint is not None and path.is_file():
        old = torch.load(path, map_location="cpu", weights_only=True)
        if old["settings"] != settings:
            raise ValueError(f"checkpoint: {path} was made with other settings; move it")
        for part, state in zip(whole, old["whole"], strict=True):
            part.load_state_dict(state)
        draws["generator"].set_state(old["draws"])
        first, distances = old["step"] + 1, old["distances"]

    def drawn() -> Tensor:
        return generator(torch.randn(batch_size, generator.latent, **draws))

    for step in range(first, steps + 1):
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
            if checkpoint is not None:
                state = {"whole": [part.state_dict() for part in whole], "step": step}
                state |= {"draws": draws["generator"].get_state(), "distances": distances}
                write_torch(path, state | {"settings": settings})
            if progress is not None:
                progress(step, distances[-1])
    return distances
