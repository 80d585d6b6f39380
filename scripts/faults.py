"""Put faults into the package, one at a time, and see which test notices.

A test that never fails proves nothing. Each fault of the table ``FAULTS`` (or drawn at random) is
put into a copy of the checkout in a temporary folder; there the default tier of tests runs until
one fails: first the files of tests that name the function that was changed, then the rest of its
room, then those of the rooms that import it, then the book's algorithms. What no test notices has
*survived*: a test is missing, or the changed program means the same.

    python scripts/faults.py                           all of the table, two at a time
    python scripts/faults.py --only "fgsm" --jobs 1    those whose name holds a word
    python scripts/faults.py --random 40 --seed 0      drawn by a script, over all rooms
    python scripts/faults.py --list                    only show them

The result is a table in Markdown, written after each fault to ``--results`` (by default
``_build/faults.md``). All of it takes hours on two cores: a fault that is found early takes seconds
of tests, one that survives all that ``make test`` has. Drawn faults are a flipped comparison, a
changed constant or a deleted statement; docstrings, type hints, the words of errors and the styling
constants of ``plots`` are left alone.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "apudae"
# In the order in which a fault reaches them.
ROOMS = (
    *("core", "data", "models", "plots", "purification"),
    *("attacks", "training", "evaluation", "experiments"),
)
ABOVE = {  # rooms that import a room: whose tests a fault may reach
    "core": ROOMS[1:],
    "data": ("training", "evaluation", "experiments"),
    "models": ("purification", "attacks", "training", "evaluation", "experiments"),
    "plots": ("evaluation", "experiments"),
    "purification": ("attacks", "training", "evaluation", "experiments"),
    "attacks": ("purification", "training", "evaluation", "experiments"),
    "training": ("experiments",),
    "evaluation": ("purification", "experiments"),
    "experiments": (),
}
BOOK = ("tests/book/test_algorithms.py",)
# Not part of a copy: they are large, or of this checkout alone.
LEFT = {".git", ".venv", "_build", "apudae", "tests", ".pytest_cache", ".hypothesis", ".ruff_cache"}


@dataclass(frozen=True)
class Fault:
    """A change of a file of the package.

    Attributes:
        name: of the fault.
        file: below ``apudae/``.
        old: the text that is replaced; of a fault of the table it stands in the file once.
        new: what stands there instead.
        breaks: what goes wrong.
        start: byte of the file where ``old`` begins; of the table's faults it is looked up.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    start: int = -1

    @property
    def room(self) -> str:
        """The room it is in."""
        return self.file.split("/")[0]

    def place(self) -> int:
        """The byte where ``old`` begins.

        Raises:
            ValueError: it does not stand there once; the table is behind the code.
        """
        content = (PACKAGE / self.file).read_bytes()
        old = self.old.encode()
        if self.start >= 0:
            return self.start
        if content.count(old) != 1:
            raise ValueError(f"{self.name}: {self.file} holds {self.old!r} {content.count(old)}×")
        return content.index(old)

    def broken(self) -> bytes:
        """The file with the fault in it."""
        content, at = (PACKAGE / self.file).read_bytes(), self.place()
        return content[:at] + self.new.encode() + content[at + len(self.old.encode()) :]


