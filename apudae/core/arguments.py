"""Checks of what a caller hands in, from Python or a shell, and the package's own warning.

:func:`checked` holds the arguments of a function to its annotations. Each ``check_...`` raises a
``ValueError`` that names the argument, what came and what was expected, and those of numbers return
them as Python's own (records are JSON, which knows no others). They stand at public entry points
only and are never called inside ``forward``: smoothing and training feed images with noise, whose
values rightly leave [0, 1].

What the commands share: :func:`parsed`, :func:`option`, :func:`told`.
"""

from __future__ import annotations

import argparse
import codecs
import functools
import inspect
import io
import math
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

# Arithmetic in float32 may put a pixel a rounding error outside [0, 1].
_SLACK = 1e-6
LEVEL = (1 - 1e-4) / 255  # of an 8-bit file, less what rounding takes


def require(met: object, message: str) -> None:
    """Raise ``ValueError`` with a message unless a condition is met."""
    if not met:
        raise ValueError(message)


def check_images(x: Tensor, name: str = "x") -> None:
    """Raise ``ValueError`` unless ``x`` is a batch of images ``[N, C, H, W]`` in [0, 1].

    Any floating dtype passes; an empty batch passes.
    """
    require(not odd(x), f"{name}: expected a tensor [N, C, H, W], got {odd(x)}")
    require(x.ndim == 4, f"{name}: expected 4 dimensions [N, C, H, W], got shape {list(x.shape)}")
    require(
        x.is_floating_point() and x.dtype.itemsize > 1,
        f"{name}: expected floating-point images in [0, 1], got {x.dtype}; "
        "divide 8-bit images by 255",
    )
    if len(x) == 0:
        return
    require(x.numel() > 0, f"{name}: expected images of at least one pixel, got {list(x.shape)}")
    low, high = (value.item() for value in torch.aminmax(x.detach()))
    require(not math.isnan(low), f"{name}: holds NaN, expected values in [0, 1]")
    require(
        low >= -_SLACK and high <= 1 + _SLACK,
        f"{name}: expected values in [0, 1], got [{low:.4g}, {high:.4g}]; "
        "normalisation belongs inside the model",
    )


def check_labels(y: Tensor, n: int, classes: int | None = None, name: str = "y") -> None:
    """Raise ``ValueError`` unless ``y`` holds ``n`` int64 labels in ``0 .. classes - 1``."""
    what = odd(y) or f"shape {list(y.shape)}"
    require(not odd(y) and y.ndim == 1, f"{name}: expected a tensor of labels [N], got {what}")
    told = f"{name}: expected int64 labels, got {y.dtype}; call {name}.long()"
    require(y.dtype == torch.int64, told)
    require(len(y) == n, f"{name}: expected {n} labels, one per image, got {len(y)}")
    if n and (y.min() < 0 or (classes is not None and y.max() >= classes)):
        upper = "" if classes is None else f" .. {classes - 1}"
        raise ValueError(
            f"{name}: expected labels in 0{upper}, got {y.min().item()} .. {y.max().item()}"
        )


def check_mask(mask: Tensor, x: Tensor, name: str = "mask") -> Tensor | None:
    """A mask of the pixels of ``x`` that may change: bool ``[N, C, H, W]``; None where all may.

    Raises:
        ValueError: not truth values (or 0 and 1) that fit the images, or one of which none may.
    """
    what = odd(mask) or f"shape {list(mask.shape)}"
    fits = not odd(mask) and 2 <= mask.ndim <= 4 and mask.shape[-2:] == x.shape[-2:]
    # Counted from the last side: those that a mask has not are as good as 1.
    fits = fits and all(k in (1, n) for k, n in zip(mask.shape[::-1], x.shape[::-1], strict=False))
    wanted = f"a tensor [H, W], [C, H, W] or [N, C, H, W] for images {list(x.shape)}"
    require(fits, f"{name}: expected {wanted}, got {what}")
    grey = mask[(mask != 0) & (mask != 1)]
    require(not len(grey), f"{name}: expected true and false, or 1 and 0, got {grey[:1].tolist()}")
    mask = mask.to(x.device).bool().expand(x.shape)
    fixed = int((~mask.flatten(1).any(1)).sum())
    require(not fixed, f"{name}: in {fixed} of {len(x)} images no pixel may change")
    return None if mask.all() else mask


