"""Purifiers, images -> images, and the classifier they defend.

A purifier is differentiable end to end and treats each image on its own. The attacker decides
whether to use its gradient; nothing here hides it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import check_count, check_images, check_number

# Adam's usual constants (Kingma & Ba 2015), and a number far below their rounding.
_BETA1, _BETA2, _ADAM_EPS, _TINY = 0.9, 0.999, 1e-8, 1e-24


def reconstruction_error(dae: nn.Module, x: Tensor) -> Tensor:
    """``d(x) = ‖x − R(x)‖²`` for each image: ``[N, C, H, W]`` -> ``[N]``."""
    return (x - dae(x)).square().flatten(1).sum(1)


class Direct(nn.Module):
    """Feed the classifier the DAE's output, ``x -> R(x)``, clipped to [0, 1].

    Args:
        dae: a denoising autoencoder, images -> images of the same shape.
    """

    def __init__(self, dae: nn.Module) -> None:
        super().__init__()
        self.dae = dae

    def forward(self, x: Tensor) -> Tensor:
        return self.dae(x).clamp(0, 1)


class Adaptive(nn.Module):
    """Move the image until the DAE reconstructs it well (APuDAE, arXiv 2208.13838).

    Adam steps on a perturbation δ that starts at 0, downhill on the reconstruction error of each
    image::

        minimise over δ   ‖(x + δ) − R(x + δ)‖²,   x + δ in [0, 1]

    The classifier then sees x + δ, not the DAE's output. This is the authors' simple variant,
    with one correction: every iterate is projected to [0, 1], where theirs may leave it.

    The result can be differentiated with respect to ``x``, through every step and through Adam's
    moments (second order in the DAE). That graph is built only if a gradient can be asked for.

    The defaults were chosen on validation digits (record ``mnist_selection``).

    Args:
        dae: a denoising autoencoder, images -> images of the same shape.
        steps: Adam steps.
        step_size: Adam's learning rate, in pixel units: about how far a pixel moves per step.

    Raises:
        ValueError: steps or step size out of range.
    """

    def __init__(self, dae: nn.Module, *, steps: int = 30, step_size: float = 0.02) -> None:
        super().__init__()
        check_count(steps, "steps", minimum=0)
        check_number(step_size, "step_size", exclusive=True)
        self.dae, self.steps, self.step_size = dae, steps, step_size

    def extra_repr(self) -> str:
        return f"steps={self.steps}, step_size={self.step_size:g}"

    def forward(self, x: Tensor) -> Tensor:
        return self._descend(x)[-1]

    def trajectory(self, x: Tensor) -> list[Tensor]:
        """The images before the first step and after each: ``steps + 1`` batches like ``x``."""
        check_images(x)
        with torch.no_grad():
            return self._descend(x, keep=True)

    def _descend(self, x: Tensor, keep: bool = False) -> list[Tensor]:
        # The steps need gradients even where the caller switched them off. Whether the steps can
        # themselves be differentiated is the caller's choice.
        graph = torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self.dae.parameters())
        )
        with torch.inference_mode(False), torch.set_grad_enabled(graph):
            z = x if graph else x.detach().clone()  # a clone may leave inference mode
            mean, square = torch.zeros_like(z), torch.zeros_like(z)
            path = [z]
            for t in range(1, self.steps + 1):
                gradient = self._gradient(z, graph)
                mean = _BETA1 * mean + (1 - _BETA1) * gradient
                square = _BETA2 * square + (1 - _BETA2) * gradient.square()
                # The tiny number keeps the root differentiable where a gradient is zero.
                root = (square / (1 - _BETA2**t) + _TINY).sqrt()
                step = mean / (1 - _BETA1**t) / (root + _ADAM_EPS)
                z = (z - self.step_size * step).clamp(0, 1)
                path = [*path, z] if keep else [z]
        return path

    def _gradient(self, z: Tensor, graph: bool) -> Tensor:
        with torch.enable_grad():
            if not graph or not z.requires_grad:
                z = z.detach().requires_grad_(True)
            # A sum over images: each image's gradient is its own.
            error = reconstruction_error(self.dae, z).sum()
            return torch.autograd.grad(error, z, create_graph=graph)[0]


class Defended(nn.Module):
    """A classifier behind a purifier: images -> logits, like any other model.

    Attacks on it see the whole defense. Attacks on ``.classifier`` do not know of the purifier.

    Args:
        classifier: images -> logits; it stays as it is.
        purifier: images -> images.
    """

    def __init__(self, classifier: nn.Module, purifier: nn.Module) -> None:
        super().__init__()
        self.classifier, self.purifier = classifier, purifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.purifier(x))
