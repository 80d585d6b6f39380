"""What tells data and models apart to the last bit: what a number in a record belongs to."""

from __future__ import annotations

import copyreg
import functools
import hashlib
import inspect
import math
import re
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arguments import warn
from .calling import ask, evaluating
from .files import fingerprint
from .norms import keyed

ASKED, NOISE = 8, 0.1  # images whose logits are kept, and the largest noise on their pixels
CHANGING = "changes as it is asked"  # in place of a print
# What older records lack: it is taken to be as it is now.
LATER = ("exact", "data_exact", "model", "own_attacks_sha256", "attacks_sha256", "search")
# Prints that tell less, and those that decide where both are there.
REPLACED = {"sha256": "exact", "data_sha256": "data_exact", "model_sha256": "model"}


def exact(values: Tensor) -> str:
    """Type, shape and SHA-256 of all bytes; and whether it holds 8-bit pixels and nothing else."""
    grid = values.dtype == torch.uint8
    if values.is_floating_point():
        grid = torch.equal(((values.float() * 255).round() / 255).to(values.dtype), values)
    kind = str(values.dtype).removeprefix("torch.")
    sha256 = hashlib.sha256(_bytes(values)).hexdigest()
    return f"{kind} {list(values.shape)}{' 8-bit' if grid else ''} {sha256}"


def data_print(images: Tensor, labels: Tensor) -> dict[str, Any]:
    """What a record says of images ``[N, C, H, W]`` and labels ``[N]``, whatever device has them.

    ``sha256``, of 8-bit pixels, is what older versions told them apart by.
    """
    both = f"{exact(images)}, labels {exact(labels)}"
    return {"n": len(images), "sha256": fingerprint(images), "exact": both}


@torch.no_grad()
def identity(model: nn.Module, x: Tensor, index: Tensor | None = None) -> dict[str, Any]:
    """What tells a model from others: a print of what it keeps and is, and what it answers.

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]``; the first :data:`ASKED` are asked, clean and under noise.
        index: of the images, int64 ``[N]``; by default their places.

    Returns:
        ``{"sha256", "answers"}``; a text of logits, of six digits each, per asked image. The print
        is :data:`CHANGING` if the second call finds another one than it leaves.
    """
    few = x[:ASKED]
    # Of a random model two draws are asked: 0 of the clean images, 1 of the noisy ones.
    index = torch.arange(len(few)) if index is None else index[:ASKED]
    noise = torch.rand(few.shape, generator=keyed(0, ASKED), dtype=torch.float32).to(few) * 2 - 1
    for counts in (True, False):  # only of a model whose calls change it they are left out
        logits, prints = [], []
        with evaluating(model):
            for draw, z in enumerate((few, (few + NOISE * noise).clamp(0, 1))):
                logits.append(ask(model, z, index=index, draw=draw))
                prints.append(model_print(model, counts=counts))  # the first call may fill a cache
        if prints[0] == prints[1]:
            break
    else:
        prints = [CHANGING]
        warn("model: its own calls change what it keeps; no record of it can be gone on with")
    answers = [" ".join(f"{value:.6g}" for value in row) for row in torch.cat(logits).tolist()]
    return {"sha256": prints[0], "answers": answers}


def unlike(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """Why an :func:`identity` is not one that is stored; empty if it is the same.

    Answers may differ by a thousandth, those to fewer than half of the images by more: processors
    round differently, and where a model rounds itself (JPEG, steps along a sign) an answer jumps.
    """
    if now["sha256"] == CHANGING:
        return "it keeps what its own calls change; let counts be whole numbers named like _calls"
    if now["sha256"] != then["sha256"]:
        return "its weights, other values, or code differ"
    ours, theirs = ([text.split() for text in found["answers"]] for found in (now, then))
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        return "it answers in another shape"
    gaps = []
    for row in zip(ours, theirs, strict=True):
        unequal = [(float(a), float(b)) for a, b in zip(*row, strict=True) if a != b]
        if not all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) for a, b in unequal):
            gaps.append(max(abs(a - b) if math.isfinite(a - b) else math.inf for a, b in unequal))
    if 2 * len(gaps) < max(len(ours), 1):
        return ""
    return f"it answers otherwise: logits differ by up to {max(gaps):.2g}"


