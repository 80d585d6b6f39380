"""Whatever is wrong with an argument, the error names it: each public function, one at a time."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from support import SMALL
from torch import nn

from apudae import attacks, data, evaluation, models, plots, purification, training
from apudae.core.scores import Accuracy

X, Y = (part[:4] for part in data.load("mnist", "validation"))
NAN, LAMBDA = float("nan"), lambda x: x


class Image(nn.Module):
    """Images to images."""

    def forward(self, x):
        return x.clone()


NET, DAE, CODES = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), Image(), models.Generator(8)
CALIBRATION = purification.Calibration(1.0, 0.5, 4)
STEPS = purification.Adaptive(DAE, steps=1)
RIGHT, SCORES = torch.tensor([True, False, True]), torch.tensor([0.1, 0.5, 0.7])
FIGURE = plots.losses({"a": [1.0, 2.0]})
PICTURE = torch.zeros(2, 1, 4, 4)
SPLIT = data.Split(X, Y)

# What is wrong, by the kind of argument; a "?" behind the kind stands for "or None".
WRONG = {
    "module": [None, "mnist-dae", Image, LAMBDA, 3, [NET], torch.zeros(3)],
    "images": [None, "mnist", X.numpy(), 3, [X], X[0], X.int(), X * 255, X.clone().fill_(NAN)],
    "tensor": [None, "a", 3, object()],
    "labels": [None, "a", 3, Y.numpy(), Y.float(), Y[:2], Y - 10, Y[None]],
    "index": ["a", 3, Y.numpy(), Y.float(), Y[:2], Y - 10],
    "count": [None, 0, -1, 1.5, True, "3", NAN, np.float64(2), torch.tensor(2), [2]],
    "whole": [None, -1, 1.5, True, "3", NAN, np.float64(2), [2]],
    "positive": [None, 0, -0.1, "a", True, NAN, float("inf"), [0.1], torch.tensor(0.1), 1j],
    "number": [None, -0.1, "a", True, NAN, float("inf"), [0.1], torch.tensor(0.1), 1j],
    "share": [None, -0.1, 1.5, "a", True, NAN, [0.1]],
    "inner0": [None, 1, 1.5, -0.1, "a", True, NAN, [0.1]],
    "inner": [None, 0, 1, -0.1, "a", True, NAN, [0.1]],  # between 0 and 1
    "real": [None, "a", True, [0.1], 1j],
    "bool": [None, "no", "", 1, 0, [], 0.0],
    "seed": [None, -1, True, 1.5, "0", NAN, 2**63, np.float64(1), torch.tensor(1)],
    "device": ["tpu", "cuda:7", "", 3.5, [], "gpu"],
    "choice": [None, "?", "", 3, True, ["linf"]],
    "text": [None, 3, True, ["a"], b"a"],
    "path": [3, True, 1.5, ["a"], b"a"],
    "function": [None, 3, "pgd", [attacks.pgd]],
    "dict": [None, 3, "a", [1], X],
    "own": [3, "a", [1], {"mine": 3}, {"mine": None}],
    "sequence": [None, 3, 1.5, "ab", {"a": 1}],
    "listing": [None, "folder", 3, [X]],
    "dtype": [None, "float32", torch.int64, np.float32, 3],
    "calibration": [3, "a", NET, (1.0,), ("a", 1.0, 4), (1.0, 0.0, 4), (NAN, 1.0, 4)],
    "noisy": [None, 0, -1.0, "a", True, NAN, (0.4, 0.1), (0.1,), (0.1, 0.2, 0.3), ("a", "b")],
    "budget": [None, "huge", 3, {"pgd": 3}, evaluation.Budget],
    "purifier": [None, "direct", 3, purification.Adaptive, DAE],
    "source": [None, 3, "mnist", X.numpy(), data.Listing([], [])],
    "pair": [3, "ab", X, (X,), (X, Y, Y), (X, Y[:2]), (X * 255, Y), (X, Y + 10), (X, None)],
}

TABLE = {"header": (["a"], "sequence"), "rows": ([["b"]], "sequence"), "text": (1, "whole")}
DRAWN = {"seed": (0, "seed"), "precision": ("float32", "choice")}

# The public functions: arguments that are right, and of which kind each is.
CALLS = {
    data.load: {
        "name": ("mnist", "choice"),
        "split": ("test", "choice"),
        "profile": ("quick", "choice?"),
        "root": (None, "path?"),
        "download": (False, "bool"),
        "dtype": (torch.uint8, "dtype"),
    },
    data.sample_index: {"split": ("test", "choice")},
    SPLIT.take: {"n": (2, "whole")},
    data.fingerprint: {"images": (X, "tensor")},
    models.build: {"name": ("mnist-dae", "choice"), "seed": (0, "seed"), "latent": (4, "count")}
    | {"width": (4, "count"), "tones": (0, "whole")},
    models.MnistCNN: {"width": (4, "count")},
    models.MnistMLP: {"width": (4, "count")},
    models.ConvDAE: {k: (4, "count") for k in ("latent", "width")} | {"tones": (0, "whole")},
    models.CertifiedDAE: {k: (4, "count") for k in ("width", "hidden")} | {"cut": (30, "whole")},
    models.Cut: {"a": (0.1, "share"), "top": (0.1, "share?")},
    models.CifarResNet: {"width": (4, "count"), "classes": (10, "count")},
    models.REDNet: {"depth": (4, "count"), "width": (4, "count"), "channels": (3, "count")}
    | {"norm": (False, "bool")},
    models.VAE: {"latent": (4, "count")},
    models.Generator: {"latent": (4, "count")},
    models.SharedAutoencoder: {"hidden": (4, "count")},
    models.UNet: {"width": (8, "count")},
    purification.reconstruct: {
        "dae": (DAE, "module"),
        "x": (X, "tensor"),
        "precision": ("float32", "choice"),
    },
    purification.reconstruction_error: {
        "dae": (DAE, "module"),
        "x": (X, "tensor"),
        "precision": ("float32", "choice"),
    },
    purification.calibrate: {
        "dae": (models.load("mnist-dae"), "module"),
        "x": (X, "images"),
        "batch_size": (4, "count"),
        "precision": ("float32", "choice"),
    },
    purification.Direct: DRAWN
    | {"dae": (DAE, "module"), "repeats": (1, "count"), "noise": (0.1, "number")},
    purification.Defended: {
        "classifier": (NET, "module"),
        "purifier": (DAE, "module"),
        "draws": (1, "count"),
    },
    purification.Adaptive: DRAWN
    | {
        "dae": (DAE, "module"),
        "objective": ("error", "choice"),
        "stepper": ("adam", "choice"),
        "steps": (1, "whole"),
        "step_size": (0.1, "positive"),
        "calibration": (CALIBRATION, "calibration"),
        "noise": (0.1, "number"),
        "paced": (False, "bool"),
        "eps": (0.1, "number?"),
        "stop": (0.1, "real?"),
        "reconstruct": (False, "bool"),
    },
    purification.Adaptive.preset: {
        "name": ("biased", "choice"),
        "dae": (DAE, "module"),
        "calibration": (CALIBRATION, "calibration"),
        "steps": (1, "whole"),
    },
    purification.Adam: {
        "beta1": (0.9, "inner0"),
        "beta2": (0.9, "inner0"),
        "eps": (1e-8, "positive"),
    },
    purification.Sign: {"tau": (0.1, "number")},
    purification.Normalised: {"floor": (1e-9, "positive")},
    purification.smooth: {
        "purifier": (STEPS, "purifier"),
        "x": (X, "images"),
        "radius": (0.1, "number"),
    },
    purification.BitDepth: {"bits": (3, "count")},
    purification.Median: {"size": (3, "count")},
    purification.JPEG: {"quality": (75, "count")},
    purification.ResizePad: {"smallest": (0.9, "positive"), "seed": (0, "seed")},
    purification.Soap: {
        "net": (models.SharedAutoencoder(4), "module"),
        "radii": ((0.1,), "sequence"),
        "steps": (1, "whole"),
        "step_size": (0.1, "positive"),
        "precision": ("float32", "choice"),
    },
    purification.DiffPure: {
        "net": (models.UNet(8), "module"),
        "level": (0.3, "positive"),
        "steps": (2, "count"),
        "seed": (0, "seed"),
    },
    purification.OneStep: {"net": (models.UNet(8), "module"), "level": (3, "whole")},
    purification.DefenseGAN: {
        "generator": (CODES, "module"),
        "starts": (1, "count"),
        "steps": (1, "count"),
        "step_size": (0.1, "positive"),
        "momentum": (0.1, "number"),
        "seed": (0, "seed"),
    },
    training.fit: {
        "model": (NET, "module"),
        "images": (X, "source"),
        "labels": (Y, "labels"),
        "task": (training.classification, "function"),
        "epochs": (1, "count"),
        "batch_size": (4, "count"),
        "optimizer": ("sgd", "choice"),
        "lr": (1e-3, "positive"),
        "weight_decay": (0.0, "number"),
        "schedule": ("constant", "choice"),
        "augment": (False, "bool"),
        "ema": (0.0, "share"),
        "precision": ("float32", "choice"),
        "channels_last": (False, "bool"),
        "compile": (False, "bool"),
        "validation": ((X, Y), "pair"),
        "checkpoint": (None, "path"),
        "seed": (0, "seed"),
        "device": ("cpu", "device"),
        "progress": (False, "bool"),
    },
    training.measure: {
        "model": (NET, "module"),
        "images": (X, "images"),
        "labels": (Y, "labels"),
        "task": (training.classification, "function"),
        "batch_size": (4, "count"),
        "seed": (0, "seed"),
        "device": ("cpu", "device"),
    },
    training.InMemory: {
        "images": (X, "images"),
        "labels": (Y, "labels"),
        "batch_size": (4, "count"),
        "augment": (False, "bool"),
        "seed": (0, "seed"),
        "device": ("cpu", "device"),
    },
    training.Streamed: {
        "listing": (data.Listing([__file__], [0]), "listing"),
        "size": (8, "count"),
        "crop": ("centre", "choice"),
        "batch_size": (4, "count"),
        "seed": (0, "seed"),
        "workers": (0, "whole"),
        "device": ("cpu", "device"),
    },
    training.denoising: {"sigma": (0.1, "noisy"), "kind": ("uniform", "choice")},
    training.joint: {"sigma": (0.1, "number"), "weight": (0.1, "number")},
    training.adversarial: {"attack": (attacks.fgsm, "function")},
    training.purifying: {
        "classifier": (NET.eval(), "module"),
        "attack": (attacks.fgsm, "function"),
        "eps": (0.1, "positive"),
        "weight": (0.1, "number"),
        "trades": (0.1, "number"),
        "warm_up": (0.1, "share"),
    },
    training.certifying: {
        "classifier": (NET.eval(), "module?"),
        "eps": (0.1, "positive"),
        "weight": (0.1, "number"),
        "clean": (0.1, "share"),
        "ramp": ((0.1, 0.2), "sequence"),
    },
    training.from_attacked: {
        "classifier": (NET, "module"),
        "attack": (attacks.fgsm, "function"),
        "weight": (0.1, "number"),
        "eps": (0.1, "positive"),
    },
    training.train_gan: {
        "generator": (CODES, "module"),
        "critic": (models.Critic(), "module"),
        "images": (X, "images"),
        "steps": (1, "count"),
        "batch_size": (2, "count"),
        "critic_steps": (1, "count"),
        "lr": (1e-3, "positive"),
        "penalty": (1.0, "number"),
        "seed": (0, "seed"),
        "checkpoint": (None, "path"),
        "progress": (None, "function?"),
    },
    training.precision_of: {"device": ("cpu", "device")},
    evaluation.accuracy: {
        "model": (NET, "module"),
        "x": (X, "images"),
        "y": (Y, "labels"),
        "batch_size": (4, "count"),
    },
    evaluation.outcomes: {
        "model": (NET, "module"),
        "x": (X, "images"),
        "y": (Y, "labels"),
        "index": (None, "index"),
        "batch_size": (4, "count"),
    },
    evaluation.paired_difference: {
        "first": (RIGHT, "tensor"),
        "second": (RIGHT, "tensor"),
        "confidence": (0.95, "inner"),
    },
    evaluation.Outcomes: {"right": (RIGHT, "tensor"), "places": (torch.arange(3), "tensor")},
    evaluation.roc: {"clean": (SCORES, "tensor"), "attacked": (SCORES, "tensor")},
    evaluation.auc: {
        "clean": (SCORES, "tensor"),
        "attacked": (SCORES, "tensor"),
        "confidence": (0.95, "inner"),
    },
    Accuracy(1, 2).interval: {"confidence": (0.95, "inner")},
    evaluation.evaluate: {
        "model": (NET, "module"),
        "x": (X, "images"),
        "y": (Y, "labels"),
        "eps": (0.1, "positive"),
        "budget": (SMALL, "budget"),
        "norm": ("linf", "choice"),
        "attacks": (None, "own"),
        "random": (None, "bool?"),
        "curves": (False, "bool"),
        "seed": (0, "seed"),
        "index": (None, "index"),
        "batch_size": (4, "count?"),
        "title": ("t", "text"),
        "record": (None, "path"),
        "progress": (False, "bool"),
    },
    evaluation.Budget: {
        **{k: (3, "count") for k in ("pgd", "apgd", "restarts", "targets", "queries", "draws")},
        "weights": ((0.1,), "sequence"),
        "curve": (3, "count"),
        "scoring": (3, "count"),
    },
    evaluation.verify: {
        "model": (NET, "module"),
        "x": (X, "images"),
        "y": (Y, "labels"),
        "eps": (0.1, "number"),
        "batch_size": (10, "count"),
    },
    evaluation.certify: {
        "model": (NET, "module"),
        "x": (X, "images"),
        "sigma": (0.1, "positive"),
        "n": (10, "count"),
        "n0": (10, "count"),
        "alpha": (0.1, "inner"),
        "noise_trained": (True, "bool"),
        "seed": (0, "seed"),
        "index": (None, "index"),
        "batch_size": (10, "count"),
        "record": (None, "path"),
    },
    evaluation.votes: {
        "model": (NET, "module"),
        "image": (X[0], "tensor"),
        "key": (0, "whole"),
        "sigma": (0.1, "positive"),
        "groups": ((10,), "sequence"),
        "seed": (0, "seed"),
        "batch_size": (10, "count"),
    },
    evaluation.lower_bound: {"votes": (3, "whole"), "n": (4, "count"), "alpha": (0.1, "inner")},
    evaluation.Smoothed: {
        "model": (NET, "module"),
        "sigma": (0.1, "positive"),
        "draws": (1, "count"),
        "seed": (0, "seed"),
    },
    plots.Table: TABLE,
    plots.DotPlot: TABLE,
    plots.Slider: {
        "frames": ({"0": FIGURE, "1": FIGURE}, "dict"),
        "name": ("a", "text"),
        "alt": ("a", "text"),
        "caption": ("a", "text"),
        "start": (0, "whole"),
    },
    plots.image_grid: {
        "rows": ({"a": PICTURE}, "dict"),
        "notes": (None, "own"),
        "wrong": (None, "own"),
        "size": (0.9, "positive"),
        "columns": (0, "whole"),
        "limits": ((0, 1), "sequence"),
        "cmap": ("gray", "choice"),
        "quality": (0, "whole"),
    },
    plots.curves: {
        "lines": ({"a": {0.1: Accuracy(1, 2)}}, "dict"),
        "xlabel": ("a", "text"),
        "ylabel": ("a", "text"),
    },
    plots.losses: {
        "lines": ({"a": [1.0, 2.0]}, "dict"),
        "xlabel": ("a", "text"),
        "ylabel": ("a", "text"),
        "first": (1, "real"),
    },
    plots.histograms: {"samples": ({"a": [1.0, 2.0]}, "dict"), "xlabel": ("a", "text")},
    plots.roc: {"lines": ({"a": (SCORES, SCORES)}, "dict")},
    plots.field: {
        "density": (torch.rand(4, 4), "tensor"),
        "paths": ({"a": torch.rand(3, 2)}, "own"),
        "curves": ({"a": torch.rand(3, 2)}, "own"),
    },
    plots.walk: {
        "classes": (torch.tensor([[0, 1], [0, 1]]), "tensor"),
        "extent": (1.0, "positive"),
        "path": (torch.rand(3, 2), "tensor"),
        "image": (PICTURE[:1], "tensor"),
        "chances": (torch.rand(2), "tensor"),
        "label": (0, "whole"),
    },
    plots.rungs: {"groups": ({"a": {"b": Accuracy(1, 2)}}, "dict")},
    plots.scatter: {"points": ({"a": (1.0, Accuracy(1, 2))}, "dict"), "xlabel": ("a", "text")},
    plots.certified: {
        "lines": ({"a": ([0.0, 1.0], [90.0, 50.0])}, "dict"),
        "points": ({"a": {0.1: Accuracy(1, 2)}}, "own"),
    },
    plots.recomputation: {"steps": (2, "count"), "at": (1, "count"), "back": (False, "bool")},
    plots.against: {
        "x": ([0.0, 1.0], "sequence"),
        "lines": ({"a": [0.0, 1.0]}, "dict"),
        "xlabel": ("a", "text"),
        "ylabel": ("a", "text"),
    },
    plots.bars: {"groups": ({"a": {"b": 1.0}}, "dict"), "xlabel": ("a", "text")},
    plots.shifted: {
        "sigma": (0.5, "positive"),
        "share": (0.9, "inner"),
        "shift": (0.1, "number"),
    },
}
# Results, tables and bases: made by the package, or checked where they are used; and those that
# have tests of their own, of folders and of checkpoints.
OTHERS = [
    *(data.list_folder, data.list_imagenet, data.load_folder, data.read_image),
    *(data.Listing, data.Order, data.Split, data.imagenet_classes, purification.Calibration),
    *(models.about, models.load, models.names, models.save),
    *(models.Critic, models.MagNet, models.Normalize),
    *(purification.Descent, purification.Purifier, purification.Stepper, purification.Trajectory),
    *(purification.Variant, purification.guess, purification.signal, purification.takes_keys),
    *(training.History, training.Task, training.classification, training.noise_prediction),
    *(evaluation.Accuracy, evaluation.Auc, evaluation.AttackWarning, evaluation.Certificates),
    *(evaluation.Difference, evaluation.Finding, evaluation.Report, evaluation.Verified),
    *(evaluation.inspect_model, evaluation.plan, evaluation.same_images),
    *(plots.Picture, plots.SortableTable),
]
ROOMS = (data, models, purification, training, evaluation, plots)


def test_no_public_function_is_left_out():
    known = {getattr(f, "__func__", f) for f in CALLS} | set(OTHERS)
    missing = [
        f"{room.__name__}.{name}"
        for room in ROOMS
        for name, value in vars(room).items()
        if not name.startswith("_") and callable(value) and value not in known
    ]
    assert missing == []


def told(function) -> str:
    return getattr(function, "__qualname__", repr(function))


def mistakes(function, arguments):
    """Each argument replaced in turn by what is wrong: which one, by what, and what came of it."""
    right = {name: value for name, (value, _) in arguments.items()}
    for name, (_, kind) in arguments.items():
        allowed = kind.endswith("?") or (right[name] is None and kind in ("index", "path", "own"))
        for wrong in WRONG[kind.rstrip("?")]:
            if wrong is None and allowed:
                continue
            try:
                function(**right | {name: wrong})
                found = "accepted"
            except (ValueError, TypeError) as error:
                found = str(error).split("\n")[0]
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            yield name, wrong, found


@pytest.mark.parametrize("function", CALLS, ids=told)
def test_a_wrong_argument_is_named(function):
    unnamed = [
        (name, wrong, found)
        for name, wrong, found in mistakes(function, CALLS[function])
        if not re.search(rf"\b{name}\b", found)
    ]
    assert unnamed == []


PYTHONS = {int: (np.int64, np.uint8, np.int32), float: (np.float64,), bool: (np.bool_,)}


@pytest.mark.parametrize("function", CALLS, ids=told)
def test_what_is_right_is_taken_and_numpys_numbers_too(function, monkeypatch):
    """All at once: each number as numpy has it."""
    right = {name: value for name, (value, _) in CALLS[function].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", evaluation.AttackWarning)
        for kind in range(3):
            wide = {
                name: PYTHONS[type(value)][kind % len(PYTHONS[type(value)])](value)
                if type(value) in PYTHONS
                else value
                for name, value in right.items()
            }
            function(**wide)
            if function in (evaluation.evaluate, training.fit, training.train_gan):
                break  # these do something