def check_grid(x: Tensor, eps: float = math.inf, name: str = "x") -> None:
    """Raise ``ValueError`` unless images are such as 8-bit files hold, k / 255, and ε a level."""
    check_images(x, name)
    require(
        eps > LEVEL,
        f"eps: {eps:.4g} is less than a grey level, 1 / 255: on the 8-bit grid nothing can change",
    )
    grey = 255 * x.detach().double()
    for value in (grey[(grey - grey.round()).abs() > 1e-3] / 255)[:1].tolist():
        raise ValueError(
            f"{name}: expected pixels k / 255, as 8-bit files hold them, got {value:g}; "
            "round them: (255 * x).round() / 255"
        )


def check_number(
    value: float,
    name: str,
    *,
    minimum: float = 0.0,
    exclusive: bool = False,
    below: float = math.inf,
) -> float:
    """Raise ``ValueError`` unless ``value`` is a finite number above ``minimum``."""
    # A whole number may be too large for a float: the comparison is exact, and comes first.
    fits = _is(value, float) and minimum <= value < below and value <= sys.float_info.max
    bounds = f"{'>' if exclusive else '>='} {minimum:g}"
    bounds += f" and < {below:g}" if below < math.inf else ""
    require(
        fits and not (exclusive and value == minimum),
        f"{name}: expected a finite number {bounds}, got {value!r}",
    )
    return int(value) if _is(value, int) else float(value)


def check_count(value: int, name: str, *, minimum: int = 1, maximum: float = math.inf) -> int:
    """Raise ``ValueError`` unless ``value`` is an integer from ``minimum`` to ``maximum``."""
    fits = _is(value, int) and minimum <= value <= maximum
    bounds = f">= {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
    require(fits, f"{name}: expected an integer {bounds}, got {value!r}")
    return int(value)


def check_seed(value: int, name: str = "seed") -> int:
    """Raise ``ValueError`` unless ``value`` can seed a generator: 0 to 2⁶³ − 1."""
    check_count(value, name, minimum=0)
    require(value < 2**63, f"{name}: expected an integer below 2**63, got {value!r}")
    return int(value)


def check_module(value: nn.Module, name: str = "model") -> nn.Module:
    """Raise ``ValueError`` unless ``value`` is a module; say how what came becomes one."""
    if isinstance(value, nn.Module):
        return value
    hint = ""
    if isinstance(value, str):
        hint = "; load or build it first: models.load(name), models.build(name)"
    elif isinstance(value, type) and issubclass(value, nn.Module):
        hint = f"; make one: {value.__name__}(...)"
    elif callable(value):
        hint = "; call it in the forward of a torch.nn.Module, and hand over that"
    raise ValueError(f"{name}: expected a torch.nn.Module, got {_shown(value)}{hint}")


def check_device(value: torch.device | str, name: str = "device") -> torch.device:
    """Raise ``ValueError`` unless there is such a device on this machine."""
    try:
        device = torch.device(value)
        known = device.type in ("cpu", "cuda") or getattr(torch, device.type).is_available()
    except (AttributeError, RuntimeError, TypeError):
        known = False
    require(known, f"{name}: expected 'cpu' or 'cuda', got {_shown(value)}")
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        found = f"this machine has {gpus or 'no'} GPU{'s' * (gpus != 1)}"
        require((device.index or 0) < gpus, f"{name}: got {str(device)!r}, but {found}")
    return device


