"""Answers that depend on more than the image: on the queries before, or on the batch round it.

An attacker has the model, and may ask a fresh copy of it about one image at a time. Where answers
depend on more, the protocol asks so, too.

- :func:`spare`: a copy of a model, as it is now
- :func:`remembers`, :func:`sees_neighbours`: whether answers depend on the past, on the batch
- :class:`Isolated`, :func:`isolated`: a model of which neither is true
"""

from __future__ import annotations

import copy
import random as drawing
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.calling import ask, bounded, evaluating, takes_keys
from ..core.norms import uniforms
from ..purification.purifier import Defended, Purifier

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, drawing.Random)
_FEW, _HALVINGS = 8, 7
PAST, BATCH = "answers depend on the past", "answers depend on the batch"


def spare(model: nn.Module) -> nn.Module | None:
    """A copy of a model as it is now, in evaluation mode; None where it cannot be copied.

    What it keeps is the copy's own. Parameters are shared, and random generators, too: a copy of
    one would draw the same again.
    """
    kept = [part for module in model.modules() for part in vars(module).values()]
    shared = [*model.parameters(), *(part for part in kept if isinstance(part, _GENERATORS))]
    try:
        found = copy.deepcopy(model, {id(part): part for part in shared})
    except Exception:  # locks, files, whatever a foreign module holds
        return None
    with_modes = isinstance(found, nn.Module) and not isinstance(found, torch.jit.ScriptModule)
    return found.eval() if with_modes else None


class Isolated(nn.Module):
    """A model that is asked about one image at a time.

    Args:
        model: images -> logits, or a purifier, images -> images.
        fresh: ask a fresh copy each time.
    """

    def __init__(self, model: nn.Module, fresh: bool) -> None:
        super().__init__()
        self.model, self.fresh = model, fresh

    def forward(self, x: Tensor, **keys: Any) -> Tensor:
        index, parts = keys.get("index"), []
        for k in range(len(x)):
            one = slice(k, k + 1)
            mine = keys if index is None or len(index) == 1 else keys | {"index": index[one]}
            model = spare(self.model) if self.fresh else self.model
            parts.append(model(x[one], **mine))
        return torch.cat(parts) if parts else self.model(x, **keys)


class _Keyed(Isolated):
    """One whose random draws can be named."""

    def forward(self, x: Tensor, index: Tensor | None = None, draw: int = 0) -> Tensor:
        return super().forward(x, index=index, draw=draw)


def isolated(
    model: nn.Module, kept: nn.Module | None, x: Tensor, index: Tensor
) -> tuple[nn.Module, dict[str, str]]:
    """The model as it is to be attacked, and which rules are raised, with what was seen.

    Args:
        model: images -> logits.
        kept: a :func:`spare` copy of it, made before it was asked.
        x: some images ``[N, C, H, W]``.
        index: of the images.
    """
    found, past = {}, kept is not None and remembers(kept, x, index)
    if past:
        found[PAST] = "a fresh copy gives other ones"
    if sees_neighbours(kept if past else model, x, index, fresh=past):
        found[BATCH] = "with other neighbours they are others"
    if not found:
        return model, found
    able = True
    for whole in (False, True):
        candidate = _wrapped(_emptied(kept, x, index) if past else model, past, whole)
        try:
            past_left = past and remembers(candidate, x, index)
            able = not past_left and not sees_neighbours(candidate, x, index)
        except ValueError:  # no answer to one image
            able = False
        if able:
            told = "fresh copies are" if past else "each image alone is"
            return candidate, {
                k: f"{seen}; {told} attacked and scored" for k, seen in found.items()
            }
    told = "it cannot be asked without that, so the number is not to be trusted"
    return model, {k: f"{seen}; {told}" for k, seen in found.items()}


def _wrapped(model: nn.Module, fresh: bool, whole: bool) -> nn.Module:
    """The parts of a defended classifier each for itself, so that they can be attacked."""
    if isinstance(model, Defended) and not whole:
        purifier = model.purifier
        if not isinstance(purifier, Purifier):
            purifier = _wrapped(purifier, fresh, True)
        return Defended(_wrapped(model.classifier, fresh, True), purifier, draws=model.draws)
    return (_Keyed if takes_keys(model) else Isolated)(model, fresh)


