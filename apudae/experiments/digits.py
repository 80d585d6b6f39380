"""Digits: what is trained, chosen, judged, compared and certified, as tables.

A new defense or setting is a row here. What runs them is in :mod:`.choose`, :mod:`.compare` and
:mod:`.verdicts`; which command runs which, in :mod:`.commands`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import nn

from .. import attacks, data, models
from ..core.files import model_fingerprint
from ..core.record import Record, Row
from ..data import Split
from ..evaluation import BUDGETS, Budget
from ..purification import PRESETS, Adaptive, Calibration, Defended, Direct, calibrate
from . import defenses, recipes
from .choose import Choice, Options, Trial, attacked, best, milliseconds, score
from .compare import Profile, Study
from .place import Place
from .recipes import Recipe
from .verdicts import Certified, Ladder, Verdict

CLASSIFIER, DAE = "mnist-cnn", "mnist-dae"
EPSILONS = (0.1, 0.2, 0.3)  # in L∞
# What a CPU can do in about an hour per record. One fresh draw per gradient is a weaker attack than
# several; what it finds is an upper bound. The attack along one known draw is tried, too.
LIGHT = replace(
    BUDGETS["reference"],
    draws=1,
    restarts=1,
    targets=3,
    weights=(0.01, 0.1),
    queries=1000,
)
TINY = Budget(pgd=5, apgd=5, targets=1, queries=10, draws=1, weights=(0.1,), scoring=2)


def train(place: Place) -> Split:
    """The 58,000 digits to train on, 8 bits each."""
    return place.load("mnist", "train", profile="full", dtype=torch.uint8)


def validation(place: Place, n: int = 1000) -> Split:
    """Digits to choose on."""
    return place.load("mnist", "validation").take(n)


def test(place: Place, profile: str = "full") -> Split:
    """Test digits: the 10,000 official ones, or the 1,000 bundled ones."""
    return place.load("mnist", "test", profile=profile)


# Which noise level, and how long a walk.

SIGMAS = (0.2, 0.3, 0.4, 0.5)
WALKS = tuple(
    {"steps": steps, "step_size": size} for steps in (15, 30) for size in (0.02, 0.05, 0.1)
)


def levels(record: Record, images: Split, place: Place) -> Iterator[Trial]:
    """A DAE for each noise level, used directly and adaptively; the chosen one is kept."""
    net, digits = place.model(CLASSIFIER), cache(partial(train, place))
    for sigma in SIGMAS:
        name = f"{DAE}-{sigma:g}"
        dae = recipes.tried(name, recipes.digits_dae(sigma), digits, place)
        more = {"dae_sha256": models.about(name, place.tried)["sha256"]}
        for walk in ({}, *WALKS):
            purifier = Adaptive(dae, **walk) if walk else Direct(dae)
            make = partial(Defended, net, purifier)
            use = "adaptive" if walk else "direct"
            yield Trial(use, {"sigma": sigma, **walk}, make, more=more)
    chosen = choose_level(record.rows)
    recipes.keep(f"{DAE}-{chosen['sigma']:g}", DAE, place)
    record.save(chosen=chosen)


def choose_level(rows: list[Row]) -> Options:
    """The rule, fixed before looking.

    The noise level is the one whose direct score and best adaptive score have the highest sum, so
    that neither use is favoured; the adaptive options are the best at that level.
    """

    def at(sigma: float, use: str) -> Row:
        return best((row for row in rows if row["options"]["sigma"] == sigma), use)

    sigmas = dict.fromkeys(row["options"]["sigma"] for row in rows)
    sigma = max(sigmas, key=lambda s: score(at(s, "direct")) + score(at(s, "adaptive")))
    return at(sigma, "adaptive")["options"]


SELECTION = Choice(
    record="mnist_selection",
    trials=levels,
    images=validation,
    classifier=lambda place: place.model(CLASSIFIER),
    epsilons=(0.0, *EPSILONS),
    steps=50,
    about=lambda place: {
        "what": "which validation digits are read correctly under PGD on the classifier alone",
        "attack": {"aims_at": CLASSIFIER, "step_size": "2.5 eps / steps"}
        | {"random_start": True, "early_stop": False},
        "data": {"name": "mnist"},
        "classifier_sha256": place.sha256(CLASSIFIER),
        "training": {"classifier": recipes.CLASSIFIER_TRAINING, "dae": recipes.DAE_TRAINING},
    },
    keyed=False,
)

# Which variant of purification.

_SIZES = ({"step_size": 0.02}, {"step_size": 0.05}, {"steps": 30, "step_size": 0.02})
# Options that replace the authors', which fit colour images; {} leaves them as they are.
GRID: dict[str, tuple[Options, ...]] = {
    "simple": ({}, *_SIZES),
    "biased": ({}, *_SIZES),
    "biased-steps": ({}, *_SIZES),
    "probabilistic-mean": ({}, *_SIZES),
    # The noise keeps its proportion to the step, 0.7 to 2.
    "probabilistic": (
        {},
        *(size | {"noise": round(0.35 * size["step_size"], 4)} for size in _SIZES),
    ),
    "kl": ({},),
    "l2": ({}, {"step_size": 0.3}, {"step_size": 1.0}, {"steps": 30, "step_size": 0.3}),
    "sign": ({}, *(size | {"eps": 0.3} for size in _SIZES)),
}
# The book's own, not among the variants that can be chosen.
OTHERS: dict[str, Options] = {
    "no defense": {},
    "direct": {"repeats": 1},
    "direct, twice": {"repeats": 2},
    "descent": {"stepper": "descent", "steps": 30, "step_size": 0.1},
    "simple, then R": {"steps": 30, "step_size": 0.02, "reconstruct": True},
}
TESTED, TEST_STEPS = 5000, 200  # the first so many official test digits, and steps of PGD


def purified(
    classifier: nn.Module,
    dae: nn.Module,
    level: Calibration,
    name: str,
    options: Options,
) -> Defended:
    """A classifier behind nothing, direct purification, a variant or other adaptive steps."""
    if name == "no defense":
        purifier: nn.Module = nn.Identity()
    elif "repeats" in options:
        purifier = Direct(dae, **options)
    elif name in PRESETS:
        purifier = Adaptive.preset(name, dae, level, **options)
    else:
        purifier = Adaptive(dae, calibration=level, **options)
    return Defended(classifier, purifier)


def variants(record: Record, images: Split, place: Place) -> Iterator[Trial]:
    """Every variant at its settings; the chosen one, and the best of each other, are tested."""
    net, dae = place.model(CLASSIFIER), place.model(DAE)
    level = record.more.setdefault("calibration", list(calibrate(dae, images.images)))
    build = partial(purified, net, dae, Calibration(*level))

    @cache
    def unseen() -> tuple:
        x, y = test(place).take(TESTED)
        return attacked(net, x, y, record.about["eps"], TEST_STEPS), y

    grid = [(name, options) for name, several in GRID.items() for options in several]
    for name, options in [*OTHERS.items(), *grid]:
        yield Trial(name, options, partial(build, name, options), split="validation")
    rows = [row for row in record.rows if row["split"] == "validation"]
    for name, options in tested(rows):
        make = partial(build, name, options)
        yield Trial(name, options, make, asked=lambda model: unseen(), split="test")
    for row in rows:
        model = build(row["defense"], row["options"])
        row.setdefault("ms_per_image", milliseconds(model, images.images[:200]))
    record.save(chosen=choose_variant(rows))


def whole(name: str, options: Options) -> Options:
    """A variant's options with those that it has by itself."""
    return (PRESETS[name].options if name in PRESETS else {}) | options


