"""SOAP with data reconstruction (Shi et al., ICLR 2021): the adaptive use, a year earlier.

One encoder serves a classifier and a denoising decoder, trained together. At test time the image is
moved, by sign steps, to where the decoder reconstructs it well::

    net = models.build("mnist-soap")
    training.fit(net, *train, task=training.joint())
    defended = purification.Defended(net, purification.Soap(net))
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.arguments import checked
from ..core.calling import MEMORY, within
from .adaptive import Adaptive
from .purifier import Purifier, Watch
from .steps import Sign

RADII = tuple(k / 10 for k in range(11))  # of the authors' code


class Decoded(nn.Module):
    """The denoising autoencoder inside a :class:`~apudae.models.SharedAutoencoder`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.reconstruct(x)


@checked
class Soap(Purifier):
    """Sign steps downhill on the reconstruction error, within the best of several radii.

    From the image itself, ``z ← clip(z − step_size · sign ∇‖z − R(z)‖²)``, with no pixel further
    away than the radius. Each image keeps the result of the radius whose own error is least.

    That is the paper's rule. (The authors' code takes the mean error of the whole batch there, and
    so one radius for all of its images.) Radii further than sign steps can go are walked once.

    Args:
        net: with ``reconstruct(x)``, such as :class:`~apudae.models.SharedAutoencoder`.
        radii: tried.
        steps: of each walk.
        step_size: how far a pixel moves per step.
        stepper: of the walk; smooth ones stand in for the sign under attack.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        radii: Sequence[float] = RADII,
        steps: int = 5,
        step_size: float = 0.1,
        precision: str = "float32",
        **changes: object,
    ) -> None:
        super().__init__(Decoded(net), 0, precision)
        if not radii:
            raise ValueError("radii: expected at least one")
        options = {"stepper": "sign", "steps": steps, "step_size": step_size} | changes
        walks = [Adaptive(self.dae, eps=r, precision=precision, **options) for r in sorted(radii)]
        reach = steps * step_size if isinstance(walks[0].stepper, Sign) else math.inf
        short = [walk for walk in walks if walk.eps < reach]
        self.radii, self.walks = tuple(radii), nn.ModuleList(short + walks[len(short) :][:1])

    @property
    def widest(self) -> Adaptive:
        """The walk with the largest radius, which an attacker can take for all of them."""
        return self.walks[-1]

    def replace(self, **changes: object) -> Soap:
        """The same purifier with other options of its walks, such as a smooth stepper."""
        options = {k: v for k, v in self.walks[0].options.items() if k not in ("eps", "seed")}
        return Soap(self.dae.net, radii=self.radii, **{**options, **changes})

    def _purify(self, x: Tensor, index: Tensor | None, draw: int, watch: Watch | None) -> Tensor:
        with within(MEMORY, MEMORY.get() // len(self.walks)):  # all their graphs are kept at once
            ends = torch.stack([walk(x, index, draw) for walk in self.walks])
        with torch.no_grad():
            best = torch.stack([self.error(z) for z in ends]).argmin(0)
        place = torch.arange(len(x), device=x.device)
        if watch:
            paths = [torch.stack(walk.iterates(x, index, draw)) for walk in self.walks]
            for step in torch.stack(paths)[best, 1:, place].unbind(1):
                watch(step)
        return ends[best, place]
