"""The parts of adaptive purification: what is lowered, how, and with which derivative.

- :data:`OBJECTIVES`: functions of the reconstruction error
- :class:`Stepper`, :class:`Adam`, :class:`Descent`, :class:`Sign`, :class:`Normalised`: kinds of
  steps, in :data:`STEPPERS` by name
- :class:`ExactStep`, :class:`FrozenConvolutions`: the derivative, in little memory and time

Everything here is per image: ``d`` and the values of an objective are ``[N]``, gradients and steps
``[N, C, H, W]``, and no image's numbers enter another's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..core.arguments import check_number
from ..core.calling import telling
from ..core.norms import per_image

State = tuple[Tensor, ...]
# Far below the rounding of anything it is added to; keeps a root differentiable at zero.
_TINY = 1e-24
# What adaptive purification lowers, from an image's error d and the clean errors' mean and spread.
OBJECTIVES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "error": lambda d, mu, sigma: d,
    "hinge": lambda d, mu, sigma: ((d - mu).clamp(min=0) / sigma).square(),
    "match": lambda d, mu, sigma: ((d - mu) / sigma).square(),
    "sigmoid": lambda d, mu, sigma: d * ((d - mu) / sigma).sigmoid(),
}


class Stepper(ABC):
    """Turns gradients into directions to walk against; the length of a step is the walker's."""

    def start(self, z: Tensor) -> State:
        """What it remembers of images ``z`` before the first step."""
        return ()

    @abstractmethod
    def step(self, gradient: Tensor, state: State, t: int) -> tuple[Tensor, State]:
        """The direction of step ``t`` (from 1), and what it remembers afterwards."""


