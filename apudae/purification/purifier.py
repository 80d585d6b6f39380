"""What every purifier is, the direct one, and the classifier that a purifier defends.

- :class:`Purifier`: images -> images, with keyed noise and a :class:`Trajectory`
- :class:`Direct`: the DAE's output itself
- :class:`Defended`: purifier and classifier as one model, images -> logits
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.arguments import (
    check_choice,
    check_count,
    check_images,
    check_labels,
    check_number,
    check_output,
    checked,
)
from ..core.calling import (
    HALF,
    MEMORY,
    bounded,
    logits_of,
    remembering,
    takes_keys,
    unwrapped,
    within,
)
from ..core.norms import clip, normals, uniforms
from .reconstruction import check_dae, reconstruct, reconstruction_error

Watch = Callable[[Tensor], None]
_STREAMS = 2**16  # noise streams per draw: more than any number of steps, and than attacks use


class Trajectory(NamedTuple):
    """What a purifier did, step by step; the first entry is the image it was given.

    Attributes:
        images: ``[T + 1, N, C, H, W]``.
        errors: reconstruction errors ``[T + 1, N]``.
        predictions: what the classifier would read after each step, int64 ``[T + 1, N]``, or None
            where no classifier was asked.
    """

    images: Tensor
    errors: Tensor
    predictions: Tensor | None = None


class Purifier(nn.Module):
    """Images -> images in [0, 1], by means of a DAE.

    ``forward(x, index=None, draw=0)``: ``index`` are the images' numbers (int64 ``[N]``) and
    ``draw`` that of the repetition; both only matter for random purifiers.
    """

    noise: float = 0.0

    def __init__(self, dae: nn.Module, seed: int, precision: str) -> None:
        super().__init__()
        check_count(seed, "seed", minimum=0)
        check_choice(precision, ("float32", "auto"), "precision")
        self.dae, self.seed, self.precision = dae, seed, precision
        self._seen = False

    @property
    def random(self) -> bool:
        """Whether it draws noise."""
        return self.noise > 0

    def forward(self, x: Tensor, index: Tensor | None = None, draw: int = 0) -> Tensor:
        self._check(x, index, draw)
        # Steps are added up in float32 at least, whatever the images and the caller's autocast.
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        with torch.autocast(x.device.type, enabled=False):
            return clip(self._purify(wide, index, draw, None)).to(x.dtype)

    def trajectory(self, x: Tensor, index: Tensor | None = None, draw: int = 0) -> Trajectory:
        """The images and their errors before the first step and after each."""
        check_images(x)
        path = self.iterates(x, index, draw)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            errors = [self.error(z) for z in path]
        return Trajectory(torch.stack(path), torch.stack(errors))

    @torch.no_grad()
    def iterates(self, x: Tensor, index: Tensor | None = None, draw: int = 0) -> list[Tensor]:
        """The images before the first step and after each, ``[N, C, H, W]`` each."""
        self._check(x, index, draw)
        path = [x]
        with torch.autocast(x.device.type, enabled=False):
            self._purify(x, index, draw, path.append)
        return path

    def seen_by_classifier(self, z: Tensor) -> Tensor:
        """What the classifier is given when the steps have led to ``z``."""
        return z

    def reconstruct(self, x: Tensor) -> Tensor:
        """R(x), in the purifier's precision."""
        return reconstruct(self.dae, x, precision=self.precision)

    def error(self, x: Tensor) -> Tensor:
        """Reconstruction errors ``[N]``, in the purifier's precision."""
        return reconstruction_error(self.dae, x, precision=self.precision)

    def _noise(self, x: Tensor, index: Tensor | None, draw: int, step: int) -> Tensor:
        """Uniform draws in [-1, 1), ``[N or 1, C, H, W]``."""
        stream = (draw + 1) * _STREAMS + step
        draws = uniforms(tuple(x.shape[1:]), index, self.seed, stream, device=x.device)
        return 2 * draws.to(x.dtype) - 1

    def _normal(self, x: Tensor, index: Tensor | None, draw: int, step: int) -> Tensor:
        """Standard normal draws ``[N or 1, C, H, W]``, from the uniform ones."""
        return normals((self._noise(x, index, draw, step).double() + 1) / 2).to(x.dtype)

    def _check(self, x: Tensor, index: Tensor | None, draw: int) -> None:
        """Look at the keys, and once, at the first call, at the DAE's output."""
        check_count(draw, "draw", minimum=0)
        if draw >= _STREAMS - 2:
            raise ValueError(f"draw: expected less than {_STREAMS - 2}, got {draw}; change seed")
        if index is not None:
            check_labels(index, len(x), name="index")
        if len(x) and not self._seen:
            check_dae(self.dae, x[:8].detach().clamp(0, 1))
            self._seen = True


def recomputed(step: Callable[..., Any], *inputs: object, graph: bool) -> Any:
    """A step; where it will be differentiated, its graph is made again only on the way back."""
    return checkpoint(remembering(step), *inputs, use_reentrant=False) if graph else step(*inputs)


GRAPHS: WeakKeyDictionary[nn.Module, dict[object, float]] = WeakKeyDictionary()