@torch.no_grad()
def remembers(model: nn.Module, x: Tensor, index: Tensor) -> bool:
    """Whether a model answers otherwise when it was asked about near duplicates before.

    Copies of it are asked about images close to the border between two classes; some were asked
    before about images on the other side of it, a few grey levels away. What changes after
    unrelated queries, too, is not called a memory: a model that draws numbers does that.
    """
    x, index = x[:_FEW], index[:_FEW]
    with evaluating(model):

        def after(history: list[Tensor], z: Tensor) -> Tensor:
            one = spare(model)
            if one is None:
                raise ValueError("model: it cannot be copied")
            for before in history:
                ask(one, before, index=index)
            return ask(one, z, index=index)

        shape = tuple(x.shape[1:])
        noise = [uniforms(shape, index, 3, k, device=x.device).to(x.dtype) for k in range(3)]
        other = x.roll(1, 0) if len(x) > 1 else noise[0]
        try:
            first = after([], x)
            if _changed(first, after([], x)).any():
                return False  # it draws by itself
            near, far, label = x, other, first.argmax(1)
            for _ in range(_HALVINGS):
                middle = (near + far) / 2
                same = (after([], middle).argmax(1) == label)[:, None, None, None]
                near, far = torch.where(same, middle, near), torch.where(same, far, middle)
            for z, history in ((far, [x, (x + near) / 2, near]), (x, [far, near, x])):
                fresh = after([], z)
                if _changed(fresh, after(history, z)).any():
                    return not _changed(fresh, after(noise, z)).any()
        except (ValueError, RuntimeError):
            return False
    return False


@torch.no_grad()
def sees_neighbours(model: nn.Module, x: Tensor, index: Tensor, *, fresh: bool = False) -> bool:
    """Whether images get other logits among other neighbours.

    These are other images, mixtures, noise, and copies of the image itself. The batch has the same
    size and the images the same place in it, so that nothing is rounded otherwise. More than a
    quarter of the first eight images must change. ``fresh`` asks a copy of the model each time.
    """
    x, index = x[:_FEW], index[:_FEW]
    noise = uniforms(tuple(x.shape[1:]), index, 4, 0, device=x.device).to(x.dtype)
    keys, n = torch.cat([index, index]), len(x)
    with evaluating(model):

        def of(first: Tensor, second: Tensor) -> Tensor:
            return ask(spare(model) if fresh else model, torch.cat([first, second]), index=keys)

        left, right = of(x, x.flip(0))[:n], of(x.flip(0), x)[n:]
        moved = torch.zeros(n, dtype=torch.bool, device=x.device)
        for other in ((x + x.roll(1, 0)) / 2, (x + noise) / 2, noise):
            moved |= _changed(left, of(x, other)[:n]) | _changed(right, of(other, x)[n:])
        alike = [of(*[z.expand_as(x)] * 2)[k : k + 1] for k, z in enumerate(x.split(1))]
        moved |= _changed(left, torch.cat(alike))
        steady = not _changed(left, of(x, x.flip(0))[:n]).any()  # else it draws by itself
    return steady and moved.double().mean().item() > 0.25


def _changed(one: Tensor, other: Tensor) -> Tensor:
    """Which images got other logits, by more than a hundredth of their spread, bool ``[N]``."""
    able = (one == bounded(one)) & (other == bounded(other))
    spread = one.amax(1) - one.where(able, torch.inf).amin(1)
    return (one - other).where(able, 0).abs().amax(1) > 0.01 * spread


@torch.no_grad()
def _emptied(kept: nn.Module, x: Tensor, index: Tensor) -> nn.Module:
    """A copy without its memory: what grows when it is asked; as it is where that fails."""
    x, index = x[:_FEW], index[:_FEW]
    asked, empty = spare(kept), spare(kept)
    for z in (x, 1 - x):
        ask(asked, z, index=index)
    for before, after in zip(empty.modules(), asked.modules(), strict=True):
        held, grown = ({**vars(m), **dict(m.named_buffers(recurse=False))} for m in (before, after))
        for name in held.keys() & grown.keys() - _OF_TORCH:
            old, new = held[name], grown[name]
            if type(old) is type(new) and isinstance(new, _SIZED) and _size(new) > _size(old):
                setattr(before, name, old[:0] if isinstance(old, Tensor) else type(old)())
    try:
        fine = bool(ask(spare(empty), x, index=index).isfinite().all())
    except (ValueError, RuntimeError):
        fine = False
    return empty if fine else kept


_OF_TORCH = frozenset(vars(nn.Module()))  # what every module has
_SIZED = (list, dict, set, deque, Tensor)


def _size(value: Any) -> int:
    return 0 if isinstance(value, Tensor) and value.ndim == 0 else len(value)
