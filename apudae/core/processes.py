"""Several processes that act as one, and the half precision each computes in.

Without ``torchrun --nproc-per-node 2 -m apudae.training ...`` there is one process, and everything
here but :func:`precision_of` does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from .arguments import check_device


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


@contextmanager
def processes(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes ``torchrun`` started, and give the device of this one.

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
            dist.init_process_group("nccl" if on_gpu else "gloo")
            after.callback(dist.destroy_process_group)
        yield chosen


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
