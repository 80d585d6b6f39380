"""The recorded runs of purification under attackers who know it, on MNIST.

**Ladder** (record ``mnist_ladder``): attackers who know more and more, each on *all* of 200
validation digits, so that every step's gain can be told. **Robustness**: the verdict on the third
claim. Direct purification, the adaptive variant chosen on validation digits and the authors'
default are put under :func:`apudae.evaluation.evaluate` on the same official test digits. One
record per defense and ε, ``mnist_robust_<defense>_<ε>``; each resumes after every attack.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from . import attacks, checkpoints, data, records, scores
from .evaluation import evaluate, model_fingerprint
from .plan import BUDGETS, Budget
from .purification import Adaptive, Calibration, Defended, Direct
from .report import Report
from .scores import Difference, paired_difference
from .whitebox import BPDA, Averaged, ReconstructionAware, Surrogate, smooth

EPSILONS = (0.1, 0.2, 0.3)
N = 200  # the first so many official test digits
# What a CPU can do in about an hour per record. One fresh draw per gradient is a weaker attack than
# several; what it finds is an upper bound. The attack along one known draw is tried, too.
LIGHT = replace(
    BUDGETS["reference"], draws=1, restarts=1, targets=3, weights=(0.01, 0.1), queries=1000
)
DEFENSES = ("direct", "chosen", "default")


def defended(name: str, classifier: nn.Module, dae: nn.Module) -> Defended:
    """The classifier behind a defense of :data:`DEFENSES`."""
    if name == "direct":
        return Defended(classifier, Direct(dae))
    record = records.load("mnist_variants")
    level = Calibration(*record["calibration"])
    if name == "default":
        return Defended(classifier, Adaptive.preset("probabilistic", dae, level))
    chosen = record["chosen"]
    purifier = Adaptive.preset(chosen["variant"], dae, level, **chosen["options"])
    return Defended(classifier, purifier)


def budget(name: str, eps: float) -> Budget:
    """What the attacks on a defense may cost: the reference budget, or :data:`LIGHT`."""
    whole = name == "direct" or (name == "chosen" and eps == max(EPSILONS))
    return BUDGETS["reference"] if whole else LIGHT


def digits(name: str, eps: float) -> int:
    """How many test digits: half of them where few fall early, and each costs the whole budget."""
    return N // 2 if name != "direct" and eps == min(EPSILONS) else N


def record_name(name: str, eps: float) -> str:
    """Of a defense at an ε."""
    return f"mnist_robust_{name}_{eps:g}"


def mnist_robustness(root: Path | None, weights: Path, results: Path) -> None:
    """Evaluate what the records lack, the cheap first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier, dae = (
        checkpoints.load(name, weights, device=device) for name in ("mnist-cnn", "mnist-dae")
    )
    test = data.load("mnist", "test", profile="full", root=root).take(N)
    x, y = (part.to(device) for part in test)
    for name in DEFENSES:
        for eps in sorted(EPSILONS, reverse=True):
            n = digits(name, eps)
            report = evaluate(
                defended(name, classifier, dae),
                x[:n],
                y[:n],
                eps=eps,
                budget=budget(name, eps),
                curves=budget(name, eps) is not LIGHT,
                title=name,
                record=results / record_name(name, eps),
            )
            print(report.summary(), flush=True)


LADDER = "mnist_ladder"
LADDER_EPSILONS = (0.2, 0.3)
WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # λ of the reconstruction-aware attack


def rungs(model: Defended, x: torch.Tensor, eps: float) -> dict[str, nn.Module]:
    """What attackers follow who know more and more of a defense, by name."""
    found = {
        "classifier alone": model.classifier,
        "classifier, judged by the defense": Surrogate(model, model.classifier),
        **{f"aware, λ = {w:g}": ReconstructionAware(model, w) for w in WEIGHTS},
        "BPDA": BPDA(model),
        "BPDA, averaged": Averaged(model),
        "full gradient": model,
    }
    if isinstance(model.purifier, Adaptive):
        found["BPDA, the DAE"] = BPDA(model, Direct(model.purifier.dae))
        for name, other in smooth(model.purifier, x[:50], radius=eps).items():
            found[f"surrogate: {name}"] = Surrogate(model, Defended(model.classifier, other))
    return found


