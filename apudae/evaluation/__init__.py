"""How often is a model right, under every attack at hand? ``python -m apudae.evaluation`` asks too.

The protocol:

- :func:`evaluate`: attack a model in every way at hand; gives a :class:`Report`
- :class:`Budget`, :data:`BUDGETS`, :func:`plan`: what attacks may cost, and which there are
- :class:`Finding`, :data:`RULES`, :func:`inspect_model`: signs that a robustness is not one
- :class:`AttackWarning`: how they are drawn

Guarantees by randomised smoothing:

- :func:`certify`, :class:`Certificates`, :data:`ABSTAINED`: radii within which no attack succeeds
- :func:`lower_bound`, :func:`votes`: what they are made of
- :class:`Smoothed`: a stand-in for the smoothed classifier that can be attacked

A proof by bounds of every layer: :func:`verify`, :class:`Verified`.

Numbers and their intervals:

- :func:`accuracy`, :func:`outcomes`, :class:`Accuracy`: images that are read rightly
- :func:`paired_difference`, :class:`Difference`: of two models on the same images
- :func:`same_images`: several :class:`Outcomes` on the images that all of them are of
- :func:`auc`, :func:`roc`, :class:`Auc`: of a detector
"""

from ..core.arguments import AttackWarning
from ..core.scores import (
    Accuracy,
    Auc,
    Difference,
    Outcomes,
    accuracy,
    auc,
    outcomes,
    paired_difference,
    roc,
    same_images,
)
from .attackers import BUDGETS, Budget, plan
from .certification import ABSTAINED, Certificates, Smoothed, certify, lower_bound, votes
from .diagnostics import RULES, Finding, inspect_model
from .evaluate import evaluate
from .report import Report
from .verification import Verified, verify
