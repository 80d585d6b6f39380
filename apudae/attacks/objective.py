"""What an attack asks of a model, and what it keeps.

- :class:`View`: a model as an attacker sees it; :class:`Objective`: losses and image gradients of
  a model or a view
- :class:`Best`: each image's strongest iterate
- :func:`logits`: a model that returns more than its logits, as one that does not
- :func:`check_attack`, :func:`by_chunk`, :func:`fitting`, :func:`check_inside`: what every attack
  does before, around and after
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ..core.arguments import (
    check_choice,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_mask,
    check_module,
    check_number,
    odd,
    require,
    warn,
)
from ..core.calling import (
    MEMORY,
    ModelError,
    evaluating,
    logits_of,
    looks_like_probabilities,
    telling,
    warn_if_training,
    within,
)
from ..core.norms import Ball, check_norm, length, within_reach
from .losses import LOSSES

Loss = Callable[[Tensor, slice], Tensor]  # of logits [N, K] of a part of the images, theirs [N]


class View(nn.Module):
    """A model as an attacker sees it: the model's own answers, another gradient.

    Attacks take it like any model, and judge their images by what the model itself answers. Only
    the gradient differs: it is the mean of those of :meth:`looks`. The views of this package are
    in :mod:`apudae.attacks`.
    """

    draws_anew = True  # whether looks differ from turn to turn, if the model is random
    noisy = False  # whether values of different turns are of different draws
    rough = False  # whether answers are rounded: who falls by them is asked again, exactly

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        """Logits ``[N, K]`` to be differentiated, one after the other.

        With each, whether it is the model's own answer, so that it need not be asked again.
        ``turn`` counts the attack's queries: a random model draws anew at each.
        """
        raise TypeError(f"{type(self).__name__} does not say what it differentiates")

    def answers(self, x: Tensor, turn: int) -> Iterator[Tensor]:
        """The model's own logits: one, or several draws of a random model."""
        yield self(x)

    def exactly(self, x: Tensor, turn: int) -> Iterator[Tensor]:
        """:meth:`answers`, of a view whose answers are rough in full precision."""
        yield from self.answers(x, turn)

    def penalty(self, x: Tensor) -> Tensor | None:
        """What the attacker also wants small, ``[N]``, subtracted from the loss."""
        return None


