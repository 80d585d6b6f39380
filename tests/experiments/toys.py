"""Toys for the runners: images with known answers, networks of a few weights, tiny budgets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from support import Linear
from torch import nn

from apudae import models
from apudae.data import Split
from apudae.evaluation import Budget
from apudae.experiments import Place

BRIEF = Budget(
    pgd=2, apgd=2, restarts=1, targets=1, queries=3, draws=1, weights=(0.1,), curve=2, scoring=2
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def dots(n, seed=0):
    """Random images of 4 × 4 pixels, labelled by what the linear classifier says."""
    x = torch.rand(n, 1, 4, 4, generator=seeded(seed))
    return Split(x, linear()(x).argmax(1))


def linear():
    return Linear((1, 4, 4), 3, seeded(1)).eval().requires_grad_(False)


def stripes(n, seed, dtype=torch.float32):
    """Faintly coloured stripes of 8 × 8: class k has one of three colours at one of four places."""
    labels = torch.arange(n) % 10
    images = 0.3 + 0.1 * torch.rand(n, 3, 8, 8, generator=seeded(seed))
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label % 3, :, 2 * (label // 3) % 8] += 0.15
    pixels = (255 * images.clamp(0, 1)).round().to(torch.uint8)
    return Split(pixels if dtype == torch.uint8 else pixels.float() / 255, labels)


class Blur(nn.Module):
    """An autoencoder that mixes each pixel with its neighbours: most images are read as before."""

    def forward(self, x):
        return 0.5 * x + 0.25 * (x.roll(1, 3) + x.roll(-1, 3))


class Cut(nn.Module):
    """A model whose user presses Ctrl-C at a pass; ``left`` is shared, so the next run goes on."""

    def __init__(self, model, left):
        super().__init__()
        self.model, self._left = model, left

    def forward(self, x):
        self._left[0] -= 1
        if self._left[0] == 0:
            raise KeyboardInterrupt
        return self.model(x)


def place_with(folder: Path, *names: str) -> Place:
    """A place with some of the shipped weights and nothing else."""
    weights = folder / "weights"
    weights.mkdir()
    known = json.loads((models.WEIGHTS / "manifest.json").read_text("utf-8"))
    known = {name: known[name] for name in names}
    for about in known.values():
        shutil.copy(models.WEIGHTS / about["file"], weights)
    (weights / "manifest.json").write_text(json.dumps(known))
    return Place(None, weights, folder / "results", folder / "work")


def files(*folders: Path) -> dict[Path, bytes]:
    """All that lies in folders, to see that it does not change."""
    return {p: p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}
