"""What is there and what is missing: ``python -m apudae.experiments status``."""

from __future__ import annotations

from pathlib import Path

import torch

from . import (
    baselines,
    certified,
    checkpoints,
    cifar,
    cifar_purifier,
    comparison,
    data,
    imagenet,
    lineup,
    records,
    robust_purifier,
    robustness,
    selection,
    tuning,
)
from .plan import BUDGETS
from .report import Report

COMMAND = "python -m apudae.experiments"

Line = tuple[str, str, str]


def lines(weights: Path, results: Path) -> list[Line]:
    """Rows of kind, name, and state or the command to run with about how long it takes."""
    found = [_weights(name, "mnist-weights", weights) for name in ("mnist-cnn", "mnist-dae")]
    found += [_weights(name, "mnist-baselines", weights) for name in baselines.needed()]
    there = records.names(results)
    state = f"missing: {COMMAND} mnist-weights (half an hour on two CPU cores)"
    found.append(("record", "mnist_selection", _there("mnist_selection", results) or state))
    state = f"missing: {COMMAND} mnist-variants (about an hour on two CPU cores)"
    if comparison.RECORD in there:
        old = records.load(comparison.RECORD, results)
        state = _there(comparison.RECORD, results)
        if "chosen" not in old or len(old["rows"]["test"]) < comparison.TEST_ROWS:
            state = f"begun; goes on with {COMMAND} mnist-variants"
    found.append(("record", comparison.RECORD, state))
    state = f"missing: {COMMAND} mnist-baselines (a few minutes, once its weights are there)"
    found.append(("record", tuning.RECORD, _there(tuning.RECORD, results) or state))
    found += [("record", name, _robust(name, results)) for name in robustness.expected()]
    for profile in lineup.PROFILES:
        found += _compared(lineup.MNIST, "mnist", profile, weights, results)
    images = cifar.made_on(results)
    again = "cifar10" if images == cifar.SETS[0] else f"cifar10 --data {images}"
    for run, plan, needed, what in (
        (again, cifar.PLAN, cifar.WEIGHTS, cifar.lineup(images, results)),
        ("imagenet", imagenet.PLAN, (imagenet.PLAN.dae,), imagenet.lineup(results=results)),
    ):
        found += [_weights(name, run, weights) for name in needed]
        state = _there(plan.record, results)
        if not state:
            state = f"missing: {COMMAND} {run}"
        elif not selection.chosen_of(plan, results):
            state = f"begun; goes on with {COMMAND} {run}"
        found.append(("record", plan.record, state))
        for profile in what.profiles:
            found += _compared(what, run, profile, weights, results)
    found += _purifier(weights, results)
    found += _certified(certified.MNIST, "mnist-certified", weights, results)
    found += _certified(certified.CIFAR10, "cifar10-certified, on a GPU", weights, results)
    run = "cifar10-purifier, on a GPU"
    found.append(_weights(cifar_purifier.PURIFIER, run, weights))
    name, done = cifar_purifier.VERDICT, cifar_purifier.is_judged(results)
    found.append(("record", name, _state(name, done, run, results)))
    return found


def _certified(subject: certified.Subject, run: str, weights: Path, results: Path) -> list[Line]:
    """Of the certificates of a data set."""
    names = map(subject.weights_name, certified.SIGMAS)
    found = [_weights(name, run, weights) for name in names]
    done = not certified.missing(results, subject)
    return [*found, ("record", subject.record, _state(subject.record, done, run, results))]


def _state(name: str, done: bool, run: str, results: Path) -> str:
    """Of a record that is made row by row."""
    there = _there(name, results)
    return there if done else f"{'begun; goes on with' if there else 'missing:'} {COMMAND} {run}"


def _purifier(weights: Path, results: Path) -> list[Line]:
    """Of the purifier that was trained through the classifier."""
    run, where = "mnist-purifier", robust_purifier
    found = [_weights(name, run, weights) for name in where.WEIGHTS]
    for name, done in (
        (where.CHOICE, bool(where.chosen(results))),
        (where.VERDICT, where.is_judged(results)),
    ):
        found.append(("record", name, _state(name, done, run, results)))
    for norm in where.EPS:
        for profile in ("full", "quick"):
            found += _compared(where.lineup(norm), run, profile, weights, results)
    return found