@dataclass(frozen=True)
class Adam(Stepper):
    """Adam (Kingma & Ba 2015, algorithm 1).

    Its first direction is ``g / (|g| + eps)``, almost a sign: its derivative is almost zero almost
    everywhere. A large ``eps``, about the size of the gradients, makes a smooth surrogate.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_number(self.eps, "eps", exclusive=True)
        for name in ("beta1", "beta2"):
            check_number(getattr(self, name), name)
            if getattr(self, name) >= 1:
                raise ValueError(f"{name}: expected a number below 1, got {getattr(self, name)!r}")

    def start(self, z: Tensor) -> State:
        return torch.zeros_like(z), torch.zeros_like(z)

    def step(self, gradient: Tensor, state: State, t: int) -> tuple[Tensor, State]:
        mean = self.beta1 * state[0] + (1 - self.beta1) * gradient
        square = self.beta2 * state[1] + (1 - self.beta2) * gradient.square()
        root = (square / (1 - self.beta2**t) + _TINY).sqrt()
        return mean / (1 - self.beta1**t) / (root + self.eps), (mean, square)


@dataclass(frozen=True)
class Descent(Stepper):
    """Plain gradient descent: smooth, and a surrogate of all the others."""

    def step(self, gradient: Tensor, state: State, t: int) -> tuple[Tensor, State]:
        return gradient, state


@dataclass(frozen=True)
class Sign(Stepper):
    """The sign of the gradient, whose derivative is zero; with τ > 0 the smooth ``tanh(g / τ)``."""

    tau: float = 0.0

    def __post_init__(self) -> None:
        check_number(self.tau, "tau")

    def step(self, gradient: Tensor, state: State, t: int) -> tuple[Tensor, State]:
        return (gradient / self.tau).tanh() if self.tau else gradient.sign(), state


@dataclass(frozen=True)
class Normalised(Stepper):
    """The gradient over its L2 length, per image; zero where it is zero.

    A ``floor`` of the size of the gradients makes it a smooth surrogate: ``g / √(‖g‖² + floor²)``.
    """

    floor: float = 1e-12

    def __post_init__(self) -> None:
        check_number(self.floor, "floor", exclusive=True)

    def step(self, gradient: Tensor, state: State, t: int) -> tuple[Tensor, State]:
        squared = gradient.square().flatten(1).sum(1) + self.floor**2
        return gradient * per_image(squared.rsqrt(), gradient), state


STEPPERS: dict[str, Stepper] = {
    "adam": Adam(),
    "descent": Descent(),
    "sign": Sign(),
    "l2": Normalised(),
}


class ExactStep(torch.autograd.Function):
    """One step, remembered by its inputs alone and worked out again when it is differentiated.

    Going forward no graph is kept, so that ``n`` steps hold ``n`` images (and what the stepper
    remembers of them) and never more than one step's graph. Going back, the step is taken again
    with the graph of its inner gradient, which gives the derivative of second order.

    ``look``: images -> their errors ``[N]`` and the objective's gradient; ``move``: the step taken
    with those; ``dae``: what ``look`` asks.
    """

    @staticmethod
    def forward(ctx, dae, look, move, d, gradient, parameters, z, x, *rest):
        ctx.dae, ctx.look, ctx.move, ctx.parameters = dae, look, move, parameters
        state = rest[: len(rest) - len(parameters)]
        ctx.save_for_backward(z, x, *rest)  # trainable weights too: an edit in between is noticed
        z, state = move(z, x, d, gradient, state)
        return z, *state

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream):
        parameters, wanted = ctx.parameters, ctx.needs_input_grad[6:]
        saved = ctx.saved_tensors[: len(wanted) - len(parameters)]

        # Nothing of the caller's autocast, if backward is called inside one.
        @torch.enable_grad()
        @torch.autocast(saved[0].device.type, enabled=False)
        def again() -> Iterator[Tensor | None]:
            inputs = [t.detach().requires_grad_(t.is_floating_point()) for t in saved]
            z, x, *state = inputs
            d, gradient = ctx.look(z)
            after, state = ctx.move(z, x, d, gradient, tuple(state))
            asked = [s for s, w in zip((*inputs, *parameters), wanted, strict=True) if w]
            pairs = zip((after, *state), upstream, strict=True)
            ends, weights = zip(*((o, u) for o, u in pairs if o.requires_grad), strict=True)
            return iter(torch.autograd.grad(ends, asked, weights, allow_unused=True))

        found = twice(again, ctx.dae)
        return (None,) * 6 + tuple(next(found) if w else None for w in wanted)


_PLAIN: WeakSet[nn.Module] = WeakSet()  # networks that need the second way below


def twice(work: Callable[[], Any], dae: nn.Module) -> Any:
    """What ``work`` returns, which differentiates a DAE twice.

    The fast way first. What makes its graph again on the way back (checkpoint) finds another one
    there, and fused attention has no second derivative: both go the plain way.

    Raises:
        ValueError: neither way leads there.
    """
    if dae not in _PLAIN:
        try:
            with FrozenConvolutions():
                return work()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
    none = "dae: autograd cannot differentiate it twice; try BPDA"
    with telling(lambda: none), sdpa_kernel(SDPBackend.MATH):
        found = work()
    _PLAIN.add(dae)
    return found


class FrozenConvolutions(TorchFunctionMode):
    """Inside, convolutions with frozen weights are cheaper to differentiate twice.

    torch's own second derivative works out the share of the weights too, and throws it away where
    they are frozen. Here the gradient to the input is written as what it is, a (transposed)
    convolution of the gradient with the same weights. The numbers are the same.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        arguments = {torch.conv2d: 7, torch.conv_transpose2d: 8}.get(func)
        if len(args) == arguments and not kwargs and _is_plain(*args):
            return _Frozen.apply(func, *args)
        return func(*args, **(kwargs or {}))


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None, *options: object) -> bool:
    """A batch, the padding in numbers, nothing to train."""
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    return frozen and x.ndim == 4 and not isinstance(options[1], str)


class _Frozen(torch.autograd.Function):
    """One of the two convolutions; the gradient to its input is the other."""

    @staticmethod
    def forward(ctx, convolution, x, weight, bias, *options):
        ctx.save_for_backward(weight)
        ctx.convolution, ctx.size, ctx.options = convolution, x.shape[2:], options
        return convolution(x, weight, bias, *options)

    @staticmethod
    def backward(ctx, upstream):
        weight = ctx.saved_tensors[0].to(upstream.dtype)  # autocast does not reach in here
        none = (None,) * (2 + len(ctx.options))
        if ctx.convolution is torch.conv_transpose2d:
            stride, padding, _, groups, dilation = ctx.options
            gradient = torch.conv2d(upstream, weight, None, stride, padding, dilation, groups)
            return None, gradient, *none
        stride, padding, dilation, groups = ctx.options
        left = []  # rows and columns that the stride did not reach
        for k in range(2):
            s, p, d = (
                o if isinstance(o, int) else o[k % len(o)] for o in (stride, padding, dilation)
            )
            reached = (upstream.shape[2 + k] - 1) * s - 2 * p + d * (weight.shape[2 + k] - 1) + 1
            left.append(ctx.size[k] - reached)
        options = (stride, padding, left, groups, dilation)
        return None, torch.conv_transpose2d(upstream, weight, None, *options), *none
