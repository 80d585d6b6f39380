"""What does the evaluation protocol cost, and what is saved of it?

    python benchmarks/evaluation.py [PART ...] [--n 200] [--device cuda] [--before FOLDER]
                                                                       or: make bench

Parts, all of them on validation digits:

- ``quick``: the quick budget on adaptive purification (10 Adam steps, ε 0.2), beside an older
  checkout in ``--before``, if one is named, on the same images, one after the other;
- ``search``: four models with the search in half precision beside float32: time, and the worst
  cases as pairs, image by image;
- ``shared``: two processes that share the images, beside two of half the images each that know
  nothing of each other, one thread each; and what sharing itself costs;
- ``growth``: seconds as images, steps, draws and classes grow, and the figure of it in chapter 8;
- ``others``: the AutoAttack of other libraries on the classifier and on the purifier, with worst
  cases.

What was wanted stands beside what was found. Absolute times are those of this machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor, nn

from apudae import data, models
from apudae.core.arguments import AttackWarning
from apudae.core.scores import Accuracy, outcomes, paired_difference
from apudae.evaluation import Budget, Report, evaluate
from apudae.purification import Adaptive, Defended, Direct

# Name -> model, ε.
MODELS = {
    "bare": (lambda load: load("mnist-cnn"), 0.1),
    "direct": (lambda load: Defended(load("mnist-cnn"), Direct(load("mnist-dae"))), 0.2),
    "adaptive": (
        lambda load: Defended(
            load("mnist-cnn"), Adaptive(load("mnist-dae"), steps=10, step_size=0.05)
        ),
        0.2,
    ),
    "purifier": (lambda load: Defended(load("mnist-cnn"), Direct(load("mnist-purifier"))), 0.3),
}
# One evaluation in a process of its own, of this checkout or an older one: model, images, threads.
ALONE = """
import json, sys, time, warnings
import torch
warnings.simplefilter("ignore")
from apudae import data, models
from apudae.evaluation import evaluate
from apudae.purification import Adaptive, Defended
n, threads, first = map(int, sys.argv[1:4])
torch.set_num_threads(threads)
x, y = (part[first : first + n] for part in data.load("mnist", "validation"))
model = Adaptive(models.load("mnist-dae"), steps=10, step_size=0.05)
model = Defended(models.load("mnist-cnn"), model)
start = time.perf_counter()
report = evaluate(model, x, y, eps=0.2, index=torch.arange(first, first + n), progress=False)
print(json.dumps([time.perf_counter() - start, report.right().int().tolist()]))
"""
Device = torch.device
GROWTH = Path(__file__).parents[1] / "book" / "assets" / "growth.png"  # chapter 8 shows it


def judged(what: str, value: str, met: bool, wanted: str) -> None:
    """A line with what was wanted."""
    print(f"{what}: {value}  {'met' if met else 'MISSED'}: wanted {wanted}", flush=True)


def measured(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> tuple[float, Report]:
    """Seconds of an evaluation, and its report."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        report = evaluate(model, x, y, progress=False, **options)
    return time.perf_counter() - start, report


def alone(n: int, *, threads: int, first: int = 0, folder: Path | None = None) -> subprocess.Popen:
    """The quick budget on adaptive purification, begun in a process of its own."""
    place = {"PYTHONPATH": str(folder)} if folder else {}
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | place
    command = [sys.executable, "-c", ALONE, *map(str, (n, threads, first))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=environment)


def ended(process: subprocess.Popen) -> tuple[float, Tensor]:
    """What it took and found."""
    taken, right = json.loads(process.communicate()[0].splitlines()[-1])
    return taken, torch.tensor(right) == 1


def quick(x: Tensor, y: Tensor, device: Device, before: Path | None) -> None:
    """The whole protocol on an adaptive purifier."""
    make, eps = MODELS["adaptive"]
    model = make(partial(models.load, device=device))
    taken, report = measured(model, x, y, eps=eps, title="adaptive, 10 Adam steps")
    print(report)
    minutes = f"{taken / 60:.1f} min for {len(x)} digits"
    judged("\nquick budget, adaptive", minutes, taken <= 1.5 * len(x), "at most 5 min for 200")
    if before:
        was, right = ended(alone(len(x), threads=torch.get_num_threads(), folder=before))
        gap = paired_difference(right, report.right())
        print(f"before: {was / 60:.1f} min, {was / taken:.2f} times as long; worst case now {gap}")


