"""What an attacker who knows the defense differentiates.

Each class here is a :class:`~apudae.attacks.View` of a model: any module images -> logits, most
often a :class:`~apudae.purification.Defended` one. Every attack of this package takes one in the
model's place. What it returns is judged by the real model's answers, so a view can make an attack
stronger or weaker, but never count an image as fallen that the model reads rightly::

    attacks.pgd(BPDA(defended), x, y, eps=0.1)
    attacks.apgd(EOT(defended, draws=20), x, y, eps=0.1)

Without a view an attack follows the gradient as autograd gives it: for the purifiers of this
package the full gradient through every step, of one known draw where they are random.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..core.arguments import check_count, check_number, checked
from ..core.calling import HALF, ask, differentiable, logits_of, takes_keys, unwrapped, within
from ..core.processes import precision_of
from ..purification.purifier import Defended, Purifier
from ..purification.reconstruction import reconstruction_error
from .objective import View

# Draws of a random model that attacks use; those below are for scoring.
_FIRST_DRAW, _DRAWS = 100, 60_000
KNOWN_DRAW = _FIRST_DRAW - 1


class Exact(View):
    """The gradient as autograd gives it, with a new draw at each query if the model is random.

    Args:
        model: images -> logits.
    """

    @checked
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = self.real = model

    def forward(self, x: Tensor) -> Tensor:
        return ask(self.model, x)

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        yield from ((logits, True) for logits in self.answers(x, turn))

    def answers(self, x: Tensor, turn: int) -> Iterator[Tensor]:
        yield ask(self.model, x, draw=self.number(turn))

    def number(self, turn: int) -> int:
        """The draw of a query."""
        most = _DRAWS // getattr(self.model, "draws", 1)
        return _FIRST_DRAW + turn % max(most - _FIRST_DRAW, 1)


class Uncut(Exact):
    """Where a model cuts its images off from its logits, a gradient of zero in an error's place.

    Args:
        model: images -> logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.able: bool | None = None  # to be differentiated at all; found out at the first look

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        if self.able is None:
            self.able = differentiable(self.model, x[:1])
        # Tied always: logits may have a gradient of the weights and none of the images.
        tie = (0 * x.flatten(1).sum(1)[:, None]).to(torch.float32)
        with torch.set_grad_enabled(self.able and torch.is_grad_enabled()):
            answers = list(self.answers(x, turn))
        for logits in answers:
            yield logits + tie.to(logits.dtype), True


class Fixed(Uncut):
    """One known draw of a random model: the ablation that shows what its randomness hides.

    Args:
        model: images -> logits.
        draw: its number; by default none that the protocol scores on.
    """

    @checked
    def __init__(self, model: nn.Module, draw: int = KNOWN_DRAW) -> None:
        super().__init__(model)
        check_count(draw, "draw", minimum=0)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return ask(self.model, x, draw=self.draw)

    def number(self, turn: int) -> int:
        """The draw of every query."""
        return self.draw


class BPDA(Exact):
    """Backward pass differentiable approximation (Athalye et al. 2018, §4.1).

    Forward the purifier, backward something smooth that does about the same; by default the
    identity, since a purified image is near the one it was.

    Args:
        model: the defended classifier.
        stand_in: images -> images, differentiated in the purifier's place.
    """

    @checked
    def __init__(self, model: nn.Module, stand_in: nn.Module | None = None) -> None:
        model = _defended(model)
        super().__init__(model)
        through = _StraightThrough(model.purifier, stand_in or nn.Identity())
        self.model = Defended(model.classifier, through, draws=model.draws)


class _StraightThrough(nn.Module):
    def __init__(self, purifier: nn.Module, stand_in: nn.Module) -> None:
        super().__init__()
        self.purifier, self.stand_in = purifier, stand_in

    def forward(self, x: Tensor, index: Tensor | None = None, draw: int = 0) -> Tensor:
        with torch.no_grad():
            keys = {"index": index, "draw": draw} if takes_keys(self.purifier) else {}
            z = self.purifier(x, **keys)
        near = self.stand_in(x)
        return near + (z - near).detach()


class Averaged(Exact):
    """BPDA averaged over the purification: the mean gradient at all iterates, start included.

    The attack that broke SOAP (Croce et al. 2022, §4.2): images on their way to the end are
    attacked too, so that one gradient that points astray does not decide.

    Args:
        model: a classifier defended by a purifier of this package.

    Raises:
        ValueError: another purifier, whose iterates are not known.
    """

    @checked
    def __init__(self, model: nn.Module) -> None:
        model = _defended(model)
        super().__init__(model)
        if not isinstance(model.purifier, Purifier):
            kind = type(model.purifier).__name__
            raise ValueError(f"model: the iterates of a {kind} are not known; use BPDA")

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        model, first = self.model, self.number(turn) * self.model.draws
        for k in range(model.draws):
            with torch.no_grad():
                path = model.purifier.iterates(x, draw=first + k)
                path[-1] = model.purifier.seen_by_classifier(path[-1])
            for t, z in enumerate(path, 1):
                own = t == len(path) and model.draws == 1
                yield logits_of(model.classifier, x + (z - x).detach()), own


