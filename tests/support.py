"""What tests of several rooms share: toy models, every attack by name, masks, budgets, caches."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn
from torch.nn import functional as F

import apudae
from apudae import attacks, data, models
from apudae.core import files
from apudae.core.arguments import AttackWarning
from apudae.core.norms import NORMS, uniforms
from apudae.evaluation import Budget, evaluate
from apudae.purification import reconstruction_error
from apudae.training import InMemory

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
NOTEBOOKS = sorted(path.relative_to(BOOK).as_posix() for path in BOOK.rglob("*.ipynb"))
CHAPTERS = [name for name in NOTEBOOKS if name[:2].isdigit()]


@cache
def notebook(name: str):
    """One of ``NOTEBOOKS``, to be read; who changes it takes a deep copy."""
    import nbformat

    return nbformat.read(BOOK / name, as_version=4)


def code(notebook) -> list:
    """The code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def missing(what: str) -> None:
    """Skip a test for want of something; with ``APUDAE_REQUIRED=1`` it fails."""
    import pytest

    if os.environ.get("APUDAE_REQUIRED") == "1":
        pytest.fail(what)
    pytest.skip(what)


# --- toy models with known answers -------------------------------------------------------------


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


class Components(nn.Module):
    """An autoencoder that needs no training: along the main directions of images, a little bent."""

    def __init__(self, x: torch.Tensor, n: int) -> None:
        super().__init__()
        flat = x.flatten(1)
        directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:n]
        self.mean, self.directions = nn.Parameter(flat.mean(0)), nn.Parameter(directions)

    def forward(self, x):
        code = 3 * torch.tanh((x.flatten(1) - self.mean) @ self.directions.T / 3)
        return (self.mean + code @ self.directions).view(x.shape)


def module_of(function: Callable) -> nn.Module:
    """A module that does what a function does."""
    module = nn.Module()
    module.forward = function
    return module


# --- several processes ----------------------------------------------------------------------------

# Forked, since imports take long; they meet as those of torchrun do. Before it stands what each
# does, ``work(rank, size)``: its result is stored as JSON.
_FORKED = """
import json, os, pathlib, socket, sys, warnings
import torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import support
from apudae.core import processes
out, job, sizes = pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4].split(",")
exec((out / "work.py").read_text())
for size in map(int, sizes):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        if child := os.fork():
            children.append(child)
            continue
        if size > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(size)}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        code = 1
        try:
            with processes.processes("cpu"):
                found = work(rank, size)
            (out / f"{job}-{size}-{rank}.json").write_text(json.dumps(found))
            code = 0
        except SystemExit as end:
            print(end, flush=True)
            code = 3
        finally:
            os._exit(code) if code != 1 else None
    print(size, sorted(os.waitpid(child, 0)[1] >> 8 for child in children), flush=True)
"""


