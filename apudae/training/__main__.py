"""The command ``python -m apudae.training``: train a network of the book, measure it, store it::

    python -m apudae.training --model mnist-dae --task denoising --data mnist --out runs/dae
    torchrun --nproc-per-node 4 -m apudae.training ...

Run again, it goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import attacks, data, models
from ..core import processes, scores
from ..core.arguments import check_writable, option, parsed, told
from ..models.checkpoints import check_place
from .batches import Streamed, as_float
from .fit import OPTIMIZERS, PRECISIONS, SCHEDULES, fit, measure
from .tasks import KINDS, Task, adversarial, classification, denoising


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    known = parser()
    args = parsed(known, argv)

    def work() -> None:
        for name in _idle(args):
            if getattr(args, name) != known.get_default(name):
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}: does nothing with --task {args.task} on {args.data}")
        with processes.processes(args.device) as device:
            _train(args, device)

    if end := told(work):
        sys.exit(end)


def _train(args: argparse.Namespace, device: torch.device) -> None:
    name, out = args.model if args.name is None else args.name, args.out
    check_writable(out, "out")
    check_place(name, out)
    options = dict(_option(text) for text in args.option)
    model = models.build(args.model, seed=args.seed, **options)
    task, about = _task(args)
    keys = ("epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule", "ema", "augment")
    training = {key: getattr(args, key) for key in (*keys, "seed")}
    about = {"task": args.task, **training, **about}
    run = {"precision": args.precision, "compile": args.compile, "checkpoint": out / f"{name}.pt"}
    run |= {"task": task, **training}
    test = None
    if args.data in data.TITLES:
        load = {"root": args.root, "profile": args.profile, "dtype": torch.uint8}
        train, validation, test = (data.load(args.data, split, **load) for split in data.SPLITS)
        fit(model, *train, validation=validation, device=device, **run)
        about["data"] = {"name": args.data, "n": len(train.images)}
    else:
        shared = {key: getattr(args, key) for key in ("size", "batch_size", "seed", "workers")}
        stream = Streamed(data.list_folder(args.data), device=device, **shared)
        fit(model, stream, **run)
        about |= {"data": {"name": "folder", "n": stream.n}, "augment": "random crops, mirrored"}

    if processes.rank() == 0:
        save = {"architecture": args.model, "options": options, "folder": out}
        models.save(name, model, about={"training": about}, **save)
    processes.barrier()
    stored = models.load(name, out, device=device)
    measured = None if test is None else _measured(stored, test, args.task, task, device)
    if processes.rank() == 0:
        print(f"{out / models.about(name, out)['file']}")
        if measured:
            title = data.TITLES[args.data]
            print(f"{title}, {len(test.images):,} test images, as stored: {measured}")


def _idle(args: argparse.Namespace) -> list[str]:
    """Options that another task or another kind of data would read."""
    of_tasks = {"denoising": ["sigma", "noise"], "adversarial": ["eps", "attack_steps"]}
    others = ["size", "workers"] if args.data in data.TITLES else ["augment", "profile", "root"]
    return sum((names for task, names in of_tasks.items() if task != args.task), others)


def _task(args: argparse.Namespace) -> tuple[Task, dict[str, Any]]:
    """The task that the options name, and what is told of it beside its name."""
    if args.task == "classification":
        return classification, {}
    if args.task == "denoising":
        if len(args.sigma) > 2:
            raise ValueError(f"sigma: expected one level or lowest and highest, got {args.sigma}")
        sigma = tuple(args.sigma) if len(args.sigma) == 2 else args.sigma[0]
        return denoising(sigma, kind=args.noise), {"sigma": args.sigma, "noise": args.noise}
    task = adversarial(attacks.pgd, eps=args.eps, steps=args.attack_steps, early_stop=True)
    return task, {"attack": "pgd", "eps": args.eps, "attack_steps": args.attack_steps}


def _measured(
    model: nn.Module, test: data.Split, kind: str, task: Task, device: torch.device
) -> str:
    if kind == "denoising":
        return f"{measure(model, *test, task, device=device):.5f} mean squared error"
    images = as_float(test.images.to(device))
    return str(scores.accuracy(model, images, test.labels.to(device)))


def _option(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise ValueError(f"option: expected NAME=NUMBER, got {text!r}")
    return name, int(value)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        prog="python -m apudae.training",
        description="Train a network of the book; run again, it resumes where it was cut off.",
        epilog="With several GPUs: torchrun --nproc-per-node GPUS -m apudae.training ...",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, whole = found.add_argument, option(minimum=0)
    positive = option(float, exclusive=True)
    add("--model", required=True, choices=models.MODELS, help="architecture")
    add("--option", action="append", default=[], metavar="NAME=NUMBER", help="such as depth=10")
    add("--data", required=True, help=f"{', '.join(data.TITLES)}, or a folder of images")
    add("--root", type=Path, help="where data sets lie (default: $APUDAE_DATA, then the cache)")
    add("--profile", choices=data.PROFILES, help="of mnist (default: $APUDAE_PROFILE, else quick)")
    add("--task", default="classification", choices=["classification", "denoising", "adversarial"])
    add("--sigma", type=positive, nargs="+", default=[0.4], help="level, or lowest and highest")
    add("--noise", choices=KINDS, default="gaussian", help="kind of noise")
    add("--eps", type=positive, default=0.3, help="L∞ radius in adversarial training")
    add("--attack-steps", type=option(), default=7, help="PGD steps in adversarial training")
    add("--epochs", type=option(), default=5, help="passes over the images")
    add("--batch-size", type=option(), default=128, help="images per step, over all processes")
    add("--optimizer", choices=OPTIMIZERS, default="adamw")
    add("--lr", type=positive, default=2e-3, help="peak learning rate")
    add("--weight-decay", type=option(float), default=0.0)
    add("--schedule", choices=SCHEDULES, default="one-cycle", help="of the learning rate")
    told = "mirror and shift images at random; or turn, shift and stretch them"
    add("--augment", nargs="?", const=True, default=False, choices=["turn"], help=told)
    add("--ema", type=option(float), default=0.0, help="decay of the weights' running average")
    add("--precision", choices=["auto", *PRECISIONS], default="auto")
    add("--compile", action="store_true", help="use torch.compile")
    add("--size", type=option(), default=224, help="of the crops from a folder")
    add("--workers", type=whole, default=2, help="processes that decode a folder's images")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--seed", type=option(minimum=0, maximum=2**63 - 1), default=0, help="of everything random")
    add("--out", type=Path, required=True, help="folder for the checkpoint and the weights")
    add("--name", help="of the weights (default: the model's)")
    return found


if __name__ == "__main__":
    main()
