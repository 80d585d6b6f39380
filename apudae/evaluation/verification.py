"""A proof, where one can be had: no change of any pixel by at most ε makes the model misread.

    verified = verify(Defended(classifier, Direct(dae)), x, y, eps=0.3)
    print(verified.accuracy)

It follows from bounds of every layer (:mod:`apudae.core.bounds`), without an attack and without
chance. That an image is *not* verified says nothing: the bounds may be too wide for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attacks.objective import check_attack
from ..core import bounds
from ..core.arguments import check_count, checked, require
from ..core.calling import evaluating, is_random, unwrapped
from ..core.scores import Accuracy
from ..purification.purifier import Defended, Direct, Purifier

_SLACK = 1e-6  # by which attacks may overstep ε, as float32 rounds


@dataclass(frozen=True)
class Verified:
    """What was proved of some images.

    Attributes:
        margins: a lower bound, over all images in the ball, of how far the true class's logit lies
            above the largest other one: float64 ``[N]``. Above 0 the image is verified.
        eps: radius of the ball in L∞.
    """

    margins: Tensor
    eps: float

    @property
    def right(self) -> Tensor:
        """Which images no change can make misread: bool ``[N]``."""
        return self.margins > 0

    @property
    def accuracy(self) -> Accuracy:
        """Their share: a lower bound of the accuracy under any attack in the ball."""
        return Accuracy.of(self.right)


@checked
@torch.no_grad()
def verify(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, batch_size: int = 100
) -> Verified:
    """Prove, image by image, that a model reads all of an L∞ ball rightly.

    Interval bounds in float64, widened by what float32 may lose, so that they hold for the network
    as it is run. They are tight for networks that were trained on them
    (:func:`apudae.training.certifying`), and say next to nothing of others.

    Args:
        model: images -> logits: layers in a row, or such a classifier behind
            :class:`~apudae.purification.Direct` or a purifier that is layers in a row.
        x: images ``[N, C, H, W]`` in [0, 1].
        y: int64 labels ``[N]``.
        eps: radius of the ball, in pixel units.
        batch_size: images per pass.

    Raises:
        ValueError: a model that is random, walks, or holds a layer that no bounds are known of; an
            argument out of range.
    """
    check_attack(model, x, y, eps, "linf")
    check_count(batch_size, "batch_size")
    whole = network(model)
    require(not len(x) or not is_random(model, x[:8]), "model: its answers are random")
    with evaluating(whole):
        graph, found = bounds.traced(whole), []
        for part, labels in zip(x.double().split(batch_size), y.split(batch_size), strict=True):
            low, high = (part + side * (eps + _SLACK) for side in (-1, 1))
            box = bounds.Interval(low.clamp(0, 1), high.clamp(0, 1))
            found.append(bounds.margins(graph, box, labels).amin(1).cpu())
    return Verified(torch.cat(found) if found else x.new_zeros(0).double(), eps)


def network(model: nn.Module) -> nn.Module:
    """A model as layers in a row; a defended one as its purifier's and its classifier's.

    Raises:
        ValueError: it is random, or its purifier walks.
    """
    model = unwrapped(model)
    if not isinstance(model, Defended):
        return model
    purifier = unwrapped(model.purifier)
    require(not model.random, "model: it draws noise; certify speaks of such ones, by chance")
    require(model.draws == 1, "model: a mean over draws has no bounds")
    if isinstance(purifier, Purifier):
        kind = type(purifier).__name__
        require(isinstance(purifier, Direct), f"model: no bounds are known of {kind}")
        require(purifier.precision == "float32", "model: its purifier computes in half precision")
        layers = [purifier.dae, nn.Hardtanh(0, 1)] * purifier.repeats
        return nn.Sequential(*layers, model.classifier)
    return nn.Sequential(purifier, model.classifier)