def search(x: Tensor, y: Tensor, device: Device, before: Path | None) -> None:
    """Half precision beside float32."""
    for name, (make, eps) in MODELS.items():
        model = make(partial(models.load, device=device))
        shared = {"eps": eps, "curves": False}
        cheap, exact = (measured(model, x, y, search=s, **shared) for s in ("auto", "float32"))
        gap = paired_difference(exact[1].right(), cheap[1].right())
        found = f"{exact[1].worst} -> {cheap[1].worst}, {gap}, n = {len(x)}, ε = {eps}"
        print(f"{name}: {exact[0] / cheap[0]:.2f} times as fast", end="; ")
        judged("worst case", found, gap.low <= 0, "not clearly weaker")
        raised = [{finding.name for finding in run[1].findings} for run in (exact, cheap)]
        if raised[0] != raised[1]:
            print(f"  warnings differ: {raised}")


def shared(x: Tensor, y: Tensor, device: Device, before: Path | None) -> None:
    """Two processes on one thread each: sharing, beside knowing nothing of each other."""
    half, taken, idle = len(x) // 2, {}, []
    for turn in ("apart", "together", "together again", "apart again"):
        start = time.perf_counter()
        if "apart" in turn:
            for process in [alone(half, threads=1, first=k * half) for k in range(2)]:
                ended(process)
        else:
            whole, busy = _torchrun(2 * half)
            idle.append(100 * (whole / busy - 1))
        taken[turn] = time.perf_counter() - start
        print(f"  {turn}: {taken[turn]:.0f} s for {2 * half} digits", flush=True)
    apart, joint = (taken[k] + taken[f"{k} again"] for k in ("apart", "together"))
    judged("two shared processes", f"{100 * apart / joint:.0f} % of the speed of two apart",
           apart / joint >= 0.9, "90 %")  # fmt: skip
    judged("  beside what the slowest computed", f"+{min(idle):.1f} %", min(idle) <= 3, "3 %")


