"""How many images a second does the training loop see, beside a plain loop?

    python benchmarks/training.py [--quick] [--device cuda]        or: make bench

The plain loop is what one writes first: float32, NCHW, a ``DataLoader`` that mirrors and shifts
8-bit images on the CPU and turns them into floats. Ours keeps the set on the device, augments it
there, and computes in half precision where the hardware does. Both train the same network on the
same random images of 32 × 32 with AdamW; they take turns, and the median ratio over the rounds
counts. A round's time leaves out start-up: it is what two epochs take longer than one.

    python benchmarks/training.py --networks --device cuda

trains four networks of the book on their whole data sets, and prints how long each took, beside
what one GPU may take, and how well it does.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from apudae import data, evaluation, models, training
from apudae.core import processes
from apudae.experiments.recipes import CLASSIFIER_TRAINING, DAE_TRAINING

Task = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
BATCH = 64


class OnTheCPU(Dataset):
    """8-bit images, mirrored and shifted one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        x = F.pad(self.images[k].float() / 255, (4,) * 4, mode="reflect")
        flip, top, left = torch.randint(9, (3,)).tolist()
        x = x[:, top : top + 32, left : left + 32]
        return (x.flip(2) if flip < 4 else x), self.labels[k]


def plain(model: nn.Module, data: tuple[Tensor, Tensor], task: Task, epochs: int, device: str):
    """The loop one writes first."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    generator = torch.Generator(device).manual_seed(0)
    loader = DataLoader(OnTheCPU(*data), batch_size=BATCH, shuffle=True)
    for _ in range(epochs):
        for x, y in loader:
            loss = task(model, x.to(device), y.to(device), generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def ours(model: nn.Module, data: tuple[Tensor, Tensor], task: Task, epochs: int, device: str):
    """The package's loop with its defaults."""
    options = {"epochs": epochs, "batch_size": BATCH, "lr": 1e-4, "augment": True}
    training.fit(model, *data, task=task, device=device, progress=False, **options)
    return model


def seconds(loop, build, data, task, device) -> float:
    """What an epoch takes: two epochs less one."""
    taken = []
    for epochs in (1, 2):
        model = build()
        start = time.perf_counter()
        loop(model, data, task, epochs, device)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken[1] - taken[0]


_DAE = {"optimizer": "adamw", "lr": 3e-3}
_CIFAR = {"augment": True, "batch_size": 512, "ema": 0.995}
# Model, data, noise of a DAE, seconds that one GPU may take, and the options of training.fit.
NETWORKS: dict[str, tuple[str, str, float | tuple[float, float] | None, int, dict[str, Any]]] = {
    "MNIST classifier": (
        *("mnist-cnn", "mnist", None, 20),
        CLASSIFIER_TRAINING | {"batch_size": 512, "lr": 4e-3},
    ),
    "MNIST DAE": ("mnist-dae", "mnist", 0.3, 20, DAE_TRAINING | _DAE | {"batch_size": 512}),
    "CIFAR-10 classifier": (
        *("cifar10-resnet", "cifar10-jpeg", None, 60),
        {"epochs": 30, "optimizer": "sgd", "lr": 0.2, "weight_decay": 5e-4} | _CIFAR,
    ),
    "REDNet-30": (
        *("rednet", "cifar10-jpeg", (0.02, 0.2), 300),
        {"epochs": 20} | _DAE | _CIFAR | {"lr": 1e-3},
    ),
}


def networks(device: str, take: int | None = None, **changes: Any) -> None:
    """Train each of :data:`NETWORKS`; with ``take`` on the first so many images."""
    for name, (architecture, source, sigma, limit, options) in NETWORKS.items():
        load = {"profile": "full", "dtype": torch.uint8}
        train, test = (data.load(source, split, **load) for split in ("train", "test"))
        if take:
            train, test = train.take(take), test.take(take)
        model = models.build(architecture).to(device)
        task = training.classification if sigma is None else training.denoising(sigma)
        start = time.perf_counter()
        training.fit(model, *train, task=task, device=device, **options | changes)
        if device == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - start
        if sigma is None:
            images = test.images.to(device).float() / 255
            found = evaluation.accuracy(model, images, test.labels.to(device))
        else:
            error = training.measure(model, *test, task, device=device)
            found = f"{error:.5f} mean squared error"
        title = data.TITLES[source]
        print(f"{name} on {title}: {taken:.1f} s (at most {limit} s), {found}", flush=True)


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds instead of five")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--networks", action="store_true", help="train four networks instead")
    options = parser.parse_args()
    device, rounds = options.device, 2 if options.quick else 5
    gpu = device == "cuda"
    name = torch.cuda.get_device_name() if gpu else platform.processor() or "CPU"
    precision = (
        str(processes.precision_of(device)).removeprefix("torch.").replace("None", "float32")
    )
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}")
    if options.networks:
        changes = {"take": 256, "epochs": 1} if options.quick else {}
        networks(device, **changes)
        return
    wanted = 4.0 if gpu else 1.5
    generator = torch.Generator().manual_seed(0)
    cases: list[tuple[str, Callable[[], nn.Module], Task, int]] = [
        (
            "cifar10-resnet",
            lambda: models.build("cifar10-resnet"),
            training.classification,
            25_600 if gpu else 640,
        ),
        (
            "rednet (30 layers)",
            lambda: models.build("rednet"),
            training.denoising(0.1),
            12_800 if gpu else 384,
        ),
    ]
    print(f"\n{'images/s':20}{'plain':>10}{'ours':>10}{'ratio':>8}")
    for title, build, task, n in cases:
        images = torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
        data = images, torch.randint(10, (n,), generator=generator)
        pairs = [
            tuple(seconds(loop, build, data, task, device) for loop in (plain, ours))
            for _ in range(rounds)
        ]
        slow, fast = (n / statistics.median(part) for part in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        met = "met" if ratio >= wanted else "MISSED"
        print(
            f"{title:20}{slow:10.0f}{fast:10.0f}{ratio:8.2f}  {met}: at least {wanted}", flush=True
        )


if __name__ == "__main__":
    main()
