"""Stand-ins for an adaptive purifier whose own gradient is masked: :func:`smooth`.

An attacker searches on them and is judged by the real defense's answers::

    for purifier in purification.smooth(defended.purifier, x).values():
        other = purification.Defended(defended.classifier, purifier)
        attacks.pgd(attacks.Surrogate(defended, other), x, y, eps=0.1)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.arguments import check_count, check_images, check_number, checked
from ..core.norms import in_ball
from .adaptive import Adaptive
from .steps import Adam, Descent, Normalised, Sign


@checked
@torch.no_grad()
def smooth(purifier: Adaptive, x: Tensor, *, radius: float = 0.1) -> dict[str, Adaptive]:
    """Purifiers with a useful gradient that do about what an adaptive one does.

    The exact gradient of Adam and sign steps is almost zero or huge, that of early stopping and of
    the hinge below μ is none at all, and noise blurs it. What replaces a step is scaled by the
    gradients that the purifier meets at the images, moved at random within ``radius``.

    - ``"descent"``: plain gradient steps, as long as the purifier's at the start;
    - ``"smooth steps"``: Adam with a large ε, tanh(g/τ) for the sign, a floor under the length;
    - ``"match"``: (d − μ)²/s² in the hinge's place, with plain steps;
    - ``"as it is"``: where only stopping or noise is in the way.

    All of them walk to the end and without noise.

    Args:
        purifier: an adaptive one.
        x: images ``[N, C, H, W]`` in [0, 1] like those to be attacked, at least one.
        radius: about the attack's ε.
    """
    check_images(x)
    check_count(len(x), "number of images")
    check_number(radius, "radius")
    moved = in_ball(x, radius, "linf", torch.arange(len(x)), 0, 1)
    plain = purifier.replace(stop=None, noise=0.0)
    stepper, size = plain.stepper, plain.step_size

    def descent(like: Adaptive) -> tuple[float, float, Adaptive]:
        """Root mean square of a pixel's gradient, its mean length, and plain steps as long."""
        gradient = like.inner_gradient(moved).flatten(1).double()
        rms = max(gradient.square().mean().sqrt().item(), 1e-12)
        long = max(gradient.norm(dim=1).mean().item(), 1e-12)
        length = {Descent: size, Normalised: size / long}.get(type(stepper), size / rms)
        return rms, long, like.replace(stepper=Descent(), step_size=length)

    rms, long, steps = descent(plain)
    found = {"descent": steps} if isinstance(stepper, (Adam, Sign, Normalised)) else {}
    if isinstance(stepper, Adam):
        wide = Adam(stepper.beta1, stepper.beta2, eps=max(rms, stepper.eps))
        found["smooth steps"] = plain.replace(stepper=wide, step_size=2 * size)
    elif isinstance(stepper, Sign) and not stepper.tau:
        found["smooth steps"] = plain.replace(stepper=Sign(tau=rms))
    elif isinstance(stepper, Normalised):
        found["smooth steps"] = plain.replace(stepper=Normalised(floor=long))
    elif not found and (purifier.random or purifier.enough is not None):
        found["as it is"] = plain
    if purifier.options["objective"] == "hinge":
        *_, found["match"] = descent(plain.replace(objective="match"))
    return found
