"""What does the evaluation protocol cost?

    python benchmarks/evaluation.py [--device cuda] [--n 200]        or: make bench

The quick budget on adaptive purification of digits (10 Adam steps, 200 validation digits, ε 0.2),
with time and memory of every attack: wanted in under 15 minutes on two CPU cores. Then, not run,
what the reference budget would take.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch

from apudae import data, models
from apudae.core.arguments import AttackWarning
from apudae.evaluation import BUDGETS, evaluate, plan
from apudae.evaluation.attackers import seconds_per_pass
from apudae.purification import Adaptive, Defended

EPS, STEPS, WANTED = 0.2, 10, 15 * 60


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--n", type=int, default=200, help="images")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}")
    classifier, dae = (
        models.load(name, device=options.device) for name in ("mnist-cnn", "mnist-dae")
    )
    x, y = (part.to(options.device) for part in data.load("mnist", "validation").take(options.n))
    model = Defended(classifier, Adaptive(dae, steps=STEPS, step_size=0.05))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        report = evaluate(model, x, y, eps=EPS, title="adaptive, 10 Adam steps")
    taken = time.perf_counter() - start
    print(report)
    met = "met" if taken <= WANTED else "MISSED"
    print(f"\nquick budget: {taken / 60:.1f} min  {met}: wanted in {WANTED // 60} min")

    gradient, forward = seconds_per_pass(model, x, y)
    shared = {"eps": EPS, "norm": "linf", "seed": 0, "batch_size": None}
    jobs = plan(model, x, BUDGETS["reference"], random=False, classes=10, **shared)
    most = sum(job.gradients * gradient + job.forwards * forward for job in jobs) * len(x)
    print(f"reference budget: at most {most / 3600:.1f} h without its curves, if nothing fell")


if __name__ == "__main__":
    main()