def _weights(name: str, command: str, folder: Path) -> Line:
    there = name in checkpoints.names(folder)
    return "weights", name, "there" if there else f"missing: {COMMAND} {command}"


def _there(name: str, results: Path) -> str:
    """What made a record, with a flag where the code was older; empty where there is none."""
    if name not in records.names(results):
        return ""
    record = records.load(name, results)
    flag = "".join(f", by older code ({v})" for v in records.older({name: record}).values())
    return f"there, {record['made']['device']}{flag}"


def _robust(name: str, results: Path) -> str:
    """Of one of the robustness records: its budget, and how long others like it took."""
    command = "mnist-ladder" if name == robustness.LADDER else "mnist-robustness"
    if _there(name, results) and robustness.is_complete(name, results):
        return _there(name, results)
    state = "begun; goes on with" if _there(name, results) else "missing:"
    if name == robustness.LADDER:
        return f"{state} {COMMAND} {command} (45 min on two CPU cores)"
    defense, eps = name.removeprefix("mnist_robust_").rsplit("_", 1)
    light = robustness.budget(defense, float(eps)) is robustness.LIGHT
    taken = []
    for other in robustness.EPSILONS:
        path = robustness.record_name(defense, other)
        same = robustness.budget(defense, other) == robustness.budget(defense, float(eps))
        if same and _there(path, results) and robustness.is_complete(path, results):
            report = Report.load(path, results)
            taken.append((sum(row.seconds for row in report.rows) / 60, report.made["device"]))
    about = "".join(f"; about {m:.0f} min on {where} at another ε" for m, where in taken[:1])
    return f"{state} {COMMAND} {command} ({'light' if light else 'reference'} budget{about})"


def _compared(
    what: lineup.Lineup, run: str, profile: str, weights: Path, results: Path
) -> list[Line]:
    """A line per defense whose rows are not all there, and one for the record as a whole."""
    missing = what.missing(profile, results)
    name, p = what.records[profile], what.profiles[profile]
    if not missing:
        return [("record", name, _there(name, results))]
    command = f"{COMMAND} {run}" + (f" --profile {profile}" if profile != "full" else "")
    if profile != "full" and not _there(name, results):
        return [("record", name, f"not made: {command}; a small one of your own")]
    device = "GPU" if torch.cuda.is_available() else "CPU"
    known = set(what.needs) <= set(checkpoints.names(weights))
    models = what.build(weights, "cpu") if known else {}
    models = {
        k: model for k, model in models.items() if any(t.startswith(f"{k} |") for t in missing)
    }
    prices = lineup.Prices(what, models, p, *_few(what)) if models else None
    state = "begun" if _there(name, results) else "missing"
    budget = next((k for k, b in BUDGETS.items() if b == p.budget), "small")
    found = [("record", name, f"{state}: {command} ({len(missing)} rows to go)")]
    if not known and state == "missing":
        return found  # nothing has begun: no list of everything
    for defense in dict.fromkeys(text.split(" | ")[0] for text in missing):
        rows = [text.split(" | ") for text in missing if text.startswith(f"{defense} | ")]
        strong = sum(attack == lineup.STRONG for _, attack, _ in rows)
        parts = [f"{len(rows) - strong} on {p.n(defense, lineup.CLEAN)} images"]
        n = p.n(defense, lineup.STRONG)
        parts.append(f"{strong} of the protocol ({n} images, {budget} budget)")
        kept = [part for part in parts if not part.startswith("0 ")]
        state = f"missing: {', '.join(kept)}"
        if defense in models:
            spent = sum(prices.seconds(d, attack, float(eps)) for d, attack, eps in rows)
            state += f", at most about {spent / 60:.0f} min on this {device}"
        else:
            state += f", after {COMMAND} {what.trained_by}"
        found.append(("rows", defense, state))
    return found


def _few(what: lineup.Lineup) -> data.Split:
    """Eight images to time a pass with."""
    return what.load(profile="quick", root=None).take(8)
