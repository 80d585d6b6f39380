"""Fixtures of all tests: a known seed, toy models, and the full data set where it is at hand."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

if not os.environ.get("APUDAE_CUDA"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests give the same answer on every machine
os.environ["TQDM_DISABLE"] = "1"
os.environ.pop("APUDAE_PROFILE", None)

import hypothesis
import numpy as np
import pytest
import support
import torch

hypothesis.settings.register_profile("same each time", derandomize=True, database=None)
if not support.RANDOM_SEEDS:
    hypothesis.settings.load_profile("same each time")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the workers of xdist use the folder of their parent
        kept = hasattr(config, "cache")
        support.open_cache(Path(config.cache.mkdir("apudae") if kept else tempfile.mkdtemp()))


@pytest.fixture(autouse=True)
def seed(request) -> int:
    """The seed of a test, printed where it fails; the global generators start from it."""
    seed = support.seed_of(request.node.nodeid)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return seed


@pytest.fixture
def generator(seed) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True, scope="module")
def shared_models_stay_as_they_are():
    yield
    assert support.forget_changed() == [], "a test of this file changed a model that others read"


@pytest.fixture
def linear(generator) -> support.Linear:
    return support.Linear((1, 4, 4), 3, generator)


@pytest.fixture
def smooth_dae(generator) -> support.SmoothDAE:
    return support.SmoothDAE(generator)


@pytest.fixture(scope="session")
def full_data() -> Path:
    """Root of the full MNIST data set; tests that need it are skipped where it is not."""
    root = Path(os.environ.get("APUDAE_DATA", "/nonexistent"))
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip("full MNIST is not at hand: set APUDAE_DATA to the folder that holds MNIST/raw")
    return root


@pytest.fixture(scope="session")
def repository() -> Path:
    return support.ROOT