class Surrogate(Exact):
    """The gradient of another model: a smooth stand-in, or the bare classifier.

    Args:
        model: images -> logits, whose answers count.
        other: images -> logits or a view, whose gradient is followed. See
            :func:`apudae.purification.smooth`.
    """

    @checked
    def __init__(self, model: nn.Module, other: nn.Module) -> None:
        super().__init__(model)
        self.other = other if isinstance(other, View) else Exact(other)
        self.draws_anew = getattr(other, "random", True)

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        for logits, _ in self.other.looks(x, turn):
            yield logits, False


class ReconstructionAware(Exact):
    """The loss minus λ times the reconstruction error: fool the classifier, look clean to the DAE.

    An image whose error is low already is hardly moved by an adaptive purifier. (The code of
    APuDAE, arXiv 2208.13838, holds one with this thought, towards a given class; it never runs.)

    Args:
        model: the defended classifier, whose answers count.
        weight: λ.
        other: whose loss and gradient are followed; by default the classifier alone.
        dae: whose error is kept low; by default the purifier's.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        weight: float,
        other: nn.Module | None = None,
        dae: nn.Module | None = None,
    ) -> None:
        model = _defended(model)
        super().__init__(model)
        check_number(weight, "weight")
        if dae is None and not isinstance(model.purifier, Purifier):
            raise ValueError("dae: expected one, since the purifier is not of this package")
        other = model.classifier if other is None else other
        self.other = other if isinstance(other, View) else Exact(other)
        self.weight, self.dae = weight, model.purifier.dae if dae is None else dae

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        for logits, own in self.other.looks(x, turn):
            yield logits, own and getattr(self.other, "real", None) is self.real

    def penalty(self, x: Tensor) -> Tensor:
        return self.weight * reconstruction_error(self.dae, x)


class EOT(View):
    """Expectation over transformation: gradients averaged over draws (Athalye et al. 2018, §4.2).

    Gradients, not predictions, are averaged. Every query draws anew. An image counts as fallen
    during the attack where more than half of the draws are misread.

    Args:
        model: images -> logits, or a view of one.
        draws: how many per query.
    """

    @checked
    def __init__(self, model: nn.Module, draws: int = 20) -> None:
        super().__init__()
        check_count(draws, "draws")
        self.model = model if isinstance(model, View) else Exact(model)
        self.draws, self.noisy = draws, self.model.draws_anew

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        for k in range(self.draws if self.model.draws_anew else 1):
            yield from self.model.looks(x, turn * self.draws + k)

    def answers(self, x: Tensor, turn: int) -> Iterator[Tensor]:
        for k in range(self.draws):
            yield from self.model.answers(x, turn * self.draws + k)

    def penalty(self, x: Tensor) -> Tensor | None:
        return self.model.penalty(x)


class HalfPrecision(View):
    """Search cheaply: passes in bfloat16, where the processor or GPU computes in it.

    Images, gradients and steps stay in float32, and so does what counts: an image that falls is
    asked again, exactly. Where the hardware does not compute in bfloat16, or the images are not
    float32, nothing changes.

    Args:
        model: images -> logits, or a view of one.
        on: without, nothing changes, either.
    """

    @checked
    def __init__(self, model: nn.Module, on: bool = True) -> None:
        super().__init__()
        self.model, self.on = model if isinstance(model, View) else Exact(model), on
        self.draws_anew, self.noisy = self.model.draws_anew, self.model.noisy
        self.rough = on and not self.noisy

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def looks(self, x: Tensor, turn: int) -> Iterator[tuple[Tensor, bool]]:
        return self._half(self.model.looks(x, turn), x)

    def answers(self, x: Tensor, turn: int) -> Iterator[Tensor]:
        return self._half(self.model.answers(x, turn), x)

    def exactly(self, x: Tensor, turn: int) -> Iterator[Tensor]:
        return self.model.answers(x, turn)

    def penalty(self, x: Tensor) -> Tensor | None:
        with within(HALF, self._dtype(x)):
            return self.model.penalty(x)

    def _dtype(self, x: Tensor) -> torch.dtype | None:
        return half_precision(x.device) if self.on else None

    def _half(self, asked: Iterator[Any], x: Tensor) -> Iterator[Any]:
        """What is asked for, each pass in half precision, and nothing else."""
        more = True
        while more:
            with within(HALF, self._dtype(x)):
                found = list(islice(asked, 1))
            more = bool(found)
            yield from found


def half_precision(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device computes in it. (float16 would lose small gradients.)"""
    return dtype if (dtype := precision_of(device)) == torch.bfloat16 else None


def _defended(model: nn.Module) -> Defended:
    bare = unwrapped(model)
    if not isinstance(bare, Defended):
        raise ValueError(f"model: expected a Defended one, got {type(model).__name__}")
    return bare
