"""How fast is PGD, beside the bare passes through the network and beside other libraries?

    python benchmarks/attacks.py [--quick] [--device cuda]        or: make bench

PGD-40 in L∞ on 1,000 MNIST digits (the shipped classifier) and on 256 random colour images of
32 x 32 (a small residual network with random weights). The floor is 40 bare forward and backward
passes to the images, in batches of several sizes, of which the one with the fastest median counts.
All take turns within a round, so that other work on the machine slows all alike; a ratio is taken
within each round, and its median over the rounds is printed. The last line is PGD with and without
early stopping at ε = 0.3.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apudae import attacks, data, models

STEPS = 40
FLOORS = (64, 250, 1000)  # batch sizes
Run = Callable[[], object]


class Residual(nn.Module):
    """A small residual network for 3 x 32 x 32 images; logits of 10 classes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(6))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = x + second(F.relu(first(F.relu(x))))
        return self.head(x.mean((2, 3)))


def floor(model: nn.Module, x: Tensor, y: Tensor, size: int) -> None:
    """The passes no gradient attack can do without."""
    for _ in range(STEPS):
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            images = images.detach().requires_grad_(True)
            loss = F.cross_entropy(model(images), labels, reduction="sum")
            torch.autograd.grad(loss, images)


def contenders(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, Run]:
    """Each library's PGD with the same steps, step size and a random start."""
    size = 2.5 * eps / STEPS
    runs: dict[str, Run] = {
        f"floor, batches of {batch}": lambda batch=batch: floor(model, x, y, batch)
        for batch in sorted({min(batch, len(x)) for batch in FLOORS})
    }
    runs["apudae"] = lambda: attacks.pgd(model, x, y, eps=eps, steps=STEPS, step_size=size)
    try:
        import torchattacks

        theirs = torchattacks.PGD(model, eps=eps, alpha=size, steps=STEPS, random_start=True)
        runs["torchattacks"] = lambda: theirs(x, y)
    except ImportError:
        print("torchattacks: not installed (pip install --no-deps torchattacks==3.5.1)")
    try:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        other = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=size, random_start=True)
        runs["foolbox"] = lambda: other(wrapped, x, y, epsilons=eps)
    except ImportError:
        print("foolbox: not installed")
    try:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        estimator = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            tuple(x.shape[1:]),
            10,
            clip_values=(0.0, 1.0),
            device_type="gpu" if x.is_cuda else "cpu",
        )
        third = ProjectedGradientDescentPyTorch(
            estimator,
            eps=eps,
            eps_step=size,
            max_iter=STEPS,
            num_random_init=1,
            batch_size=len(x),
            verbose=False,
        )
        images, labels = x.cpu().numpy(), y.cpu().numpy()
        runs["ART"] = lambda: third.generate(images, labels)
    except ImportError:
        print("ART: not installed")
    return runs


def seconds(run: Run, device: str) -> float:
    """Wall time of one run."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(title: str, runs: dict[str, Run], rounds: int, device: str) -> dict[str, float]:
    """Time all in turn; print and return the median ratio to the floor of the same round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            taken = seconds(run, device)
            if turn:  # the first round warms up
                times[name].append(taken)
    floors = min((taken for name, taken in times.items() if "floor" in name), key=statistics.median)
    ratios = {
        name: statistics.median(t / f for t, f in zip(taken, floors, strict=True))
        for name, taken in times.items()
    }
    print(f"\n{title}\n{'':24}{'x floor':>9}{'fastest run (s)':>18}")
    for name, ratio in ratios.items():
        print(f"{name:24}{ratio:9.2f}{min(times[name]):18.3f}")
    others = [r for name, r in ratios.items() if "floor" not in name and name != "apudae"]
    verdict("at most 1.1 x the floor", ratios["apudae"], ratios["apudae"] <= 1.1)
    if others:
        faster = ratios["apudae"] / min(others)
        verdict("no slower than the fastest other", faster, faster <= 1.0)
    return ratios


def verdict(target: str, measured: float, met: bool) -> None:
    """One line: what was asked, what was measured."""
    print(f"  {'met   ' if met else 'MISSED'}  {target}: {measured:.2f}")


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds instead of seven")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    rounds, device = 2 if options.quick else 7, options.device
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    head = f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, PGD-{STEPS}"
    print(head, flush=True)

    x, y = (part.to(device) for part in data.load("mnist", "validation").take(1000))
    digits = models.load("mnist-cnn").to(device).eval()
    compare("1,000 MNIST digits, ε = 0.1", contenders(digits, x, y, 0.1), rounds, device)

    torch.manual_seed(0)
    colour, labels = torch.rand(256, 3, 32, 32), torch.randint(10, (256,))
    network = Residual().to(device).eval()
    runs = contenders(network, colour.to(device), labels.to(device), 8 / 255)
    compare("256 colour images of 32 x 32, ε = 8/255", runs, rounds, device)

    ratios = []
    for _ in range(rounds):
        whole, early = (
            seconds(
                lambda stop=stop: attacks.pgd(digits, x, y, eps=0.3, steps=STEPS, early_stop=stop),
                device,
            )
            for stop in (False, True)
        )
        ratios.append(whole / early)
    print("\n1,000 MNIST digits, ε = 0.3: whole run over early stopping")
    faster = statistics.median(ratios)
    verdict("at least 3 x faster", faster, faster >= 3)


if __name__ == "__main__":
    main()
