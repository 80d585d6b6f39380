"""Toy models with known answers, and the full data set where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

if not os.environ.get("APUDAE_CUDA"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests give the same answer on every machine
os.environ["TQDM_DISABLE"] = "1"
os.environ.pop("APUDAE_PROFILE", None)


class Linear(nn.Module):
    """Logits that are linear in the pixels: the best attack is known in closed form."""

    def __init__(self, shape: tuple[int, ...], classes: int, generator: torch.Generator) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        weight = torch.randn(classes, size, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return (x.flatten(1).to(self.weight.dtype) - 0.5) @ self.weight.T


class SmoothDAE(nn.Module):
    """A tiny autoencoder with smooth activations, for finite differences in float64."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(5, 16, generator=generator, dtype=torch.float64) / 4)
        self.up = nn.Parameter(torch.randn(16, 5, generator=generator, dtype=torch.float64) / 2)

    def forward(self, x):
        code = torch.tanh(x.flatten(1) @ self.down.T)
        return torch.sigmoid(code @ self.up.T).view(x.shape)


@pytest.fixture
def generator(request) -> torch.Generator:
    """Fresh random inputs each run; the seed is printed when a test fails."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def linear(generator) -> Linear:
    return Linear((1, 4, 4), 3, generator)


@pytest.fixture
def smooth_dae(generator) -> SmoothDAE:
    return SmoothDAE(generator)


@pytest.fixture(scope="session")
def full_data() -> Path:
    """Root of the full MNIST data set; tests that need it are skipped where it is not."""
    root = Path(os.environ.get("APUDAE_DATA", "/nonexistent"))
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip("full MNIST is not at hand: set APUDAE_DATA to the folder that holds MNIST/raw")
    return root


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]
