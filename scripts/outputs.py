"""Are the outputs of two versions of the package the same, bit for bit?

    python scripts/outputs.py --out old.json                          in the old checkout
    python scripts/outputs.py --out new.json --compare old.json       in the new one

Runs a fixed set of calls (every attack and view, every purifier and its gradient, evaluations,
certificates, trainings) on bundled digits, and writes a SHA-256 of the bytes of each output. Both
runs must be on the same machine; the script takes one thread. Where all agree, what the old version
measured is as valid as what the new one does, and its name goes to ``SAME_OUTCOMES`` of
``apudae/core/record.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apudae import attacks, data, evaluation, experiments, models, purification, training

ATTACKS: dict[str, dict[str, Any]] = {
    "noise": {},
    "fgsm": {},
    "rfgsm": {},
    "bim": {},
    "pgd": {"steps": 5, "restarts": 2},
    "apgd": {"steps": 6, "restarts": 2},
    "square": {"queries": 10},
    "deepfool": {"steps": 3},
    "cw": {"steps": 10, "searches": 2},
}
EPS = {"linf": 0.2, "l2": 2.0}
WALKS: list[dict[str, Any]] = [
    *({"stepper": stepper} for stepper in purification.STEPPERS),
    *({"objective": objective} for objective in purification.OBJECTIVES),
    {"noise": 0.1},
    {"stop": 1.0},
    {"paced": True},
    {"eps": 0.05},
    {"reconstruct": True},
    {"precision": "auto"},
]
TINY = evaluation.Budget(pgd=3, apgd=3, targets=1, queries=5, draws=2, weights=(0.1,), scoring=2)
# Of a report: what differs from run to run, and what older versions did not say.
NOT_COMPARED = ("seconds", "mebibytes", "made")
NOT_COMPARED += ("model", "data_exact", "own_attacks_sha256", "mask", "quantised", "search")
NOT_COMPARED += ("abstain", "abstained", "substitutes", "could_win")
# Searching as 0.2.0 did, which knew nothing else.
if "search" in inspect.signature(evaluation.evaluate).parameters:
    TINY = replace(TINY, search="float32")


def digest(value: Any) -> str:
    """SHA-256 of a nest of tensors and plain values."""
    whole = hashlib.sha256()

    def feed(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous()
            whole.update(f"{part.dtype}{list(part.shape)}".encode())
            whole.update(part.view(-1).view(torch.uint8).numpy().tobytes())
        elif is_dataclass(part) and not isinstance(part, type):
            feed({k: getattr(part, k) for k in asdict(part)})
        elif isinstance(part, dict):
            for key, inner in part.items():
                if key not in NOT_COMPARED:
                    whole.update(str(key).encode())
                    feed(inner)
        elif isinstance(part, (list, tuple)):
            for inner in part:
                feed(inner)
        else:
            whole.update(repr(part).encode())

    feed(value)
    return whole.hexdigest()


def calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and what is called, one after the other."""
    x, y = (part[:12] for part in data.load("mnist", "test"))
    net, dae = models.load("mnist-cnn"), models.load("mnist-dae")
    level = purification.calibrate(dae, data.load("mnist", "validation").images[:100])
    index = torch.arange(len(x)) + 5
    yield "calibration", lambda: level

    def walk(**options: Any) -> purification.Adaptive:
        return purification.Adaptive(dae, calibration=level, **{"steps": 3} | options)

    def slope(module: nn.Module) -> torch.Tensor:
        z = x[:4].clone().requires_grad_(True)
        return torch.autograd.grad(module(z).square().sum(), z)[0]

    direct, adaptive = purification.Direct(dae), walk(noise=0.1)
    targets = {
        "bare": net,
        "direct": purification.Defended(net, direct),
        "adaptive": purification.Defended(net, adaptive),
    }
    for name, options in ATTACKS.items():
        attack = getattr(attacks, name)
        takes = inspect.signature(attack).parameters
        for title, model in targets.items():
            for norm, eps in EPS.items():
                if norm == "l2" or name != "cw":
                    ball = {"eps": eps, "norm": norm, "index": index}
                    ball = {k: v for k, v in ball.items() if k in takes} | options
                    yield (
                        f"{name} {norm} {title}",
                        lambda a=attack, m=model, b=ball: a(m, x, y, **b),
                    )
        for loss in ("margin", "dlr") if "loss" in takes else ():
            more = {"eps": 0.2, "loss": loss} | options
            yield f"{name} {loss}", lambda a=attack, m=more: a(net, x, y, **m)
    yield "suite", lambda: attacks.suite(net, x, y, eps=0.1)
    for name in ("noise", "fgsm", "rfgsm", "bim"):
        attack = getattr(attacks.as_published, name)
        yield f"{name} as published", lambda a=attack: a(net, x, y, eps=0.2)
    defended = targets["adaptive"]
    views = {
        "BPDA": attacks.BPDA(defended),
        "averaged": attacks.Averaged(defended),
        "aware": attacks.ReconstructionAware(defended, 0.1),
        "EOT": attacks.EOT(defended, 2),
        "fixed": attacks.Fixed(defended),
        "straight through": attacks.StraightThrough(targets["direct"]),
    }
    for name, other in purification.smooth(walk(), x).items():
        views[f"smooth {name}"] = attacks.Surrogate(defended, purification.Defended(net, other))
    for name, view in views.items():
        yield f"view {name}", lambda v=view: attacks.pgd(v, x, y, eps=0.2, steps=3)
    for options in WALKS:
        purifier = walk(**options)
        yield f"walk {options}", lambda p=purifier: p(x, index, 1)
        yield f"walk {options}, gradient", lambda p=purifier: slope(p)
        yield f"walk {options}, path", lambda p=purifier: tuple(p.trajectory(x[:3]))
    for preset in purification.PRESETS:
        purifier = purification.Adaptive.preset(preset, dae, level)
        yield f"preset {preset}", lambda p=purifier: p(x, index)
    for study in ("mnist", "mnist_purifier", "cifar10"):
        few = x[:3] if study != "cifar10" else data.load("cifar10-20").images[:3]
        for name, model in experiments.defenses(study).items():
            yield f"{study}: {name}", lambda m=model, z=few: m(z)
    for title, model in targets.items():
        for norm, eps in EPS.items():
            ask = {"eps": eps, "norm": norm, "budget": TINY, "progress": False}
            found = lambda m=model, a=ask: evaluation.evaluate(m, x, y, **a)  # noqa: E731
            yield f"evaluate {title} {norm}", lambda f=found: [(r := f()).to_dict(), r.images]
    yield "certify", lambda: evaluation.certify(targets["direct"], x[:4], sigma=0.5, n=100, n0=20)
    train = data.load("mnist", "train").take(200)
    tasks = {
        "mnist-cnn": training.classification,
        "mnist-dae": training.denoising((0.1, 0.5)),
        "mnist-mlp": training.adversarial(attacks.pgd, eps=0.1, steps=2),
        "mnist-soap": training.joint(),
        "mnist-vae": training.from_attacked(net, attacks.pgd, eps=0.3, steps=1),
        "mnist-diffusion": training.noise_prediction,
    }
    for name, task in tasks.items():

        def fit(name: str = name, task: training.Task = task) -> Any:
            made = models.build(name)
            options = {"task": task, "epochs": 1, "ema": 0.9, "precision": "float32"}
            history = training.fit(made, *train, progress=False, **options)
            return history.loss, made.state_dict()

        yield f"fit {name}", fit
    for name in ("mnist", "cifar10", "imagenet", "mnist_purifier", "mnist_purifier_l2"):
        yield (
            f"results {name}",
            lambda n=name: repr(experiments.results(n).table(experiments.STUDIES[n].epsilons[0])),
        )
    yield "claims", lambda: repr(experiments.claims())


def main() -> None:
    """Run all calls, write their hashes, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where the hashes go")
    parser.add_argument("--compare", type=Path, help="hashes of the other version")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {}
    for name, call in calls():
        torch.manual_seed(0)
        found[name] = digest(call())
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    options.out.write_text(text, encoding="utf-8")
    print(f"{len(found)} calls")
    if options.compare:
        old = json.loads(options.compare.read_text(encoding="utf-8"))
        differ = [name for name in old | found if old.get(name) != found.get(name)]
        sys.exit("\n".join(["differ:", *differ]) if differ else 0)


if __name__ == "__main__":
    main()