def choose_variant(rows: list[Row]) -> Options:
    """The rule: of the authors' variants, the highest mean accuracy over all ε, 0 included.

    Of two alike, the one with fewer steps, then the one listed first.
    """
    able = [row for row in rows if row["defense"] in PRESETS]
    found = max(able, key=lambda r: (score(r), -whole(r["defense"], r["options"])["steps"]))
    return {"variant": found["defense"], "options": found["options"]}


def tested(rows: list[Row]) -> list[tuple[str, Options]]:
    """What is tested: the chosen variant, then the best setting of each other."""
    tried = dict.fromkeys(row["defense"] for row in rows if row["defense"] in PRESETS)
    able = [choose_variant([row for row in rows if row["defense"] == name]) for name in tried]
    able.sort(key=lambda found: found != choose_variant(rows))
    known = list(OTHERS.items())
    return [*known[:3], *((found["variant"], found["options"]) for found in able), *known[3:]]


def setting(name: str, options: Options) -> str:
    """Steps and step size, as ``"13 × 0.05"``; of direct purification the passes."""
    if name == "no defense" or "repeats" in options:
        return f"{options['repeats']} ×" if options else "–"
    return "{steps} × {step_size:.2g}".format(**whole(name, options))


def passes(name: str, options: Options) -> int:
    """Passes through the DAE per image, forward and backward."""
    if name == "no defense" or "repeats" in options:
        return options.get("repeats", 0)
    return 2 * whole(name, options)["steps"] + options.get("reconstruct", False)


