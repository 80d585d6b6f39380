"""BPDA without knowing the parts: masks inside a model are found while it runs.

Roundings, casts to integers, thresholds, ``detach`` and ``no_grad`` cut a gradient wherever they
stand. :class:`StraightThrough` runs a model as it is, and lets the gradient pass each of them as if
it were the identity (Athalye et al. 2018, §4.1; the straight-through estimator of Bengio et al.
2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ..core.calling import ask, differentiable
from .adaptive import Uncut
from .objective import gradient_of

_ROUNDINGS = ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "detach")


def _named(names: tuple[str, ...]) -> set[Any]:
    places = (torch, torch.Tensor)
    return {getattr(place, name) for place in places for name in names if hasattr(place, name)}


_ROUND = _named(_ROUNDINGS) | {torch.Tensor.data.__get__}
_IN_PLACE = {
    getattr(torch.Tensor, f"{name}_"): getattr(torch.Tensor, name)
    for name in _ROUNDINGS
    if hasattr(torch.Tensor, f"{name}_")
}
_QUOTIENTS = _named(("div", "divide", "floor_divide", "__floordiv__"))
_REMAINDERS = _named(("remainder", "fmod", "__mod__"))
_BELOW = _named(("lt", "le", "__lt__", "__le__"))
_CLAMPS = _named(("clamp", "clip", "clamp_min", "clamp_max", "clamp_", "clip_"))
_CLAMPS |= {F.hardtanh, F.relu6, F.hardsigmoid}
_RELUS = _named(("relu", "relu_")) | {F.relu, F.threshold}


class StraightThrough(Uncut):
    """A model whose roundings, thresholds and cuts let the gradient pass unchanged.

    Args:
        model: images -> logits.
        clamps: let it pass clamps, too, and a ReLU before all of them on something as large as the
            images: where a pixel is below a threshold it has no gradient, though an attack may lift
            it above. (Not ``maximum`` and ``where``, nor what works in place and is not returned.)
    """

    def __init__(self, model: nn.Module, *, clamps: bool = False) -> None:
        super().__init__(model)
        self.clamps = clamps

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        if self.able is None:  # a pass of its own, in which another ReLU is the first
            with _Passing(self.clamps):
                self.able = differentiable(self.model, x[:1])
        with _Passing(self.clamps):
            looks = list(super().looks(x, turn))
        yield from looks

    @classmethod
    def of(
        cls, model: nn.Module, x: Tensor, index: Tensor | None = None, *, clamps: bool = False
    ) -> StraightThrough | None:
        """The view, if it changes the gradient and nothing else; None where it is of no use.

        Args:
            model: images -> logits.
            x: a few images ``[N, C, H, W]``.
            index: of the images.
            clamps: whether it passes clamps.
        """
        z = x.detach().clone().requires_grad_(True)
        try:
            with torch.enable_grad(), _Passing(clamps) as mode:
                logits = ask(model, z, index=index)
            slope = gradient_of(logits.pow(2).sum(), z)
        except (RuntimeError, TypeError, ValueError):  # a model that minds: in-place edits, say
            return None
        with torch.no_grad():
            same = torch.equal(logits, ask(model, x, index=index))
        able = slope.isfinite().all() and bool(slope.any())
        return cls(model, clamps=clamps) if mode.passed and same and able else None


class _Carry(torch.autograd.Function):
    """Values of one tensor, gradient to another."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, source: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


class _Passing(TorchFunctionMode):
    """While open, what cuts a gradient hands it on.

    Integers and truth values carry no gradient. Where they came from is remembered, and when they
    become real numbers again the gradient goes there.
    """

    def __init__(self, clamps: bool = False) -> None:
        super().__init__()
        self.clamps = clamps
        self.passed = 0  # cuts met
        self.pixels: torch.Size | None = None  # height and width of the images
        self.sources = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:  # no_grad inside the model: not for us
            self.passed += not args[0]
            return None
        func = _IN_PLACE.get(func, func)  # the values, elsewhere: a leaf cannot be overwritten
        first = args[0] if args else None
        real = isinstance(first, Tensor) and first.is_floating_point() and first.requires_grad
        whole = func in _QUOTIENTS and (
            "floor" in func.__name__ or kwargs.get("rounding_mode") is not None
        )
        if real and (whole or func in _REMAINDERS):
            with torch.no_grad():
                out = func(*args, **kwargs)
            self.passed += 1
            return _Carry.apply(out, first / args[1]) if whole else out
        if real and self.pixels is None:
            self.pixels = first.shape[2:]
        # A ReLU further in, or on features of another size, is no threshold of pixels.
        relu = func in _RELUS and real and first.shape[2:] == self.pixels
        flat = func in _CLAMPS or (relu and not self.passed)
        if self.clamps and real and flat:
            with torch.no_grad():
                out = func(first.clone(), *args[1:], **kwargs)  # some work in place
            self.passed += 1
            return _Carry.apply(out, first)
        out = func(*args, **kwargs)
        if not (isinstance(out, Tensor) and isinstance(first, Tensor)) or out.shape != first.shape:
            return out
        # What `where` and products choose from may have a gradient of the image's own.
        chosen = any(
            isinstance(part, Tensor) and part.requires_grad and not isinstance(part, nn.Parameter)
            for part in args[1:]
        )
        # Real numbers with a gradient that the result stands for, where it cuts it.
        source = self.sources.get(first)
        if real:
            source = -first if func in _BELOW else first
        if source is not None and not out.is_floating_point():
            self.sources[out] = source
        elif source is not None and (func in _ROUND or not (first.is_floating_point() or chosen)):
            self.passed += 1
            return _Carry.apply(out, source)
        return out
