"""A purifier that holds: a DAE trained through the frozen classifier, against attacks on both.

``python -m apudae.experiments mnist-purifier`` asks in this order, and stores each answer:

1. *Which?* Candidates are trained briefly and attacked, as a whole, on validation digits; the best
   is trained for longer. Record ``mnist_purifier_choice``, weights ``mnist-purifier``; by the same
   recipe, against attacks in L2, ``mnist-purifier-l2``.
2. *Does it hold?* The whole protocol at the reference budget, once, on the first 1,000 official
   test digits at ε = 0.3. Record ``mnist_purifier_verdict``.
3. *What else?* Before classifiers that it was not trained with, with adaptive steps before it, and
   in the other norm. Records ``mnist_purifier`` and ``mnist_purifier_l2``.

It is adversarial training (Madry et al. 2018) of the one part that may be trained. Liao et al.
(2018) trained a denoiser through the classifier, too, but on attacks that did not know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from . import attacks, checkpoints, data, recipes, records, training, versus
from .data import Split
from .evaluation import evaluate, model_fingerprint
from .lineup import CW, SEARCHES, Lineup, Profile
from .plan import BUDGETS, Budget
from .purification import Adaptive, Defended, Direct
from .recipes import CLASSIFIER_TRAINING, Recipe
from .report import Report
from .tuning import Settings

PURIFIER, IN_L2, DEFENDED = "mnist-purifier", "mnist-purifier-l2", "mnist-cnn"
# Classifiers that no purifier was trained with: narrower and from another seed; not
# convolutional at all.
OTHERS = {
    "mnist-small": Recipe(
        "mnist-cnn", options=CLASSIFIER_TRAINING | {"seed": 1}, model={"width": 12}
    ),
    "mnist-mlp": Recipe("mnist-mlp", options=CLASSIFIER_TRAINING | {"seed": 2}),
}
WEIGHTS = (PURIFIER, IN_L2, *OTHERS)
EPS = {"linf": 0.3, "l2": 2.0}
CHOICE, VERDICT = "mnist_purifier_choice", "mnist_purifier_verdict"
# Test digits of the verdict, of the other questions, and of those with steps.
N, FEW, FEWEST = 1000, 100, 30
CHOSEN_ON, ATTACK_STEPS = 500, 40  # validation digits, and steps of the attacks on candidates
BRIEF, LONG = 3, 20  # epochs
# The purifier that is trained in L2 answers a side question: it is small and trained for less.
L2_EPOCHS, L2_MODEL = 6, {"latent": 64, "width": 16}

# What is tried: the network, and how much the reconstruction counts.
CANDIDATES: dict[str, tuple[dict[str, int], float]] = {
    "latent 64": ({"latent": 64}, 1.0),
    "latent 128": ({"latent": 128}, 1.0),
    "latent 128, tones": ({"latent": 128, "tones": 8}, 1.0),
    "latent 128, tones, λ = 10": ({"latent": 128, "tones": 8}, 10.0),
}
_PROBES = {
    "PGD": partial(attacks.pgd, steps=ATTACK_STEPS, early_stop=True),
    "APGD-DLR": partial(
        attacks.apgd, steps=ATTACK_STEPS, loss="dlr-targeted", targets=3, early_stop=True
    ),
}
_FIT = {"batch_size": 128, "lr": 2e-3, "ema": 0.998, "seed": 0}


def recipe(
    candidate: str, norm: str = "linf", epochs: int = LONG, model: Mapping[str, int] | None = None
) -> Recipe:
    """How a candidate is trained: 7 steps of PGD through purifier and classifier, ε growing.

    Args:
        candidate: a key of :data:`CANDIDATES`.
        norm: of the attacks, a key of :data:`EPS`.
        epochs: over the training digits.
        model: options of the network that differ from the candidate's.
    """
    options, weight = CANDIDATES[candidate]
    pgd = {"steps": 7, "relative_step": 0.25, "early_stop": False, "norm": norm}
    task = partial(
        training.purifying,
        attack=attacks.pgd,
        eps=EPS[norm],
        weight=weight,
        warm_up=0.3,
        **pgd,
    )
    return Recipe("mnist-dae", task, _FIT | {"epochs": epochs}, options | dict(model or {}))


def models(weights: Path, device: torch.device | str = "cpu") -> dict[str, nn.Module]:
    """What is compared, images -> logits, by name; all whose weights are there."""
    there = set(checkpoints.names(weights))
    load = partial(checkpoints.load, folder=weights, device=device)
    classifier = load(DEFENDED)
    found = {"no defense": classifier, "denoiser": Defended(classifier, Direct(load("mnist-dae")))}
    if PURIFIER in there:
        dae = load(PURIFIER)
        walk = Adaptive(dae, steps=10, step_size=0.02)
        found |= {
            "purifier": Defended(classifier, Direct(dae)),
            "purifier after steps": Defended(classifier, walk.replace(reconstruct=True)),
            "steps alone": Defended(classifier, walk),
        }
        for name in OTHERS:
            if name in there:
                short = name.removeprefix("mnist-")
                other = load(name)
                found |= {short: other, f"purifier, {short}": Defended(other, Direct(dae))}
    if IN_L2 in there:
        found["purifier, trained in L2"] = Defended(classifier, Direct(load(IN_L2)))
    if "mnist-adversarial" in there:
        found["adversarial training"] = load("mnist-adversarial")
    return {name: found[name].eval() for name in NAMES if name in found}


NAMES = (
    "no defense",
    "denoiser",
    "purifier",
    "purifier, trained in L2",
    "purifier after steps",
    "steps alone",
    *(text for name in ("small", "mlp") for text in (name, f"purifier, {name}")),
    "adversarial training",
)


def lineup(norm: str = "linf") -> Lineup:
    """What is asked in a norm, besides the verdict."""
    more, eps = ("", EPS["linf"]) if norm == "linf" else ("_l2", EPS["l2"])
    known = ("noise", attacks.noise), ("PGD", partial(attacks.pgd, steps=50))
    strong = FEWEST if norm == "linf" else 0
    walks = dict.fromkeys(("purifier after steps", "steps alone"), (FEW, strong))
    small = Budget(pgd=5, apgd=5, targets=1, queries=10, draws=1, weights=(0.1,), scoring=2)
    return Lineup(
        what="digits",
        load=partial(data.load, "mnist", "test"),
        build=models,
        needs=(DEFENDED, "mnist-dae"),
        trained_by="mnist-purifier",
        defenses=NAMES,
        weak={name: partial(attack, norm=norm) for name, attack in known},
        epsilons=(eps,),
        gradients={"PGD": 50},
        told={"PGD": "50 steps", CW: SEARCHES, "norm": norm, "seed": 0},
        about_data={"split": "test"},
        profiles={
            "quick": Profile("quick", 100, 5, 20, (eps,), small),
            "full": Profile(
                data="full",
                weak=N,
                cw=20,
                strong=FEW,
                epsilons=(eps,),
                budget=BUDGETS["quick"],
                fewer=walks | ({"purifier": (N, 0)} if norm == "linf" else {}),
            ),
        },
        records={"quick": f"mnist_purifier_quick{more}", "full": f"mnist_purifier{more}"},
        retrained=frozenset({"adversarial training"}),
        verdicts={("purifier", eps): VERDICT} if norm == "linf" else {},
        norm=norm,
    )


def budget() -> Budget:
    """Of the verdict: the reference budget with 10 restarts."""
    return replace(BUDGETS["reference"], restarts=10)


def run(
    root: Path | None,
    weights: Path,
    results: Path,
    work: Path,
    profile: str = "full",
    only: list[str] | None = None,
) -> None:
    """Do what has not been done. The quick profile takes the weights as they are."""
    if profile != "quick":
        prepare(root, weights, results, work)
        print(verdict(root, weights, results).summary(), flush=True)
    where = {"root": root, "weights": weights, "results": results, "work": work}
    for norm in EPS:
        versus.compare(lineup(norm), profile, only, **where)


def prepare(root: Path | None, weights: Path, results: Path, work: Path) -> None:
    """Choose on validation digits, and train what is missing."""
    there = checkpoints.names(weights)
    if set(WEIGHTS) <= set(there) and chosen(results):
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = partial(data.load, "mnist", profile="full", root=root)
    train = Split(*(part.to(device) for part in load("train", dtype=torch.uint8)))
    name = choose(train, weights, results, work, load("validation").take(CHOSEN_ON))
    in_l2 = recipe(name, "l2", L2_EPOCHS, L2_MODEL)
    jobs = {PURIFIER: recipe(name), IN_L2: in_l2} | OTHERS
    for net, how in jobs.items():
        if net not in there:
            defended = "" if net in OTHERS else DEFENDED
            fit = partial(recipes.train, net, how, train, weights, defended)
            recipes.resumably(net, work, fit)


def chosen(results: Path = records.RESULTS) -> str:
    """The candidate that was chosen; empty where nothing was."""
    known = CHOICE in records.names(results)
    return records.load(CHOICE, results).get("chosen", "") if known else ""


def is_judged(results: Path = records.RESULTS) -> bool:
    """Whether the verdict's record is complete."""
    return VERDICT in records.names(results) and records.load(VERDICT, results)["complete"]


