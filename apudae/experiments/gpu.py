"""Everything that needs a GPU, piece by piece, within a time: ``python -m apudae.experiments gpu``.

A row of :data:`PIECES` is a piece of work, the most valuable first. Each runs in a process of its
own, which is killed when the time is up; what it has stored by then is gone on with by the next
call, on another machine too: after each piece all is packed into a :mod:`.bundle`, a folder of at
most eight files of 8 MiB. With ``--unpack`` it is taken apart into records and weights.

The same code is rehearsed in two minutes on a CPU, with networks that hardly learn and a few
images: ``--profile quick --device cpu``.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from .. import data, models
from ..core.arguments import AttackWarning, check_choice, check_device, check_writable, told
from ..core.files import require_whole
from ..core.record import Record, Row, counted
from ..core.scores import same_images
from ..evaluation import BUDGETS
from . import colours, digits, plans, recipes
from .bundle import pack, unpack, unpacked, write
from .compare import KEYS, Profile, Study
from .defenses import OURS
from .place import Place
from .results import Results, results
from .verdicts import Certified, Verdict

AGREE = 0.9  # of the recorded outcomes, at least, are those of a GPU
STATE = "gpu"  # the record of the pieces that are done
_BRIEF = {"steps": 2, "searches": 1}  # C&W of a rehearsal
_ROOT = Path(__file__).parents[2]  # of a checkout: tests and benchmarks are no part of the package


@dataclass(frozen=True)
class Run:
    """What all pieces are told.

    Attributes:
        place: of the data, and of what the run makes: weights, records, unfinished work.
        images: which of :data:`.colours.SETS`.
        folder: of photographs; by default ``imagenet_sample`` below the root of the data.
        tiny: a rehearsal.
    """

    place: Place
    images: str = colours.SETS[0]
    folder: Path | None = None
    tiny: bool = False

    @property
    def shipped(self) -> Place:
        """The same with the package's own weights."""
        return replace(self.place, weights=models.WEIGHTS, _loaded={})

    @property
    def own(self) -> Path:
        """Folder of all that it makes."""
        return self.place.results.parent

    def record(self, name: str, what: str, *keys: str) -> Record:
        """One of the run's records."""
        about = {"what": what, "rehearsal": self.tiny, "images": self.images}
        return Record(name, about, self.place.results, keys=keys, device=self.place.device)

    def state(self) -> Record:
        """The record of the pieces that have ended."""
        return self.record(STATE, "pieces that have ended", "piece")

    def done(self) -> set[str]:
        """Pieces that have ended."""
        return {row["piece"] for row in self.place.rows(STATE)}


@dataclass(frozen=True)
class Piece:
    """A piece of work; it stores what it has, and goes on from there.

    Attributes:
        name: of it.
        what: it does.
        run: does it, and gives what is to be told of it.
        minutes: it may take on one large GPU.
        resumes: whether it goes on where it was stopped, rather than from its beginning.
    """

    name: str
    what: str
    run: Callable[[Run], Row | None]
    minutes: float
    resumes: bool = True


# What is done. ---------------------------------------------------------------------------------


def tests(run: Run) -> Row:
    """The tests that need a GPU, where there are tests."""
    wanted = _ROOT / "tests" / "training" / "test_cuda.py"
    if not wanted.is_file() or importlib.util.find_spec("pytest") is None:
        return _told("skipped: no tests here, or no pytest")
    shown = _shell("-m", "pytest", "-q", "-p", "no:cacheprovider", wanted)
    lines = [*shown.stdout.splitlines(), *shown.stderr.splitlines()]
    require_whole(shown.returncode == 0, "tests: " + "\n".join(lines[-20:]))
    return _told(lines[-1]) | {"output": lines[-20:]}


