"""How fast is adaptive purification, and what does its full gradient need?

    python benchmarks/purification.py [--quick] [--device cuda]        or: make bench

Speed: REDNet-30 on colour images of 32 × 32, 13 Adam steps, beside the straightforward loop
(float32, autograd through all parameters, one more forward pass for the error, no early stopping),
on attacked images and on a batch of which half is clean. Both must read the same number of images
rightly, within 0.5 points. Classifier and DAE are trained first, briefly, on CIFAR-10 (its JPEG
copy where only that is at hand): under ten minutes on two CPU cores, kept in ``runs/``.

Memory: the gradient through 1, 5, 13 and 50 gradient-descent steps with the digits' DAE and 256
images, beside an unrolled graph. Peaks are those of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from apudae import attacks, data, models, training
from apudae.core.scores import accuracy, outcomes, paired_difference
from apudae.purification import Adaptive, Defended, calibrate, reconstruction_error

RUNS = Path(__file__).parents[1] / "runs"
STEPS, SIZE = 13, 2 / 255
SPEED = {"attacked": 1.8, "half clean": 2.5}  # wanted, times the straightforward loop


class Straightforward(nn.Module):
    """What one writes first."""

    def __init__(self, dae: nn.Module) -> None:
        super().__init__()
        self.dae = dae

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            delta = torch.zeros_like(x, requires_grad=True)
            adam = torch.optim.Adam([delta], lr=SIZE)
            for _ in range(STEPS):
                adam.zero_grad()
                loss = (x + delta - self.dae(x + delta)).square().sum()
                loss.backward()
                adam.step()
                with torch.no_grad():
                    delta.copy_((x + delta).clamp(0, 1) - x)
                    (x + delta - self.dae(x + delta)).square().flatten(1).sum(1)  # the error now
        return (x + delta).detach()


def trained(device: str) -> tuple[nn.Module, nn.Module, data.Split, data.Split]:
    """A classifier and REDNet-30, trained on some thousand images; validation and test images."""
    for name in ("cifar10", "cifar10-jpeg"):
        try:
            splits = [data.load(name, split, dtype=torch.uint8) for split in data.SPLITS]
            break
        except FileNotFoundError as error:
            print(error)
    else:
        sys.exit("CIFAR-10 is needed: set APUDAE_DATA")
    train = splits[0].take(5_000)
    recipes = {
        "cifar10-resnet": {"task": training.classification, "epochs": 10},
        "rednet": {"task": training.denoising((0.02, 0.1)), "epochs": 5, "lr": 1e-3},
    }
    networks = []
    for model, recipe in recipes.items():
        network = models.build(model)
        options = {"batch_size": 64, "augment": True, "device": device, **recipe}
        training.fit(network, *train, checkpoint=RUNS / f"bench-{model}.pt", **options)
        networks.append(network.eval())  # parameters stay trainable, as a reader's own would be
    print(f"trained on 5,000 images of {data.TITLES[name]}")
    rest = [data.Split(s.images.to(device).float() / 255, s.labels.to(device)) for s in splits[1:]]
    return *networks, *rest


def speed(device: str, rounds: int, n: int) -> None:
    """Milliseconds per image in turns, and whether the same images are read rightly."""
    classifier, dae, validation, test = trained(device)
    level = calibrate(dae, validation.images[:500])
    ours = Adaptive(dae, step_size=SIZE, steps=STEPS, precision="auto", calibration=level)
    x, y = test.take(n)
    attacked = attacks.pgd(classifier, x, y, eps=8 / 255, steps=20)
    half = x.clone()
    half[1::2] = attacked[1::2]  # every batch is half clean
    for title, images in (("clean", x), ("attacked", attacked)):
        print(f"{title}, no defense: {accuracy(classifier, images, y)} (n = {n})")
    ways = {
        "straightforward": Straightforward(dae),
        "ours": ours,
        "ours, stops at mu": ours.replace(stop=0.0),
    }
    print(f"\n{'':12}{'':20}{'ms per image':>13}{'times':>8}   read rightly, paired difference")
    for title, images in (("attacked", attacked), ("half clean", half)):
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, purifier in ways.items():
                dae.requires_grad_(name == "straightforward")
                start = time.perf_counter()
                for part in images[: min(n, 128)].split(32):
                    with torch.no_grad():
                        purifier(part)
                if device == "cuda":
                    torch.cuda.synchronize()
                if number:  # the first round warms up
                    taken[name].append(1000 * (time.perf_counter() - start) / min(n, 128))
        first = None
        for name, purifier in ways.items():
            dae.requires_grad_(name == "straightforward")
            right = outcomes(Defended(classifier, purifier), images, y, batch_size=32)
            first = right if first is None else first
            gap = paired_difference(first, right)
            pairs = zip(taken["straightforward"], taken[name], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            line = f"{title:12}{name:20}{statistics.median(taken[name]):13.2f}{ratio:8.2f}   "
            line += f"{100 * right.float().mean():.1f} %"
            if name != "straightforward":
                met = ratio >= SPEED[title] and abs(gap.points) <= 0.5
                line += f", {gap}  {'met' if met else 'MISSED'}: {SPEED[title]} x, 0.5 points"
            print(line, flush=True)


def unrolled(dae: nn.Module, z: Tensor, steps: int) -> Tensor:
    """The same steps in one graph."""
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(reconstruction_error(dae, z).sum(), z, create_graph=True)
        z = (z - 0.05 * gradient).clamp(0, 1)
    return z


def full_gradient(kind: str, steps: int, device: str, rounds: int) -> None:
    """Time both ways in turns, or, for one of them, print its peak in KiB."""
    dae = models.load("mnist-dae", device=device)
    z = data.load("mnist", "train").images[:256].to(device).requires_grad_(True)

    def ours(dae: nn.Module, z: Tensor, steps: int) -> Tensor:
        return Adaptive(dae, stepper="descent", step_size=0.05, steps=steps)(z)

    ways = {"unrolled": unrolled, "ours": ours}

    def once(way) -> float:
        start = time.perf_counter()
        torch.autograd.grad(way(dae, z, steps).sum(), z)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    if kind == "time":
        taken = [[once(way) for way in ways.values()] for _ in range(rounds + 1)][1:]
        print(json.dumps(taken))
        return
    ours(dae, z.detach(), 1)  # the network's own: forward, and back to the images
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(ways[kind])
        print((torch.cuda.max_memory_allocated() - before) / 1024)
        return
    before = peak()
    once(ways[kind])
    print(peak() - before)


def peak() -> int:
    """This process's largest memory so far in KiB (Linux).

    Not getrusage's, which begins at the peak of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def memory(device: str, rounds: int) -> None:
    """Peak and time of the full gradient, beside the unrolled graph."""
    print(f"\n{'steps':>5}{'MiB, unrolled':>15}{'ours':>8}{'ratio':>8}{'time':>9}")
    for steps in (1, 5, 13, 50):

        def run(kind: str, steps: int = steps) -> str:
            command = [sys.executable, __file__, "--device", device]
            command += ["--child", kind, str(steps), str(rounds)]
            # glibc gives large blocks back at once: the peak is what was held, not the heap.
            env = os.environ | ({} if kind == "time" else {"MALLOC_MMAP_THRESHOLD_": "65536"})
            options = {"check": True, "capture_output": True, "encoding": "utf-8", "env": env}
            return subprocess.run(command, **options).stdout

        peaks = [float(run(kind)) / 1024 for kind in ("unrolled", "ours")]
        ratio = statistics.median(b / a for a, b in json.loads(run("time")))
        line = f"{steps:5}{peaks[0]:15.0f}{peaks[1]:8.0f}{peaks[0] / max(peaks[1], 1):8.1f}"
        line += f"{ratio:8.2f}x"
        if steps == 50:
            met = peaks[1] <= peaks[0] / 15 and ratio <= 1.25
            line += f"  {'met' if met else 'MISSED'}: a 15th of the memory, 1.25 x the time"
        print(line, flush=True)


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds instead of five")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--n", type=int, default=400, help="images for the accuracies")
    parser.add_argument("--only", choices=["speed", "memory"])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, steps, rounds = options.child
        full_gradient(kind, int(steps), options.device, int(rounds))
        return
    rounds = 2 if options.quick else 5
    gpu = options.device == "cuda"
    name = torch.cuda.get_device_name() if gpu else platform.processor() or "CPU"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if options.only != "memory":
        speed(options.device, rounds, options.n)
    if options.only != "speed":
        memory(options.device, rounds)


if __name__ == "__main__":
    main()
