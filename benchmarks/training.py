"""How many images a second does the training loop see, beside a plain loop?

    python benchmarks/training.py [--quick] [--device cuda]        or: make bench

The plain loop is what one writes first: float32, NCHW, a ``DataLoader`` that mirrors and shifts
8-bit images on the CPU and turns them into floats. Ours keeps the set on the device, augments it
there, and computes in half precision where the hardware does. Both train the same network on the
same random images of 32 × 32 with AdamW; they take turns, and the median ratio over the rounds
counts. A round's time leaves out start-up: it is what two epochs take longer than one.
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
from torch.utils.data import DataLoader, Dataset

from apudae import models, training
from apudae.core import processes

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


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds instead of five")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    device, rounds = options.device, 2 if options.quick else 5
    gpu = device == "cuda"
    name = torch.cuda.get_device_name() if gpu else platform.processor() or "CPU"
    precision = (
        str(processes.precision_of(device)).removeprefix("torch.").replace("None", "float32")
    )
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}")
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
