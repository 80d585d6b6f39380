"""What each command makes, and what is there of it: ``python -m apudae.experiments status``.

A command is a row of :data:`COMMANDS`: what it runs, and which weights and records it makes.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..core.arguments import check_writable, require
from ..core.record import maker, outdated
from . import authors, challenges, colours, digit_choices, digits, gpu, plans, recipes, white_box
from .choose import Choice
from .compare import Study
from .place import Place
from .verdicts import Certified, Ladder, Proved, Verdict

PROGRAM = "python -m apudae.experiments"
UNREADABLE = "cannot be read: "
Recorded = Choice | Verdict | Ladder | Proved | Certified | Study | challenges.Standings
Run = Callable[[Place, Namespace], object]


@dataclass(frozen=True)
class Command:
    """A run from the command line.

    Attributes:
        help: what it is for, and how long it takes on two CPU cores.
        run: does what has not been done, from a place and the options of the command line.
        weights: names of the networks it makes.
        rows: tables whose records it fills.
        gpu: whether it is meant for a GPU.
        either: whether it works on either set of CIFAR-10.
        more: options of the command line that it reads besides.
    """

    help: str
    run: Run
    weights: tuple[str, ...] = ()
    rows: tuple[Recorded, ...] = ()
    gpu: bool = False
    either: bool = False
    more: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Options of the command line that change what it does."""
        compares = ("profile", "only") if any(isinstance(r, Study) for r in self.rows) else ()
        photographs = ("folder", "classifier") if "imagenet-dae" in self.weights else ()
        return (*compares, *photographs, *(["data"] if self.either else []), *self.more)


def after(networks: Mapping[str, recipes.Recipe], run: Run, **options: Any) -> Run:
    """A run before which networks for digits are trained, those that are missing."""

    def both(place: Place, asked: Namespace) -> None:
        recipes.train_missing(networks, partial(digit_choices.train, place), place, **options)
        run(place, asked)

    return both


def mnist_purifier(place: Place, asked: Namespace) -> None:
    """The purifier that is trained through the classifier, from choice to comparison."""
    if asked.profile != "quick":
        digit_choices.PURIFIER_CHOICE.run(place)
        wanted = digit_choices.purifier_recipes(digit_choices.PURIFIER_CHOICE.chosen(place))
        recipes.train_missing(wanted, partial(digit_choices.train, place), place)
        for row in (digits.PURIFIER_VERDICT, digits.PURIFIER_AGAIN, *digits.CUTS):
            print(row.run(place).summary(), flush=True)
    for study in (digits.PURIFIER, digits.PURIFIER_L2):
        study.run(place, asked.profile, asked.only)


def mnist_stronger(place: Place, asked: Namespace) -> None:
    """A purifier that is trained at more expense, from choice to verdict, beside the first."""
    there = place.has("mnist-cnn", "mnist-purifier")
    require(there, f"mnist-purifier: not in {place.weights}; run mnist-purifier first")
    for choice in (digit_choices.STRONGER_CHOICE, digit_choices.BEGUN_CHOICE):
        choice.run(place)
    wanted = digit_choices.stronger_recipes(digit_choices.strongest(place))
    recipes.train_missing(wanted, partial(digit_choices.train, place), place)
    for row in digits.STRONGER_VERDICTS:
        print(row.run(place).summary(), flush=True)


def cifar10(place: Place, asked: Namespace) -> None:
    """Networks, choice and comparison on either set; or a comparison of the authors' networks."""
    if asked.authors:
        authors.run(asked.authors, asked.data, place, asked.profile, asked.only)
        return
    study, plan = colours.cifar10(asked.data), colours.cifar10_plan(asked.data)
    plans.take_along(study.choice, plan, place)
    if asked.profile != "quick":
        made = colours.chosen_set(place)
        if study.choice.chosen(place) and made != asked.data:
            raise ValueError(f"{study.choice.record}.json was made with {made}; name other folders")
        train = partial(plan.train, place)
        recipes.train_missing(recipes.CIFAR10, train, place)
        study.choice.run(place)
        recipes.train_missing(recipes.CIFAR10_TRAINED, train, place)
    study.run(place, asked.profile, asked.only)


def imagenet(place: Place, asked: Namespace) -> None:
    """DAEs, choice and comparison on a folder of photographs."""
    study, plan = colours.imagenet(asked.folder, asked.classifier), colours.imagenet_plan()
    plans.take_along(study.choice, plan, place)
    if asked.profile != "quick" and study.choice.missing(place):
        colours.imagenet_choice(asked.folder, place).run(place)
    study.run(place, asked.profile, asked.only)


