"""Attacks within an ε-ball: ``attack(model, x, y, *, eps, ...) -> x_adv``.

``model`` is any module images -> logits: a bare classifier, a whole defended one, or a
:class:`View` of it; :func:`logits` makes one of a model that returns more, or of a function. All
attacks are called alike; what an attack takes besides stands with it:

- ``x``: float32 or float64 images ``[N, C, H, W]`` in [0, 1]; ``y``: int64 labels ``[N]``, the
  true ones;
- ``eps``: radius of the ball, in pixel units (``8 / 255``); ``norm``: ``"linf"`` or ``"l2"``;
- ``loss``: what is raised, one of :data:`LOSSES`: ``"ce"``, ``"margin"`` (with L∞ often called
  "C&W L∞") or ``"dlr"``;
- ``targeted``: ``y`` are the classes to reach, not those to leave: their loss is lowered;
- ``mask``: the pixels that may change (a sticker, the frame), true or 1 there: ``[H, W]``,
  ``[C, H, W]`` or ``[N, C, H, W]`` (C or N may be 1). The others keep their value to the last bit;
  the ball is as before, so in L2 the length is that of the change under the mask;
- ``seed`` and ``index``: random draws are keyed by the seed and the image's index (int64 ``[N]``,
  by default its place in the batch), so a subset with its indices is attacked as the whole was;
- ``batch_size``: images per pass through the model; changes speed and memory, not results.

Every result lies in the ball and in [0, 1], and no image's result depends on the others. The model
runs in evaluation mode and keeps its modes, parameters, buffers and ``.grad``: gradients are taken
with respect to the images alone. An argument that no attack can use raises ``ValueError``, as does
a NaN in the loss or its gradient, and a model that fails on the images or changes them in place. A
model that returns probabilities, stands in training mode or looks at the batch draws an
:class:`~apudae.evaluation.AttackWarning`, and so does a ball larger than all images.

Within a ball:

- :func:`fgsm`, :func:`rfgsm`, :func:`bim`, :func:`pgd`: steps along the gradient; :func:`noise`,
  the yardstick beside them
- :func:`apgd`, :func:`square`: no step size to tune, and no gradient at all
- :func:`boundary`: along the border of the class, from far away; answers may be all it has
- :func:`suite`: several attacks, each image's :class:`WorstCase`; :func:`taken`: what each is given
- :func:`quantised`: an attack whose images an 8-bit file can hold
- :mod:`as_published`: the attacks as the APuDAE authors' code makes them

The smallest change that is enough:

- :func:`cw`, :func:`deepfool`: here ``eps`` is a limit, infinite unless given

What an attacker who knows the defense differentiates, each a :class:`View`:

- :class:`Exact`, :class:`Uncut`, :class:`Fixed`: the gradient as it is; of one known draw
- :class:`EOT`: averaged over draws
- :class:`BPDA`, :class:`Averaged`, :class:`StraightThrough`: past what cuts or masks it
- :class:`Surrogate`, :class:`ReconstructionAware`: of another model; less the DAE's error
- :class:`HalfPrecision`: any of them in bfloat16; what it finds still counts in float32
- :class:`NES`: estimated from the model's answers alone

What attacks are made of:

- :func:`cross_entropy`, :func:`margin`, :func:`dlr`, :data:`LOSSES`: what they raise; a class that
  cannot win (a logit of −10⁹ or −∞) counts as one far below the others
- :class:`Objective`, :class:`Best`: losses and image gradients; each image's strongest iterate
- :func:`length`, :func:`project`, :func:`steepest`, :func:`in_ball`, :func:`uniforms`: balls
"""

from ..core.norms import in_ball, length, project, steepest, uniforms
from . import as_published
from .adaptive import (
    BPDA,
    EOT,
    Averaged,
    Exact,
    Fixed,
    HalfPrecision,
    ReconstructionAware,
    Surrogate,
    Uncut,
)
from .autoattack import apgd, square
from .estimated import NES, boundary
from .gradient import bim, fgsm, noise, pgd, rfgsm
from .losses import LOSSES, cross_entropy, dlr, margin
from .minimal import cw, deepfool
from .objective import Best, Objective, View, logits
from .straight_through import StraightThrough
from .suite import WorstCase, quantised, suite, taken
