"""One training loop for every network of the book, and the same from the command line.

    python -m apudae.training --model mnist-dae --task denoising --data mnist --out runs/dae
    torchrun --nproc-per-node 4 -m apudae.training ...

What is learned is a *task* of :mod:`apudae.tasks`; where the images come from is a source of
:mod:`apudae.batches`; what turns is in :mod:`apudae.engine`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from . import attacks, checkpoints, data, image_files, models, parallel, scores
from .batches import InMemory, Streamed
from .checks import check_count, check_images, check_labels, check_number
from .engine import OPTIMIZERS, PRECISIONS, SCHEDULES, History, Run, measure, precision_of
from .tasks import KINDS, Task, adversarial, classification, denoising, purifying

__all__ = [
    "History",
    "adversarial",
    "classification",
    "denoising",
    "fit",
    "measure",
    "precision_of",
    "purifying",
]


def fit(
    model: nn.Module,
    images: Tensor | InMemory | Streamed,
    labels: Tensor | None = None,
    *,
    task: Task = classification,
    epochs: int = 5,
    batch_size: int = 128,
    optimizer: str = "adamw",
    lr: float = 2e-3,
    weight_decay: float = 0.0,
    schedule: str = "one-cycle",
    augment: bool = False,
    ema: float = 0.0,
    precision: str = "auto",
    channels_last: bool = True,
    compile: bool = False,
    validation: tuple[Tensor, Tensor] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` in place; with ``checkpoint``, resume where an earlier run was cut off.

    A set in memory lives on the device as it is (8-bit pixels take a quarter of the room), so there
    is no loader; folders are streamed. Order, augmentation and noise follow from ``seed`` alone,
    and a run that was resumed ends like one that was not: on the CPU, bit for bit. Under
    ``torchrun`` the processes share each batch, and process 0 writes.

    Args:
        model: to train; its modes are as before afterwards.
        images: ``[N, C, H, W]``, float32 in [0, 1] or uint8; or a source from
            :mod:`apudae.batches`, which then has its own labels, batch size and augmentation.
        labels: int64 ``[N]``; a denoising task ignores them.
        task: the mean loss of a batch.
        epochs: passes over the images.
        batch_size: images per step, over all processes.
        optimizer: ``"adamw"``, or ``"sgd"`` (Nesterov momentum 0.9).
        lr: the peak learning rate.
        weight_decay: of the optimizer.
        schedule: ``"one-cycle"`` (up for 30 % of the steps, then down to nearly 0), ``"cosine"``
            (down from the start) or ``"constant"``.
        augment: mirror and shift the images at random, see :class:`apudae.batches.InMemory`.
        ema: if above 0, the decay of a running average of the weights, which is what is validated
            and kept in the end. 0.99 averages over about 100 steps.
        precision: ``"auto"`` (bfloat16 where the hardware computes in it, else float16 with scaled
            gradients on a GPU, else float32), or one of the three by name. Weights stay float32.
        channels_last: keep images and weights in the layout that convolutions run fastest in.
        compile: fuse the network with ``torch.compile``; worth its half minute for long runs.
        validation: images and labels on which to measure the task after each epoch, with the same
            noise each time.
        checkpoint: file to write after each epoch and to resume from if it is there.
        seed: of everything random.
        device: where to train; by default where ``images`` are, or the source's device.
        progress: show a tqdm bar (``TQDM_DISABLE=1`` hides it everywhere).

    Raises:
        ValueError: images, labels or an option out of range; a checkpoint of another architecture
            (the first differing entry is named) or of other settings.
        RuntimeError: the loss became NaN or infinite (the last good checkpoint is kept), or there
            was too little memory (the message names the batch size).
    """
    for value, what in ((epochs, "epochs"), (batch_size, "batch_size")):
        check_count(value, what)
    check_number(lr, "lr", exclusive=True)
    check_number(weight_decay, "weight_decay")
    check_number(ema, "ema")
    if ema >= 1:
        raise ValueError(f"ema: expected a decay below 1, got {ema!r}")
    for value, known, what in (
        (optimizer, OPTIMIZERS, "optimizer"),
        (schedule, SCHEDULES, "schedule"),
        (precision, ("auto", *PRECISIONS), "precision"),
    ):
        if value not in known:
            raise ValueError(f"{what}: expected one of {', '.join(known)}, got {value!r}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model: no parameter is trainable; call model.requires_grad_(True) first")
    if isinstance(images, Tensor):
        _check_pixels(images, "images")
        check_labels(labels, len(images), name="labels")
        source = InMemory(
            images,
            labels,
            batch_size=batch_size,
            augment=augment,
            seed=seed,
            device=device or images.device,
        )
    elif isinstance(images, InMemory | Streamed):
        source = images
        if device is not None:
            raise ValueError("device: a source from apudae.batches has its own")
    else:
        kind = type(images).__name__
        raise ValueError(f"images: expected a tensor or a source of apudae.batches, got {kind}")
    if validation is not None:
        _check_pixels(validation[0], "validation images")
        check_labels(validation[1], len(validation[0]), name="validation labels")

    run = Run(
        model,
        source,
        task,
        epochs,
        {"optimizer": optimizer, "lr": lr, "weight_decay": weight_decay, "schedule": schedule},
        ema,
        precision,
        channels_last,
        compile,
        seed,
    )
    if getattr(task, "labelled", False):
        run.check_classes()
    return run.train(validation, None if checkpoint is None else Path(checkpoint), progress)


