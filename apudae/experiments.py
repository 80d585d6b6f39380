"""The recorded full-size runs: ``python -m apudae.experiments NAME``.

``mnist-weights`` trains the classifier and one DAE per noise level on 58,000 digits, chooses the
noise level and the adaptive purifier's steps on the 1,000 *validation* digits, stores the chosen
weights in ``apudae/weights/`` and everything measured in ``apudae/results/mnist_selection.json``.
About half an hour on two CPU cores; a GPU is used if there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import attacks, checkpoints, data, evaluation, models, records, training
from .purification import Adaptive, Defended, Direct

# The grid that is searched on validation images; what is chosen from it stands in the record.
SIGMAS = (0.2, 0.3, 0.4, 0.5)
ADAPTIVE = tuple((steps, size) for steps in (15, 30) for size in (0.02, 0.05, 0.1))
EPSILONS = (0.0, 0.1, 0.2, 0.3)
PGD_STEPS = 50

CLASSIFIER_TRAINING = {"epochs": 10, "batch_size": 128, "lr": 2e-3, "weight_decay": 1e-4, "seed": 0}
DAE_TRAINING = {"epochs": 15, "batch_size": 128, "lr": 3e-3, "weight_decay": 0.0, "seed": 0}


def mnist_weights(root: Path | None, folder: Path, results: Path) -> None:
    """Train, choose on validation images, store weights and the record of the choice."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    splits = [data.load("mnist", split, profile="full", root=root) for split in data.SPLITS]
    train, validation, test = (data.Split(*(t.to(device) for t in split)) for split in splits)
    about = {
        "data": {
            "name": "mnist",
            "split": "train",
            "profile": "full",
            "n": len(train.images),
            "sha256": data.fingerprint(train.images),
        },
        "made": records.provenance(device),
    }

    classifier = models.build("mnist-cnn")
    training.fit(classifier, *train, **CLASSIFIER_TRAINING)
    classifier = store("mnist-cnn", classifier, folder, test, training=CLASSIFIER_TRAINING, **about)

    attack = {
        "name": "pgd",
        "aims_at": "mnist-cnn",
        "steps": PGD_STEPS,
        "step_size": "2.5 eps / steps",
        "random_start": True,
        "early_stop": False,
        "seed": 0,
    }
    attacked = {
        eps: attacks.pgd(classifier, *validation, eps=eps, steps=PGD_STEPS) for eps in EPSILONS
    }
    rows: list[dict[str, Any]] = []
    daes = {}
    with tempfile.TemporaryDirectory() as aside:
        for sigma in SIGMAS:
            dae = models.build("mnist-dae")
            training.fit(dae, *train, objective=training.denoising(sigma), **DAE_TRAINING)
            daes[sigma] = dae
            # Measured as it would be shipped, rounded to half precision.
            stored = store("mnist-dae", dae, Path(aside), None, training={}).to(device)
            sha256 = checkpoints.about("mnist-dae", aside)["sha256"]
            purifiers: list[tuple[dict[str, Any], nn.Module]] = [
                ({"use": "direct"}, Direct(stored))
            ]
            for steps, size in ADAPTIVE:
                option = {"use": "adaptive", "steps": steps, "step_size": size}
                purifiers.append((option, Adaptive(stored, steps=steps, step_size=size)))
            for option, purifier in purifiers:
                model = Defended(classifier, purifier)
                right = [
                    evaluation.outcomes(model, z, validation.labels) for z in attacked.values()
                ]
                row = {"sigma": sigma, **option, "correct": [int(r.sum()) for r in right]}
                print(row, flush=True)
                rows.append(
                    {**row, "dae_sha256": sha256, "outcomes": [records.pack(r) for r in right]}
                )

    chosen = choose(rows)
    settings = {**DAE_TRAINING, "sigma": chosen["sigma"]}
    store("mnist-dae", daes[chosen["sigma"]], folder, None, training=settings, **about)
    record = {
        "what": "which validation digits are read correctly under PGD on the classifier alone",
        "attack": attack,
        "data": {
            "name": "mnist",
            "split": "validation",
            "n": len(validation.images),
            "sha256": data.fingerprint(validation.images),
        },
        "classifier_sha256": checkpoints.about("mnist-cnn", folder)["sha256"],
        "training": {"classifier": CLASSIFIER_TRAINING, "dae": DAE_TRAINING},
        "outcomes": "per eps, in the order of the split: records.unpack(text, n)",
        "eps": EPSILONS,
        "rows": rows,
        "chosen": chosen,
    }
    print(records.save("mnist_selection", record, device=device, folder=results))


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The choice, a rule fixed before looking.

    A row's score is its mean accuracy over all ε, 0 included. The noise level is the one whose
    direct score and best adaptive score have the highest mean, so that neither use is favoured; the
    adaptive options are the best at that level.
    """
    best: dict[float, dict[str, dict[str, Any]]] = {}
    for row in rows:
        at = best.setdefault(row["sigma"], {})
        if row["use"] not in at or sum(row["correct"]) > sum(at[row["use"]]["correct"]):
            at[row["use"]] = row
    sigma = max(best, key=lambda s: sum(sum(row["correct"]) for row in best[s].values()))
    adaptive = best[sigma]["adaptive"]
    return {"sigma": sigma, "steps": adaptive["steps"], "step_size": adaptive["step_size"]}


def store(
    name: str, model: nn.Module, folder: Path, test: data.Split | None, **about: Any
) -> nn.Module:
    """Save under an architecture's name, measure what was saved, and return it, frozen."""
    device = next(model.parameters()).device
    checkpoints.save(name, model, architecture=name, about=about, folder=folder)
    if test is not None:
        result = evaluation.accuracy(checkpoints.load(name, folder, device=device), *test)
        about["measured"] = {"split": "test", "n": result.n, "correct": result.correct}
        checkpoints.save(name, model, architecture=name, about=about, folder=folder)
        print(name, result, flush=True)
    return checkpoints.load(name, folder, device=device)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m apudae.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=["mnist-weights"], help="which run")
    parser.add_argument("--root", type=Path, help="folder of the data (default: $APUDAE_DATA)")
    parser.add_argument(
        "--weights",
        type=Path,
        default=checkpoints.WEIGHTS,
        metavar="FOLDER",
        help="where weights go (default: the package's own)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=records.RESULTS,
        metavar="FOLDER",
        help="where records go (default: the package's own)",
    )
    args = parser.parse_args(argv)
    mnist_weights(args.root, args.weights, args.results)


if __name__ == "__main__":
    sys.exit(main())
