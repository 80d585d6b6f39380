"""The training loop: :func:`fit`, what turns inside it, and :func:`measure`."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils
from tqdm import TqdmWarning

from ..core import processes
from ..core.arguments import (
    check_choice,
    check_count,
    check_labels,
    check_number,
    check_type,
    check_writable,
    checked,
    odd,
    require,
)
from ..core.calling import evaluating, telling
from ..core.files import check_like, held, read_torch, require_whole, write_torch
from ..core.norms import keyed
from ..core.prints import exact, model_print
from ..models.checkpoints import check_fits
from .batches import InMemory, Streamed, as_float, check_augment, check_set
from .tasks import Task, classification

with warnings.catch_warnings():
    # Without ipywidgets the bar in a notebook is plain text, which is fine.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
SCHEDULES = {  # of an optimizer, for so many steps
    "one-cycle": lambda optimizer, lr, steps: lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps, cycle_momentum=False
    ),
    "cosine": lambda optimizer, lr, steps: lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
    "constant": lambda optimizer, lr, steps: lr_scheduler.ConstantLR(optimizer, factor=1.0),
}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PARTS = ("model", "average", "optimizer", "schedule", "scaler")  # what a checkpoint holds
_ANOTHER = {  # what a checkpoint tells by a print
    "model_sha256": "a model of other layers, options, code, or frozen weights",
    "task_sha256": "a task of other code or values",
    "validation": "other validation images or labels",
}
_CHECK_EVERY = {"cpu": 1, "cuda": 50}  # steps between looks at the loss: a GPU is waited for


@dataclass
class History:
    """What happened, one entry per epoch: mean training loss, validation loss, seconds."""

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class TrainingRun:
    """One training run: everything that changes while it goes on.

    Args:
        model: to train.
        source: of its batches.
        task: the mean loss of a batch.
        settings: the options of :func:`fit` that the result depends on. With what is known of the
            source and the task they stand in the checkpoint, and a run that goes on has the same.
        channels_last: see :func:`fit`.
        compile: see :func:`fit`.
    """

    def __init__(
        self,
        model: nn.Module,
        source: InMemory | Streamed,
        task: Task,
        settings: dict[str, Any],
        *,
        channels_last: bool,
        compile: bool,
    ) -> None:
        self.source, self.task, self.device = source, task, source.device
        self.epochs, self.seed = settings["epochs"], settings["seed"]
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=self.layout)
        asked = settings["precision"]
        self.dtype = processes.precision_of(self.device) if asked == "auto" else PRECISIONS[asked]
        self.settings = settings | {
            "batch_size": source.batch_size,
            "n": source.n,
            "precision": str(self.dtype or torch.float32).removeprefix("torch."),
            "augment": getattr(source, "augment", "crop"),
            "size": getattr(source, "size", None),
            "task": getattr(task, "name", getattr(task, "__name__", "own")),
            "images": source.fingerprint(),
            "processes": processes.world(),  # they add up their gradients in another order
            "model_sha256": model_print(model, trained=model),
            "task_sha256": _task_print(task, model),
        }
        kind = self.device.type
        self.autocast = torch.autocast(kind, self.dtype) if self.dtype else nullcontext()
        self.scaler = torch.amp.GradScaler(kind, enabled=self.dtype == torch.float16)
        lr, decay = settings["lr"], settings["weight_decay"]
        optimizer, schedule = OPTIMIZERS[settings["optimizer"]], SCHEDULES[settings["schedule"]]
        self.optimizer = optimizer(model.parameters(), lr=lr, weight_decay=decay)
        self.schedule = schedule(self.optimizer, lr, self.epochs * len(source))
        self.average, self.kept = None, model  # kept: what is validated, and stays in the end
        if settings["ema"]:
            running = swa_utils.get_ema_multi_avg_fn(settings["ema"])
            self.average = swa_utils.AveragedModel(model, multi_avg_fn=running, use_buffers=True)
            self.kept = self.average.module
        self.history, self.done = History(), 0
        self.called = torch.compile(model) if compile else model
        if processes.world() > 1:
            ids = [self.device.index] if kind == "cuda" else None
            self.called = nn.parallel.DistributedDataParallel(self.called, device_ids=ids)

    def train(
        self, validation: tuple[Tensor, Tensor] | None, checkpoint: Path | None, progress: bool
    ) -> History:
        """All epochs that are left; the model's modes are as before afterwards."""
        with held(checkpoint if processes.rank() == 0 else None, "checkpoint"):
            if checkpoint is not None and checkpoint.is_file():
                self.resume(checkpoint)
            if checkpoint is not None and self.done < self.epochs and processes.rank() == 0:
                check_writable(checkpoint.parent, "checkpoint")
            return self.turn(validation, checkpoint, progress)

    def turn(
        self, validation: tuple[Tensor, Tensor] | None, checkpoint: Path | None, progress: bool
    ) -> History:
        """The epochs that are left, stored one by one."""
        shown = progress and processes.rank() == 0
        # None hides it where there is no terminal; TQDM_DISABLE is tqdm's own to read.
        own = {} if shown and "TQDM_DISABLE" in os.environ else {"disable": None if shown else True}
        steps = len(self.source)
        bar = tqdm(total=self.epochs * steps, initial=self.done * steps, desc="training", **own)
        with evaluating(self.model), bar:
            while self.done < self.epochs:
                start = time.perf_counter()
                with self.global_draws():
                    loss = self.epoch(bar)
                for buffer in (*self.model.buffers(), *self.kept.buffers()):
                    processes.from_first(buffer)  # the same in every process
                self.check_weights()
                self.history.loss.append(loss)
                if validation is not None:
                    shared = {"seed": self.seed, "device": self.device}
                    with self.autocast:
                        found = measure(self.kept, *validation, self.task, **shared)
                    self.history.validation.append(found)
                self.history.seconds.append(time.perf_counter() - start)
                self.done += 1
                bar.set_postfix(epoch=f"{self.done}/{self.epochs}", loss=f"{loss:.4f}")
                if checkpoint is not None:
                    if processes.rank() == 0:
                        write_torch(checkpoint, self.state())
                    processes.barrier()
            if self.average:
                self.model.load_state_dict(self.kept.state_dict())
        return self.history

    @contextmanager
    def global_draws(self) -> Iterator[None]:
        """Layers such as dropout draw from the global generators: set here, restored afterwards."""
        gpu = self.device.type == "cuda"
        seed = keyed(self.seed, self.done, 3, processes.rank()).initial_seed()
        with torch.random.fork_rng([self.device] if gpu else []):
            torch.random.default_generator.manual_seed(seed)
            if gpu:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            yield

    def check_weights(self) -> None:
        """Raise ``RuntimeError`` if a weight is not a number any more."""
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise self.diverged(f"{name} became NaN or infinite")

    def epoch(self, bar: tqdm) -> float:
        """One pass; the mean loss over all processes."""
        self.model.train()
        noise = keyed(self.seed, self.done, 2, processes.rank(), device=self.device)
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        try:
            for step, (x, y, share) in enumerate(self.source.epoch(self.done), 1):
                x = x.contiguous(memory_format=self.layout)
                if hasattr(self.task, "announce"):
                    self.task.announce((self.done + (step - 1) / len(self.source)) / self.epochs)
                fails = f"task: fails on a batch {list(x.shape)}"
                try:
                    with self.autocast, telling(lambda fails=fails: fails):
                        loss = self.task(self.called, x, y, noise)
                    what = odd(loss) or f"shape {list(loss.shape)}"
                    mean = not odd(loss) and loss.ndim == 0 and loss.requires_grad
                    require(mean, f"task: expected a mean loss that has a gradient, got {what}")
                except ValueError:
                    self.check_weights()  # an attack refuses NaN logits: say where they come from
                    raise
                total += loss.detach() * (len(x) if share else 0)
                if step % _CHECK_EVERY.get(self.device.type, 50) == 0 or step == len(self.source):
                    value = processes.total(total.clone()).item()  # all processes stop, or none
                    if not math.isfinite(value):
                        raise self.diverged(f"the loss became {value}", f", by step {step}")
                self.optimizer.zero_grad()
                self.scaler.scale(loss * share).backward()
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.schedule.step()
                if self.average:
                    self.average.update_parameters(self.model)
                bar.update()
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            size = self.source.batch_size
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise RuntimeError(
                    f"too little memory for batches of {size}; try {max(1, size // 2)}"
                ) from error
            raise
        return (processes.total(total) / self.source.n).item()

    def diverged(self, what: str, by: str = "") -> RuntimeError:
        """The error that says what is no number any more, and what may help."""
        return RuntimeError(
            f"{what} in epoch {self.done + 1}{by}; try a learning rate below "
            f"{self.settings['lr']:g}. Checkpoints of earlier epochs are kept."
        )

    def state(self) -> dict:
        """All that a resumed run needs."""
        parts = {name: getattr(self, name) for name in _PARTS}
        states = {name: None if part is None else part.state_dict() for name, part in parts.items()}
        history = asdict(self.history)
        return {"settings": self.settings, "done": self.done, **states, "history": history}

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint; nothing is changed if it does not fit."""
        state, ours = read_torch(path), self.state()
        require_whole(
            isinstance(state, dict) and state.keys() == ours.keys() and _is_dict(state["settings"]),
            f"{path} is not a checkpoint of a training run",
        )
        check_fits(ours["model"], state["model"], path, "the model")
        for name, value in self.settings.items():
            found = state["settings"].get(name)
            later = name == "validation" and None in (found, value)  # the weights are the same
            if found != value and not later:
                told = _ANOTHER.get(name, f"{name} {found!r}, this one has {value!r}")
                raise ValueError(
                    f"{path} belongs to a run with {told}; use the same settings or another file"
                )
        done = state["done"]
        require_whole(
            type(done) is int and 0 <= done <= self.epochs,
            f"{path}: done: expected 0 to {self.epochs} epochs, got {done!r}",
        )
        history = {name: [0.0] * done for name in ("loss", "seconds")}
        found = state["history"] if _is_dict(state["history"]) else {}
        validation = found.get("validation")  # it may have been asked for later, and be infinite
        fits = isinstance(validation, list) and len(validation) <= done
        fits = fits and all(isinstance(value, float) for value in validation)
        require_whole(fits, f"{path}: history: validation does not fit this run")
        check_like(
            history, {k: v for k, v in found.items() if k != "validation"}, f"{path}: history"
        )
        for name in ("average", "schedule", "scaler"):
            check_like(ours[name], state[name], f"{path}: {name}")
        steps = {"schedule": state["schedule"]["last_epoch"]}
        if self.average:
            steps["average"] = int(state["average"]["n_averaged"])
        for name, count in steps.items():
            expected = done * len(self.source)
            require_whole(
                count == expected, f"{path}: {name}: expected {expected} steps, got {count}"
            )
        check_optimizer(self.optimizer, state["optimizer"], f"{path}: optimizer")
        for name in _PARTS:
            if state[name] is not None:
                getattr(self, name).load_state_dict(state[name])
        self.history, self.done = History(**state["history"]), done


def _task_print(task: Task, model: nn.Module) -> str:
    if hasattr(task, "announce"):  # what it is told as it goes on is no part of what it is
        task.announce(0.0)
    return model_print(task, trained=model)


def check_optimizer(optimizer: torch.optim.Optimizer, state: Any, what: str) -> None:
    """Raise ``RuntimeError`` unless a stored state is one of this optimizer's; see `check_like`."""
    ours = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = state["state"] if _is_dict(state) and _is_dict(state.get("state")) else {}
    like = {}
    for number, parts in moments.items():
        require_whole(
            type(number) is int and 0 <= number < len(parameters) and _is_dict(parts),
            f"{what}: state does not fit this run",
        )
        p = parameters[number]  # beside what is like it, the number of steps
        like[number] = {k: _like(part, p) for k, part in parts.items()}
    check_like(ours | {"state": like}, state, what)
    fixed = ([group | {"lr": 0} for group in part["param_groups"]] for part in (ours, state))
    require_whole(next(fixed) == next(fixed), f"{what}: its options are not this run's")


