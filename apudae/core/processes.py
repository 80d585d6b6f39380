"""Several processes that act as one, on one machine or many, and the precision they compute in.

    torchrun --nproc-per-node 8 -m apudae.evaluation ...

Each process runs the same program, and meets the others at the functions here. Without ``torchrun``
there is one process, and everything here but :func:`precision_of` does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .arguments import check_device, require
from .calling import within

T = TypeVar("T")
_STORE: ContextVar[dist.Store | None] = ContextVar("store", default=None)  # that all can see
_BEAT, _SILENT = 2.0, 20.0  # seconds between two signs of life, and without one
_LOST = "what was found is stored: run it again to go on"
_DIED = "another process has died, or this one was stopped"


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; process 0 writes files and shows progress."""
    return dist.get_rank() if world() > 1 else 0


def total(values: Tensor) -> Tensor:
    """The sum over all processes, the same in each."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def from_first(values: Tensor) -> None:
    """Overwrite ``values`` with those of process 0."""
    if world() > 1:
        dist.broadcast(values, 0)


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()


def everyones(value: T) -> list[T]:
    """What each process gives, in their order: plain data, and tensors on the CPU."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def together(action: Callable[[], T], *, first: bool = False) -> T:
    """Do something in every process; if it fails in one, all say so.

    Args:
        action: what is done.
        first: do it in process 0 alone; all get its result.

    Raises:
        ValueError, RuntimeError: it failed in one of them; its own words, and which one's.
    """
    if world() == 1:
        return action()
    result, failed = None, None
    if rank() == 0 or not first:
        try:
            result = action()
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            failed = error
    found = everyones((failed and (isinstance(failed, ValueError), str(failed)), first and result))
    for number, (words, _) in enumerate(found):
        if words:
            kind = ValueError if words[0] else RuntimeError
            raise kind(f"process {number}: {words[1]}") from failed
    return found[0][1] if first else result


def divided(work: Callable[[Tensor], Tensor], n: int) -> Tensor:
    """What ``work`` gives for the places 0 to n − 1; each process asks for every so-manieth.

    Args:
        work: places, int64 ``[M]``, ascending (there may be none) -> a tensor ``[M, ...]``.
        n: how many places there are.
    """
    mine = torch.arange(rank(), n, world())
    found = work(mine)
    if world() == 1:
        return found
    parts = everyones(found.cpu())
    whole = found.new_empty(n, *found.shape[1:])
    for number, part in enumerate(parts):
        whole[number :: world()] = part.to(whole)
    return whole


@contextmanager
def processes(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes ``torchrun`` started, and give the device of this one.

    While it is open the processes listen to each other's signs of life. One that is told to stop,
    as torchrun does when another has died, or that misses another for 20 s, says so and exits.

    Args:
        device: ``"cuda"``, ``"cpu"`` or ``"auto"``: a GPU if there is one for each process.

    Raises:
        ValueError: a GPU was asked for and there is none for this process.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and gpus < beside:
        raise ValueError(f"device: {beside} processes need as many GPUs, this machine has {gpus}")
    on_gpu = device != "cpu" and gpus >= beside
    chosen = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(chosen)
    with ExitStack() as after:
        if "RANK" in os.environ and not dist.is_initialized():
            store, number, size = next(iter(dist.rendezvous("env://")))
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            dist.init_process_group(backend, store=store, rank=number, world_size=size)
            after.callback(dist.destroy_process_group)
            if world() > 1:
                after.enter_context(within(_STORE, store))
                after.enter_context(_listening(store))
        yield chosen


def check_shared(folder: Path) -> None:
    """Raise ``ValueError`` unless all processes see the same folder; all call it at once."""
    if world() == 1:
        return
    mark = folder / f".shared-{everyones(os.urandom(8).hex())[0]}.apudae"
    able = True
    if rank() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError:
            able = False
    if not everyones(able)[0]:
        return  # what is there can be read; who writes will be told why not
    until = time.monotonic() + 5  # of a network's file system
    while not (there := mark.is_file()) and time.monotonic() < until:
        time.sleep(0.2)
    blind = [k for k, sees in enumerate(everyones(there)) if not sees]
    if rank() == 0:
        mark.unlink(missing_ok=True)
    require(not blind, f"record: {folder} is not shared, process {blind} does not see it")


def count(name: str, more: int = 0) -> int:
    """A number that all processes add to; what it adds itself, where they have no store."""
    store = _STORE.get()
    try:
        return store.add(f"apudae/{name}", more) if store else more
    except RuntimeError:  # who holds the store has missed another one before this process did
        sys.exit(f"process {rank()}: {_DIED}; {_LOST}")


def wait_for(name: str, number: int, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Wait, however long, until a number that all add to is reached."""
    while _STORE.get() and count(name) < number:
        meanwhile()
        time.sleep(0.2)


@contextmanager
def _listening(store: dist.Store) -> Iterator[None]:
    """Signs of life to the others, and from them; an end that says why."""
    over, why = threading.Event(), [_DIED]
    main = threading.current_thread() is threading.main_thread()

    def stopped(*_: object) -> None:
        sys.exit(f"process {rank()}: {why[0]}; {_LOST}")

    def beat() -> None:
        seen: dict[int, tuple[int, float]] = {}
        while not over.wait(_BEAT):
            try:
                store.add(f"apudae/life/{rank()}", 1)
                for other in range(world()):
                    now = store.add(f"apudae/life/{other}", 0)
                    if other not in seen or seen[other][0] != now:
                        seen[other] = now, time.monotonic()
            except RuntimeError:  # the machine that holds the store is gone
                seen = {0: (0, -_SILENT)}
            late = [k for k, (_, at) in seen.items() if time.monotonic() - at > _SILENT]
            if late and not over.is_set():
                why[0] = f"process {late[0]} has not been heard of for {_SILENT:g} s"
                os.kill(os.getpid(), signal.SIGTERM)
                return

    before = signal.signal(signal.SIGTERM, stopped) if main else None
    listener = threading.Thread(target=beat, daemon=True)
    listener.start()
    try:
        yield
        with suppress(RuntimeError):
            dist.barrier()  # nobody is missed who has only come to the end
    finally:
        over.set()
        listener.join()
        if main:
            signal.signal(signal.SIGTERM, before)


def precision_of(device: torch.device | str) -> torch.dtype | None:
    """The half precision this device computes in, or None for float32.

    bfloat16 where the hardware has it: GPUs from compute capability 8 on (a T4 only emulates it)
    and CPUs with AMX or AVX512-bf16. Other GPUs use float16.
    """
    if check_device(device).type == "cuda":
        real = torch.version.hip or torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if real else torch.float16
    real = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if real else None
