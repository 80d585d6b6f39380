"""Defenses that project an image onto what a generative model can draw.

MagNet's reformer and Defense-VAE are autoencoders, used directly::

    Direct(net)                    # with net trained for `denoising(0.1)`, or for `from_attacked`

Defense-GAN looks for the code whose image is nearest, by descent. Each says what it simplifies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from .checkpoints import write_torch
from .checks import check_count, check_number, evaluating
from .data import fingerprint
from .norms import uniforms
from .purifier import Purifier, Watch
from .tasks import Task


def from_attacked(
    classifier: nn.Module, attack: Callable[..., Tensor], *, weight: float = 1e-3, **options: object
) -> Task:
    """The task of Defense-VAE (Li & Ji 2019): from an attacked image to the clean one.

    Binary cross-entropy per pixel against the clean image, plus ``weight`` times the divergence of
    the code from a standard normal, per number. Half of each batch is attacked, half has Gaussian
    noise. Simplified: one attack with its ε drawn anew for every batch, where the paper mixes
    several with a few ε; and the classifier is not trained on.

    Args:
        classifier: that the images are attacked for; it stays as it is.
        attack: of :mod:`apudae.attacks`.
        weight: of the divergence.
        options: of the attack, such as ``steps=5``; ``eps`` is the largest.
    """
    check_number(weight, "weight")
    most = options.pop("eps")

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        draws = {"generator": generator, "device": x.device}
        eps = most * torch.rand(1, **draws).item()
        half = len(x) // 2
        noisy = x + eps * torch.randn(x.shape, **draws, dtype=x.dtype)
        with evaluating(classifier), torch.autocast(x.device.type, enabled=False):
            noisy[:half] = attack(classifier, x[:half], y[:half], eps=eps, **options)
        mean, spread = model.encode(noisy.clamp(0, 1))
        code = mean + (spread / 2).exp() * torch.randn(mean.shape, **draws, dtype=mean.dtype)
        back = model.decoder(code)
        with torch.autocast(x.device.type, enabled=False):
            wrong = F.binary_cross_entropy(back.float(), x)
            far = (mean.square() + spread.exp() - 1 - spread).float().mean() / 2
        return wrong + weight * far

    name = getattr(attack, "__name__", repr(attack))
    task.name = f"from attacked, {name}, {most:g}, {sorted(options.items())}, {weight:g}"
    return task


class DefenseGAN(Purifier):
    """The nearest image that a generator can draw (Samangouei et al. 2018, §3).

    Descent on ``‖G(code) − x‖²``, with momentum, from several random codes; the best end is drawn.
    The gradient is exact, through every step. Simplified: the paper takes 10 starts and 200 steps,
    and lowers the step size on the way; the defaults are fewer, for attackers have to pay too.

    The starts are keyed by seed, draw and index of the image.

    Args:
        generator: codes -> images, with ``.latent``, such as :class:`~apudae.networks.Generator`.
        starts: random codes per image.
        steps: of the descent from each.
        step_size: of the descent on the mean over pixels.
        momentum: of the descent.
        seed: of the starts.
    """

    def __init__(
        self,
        generator: nn.Module,
        *,
        starts: int = 4,
        steps: int = 50,
        step_size: float = 30.0,
        momentum: float = 0.7,
        seed: int = 0,
    ) -> None:
        check_count(starts, "starts")
        check_count(steps, "steps")
        check_number(step_size, "step_size", exclusive=True)
        check_number(momentum, "momentum")
        super().__init__(nn.Identity(), seed, "float32")
        self.generator, self.starts, self.steps = generator, starts, steps
        self.step_size, self.momentum, self.noise = step_size, momentum, 1.0

    def extra_repr(self) -> str:
        return f"starts={self.starts}, steps={self.steps}"

    def error(self, x: Tensor) -> Tensor:
        """Squared distances ``[N]`` to the nearest image found, of draw 0 for all images."""
        return (x - self(x)).square().flatten(1).sum(1)

    def _purify(self, x: Tensor, index: Tensor | None, draw: int, watch: Watch | None) -> Tensor:
        latent, n = self.generator.latent, len(x)
        index = torch.zeros(1, dtype=torch.int64) if index is None else index
        even = uniforms((self.starts, latent), index, self.seed, draw, device=x.device)
        code = torch.special.ndtri(even.double().clamp(1e-9, 1 - 1e-9)).to(x.dtype)
        code = code.expand(n, -1, -1).flatten(0, 1)
        wanted = x.repeat_interleave(self.starts, 0)
        speed = torch.zeros_like(code)
        graph = torch.is_grad_enabled() and x.requires_grad
        if watch:
            watch(x)
        with torch.inference_mode(False):
            if not graph:
                code, wanted, speed = code.clone(), wanted.detach().clone(), speed.clone()
            for _ in range(self.steps):
                if graph:
                    code, speed = recomputed(
                        self._step, code, speed, wanted, True, use_reentrant=False
                    )
                else:
                    code, speed = self._step(code, speed, wanted, False)
                if watch:
                    watch(self._best(code, wanted)[0].detach())
            return self._best(code, wanted)[0]

    def _step(
        self, code: Tensor, speed: Tensor, wanted: Tensor, graph: bool
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = code if code.requires_grad else code.detach().requires_grad_(True)
            error = (self.generator(z) - wanted).square().flatten(1).mean(1)
            (gradient,) = torch.autograd.grad(error.sum(), z, create_graph=graph)
        speed = self.momentum * speed - self.step_size * gradient
        return code + speed, speed

    def _best(self, code: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        drawn = self.generator(code)
        error = (drawn - wanted).square().flatten(1).sum(1).view(-1, self.starts)
        best = error.argmin(1)
        place = torch.arange(len(best), device=best.device)
        return drawn.view(-1, self.starts, *wanted.shape[1:])[place, best], error[place, best]


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

    Two networks with opposite aims do not fit into :func:`apudae.training.fit`.

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
    makers = [
        torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.9)) for net in (generator, critic)
    ]
    whole = [generator, critic, *makers]
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
            makers[1].zero_grad()
            (penalty * steep - distance).backward()
            makers[1].step()
        makers[0].zero_grad()
        (-critic(drawn()).mean()).backward()
        makers[0].step()
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
