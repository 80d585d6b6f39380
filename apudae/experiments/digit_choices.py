"""Choices on digits, as tables: noise level, variant, settings of published defenses, purifier.

What is tried is a row here, and each rule was fixed before looking; but the candidates of
:data:`BEGUN` answer what those of :data:`STRONGER` had shown. What runs a choice is in
:mod:`.choose`; what is compared at the settings that were chosen, in :mod:`.digits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks, data, models
from ..attacks.gradient import corner_pgd
from ..core.arguments import require
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
LONG = 20  # epochs of what is chosen
# What is tried: the network, and how much the reconstruction counts.
CANDIDATES: dict[str, Options] = {
    "latent 64": {"latent": 64, "weight": 1.0},
    "latent 128": {"latent": 128, "weight": 1.0},
    "latent 128, tones": {"latent": 128, "tones": 8, "weight": 1.0},
    "latent 128, tones, λ = 10": {"latent": 128, "tones": 8, "weight": 10.0},
}
# Later, from what was chosen among them: trained for a larger ball than it is judged in, from
# corners, where thresholds leave a gradient, with the term of TRADES, and wider.
_FIRST = CANDIDATES["latent 128, tones"]
_FURTHER = _FIRST | {"eps": 0.33}
_CORNERS = _FURTHER | {"random_start": "corners"}
STRONGER: dict[str, Options] = {
    "as before": _FIRST,
    "ε to 0.33": _FURTHER,
    "ε to 0.33, corners": _CORNERS,
    "ε to 0.33, TRADES": _FURTHER | {"trades": 6.0},
    "ε to 0.33, corners, TRADES": _CORNERS | {"trades": 6.0},
    "ε to 0.33, corners, wider": _CORNERS | {"tones": 16, "width": 48},
}
# And when that had shown nothing but that four epochs find no threshold: one from the start, and
# digits moved at random, since the first purifier reads those that it was trained on far better.
_BEGUN = _FIRST | {"thresholds": 8, "augment": "turn"}
BEGUN: dict[str, Options] = {
    "thresholds, moved": _BEGUN,
    "thresholds, moved, ε to 0.33, corners": _BEGUN | _CORNERS,
    "the same, half past the thresholds": _BEGUN | _CORNERS | {"past": True},
}


def purifier_recipe(
    candidate: str, epochs: int = LONG, norm: str = "linf", seed: int = 0, **model: int
) -> recipes.Recipe:
    """How a purifier is trained: 7 steps of PGD through purifier and classifier, ε growing.

    Args:
        candidate: a key of :data:`CANDIDATES`, :data:`STRONGER` or :data:`BEGUN`.
        epochs: over the training digits.
        norm: of the attacks.
        seed: of the first weights, the order, and what the attacks draw.
        model: options of the network that differ from the candidate's.
    """
    options = (CANDIDATES | STRONGER | BEGUN)[candidate]
    options = {"eps": PURIFIER_EPS[norm], "norm": norm} | options

    def own(*names: str) -> Options:
        return {k: options.pop(k) for k in names if k in options}

    network = own("latent", "tones", "width", "thresholds")
    fit = {"batch_size": 128, "lr": 2e-3, "ema": 0.998, "seed": seed, "epochs": epochs}
    fit |= own("augment")
    network |= model | ({"seed": seed} if seed else {})
    attack = attacks.pgd
    if options.pop("random_start", "") == "corners":
        attack = recipes.both_ways if options.pop("past", False) else corner_pgd
        options.pop("norm")
    task = recipes.through(attack=attack, **options)
    return recipes.Recipe("mnist-dae", task, fit, network, defended=CLASSIFIER)


@dataclass(frozen=True)
class Purifiers:
    """Purifiers that are trained briefly and attacked as a whole, to choose one of them.

    Attributes:
        record: name of the record.
        label: of the weights that are tried.
        table: the candidates: :data:`CANDIDATES`, :data:`STRONGER` or :data:`BEGUN`.
        probes: the attacks.
        epochs: of each.
    """

    record: str
    label: str
    table: dict[str, Options]
    probes: dict[str, Callable[..., Tensor]]
    epochs: int

    def briefly(self, number: int, place: Place) -> nn.Module:
        """One of them, trained if it is not there."""
        recipe = purifier_recipe(list(self.table)[number], self.epochs)
        return recipes.tried(f"{self.label}-{number}", recipe, partial(train, place), place)

    def trials(self, record: Record, images: data.Split, place: Place) -> Iterator[Trial]:
        """Each, clean and in the worst case; chosen is the one with the most in both together."""

        def hit(model: nn.Module) -> tuple:
            eps = PURIFIER_EPS["linf"]
            worst = attacks.suite(model, *images, eps=eps, attacks=self.probes)
            return [images.images, worst.images], images.labels

        def make(number: int) -> nn.Module:
            return Defended(place.model(CLASSIFIER), Direct(self.briefly(number, place))).eval()

        for number, (name, options) in enumerate(self.table.items()):
            self.briefly(number, place)
            more = {"dae_sha256": models.about(f"{self.label}-{number}", place.tried)["sha256"]}
            yield Trial(name, options, partial(make, number), asked=hit, more=more)
        record.save(chosen=max(record.rows, key=score)["defense"])

    def choice(self, n: int, told: str, attack: Row) -> Choice:
        """The row that runs it on so many validation digits.

        Args:
            n: how many.
            told: how many attacks, in words.
            attack: what the record says of them.
        """
        return replace(
            SELECTION,
            record=self.record,
            trials=self.trials,
            images=partial(validation, n=n),
            epsilons=(0.0, PURIFIER_EPS["linf"]),
            about=lambda place: {
                "what": "which validation digits are read correctly behind purifiers that were "
                f"trained briefly, clean and in the worst case of {told} "
                "attacks on the whole",
                "attack": {"name": "suite"} | attack,
                "classifier_sha256": model_fingerprint(place.model(CLASSIFIER)),
                "epochs": {"tried": self.epochs, "kept": LONG},
            },
            keyed=True,
        )


def _past_clamps(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """APGD whose gradient passes what a threshold cuts off."""
    view = attacks.StraightThrough(model, clamps=True)
    return attacks.apgd(view, x, y, **options)


_PROBES = {
    "PGD": partial(attacks.pgd, steps=40, early_stop=True),
    "APGD-DLR": partial(attacks.apgd, loss="dlr-targeted", targets=3, steps=40, early_stop=True),
}
_FIRST_LOOK = {"names": ["pgd", "apgd, targeted DLR"], "steps": 40}
PURIFIERS = Purifiers("mnist_purifier_choice", "purifier", CANDIDATES, _PROBES, 3)
PURIFIER_CHOICE = PURIFIERS.choice(500, "two", _FIRST_LOOK)
_MORE = {
    "past clamps": partial(_past_clamps, steps=40, early_stop=True),
    "Square": partial(attacks.square, queries=500),
}
STRONGER_PURIFIERS = Purifiers("mnist_stronger_choice", "stronger", STRONGER, _PROBES | _MORE, 4)
BEGUN_PURIFIERS = Purifiers("mnist_begun_choice", "begun", BEGUN, _PROBES | _MORE, 4)
_MORE_LOOK = {"names": [*_FIRST_LOOK["names"], "apgd past clamps", "square"], "queries": 500}
STRONGER_CHOICE, BEGUN_CHOICE = (
    several.choice(1000, "four", _FIRST_LOOK | _MORE_LOOK)
    for several in (STRONGER_PURIFIERS, BEGUN_PURIFIERS)
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


def strongest(place: Place) -> str:
    """Of all that were tried later the one with the highest score.

    Raises:
        ValueError: not all of them have been tried.
    """
    rows = [row for one in (STRONGER_CHOICE, BEGUN_CHOICE) for row in place.rows(one.record)]
    tried, wanted = {row["defense"] for row in rows}, {*STRONGER, *BEGUN}
    require(tried == wanted, f"{BEGUN_CHOICE.record}: not complete; run mnist-stronger")
    return max(rows, key=score)["defense"]


def stronger_recipes(chosen: str) -> dict[str, recipes.Recipe]:
    """Of the purifier that was chosen among those that were tried later."""
    return {"mnist-purifier-strong": purifier_recipe(chosen)}
