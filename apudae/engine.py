"""What turns inside :func:`apudae.training.fit`: epochs, precision, averages, checkpoints."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import TqdmWarning

from . import parallel
from .batches import InMemory, Streamed, keyed
from .checkpoints import check_fits, write_torch
from .checks import check_labels, evaluating
from .precision import precision_of
from .tasks import Task

with warnings.catch_warnings():
    # Without ipywidgets the bar in a notebook is plain text, which is fine.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("one-cycle", "cosine", "constant")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CHECK_EVERY = {"cpu": 1, "cuda": 50}  # steps between looks at the loss: a GPU is waited for


@dataclass
class History:
    """What happened, one entry per epoch: mean training loss, validation loss, seconds."""

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Run:
    """One training run: everything that changes while it goes on."""

    def __init__(
        self,
        model: nn.Module,
        source: InMemory | Streamed,
        task: Task,
        epochs: int,
        settings: dict,
        ema: float,
        precision: str,
        channels_last: bool,
        compiled: bool,
        seed: int,
    ) -> None:
        self.source, self.task, self.epochs, self.seed = source, task, epochs, seed
        self.device = source.images.device if isinstance(source, InMemory) else source.device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=self.layout)
        self.dtype = precision_of(self.device) if precision == "auto" else PRECISIONS[precision]
        scaled = self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.optimizer, self.schedule = _optimizer(model, epochs * len(source), **settings)
        self.settings = settings | {
            "epochs": epochs,
            "batch_size": source.batch_size,
            "n": source.n,
            "ema": ema,
            "seed": seed,
            "precision": str(self.dtype or torch.float32).removeprefix("torch."),
            "augment": getattr(source, "augment", "crop"),
            "size": getattr(source, "size", None),
            "task": getattr(task, "name", task.__name__ if hasattr(task, "__name__") else "own"),
            "images": source.fingerprint(),
        }
        self.average = None
        if ema:
            self.average = torch.optim.swa_utils.AveragedModel(
                model,
                multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema),
                use_buffers=True,
            )
        self.history, self.done = History(), 0
        self.called = torch.compile(model) if compiled else model
        if parallel.world() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.called = nn.parallel.DistributedDataParallel(self.called, device_ids=ids)

    @torch.no_grad()
    def check_classes(self) -> None:
        """Raise ``ValueError`` for a label that has no class: on a GPU it would be fatal."""
        labels, example = self.source.look()
        with evaluating(self.model), self.autocast():
            classes = self.model(example).shape[1]
        check_labels(labels, len(labels), classes=classes, name="labels")

    def train(
        self,
        validation: tuple[Tensor, Tensor] | None,
        checkpoint: Path | None,
        progress: bool,
    ) -> History:
        modes = [(module, module.training) for module in self.model.modules()]
        if checkpoint is not None and checkpoint.is_file():
            self.resume(checkpoint)
        hidden: dict[str, bool | None] = {"disable": True}
        if progress and parallel.rank() == 0:
            # None hides it where there is no terminal; TQDM_DISABLE is tqdm's own to read.
            hidden = {} if "TQDM_DISABLE" in os.environ else {"disable": None}
        steps = len(self.source)
        bar = tqdm(total=self.epochs * steps, initial=self.done * steps, desc="training", **hidden)
        try:
            while self.done < self.epochs:
                start = time.perf_counter()
                with self.global_draws():
                    loss = self.epoch(bar)
                self.agree()
                self.check_weights()
                self.history.loss.append(loss)
                if validation is not None:
                    watched = self.average.module if self.average else self.model
                    with self.autocast():
                        found = measure(
                            watched, *validation, self.task, seed=self.seed, device=self.device
                        )
                    self.history.validation.append(found)
                self.history.seconds.append(time.perf_counter() - start)
                self.done += 1
                bar.set_postfix(epoch=f"{self.done}/{self.epochs}", loss=f"{loss:.4f}")
                if checkpoint is not None:
                    if parallel.rank() == 0:
                        write_torch(checkpoint, self.state())
                    parallel.barrier()
            if self.average:
                self.model.load_state_dict(self.average.module.state_dict())
        finally:
            bar.close()
            for module, mode in modes:
                module.training = mode
        return self.history

    @contextmanager
    def global_draws(self) -> Iterator[None]:
        """Layers such as dropout draw from the global generators: set here, restored afterwards."""
        gpu = self.device.type == "cuda"
        seed = keyed(self.seed, self.done, 3, parallel.rank()).initial_seed()
        with torch.random.fork_rng([self.device] if gpu else []):
            torch.random.default_generator.manual_seed(seed)
            if gpu:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            yield

    def agree(self) -> None:
        """The same buffers in every process."""
        for part in (self.model, self.average.module if self.average else None):
            for buffer in part.buffers() if part is not None else ():
                parallel.from_first(buffer)

    def check_weights(self) -> None:
        """Raise ``RuntimeError`` if a weight is not a number any more."""
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise RuntimeError(
                    f"{name} became NaN or infinite in epoch {self.done + 1}; try a learning rate "
                    f"below {self.settings['lr']:g}. Checkpoints of earlier epochs are kept."
                )

    def epoch(self, bar: tqdm) -> float:
        """One pass; the mean loss over all processes."""
        self.model.train()
        noise = keyed(self.seed, self.done, 2, parallel.rank(), device=self.device)
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        with _room_for(self.source.batch_size):
            for step, (x, y, share) in enumerate(self.source.epoch(self.done), 1):
                x = x.contiguous(memory_format=self.layout)
                if hasattr(self.task, "announce"):
                    self.task.announce((self.done + (step - 1) / len(self.source)) / self.epochs)
                try:
                    with self.autocast():
                        loss = self.task(self.called, x, y, noise)
                except ValueError:
                    self.check_weights()  # an attack refuses NaN logits: say where they come from
                    raise
                total += loss.detach() * (len(x) if share else 0)
                if step % _CHECK_EVERY.get(self.device.type, 50) == 0 or step == len(self.source):
                    self.check(total, step)
                self.optimizer.zero_grad()
                self.scaler.scale(loss * share).backward()
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.schedule.step()
                if self.average:
                    self.average.update_parameters(self.model)
                bar.update()
        return (parallel.total(total) / self.source.n).item()

    def check(self, total: Tensor, step: int) -> None:
        value = parallel.total(total.clone()).item()  # all processes stop, or none
        if not math.isfinite(value):
            raise RuntimeError(
                f"the loss became {value} in epoch {self.done + 1}, by step {step}; try a learning "
                f"rate below {self.settings['lr']:g}. Checkpoints of earlier epochs are kept."
            )

    @contextmanager
    def autocast(self) -> Iterator[None]:
        on = torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
        with on:
            yield

    def state(self) -> dict:
        """All that a resumed run needs."""
        return {
            "settings": self.settings,
            "done": self.done,
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": asdict(self.history),
        }

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint; nothing is changed if it does not fit."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found = state["settings"]
        except Exception as error:  # torch raises many kinds
            raise RuntimeError(f"{path} is not a checkpoint of a training run: {error}") from error
        check_fits(self.model.state_dict(), state["model"], path, "the model")
        for name, value in self.settings.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{path} belongs to a run with {name} {found.get(name)!r}, this one has "
                    f"{value!r}; use the same settings or another file"
                )
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        for part in ("optimizer", "schedule", "scaler"):
            getattr(self, part).load_state_dict(state[part])
        self.history, self.done = History(**state["history"]), state["done"]


def _optimizer(
    model: nn.Module, steps: int, optimizer: str, lr: float, weight_decay: float, schedule: str
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    chosen: torch.optim.Optimizer
    if optimizer == "adamw":
        chosen = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    else:
        options = {"momentum": 0.9, "nesterov": True, "weight_decay": weight_decay}
        chosen = torch.optim.SGD(model.parameters(), lr=lr, **options)
    schedules = torch.optim.lr_scheduler
    if schedule == "one-cycle":
        cycle = schedules.OneCycleLR(chosen, max_lr=lr, total_steps=steps, cycle_momentum=False)
        return chosen, cycle
    if schedule == "cosine":
        return chosen, schedules.CosineAnnealingLR(chosen, T_max=steps)
    return chosen, schedules.ConstantLR(chosen, factor=1.0)


@contextmanager
def _room_for(batch_size: int) -> Iterator[None]:
    """Says which batch size was tried when memory runs out."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RuntimeError(
                f"too little memory for batches of {batch_size}; try {max(1, batch_size // 2)}"
            ) from error
        raise


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
    device = torch.device(device or images.device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    parts = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    with evaluating(model):
        for number, (x, y) in enumerate(parts):
            if number % parallel.world() == parallel.rank():
                x, y = x.to(device), y.to(device)
                x = x.float().div_(255) if x.dtype == torch.uint8 else x
                noise = keyed(seed, number, 4, device=device)
                total += task(model, x, y, noise).double() * len(x)
    return (parallel.total(total) / len(images)).item()