def _like(part: Any, parameter: Tensor) -> Any:
    return parameter.data if isinstance(part, Tensor) and part.ndim else part


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


@checked
@torch.no_grad()
def measure(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    task: Task,
    batch_size: int = 500,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> float:
    """The mean of a task over a data set, in evaluation mode, with noise fixed by ``seed``.

    Several processes share the set and add up their sums.
    """
    check_set(images, labels)
    device = torch.device(device or images.device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    parts = list(enumerate(zip(images.split(batch_size), labels.split(batch_size), strict=True)))
    with evaluating(model):
        for number, (x, y) in parts[processes.rank() :: processes.world()]:
            noise = keyed(seed, number, 4, device=device)
            loss = task(model, as_float(x.to(device)), y.to(device), noise)
            total += loss.double() * len(x)
    return (processes.total(total) / len(images)).item()


@checked
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
    augment: bool | str = False,
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
    ``torchrun`` the processes share each batch, and process 0 writes; a run goes on with as many
    as it was begun with.

    Args:
        model: to train; its modes are as before afterwards.
        images: ``[N, C, H, W]``, float32 in [0, 1] or uint8; or a source from
            :mod:`apudae.training`, which then has its own labels, batch size and augmentation.
        labels: int64 ``[N]``; a denoising task ignores them.
        task: the mean loss of a batch.
        epochs: passes over the images.
        batch_size: images per step, over all processes.
        optimizer: ``"adamw"``, or ``"sgd"`` (Nesterov momentum 0.9).
        lr: the peak learning rate.
        weight_decay: of the optimizer.
        schedule: ``"one-cycle"`` (up for 30 % of the steps, then down to nearly 0), ``"cosine"``
            (down from the start) or ``"constant"``.
        augment: mirror and shift the images at random, or with ``"turn"`` turn them; see
            :class:`apudae.training.InMemory`.
        ema: if above 0, the decay of a running average of the weights, which is what is validated
            and kept in the end. 0.99 averages over about 100 steps.
        precision: ``"auto"`` (bfloat16 where the hardware computes in it, else float16 with scaled
            gradients on a GPU, else float32), or one of the three by name. Weights stay float32.
        channels_last: keep images and weights in the layout that convolutions run fastest in.
        compile: fuse the network with ``torch.compile``; worth its half minute for long runs.
        validation: images and labels on which to measure the task after each epoch, with the same
            noise each time.
        checkpoint: file to write after each epoch and to resume from if it is there: its weights
            then take the place of the model's. One training at a time has it.
        seed: of everything random.
        device: where to train; by default where ``images`` are, or the source's device.
        progress: show a tqdm bar (``TQDM_DISABLE=1`` hides it everywhere).

    Raises:
        ValueError: images, labels or an option out of range; a checkpoint of another architecture
            (the first differing entry is named), of another task, or of other settings.
        RuntimeError: the loss became NaN or infinite (the last good checkpoint is kept), there was
            too little memory (the message names the batch size), or the checkpoint is damaged or
            another training's that is under way.
    """
    check_count(epochs, "epochs")
    check_number(lr, "lr", exclusive=True)
    check_number(weight_decay, "weight_decay")
    check_number(ema, "ema")
    if ema >= 1:
        raise ValueError(f"ema: expected a decay below 1, got {ema!r}")
    check_choice(optimizer, OPTIMIZERS, "optimizer")
    check_choice(schedule, SCHEDULES, "schedule")
    check_choice(precision, ["auto", *PRECISIONS], "precision")
    check_augment(augment)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model: no parameter is trainable; call model.requires_grad_(True) first")
    if isinstance(images, Tensor):
        check_type(labels, Tensor, "labels")
        how = {"batch_size": batch_size, "augment": augment, "seed": seed}
        source = InMemory(images, labels, device=device or images.device, **how)
    else:
        source = images
        require(device is None, "device: a source from apudae.training has its own")
    if validation is not None:
        pair = isinstance(validation, (tuple, list)) and len(validation) == 2
        require(pair, f"validation: expected images and labels, got {type(validation).__name__}")
        check_set(*validation, kind="validation ")
    settings = {
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "epochs": epochs,
        "ema": ema,
        "seed": seed,
        "precision": precision,
        "validation": validation and ", labels ".join(map(exact, validation)),
    }
    run = TrainingRun(model, source, task, settings, channels_last=channels_last, compile=compile)
    if getattr(task, "labelled", False):  # on a GPU a label without a class would be fatal
        known, example = source.look()
        told = f"images: the model fails on {list(example.shape[1:])}"
        with torch.no_grad(), evaluating(model), run.autocast, telling(lambda: told):
            classes = model(example).shape[1]
        check_labels(known, len(known), classes=classes, name="labels")
        if validation is not None:
            check_labels(validation[1], len(validation[1]), classes, "validation labels")
    if validation is not None:  # once before the first epoch: later it would cost that epoch
        with run.autocast, telling(lambda: "validation: the task fails on its images"):
            few = (part[:2] for part in validation)
            measure(model, *few, task, seed=seed, device=run.device)
    return run.train(validation, None if checkpoint is None else Path(checkpoint), progress)
