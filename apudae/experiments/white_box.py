"""What is chosen on validation digits against an attacker who knows the whole defense.

Who tunes a defense against an attacker who does not know it has tuned for nothing that counts. So
that the idea is not judged by such a choice, the same walks are tried here under a small protocol
on the whole defense: APGD along the full gradient and along smooth stand-ins, and Square. By
successive halving (Jamieson & Talwalkar 2016): all on few digits, the better ones on more, at more
radii, and with other networks, so that the choice is no single network's luck. The walked image
x̂ and its reconstruction R(x̂) are two defenses, and are chosen apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from .. import attacks, data
from ..core.arguments import AttackWarning
from ..core.processes import divided
from ..core.record import Record, Row
from ..evaluation.attackers import why_not_half
from ..purification import PRESETS, Adaptive, Calibration, Defended, Direct, calibrate, smooth
from . import recipes
from .choose import Asked, Trial, score
from .digit_choices import CLASSIFIER, DAE, SELECTION, VARIANTS, train
from .place import Options, Place

MOVED, RECONSTRUCTED = "x̂", "R(x̂)"  # what the classifier sees
# Stepper -> steps and step sizes.
_WALKS = {
    "descent": ((5, 0.1), (10, 0.05), (10, 0.1), (10, 0.2), (30, 0.1)),
    "adam": ((5, 0.1), (10, 0.05), (30, 0.02)),
    "l2": ((10, 0.5), (16, 0.3)),
    "sign": ((10, 0.03),),
}
_SHORT = {"stepper": "descent", "steps": 10, "step_size": 0.1}
_ADAM = {"stepper": "adam", "steps": 10, "step_size": 0.05}
WALKS: tuple[Options, ...] = (
    *(
        {"stepper": stepper, "steps": steps, "step_size": size}
        for stepper, several in _WALKS.items()
        for steps, size in several
    ),
    *(walk | {"expected": [sigma, 4]} for walk in (_SHORT, _ADAM) for sigma in (0.2, 0.4)),
    *(_ADAM | {"objective": objective} for objective in ("hinge", "match", "sigmoid")),
    _ADAM | {"paced": True},
    _ADAM | {"objective": "hinge", "noise": 0.0175},
    *(_SHORT | {"stop": stop} for stop in (0.0, 2.0)),
    _ADAM | {"stop": 0.0},
    # The choice against an attacker who does not know the defense, and the authors' default.
    PRESETS["probabilistic-mean"].options | {"step_size": 0.05},
    PRESETS["probabilistic"].options,
)
Candidate = tuple[str, Options]  # what the classifier sees, and the walk
CANDIDATES: list[Candidate] = [
    (MOVED, walk) if not again else (RECONSTRUCTED, walk | {"reconstruct": True})
    for again in (False, True)
    for walk in WALKS
]
# Classifier and DAE, by name: those that are defended, and others that show what is luck.
_CLASSIFIER = recipes.Recipe("mnist-cnn", options=recipes.CLASSIFIER_TRAINING)
SEEDS = {seed: (f"{CLASSIFIER}-seed-{seed}", f"{DAE}-seed-{seed}") for seed in (1, 2)}
NETWORKS = {
    "shipped": (CLASSIFIER, DAE),
    "another seed": SEEDS[1],
    "a wider bottleneck": (CLASSIFIER, f"{DAE}-latent-128"),
    "a third seed": SEEDS[2],
}
EFFORT = {"steps": 20, "queries": 100}  # of APGD along each gradient, and of Square


@dataclass(frozen=True)
class Round:
    """How those are tried that have come so far.

    Attributes:
        n: validation digits.
        networks: names in :data:`NETWORKS`.
        epsilons: of the attacks.
        keep: how many of either kind go on.
        first: place of the first of the digits.
    """

    n: int
    networks: tuple[str, ...]
    epsilons: tuple[float, ...]
    keep: int
    first: int = 0

    @property
    def name(self) -> str:
        """Under which its rows are stored."""
        return f"{self.n} digits"


ROUNDS = (
    Round(50, ("shipped",), (0.2,), 4),
    Round(100, ("shipped", "another seed"), (0.2, 0.3), 2),
    Round(200, ("shipped", "another seed", "a wider bottleneck"), (0.2, 0.3), 1),
)
# What is chosen, on digits that no walk was chosen on (σ and the calibration were), with networks
# of which the third had no part in the choice: how much a training's seed does.
AGAIN = Round(300, ("shipped", "another seed", "a third seed"), (0.2, 0.3), 1, first=200)


def networks(place: Place, names: Iterable[str]) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Classifier and DAE by name; those that are not there are trained, and only tried."""
    digits, sigma = (
        cache(partial(train, place)),
        (SELECTION.chosen(place) or SELECTION.chosen(Place()))["sigma"],
    )
    again = recipes.digits_dae(sigma)
    others = {f"{DAE}-latent-128": recipes.digits_dae(sigma, latent=128)}
    for seed, pair in SEEDS.items():
        for name, how in zip(pair, (_CLASSIFIER, again), strict=True):
            others[name] = replace(how, options=how.options | {"seed": seed})

    def net(name: str) -> nn.Module:
        how = others.get(name)
        return recipes.tried(name, how, digits, place) if how else place.model(name)

    return {name: tuple(map(net, NETWORKS[name])) for name in names}


def purified(pair: tuple[nn.Module, nn.Module], level: Calibration, options: Options) -> Defended:
    """A classifier behind its DAE: the adaptive use with these options, or the direct one."""
    classifier, dae = pair
    if not options:
        return Defended(classifier, Direct(dae)).eval()
    return Defended(classifier, Adaptive(dae, calibration=level, **options)).eval()