FAULTS = [
    # --- attacks ---
    Fault(
        "fgsm: sign",
        "attacks/gradient.py",
        "ball.project(ball.x + eps * ball.steepest(gradient))",
        "ball.project(ball.x - eps * ball.steepest(gradient))",
        "FGSM helps the model",
    ),
    Fault(
        "pgd: projection off",
        "attacks/gradient.py",
        "z = inside.project(z.add(inside.steepest(gradient), alpha=size))",
        "z = z.add(inside.steepest(gradient), alpha=size).clamp(0, 1)",
        "PGD leaves the ball",
    ),
    Fault(
        "pgd: early stop for all",
        "attacks/gradient.py",
        "if early_stop and fell.any():",
        "if fell.any():",
        "images stop at the border though not asked to",
    ),
    Fault(
        "pgd: restarts all alike",
        "attacks/gradient.py",
        "inside.start(key, seed, run, corners=corners)",
        "inside.start(key, seed, 0, corners=corners)",
        "restarts add nothing",
    ),
    Fault(
        "loss of another label",
        "attacks/objective.py",
        "value = self._loss(logits, y)",
        "value = self._loss(logits, logits.argmax(1))",
        "the loss is that of the predicted label, not of the true one",
    ),
    Fault(
        "targeted ignored",
        "attacks/objective.py",
        "return (-value if self.targeted else value), ",
        "return value, ",
        "a targeted attack flees the target",
    ),
    Fault(
        "penalty's sign",
        "attacks/objective.py",
        "gradient = gradient - gradient_of(penalty.sum(), x)",
        "gradient = gradient + gradient_of(penalty.sum(), x)",
        "the reconstruction-aware attack raises the error",
    ),
    Fault(
        "best: fallen after standing",
        "attacks/objective.py",
        "better = (fell & ~was) | ((fell == was) & (score > self.score[place]))",
        "better = score > self.score[place]",
        "an image that fell is lost for one of higher loss",
    ),
    Fault(
        "apgd: rule of the reviews",
        "attacks/autoattack.py",
        "halve = (rises < _RISING * (t - last))",
        "halve = (rises > _RISING * (t - last))",
        "the step is halved where the loss rises",
    ),
    Fault(
        "apgd: no momentum",
        "attacks/autoattack.py",
        "inertia = 1.0 if t == 1 else _INERTIA",
        "inertia = 1.0",
        "another algorithm than the paper's",
    ),
    Fault(
        "square: a query too few",
        "attacks/autoattack.py",
        "start, propose = (_stripes, _one_square) if",
        "queries = max(queries - 1, 1)\n    start, propose = (_stripes, _one_square) if",
        "the budget is not what was asked for",
    ),
    Fault(
        "cw: search of the constant",
        "attacks/minimal.py",
        "c = torch.where(high < torch.inf, (low + high) / 2, c * 10)",
        "c = c * 10",
        "C&W does not come back to the smallest change",
    ),
    Fault(
        "deepfool: no overshoot",
        "attacks/minimal.py",
        "z = (x[place] + (1 + overshoot) * moved).clamp(0, 1)",
        "z = (x[place] + moved).clamp(0, 1)",
        "images end on the border",
    ),
    Fault(
        "eot: one draw",
        "attacks/adaptive.py",
        "for k in range(self.draws if self.model.draws_anew else 1):",
        "for k in range(1):",
        "gradients are not averaged over draws",
    ),
    Fault(
        "bpda: stand-in ignored",
        "attacks/adaptive.py",
        "near = self.stand_in(x)",
        "near = x",
        "the identity is differentiated, whatever was given",
    ),
    Fault(
        "averaged: start left out",
        "attacks/adaptive.py",
        "for t, z in enumerate(path, 1):",
        "for t, z in enumerate(path[1:], 2):",
        "not the mean over all iterates",
    ),
    Fault(
        "suite: fallen images attacked again",
        "attacks/suite.py",
        "place = best.places(standing=True)",
        "place = best.places(standing=False)",
        "later attacks get the credit",
    ),
    # --- core ---
    Fault(
        "draws not keyed by index",
        "core/norms.py",
        "stream * 0x85EBCA6B + key) % 2**32",
        "stream * 0x85EBCA6B) % 2**32",
        "all images get the same noise",
    ),
    Fault(
        "L2 ball: always stretched",
        "core/norms.py",
        "shrink = (eps / length(change, norm).clamp(min=tiny)).clamp(max=1)",
        "shrink = eps / length(change, norm).clamp(min=tiny)",
        "short changes are made as long as ε",
    ),
    Fault(
        "mask: forgotten by the ball",
        "core/norms.py",
        "return project(self.keep(z), self.x, self.eps, self.norm)",
        "return project(z, self.x, self.eps, self.norm)",
        "attacks change pixels that they may not",
    ),
    Fault(
        "8 bits: towards the nearest only",
        "core/norms.py",
        "change = change - change.sign() * back.view(change.shape)",
        "pass",
        "rounded images leave the L2 ball",
    ),
    Fault(
        "interval too narrow",
        "core/scores.py",
        "z, n, p = float(ndtri(0.5 + confidence / 2))",
        "z, n, p = float(ndtri(confidence))",
        "90 % where 95 % is said",
    ),
    Fault(
        "paired difference swapped",
        "core/scores.py",
        "difference = b.percent - a.percent",
        "difference = a.percent - b.percent",
        "the worse defense looks better",
    ),
    Fault(
        "paired difference: no correlation",
        "core/scores.py",
        "phi = lean / math.sqrt(spread) if spread else 0.0",
        "phi = 0.0",
        "the interval forgets that the images are the same",
    ),
    Fault(
        "auc: ties count whole",
        "core/scores.py",
        "0.5 * (attacked[:, None] == clean)",
        "1.0 * (attacked[:, None] == clean)",
        "a score that says nothing detects everything",
    ),
    Fault(
        "record half written",
        "core/files.py",
        "            aside.write_bytes(content)\n            aside.replace(path)",
        "            path.write_bytes(content)",
        "a kill leaves half a file in place of a good one",
    ),
    Fault(
        "fingerprint ignores weights",
        "core/prints.py",
        "yield _bytes(part)",
        "pass",
        "the record of another model is gone on with",
    ),
    Fault(
        "resume ignores the account",
        "core/record.py",
        "differ = differences(self.about, old)",
        "differ = differences({}, old)",
        "rows made otherwise are mixed in",
    ),
    Fault(
        "mode not restored",
        "core/calling.py",
        "            module.training = training",
        "            module.training = False",
        "an attack leaves the model in evaluation mode",
    ),
    # --- data, models ---
    Fault(
        "held-out digits in training",
        "data/sets.py",
        'keep[sample_index("validation")] = keep[sample_index("test")] = False',
        'keep[sample_index("validation")] = False',
        "networks are trained on what they are tested on",
    ),
    Fault(
        "validation images of CIFAR-10 in training",
        "data/sets.py",
        "order[len(images) // 10 :]",
        "order",
        "choices are made on trained images",
    ),
    Fault(
        "weights not verified",
        "models/checkpoints.py",
        'verify(path, entry["sha256"])',
        "path.stat()",
        "damaged weights are loaded",
    ),
    Fault(
        "normalisation: spread ignored",
        "models/networks.py",
        "return (x - self.mean) / self.std",
        "return x - self.mean",
        "classifiers see other pixels than they were trained on",
    ),
    # --- purification ---
    Fault(
        "a step lost on the way back",
        "purification/steps.py",
        "d, gradient = ctx.look(z)",
        "d, gradient = (t.detach() for t in ctx.look(z))",
        "the derivative of second order is missing",
    ),
    Fault(
        "mu and sigma swapped",
        "purification/adaptive.py",
        "self.mu, self.sigma = (calibration or (0.0, 1.0))[:2]",
        "self.sigma, self.mu = (calibration or (0.0, 1.0))[:2]",
        "objectives aim at the wrong error",
    ),
    Fault(
        "stop below the mean",
        "purification/adaptive.py",
        "self.mu + stop * self.sigma",
        "self.mu - stop * self.sigma",
        "images are walked on with that are done",
    ),
    Fault(
        "calibration: variance",
        "purification/reconstruction.py",
        "d.std().item()",
        "d.var().item()",
        "σ is σ²",
    ),
    Fault(
        "adam: no bias correction",
        "purification/steps.py",
        "return mean / (1 - self.beta1**t) / (root + self.eps), (mean, square)",
        "return mean / (root + self.eps), (mean, square)",
        "first steps are a tenth as long",
    ),
    Fault(
        "draws of a defense overlap",
        "purification/purifier.py",
        "draw * self.draws + k",
        "draw + k",
        "two answers share their noise",
    ),
    # --- training ---
    Fault(
        "gradients pile up",
        "training/fit.py",
        "                self.optimizer.zero_grad()\n",
        "",
        "each step follows the sum of all before",
    ),
    Fault(
        "resumed with other settings",
        "training/fit.py",
        "if found != value and not later:",
        'if name not in state["settings"]:',
        "a run is gone on with as another",
    ),
    Fault(
        "a training does not know its task",
        "training/fit.py",
        '"task_sha256": _task_print(task, model),',
        '"task_sha256": "",',
        "a run is gone on with for another loss",
    ),
    Fault(
        "whole numbers never count",
        "core/prints.py",
        "return not self.counts and _counts(item)",
        "return _counts(item)",
        "20 steps of an attack get the number of one",
    ),
    Fault(
        "a model that changes is not noticed",
        "core/prints.py",
        "if prints[0] == prints[1]:",
        "if prints:",
        "what its own calls change is called another model",
    ),
    Fault(
        "certified in company",
        "evaluation/certification.py",
        "together = looks_at_the_batch(model, few)",
        "together = False",
        "votes are not of one image",
    ),
    Fault(
        "unfinished, and begun anew",
        "evaluation/protocol.py",
        "old.complete or old.images is not None,",
        "True,",
        "rows that were measured are lost",
    ),
    Fault(
        "denoising: noise of half the size",
        "training/tasks.py",
        "_squared(model(x + level * noise), x)",
        "_squared(model(x + level / 2 * noise), x)",
        "σ is not what the manifest says",
    ),
    # --- evaluation ---
    Fault(
        "scoring draws not fresh",
        "evaluation/protocol.py",
        "first=report.draws)",
        "first=0)",
        "a random model is scored on the draws that chose its attack",
    ),
    Fault(
        "report: difference swapped",
        "evaluation/report.py",
        "paired_difference(other.right(), self.right())",
        "paired_difference(self.right(), other.right())",
        "a report praises the other model",
    ),
    Fault(
        "report: the luckiest attack counts",
        "evaluation/report.py",
        "return torch.tensor(rows).amax(0).clamp(min=0)",
        "return torch.tensor(rows).amin(0).clamp(min=0)",
        "the best case stands for the worst",
    ),
    Fault(
        "certificate: bound too high",
        "evaluation/certification.py",
        "confidence_level=1 - alpha",
        "confidence_level=1 - 4 * alpha",
        "radii are wrong four times as often as said",
    ),
    Fault(
        "certificate: radius",
        "evaluation/certification.py",
        "radii = self.sigma * ndtri(bounds)[place.numpy()]",
        "radii = 2 * self.sigma * ndtri(bounds)[place.numpy()]",
        "twice the radius that is proven",
    ),
    Fault(
        "certificate: choosing draws count",
        "evaluation/certification.py",
        "return (self.predictions == y.cpu()) & (self.radii >= radius)",
        "return self.radii >= radius",
        "a wrong answer counts as certified",
    ),
]

