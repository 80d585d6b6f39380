"""How fast one GPU trains the book's networks: ``python -m apudae.experiments gpu-training``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from . import data, models, records, scores, training
from .recipes import CLASSIFIER_TRAINING, DAE_TRAINING

# What one GPU is to train: model, data, the options of training.fit, and the seconds it may take.
_DAE = {"task": "denoising", "optimizer": "adamw", "lr": 3e-3}
_CIFAR = {"data": "cifar10-jpeg", "augment": True, "batch_size": 512, "ema": 0.995}
RUNS: dict[str, dict[str, Any]] = {
    "MNIST classifier": {"model": "mnist-cnn", "data": "mnist", "seconds": 20}
    | CLASSIFIER_TRAINING
    | {"batch_size": 512, "lr": 4e-3},
    "MNIST DAE": {"model": "mnist-dae", "data": "mnist", "seconds": 20, "sigma": 0.3}
    | DAE_TRAINING
    | _DAE
    | {"batch_size": 512},
    "CIFAR-10 classifier": {"model": "cifar10-resnet", "seconds": 60, "epochs": 30}
    | {"optimizer": "sgd", "lr": 0.2, "weight_decay": 5e-4}
    | _CIFAR,
    "REDNet-30": {"model": "rednet", "seconds": 300, "epochs": 20, "sigma": (0.02, 0.2)}
    | _DAE
    | _CIFAR
    | {"lr": 1e-3},
}


def run(root: Path | None, results: Path, *, device: str = "cuda") -> None:
    """Train each of :data:`RUNS` that the record lacks; store time and quality after each.

    Raises:
        RuntimeError: there is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("gpu-training needs a GPU, and torch finds none on this machine")
    found = done(results)
    for name, recipe in RUNS.items():
        if name in found:
            continue
        options = dict(recipe)
        model = models.build(options.pop("model")).to(device)
        source, limit = options.pop("data"), options.pop("seconds")
        load = {"profile": "full", "root": root, "dtype": torch.uint8}
        train, test = (data.load(source, split, **load) for split in ("train", "test"))
        denoises = options.pop("task", None) == "denoising"
        task = training.denoising(options.pop("sigma")) if denoises else training.classification
        start = time.perf_counter()
        training.fit(model, *train, task=task, device=device, **options)
        if device == "cuda":
            torch.cuda.synchronize()
        row = {"data": data.TITLES[source], "seconds": time.perf_counter() - start, "limit": limit}
        if denoises:
            row["mse"] = training.measure(model, *test, task, device=device)
        else:
            images = test.images.to(device).float().div_(255)
            right = scores.accuracy(model, images, test.labels.to(device))
            row |= {"correct": right.correct, "n": right.n}
        found[name] = row | {"made": records.provenance(device)}
        print(name, row, flush=True)
        records.save("gpu_training", {"runs": found}, device=device, folder=results)


def done(results: Path) -> dict[str, Any]:
    """What the record holds."""
    if "gpu_training" not in records.names(results):
        return {}
    return records.load("gpu_training", results)["runs"]