def choose(train: Split, weights: Path, results: Path, work: Path, validation: Split) -> str:
    """Train each candidate briefly, attack it as a whole, and take the best.

    The score is the number of digits read rightly clean plus that in the worst case over PGD and
    APGD on the targeted DLR loss, through purifier and classifier.
    """
    device = train.images.device
    x, y = (part.to(device) for part in validation)
    classifier = checkpoints.load(DEFENDED, weights, device=device)
    about = {
        "what": "which validation digits are read correctly behind purifiers that were trained "
        "briefly, clean and in the worst case of two attacks on the whole",
        "attack": {"names": ["pgd", "apgd, targeted DLR"], "steps": ATTACK_STEPS, "seed": 0},
        "data": {"split": "validation", "n": len(x), "sha256": data.fingerprint(x)},
        "classifier_sha256": model_fingerprint(classifier),
        "eps": [0.0, EPS["linf"]],
        "epochs": {"tried": BRIEF, "kept": LONG},
        "outcomes": "per eps, in the order of the split: records.unpack(text, n)",
    }
    table = Settings(CHOICE, about, results, device)
    for name, (model, weight) in CANDIDATES.items():
        if any(row["defense"] == name for row in table.rows):
            continue
        dae = _tried(name, classifier, train, work)
        whole = Defended(classifier, Direct(dae)).eval()
        hit = attacks.suite(whole, x, y, eps=EPS["linf"], attacks=_PROBES).images
        table.measure(name, model | {"weight": weight}, partial(_same, whole), [x, hit], y)
    best = max(table.rows, key=lambda row: sum(row["correct"]))["defense"]
    table.save(chosen=best)
    return best


def _tried(name: str, classifier: nn.Module, train: Split, work: Path) -> nn.Module:
    """A candidate, trained briefly; its weights stay where unfinished work waits."""
    folder, net = work / "tried", "-".join(name.replace("λ =", "weight").split()).replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    if net in checkpoints.names(folder):
        return checkpoints.load(net, folder, device=train.images.device)
    brief = recipe(name, epochs=BRIEF)
    through = replace(brief, task=lambda _: brief.task(classifier))
    return recipes.resumably(net, work, partial(recipes.train, net, through, train, folder))


def _same(model: nn.Module) -> nn.Module:
    return model


def verdict(root: Path | None, weights: Path, results: Path) -> Report:
    """The whole protocol on the first official test digits; goes on where it was stopped."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    test = data.load("mnist", "test", profile="full", root=root).take(N)
    x, y = (part.to(device) for part in test)
    more = {"PGD, 10 restarts": partial(attacks.pgd, steps=100, restarts=10, early_stop=True)}
    return evaluate(
        models(weights, device)["purifier"],
        x,
        y,
        eps=EPS["linf"],
        budget=budget(),
        attacks=more,
        title="purifier",
        record=results / VERDICT,
    )