class _Plain(View):
    """A model that is seen as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model, x)

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        yield self(x), True


class Objective:
    """A model under attack: losses to raise, who has fallen, gradients of the images.

    Args:
        model: images -> logits. Half-precision models are fed in their own type; losses are
            computed in float32 or better.
        loss: one of :data:`apudae.attacks.LOSSES`.
        targeted: the labels are to be reached: the loss is turned round.
    """

    def __init__(self, model: nn.Module, loss: str = "ce", targeted: bool = False) -> None:
        check_choice(loss, LOSSES, "loss")
        self.model, self.targeted = model, targeted
        self.view = model if isinstance(model, View) else _Plain(model)
        self.classes = 0  # known from the first logits on
        self.size = 0  # images per pass; 0 for all at once
        self._loss, self._turn = LOSSES[loss], 0  # the turn counts the queries of a block
        self._nan: Tensor | bool = False
        self._all_labels: Tensor | None = None

    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits ``[N, K]``; the first are checked against the labels."""
        return self._checked(self.view(x), y)

    def others(self, x: Tensor, y: Tensor, count: int) -> Tensor:
        """The classes that the model finds likeliest after ``y``, ``count`` at most: ``[N, K]``."""
        logits = torch.cat([self.logits(x[part], y[part]) for part in self._parts(x)])
        order = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
        return order[:, : min(count, logits.shape[1] - 1)]

    def value(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss to raise ``[N]`` and whether each image has fallen, bool ``[N]``.

        Of several draws of a random model: the mean loss, and whether most of them are misread.
        """
        with torch.no_grad():
            return self._turned(
                self._answer(x[part], y[part], None, [], self.view.penalty(x[part]))
                for part in self._parts(x)
            )

    def gradient(
        self, x: Tensor, y: Tensor, loss: Loss | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`value`, and the gradient with respect to each image, ``[N, C, H, W]``.

        The losses are summed, not averaged: an image's gradient must not shrink with its batch.
        Only the images get one; parameters are not asked. ``loss`` (logits of a part of the
        images, which part -> ``[N]``) is what the gradient is taken of, if not the loss itself.
        """
        with within(MEMORY, _memory(x.device)):
            return self._turned(
                self._gradient(x[part], y[part], loss and partial(loss, part=part))
                for part in self._parts(x)
            )

    def at(self, turn: int) -> None:
        """Go on as if so many queries had been asked: draws and directions are keyed by it."""
        self._turn = turn

    def _parts(self, x: Tensor) -> list[slice]:
        """Passes of at most ``size`` images, all about as large."""
        passes = max(math.ceil(len(x) / self.size), 1) if self.size else 1
        most = math.ceil(len(x) / passes)
        return [slice(k * most, (k + 1) * most) for k in range(passes)]

    def _turned(self, parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The end of a turn: what it gave for all images."""
        whole = [torch.cat(part) for part in zip(*parts, strict=True)]
        self._turn += 1
        return tuple(whole)

    def _gradient(
        self, x: Tensor, y: Tensor, loss: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, gradients, judged = x.detach().requires_grad_(True), [], []
        with torch.enable_grad():
            for logits, own in self.view.looks(x, self._turn):  # one graph at a time
                value, fell = self._judge(self._checked(logits, y), y, loss)
                gradients.append(gradient_of(value.sum(), x))
                if own:
                    judged.append((value.detach(), fell))
            penalty = self.view.penalty(x)
            gradient = gradients[0] if len(gradients) == 1 else sum(gradients) / len(gradients)
            if penalty is not None:
                gradient = gradient - gradient_of(penalty.sum(), x)
        # The largest of several numbers is NaN if one of them is: one pass, nothing allocated.
        self._nan = self._nan | gradient.amax().isnan()
        with torch.no_grad():
            return *self._answer(x.detach(), y, loss, judged, penalty), gradient

    def _checked(self, logits: Tensor, y: Tensor) -> Tensor:
        if not self.classes:
            check_logits(logits, y)
            if self._all_labels is not None:
                check_labels(self._all_labels, len(self._all_labels), classes=logits.shape[1])
            if looks_like_probabilities(logits):
                warn(
                    "model: its outputs look like probabilities (none negative, each row sums to "
                    "1). Attacks need logits: where a softmax is sure of itself its outputs hardly "
                    "move, whatever the loss, so the attack can be much weaker and the accuracy "
                    "you measure too high. Return the values before the softmax."
                )
            self.classes = logits.shape[1]
        # Of +inf the cross-entropy and the margin have no slope: an attack would stop in silence.
        self._nan = self._nan | (logits.detach().amax() == torch.inf)
        return logits

    def _answer(
        self,
        x: Tensor,
        y: Tensor,
        loss: Callable[[Tensor], Tensor] | None,
        judged: list,
        penalty: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What the model's own answers come to; it is asked if none was ``judged``."""
        if not judged:
            answers = self.view.answers(x, self._turn)
            judged = [self._judge(self._checked(logits, y), y, loss) for logits in answers]
        value, fell = judged[0]
        if len(judged) > 1:
            values, falls = (torch.stack(part) for part in zip(*judged, strict=True))
            value, fell = values.mean(0), falls.float().mean(0) > 0.5
        elif self.view.rough and fell.any():
            (logits,) = self.view.exactly(x[fell], self._turn)
            fell = fell.masked_scatter(fell, self._falls(logits, y[fell]))
        value = value if penalty is None else value - penalty
        self._nan = self._nan | value.isnan().any()
        return value, fell

    def _judge(
        self, logits: Tensor, y: Tensor, loss: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        fell = self._falls(logits, y)
        if loss:
            return loss(logits), fell
        value = self._loss(logits, y)
        return (-value if self.targeted else value), fell

    def _falls(self, logits: Tensor, y: Tensor) -> Tensor:
        return (logits.argmax(1) == y) == self.targeted


def _memory(device: torch.device) -> int:
    """Bytes of graph that purifiers may keep for the way back: a gibibyte, more on a GPU."""
    whole = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory
    return max(2**30, whole // 4)


def gradient_of(loss: Tensor, x: Tensor, *, retain: bool = False) -> Tensor:
    """∂loss/∂x; ``ValueError`` if the model cut the images off from its logits, or has no slope."""
    gradient = None
    if loss.requires_grad:
        with telling(lambda: "model: autograd cannot differentiate it; try BPDA"):
            (gradient,) = torch.autograd.grad(loss, x, retain_graph=retain, allow_unused=True)
    require(gradient is not None, "model: the logits carry no gradient of the images")
    return gradient


class Best:
    """Each image's strongest iterate so far: one that fell before one that stands, then by loss."""

    def __init__(self, x: Tensor) -> None:
        self.images = x.clone()
        self.score = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        self.fallen = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def offer(self, place: Tensor, images: Tensor, score: Tensor, fell: Tensor) -> None:
        """Take those of ``images`` (at ``place``, ascending) that are stronger than the kept."""
        was, score = self.fallen[place], score.double()
        better = (fell & ~was) | ((fell == was) & (score > self.score[place]))
        self.images[place[better]] = images[better]
        self.score[place[better]] = score[better]
        self.fallen[place[better]] = fell[better]

    def places(self, *, standing: bool) -> Tensor:
        """Places of all images, or only of those that still stand."""
        return (~self.fallen | (not standing)).nonzero().flatten()


def beyond_all(eps: float, norm: str, x: Tensor) -> str:
    """That a radius holds all images there are, and what may be meant; or nothing."""
    if not len(x) or not math.inf > eps > (most := within_reach(eps, norm, x)):
        return ""
    hint = f"; did you mean {eps:g} / 255?" if eps <= 255 else ""
    return f"{eps:g} is more than any two images differ by, {most:.3g} in {norm}{hint}"


def check_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: str,
    *,
    mask: Tensor | None = None,
    unbounded: bool = False,
    index: Tensor | None = None,
    batch_size: int | None = None,
    **counts: int,
) -> Ball:
    """The ball that is searched, after checks of what every attack is given.

    ``unbounded`` lets ε be infinite; ``counts`` (steps, restarts, ...) must be integers ≥ 1. Draws
    a warning of a model in training mode.

    Raises:
        ValueError: what no attack can use.
    """
    check_module(model)
    check_images(x)
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"x: expected float32 or float64 images, got {x.dtype}, in which a pixel "
            "is rounded by up to 1/512; a model in half precision is fed in its own type"
        )
    check_labels(y, len(x))
    if y.device != x.device:
        raise ValueError(f"y: expected labels on {x.device}, where the images are, got {y.device}")
    if not (unbounded and eps == float("inf")):
        check_number(eps, "eps")
    check_norm(norm)
    if told := beyond_all(eps, norm, x):
        warn(f"eps: {told}")
    for name, value in counts.items():
        check_count(value, name)
    if batch_size is not None:
        check_count(batch_size, "batch_size")
    if index is not None:
        check_labels(index, len(x), name="index")
    warn_if_training(model)
    return Ball(x.detach(), eps, norm, None if mask is None else check_mask(mask, x))


def by_chunk(
    attack: Callable[[Ball, Tensor, Tensor], Tensor],
    objective: Objective,
    ball: Ball,
    y: Tensor,
    *,
    index: Tensor | None = None,
    batch_size: int | None = None,
    packed: bool = False,
) -> Tensor:
    """Run ``attack(ball, labels, index)`` on chunks, the model in evaluation mode.

    ``index`` keys each image's random draws; by default its place in the batch. Where the ball's
    radius is 0 there is nothing to run, and the model is only checked.

    ``packed`` is for attacks that ask by :meth:`Objective.value` and :meth:`Objective.gradient`
    alone, and leave images alone once they fell: they get many chunks at a time, and ask for those
    that are left in passes as full as they can be.
    """
    with torch.inference_mode(False), torch.no_grad(), evaluating(objective.model):
        # Copies: they may come from inference mode. The checks let pass what rounding put outside.
        x, y, keys = ball.x.detach().clamp(0, 1), y.clone(), keys_of(ball.x, index)
        if len(x) == 0:
            return x
        objective._all_labels = y  # the first logits tell whether any is too large
        ball, size, done = replace(ball, x=x), batch_size or _chunk(x), []
        if packed:
            objective.size, size = size, size * max(1, _BLOCK // (size * x[0].numel()))
        for first in range(0, len(x), size):
            part = slice(first, first + size)
            objective._turn = 0  # random draws begin where they did for the chunk before
            if ball.eps == 0:
                objective.value(x[part], y[part])
            done.append(attack(ball[part], y[part], keys[part]) if ball.eps else x[part])
        attacked = torch.cat(done)
        # An infinite gradient has a sign but no direction; it shows as NaN in the images.
        if bool(objective._nan | attacked.isnan().any()):
            raise ValueError("model: NaN or infinity in the loss or its gradient during the attack")
    return attacked


def keys_of(x: Tensor, index: Tensor | None) -> Tensor:
    """The keys of the images' random draws: ``index`` on the CPU, by default their places."""
    return torch.arange(len(x)) if index is None else index.cpu()


def fitting(images: Tensor, x: Tensor, name: str) -> Tensor:
    """What an attack returned, without its graph; ``ValueError`` if it is no images like ``x``."""
    told = f"attacks: {name!r} returned"
    require(isinstance(images, Tensor), f"{told} a {type(images).__name__}, expected images")
    require(images.device == x.device, f"{told} images on {images.device}, expected {x.device}")
    fits = not odd(images) and images.shape == x.shape and images.is_floating_point()
    what = odd(images) or f"shape {list(images.shape)} of {images.dtype}"
    require(fits, f"{told} {what}, expected {list(x.shape)} of {x.dtype}")
    return images.detach()


def check_inside(images: Tensor, ball: Ball, name: str) -> Tensor:
    """What an attack returned, without its graph.

    Raises:
        ValueError: it is no such images, or outside the ball, its mask or [0, 1].
    """
    images = fitting(images, ball.x, name)
    low, high = images.min().item(), images.max().item()
    far = length(images - ball.x, ball.norm).max().item()
    if not (low >= 0 and high <= 1 and far <= ball.eps + 1e-5):
        raise ValueError(
            f"attacks: {name!r} left the {ball.norm} ball of radius {ball.eps:g} or [0, 1]: it "
            f"went {far:.4g} far, to values in [{low:.4g}, {high:.4g}]"
        )
    beyond = int((length(images - ball.keep(images), "linf") > 1e-5).sum())
    require(not beyond, f"attacks: {name!r} changed pixels that the mask keeps, in {beyond} images")
    return images


_BLOCK = 2**25  # numbers in the images that are attacked at a time


def _chunk(x: Tensor) -> int:
    """Images per pass: on a CPU larger batches mostly move memory, on a GPU they fill it.

    The chunks are of about one size: a small rest would cost as much as a whole one.
    """
    pixels, on_cpu = x[0].numel(), x.device.type == "cpu"
    most = max(8, min(250, 2**18 // pixels)) if on_cpu else max(1, 2**23 // pixels)
    return math.ceil(len(x) / math.ceil(len(x) / most))


class _Taken(nn.Module):
    def __init__(self, model: Callable[..., object], key: str | int | None) -> None:
        super().__init__()
        self.model, self.key = model, key

    def forward(self, x: Tensor) -> Tensor:
        out, key = self.model(x), self.key
        named = isinstance(out, Mapping)
        if key is None:
            return out
        try:
            return getattr(out, key) if isinstance(key, str) and not named else out[key]
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            has = list(out) if named else type(out).__name__
            raise ModelError(f"key: the model's output has no {key!r}, it is {has}") from error


def logits(model: Callable[..., object], key: str | int | None = "logits") -> nn.Module:
    """A model of yours as attacks need it, images -> logits; gradients and modes are the model's.

    Args:
        model: a module that returns a dict, an object or a tuple with the logits in it. Or a plain
            function; of networks that it calls the mode stays as it is, so call ``.eval()``.
        key: where in the output they are: a key, an attribute, or the place in a tuple; None for
            the output itself.
    """
    require(callable(model), f"model: expected a module or a function, got {type(model).__name__}")
    return _Taken(model, key)