def differences(about: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Names of the parts of an account that a stored one tells otherwise.

    What an older version did not write (:data:`LATER`) is taken to be as it is now. It told images
    apart by their 8-bit pixels, so those that lie between are refused.
    """
    found = []
    for name, value in about.items():
        then = old.get(name)
        if name in LATER and name not in old:
            if name.endswith("exact") and " 8-bit" not in value:
                found.append(f"{name} (an older version told images apart by 8-bit pixels only)")
        elif name == "model" and isinstance(value, Mapping) and isinstance(then, Mapping):
            found += [f"model ({why})"] if (why := unlike(value, then)) else []
        elif isinstance(value, Mapping) and isinstance(then, Mapping):
            more = then.keys() - value.keys()
            found += [name] if more or differences(value, then) else []
        elif value != then:
            found.append(name)
    # A print that tells less may be another where nothing is: it holds bytecode.
    same = (about.keys() & old.keys()) - {name.split()[0] for name in found}
    return [name for name in found if REPLACED.get(name) not in same]


def model_print(model: object, trained: nn.Module | None = None, *, counts: bool = True) -> str:
    """SHA-256 of all that a model keeps and of the code that it runs.

    Weights and buffers of ``trained`` count by shape, type, and whether they are frozen: what is
    trained changes them.

    Tensors and arrays wherever it keeps them, other values, what functions close over, and the
    source of classes and functions that are neither torch's nor this package's. What has no source,
    and what cannot be looked into, counts by the name of its type. Without ``counts`` whole numbers
    that are private, global or closed over are left out: a model may count its calls there.
    """
    return _Printer(trained, counts).of(model).hex()


_OWN = ("torch", "torchvision", "apudae")  # of these the names tell the code
_STANDARD = sys.stdlib_module_names - {"builtins"}  # what is made by `exec` says it is from there
_BY_ATTRIBUTES = {"functools", "types"}  # all else of it is looked at as pickle does
_PLAIN = (int, float, complex, str, bytes, bytearray)
_WRITTEN_IN_PYTHON = 1 << 9  # or at least not a type of the interpreter itself
_SKIP = {"training", "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"}
_CLOSED = ("torch._", "torch.fx", "torch.jit")  # machinery that nothing is said of
_FUNCTIONS = (types.FunctionType, staticmethod, classmethod, property)


class _Printer:
    """Digests of objects, each looked at once; one that contains itself counts by its type."""

    def __init__(self, trained: nn.Module | None, counts: bool) -> None:
        self.counts = counts
        changing = () if trained is None else (*trained.parameters(), *trained.buffers())
        self.changing = {id(value) for value in changing}
        self.known: dict[int, bytes] = {}
        self.alive: list[object] = []  # so that no number of an object is used again

    def of(self, value: object) -> bytes:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if value is None or kind in (bool, int, float, complex, str, bytes, torch.dtype):
            return _hash(name, repr(value))
        if id(value) not in self.known:
            self.alive.append(value)
            self.known[id(value)], found = _hash(name), []
            try:
                found.extend(self.parts(value))
            except Exception:  # a foreign object may raise anything
                found.append("closed")
            self.known[id(value)] = _hash(name, *found)
        return self.known[id(value)]

    def parts(self, value: Any) -> Iterator[str | bytes]:
        """What tells an object from others of its type."""
        if id(value) in self.changing:
            yield f"{value.dtype} {list(value.shape)} {value.requires_grad}"
        elif isinstance(value, Tensor):
            yield str(value.dtype)
            for part in _dense(value):
                yield str(list(part.shape))
                yield _bytes(part)
            yield str(list(value.shape))
            yield from self.attributes(value, private=False)  # those are the compiler's
        elif isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            yield from (value.dtype.str, str(value.shape), value.tobytes())
        elif isinstance(value, np.ndarray):
            yield from (str(value.shape), self.of(value.tolist()))
        elif isinstance(value, type):
            yield from self.kind(value)
        elif isinstance(value, (staticmethod, classmethod, types.MethodType)):
            yield from (self.of(value.__func__), self.of(getattr(value, "__self__", None)))
        elif isinstance(value, property):
            yield from map(self.of, (value.fget, value.fset))
        elif isinstance(value, functools.partial):
            yield from map(self.of, (value.func, value.args, value.keywords))
        elif isinstance(value, types.FunctionType):
            yield from self.function(value)
            yield from self.attributes(value)
        elif hasattr(type(value), "cache_info"):  # of lru_cache
            yield self.of(value.__wrapped__)
        elif isinstance(value, types.BuiltinFunctionType | np.ufunc):
            yield getattr(value, "__qualname__", value.__name__)
        elif isinstance(value, Enum):
            yield value.name
        elif isinstance(value, (set, frozenset)):
            yield from sorted(map(self.of, value))
        elif isinstance(value, types.ModuleType):
            yield value.__name__
            if _foreign(value.__name__) and "-packages" not in (value.__file__ or ""):
                yield inspect.getsource(value)
        else:
            yield from self.content(value)

    def content(self, value: Any) -> Iterator[str | bytes]:
        """Of a container or an object: its type's code, its items, its attributes."""
        kind = type(value)
        yield from self.kind(kind)
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from (self.of(key), self.of(item))
        elif isinstance(value, (list, tuple)) or kind.__module__ == "collections":
            yield from map(self.of, value)
        elif base := next((base for base in _PLAIN if isinstance(value, base)), None):
            yield repr(base(value))
        if isinstance(value, nn.Module):
            yield from map(self.of, _hidden(value))
        elif kind.__module__.partition(".")[0] in _STANDARD - _BY_ATTRIBUTES:
            if kind.__module__ != "random":  # a state that moves with each draw
                reduce = copyreg.dispatch_table.get(kind, lambda value: value.__reduce_ex__(2))
                yield from map(self.of, reduce(value)[1:3])
            return
        if kind.__module__.startswith(_CLOSED):
            yield self.of(list(getattr(value, "_modules", {}).items()))
            return
        yield from self.attributes(value)

    def attributes(self, value: Any, private: bool = True) -> Iterator[str | bytes]:
        """Of any object, in slots too; without ``private`` only those of public names."""
        slots = {name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())}
        inner = {k: getattr(value, k) for k in slots if hasattr(value, k)}
        for key, item in sorted((inner | getattr(value, "__dict__", {})).items()):
            if key in _SKIP or (key.startswith("_") and (not private or self.skips(item))):
                continue
            if "hooks" in key and isinstance(item, Mapping):  # their keys count up
                item = list(item.values())
            yield from (key, self.of(item))

    def kind(self, kind: type) -> Iterator[str | bytes]:
        """Of a class: what it and its bases are called, and define if they are foreign."""
        for base in kind.__mro__:
            yield f"{base.__module__}.{base.__qualname__}"
            if not _foreign(base.__module__) or not base.__flags__ & _WRITTEN_IN_PYTHON:
                continue
            for key, item in sorted(vars(base).items()):
                special = key.startswith("__") and not isinstance(item, _FUNCTIONS)
                if key not in _SKIP and not special and not self.skips(item):
                    yield from (key, self.of(item))

    def function(self, value: types.FunctionType) -> Iterator[str | bytes]:
        """Of a function: its source, defaults, what it closes over and takes from its module."""
        yield value.__qualname__
        yield from map(self.of, (value.__defaults__, value.__kwdefaults__))
        for cell in value.__closure__ or ():
            item = None
            with suppress(ValueError):  # it is empty
                item = cell.cell_contents
            yield b"" if self.skips(item) else self.of(item)
        if not _foreign(value.__module__ or ""):
            return
        source = ""
        with suppress(OSError, TypeError, SyntaxError):  # there is none
            source = inspect.getsource(value)
        yield source
        if value.__name__ == "<lambda>":  # there may be several in a line
            places = [place for place in value.__code__.co_positions() if None not in place]
            yield str((min(p[2] for p in places), max(p[3] for p in places)))
        for name in sorted(_names(value.__code__) & value.__globals__.keys()):
            item = value.__globals__[name]
            if not self.skips(item):
                yield from (name, self.of(item))

    def skips(self, item: object) -> bool:
        """Whether a value is one that may but count."""
        return not self.counts and _counts(item)


