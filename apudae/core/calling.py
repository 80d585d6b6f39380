"""Asking a model for its logits, always in the same way: its type, its mode, its random draws.

- :func:`called`: the one place where a module is given images; its input stays as it was
- :func:`logits_of`, :func:`ask`: the logits, of the model as it is or of a known draw
- :func:`evaluating`, :func:`in_training`, :func:`warn_if_training`: its mode
- :data:`HALF`, :data:`MEMORY`, :func:`within`, :func:`half`: how, while an attack searches
- :func:`unwrapped`, :func:`takes_keys`, :func:`differentiable`, :func:`looks_like_probabilities`,
  :func:`is_random`, :func:`looks_at_the_batch`: what it is
- :func:`bounded`: classes that cannot win
"""

from __future__ import annotations

import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from .arguments import check_module, check_output, require, warn

_WRAPPERS = (nn.DataParallel, DistributedDataParallel, AveragedModel, nn.Sequential)
_BEYOND = 1000  # times the largest logit: a class as far below it cannot win


# How passes through networks are made while an attack searches: the half precision they compute
# in, or None for the images' own; and how many bytes of graph a purifier may keep for the way back,
# so that it need not work its steps out again.
HALF: ContextVar[torch.dtype | None] = ContextVar("half", default=None)
MEMORY: ContextVar[int] = ContextVar("memory", default=0)


class ModelError(ValueError, RuntimeError):
    """A module that cannot do with its images; what was said of it is in the message."""


_PASSED_ON = (ModelError, NotImplementedError, MemoryError, torch.OutOfMemoryError, Warning)
_IN_PLACE = "{}: it changes its input in place; let it work on a copy"


@contextmanager
def telling(what: Callable[[], str], name: str = "model") -> Iterator[None]:
    """Say ``what()`` failed before torch's own words; they are kept, and so is the traceback."""
    try:
        yield
    except Exception as error:
        *_, (last, _) = traceback.walk_tb(error.__traceback__)
        # What this package says of an argument names it already.
        inside = last.f_globals.get("__name__", "").startswith("apudae.")
        if isinstance(error, _PASSED_ON) or (inside and isinstance(error, ValueError)):
            raise
        words = str(error).strip().splitlines() or [""]
        if "in-place operation" in words[0]:
            raise ModelError(_IN_PLACE.format(name)) from error
        word = words[-1 if "TorchScript" in words[0] else 0]
        if not (word and isinstance(error, (RuntimeError, ValueError))):
            word = f"{type(error).__name__}: {word}".removesuffix(": ")
        if isinstance(error, StopIteration):  # itself as the cause, contextlib lets it pass
            error = StopIteration(*error.args).with_traceback(error.__traceback__)
        raise ModelError(f"{what()}: {word}") from error


@contextmanager
def within(variable: ContextVar, value: Any) -> Iterator[None]:
    """A setting of this thread, put back afterwards."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def half(x: Tensor) -> torch.autocast | nullcontext:
    """What a network's pass for float32 images runs in: :data:`HALF`, if it is set."""
    dtype = HALF.get() if x.dtype == torch.float32 else None
    return torch.autocast(x.device.type, dtype) if dtype else nullcontext()


