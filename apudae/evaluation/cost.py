"""What a measurement costs: seconds, images through the model, peak memory."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

# What resource.getrusage tells of the peak can never be begun anew, and would be that of an earlier
# measurement. Linux takes a 5 in clear_refs as "the peak is what is held now" (man 5 proc).
_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Counts while it is open::

        with Meter(model, x.device) as cost:
            ...
        cost.seconds, cost.images, cost.mebibytes

    Args:
        model: whose passes are counted.
        device: whose memory is measured.

    Attributes:
        seconds: of wall time.
        images: images that went through the model, forward.
        mebibytes: how much more memory was held at the worst moment than at the start; None where
            that cannot be told (a CPU whose system is not Linux).
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self.seconds, self.images = 0.0, 0
        self.mebibytes: float | None = None

    def __enter__(self) -> Meter:
        # Modules in TorchScript take no hooks of their own.
        scripted, own = isinstance(self.model, torch.jit.ScriptModule), self.model
        hook = register_module_forward_pre_hook if scripted else own.register_forward_pre_hook
        self._hook = hook(self._count)
        self._before = self._held(reset=True)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        after = self._held()
        self.seconds = time.perf_counter() - self._start
        if self._before is not None and after is not None:
            self.mebibytes = max(after - self._before, 0) / 2**20

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.images += len(inputs[0]) if module is self.model else 0

    def _held(self, *, reset: bool = False) -> int | None:
        """Bytes: on a GPU those of torch, else the whole process's; the peak is begun anew."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            if reset:
                torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        if reset:
            with suppress(OSError):
                _REFS.write_text("5", encoding="utf-8")
        with suppress(OSError, StopIteration, ValueError):
            lines = _STATUS.read_text(encoding="utf-8").splitlines()
            return 1024 * int(next(s for s in lines if s.startswith("VmHWM")).split()[1])
        return None