def _check_pixels(images: Tensor, name: str) -> None:
    if images.dtype != torch.uint8:
        check_images(images, name)
    elif images.ndim != 4:
        shape = list(images.shape)
        raise ValueError(f"{name}: expected 4 dimensions [N, C, H, W], got shape {shape}")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = _parser().parse_args(argv)
    try:
        with parallel.processes(args.device) as device:
            _train(args, device)
    except (ValueError, FileNotFoundError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def _train(args: argparse.Namespace, device: torch.device) -> None:
    options = dict(_option(text) for text in args.option)
    model = models.build(args.model, seed=args.seed, **options)
    if args.task == "classification":
        task = classification
    elif args.task == "denoising":
        if len(args.sigma) > 2:
            raise ValueError(f"sigma: expected one level or lowest and highest, got {args.sigma}")
        sigma = tuple(args.sigma) if len(args.sigma) == 2 else args.sigma[0]
        task = denoising(sigma, kind=args.noise)
    else:
        task = adversarial(attacks.pgd, eps=args.eps, steps=args.attack_steps, early_stop=True)
    training = {
        key: getattr(args, key)
        for key in ("epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule")
    } | {"ema": args.ema, "augment": args.augment, "seed": args.seed}
    about = {"task": args.task, **training}
    if args.task == "denoising":
        about |= {"sigma": args.sigma, "noise": args.noise}
    elif args.task == "adversarial":
        about |= {"attack": "pgd", "eps": args.eps, "attack_steps": args.attack_steps}

    out = Path(args.out)
    run = {
        "task": task,
        "precision": args.precision,
        "compile": args.compile,
        "checkpoint": out / f"{args.name or args.model}.pt",
        **training,
    }
    if args.data in data.TITLES:
        load = {"root": args.root, "profile": args.profile, "dtype": torch.uint8}
        train, validation, test = (data.load(args.data, split, **load) for split in data.SPLITS)
        fit(model, *train, validation=validation, device=device, **run)
        about["data"] = {"name": args.data, "n": len(train.images)}
    else:
        listing = image_files.list_folder(args.data)
        stream = Streamed(
            listing,
            size=args.size,
            batch_size=args.batch_size,
            seed=args.seed,
            workers=args.workers,
            device=device,
        )
        test = None
        fit(model, stream, **run)
        about["data"] = {"name": "folder", "n": stream.n}
        about["augment"] = "random crops, mirrored"

    name = args.name or args.model
    if parallel.rank() == 0:
        save = {"architecture": args.model, "options": options, "folder": out}
        checkpoints.save(name, model, about={"training": about}, **save)
    parallel.barrier()
    stored = checkpoints.load(name, out, device=device)
    if test is None:
        measured = None
    elif args.task == "denoising":
        measured = f"{measure(stored, *test, task, device=device):.5f} mean squared error"
    else:
        images = test.images.to(device).float().div_(255)
        measured = str(scores.accuracy(stored, images, test.labels.to(device)))
    if parallel.rank() == 0:
        print(f"{out / checkpoints.about(name, out)['file']}")
        if measured:
            title = data.TITLES[args.data]
            print(f"{title}, {len(test.images):,} test images, as stored: {measured}")


def _option(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not value.isdigit():
        raise ValueError(f"option: expected NAME=NUMBER, got {text!r}")
    return name, int(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m apudae.training",
        description="Train a network of the book; run again, it resumes where it was cut off.",
        epilog="With several GPUs: torchrun --nproc-per-node GPUS -m apudae.training ...",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, choices=models.MODELS, help="architecture")
    add("--option", action="append", default=[], metavar="NAME=NUMBER", help="such as depth=10")
    add("--data", required=True, help=f"{', '.join(data.TITLES)}, or a folder of images")
    add("--root", type=Path, help="where data sets lie (default: $APUDAE_DATA, then the cache)")
    add("--profile", choices=data.PROFILES, help="of mnist (default: $APUDAE_PROFILE, else quick)")
    add("--task", default="classification", choices=["classification", "denoising", "adversarial"])
    add("--sigma", type=float, nargs="+", default=[0.4], help="noise level, or lowest and highest")
    add("--noise", choices=KINDS, default="gaussian", help="kind of noise")
    add("--eps", type=float, default=0.3, help="radius of the attack in adversarial training (L∞)")
    add("--attack-steps", type=int, default=7, help="PGD steps in adversarial training")
    add("--epochs", type=int, default=5, help="passes over the images")
    add("--batch-size", type=int, default=128, help="images per step, over all processes")
    add("--optimizer", choices=OPTIMIZERS, default="adamw")
    add("--lr", type=float, default=2e-3, help="peak learning rate")
    add("--weight-decay", type=float, default=0.0)
    add("--schedule", choices=SCHEDULES, default="one-cycle", help="of the learning rate")
    add("--augment", action="store_true", help="mirror and shift images at random")
    add("--ema", type=float, default=0.0, help="decay of the running average of the weights")
    add("--precision", choices=["auto", *PRECISIONS], default="auto")
    add("--compile", action="store_true", help="use torch.compile")
    add("--size", type=int, default=224, help="of the crops from a folder")
    add("--workers", type=int, default=2, help="processes that decode a folder's images")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--seed", type=int, default=0, help="of everything random")
    add("--out", required=True, help="folder for the checkpoint and the weights")
    add("--name", help="of the weights (default: the model's)")
    return parser


if __name__ == "__main__":
    main()