def remembering(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step that is made again later, perhaps in another thread, in the precision of now."""
    dtype = HALF.get()

    def again(*inputs: object) -> Any:
        with within(HALF, dtype):
            return step(*inputs)

    return again


def unwrapped(model: nn.Module) -> nn.Module:
    """The module in what only hands images on to it: told by type, never by a name.

    DataParallel, the distributed one, an average of weights, torch.compile, and a Sequential of
    nothing else. One with hooks or a call of its own may do more than hand on.
    """
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    inner = [model]
    while len(inner) == 1:
        (model,) = inner
        if isinstance(model, compiled) and not _hooks(model):
            inner = [model.get_submodule("_orig_mod")]
        elif _works_as(model, *_WRAPPERS):
            inner = list(model) if isinstance(model, nn.Sequential) else [model.module]
            inner = [layer for layer in inner if not _works_as(layer, nn.Identity)]
        else:
            break
    return model


def _hooks(module: nn.Module) -> list[Callable]:
    kinds = (getattr(module, f"_forward{kind}hooks", {}) for kind in ("_", "_pre_"))
    return [hook for hooks in kinds for hook in hooks.values()]


def _works_as(module: nn.Module, *kinds: type) -> bool:
    """Whether its call does what that of one of these types does: no hook, no method of its own."""
    ways = ("forward", "__call__", "scatter", "gather")
    mine, *theirs = ([getattr(k, way, None) for way in ways] for k in (type(module), *kinds))
    return mine in theirs and "forward" not in vars(module) and not _hooks(module)


def takes_keys(model: nn.Module) -> bool:
    """Whether the random draws of a module can be named: ``forward(x, index, draw)``."""
    try:
        return {"index", "draw"} <= inspect.signature(unwrapped(model).forward).parameters.keys()
    except (TypeError, ValueError):  # compiled code does not tell
        return False


def called(model: nn.Module, x: Tensor, name: str = "model", **keys: object) -> object:
    """What a module returns for images fed in its own type: the one place where one is called.

    Without a graph it works on a copy. Images that it changed are put back, and it is refused:
    what is done in place reaches the next model, and autograd does not know of it.

    Args:
        model: the module.
        x: images ``[N, C, H, W]``.
        name: of the argument that it came as.
        keys: handed on to it.

    Raises:
        ModelError: it fails on these images, or changes them.
    """
    for held in (model.parameters(), model.buffers()):
        if types := {p.dtype for p in held if p.is_floating_point()}:
            break
    given = x.to(types.pop()) if len(types) == 1 else x
    if torch.compiler.is_compiling():
        return model(given, **keys)
    graph = torch.is_grad_enabled() and given.requires_grad
    fed, kept = (given, given.clone()) if graph else (given.clone(), given)
    version = None if fed.is_inference() else fed._version

    def fails() -> str:
        weights = ", ".join(sorted({f"{p.dtype} on {p.device}" for p in model.parameters()}))
        images = f"{list(x.shape[1:])}, {given.dtype} on {given.device}"
        return f"{name}: fails on images {images}, its weights {weights or 'none'}"

    with telling(fails, name), half(given):
        out = model(fed, **keys)
    same = version is None or fed._version == version
    if same and x.device.type == "cpu":  # an edit past autograd; on a GPU asking costs too much
        same = torch.equal(fed, kept) or torch.allclose(fed, kept, 0, 0, equal_nan=True)
    if not same:
        fed.data.copy_(kept.data)
        raise ModelError(_IN_PLACE.format(name))
    return out.as_subclass(Tensor) if isinstance(out, Tensor) and type(out) is not Tensor else out


def logits_of(model: nn.Module, x: Tensor, **keys: object) -> Tensor:
    """Logits in float32 or better, whatever the model computes in; ``keys`` are handed on to it."""
    out = called(model, x, **keys)
    check_output(out, x)
    return out if out.dtype in (torch.float32, torch.float64) else out.float()


def bounded(logits: Tensor) -> Tensor:
    """Logits, those of classes that cannot win raised to where they do no harm.

    That is what lies 1000 times the largest logit (at least 1000) below it, such as −10⁹ or −∞ for
    classes that a head has and a task has not. All others stay as they are.
    """
    top = logits.amax(1, keepdim=True)
    least = top - _BEYOND * top.abs().clamp(min=1)
    return logits.clamp(min=least.nan_to_num(-torch.inf, neginf=-torch.inf))


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether no output is negative and each row sums to 1."""
    sums = logits.detach().sum(1)  # in bf16 each term is rounded by up to 0.4 %
    return len(sums) > 0 and bool((logits >= 0).all() & ((sums - 1).abs() < 1e-2).all())


def in_training(model: nn.Module) -> str:
    """Names of the layers in training mode that act differently there; empty if there are none."""
    layers = (m for m in model.modules() if getattr(m, "training", False) and _has_modes(m))
    return ", ".join(sorted({type(layer).__name__ for layer in layers}))


# Layers that always ask for their mode, by class or file, and when they act by it.
_MODES: dict[object, Callable[..., bool]] = {
    "torch.nn.modules.dropout": lambda layer: layer.p > 0,
    "torchvision.ops.drop_block": lambda layer: layer.p > 0,
    "torchvision.ops.stochastic_depth": lambda layer: layer.p > 0,
    "torch.nn.modules.instancenorm": lambda layer: layer.track_running_stats,
    "torch.nn.modules.rnn": lambda layer: getattr(layer, "num_layers", 1) > 1 and layer.dropout > 0,
    "torch.nn.modules.transformer": lambda layer: False,  # its parts may
    nn.MultiheadAttention: lambda layer: layer.dropout > 0,
}


def _has_modes(layer: nn.Module) -> bool:
    """Whether ``forward``, what it names of the layer, or a hook asks for the mode."""
    kinds = [kind for kind in type(layer).__mro__ if kind not in nn.Module.__mro__]
    acts = {kind: _MODES.get(kind, _MODES.get(kind.__module__)) for kind in kinds}
    own = [vars(layer), *(vars(kind) for kind in kinds if acts[kind] is None)]
    todo = [names["forward"] for names in own if "forward" in names][:1] + _hooks(layer)
    words: set[str] = set()
    while todo:
        what = todo.pop()
        what = inspect.unwrap(getattr(what, "fget", getattr(what, "func", what)))
        call = type(what).__call__ if callable(what) else what
        code = getattr(what, "__code__", getattr(call, "__code__", call))
        if isinstance(code, CodeType):
            todo += [part for part in code.co_consts if isinstance(part, CodeType)]
            found = {*code.co_names, *(part for part in code.co_consts if isinstance(part, str))}
            todo += [names[word] for word in found - words for names in own if word in names]
            words |= found
    return "training" in words or any(known(layer) for known in acts.values() if known)


def warn_if_training(model: nn.Module) -> None:
    """Warn of layers in training mode that act differently there, or that look at the batch."""
    if names := in_training(model):
        warn(
            f"model: {names} in training mode. The attack runs in evaluation mode, so its images "
            "fit model.eval(); an accuracy taken in training mode is that of another, random or "
            "batch-coupled model. Call model.eval() before you attack and score."
        )
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if names := ", ".join(sorted({type(m).__name__ for m in norms if m.running_mean is None})):
        warn(
            f"model: {names} without running statistics: its answers depend on the batch, so that "
            "what is attacked in one batch may stand in another. Set track_running_stats=True, and "
            "train the statistics."
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode afterwards, also after an error."""
    check_module(model)
    lazy = any(map(torch.nn.parameter.is_lazy, model.parameters()))
    require(not lazy, "model: it has lazy layers without weights; call it once on images")
    modes = [(m, m.training) for m in model.modules() if hasattr(m, "training")]
    with suppress(NotImplementedError):  # exported programs have one mode only
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def ask(model: nn.Module, x: Tensor, *, draw: int = 0, index: Tensor | None = None) -> Tensor:
    """Logits of one draw of a model, the same each time it is asked with the same numbers.

    A module whose ``forward`` takes ``index`` and ``draw`` gets them. One that draws from the
    global generators (torch's, numpy's, Python's) finds them seeded by ``draw``, and they are put
    back afterwards.

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]``.
        draw: number of the draw.
        index: of the images, int64 ``[N]``; without, all get the draws of image 0.
    """
    keys: dict[str, object] = {}
    if takes_keys(model):
        model = unwrapped(model)
        wanted = inspect.signature(model.forward).parameters["index"]
        if index is None and wanted.default is wanted.empty:
            index = torch.zeros(len(x), dtype=torch.int64)
        keys = {"index": index, "draw": draw}
    with _seeded((draw * 0x9E3779B1 + 1) % 2**32, x.device):
        return logits_of(model, x, **keys)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators of Python, numpy and torch as they are after a seed; put back later."""
    states, gpu = (random.getstate(), np.random.get_state()), device.type == "cuda"
    with torch.random.fork_rng([device] if gpu else []):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        if gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def differentiable(model: nn.Module, x: Tensor) -> bool:
    """Whether autograd knows the derivative of everything in a model; zero counts as known."""
    logits = None
    try:
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_(True)
            logits = ask(model, z)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), z, allow_unused=True)
    except Exception as error:  # on the way back, or of a step inside the model
        inner = logits is None and "is not implemented" not in str(error)
        if inner or isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    return True


