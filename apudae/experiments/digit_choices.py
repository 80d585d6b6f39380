"""Choices on digits, as tables: noise level, variant, settings of published defenses, purifier.

What is tried is a row here, and each rule was fixed before looking. What runs a choice is in
:mod:`.choose`; what is compared at the settings that were chosen, in :mod:`.digits`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import nn

from .. import attacks, data, models
from ..core.files import model_fingerprint
from ..core.prints import data_print
from ..core.record import Record, Row
from ..purification import PRESETS, Adaptive, Calibration, Defended, Direct, calibrate
from . import defenses, recipes
from .choose import Choice, Trial, attacked, best, milliseconds, score
from .place import Options, Place

CLASSIFIER, DAE = "mnist-cnn", "mnist-dae"
EPSILONS = (0.1, 0.2, 0.3)  # in L∞
ORDER = data.Order(10_000)  # in which the official test digits are asked


def train(place: Place) -> data.Split:
    """The 58,000 digits to train on, 8 bits each."""
    return place.load("mnist", "train", profile="full", dtype=torch.uint8)


def validation(place: Place, n: int = 1000) -> data.Split:
    """Digits to choose on."""
    return place.load("mnist", "validation").take(n)


def test(place: Place, profile: str = "full") -> data.Split:
    """Test digits: the 10,000 official ones, or the 1,000 bundled ones."""
    return place.load("mnist", "test", profile=profile)


# Which noise level, and how long a walk.

SIGMAS = (0.2, 0.3, 0.4, 0.5)
WALKS = tuple(
    {"steps": steps, "step_size": size} for steps in (15, 30) for size in (0.02, 0.05, 0.1)
)


def levels(record: Record, images: data.Split, place: Place) -> Iterator[Trial]:
    """A DAE for each noise level, used directly and adaptively; the chosen one is kept."""
    net, digits = place.model(CLASSIFIER), cache(partial(train, place))
    for sigma in SIGMAS:
        name = f"{DAE}-{sigma:g}"
        dae = recipes.tried(name, recipes.digits_dae(sigma), digits, place)
        more = {"dae_sha256": models.about(name, place.tried)["sha256"]}
        for walk in ({}, *WALKS):
            use, purifier = ("adaptive", Adaptive(dae, **walk)) if walk else ("direct", Direct(dae))
            options = {"sigma": sigma, **walk}
            yield Trial(use, options, partial(Defended, net, purifier), more=more)
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
    classifier: nn.Module, dae: nn.Module, level: Calibration, name: str, options: Options
) -> Defended:
    """A classifier behind nothing, direct purification, a variant or other adaptive steps."""
    if name == "no defense":
        return Defended(classifier, nn.Identity())
    if "repeats" in options:
        return Defended(classifier, Direct(dae, **options))
    return Defended(classifier, Adaptive(dae, calibration=level, **whole(name, options)))


def variants(record: Record, images: data.Split, place: Place) -> Iterator[Trial]:
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
    few = test(place).take(TESTED)
    return {
        "what": "which digits are read correctly under PGD on the classifier alone",
        "attack": SELECTION.about(place)["attack"]
        | {"steps": {"validation": 50, "test": TEST_STEPS}},
        "weights_sha256": {name: place.sha256(name) for name in (CLASSIFIER, DAE)},
        "data": {"test": data_print(*few)},
    }


VARIANTS = replace(
    SELECTION, record="mnist_variants", trials=variants, about=_two_splits, splits=True
)

# Settings of the published defenses.

# Defense-GAN and DiffPure: as many steps as an attacker on a CPU can differentiate through.
PUBLISHED: dict[str, tuple[Options, ...]] = {
    "bit depth": tuple({"bits": bits} for bits in (1, 2, 3, 4)),
    "median": tuple({"size": size} for size in (2, 3)),
    "jpeg": tuple({"quality": quality} for quality in (10, 25, 50, 75)),
    "resize and pad": tuple({"smallest": scale} for scale in (0.5, 0.6, 0.7, 0.8, 0.9)),
    "diffpure": tuple({"level": level, "steps": 5} for level in (0.1, 0.2, 0.3, 0.4, 0.5)),
    "defense-gan": tuple(
        {"starts": starts, "steps": 60 // starts, "step_size": size}
        for starts in (1, 2)
        for size in (3.0, 10.0, 30.0, 100.0)
    ),
}
TUNED_ON = {"diffpure": 500, "defense-gan": 200}  # validation digits, instead of all


def tuning(record: Record, images: data.Split, place: Place) -> Iterator[Trial]:
    """Published defenses; what is chosen stands in :data:`.defenses.PUBLISHED`, a test compares."""
    for name, several in PUBLISHED.items():
        for options in several:
            make = partial(defenses.PUBLISHED[name].build, place, **options)
            yield Trial(name, options, make, TUNED_ON.get(name))
    record.save(chosen={name: best(record.rows, name)["options"] for name in PUBLISHED})


_NETWORKS = {CLASSIFIER}.union(*(defenses.PUBLISHED[name].weights for name in PUBLISHED))
TUNING = replace(
    SELECTION,
    record="mnist_tuning",
    trials=tuning,
    about=lambda place: {
        "what": "which validation digits are read correctly under PGD on the classifier alone, by "
        "published defenses at several settings",
        "attack": {"aims_at": CLASSIFIER},
        "weights_sha256": {name: place.sha256(name) for name in sorted(_NETWORKS)},
    },
    keyed=True,
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
_PROBES = {
    "PGD": partial(attacks.pgd, steps=40, early_stop=True),
    "APGD-DLR": partial(attacks.apgd, loss="dlr-targeted", targets=3, steps=40, early_stop=True),
}


def purifier_recipe(
    candidate: str, epochs: int = LONG, norm: str = "linf", **model: int
) -> recipes.Recipe:
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
    return recipes.Recipe("mnist-dae", task, fit, options | model, defended=CLASSIFIER)


def candidates(record: Record, images: data.Split, place: Place) -> Iterator[Trial]:
    """Purifiers that are trained briefly, attacked as a whole."""
    net, digits = place.model(CLASSIFIER), cache(partial(train, place))

    def hit(model: nn.Module) -> tuple:
        worst = attacks.suite(model, *images, eps=PURIFIER_EPS["linf"], attacks=_PROBES)
        return [images.images, worst.images], images.labels

    def briefly(name: str, number: int) -> nn.Module:
        dae = recipes.tried(f"purifier-{number}", purifier_recipe(name, BRIEF), digits, place)
        return Defended(net, Direct(dae)).eval()

    for number, (name, options) in enumerate(CANDIDATES.items()):
        yield Trial(name, options, partial(briefly, name, number), asked=hit)
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


def purifier_recipes(chosen: str) -> dict[str, recipes.Recipe]:
    """Of the purifiers, once one is chosen, and of classifiers they were not trained with.

    The purifier that is trained in L2 answers a side question: small, and trained for less.
    """
    return {
        "mnist-purifier": purifier_recipe(chosen),
        "mnist-purifier-l2": purifier_recipe(chosen, 6, "l2", latent=64, width=16),
        **recipes.OTHERS,
    }
