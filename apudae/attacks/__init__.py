"""TODO doc of attacks."""

from ..core.norms import in_ball, length, project, steepest, uniforms
from . import as_published
from .adaptive import (
    BPDA,
    EOT,
    Averaged,
    Exact,
    Fixed,
    ReconstructionAware,
    Surrogate,
    Uncut,
)
from .autoattack import apgd, square
from .gradient import bim, fgsm, noise, pgd, rfgsm
from .minimal import cw, deepfool
from .objective import LOSSES, Best, Objective, View, cross_entropy, dlr, margin
from .straight_through import StraightThrough
from .suite import WorstCase, standard, suite, taken

__all__ = [
    "BPDA",
    "EOT",
    "LOSSES",
    "Averaged",
    "Best",
    "Exact",
    "Fixed",
    "Objective",
    "ReconstructionAware",
    "StraightThrough",
    "Surrogate",
    "Uncut",
    "View",
    "WorstCase",
    "apgd",
    "as_published",
    "bim",
    "cross_entropy",
    "cw",
    "deepfool",
    "dlr",
    "fgsm",
    "in_ball",
    "length",
    "margin",
    "noise",
    "pgd",
    "project",
    "rfgsm",
    "square",
    "standard",
    "steepest",
    "suite",
    "taken",
    "uniforms",
]
