"""Digits: what is judged, compared and certified, as tables.

A new defense or setting is a row here. What was chosen on validation digits is in
:mod:`.digit_choices`; what runs the rows is in :mod:`.compare` and :mod:`.verdicts`; which command
runs which, in :mod:`.commands`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .. import attacks
from ..evaluation import BUDGETS, Budget
from . import defenses, recipes
from .compare import Profile, Study
from .digit_choices import CLASSIFIER, EPSILONS, ORDER, PURIFIER_EPS, test, validation
from .place import Place
from .verdicts import Certified, Ladder, Proved, Verdict

# What a CPU can do in about an hour per record. One fresh draw per gradient is a weaker attack than
# several; what it finds is an upper bound. The attack along one known draw is tried, too.
LIGHT = replace(
    BUDGETS["reference"], draws=1, restarts=1, targets=3, weights=(0.01, 0.1), queries=1000
)
TINY = Budget(pgd=5, apgd=5, targets=1, queries=10, draws=1, weights=(0.1,), scoring=2)

# Attackers who know the defense.

LADDER = Ladder(
    record="mnist_ladder",
    defenses={k: defenses.OURS[k] for k in ("direct", "adaptive, chosen")},
    images=partial(validation, n=200),
    epsilons=(0.2, 0.3),
    weights=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
)
# Of the first digits in the official order, as they have been asked.
_TITLES = {"direct": "direct", "adaptive, chosen": "chosen", "adaptive, default": "default"}


def _verdict(name: str, eps: float) -> Verdict:
    """Half of the digits where few fall early, and each costs the whole budget."""
    direct, title = name == "direct", _TITLES[name]
    reference = direct or (name == "adaptive, chosen" and eps == max(EPSILONS))
    return Verdict(
        record=f"mnist_robust_{title}_{eps:g}",
        defense=name,
        row=defenses.OURS[name],
        images=test,
        n=100 if not direct and eps == min(EPSILONS) else 200,
        eps=eps,
        budget=BUDGETS["reference"] if reference else LIGHT,
        title=title,
        curves=reference,
    )


ROBUSTNESS = tuple(_verdict(name, eps) for name in _TITLES for eps in (0.3, 0.2, 0.1))

# The same on the random sample, all of one budget, with the walks that were chosen against those
# who know them. Fewer digits where the answer is clear, or where few fall and each costs all.
KNOWN = tuple(
    Verdict(
        record=f"mnist_known_{slug}_{eps:g}",
        defense=name,
        row=row,
        images=test,
        n=1000 if slug == "direct" or (slug != "grey" and eps > min(EPSILONS)) else 200,
        eps=eps,
        budget=BUDGETS["quick"],
        title=name,
        curves=False,
        order=ORDER,
    )
    for eps in EPSILONS
    for slug, (name, row) in zip(
        ("direct", "grey", "white", "white-R"), defenses.KNOWN.items(), strict=True
    )
)

# What kept most, once more under the heaviest attack, beside direct purification.
HARDER = tuple(
    replace(
        row,
        record=row.record.replace("known", "harder"),
        n=100,
        budget=BUDGETS["reference"],
    )
    for row in KNOWN
    if row.eps == max(EPSILONS) and row.defense in ("direct", list(defenses.KNOWN)[-1])
)

# Against other defenses.

COMPARISON = Study(
    name="mnist",
    what="digits",
    images=test,
    defenses=defenses.DIGITS,
    attacks={
        "noise": attacks.noise,
        "FGSM": attacks.fgsm,
        "R-FGSM": attacks.rfgsm,
        "BIM": attacks.bim,
        "PGD": partial(attacks.pgd, steps=50),
    },
    epsilons=EPSILONS,
    about_attacks={"BIM": "10 steps", "PGD": "50 steps"},
    about_data={"split": "test"},
    profiles={
        "quick": Profile(
            data="quick",
            weak=500,
            cw=50,
            strong=20,
            epsilons=(0.2,),
            budget=Budget(pgd=20, apgd=20, targets=2, queries=100, draws=1, weights=(0.1,)),
            fewer={"soap": (200, 10), "defense-gan": (100, 5), "diffpure": (200, 10)},
        ),
        "full": Profile(
            weak=10_000,
            cw=500,
            strong=1000,
            epsilons=(0.2, 0.3, 0.1),
            budget=BUDGETS["quick"],
            fewer={
                "resize and pad": (10_000, 200),
                "soap": (2000, 50),
                "diffpure": (10_000, 50),
                "defense-gan": (1000, 20),
            },
            ours=False,
        ),
    },
    verdicts=ROBUSTNESS,
)
# The same on a random sample of the test digits, all under one budget: the book's own and the slow
# ones on fewer of them. It takes the other's place once it is complete.
_FEWER = (*defenses.OURS, "resize and pad", "diffpure")
SAMPLED = replace(
    COMPARISON,
    name="mnist_sampled",
    order=ORDER,
    verdicts=(),
    profiles=COMPARISON.profiles
    | {
        "full": replace(
            COMPARISON.profiles["full"],
            fewer=dict.fromkeys(_FEWER, (10_000, 200))
            | {"soap": (2000, 200), "defense-gan": (1000, 60)},
            ours=True,
        )
    },
)

# A purifier that is trained through the classifier.

PURIFIER_VERDICT = Verdict(
    record="mnist_purifier_verdict",
    defense="purifier",
    row=defenses.PURIFIER["purifier"],
    images=test,
    n=1000,
    eps=PURIFIER_EPS["linf"],
    budget=replace(BUDGETS["reference"], restarts=10),
    title="purifier",
    attacks={"PGD, 10 restarts": partial(attacks.pgd, steps=100, restarts=10, early_stop=True)},
)

# What its warnings prescribe, asked of the same digits later: a smaller budget, all responses.
PURIFIER_AGAIN = replace(
    PURIFIER_VERDICT,
    record="mnist_purifier_again",
    budget=BUDGETS["quick"],
    attacks={},
    curves=False,
)

# Beside the one that was trained later: digits of the random sample after those that others have.
STRONGER_VERDICTS = tuple(
    replace(
        PURIFIER_AGAIN,
        record=record,
        defense=name,
        row=row,
        title=name,
        order=ORDER,
        skip=1000,
        n=2000,
    )
    for record, name, row in (
        ("mnist_stronger_first", "purifier", defenses.PURIFIER["purifier"]),
        ("mnist_stronger", "stronger purifier", defenses.STRONGER),
    )
)

# A quick look takes the first of them for a defense.
CUTS = tuple(
    replace(
        PURIFIER_AGAIN,
        record=f"mnist_cut_{name.split()[-1].lower()}",
        defense=name,
        row=row,
        title=name,
        n=200,
    )
    for name, row in defenses.CUT.items()
)


def _purifier(norm: str, name: str, fewer: dict[str, tuple[int, int]], **more) -> Study:
    eps = PURIFIER_EPS[norm]
    return Study(
        name=name,
        what="digits",
        images=test,
        defenses=defenses.PURIFIER,
        attacks={
            "noise": partial(attacks.noise, norm=norm),
            "PGD": partial(attacks.pgd, steps=50, norm=norm),
        },
        epsilons=(eps,),
        about_attacks={"PGD": "50 steps", "norm": norm},
        about_data={"split": "test"},
        profiles={
            "quick": Profile(100, 5, 20, (eps,), TINY, "quick"),
            "full": Profile(1000, 20, 100, (eps,), BUDGETS["quick"], fewer=fewer),
        },
        norm=norm,
        **more,
    )


_WALKS = ("purifier after steps", "steps alone")
PURIFIER = _purifier(
    "linf",
    "mnist_purifier",
    dict.fromkeys(_WALKS, (100, 30)) | {"purifier": (1000, 0)},
    verdicts=(PURIFIER_VERDICT,),
)
PURIFIER_L2 = _purifier("l2", "mnist_purifier_l2", dict.fromkeys(_WALKS, (100, 0)))

# What cannot change an answer.

CERTIFIED = Certified(
    name="mnist",
    what="digits",
    classifier=CLASSIFIER,
    recipe=partial(recipes.digits_dae, width=16),
    images=partial(Place.load, name="mnist", profile="full"),
)

# What no change can make misread, and what attacks leave of it.

PROVED = Proved(
    record="mnist_proved",
    defenses=defenses.PROVED,
    images=test,
    epsilons=(0.1, 0.2, recipes.CERTIFIED_EPS, 0.31),
)
PROVED_VERDICT = Verdict(
    record="mnist_proved_verdict",
    defense="certified purifier",
    row=defenses.PROVED["certified purifier"],
    images=test,
    n=1000,
    eps=recipes.CERTIFIED_EPS,
    budget=BUDGETS["quick"],
    title="certified purifier",
    curves=False,
    order=ORDER,
)