def cifar10_purifier(place: Place, asked: Namespace) -> None:
    """A purifier of colours that is trained through the classifier, and its verdict."""
    train = partial(place.load, asked.data, "train", dtype=torch.uint8)
    recipes.train_missing(recipes.CIFAR10_PURIFIER, train, place)
    print(colours.purifier_verdict(asked.data).run(place).summary(), flush=True)


COMMANDS = {
    "mnist-weights": Command(
        "train the classifier of digits and DAEs of several noise levels, choose (half an hour)",
        after(
            recipes.DIGITS,
            lambda place, asked: digit_choices.SELECTION.run(place),
            test=digit_choices.test,
        ),
        (digit_choices.CLASSIFIER, digit_choices.DAE),
        (digit_choices.SELECTION,),
    ),
    "mnist-variants": Command(
        "compare the variants of purification, choose one, and test it (an hour)",
        lambda place, asked: digit_choices.VARIANTS.run(place),
        rows=(digit_choices.VARIANTS,),
    ),
    "mnist-white-box": Command(
        "choose walks against an attacker who knows the defense, and ask other seeds (some hours)",
        lambda place, asked: [choice.run(place) for choice in (white_box.CHOICE, white_box.SEEDED)],
        rows=(white_box.CHOICE, white_box.SEEDED),
    ),
    "mnist-known": Command(
        "what was chosen so under the whole protocol, beside the other choice (many hours)",
        lambda place, asked: [row.run(place) for row in (*digits.KNOWN, *digits.HARDER)],
        rows=(*digits.KNOWN, *digits.HARDER),
    ),
    "challenges": Command(
        "the book's own entries to the challenges (some minutes)",
        lambda place, asked: challenges.STANDINGS.run(place),
        rows=(challenges.STANDINGS,),
    ),
    "mnist-ladder": Command(
        "attackers who know more and more of a defense (three quarters of an hour)",
        lambda place, asked: digits.LADDER.run(place),
        rows=(digits.LADDER,),
    ),
    "mnist-robustness": Command(
        "the book's own purification under the whole protocol (many hours)",
        lambda place, asked: [verdict.run(place) for verdict in digits.ROBUSTNESS],
        rows=digits.ROBUSTNESS,
    ),
    "mnist-baselines": Command(
        "train the networks of published defenses, choose their settings (an hour and a half)",
        after(recipes.PUBLISHED, lambda place, asked: digit_choices.TUNING.run(place)),
        tuple(recipes.PUBLISHED),
        (digit_choices.TUNING,),
    ),
    "mnist": Command(
        "compare all defenses under weak and strong attackers (many hours)",
        after(
            recipes.PUBLISHED,
            lambda place, asked: digits.COMPARISON.run(place, asked.profile, asked.only),
        ),
        rows=(digits.COMPARISON,),
    ),
    "mnist-sampled": Command(
        "the same on a random sample of the test digits, under one budget (many hours)",
        after(
            recipes.PUBLISHED,
            lambda place, asked: digits.SAMPLED.run(place, asked.profile, asked.only),
        ),
        rows=(digits.SAMPLED,),
    ),
    "cifar10": Command(
        "the same for CIFAR-10, trainings and choices included (some hours)",
        cifar10,
        (*recipes.CIFAR10, *recipes.CIFAR10_TRAINED, colours.DAE),
        (colours.cifar10_choice(), colours.cifar10()),
        either=True,
        more=("authors",),
    ),
    "imagenet": Command(
        "the same for photographs, around a pretrained classifier (some hours)",
        imagenet,
        ("imagenet-dae",),
        (colours.imagenet_choice(), colours.imagenet()),
    ),
    "mnist-certified": Command(
        "certify digits by denoised smoothing, attack what is certified (two hours)",
        lambda place, asked: digits.CERTIFIED.run(place),
        tuple(digits.CERTIFIED.recipes()),
        (digits.CERTIFIED,),
    ),
    "mnist-proved": Command(
        "train a purifier on bounds, prove what can be proved, attack it (an hour)",
        after(
            recipes.CERTIFIED | recipes.OTHERS,
            lambda place, asked: [row.run(place) for row in (digits.PROVED, digits.PROVED_VERDICT)],
        ),
        tuple(recipes.CERTIFIED),
        (digits.PROVED, digits.PROVED_VERDICT),
    ),
    "mnist-purifier": Command(
        "train a purifier through the frozen classifier, judge it, compare it (some hours)",
        mnist_purifier,
        ("mnist-purifier", "mnist-purifier-l2", *recipes.OTHERS),
        (
            digit_choices.PURIFIER_CHOICE,
            digits.PURIFIER_VERDICT,
            digits.PURIFIER_AGAIN,
            *digits.CUTS,
            digits.PURIFIER,
            digits.PURIFIER_L2,
        ),
    ),
    "mnist-stronger": Command(
        "choose a stronger purifier, train it, judge it beside the first (some hours)",
        mnist_stronger,
        tuple(digit_choices.stronger_recipes("as before")),
        (digit_choices.STRONGER_CHOICE, digit_choices.BEGUN_CHOICE, *digits.STRONGER_VERDICTS),
    ),
    "cifar10-certified": Command(
        "certify colour images; for a GPU",
        lambda place, asked: colours.certified(asked.data).run(place),
        tuple(colours.certified().recipes()),
        (colours.certified(),),
        gpu=True,
        either=True,
    ),
    "cifar10-purifier": Command(
        "the purifier for colour images, and its verdict; for a GPU",
        cifar10_purifier,
        tuple(recipes.CIFAR10_PURIFIER),
        (colours.purifier_verdict(),),
        gpu=True,
        either=True,
    ),
    "gpu": Command(
        "all that needs a GPU, piece by piece, within --minutes, packed into a --bundle",
        gpu.command,
        either=True,
        more=("profile", "only", "folder", "minutes", "device", "bundle", "unpack"),
    ),
}