# --- drawn faults ------------------------------------------------------------------------------

FLIPPED = {
    ast.Lt: ("<", ">="),
    ast.LtE: ("<=", ">"),
    ast.Gt: (">", "<="),
    ast.GtE: (">=", "<"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
WORDS = ("warn", "Finding", "ValueError", "RuntimeError", "TypeError", "FileNotFoundError")


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a tree without docstrings, type hints, and the words of errors."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr):
                continue
            if isinstance(child, ast.Call) and getattr(child.func, "id", "") in WORDS:
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            yield from walk(child)


def deletable(node: ast.AST, file: str) -> bool:
    """Whether a statement is a fault when it is gone: not styling, nor what fails at once."""
    if isinstance(node, ast.AugAssign):
        return True
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return False
    called = getattr(node.value.func, "attr", "")
    return called != "__init__" and not (file.startswith("plots/") and called.startswith("set"))


def drawable(file: str) -> Iterator[tuple[str, Fault]]:
    """All faults that could be drawn in a file, with their kind."""
    content = (PACKAGE / file).read_bytes()
    lines = [0]
    for line in content.split(b"\n"):
        lines.append(lines[-1] + len(line) + 1)

    def fault(kind: str, first: tuple[int, int], last: tuple[int, int], change) -> Fault | None:
        start, end = (lines[row - 1] + column for row, column in (first, last))
        old = content[start:end].decode()
        new = change(old)
        shown = " ".join(old.split())[:60]
        if new == old:
            return None
        name = f"{file}:{first[0]} {kind}"
        return Fault(name, file, old, new, f"`{shown}` → `{' '.join(new.split())[:60]}`", start)

    def span(node) -> tuple[tuple[int, int], tuple[int, int]]:
        ends = (node.end_lineno, node.end_col_offset)
        return (node.lineno, node.col_offset), ends

    for node in walk(ast.parse(content)):
        found, kind = None, ""
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            old, new = FLIPPED[type(node.ops[0])]
            kind = "comparison"
            pattern = rf"(?<![<>=!]){re.escape(old)}(?![=])"

            def flip(text: str, pattern=pattern, new=new) -> str:
                return re.sub(pattern, new, text, count=1)

            found = fault(kind, span(node.left)[1], span(node.comparators[0])[0], flip)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            if file.startswith("plots/"):
                continue
            kind, value = "constant", node.value
            other = (not value) if isinstance(value, bool) else value + 1
            if isinstance(value, float):
                other = 2 * value if value else 1.0
            found = fault(kind, *span(node), lambda text, other=other: repr(other))
        elif deletable(node, file):
            kind = "statement"
            found = fault(kind, *span(node), lambda text: "pass")
        if found:
            yield kind, found


def drawn(n: int, seed: int) -> list[Fault]:
    """``n`` faults, room after room; kinds and places by chance."""
    luck, chosen = random.Random(seed), []
    files = {room: sorted(p.name for p in (PACKAGE / room).glob("*.py")) for room in ROOMS}
    whole = {
        room: [pair for name in files[room] for pair in drawable(f"{room}/{name}")]
        for room in ROOMS
    }
    while len(chosen) < n:
        room = ROOMS[len(chosen) % len(ROOMS)]
        kind = luck.choice(("comparison", "constant", "statement"))
        several = [fault for k, fault in whole[room] if k == kind and fault not in chosen]
        if several:
            chosen.append(luck.choice(several))
    return chosen


# --- running -----------------------------------------------------------------------------------


def surroundings(fault: Fault) -> set[str]:
    """Names of the functions and the class that a fault is in, without underscores."""
    content = (PACKAGE / fault.file).read_bytes()
    line = content[: fault.place()].count(b"\n") + 1
    names = set()
    for node in ast.walk(ast.parse(content)):
        kind = isinstance(node, ast.FunctionDef | ast.ClassDef)
        if kind and node.lineno <= line <= node.end_lineno:
            names.add(node.name.strip("_"))
    return names - {"init", "forward", "task", "attack"}


@cache
def unfit() -> set[str]:
    """Files of tests that cannot even be read without a fault: they prove nothing."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not slow", "tests"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    return set(re.findall(r"^ERROR (tests/\S+\.py)", run.stdout, re.MULTILINE))


def order(fault: Fault) -> list[str]:
    """Files of tests, those first that will most likely notice."""
    names, stem = surroundings(fault), Path(fault.file).stem
    ranked = []
    for far, room in enumerate((fault.room, *ABOVE[fault.room])):
        for path in (ROOT / "tests" / room).glob("test_*.py"):
            text = path.read_text(encoding="utf-8")
            first, then = (
                sum(len(re.findall(rf"\b{re.escape(name)}\b", text)) for name in some)
                for some in (names, [stem])
            )
            ranked.append((not first, far, -first, -then, path.relative_to(ROOT).as_posix()))
    found = [name for *_, name in sorted(ranked)]
    return [name for name in (*found, *BOOK) if name not in unfit()]


def copy_to(folder: Path, fault: Fault) -> None:
    """The checkout with the fault in it; what does not matter is linked."""
    for entry in ROOT.iterdir():
        if entry.name not in LEFT and not entry.name.endswith(".egg-info"):
            (folder / entry.name).symlink_to(entry)
    for name in ("apudae", "tests"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    (folder / "apudae" / fault.file).write_bytes(fault.broken())


def noticed(fault: Fault, limit: float) -> tuple[str, float]:
    """The first test that fails, or that the fault survived, and the seconds it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fault-") as name:
        folder = Path(name)
        copy_to(folder, fault)
        environment = os.environ | {
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TQDM_DISABLE": "1",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--color=no"]
        command += ["-m", "not slow", *order(fault)]
        try:
            run = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                capture_output=True,
                encoding="utf-8",
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"still running after {limit:g} s", time.monotonic() - start
    seconds = time.monotonic() - start
    if run.returncode == 0:
        return "**survived**", seconds
    first = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if not first:  # not even collected
        lines = (run.stdout + run.stderr).strip().splitlines()
        return f"pytest: {lines[-1] if lines else run.returncode}", seconds
    return f"`{first[1].removeprefix('tests/')}`", seconds


def table(rows: list[tuple[Fault, str, float]]) -> str:
    """The result in Markdown."""
    lines = ["| fault | file | breaks | noticed by | s |", "| --- | --- | --- | --- | ---: |"]
    for fault, test, seconds in rows:
        breaks = fault.breaks.replace("|", "\\|")
        lines.append(f"| {fault.name} | {fault.file} | {breaks} | {test} | {seconds:.0f} |")
    survived = sum("survived" in test for _, test, _ in rows)
    return "\n".join([*lines, "", f"{len(rows)} faults, {survived} survived.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="faults whose name or file holds this")
    parser.add_argument("--random", type=int, metavar="N", help="draw faults, in the table's place")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn faults")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for each fault")
    parser.add_argument("--results", type=Path, default=ROOT / "_build" / "faults.md")
    parser.add_argument("--list", action="store_true", help="only show the faults")
    options = parser.parse_args()
    faults = drawn(options.random, options.seed) if options.random else FAULTS
    faults = [f for f in faults if options.only in f.name or options.only in f.file]
    for fault in faults:
        fault.place()  # raises where the table is behind the code
    if options.list:
        print("\n".join(f"{fault.name}: {fault.breaks}" for fault in faults))
        return
    if unfit():
        print(f"left out, since they fail without a fault: {', '.join(sorted(unfit()))}")
    rows: list[tuple[Fault, str, float]] = []
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, (test, seconds) in zip(
            faults, pool.map(lambda fault: noticed(fault, options.limit), faults), strict=True
        ):
            rows.append((fault, test, seconds))
            print(f"{fault.name}: {test} ({seconds:.0f} s)", flush=True)
            options.results.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