def check_choice(value: str, known: Collection[str], name: str) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the ``known`` names."""
    fits = isinstance(value, str) and value in known
    require(fits, f"{name}: expected one of {', '.join(known)}, got {value!r}")


def check_name(value: str, name: str = "name") -> str:
    """Raise ``ValueError`` unless ``value`` can name a file, in the folder it is meant for."""
    fits = isinstance(value, str) and re.fullmatch(r"[\w-][\w.-]*", value)
    require(fits, f"{name}: expected letters, digits and any of _ - . (not first), got {value!r}")
    return value


def check_output(out: object, x: Tensor) -> None:
    """Raise ``ValueError`` unless a model's output for images ``x`` is logits ``[N, classes]``."""
    wanted = f"model: expected logits [{len(x)}, classes]"
    if not isinstance(out, Tensor):
        key: object = 0 if isinstance(out, (tuple, list)) else "logits"
        if isinstance(out, Mapping) and "logits" not in out:
            key = next(iter(out), "logits")
        hint = f"say where they are: attacks.logits(model, key={key!r})"
        if not isinstance(out, (tuple, list, Mapping)) and not hasattr(out, "logits"):
            hint = "let its forward return them as a tensor"
        raise ValueError(f"{wanted}, got {_shown(out)}; {hint}")
    require(out.device == x.device, f"{wanted} on {x.device}, where images are, got {out.device}")
    what = odd(out) or f"shape {list(out.shape)} of {out.dtype}"
    require(not odd(out) and out.ndim == 2 and len(out) == len(x), f"{wanted}, got {what}")


def check_logits(logits: Tensor, y: Tensor) -> None:
    """Raise ``ValueError`` unless logits ``[N, classes]`` fit the labels and hold no NaN."""
    require(logits.shape[1] >= 2, "model: expected logits of at least 2 classes, got 1")
    check_labels(y, len(y), classes=logits.shape[1])
    bad = int(logits.detach().isnan().any(1).sum())
    require(not bad, f"model: NaN logits for {bad} of {len(y)} images")


def checked(function: Callable) -> Callable:
    """Hold the arguments of a function, or of a class, to its annotations before it begins.

    Numbers arrive as Python's own; what stands in ``_LEAST``, seeds and devices are in their ranges
    besides. What else is asked of an argument the function checks itself.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)
        return function
    signature = inspect.signature(function)

    @functools.wraps(function, assigned=(*functools.WRAPPER_ASSIGNMENTS, "__kwdefaults__"))
    def call(*args: Any, **options: Any) -> Any:
        try:
            bound = signature.bind(*args, **options)
        except TypeError:
            return function(*args, **options)  # Python says it best
        hints = _hints(function)
        for name, value in bound.arguments.items():
            hint = hints.get(name, object)
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                value = {key: check_type(part, hint, key) for key, part in value.items()}
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                value = [check_type(part, hint, f"{name}[{k}]") for k, part in enumerate(value)]
            else:
                value = check_type(value, hint, name)
            bound.arguments[name] = value
        return function(*bound.args, **bound.kwargs)

    return call


@functools.cache  # and not kept in the function, which would then change as it is called
def _hints(function: Callable) -> dict[str, Any]:
    return get_type_hints(function)


def check_type(value: Any, hint: Any, name: str) -> Any:
    """Raise ``ValueError`` unless a value, and what it holds, is of an annotation's kind."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is not None and name == "seed":
        return check_seed(value)
    if value is not None and int in options and name in _LEAST:
        return check_count(value, name, minimum=_LEAST[name])
    if value is not None and torch.device in options:
        return check_device(value, name)
    fitting = next((option for option in options if _is(value, option)), None)
    if fitting is None:
        if nn.Module in options:
            check_module(value, name)
        kinds = " or ".join(dict.fromkeys(_told(option) for option in options))
        raise ValueError(f"{name}: expected {kinds}, got {_shown(value)}")
    kind, inner = get_origin(fitting) or fitting, get_args(fitting)
    if isinstance(value, Mapping) and len(inner) == 2:
        for key, part in value.items():
            check_type(part, inner[1], f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)) and inner:
        # The one kind of all parts, or one for each.
        each = inner if kind is tuple and inner[-1] is not Ellipsis else inner[:1] * len(value)
        for k, (part, wanted) in enumerate(zip(value, each, strict=False)):
            check_type(part, wanted, f"{name}[{k}]")
    if kind in (int, float):
        return int(value) if _is(value, int) else float(value)
    return kind(value) if kind in (bool, Path) else value


