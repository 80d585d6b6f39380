"""Adaptive purification of photographs at 224 × 224: how fast, and how much memory to attack it?

    python benchmarks/imagenet.py [--quick] [--device cuda]        or: make bench

Speed: 13 Adam steps with the DAE of chapter 11 (or a REDNet of ``--depth`` and ``--width``, its
weights do not matter here), images per second, beside the floor: 13 forward and backward passes of
that DAE and nothing else.

Memory: the peak while PGD takes two steps along the full gradient of the purifier and
EfficientNet-Lite0, eight photographs at a time. More steps of PGD hold no more.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch
from torch import Tensor, nn

from apudae import attacks, data, models
from apudae.evaluation.cost import Meter
from apudae.models import networks
from apudae.purification import Adaptive, Defended

STEPS, SIZE = 13, 2 / 255
FLOOR, GIB = 1.2, 16  # wanted: at most so many times the floor, and so much memory


def floor(dae: nn.Module, x: Tensor) -> None:
    """Forward and back to the image, as often as there are steps."""
    for _ in range(STEPS):
        z = x.detach().requires_grad_(True)
        torch.autograd.grad((z - dae(z)).square().sum(), z)


def speed(dae: nn.Module, x: Tensor, rounds: int) -> None:
    """Both in turns; the median of the rounds' ratios."""
    purifier = Adaptive(dae, steps=STEPS, step_size=SIZE)

    def ours() -> None:
        with torch.no_grad():
            purifier(x)

    ways = {"floor": lambda: floor(dae, x), "adaptive": ours}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if x.device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                taken[name].append(time.perf_counter() - start)
    for name, seconds in taken.items():
        print(f"{name:10}{len(x) / statistics.median(seconds):8.2f} images/s")
    pairs = zip(taken["adaptive"], taken["floor"], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{ratio:.2f} x the floor  {'met' if ratio <= FLOOR else 'MISSED'}: {FLOOR} x")


def memory(dae: nn.Module, x: Tensor) -> None:
    """The peak of the full gradient."""
    classifier = networks.efficientnet_lite0().to(x.device).eval().requires_grad_(False)
    model = Defended(classifier, Adaptive(dae, steps=STEPS, step_size=SIZE))
    with torch.no_grad():
        y = classifier(x).argmax(1)
    with Meter(model, x.device) as cost:
        attacks.pgd(model, x, y, eps=4 / 255, steps=2, batch_size=len(x))
    gib = cost.mebibytes / 1024
    print(f"full gradient through {STEPS} steps, batch {len(x)}: {gib:.2f} GiB", end="  ")
    print(f"{'met' if gib <= GIB else 'MISSED'}: {GIB} GiB")


def main() -> None:
    """Both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds instead of five")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args()
    gpu = options.device == "cuda"
    name = torch.cuda.get_device_name() if gpu else platform.processor() or "CPU"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"REDNet, depth {options.depth}, width {options.width}")
    dae = models.build("rednet", depth=options.depth, width=options.width)
    dae = dae.to(options.device).eval().requires_grad_(False)
    x = data.load("photographs").images.repeat(4, 1, 1, 1).to(options.device)
    speed(dae, x, 2 if options.quick else 5)
    memory(dae, x)


if __name__ == "__main__":
    main()
