"""The classifier inside a model, found while it runs.

Whoever has a model has its parts, too. Votes, memories, detours and stops are mostly put round a
classifier that is a module of its own; its gradient is there, whatever is done to its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ..core.calling import ask, bounded
from .adaptive import Exact, Surrogate, Uncut


def inner_classifiers(
    model: nn.Module,
    x: Tensor,
    index: Tensor | None = None,
    y: Tensor | None = None,
    *,
    skip: Sequence[nn.Module] = (),
) -> list[nn.Module]:
    """Modules that run inside a model and give logits for images of the same shape.

    The innermost come first. Modules need not be registered: one that a function calls
    is found, too. There are none in a model that fails, or in one of TorchScript.

    Args:
        model: images -> logits.
        x: a few images ``[N, C, H, W]``.
        index: of the images.
        y: int64 labels that will be attacked: what lacks a class of them is no classifier.
        skip: modules that do not count, nor do copies of them.
    """
    found: list[nn.Module] = []
    depth: list[nn.Module] = []

    def seen(module: nn.Module, inputs: tuple, out: object) -> None:
        given = inputs[0] if inputs else None
        like = isinstance(given, Tensor) and given.ndim == 4 and given.shape[1:] == x.shape[1:]
        fits = isinstance(out, Tensor) and out.ndim == 2 and like and len(out) == len(given)
        if fits and out.is_floating_point() and out.shape[1] in widths:
            depth.append(module)

    with torch.no_grad():
        classes = ask(model, x, index=index).shape[1]
        widths = {classes, classes - 1} - {1}  # one class more may mean "I do not say"
        widths -= {classes - 1} if y is not None and bool((y >= classes - 1).any()) else set()
        with register_module_forward_hook(seen):
            ask(model, x, index=index)
    alike = {_key(module) for module in skip}
    for module in depth:
        if module is not model and _key(module) not in alike:
            alike.add(_key(module))
            found.append(module)
    return found


def _key(module: nn.Module) -> tuple[type, tuple[int, ...]]:
    return type(module), tuple(map(id, module.parameters()))


class Inside(Exact):
    """What a module inside a model says in one pass, and its gradient.

    Where it is asked several times, as for a vote, these are the logits of its mean probabilities:
    calls that have fallen weigh no more, and those near the border do.

    Args:
        model: images -> logits, whose answers count.
        inner: a module that runs inside it, see :func:`inner_classifiers`.
    """

    def __init__(self, model: nn.Module, inner: nn.Module) -> None:
        super().__init__(model)
        self.inner, self.alone = inner, Uncut(inner)

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        heard: list[Tensor] = []

        def hear(module: nn.Module, inputs: tuple, out: Tensor) -> None:
            if len(out) % len(x) == 0 and out.requires_grad:
                heard.append(bounded(out))

        with self.inner.register_forward_hook(hear):
            ask(self.model, x, draw=self.number(turn))
        whole = [out for out in heard if len(out) == len(x)]
        # Whole where the gradient leads to the images; else as if it had been given these.
        if whole and _leads(whole[-1], x):
            yield torch.stack(whole).log_softmax(2).logsumexp(0), False
        else:
            yield from ((said, False) for said, _ in self.alone.looks(x, turn))


def _leads(logits: Tensor, x: Tensor) -> bool:
    """Whether logits have a gradient of the images."""
    options = {"retain_graph": True, "allow_unused": True}
    try:
        (slope,) = torch.autograd.grad(logits.sum(), x, **options)
    except RuntimeError:
        return False
    return slope is not None and bool(slope.any())


def views_of(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    skip: Sequence[nn.Module] = (),
    most: int = 2,
) -> dict[str, nn.Module]:
    """Views along the classifiers inside a model, by name; empty where none is found.

    Each follows the classifier as if it were given the images themselves, and, where a gradient
    leads through what stands before it, as the model calls it.
    """
    try:
        inner = inner_classifiers(model, x[:2], y=y, skip=skip)
    except (RuntimeError, ValueError):
        return {}
    views: dict[str, nn.Module] = {}
    for k, module in enumerate(inner[:most]):
        name = type(module).__name__ + (f" {k + 1}" if k else "")
        views[f"inside: {name}"] = Surrogate(model, Uncut(module))
        if any(part is module for part in model.modules()):
            views[f"inside: {name}, as called"] = Inside(model, module)
    return views