def is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether a module says so, or logits differ from draw to draw by more than rounding.

    20 draws of all images; of large ones, which may take a second each, 2 of all and 20 of the
    first eight. A model that is random only now and then can pass for one that is not.
    """
    if any(getattr(module, "random", False) is True for module in model.modules()):
        return True  # it says so itself
    with evaluating(model), torch.no_grad():
        few = x[: max(8, 2**18 // x[0].numel())]
        for part, draws in ((x, 2), (few, 20)):
            index = torch.arange(len(part))
            first = ask(model, part, index=index)
            for draw in range(1, draws):
                again = ask(model, part, draw=draw, index=index)
                if not torch.allclose(first, again, rtol=1e-4, atol=1e-5, equal_nan=True):
                    return True
    return False


@torch.no_grad()
def looks_at_the_batch(model: nn.Module, x: Tensor) -> bool:
    """Whether most of the first eight images get other logits alone than together.

    By more than a hundredth of their spread: passes of other sizes round otherwise, and a purifier
    may make much of it for an image or two.
    """
    x = x[:8]
    index = torch.arange(len(x))
    with evaluating(model):
        together = ask(model, x, index=index)
        try:
            alone = torch.cat([ask(model, x[k : k + 1], index=index[k : k + 1]) for k in index])
        except ValueError:  # such as batch norm of a single number
            return True
    able = together == bounded(together)
    change = (together - alone).where(able, 0).abs().amax(1)
    spread = together.amax(1) - together.where(able, torch.inf).amin(1)
    return bool((change > 0.01 * spread).double().mean() > 0.5)