def _torchrun(n: int) -> tuple[float, float]:
    """Seconds that two processes took together, and that the busiest of them computed."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "work.py"
        begin = ALONE.split("start =")[0].replace("sys.argv[1:4]", f"({n}, 1, 0)")
        script.write_text(
            f"{begin}\nfrom apudae.core import processes\nwith processes.processes('cpu'):\n"
            "    start, busy = time.perf_counter(), time.process_time()\n"
            f"    evaluate(model, x, y, eps=0.2, progress=False, record={folder + '/record'!r})\n"
            "    start, busy = time.perf_counter() - start, time.process_time() - busy\n"
            "    both = processes.everyones((start, busy))\n"
            "    if processes.rank() == 0:\n"
            "        print(json.dumps([max(part) for part in zip(*both)]))\n",
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command += ["--nproc-per-node=2", str(script)]
        out = subprocess.run(command, check=True, env=environment, capture_output=True)
    return tuple(json.loads(out.stdout.splitlines()[-1]))


def growth(x: Tensor, y: Tensor, device: Device, before: Path | None) -> None:
    """Linear in images, steps, draws and classes: seconds over the least, divided by the factor."""
    if len(x) < 200:
        raise SystemExit("growth: expected --n 200 or more")
    load = partial(models.load, device=device)
    dae, classifier = load("mnist-dae"), load("mnist-cnn")
    small = Budget(pgd=10, apgd=10, targets=2, queries=40, weights=(0.1,), scoring=5)
    noisy = Defended(classifier, Direct(dae, noise=0.1))

    def of(model: nn.Module = noisy, n: int = 50, **budget: int) -> float:
        options = {"eps": 0.05, "curves": False, "budget": replace(small, **budget)}
        return measured(model, x[:n], y[:n], **options)[0]

    class More(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.inner, self.head = classifier, nn.Linear(10, classes, device=device)
            nn.init.eye_(self.head.weight)
            nn.init.constant_(self.head.bias, 0)
            self.head.bias.data[10:] = -100

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.inner(images))

    of()
    lines = {}
    for name, runs in {
        "images": {n: partial(of, n=n) for n in (25, 50, 100, 200)},
        "steps": {k: partial(of, pgd=k, apgd=k, queries=4 * k) for k in (5, 10, 20, 40)},
        "draws": {k: partial(of, draws=k, scoring=4 * k) for k in (1, 2, 4, 8)},
        "classes tried": {k: partial(of, More(40), targets=k) for k in (1, 2, 4, 8)},
    }.items():
        taken = {value: run() for value, run in runs.items()}
        least, most = min(taken), max(taken)
        print(name, ", ".join(f"{value}: {s:.1f} s" for value, s in taken.items()))
        lines[name] = {value / least: s / taken[least] for value, s in taken.items()}
        rise = (taken[most] / taken[least]) / (most / least)
        judged(f"  {most // least} times as many {name}", f"{rise:.2f} of that in time",
               rise <= 1.2, "at most linear")  # fmt: skip
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    ax = figure.add_subplot(
        xlabel="times as many", ylabel="times as long", xscale="log", yscale="log"
    )
    ax.plot([1, 8], [1, 8], color="0.75", lw=6, label="linear")
    for (name, line), marker in zip(lines.items(), "osD^", strict=True):
        ax.plot(list(line), list(line.values()), marker=marker, label=name)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([1, 2, 4, 8]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    ax.legend(frameon=False)
    if device.type == "cpu":
        figure.savefig(GROWTH, dpi=144, metadata={"Software": None})
        print(f"drawn: {GROWTH}")


def others(x: Tensor, y: Tensor, device: Device, before: Path | None) -> None:
    """AutoAttack as ART and torchattacks have it, on two models."""
    load = partial(models.load, device=device)
    for name in ("bare", "purifier"):
        make, eps = MODELS[name]
        model = make(load)
        taken, report = measured(model, x, y, eps=eps, curves=False)
        print(f"{name}, ε = {eps}, n = {len(x)}")
        print(f"  ours, quick budget: {taken:.0f} s, worst case {report.worst}", flush=True)
        for library, run in _libraries(model, x, y, eps).items():
            start = time.perf_counter()
            hit = run()
            spent = time.perf_counter() - start
            right = outcomes(model, hit, y)
            gap = paired_difference(right, report.right())
            found = f"{spent / taken:.1f} times as long, {Accuracy.of(right)}, ours {gap}"
            judged(f"  {library}", found, gap.low <= 0 and spent >= taken, "no faster, no stronger")


def _libraries(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, object]:
    found: dict[str, object] = {}
    try:
        import torchattacks

        found["torchattacks"] = lambda: torchattacks.AutoAttack(model, eps=eps, n_classes=10)(x, y)
    except ImportError:
        print("torchattacks: not installed (pip install --no-deps torchattacks==3.5.1)")
    try:
        # ART imports a fork of this module, for several processes; one is asked for here.
        sys.modules.setdefault("multiprocess", multiprocessing)
        from art.attacks.evasion import AutoAttack
        from art.estimators.classification import PyTorchClassifier

        shape = tuple(x.shape[1:])
        options = {"clip_values": (0.0, 1.0), "device_type": "gpu" if x.is_cuda else "cpu"}
        estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, **options)
        theirs = AutoAttack(estimator, eps=eps, eps_step=eps / 3, batch_size=200)
        images, labels = x.cpu().numpy(), y.cpu().numpy()
        found["ART"] = lambda: torch.from_numpy(theirs.generate(images, labels)).to(x)
    except ImportError:
        print("ART: not installed")
    return found


PARTS = {part.__name__: part for part in (quick, search, shared, growth, others)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all, if none is named")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--n", type=int, default=200, help="digits")
    parser.add_argument("--before", type=Path, help="an older checkout, beside this one")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}")
    x, y = (part.to(options.device) for part in data.load("mnist", "validation").take(options.n))
    for part in options.parts or PARTS:
        print(f"\n{part}: {PARTS[part].__doc__.splitlines()[0]}")
        PARTS[part](x, y, torch.device(options.device), options.before)


if __name__ == "__main__":
    main()