def mnist_ladder(weights: Path, results: Path, *, n: int = 200) -> None:
    """Attack the first validation digits with every rung, and store after each what stands."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier, dae = (
        checkpoints.load(name, weights, device=device) for name in ("mnist-cnn", "mnist-dae")
    )
    x, y = (part.to(device) for part in data.load("mnist", "validation").take(n))
    models = {name: defended(name, classifier, dae) for name in ("direct", "chosen")}
    settings = {
        "what": "which validation digits are read correctly under attackers who know more and more",
        "attack": "APGD-50 on the cross-entropy, 'PGD' rows PGD-50; Square with 500 queries; seed 0"
        ", L∞; an image is left alone once the whole defense misreads it, except where the attack "
        "sees the classifier alone",
        "data": {"split": "validation", "n": n, "sha256": data.fingerprint(x)},
        "models_sha256": {name: model_fingerprint(model) for name, model in models.items()},
        "outcomes": "in the order of the split: records.unpack(text, n)",
    }
    rows: dict[str, str] = {}
    if LADDER in records.names(results):
        old = records.load(LADDER, results)
        for key, value in settings.items():
            if old.get(key) != value:
                raise ValueError(f"{results / LADDER}.json was made with another {key}; move it")
        rows = old["rows"]
    for eps in LADDER_EPSILONS:
        for name, model in models.items():
            jobs = {rung: (attacks.apgd, v, 50) for rung, v in rungs(model, x, eps).items()}
            jobs["full gradient, PGD"] = (attacks.pgd, model, 50)
            jobs["Square"] = (attacks.square, model, 500)
            for rung, (attack, view, most) in jobs.items():
                key = f"{name} | {eps:g} | {rung}"
                if key in rows:
                    continue
                if attack is attacks.square:
                    options = {"queries": most}
                else:
                    options = {"steps": most, "early_stop": rung != "classifier alone"}
                found = attack(view, x, y, eps=eps, **options)
                right = scores.outcomes(model, found, y)
                rows[key] = records.pack(right)
                print(key, scores.Accuracy.of(right), flush=True)
                records.save(LADDER, settings | {"rows": rows}, device=device, folder=results)


def ladder(record: dict, name: str, eps: float) -> dict[str, torch.Tensor]:
    """Outcomes per rung of the record: bool ``[N]``."""
    n, start = record["data"]["n"], f"{name} | {eps:g} | "
    rows = {k.removeprefix(start): v for k, v in record["rows"].items() if k.startswith(start)}
    return {rung: records.unpack(text, n) for rung, text in rows.items()}


def load(name: str, eps: float, folder: Path = records.RESULTS) -> Report:
    """The report of a defense at an ε.

    Raises:
        ValueError: it has not been made.
    """
    return Report.load(record_name(name, eps), folder)


def minus(one: Report, other: Report) -> Difference:
    """How many points one report is better, on the first test digits, which both have."""
    n = min(one.n, other.n)
    first, second = other.right()[:n], one.right()[:n]
    if one.draws > 1 or other.draws > 1:  # rates
        first, second = first.double(), second.double()
    return paired_difference(first, second)


def expected() -> list[str]:
    """Names of the records of this module."""
    return [LADDER, *(record_name(name, eps) for name in DEFENSES for eps in EPSILONS)]


def is_complete(name: str, folder: Path = records.RESULTS) -> bool:
    """Whether a record has all that it should."""
    record = records.load(name, folder)
    if name != LADDER:
        return record["complete"]
    per_eps = (len(WEIGHTS) + 7) + (len(WEIGHTS) + 10)  # of direct and of the chosen variant
    return len(record["rows"]) >= per_eps * len(LADDER_EPSILONS)