def begin(command: Command, place: Place, profile: str) -> None:
    """Raise ``ValueError`` if what a command still has to make could not be stored."""
    rows = [row for row in command.rows if profile in _records(row).values()]
    folders = [] if place.has(*command.weights) else ["weights", "work"]
    folders += ["results", "work"] if any(_left(row, place, profile) for row in rows) else []
    for name in folders:
        check_writable(getattr(place, name), name)


def status(place: Place) -> list[tuple[str, str, str]]:
    """What there is and what is missing: kind, name, and state or the command to run."""
    found: list[tuple[str, str, str]] = []
    images = colours.SETS[0]

    def add(kind: str, name: str, look: Callable[[], str]) -> None:
        try:
            found.append((kind, name, look()))
        except (RuntimeError, ValueError) as error:
            found.append((kind, name, f"{UNREADABLE}{error}"))

    with suppress(RuntimeError, ValueError):  # shown where that record stands
        images = colours.chosen_set(place)
    for name, command in COMMANDS.items():
        run = f"{PROGRAM} {name}"
        if command.either and images != colours.SETS[0]:
            run += f" --data {images}"
        here = f"{run}, on a GPU" if command.gpu else run
        for net in command.weights:
            add("weights", net, partial(_weights, place, net, here))
        for row in command.rows:
            for record, profile in _records(row).items():
                add("record", record, partial(_state, place, row, record, profile, run, here))
    with suppress(RuntimeError, ValueError):
        found += [("gpu", *state) for state in gpu.states(place)]
    return found


def _weights(place: Place, name: str, run: str) -> str:
    return "there" if place.has(name) else f"missing: {run}"


def _records(row: Recorded) -> dict[str, str]:
    """Names of a table's records, and the profile of each."""
    if isinstance(row, Study):
        return {row.record(k): k for k in row.profiles}
    return {row.record: "full"}


def _left(row: Recorded, place: Place, profile: str) -> list:
    """What a record lacks."""
    return row.missing(place, profile) if isinstance(row, Study) else row.missing(place)


def _state(place: Place, row: Recorded, record: str, profile: str, run: str, full: str) -> str:
    """What made a record, or what it lacks and the command that goes on with it."""
    made, left = place.record(record).get("made"), _left(row, place, profile)
    if not left:
        older = ", older: others may come out now" if outdated(made) else ""
        return f"there, {made['device']}, by version {maker(made)}{older}"
    if profile == "quick":
        return f"not made: {run} --profile quick; a small one of your own"
    rows = [key[0] for key in left if isinstance(key, tuple)]
    few = f" ({len(rows)} rows to go: {', '.join(dict.fromkeys(rows))})" if rows and made else ""
    return f"{'begun; goes on with' if made else 'missing:'} {full}{few}"