def _two_splits(place: Place) -> Row:
    x = test(place).images[:TESTED]
    return {
        "what": "which digits are read correctly under PGD on the classifier alone",
        "attack": SELECTION.about(place)["attack"]
        | {"steps": {"validation": 50, "test": TEST_STEPS}},
        "weights_sha256": {name: place.sha256(name) for name in (CLASSIFIER, DAE)},
        "data": {"test": {"n": len(x), "sha256": data.fingerprint(x)}},
    }


VARIANTS = replace(
    SELECTION, record="mnist_variants", trials=variants, about=_two_splits, splits=True
)

# Settings of the published defenses.

_STEPS = tuple({"step_size": size} for size in (3.0, 10.0, 30.0, 100.0))
# Defense-GAN and DiffPure: as many steps as an attacker on a CPU can differentiate through.
PUBLISHED: dict[str, tuple[Options, ...]] = {
    "bit depth": tuple({"bits": bits} for bits in (1, 2, 3, 4)),
    "median": tuple({"size": size} for size in (2, 3)),
    "jpeg": tuple({"quality": quality} for quality in (10, 25, 50, 75)),
    "resize and pad": tuple({"smallest": scale} for scale in (0.5, 0.6, 0.7, 0.8, 0.9)),
    "diffpure": tuple({"level": level, "steps": 5} for level in (0.1, 0.2, 0.3, 0.4, 0.5)),
    "defense-gan": tuple(
        shape | size
        for shape in ({"starts": 1, "steps": 60}, {"starts": 2, "steps": 30})
        for size in _STEPS
    ),
}
TUNED_ON = {"diffpure": 500, "defense-gan": 200}  # validation digits, instead of all


def tuning(record: Record, images: Split, place: Place) -> Iterator[Trial]:
    """Published defenses; what is chosen stands in :data:`.defenses.PUBLISHED`, a test compares."""
    for name, several in PUBLISHED.items():
        for options in several:
            make = partial(defenses.PUBLISHED[name].build, place, **options)
            yield Trial(name, options, make, TUNED_ON.get(name))
    record.save(chosen={name: best(record.rows, name)["options"] for name in PUBLISHED})


def _tuned_networks(place: Place) -> Row:
    networks = {CLASSIFIER}.union(*(defenses.PUBLISHED[name].weights for name in PUBLISHED))
    return {
        "what": "which validation digits are read correctly under PGD on the classifier alone, by "
        "published defenses at several settings",
        "attack": {"aims_at": CLASSIFIER},
        "weights_sha256": {name: place.sha256(name) for name in sorted(networks)},
    }


TUNING = replace(SELECTION, record="mnist_tuning", trials=tuning, about=_tuned_networks, keyed=True)