# Counts that mean the same wherever they are asked for.
_LEAST = dict.fromkeys(("width", "latent", "hidden", "channels", "batch_size", "draws"), 1)
_LEAST |= {"classes": 2, "columns": 0, "tones": 0}
# What annotations are called, and what is taken for some: a list will do for a tuple.
_SEQUENCES = (tuple, list, Sequence)
_TOLD = {
    **{int: "an integer", float: "a number", bool: "True or False", str: "a string"},
    **{Tensor: "a tensor", nn.Module: "a torch.nn.Module", Path: "a path", type(None): "None"},
    **{Callable: "a function", Mapping: "a dict", **dict.fromkeys(_SEQUENCES, "a sequence")},
}
_TAKEN = {int: Integral, float: Real, bool: (bool, np.bool_), Path: (Path, str)}
_TAKEN |= dict.fromkeys(_SEQUENCES, Iterable)


def _is(value: object, hint: Any) -> bool:
    """Whether a value is of a kind; what it holds is not looked at."""
    kind = get_origin(hint) or hint
    if kind is Any or not isinstance(kind, type):
        return True
    # True is no number, and a string no sequence of strings.
    numeric, listed = kind in (int, float), kind in _SEQUENCES
    never = (bool,) if numeric else (str, bytes, Mapping) if listed else ()
    return isinstance(value, _TAKEN.get(kind, kind)) and not isinstance(value, never)


def _told(hint: Any) -> str:
    kind = get_origin(hint) or hint
    return _TOLD.get(kind) or getattr(kind, "told", f"a {kind.__name__}")


def _shown(value: object) -> str:
    if value is None or isinstance(value, (bool, int, float, str, torch.device)):
        return repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def odd(value: object) -> str:
    """What a value is, if no tensor of real numbers that lie in memory one by one; or nothing."""
    if not isinstance(value, Tensor):
        return _shown(value)
    plain = not (value.is_complex() or value.is_quantized or value.is_nested or value.is_meta)
    kind = f"{'nested ' * value.is_nested}tensor of {value.dtype}, {value.layout}"
    return "" if plain and value.layout == torch.strided else f"a {kind} on {value.device}"


def check_writable(folder: Path, name: str) -> None:
    """Raise ``ValueError`` unless files can be written to a folder; made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{name}: cannot write to the folder {folder}: {why}") from error


def option(kind: type = int, **limits: Any) -> Callable[[str], float]:
    """What a command reads a number with, ``type=option(float, exclusive=True)``.

    ``limits`` are those of :func:`check_count` or :func:`check_number`.
    """

    def read(text: str) -> float:
        value: Any = text  # refused below if it is no number
        with suppress(ValueError):
            value = kind(text.replace("_", "?"))  # which Python would skip
        try:
            return (check_count if kind is int else check_number)(value, "", **limits)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None

    return read


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The options of a command; what its console cannot show is from now on written in ASCII."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="apudae")
    return parser.parse_args(argv)


_ASCII = {"ε": "eps", "λ": "lambda", "σ": "sigma", "∞": "inf", "≤": "<=", "≥": ">=", "−": "-"}
codecs.register_error(
    "apudae",
    lambda error: (
        "".join(_ASCII.get(c, "?") for c in error.object[error.start : error.end]),
        error.end,
    ),
)


class ForeignError(Exception):
    """A fault inside what a user's own code does for a command; its cause is theirs."""


def told(work: Callable[[], object]) -> str | int | None:
    """Do what a command does; what ``sys.exit`` is to be told: mistakes, on one line."""
    try:
        work()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what was stored", file=sys.stderr)
        return 130
    except (ForeignError, OSError, ImportError, RuntimeError, ValueError) as error:
        if isinstance(error, ForeignError):
            print(f"{error}; what follows is the traceback of that code:", file=sys.stderr)
            traceback.print_exception(error.__cause__)
        lines = str(error).split("\n")  # from a worker process a whole traceback, its end last
        lines = lines[-2:] if "Traceback" in str(error) else lines
        return f"error: {' '.join(' '.join(lines).split())}"
    return None


class AttackWarning(UserWarning):
    """A measurement that runs, but may not mean what it seems to."""


def warn(message: str) -> None:
    """An :class:`AttackWarning`, shown at the line outside this package that led to it."""
    package, level = str(Path(__file__).parents[1]), 1
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, AttackWarning, stacklevel=level + 1)