def agreement(run: Run) -> Row:
    """A few rows of shipped records again, image by image."""
    place = replace(run.shipped, results=run.place.work / "agreement")
    what = "which recorded outcomes come out again on this device: per image, of the shared ones"
    table = run.record("gpu_agreement", what, "study", *KEYS)
    n, strong = (20, 4) if run.tiny else (1000, 100)
    for study, names, kept in (
        (digits.COMPARISON, ["no defense", "direct", "adaptive, chosen", "resize and pad"], "PGD"),
        (digits.PURIFIER, ["purifier", "purifier, small", "adversarial training"], "PGD"),
    ):
        full = replace(study.profiles["full"], weak=n, cw=n // 10, strong=strong)
        full = replace(full, epsilons=full.epsilons[:1], fewer=dict.fromkeys(names[-1:], (n, 0)))
        few = replace(study, attacks={kept: study.attacks[kept]}, profiles={"full": full})
        few.run(place, only=names[:1] if run.tiny else names)
        now, then = Results(few, place), results(study.name)
        for key in [tuple(row[k] for k in KEYS) for row in now.rows]:
            if then.has(*key) and (key[0], key[2]) not in then.reports:  # of another budget
                pair = same_images(now.outcomes(*key), then.outcomes(*key))
                same = partial(torch.eq, *(part >= 0.5 for part in pair))
                table.measure((study.name, *key), lambda same=same: counted(same()))
    asked, alike = (sum(row[k] for row in table.rows) for k in ("n", "correct"))
    require_whole(asked, "agreement: no recorded row could be asked again")
    found = f"{alike} of {asked} recorded outcomes come out again"
    require_whole(alike >= AGREE * asked, f"agreement: {found}, expected {AGREE:.0%}")
    return _told(found)


def benchmarks(run: Run) -> Row:
    """Each script of ``benchmarks/``, and what it prints."""
    scripts = sorted((_ROOT / "benchmarks").glob("*.py"))
    if not scripts:
        return _told("skipped: no benchmarks here")
    table, device = (
        run.record("gpu_benchmarks", "what benchmarks/ print", "script"),
        run.place.device,
    )

    def printed(script: Path, *options: str) -> Row:
        shown = _shell(script, "--device", device.type, *options)
        require_whole(shown.returncode == 0, f"{script.name}: {shown.stderr[-2000:]}")
        return {"output": shown.stdout.splitlines()}

    for script in scripts[1:2] if run.tiny else scripts:
        few = ("--quick",) if run.tiny and script.stem != "evaluation" else ()
        table.measure((script.name,), partial(printed, script, *few))
    return _told(f"{len(table.rows)} scripts")


def cifar10_classifier(run: Run) -> None:
    """The classifier that is defended, and the one that is trained on attacks."""
    plan, _, nets = _cifar10(run)
    recipes.train_missing(nets, partial(plan.train, run.place), run.place)


def cifar10_choice(run: Run) -> None:
    """Its DAE, the variant of purification, settings of published defenses."""
    _, study, _ = _cifar10(run)
    study.choice.run(run.place)


def cifar10_comparison(run: Run) -> None:
    """All defenses under weak and strong attackers."""
    _, study, _ = _cifar10(run)
    study.run(run.place)


def cifar10_purifier(run: Run) -> Row:
    """The purifier that is trained through the classifier, and its verdict."""
    plan, _, _ = _cifar10(run)
    wanted = {k: _small(row) if run.tiny else row for k, row in recipes.CIFAR10_PURIFIER.items()}
    recipes.train_missing(wanted, partial(plan.train, run.place), run.place)
    verdict: Verdict = replace(colours.purifier_verdict(run.images), images=partial(_images, run))
    if run.tiny:
        verdict = replace(verdict, n=4, budget=digits.TINY)
    return _told(verdict.run(run.place).summary().splitlines()[2])


def cifar10_certified(run: Run) -> None:
    """Certificates of denoised smoothing."""
    subject: Certified = replace(
        colours.certified(run.images),
        images=lambda place, split="test", **options: _images(run, place, split, **options),
    )
    if run.tiny:
        brief = {"sigmas": (0.25,), "n": 2, "draws": (20, 10), "attacked": 1, "radii": (1.0,)}
        brief |= {"steps": 1, "per_gradient": 2, "judges": 10}
        recipe = subject.recipe
        subject = replace(subject, recipe=lambda sigma: _small(recipe(sigma)), **brief)
    subject.run(run.place)


def mnist_reference(run: Run) -> None:
    """The book's own purification under the reference budget, on a sample of the test digits."""
    whole = digits.SAMPLED
    ours = {"no defense": whole.defenses["no defense"]} | OURS
    full = Profile(1000, 100, 1000, (0.2, 0.3, 0.1), BUDGETS["reference"])
    if run.tiny:
        full = Profile(8, 2, 2, (0.2,), digits.TINY)
    study = replace(whole, name="mnist_reference", defenses=ours, attacks={})
    replace(study, profiles={"full": full}).run(run.shipped)


def imagenet(run: Run) -> None:
    """All defenses on all photographs that nothing was trained or chosen on."""
    study, place = colours.imagenet(run.folder), run.shipped
    plans.take_along(study.choice, colours.imagenet_plan(), place)
    full = replace(study.profiles["full"], budget=BUDGETS["quick"], fewer={})
    if run.tiny:
        tiny, study = study.profiles["quick"], replace(study, images=_two_photographs)
        full = replace(tiny, data="full", fewer=tiny.fewer | {"jpeg": (2, 0)})
        study = replace(study, attacks={}, chosen={}, cw=_BRIEF, batch=0)
    chosen = {name: sizes for name, sizes in study.chosen.items() if name == "full"}
    study = replace(study, name="imagenet_gpu", profiles={"full": full}, chosen=chosen)
    study.run(place, only=["no defense", "direct"] if run.tiny else None)


PIECES = (
    Piece("tests", "the tests that need a GPU", tests, 2, resumes=False),
    Piece("agreement", "recorded outcomes again, as a CPU has them", agreement, 3),
    Piece("benchmarks", "benchmarks/ and what they print", benchmarks, 15),
    Piece("classifiers", "classifiers of CIFAR-10", cifar10_classifier, 5),
    Piece("choice", "its DAE and settings", cifar10_choice, 15),
    Piece("comparison", "all defenses on CIFAR-10, n = 1,000", cifar10_comparison, 40),
    Piece("purifier", "its purifier, and its verdict", cifar10_purifier, 30),
    Piece("certificates", "certificates of CIFAR-10", cifar10_certified, 25),
    Piece("reference", "digits under the reference budget, n = 1,000", mnist_reference, 60),
    Piece("photographs", "all defenses on all photographs", imagenet, 60),
)


def _told(text: str) -> Row:
    print(text, flush=True)
    return {"told": text}


def _shell(*command: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"APUDAE_CUDA": "1", "PYTHONPATH": str(_ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def _small(recipe: recipes.Recipe) -> recipes.Recipe:
    """One that is trained at once, and learns nothing."""
    brief = {"epochs": 1, "batch_size": 20, "augment": False}
    return replace(recipe, options=recipe.options | brief, model=recipe.model | {"width": 8})


def _images(run: Run, place: Place, split: str = "test", **options: object) -> data.Split:
    """Of CIFAR-10; of a rehearsal, to which it is all the same, some test images."""
    if not run.tiny:
        return place.load(run.images, split, **options)
    return place.load(run.images, **options).take(40)


def _two_photographs(place: Place, profile: str) -> data.Split:
    return place.load("photographs")


def _cifar10(run: Run) -> tuple[plans.Plan, Study, dict[str, recipes.Recipe]]:
    """What is trained, chosen and compared on CIFAR-10: more images than a CPU can have."""
    plan, whole = colours.cifar10_plan(run.images), colours.cifar10(run.images)
    plan = replace(
        plan,
        train=lambda place: _images(run, place, "train", dtype=torch.uint8),
        validation=lambda place: _images(run, place, "validation").take(1000),
    )
    nets, n, few = recipes.CIFAR10 | recipes.CIFAR10_TRAINED, 500, [plans.DEFAULT]
    random = dict.fromkeys((*few, plans.adaptively("probabilistic"), "resize and pad"), (1000, 200))
    sizes = replace(whole.profiles["full"], weak=2000, cw=500, strong=1000, fewer=random)
    chosen = (2000, 1000)
    if run.tiny:
        nets, n, recipe = {name: _small(net) for name, net in nets.items()}, 4, plan.recipe
        variants = {name: ({"steps": 2},) for name in ("simple", "probabilistic")}
        plan = replace(plan, sigmas=(0.1,), depths=(4,), long=1, variants=variants)
        plan = replace(plan, recipe=lambda *how: _small(recipe(*how)))
        slow, chosen = dict.fromkeys((*random, *map(plans.adaptively, variants)), (2, 0)), (4, 1)
        sizes = replace(sizes, weak=8, cw=1, strong=2, budget=digits.TINY, fewer=slow)
    about, eps = {"name": data.TITLES[run.images]}, (0.0, recipes.COLOUR_EPS)
    choice = plan.choice("cifar10_selection", n, about, epsilons=eps)
    name = "adversarial training"
    study = replace(
        whole,
        images=lambda place, profile: _images(run, place),
        defenses=plan.defenses(choice, plan.classifier, (colours.NET,))
        | {name: whole.defenses[name]},
        cw=_BRIEF if run.tiny else whole.cw,
        profiles={"full": sizes},
        choice=choice,
        chosen={"full": chosen},
    )
    return plan, study, nets


# How it is done. -------------------------------------------------------------------------------


def go(
    pieces: Sequence[Piece], run: Run, minutes: float, bundle: Path, *, reserve: float = 20.0
) -> None:
    """Do what has not been done, in the order of the pieces, and stop in time.

    A piece that was ended before it had stored anything comes after the others the next time.

    Args:
        pieces: the most valuable first.
        run: what they are told.
        minutes: after which all has ended.
        bundle: folder of what there is; where the run's own folders are empty, it begins with that.
        reserve: seconds of these minutes for ending and packing.

    Raises:
        RuntimeError: pieces failed; the others were done first.
    """
    end, failed, begun = time.monotonic() + 60 * minutes - reserve, [], False
    if not run.place.results.exists():
        write(run.own, unpacked(bundle))
    vain = run.state().more.get("vain", {})
    for piece in sorted(pieces, key=lambda piece: vain.get(piece.name, 0)):
        if piece.name in run.done():
            continue
        left = end - time.monotonic()
        if left <= 0 or (begun and not piece.resumes and left < 60 * piece.minutes):
            print(f"{piece.name}: waits for the next call", flush=True)
            continue
        print(f"{piece.name}: {piece.what}", flush=True)
        begun, before, code = True, _stored(run), _alone(piece, run, left)
        if code is None:
            print(f"{piece.name}: the time is up; the next call goes on", flush=True)
            if _stored(run) == before:
                run.state().save(vain={piece.name: vain.get(piece.name, 0) + 1})
        elif code:
            failed.append(piece.name)
        pack(run.own, bundle)
    require_whole(not failed, f"gpu: {', '.join(failed)} failed; what went wrong stands above")


def _stored(run: Run) -> set[tuple[Path, int]]:
    """What lies there, and of when it is."""
    paths = [path for path in run.own.rglob("*") if path.is_file() and path.name[0] != "."]
    return {(path, path.stat().st_mtime_ns) for path in paths}


def _alone(piece: Piece, run: Run, seconds: float) -> int | None:
    """Do a piece in a process of its own; its exit status, or None if it had to be ended."""
    process = multiprocessing.get_context("spawn").Process(target=_do, args=(piece, run))
    with _ended_by_signal():
        process.start()
        try:
            process.join(max(seconds, 0.0))
            return None if process.is_alive() else process.exitcode
        finally:
            _end(process)


def _do(piece: Piece, run: Run) -> None:
    """In the process of a piece: do it, and say that it is done."""
    with suppress(AttributeError):  # a system without process groups
        os.setsid()  # what it starts is ended with it
    warnings.simplefilter("ignore", AttackWarning)  # they stand in the records
    state = run.state()
    sys.exit(told(lambda: state.measure((piece.name,), lambda: piece.run(run) or {})))


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """What ends a command from outside ends what it has started, too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: BaseProcess) -> None:
    """End a process and what it has started: everything that is stored is whole at any moment."""
    if process.is_alive():
        with suppress(OSError, AttributeError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()


# The command. ----------------------------------------------------------------------------------


def at(place: Place) -> Place:
    """Where a run works: in a folder of its own, within that of unfinished work."""
    own = place.work / "gpu"
    return replace(place, weights=own / "weights", results=own / "results", work=own / "work")


def command(place: Place, asked: Namespace) -> None:
    """What the command line asks for."""
    bundle = asked.bundle or place.work / "bundle"
    if asked.unpack:
        unpack(bundle, place)
        return
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    require_whole(alone, "gpu is one process: start it without torchrun")
    gpu = torch.cuda.is_available()
    require_whole(gpu or asked.device, "there is no GPU here; --device cpu rehearses without one")
    device = check_device(asked.device or "cuda")
    for name in asked.only or ():
        check_choice(name, [piece.name for piece in PIECES], "only")
    check_writable(bundle, "bundle")
    run = Run(replace(at(place), device=device), asked.data, asked.folder, asked.profile == "quick")
    pieces = [piece for piece in PIECES if not asked.only or piece.name in asked.only]
    go(pieces, run, asked.minutes, bundle)


def states(place: Place) -> list[tuple[str, str]]:
    """The pieces, and whether they are done."""
    done = Run(at(place)).done()
    return [
        (row.name, "done" if row.name in done else f"to do, {row.minutes:g} min: {row.what}")
        for row in PIECES
    ]