def keepable(purifier: nn.Module, x: Tensor, step: Callable[[Tensor], Tensor]) -> int:
    """Of how many steps the graph may be kept, within :data:`~apudae.core.calling.MEMORY`.

    What is kept need not be worked out again on the way back; the numbers are the same.

    Args:
        purifier: whose step it is.
        x: images ``[N, C, H, W]`` that it walks with.
        step: an image ``[1, C, H, W]`` -> where one step leads, with its graph.
    """
    limit = MEMORY.get()
    if not limit or not len(x):
        return 0
    sizes = GRAPHS.setdefault(purifier, {})
    key = (x.shape[1:], x.dtype, x.device, HALF.get())
    if key not in sizes:
        sizes[key] = _graph_size(x[:1], step, {p.data_ptr() for p in purifier.parameters()})
    return int(limit // (sizes[key] * len(x)))


def _graph_size(x: Tensor, step: Callable[[Tensor], Tensor], weights: set[int]) -> float:
    """Bytes that autograd holds for a step of an image; infinite if it finds no way back."""
    held: dict[int, int] = {}

    def count(saved: Tensor) -> Tensor:
        held[saved.data_ptr()] = saved.untyped_storage().nbytes()
        return saved.detach()

    with torch.enable_grad():
        z = x.detach().clone().requires_grad_(True)
        try:
            with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
                end = step(z)
            del end  # its graph is one of copies: the way back is tried with another
            torch.autograd.grad(step(z).sum(), z, allow_unused=True)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return math.inf
    return float(sum(size for place, size in held.items() if place not in weights) or 1)


@checked
class Direct(Purifier):
    """Feed the classifier the DAE's output, ``x -> R(x)``, clipped to [0, 1].

    Args:
        dae: a denoising autoencoder, images -> images of the same shape.
        repeats: passes through it, ``R(R(x))`` for two.
        noise: standard deviation of Gaussian noise that is added before the first pass. The noisy
            image is not clipped, as in the DAE's training.
        seed: of that noise.
        precision: ``"float32"`` (that is, the images' own) or ``"auto"``: bfloat16 inside the DAE
            where the hardware has it.

    Raises:
        ValueError: an option out of range; a DAE whose output is not an image like its input.
    """

    def __init__(
        self,
        dae: nn.Module,
        *,
        repeats: int = 1,
        noise: float = 0.0,
        seed: int = 0,
        precision: str = "float32",
    ) -> None:
        super().__init__(dae, seed, precision)
        check_count(repeats, "repeats")
        check_number(noise, "noise")
        self.repeats, self.noise = repeats, noise

    def extra_repr(self) -> str:
        return f"repeats={self.repeats}, noise={self.noise:g}"

    def _purify(self, x: Tensor, index: Tensor | None, draw: int, watch: Watch | None) -> Tensor:
        z = x + self.noise * self._normal(x, index, draw, 0) if self.noise else x
        for _ in range(self.repeats):
            z = clip(self.reconstruct(z))
            if watch:
                watch(z)
        return z


@checked
class Defended(nn.Module):
    """A classifier behind a purifier: images -> logits, like any other model.

    Attacks on it see the whole defense. Attacks on ``.classifier`` do not know of the purifier.

    Called with the images alone, as attacks do, a random purifier replays one and the same noise
    for all images: such an attacker knows the noise, and such an accuracy is that of one draw.
    ``index`` gives each image its own, ``draw`` another one.

    Args:
        classifier: images -> logits; it stays as it is.
        purifier: images -> images, such as those of :mod:`apudae.purification` or your own. One
            whose ``forward`` takes ``index`` and ``draw`` gets them.
        draws: of a random purifier, average the class probabilities over so many draws; the logits
            are then their logarithms.
    """

    def __init__(self, classifier: nn.Module, purifier: nn.Module, *, draws: int = 1) -> None:
        super().__init__()
        check_count(draws, "draws")
        if draws > 1 and not takes_keys(purifier):
            for inner in purifier.modules():
                if isinstance(inner, Purifier) and inner.random:
                    raise ValueError(
                        f"draws: a {type(purifier).__name__} cannot hand the number of the draw on "
                        f"to the {type(inner).__name__} inside, so that all draws would be the same"
                    )
        if isinstance(unwrapped(purifier), Purifier):
            purifier = unwrapped(purifier)  # so that its steps can be asked for
        self.classifier, self.purifier, self.draws = classifier, purifier, draws

    @property
    def random(self) -> bool:
        """Whether a module in it says that it draws: those of this package do."""
        return any(getattr(m, "random", False) is True for m in self.modules() if m is not self)

    def forward(self, x: Tensor, index: Tensor | None = None, draw: int = 0) -> Tensor:
        """Logits ``[N, classes]``; ``draw`` counts the calls whose noise must differ."""
        if self.draws == 1:
            return self.classifier(self._purify(x, index, draw))
        chances = []
        for k in range(self.draws):
            with within(MEMORY, MEMORY.get() // self.draws):  # all their graphs are kept at once
                logits = self.classifier(self._purify(x, index, draw * self.draws + k))
            check_output(logits, x)
            chances.append(bounded(logits).log_softmax(1))
        return torch.stack(chances).logsumexp(0) - math.log(self.draws)

    def _purify(self, x: Tensor, index: Tensor | None, draw: int) -> Tensor:
        # Somebody else's purifier draws for itself if it draws.
        keys = {"index": index, "draw": draw} if takes_keys(self.purifier) else {}
        return self.purifier(x, **keys)

    @torch.no_grad()
    def trajectory(self, x: Tensor, index: Tensor | None = None, draw: int = 0) -> Trajectory:
        """The purifier's trajectory (of one draw), with what the classifier reads after each step.

        Raises:
            ValueError: the purifier is not one of this package and records no trajectory.
        """
        if not isinstance(self.purifier, Purifier):
            kind = type(self.purifier).__name__
            raise ValueError(f"purifier: a {kind} records no trajectory; Direct and Adaptive do")
        path = self.purifier.trajectory(x, index, draw)
        seen = map(self.purifier.seen_by_classifier, path.images)
        read = [logits_of(self.classifier, z).argmax(1) for z in seen]
        return path._replace(predictions=torch.stack(read))