def _hash(*parts: str | bytes) -> bytes:
    whole = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.digest()


def _bytes(values: Tensor) -> bytes:
    plain = values.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()


def _dense(values: Tensor) -> list[Tensor]:
    """Strided tensors that tell all of one, whatever its layout."""
    if values.is_nested:
        return list(values.unbind())
    if values.is_quantized:
        return [values.int_repr(), values.dequantize()]
    if values.layout == torch.sparse_coo:
        values = values.coalesce()
        return [values.indices(), values.values()]
    if values.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [values.crow_indices(), values.col_indices(), values.values()]
    if values.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [values.ccol_indices(), values.row_indices(), values.values()]
    return [values.to_dense()]


def _hidden(module: nn.Module) -> list[object]:
    """What a module keeps beside its attributes: code and values in C++, packed or extra state."""
    found: list[object] = []
    if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        found.append(re.sub(r"___torch_mangle_\d+", "", getattr(module, "code", "")))
    if isinstance(module, torch.jit.ScriptModule):
        used = sorted(set(re.findall(r"\w+", found[0])) - _SKIP)
        found += [getattr(module, name) for name in used if hasattr(module, name)]
        with suppress(Exception):  # not every one has constants
            found.append(module.code_with_constants[1].const_mapping)
    with suppress(Exception):  # somebody's own extra state
        state, inner = module.state_dict(keep_vars=True), dict(module.named_children())
        found += [v for k, v in state.items() if k.partition(".")[0] not in inner]
    return found


def _foreign(module: str) -> bool:
    return module.partition(".")[0] not in {*_OWN, *_STANDARD}


def _counts(value: object) -> bool:
    """Whether there are but whole numbers in a value: it may be a count of calls."""
    if isinstance(value, (dict, list, tuple, set)):
        return all(map(_counts, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not isinstance(value, bool)


def _names(code: types.CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
