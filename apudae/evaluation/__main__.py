"""The command ``python -m apudae.evaluation``: attack a model in every way at hand::

    python -m apudae.evaluation --purifier adaptive --eps 0.2 --n 200
    python -m apudae.evaluation --classifier my_module:build --data mnist --eps 0.1
    torchrun --nproc-per-node 8 -m apudae.evaluation --images 1000 --eps 0.1 --record runs/mine

It prints a report for each ε. Started by ``torchrun``, the processes share the images.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from .. import data, models
from ..core.arguments import (
    ForeignError,
    check_choice,
    check_device,
    check_grid,
    check_name,
    check_writable,
    option,
    parsed,
    require,
    told,
)
from ..core.calling import ModelError
from ..core.norms import NORMS
from ..core.processes import processes, rank
from ..purification.adaptive import PRESETS, Adaptive
from ..purification.purifier import Defended, Direct
from ..purification.reconstruction import Calibration, calibrate
from .attackers import BUDGETS, SEARCH
from .evaluate import evaluate
from .report import Report

PURIFIERS = ("none", "direct", "adaptive", *PRESETS)


def build(name: str) -> nn.Module:
    """The module that ``package.module:function`` returns.

    Raises:
        ValueError: there is no such function, or it returns something else.
        ForeignError: that code failed.
    """
    path, _, function = name.partition(":")
    named = all(part.isidentifier() for part in (*path.split("."), function))
    require(named, f"{name}: expected package.module:function")
    sys.path.insert(0, "")  # a file in the folder one is in
    try:
        module = importlib.import_module(path)
        make = getattr(module, function, None)
        found = make() if callable(make) and not isinstance(make, nn.Module) else make
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}."):
            raise ValueError(f"{name}: {error}") from error
        raise ForeignError(f"{name}: failed with {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    require(hasattr(module, function), f"{name}: module {path!r} has no attribute {function!r}")
    wanted = "expected a function that returns a torch.nn.Module"
    require(found is not make, f"{name}: {wanted}, got {type(make).__name__}")
    require(isinstance(found, nn.Module), f"{name}: {wanted}, it returned {type(found).__name__}")
    return found


def model_of(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """Classifier and purifier that the options name."""
    changes = {k: v for k in ("steps", "step_size") if (v := getattr(args, k)) is not None}
    adaptive = ":" not in args.purifier and args.purifier not in ("none", "direct")
    useless = args.dae and (args.purifier == "none" or ":" in args.purifier)
    require(not useless, f"--dae: does nothing with --purifier {args.purifier}")
    name_of_dae = args.dae or "mnist-dae"
    for name in () if adaptive else changes:
        flag = name.replace("_", "-")
        raise ValueError(f"--{flag}: does nothing with --purifier {args.purifier}")
    if ":" in args.classifier:
        classifier = build(args.classifier).to(device)
    else:
        classifier = models.load(args.classifier, device=device)
    if args.purifier == "none":
        return classifier
    if ":" in args.purifier:
        return Defended(classifier, build(args.purifier).to(device))
    check_choice(args.purifier, ("module:function", *PURIFIERS), "purifier")
    dae = models.load(name_of_dae, device=device)
    if args.purifier == "direct":
        return Defended(classifier, Direct(dae))
    if args.purifier == "adaptive":  # the one chosen on validation digits
        chosen = models.about(name_of_dae).get("purifier")
        require(chosen, f"purifier: none was chosen for {name_of_dae}; name a variant of it")
        level, name = Calibration(*chosen["calibration"]), chosen["preset"]
        changes = chosen["options"] | changes
    else:
        images = data.load(args.data, "validation", profile=args.profile, root=args.root).images
        level, name = calibrate(dae, images[:1000].to(device)), args.purifier
    return Defended(classifier, Adaptive.preset(name, dae, level, **changes))


def main(argv: list[str] | None = None) -> int:
    """The command line: 0, or another status after an error that is told on one line."""
    args = parsed(parser(), argv)
    end = told(lambda: _begin(args))
    if isinstance(end, str):
        print(end, file=sys.stderr)
    return 1 if isinstance(end, str) else end or 0


def _begin(args: argparse.Namespace) -> None:
    """Alone, or as one of several processes."""
    if "RANK" in os.environ:  # of torchrun
        with processes(args.device) as device:
            return _evaluate(args, device)
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return _evaluate(args, check_device(name, "--device"))


def _evaluate(args: argparse.Namespace, device: torch.device) -> None:
    names = [f"{eps:g}" for eps in args.eps]
    require(len(set(names)) == len(names), f"--eps: expected different radii, got {names}")
    if args.record is not None:
        check_name(args.record.name, "--record")
        check_writable(args.record.parent, "--record")
    model = model_of(args, device)
    split = data.load(args.data, args.split, profile=args.profile, root=args.root)
    x, y = (part.to(device) for part in split.take(args.images))
    options = {key: getattr(args, key) for key in ("norm", "budget", "seed", "search")}
    options |= {"curves": not args.no_curves, "quantised": args.quantised}
    options |= {"title": f"{args.classifier}, purifier {args.purifier}"}
    paths = [args.record and args.record.with_name(f"{args.record.name}-{n}") for n in names]
    for eps, path in zip(args.eps, paths, strict=True):  # before the first one's work
        if args.quantised:
            check_grid(x, eps)
        if path and Path(f"{path}.json").exists():
            Report.load(path.name, path.parent)
    theirs = " and ".join(name for name in (args.classifier, args.purifier) if ":" in name)
    try:
        for eps, record in zip(args.eps, paths, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they stand in the report
                report = evaluate(model, x, y, eps=eps, record=record, **options)
            if rank() == 0:
                print(f"{report}\n", flush=True)
    except (ModelError, NotImplementedError, SystemExit) as error:
        cause = error.__cause__ if isinstance(error, ModelError) else error
        if not (theirs and cause):
            raise
        raise ForeignError(f"{theirs}: failed with {type(error).__name__}: {error}") from cause


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        prog="python -m apudae.evaluation",
        description="Attack a model in every way at hand, and report what stands.",
    )
    own = "or package.module:function that returns a module"
    add, positive = found.add_argument, option(float, exclusive=True)
    add("--classifier", default="mnist-cnn", help=f"shipped weights ({own}); mnist-cnn")
    add("--purifier", default="none", help=f"{', '.join(PURIFIERS)} ({own}); none")
    add("--dae", help="shipped weights, of a purifier that needs a DAE; mnist-dae")
    add("--steps", type=option(minimum=0), help="of an adaptive purifier, instead of its own")
    add("--step-size", type=positive, help="of an adaptive purifier")
    add("--data", default="mnist", help="mnist, cifar10, ...; mnist")
    add("--split", default="test", choices=data.SPLITS)
    add("--profile", default="quick", choices=["quick", "full"])
    add("--root", type=Path, help="folder of the full data ($APUDAE_DATA)")
    add("--images", "--n", type=option(), default=200, help="the first so many; 200")
    add("--eps", type=positive, nargs="+", required=True, help="one or more radii")
    add("--norm", default="linf", choices=NORMS)
    add("--budget", default="quick", choices=list(BUDGETS))
    add("--seed", type=option(minimum=0, maximum=2**63 - 1), default=0)
    add("--no-curves", action="store_true", help="leave out the curves")
    add("--quantised", action="store_true", help="score on the 8-bit grid")
    add("--record", type=Path, help="path without ending; -ε.json is added, and resumed if there")
    add("--search", choices=SEARCH, help="precision of the attacks (the budget's: auto)")
    add("--device", default="auto", help="auto, cpu or cuda; under torchrun a GPU for each process")
    return found


if __name__ == "__main__":
    sys.exit(main())
