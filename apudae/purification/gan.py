"""Purification by a generative network: :class:`DefenseGAN` (Samangouei et al., ICLR 2018).

The generator comes from :func:`apudae.training.train_gan`::

    defended = purification.Defended(classifier, purification.DefenseGAN(generator))

The other two defenses of this kind need no class. MagNet's reformer and Defense-VAE are
autoencoders used directly, ``Direct(net)``, with ``net`` trained for
``training.denoising(0.1)``, or for ``training.from_attacked``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.arguments import check_count, check_number, checked
from ..core.calling import half
from ..core.norms import normals, uniforms
from .purifier import Purifier, Watch, keepable, recomputed


@checked
class DefenseGAN(Purifier):
    """The nearest image that a generator can draw (Samangouei et al. 2018, §3).

    Descent on ``‖G(code) − x‖²``, with momentum, from several random codes; the best end is drawn.
    The gradient is exact, through every step. Simplified: the paper takes 10 starts and 200 steps,
    and lowers the step size on the way; the defaults are fewer, for attackers have to pay too.

    The starts are keyed by seed, draw and index of the image.

    Args:
        generator: codes -> images, with ``.latent``, such as :class:`~apudae.models.Generator`.
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
        shape = (self.starts, self.generator.latent)
        draws = uniforms(shape, index, self.seed, draw, device=x.device)
        code = normals(draws).to(x.dtype).expand(len(x), -1, -1).flatten(0, 1)
        wanted = x.repeat_interleave(self.starts, 0)
        speed = torch.zeros_like(code)
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.inference_mode(False):
            if not graph:
                code, wanted, speed = code.clone(), wanted.detach().clone(), speed.clone()
            some, still = code[: self.starts].detach(), speed[: self.starts].detach()
            kept = keepable(self, x, lambda z: self._step(some, still, z, True)[0]) if graph else 0
            for t in range(self.steps):
                again = graph and t >= kept
                code, speed = recomputed(self._step, code, speed, wanted, graph, graph=again)
                if watch:
                    watch(self._best(code, wanted).detach())
            return self._best(code, wanted)

    def _step(
        self, code: Tensor, speed: Tensor, wanted: Tensor, graph: bool
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = code if code.requires_grad else code.detach().requires_grad_(True)
            error = (self._drawn(z) - wanted).square().flatten(1).mean(1)
            (gradient,) = torch.autograd.grad(error.sum(), z, create_graph=graph)
        speed = self.momentum * speed - self.step_size * gradient
        return code + speed, speed

    def _drawn(self, code: Tensor) -> Tensor:
        with half(code):
            return self.generator(code).to(code.dtype)

    def _best(self, code: Tensor, wanted: Tensor) -> Tensor:
        """Of the images drawn from each start's code, the one nearest to what is wanted."""
        drawn = self._drawn(code)
        error = (drawn - wanted).square().flatten(1).sum(1).view(-1, self.starts)
        place = torch.arange(len(error), device=error.device)
        return drawn.view(-1, self.starts, *wanted.shape[1:])[place, error.argmin(1)]