def probes(
    model: Defended, x: Tensor, eps: float, *, half: bool, steps: int, queries: int
) -> dict[str, Callable[..., Tensor]]:
    """APGD along the exact gradient and its stand-ins, then Square; in half precision or not."""
    views: dict[str, nn.Module] = {"full gradient": model}
    if isinstance(model.purifier, Adaptive):
        others = {"direct": Direct(model.purifier.dae), **smooth(model.purifier, x, radius=eps)}
        for name, other in others.items():
            views[name] = attacks.Surrogate(model, Defended(model.classifier, other))
    if model.purifier.random:
        views = {name: attacks.EOT(view, 2) for name, view in views.items()}

    def along(view: nn.Module, how: Callable[..., Tensor], **options: int) -> Callable[..., Tensor]:
        def attack(
            model: nn.Module, x: Tensor, y: Tensor, *, eps: float, index: Tensor, seed: int
        ) -> Tensor:
            return how(view, x, y, eps=eps, index=index, seed=seed, **options)

        return attack

    views = {name: attacks.HalfPrecision(view, half) for name, view in views.items()}
    climb = {"how": attacks.apgd, "steps": steps, "early_stop": True}
    found = {name: along(view, **climb) for name, view in views.items()}
    return found | {"Square": along(views["full gradient"], attacks.square, queries=queries)}


def worst(
    images: data.Split, epsilons: Iterable[float], effort: Mapping[str, int], model: Defended
) -> Asked:
    """Clean images, and the strongest that the small protocol finds for each ε."""
    x, y = images

    def hit(eps: float, part: Tensor) -> Tensor:
        ours = probes(model, x[:50], eps, half=half, **effort)
        return attacks.suite(model, x[part], y[part], eps=eps, attacks=ours, index=part).images

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)  # of luck: a random walk is read once
        half = not why_not_half(model, x[:16], y[:16])
        return [x, *(divided(partial(hit, eps), len(x)) for eps in epsilons)], y


def trials(
    record: Record,
    images: data.Split,
    place: Place,
    rounds: tuple[Round, ...] = ROUNDS,
    left: list[Candidate] = CANDIDATES,
    effort: Mapping[str, int] = EFFORT,
) -> Iterator[Trial]:
    """Round by round what is left, and for comparison the direct use; then what is chosen."""
    pairs = networks(place, {name: None for turn in rounds for name in turn.networks})
    for turn in rounds:
        few = images.at(torch.arange(turn.first, turn.first + turn.n))
        for name in turn.networks:
            if name not in record.more.get("levels", {}):
                level = list(calibrate(pairs[name][1], images.images))
                record.save(levels={name: level})
            build = partial(purified, pairs[name], Calibration(*record.more["levels"][name]))
            for kind, options in (("direct", {}), *left):
                yield Trial(
                    kind,
                    {"networks": name, **options},
                    partial(build, options),
                    asked=partial(worst, few, turn.epsilons, effort),
                    split=turn.name,
                    more={"epsilons": [0.0, *turn.epsilons]},
                )
        left = best(record.rows, turn, left)
    record.save(chosen=dict(left))


def best(rows: Iterable[Row], turn: Round, left: list[Candidate]) -> list[Candidate]:
    """The rule, fixed before looking: of x̂ and of R(x̂) those that read the most digits.

    Added up over the round's networks and radii, 0 included. Of two alike, the one with fewer
    steps, then the one listed first.
    """
    rows = [row for row in rows if row["split"] == turn.name]

    def total(candidate: Candidate) -> tuple[int, int]:
        kind, options = candidate
        mine = [row for row in rows if row["defense"] == kind and walk(row) == options]
        return sum(map(score, mine)), -options["steps"]

    found = []
    for kind in (MOVED, RECONSTRUCTED):
        able = sorted((one for one in left if one[0] == kind), key=total, reverse=True)
        found += able[: turn.keep]
    return found


def about(turn: Round) -> Row:
    """What a record says of a round."""
    told = {k: v for k, v in vars(turn).items() if k != "first" or v}
    return told | {k: list(told[k]) for k in ("networks", "epsilons")}


def walk(row: Row) -> Options:
    """Of a row the options of its purifier."""
    return {k: v for k, v in row["options"].items() if k != "networks"}


CHOICE = replace(
    SELECTION,
    record="mnist_white_box",
    trials=trials,
    about=lambda place: {
        "what": "which validation digits are read correctly in the worst case of a small protocol "
        "that attacks the whole defense",
        "attack": {"name": "suite", "names": ["APGD", "Square"], **EFFORT},
        "rounds": [about(turn) for turn in ROUNDS],
        "classifier_sha256": place.sha256(CLASSIFIER),
        "dae_sha256": place.sha256(DAE),
        "grey_box": VARIANTS.chosen(place),
    },
    keyed=True,
    splits=True,
)


def seeds(
    record: Record, images: data.Split, place: Place, turn: Round = AGAIN, **effort: int
) -> Iterator[Trial]:
    """What is chosen, once more, with networks that only their training's seed tells apart."""
    left = list((CHOICE.chosen(place) or CHOICE.chosen(Place())).items())
    yield from trials(record, images, place, (turn,), left, effort or EFFORT)


SEEDED = replace(
    CHOICE,
    record="mnist_seeds",
    trials=seeds,
    about=lambda place: CHOICE.about(place) | {"rounds": [about(AGAIN)]},
)
