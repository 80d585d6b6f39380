"""The command ``python -m apudae.evaluation``: attack a model in every way at hand::

    python -m apudae.evaluation --purifier adaptive --eps 0.2 --n 200
    python -m apudae.evaluation --classifier my_module:build --data mnist --eps 0.1

It prints a report for each ε.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from .. import data, models
from ..core.norms import NORMS
from ..purification.adaptive import PRESETS, Adaptive
from ..purification.purifier import Defended, Direct
from ..purification.reconstruction import Calibration, calibrate
from .attackers import BUDGETS
from .evaluate import evaluate

PURIFIERS = ("none", "direct", "adaptive", *PRESETS)


def build(name: str) -> nn.Module:
    """The module that ``package.module:function`` returns.

    Raises:
        ValueError: there is no such function, or it returns something else.
    """
    path, _, function = name.partition(":")
    sys.path.insert(0, "")  # a file in the folder one is in
    try:
        found = getattr(importlib.import_module(path), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error
    finally:
        sys.path.remove("")
    if not isinstance(found, nn.Module):
        raise ValueError(f"{name}: expected a torch.nn.Module, got {type(found).__name__}")
    return found


def model_of(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """Classifier and purifier that the options name."""
    if ":" in args.classifier:
        classifier = build(args.classifier).to(device).eval()
    else:
        classifier = models.load(args.classifier, device=device)
    if args.purifier == "none":
        return classifier
    if ":" in args.purifier:
        return Defended(classifier, build(args.purifier).to(device).eval())
    if args.purifier not in PURIFIERS:
        raise ValueError(
            f"purifier: expected module:function or one of {', '.join(PURIFIERS)}, got "
            f"{args.purifier!r}"
        )
    dae = models.load(args.dae, device=device)
    if args.purifier == "direct":
        return Defended(classifier, Direct(dae))
    changes = {k: v for k in ("steps", "step_size") if (v := getattr(args, k)) is not None}
    if args.purifier == "adaptive":  # the one chosen on validation digits
        chosen = models.about(args.dae).get("purifier")
        if chosen is None:
            raise ValueError(f"purifier: none was chosen for {args.dae}; name a variant of it")
        level, name = Calibration(*chosen["calibration"]), chosen["preset"]
        changes = chosen["options"] | changes
    else:
        images = data.load(args.data, "validation", profile=args.profile, root=args.root).images
        level, name = calibrate(dae, images[:1000].to(device)), args.purifier
    return Defended(classifier, Adaptive.preset(name, dae, level, **changes))


def main(argv: list[str] | None = None) -> int:
    """The command line: 0, or 1 after an error that is told on one line."""
    args = _parser().parse_args(argv)
    try:
        device = torch.device(args.device)
        model = model_of(args, device)
        split = data.load(args.data, args.split, profile=args.profile, root=args.root)
        x, y = (part.to(device) for part in split.take(args.n))
        options = {key: getattr(args, key) for key in ("norm", "budget", "seed")}
        options |= {"curves": not args.no_curves}
        options |= {"title": f"{args.classifier}, purifier {args.purifier}"}
        for eps in args.eps:
            record = args.record and args.record.with_name(f"{args.record.name}-{eps:g}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they stand in the report
                report = evaluate(model, x, y, eps=eps, record=record, **options)
            print(f"{report}\n", flush=True)
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m apudae.evaluation",
        description="Attack a model in every way at hand, and report what stands.",
    )
    own = "or package.module:function that returns a module"
    add = parser.add_argument
    add("--classifier", default="mnist-cnn", help=f"shipped weights ({own}); mnist-cnn")
    add("--purifier", default="none", help=f"{', '.join(PURIFIERS)} ({own}); none")
    add("--dae", default="mnist-dae", help="shipped weights; mnist-dae")
    add("--steps", type=int, help="of an adaptive purifier, instead of its own")
    add("--step-size", type=float, help="of an adaptive purifier")
    add("--data", default="mnist", help="mnist, cifar10, ...; mnist")
    add("--split", default="test", choices=data.SPLITS)
    add("--profile", default="quick", choices=["quick", "full"])
    add("--root", type=Path, help="folder of the full data ($APUDAE_DATA)")
    add("--n", type=int, default=200, help="the first so many images; 200")
    add("--eps", type=float, nargs="+", required=True, help="one or more radii")
    add("--norm", default="linf", choices=NORMS)
    add("--budget", default="quick", choices=list(BUDGETS))
    add("--seed", type=int, default=0)
    add("--no-curves", action="store_true", help="leave out the curves")
    add("--record", type=Path, help="path without ending; -ε.json is added, and resumed if there")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


if __name__ == "__main__":
    sys.exit(main())
