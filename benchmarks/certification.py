"""What does a certificate cost beside the bare forward passes?

    python benchmarks/certification.py [--quick] [--device cuda]        or: make bench

Draws per second of :func:`apudae.evaluation.certify` on MNIST with the denoiser before the
classifier, beside as many forward passes of the same batches of noise that is already there. And
how long 100 digits with 10,000 draws each would take at that pace.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch

from apudae import data, models
from apudae.evaluation import certify
from apudae.purification import Defended, Direct

SHARE, MINUTES = 0.9, 3  # wanted: of the floor's pace, and for 100 digits
BATCH, DRAWS = 1000, 10_000


def main() -> None:
    """Both in turns; the median of the rounds' ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds instead of five")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    gpu = options.device == "cuda"
    name = torch.cuda.get_device_name() if gpu else platform.processor() or "CPU"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    load = {"device": options.device}
    dae = models.load("mnist-smoothing-0.5", **load)  # as the book certifies
    model = Defended(models.load("mnist-cnn", **load), Direct(dae))
    x = data.load("mnist", "validation").images[:1].to(options.device)
    noisy = x + 0.5 * torch.randn(BATCH, *x.shape[1:], device=options.device)

    def floor() -> None:
        with torch.no_grad():
            for _ in range(DRAWS // BATCH):
                model(noisy).argmax(1)

    def ours() -> None:
        certify(model, x, sigma=0.5, n=DRAWS - BATCH, n0=BATCH, batch_size=BATCH)

    ways, taken = {"floor": floor, "certify": ours}, {"floor": [], "certify": []}
    for number in range((2 if options.quick else 5) + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if gpu:
                torch.cuda.synchronize()
            if number:  # the first round warms up
                taken[way].append(time.perf_counter() - start)
    for way, seconds in taken.items():
        print(f"{way:8}{DRAWS / statistics.median(seconds):12,.0f} draws/s")
    pairs = zip(taken["floor"], taken["certify"], strict=True)
    share = statistics.median(a / b for a, b in pairs)
    print(f"{share:.2f} of the floor  {'met' if share >= SHARE else 'MISSED'}: {SHARE}")
    minutes = 100 * statistics.median(taken["certify"]) / 60
    met = "met" if minutes <= MINUTES else "MISSED"
    print(f"100 digits, {DRAWS:,} draws each: {minutes:.1f} min  {met}: {MINUTES} min")


if __name__ == "__main__":
    main()