def forked(folder: Path, work: str, job: str, sizes: tuple[int, ...]) -> str:
    """Do a job in so many processes, one number of them after the other; what they print."""
    (folder / "work.py").write_text(work)
    script = folder / "forked.py"
    script.write_text(_FORKED)
    command = [sys.executable, script, ROOT / "tests", folder, job, ",".join(map(str, sizes))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    shared = {"capture_output": True, "text": True, "env": environment, "timeout": 240}
    done = subprocess.run(list(map(str, command)), **shared)
    assert done.returncode == 0, done.stderr[-3000:]
    for size in sizes:  # 1: a fault; 3: refused
        ended = next(line for line in done.stdout.splitlines() if line.startswith(f"{size} ["))
        # Who failed first speaks first; the others then miss it.
        assert 1 not in json.loads(ended.split(" ", 1)[1]), done.stderr[:6000]
    return done.stdout


# --- every attack by name, with budgets that suit toy models -----------------------------------

ATTACKS = {
    "noise": attacks.noise,
    "fgsm": attacks.fgsm,
    "rfgsm": attacks.rfgsm,
    "bim": attacks.bim,
    "pgd": partial(attacks.pgd, steps=5, restarts=2),
    "apgd": partial(attacks.apgd, steps=8, restarts=2),
    "square": partial(attacks.square, queries=12),
    "boundary": partial(attacks.boundary, steps=3),
    "deepfool": attacks.deepfool,
    "cw": partial(attacks.cw, steps=20, searches=3, step_size=0.1),
}
RANDOM = ("noise", "rfgsm", "pgd", "apgd", "square", "boundary")
BOTH = [(name, norm) for name in ATTACKS for norm in NORMS if (name, norm) != ("cw", "linf")]


def call(name, model, x, y, *, norm="linf", **options):
    """Any attack by name; C&W knows L2 only."""
    return ATTACKS[name](model, x, y, **options if name == "cw" else options | {"norm": norm})


# A whole evaluation in about a second, on two dozen digits.
SMALL = Budget(
    pgd=10, apgd=10, targets=2, queries=20, draws=2, weights=(0.1,), curve=20, scoring=20
)


def dies_after(monkeypatch, batches: int, error: type[BaseException]) -> None:
    """From now on a training dies before the batch of that number."""
    epoch, left = InMemory.epoch, [batches]

    def cut(self, number):
        for batch in epoch(self, number):
            if not left[0]:
                raise error
            left[0] -= 1
            yield batch

    monkeypatch.setattr(InMemory, "epoch", cut)


def run(model, digits, **options):
    """A report, without its warnings as such."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        return evaluate(model, *digits, progress=False, **options)


def names(report) -> set[str]:
    """Of the warnings that a report raised."""
    return {finding.name for finding in report.findings}


# --- defenses that hide their weakness, each with a known truth --------------------------------


class Quantise(nn.Module):
    """Rounds pixels: the gradient is zero everywhere, and the images hardly change."""

    def __init__(self, levels=16):
        super().__init__()
        self.levels = levels

    def forward(self, x):
        return (x * self.levels).round() / self.levels


class Hot(nn.Module):
    """Logits times 1000: the softmax is so sure that the cross-entropy has no gradient."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return 1000 * self.classifier(x)


class Detached(nn.Module):
    """Descends the reconstruction error on a fresh leaf, as the authors' code does."""

    def __init__(self, dae, steps, step_size):
        super().__init__()
        self.dae, self.steps, self.step_size = dae, steps, step_size

    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().clone()
            for _ in range(self.steps):
                z.requires_grad_(True)
                (g,) = torch.autograd.grad(reconstruction_error(self.dae, z).sum(), z)
                z = (z.detach() - self.step_size * g).clamp(0, 1)
        return z.detach()


class Rarely(nn.Module):
    """A classifier that answers nonsense in one draw of twenty, for clean images too."""

    def __init__(self, classifier, chance=0.05):
        super().__init__()
        self.classifier, self.chance = classifier, chance

    def forward(self, x, index=None, draw=0):
        index = torch.zeros(1, dtype=torch.int64) if index is None else index
        luck = uniforms((1,), index, 7, draw, device=x.device)
        logits = self.classifier(x)
        return torch.where(luck < self.chance, logits.roll(1, 1), logits)


class Noisy(nn.Module):
    """Adds Gaussian noise from torch's global generator."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma = sigma

    def forward(self, x):
        return x + self.sigma * torch.randn_like(x)


class Opaque(nn.Module):
    """A preprocessor and a classifier that nobody may tell apart."""

    def __init__(self, preprocess, classifier):
        super().__init__()
        self.preprocess, self.classify = preprocess, classifier

    def forward(self, x):
        return self.classify(self.preprocess(x))


# --- seeds -------------------------------------------------------------------------------------

RANDOM_SEEDS = os.environ.get("APUDAE_RANDOM_SEEDS") == "1"


def seed_of(name: str) -> int:
    """A seed for a test: always the same, or a fresh one where ``APUDAE_RANDOM_SEEDS=1``."""
    if RANDOM_SEEDS:
        return int.from_bytes(os.urandom(4), "big")
    return zlib.crc32(name.encode())


def fresh() -> int:
    """A seed from torch's global generator, which has a known state when a test begins."""
    return int(torch.randint(2**31, ()))


# --- caches ------------------------------------------------------------------------------------


_SHARED: dict[tuple[str, torch.dtype], tuple[nn.Module, str]] = {}


def _shared(name: str, dtype: torch.dtype, make: Callable[[], nn.Module]) -> nn.Module:
    if (name, dtype) not in _SHARED:
        with torch.random.fork_rng([]):  # a test's draws do not depend on who asked first
            model = make().to(dtype).eval().requires_grad_(False)
        _SHARED[name, dtype] = model, files.model_fingerprint(model)
    return _SHARED[name, dtype][0]


def shipped(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Shipped weights, loaded once for a process: to be read, not to be changed."""
    return _shared(name, dtype, lambda: models.load(name))


def small() -> nn.Module:
    """A classifier that reads nine digits of ten, for a tenth of the shipped one's arithmetic."""

    def build():
        layers = nn.Conv2d(1, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))

    def learned():
        torch.random.default_generator.manual_seed(0)
        model, (x, y) = build(), data.load("mnist", "train")
        adam = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(8):
            for some in torch.randperm(len(x)).split(100):
                noisy = x[some] + 0.3 * torch.randn(x[some].shape)
                adam.zero_grad()
                F.cross_entropy(model(noisy), y[some]).backward()
                adam.step()
        return model.state_dict()

    def make():
        model = build()
        model.load_state_dict(cached("small", learned))
        return model

    return _shared("small", torch.float32, make)


def components() -> nn.Module:
    """``Components`` of the training digits: an autoencoder to stand before ``small()``."""

    def found():
        return Components(data.load("mnist", "train").images, 32).state_dict()

    def make():
        model = Components(torch.zeros(32, 1, 28, 28), 32)
        model.load_state_dict(cached("components", found))
        return model

    return _shared("components", torch.float32, make)


def forget_changed() -> list[str]:
    """Which of the shared models a test changed; the next one gets them anew."""
    changed = []
    for key, (model, print_) in list(_SHARED.items()):
        learns = any(p.requires_grad or p.grad is not None for p in model.parameters())
        busy = any(m.training or m._forward_hooks for m in model.modules())
        if learns or busy or files.model_fingerprint(model) != print_:
            changed.append(key[0])
            del _SHARED[key]
    return changed


@cache
def package_print() -> str:
    """A hash of the package's code and of which weights it ships."""
    digest = hashlib.sha256(torch.__version__.encode())
    package = Path(apudae.__file__).parent
    for path in sorted([*package.rglob("*.py"), *package.rglob("manifest.json")]):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def open_cache(folder: Path) -> None:
    """Where ``cached`` keeps its files, for this process and those it starts."""
    mine = folder / package_print()
    mine.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old != mine:
            shutil.rmtree(old, ignore_errors=True)
    os.environ["APUDAE_TEST_CACHE"] = str(mine)


def cached(name: str, make: Callable[[], object]):
    """What ``make`` returns, made once for all processes and runs of the same code."""
    path = Path(os.environ["APUDAE_TEST_CACHE"]) / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            aside = path.with_suffix(".part")
            torch.save(make(), aside)
            aside.replace(path)
    return torch.load(path)


def digits(n: int, split: str = "validation") -> data.Split:
    """The first bundled digits of a split, and their labels."""
    return data.load("mnist", split).take(n)


def read(n: int) -> data.Split:
    """The first validation digits that ``small()`` reads: its clean accuracy on them is 100 %."""
    x, y = digits(n + n // 2)
    right = (small()(x).argmax(1) == y).nonzero().flatten()[:n]
    return data.Split(x[right], y[right])


def attacked(n: int, eps: float, *, steps: int = 50, split: str = "validation") -> torch.Tensor:
    """``digits(n, split)`` after PGD on the shipped classifier; not for tests of PGD itself."""

    def make():
        return attacks.pgd(shipped("mnist-cnn"), *digits(n, split), eps=eps, steps=steps)

    return cached(f"pgd-{n}-{eps}-{steps}-{split}", make)
