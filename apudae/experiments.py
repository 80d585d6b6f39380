"""The recorded full-size runs: ``python -m apudae.experiments NAME``.

``mnist-weights`` trains the classifier and one DAE per noise level on 58,000 digits, chooses the
noise level and the adaptive purifier's steps on the 1,000 *validation* digits, stores the chosen
weights in ``apudae/weights/`` and everything measured in ``apudae/results/mnist_selection.json``.
About half an hour on two CPU cores; a GPU is used if there is one.

``mnist-variants`` compares the variants of purification on validation digits, chooses one, and
measures it on 5,000 official test digits: record ``mnist_variants``. It needs the full MNIST.

``mnist-ladder`` attacks direct and adaptive purification with attackers who know more and more, on
200 validation digits: record ``mnist_ladder``. Three quarters of an hour on two CPU cores.

``mnist-robustness`` puts both, and the authors' default, under the whole evaluation protocol, at
the reference budget or a lighter one, on 200 official test digits: records ``mnist_robust_...``.
Many hours on two CPU cores; it goes on where it was stopped. It needs the full MNIST.

``mnist-baselines`` trains the networks of the published defenses, those that are missing, into
``apudae/weights/``, and chooses their settings on validation digits: record ``mnist_tuning``. It
goes on where it was stopped. About an hour and a half on two CPU cores.

``mnist`` compares all defenses under weak and strong attackers: record ``mnist``. Each row is
stored when it is done, the cheap ones first; it goes on where it was stopped. It needs the full
MNIST. ``--profile quick`` makes a small record, ``mnist_quick``, of bundled digits; ``--only``
takes some of the defenses, so that several runs can share the work.

``cifar10`` does the same for CIFAR-10, trainings and choices included: records
``cifar10_selection`` and ``cifar10``. ``--data cifar10-jpeg`` takes the JPEG copy instead of the
original, which is downloaded if need be. Some hours on two CPU cores.

``imagenet`` does it for photographs of ImageNet's classes around a pretrained classifier: records
``imagenet_selection`` and ``imagenet``. ``--folder`` names them, ``--classifier`` another one.

``mnist-certified`` certifies digits by denoised smoothing, and attacks what is certified: record
``mnist_certified``. About two hours on two CPU cores. It needs the full MNIST.

``mnist-purifier`` trains a DAE through the frozen classifier against attacks on both, puts it under
the whole protocol, and asks what else it is good for: records ``mnist_purifier_...``. Some hours on
two CPU cores; it goes on where it was stopped. It needs the full MNIST.

``cifar10-certified`` and ``cifar10-purifier`` ask the same of CIFAR-10: records
``cifar10_certified`` and ``cifar10_purifier_verdict``. They are meant for a GPU, and need the
classifier of ``cifar10``, which is shipped. ``--data`` as above.

``gpu-training`` trains four networks on one GPU and stores how long each took and how well it does
in ``apudae/results/gpu_training.json``. What is stored already is not run again.

``status`` lists the weights, records and GPU figures that exist and those that are missing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import (
    attacks,
    baselines,
    certified,
    checkpoints,
    cifar,
    cifar_purifier,
    comparison,
    data,
    gpu_runs,
    imagenet,
    lineup,
    models,
    overview,
    records,
    robust_purifier,
    robustness,
    scores,
    training,
    tuning,
    versus,
)
from .purification import Adaptive, Defended, Direct
from .recipes import CLASSIFIER_TRAINING, DAE_TRAINING

# The grid that is searched on validation images; what is chosen from it stands in the record.
SIGMAS = (0.2, 0.3, 0.4, 0.5)
ADAPTIVE = tuple((steps, size) for steps in (15, 30) for size in (0.02, 0.05, 0.1))
EPSILONS = (0.0, 0.1, 0.2, 0.3)
PGD_STEPS = 50


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
            training.fit(dae, *train, task=training.denoising(sigma), **DAE_TRAINING)
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
                right = [scores.outcomes(model, z, validation.labels) for z in attacked.values()]
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


def status(folder: Path, results: Path) -> list[overview.Line]:
    """What there is and what is missing: rows of kind, name, and state or the command to run."""
    rows, done = overview.lines(folder, results), gpu_runs.done(results)
    for name in gpu_runs.RUNS:
        state = f"not measured: {overview.COMMAND} gpu-training, on a GPU"
        if name in done:
            state = f"{done[name]['seconds']:.1f} s, wanted at most {done[name]['limit']} s"
        rows.append(("GPU figure", name, state))
    return rows


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
        result = scores.accuracy(checkpoints.load(name, folder, device=device), *test)
        about["measured"] = {"split": "test", "n": result.n, "correct": result.correct}
        checkpoints.save(name, model, architecture=name, about=about, folder=folder)
        print(name, result, flush=True)
    return checkpoints.load(name, folder, device=device)


def mnist_baselines(root: Path | None, folder: Path, results: Path, work: Path) -> None:
    """Train what is missing, then turn the knobs on validation digits."""
    baselines.train_missing(root, folder, work)
    tuning.tune(folder, results)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m apudae.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    runs = ["mnist-weights", "mnist-variants", "mnist-ladder", "mnist-robustness"]
    runs += ["mnist-baselines", "mnist", "cifar10", "imagenet", "mnist-certified"]
    runs += ["mnist-purifier", "cifar10-certified", "cifar10-purifier", "gpu-training", "status"]
    parser.add_argument("name", choices=runs, help="which run")
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
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="where what was stopped waits (default: ./runs)",
    )
    parser.add_argument(
        "--profile", choices=lineup.PROFILES, default="full", help="of the comparison (full)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="DEFENSE", help="defenses to compare (default: all)"
    )
    parser.add_argument(
        "--data",
        choices=cifar.SETS,
        default=cifar.SETS[0],
        help="of cifar10, cifar10-certified and cifar10-purifier (the original)",
    )
    parser.add_argument("--folder", type=Path, help="of photographs, one folder for each class")
    parser.add_argument(
        "--classifier",
        choices=imagenet.CLASSIFIERS,
        default=imagenet.CLASSIFIERS[0],
        help="of imagenet (the one that needs no download)",
    )
    args = parser.parse_args(argv)
    where = (args.root, args.weights, args.results, args.work)
    if args.name == "mnist-weights":
        mnist_weights(args.root, args.weights, args.results)
    elif args.name != "status":
        jobs = {
            "mnist-variants": lambda: comparison.mnist_variants(*where[:3]),
            "mnist-ladder": lambda: robustness.mnist_ladder(*where[1:3]),
            "mnist-robustness": lambda: robustness.mnist_robustness(*where[:3]),
            "mnist-baselines": lambda: mnist_baselines(*where),
            "mnist": lambda: versus.mnist(*where, args.profile, args.only),
            "cifar10": lambda: cifar.run(args.data, *where, args.profile, args.only),
            "imagenet": lambda: imagenet.run(
                args.folder, *where, args.profile, args.only, args.classifier
            ),
            "mnist-certified": lambda: certified.run(*where),
            "cifar10-certified": lambda: certified.run(*where, certified.CIFAR10, args.data),
            "cifar10-purifier": lambda: cifar_purifier.run(args.data, *where),
            "mnist-purifier": lambda: robust_purifier.run(*where, args.profile, args.only),
            "gpu-training": lambda: gpu_runs.run(args.root, args.results),
        }
        try:
            jobs[args.name]()
        except (OSError, RuntimeError, ValueError) as error:
            sys.exit(f"error: {error}")
    else:
        for kind, name, state in status(args.weights, args.results):
            print(f"{kind:12}{name:30}{state}")


if __name__ == "__main__":
    sys.exit(main())