# Attackers who know the defense.

LADDER = Ladder(
    record="mnist_ladder",
    defenses={k: defenses.OURS[k] for k in ("direct", "adaptive, chosen")},
    images=partial(validation, n=200),
    epsilons=(0.2, 0.3),
    weights=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
)
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

# A purifier that is trained through the classifier.

PURIFIER_EPS = {"linf": 0.3, "l2": 2.0}
BRIEF, LONG = 3, 20  # epochs
# What is tried: the network, and how much the reconstruction counts.
CANDIDATES: dict[str, Options] = {
    "latent 64": {"latent": 64, "weight": 1.0},
    "latent 128": {"latent": 128, "weight": 1.0},
    "latent 128, tones": {"latent": 128, "tones": 8, "weight": 1.0},
    "latent 128, tones, λ = 10": {"latent": 128, "tones": 8, "weight": 10.0},
}
_PROBE = {"steps": 40, "early_stop": True}
_PROBES = {
    "PGD": partial(attacks.pgd, **_PROBE),
    "APGD-DLR": partial(attacks.apgd, loss="dlr-targeted", targets=3, **_PROBE),
}


def purifier_recipe(candidate: str, epochs: int = LONG, norm: str = "linf", **model: int) -> Recipe:
    """How a purifier is trained: 7 steps of PGD through purifier and classifier, ε growing.

    Args:
        candidate: a key of :data:`CANDIDATES`.
        epochs: over the training digits.
        norm: of the attacks.
        model: options of the network that differ from the candidate's.
    """
    options = dict(CANDIDATES[candidate])
    task = recipes.through(PURIFIER_EPS[norm], norm=norm, weight=options.pop("weight"))
    fit = {"batch_size": 128, "lr": 2e-3, "ema": 0.998, "seed": 0, "epochs": epochs}
    return Recipe("mnist-dae", task, fit, options | model, defended=CLASSIFIER)


def candidates(record: Record, images: Split, place: Place) -> Iterator[Trial]:
    """Purifiers that are trained briefly, attacked as a whole."""
    net, digits = place.model(CLASSIFIER), cache(partial(train, place))

    def hit(model: nn.Module) -> tuple:
        worst = attacks.suite(model, *images, eps=PURIFIER_EPS["linf"], attacks=_PROBES)
        return [images.images, worst.images], images.labels

    for number, (name, options) in enumerate(CANDIDATES.items()):

        def make(name: str = name, number: int = number) -> nn.Module:
            how = purifier_recipe(name, BRIEF)
            dae = recipes.tried(f"purifier-{number}", how, digits, place)
            return Defended(net, Direct(dae)).eval()

        yield Trial(name, options, make, asked=hit)
    record.save(chosen=max(record.rows, key=score)["defense"])


PURIFIER_CHOICE = replace(
    SELECTION,
    record="mnist_purifier_choice",
    trials=candidates,
    images=partial(validation, n=500),
    epsilons=(0.0, PURIFIER_EPS["linf"]),
    about=lambda place: {
        "what": "which validation digits are read correctly behind purifiers that were trained "
        "briefly, clean and in the worst case of two attacks on the whole",
        "attack": {"name": "suite", "names": ["pgd", "apgd, targeted DLR"], "steps": 40},
        "classifier_sha256": model_fingerprint(place.model(CLASSIFIER)),
        "epochs": {"tried": BRIEF, "kept": LONG},
    },
    keyed=True,
)


def purifier_recipes(chosen: str) -> dict[str, Recipe]:
    """Of the purifiers, once one is chosen, and of classifiers they were not trained with.

    The purifier that is trained in L2 answers a side question: small, and trained for less.
    """
    in_l2 = purifier_recipe(chosen, 6, "l2", latent=64, width=16)
    trained = {"mnist-purifier": purifier_recipe(chosen), "mnist-purifier-l2": in_l2}
    return trained | recipes.OTHERS


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
