"""Every attack by name, with budgets that suit toy models."""

from functools import partial

from apudae import attacks
from apudae.core.norms import NORMS

ATTACKS = {
    "noise": attacks.noise,
    "fgsm": attacks.fgsm,
    "rfgsm": attacks.rfgsm,
    "bim": attacks.bim,
    "pgd": partial(attacks.pgd, steps=5, restarts=2),
    "apgd": partial(attacks.apgd, steps=8, restarts=2),
    "square": partial(attacks.square, queries=12),
    "deepfool": attacks.deepfool,
    "cw": partial(attacks.cw, steps=20, searches=3, step_size=0.1),
}
RANDOM = ("noise", "rfgsm", "pgd", "apgd", "square")
BOTH = [(name, norm) for name in ATTACKS for norm in NORMS if (name, norm) != ("cw", "linf")]


def call(name, model, x, y, *, norm="linf", **options):
    """Any attack by name; C&W knows L2 only."""
    return ATTACKS[name](model, x, y, **options if name == "cw" else options | {"norm": norm})
