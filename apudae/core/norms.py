"""Balls around images: how long a change is, which direction climbs fastest, where a draw lies.

- :func:`clip`, :func:`length`, :func:`project`, :func:`steepest`, :func:`within_reach`: the balls
- :class:`Ball`: what an attack may reach, with the mask of the pixels that it may change
- :func:`uniforms`, :func:`normals`, :func:`in_ball`, :func:`keyed`: random draws
- :func:`per_image`: numbers ``[N]`` that multiply images

``norm`` is ``"linf"`` (the largest change of a pixel) or ``"l2"`` (the Euclidean length over all
pixels and channels of an image, never channel by channel). Random draws are keyed by (seed, index
of the image, stream): an image gets the same ones in any batch and on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from .arguments import check_choice

NORMS = ("linf", "l2")


def check_norm(norm: str) -> None:
    """Raise ``ValueError`` unless ``norm`` is one of :data:`NORMS`."""
    check_choice(norm, NORMS, "norm")


def clip(z: Tensor) -> Tensor:
    """``z.clamp(0, 1)``, with a derivative of 1 at 0 and at 1 too.

    There ``clamp`` has 1 or 0, by torch's version; with 0 the black pixels of an image that is
    left as it is would hide their gradient.
    """
    return z.masked_fill(z < 0, 0).masked_fill(z > 1, 1)


def length(change: Tensor, norm: str = "linf") -> Tensor:
    """Length ``[N]`` of each image's change ``[N, C, H, W]``."""
    check_norm(norm)
    flat = change.flatten(1)
    largest = flat.abs().amax(1)
    if norm == "linf":
        return largest
    # Divided by the largest entry first: the squares of 1e-30 are 0 in float32.
    scale = largest.clamp(min=torch.finfo(flat.dtype).tiny)
    return scale * (flat / scale[:, None]).norm(dim=1)


def project(z: Tensor, x: Tensor, eps: float, norm: str = "linf") -> Tensor:
    """A point near ``z`` in the ball of radius ε around ``x`` and in [0, 1].

    In L∞ it is the nearest such point. In L2, ``z`` is first clipped to [0, 1] and the change then
    shortened to ε. In the other order, what the clip takes from the change would be lost.
    """
    if norm == "linf":
        return torch.clamp(z, min=x - eps, max=x + eps).clamp_(0, 1)
    change = z.clamp(0, 1) - x
    tiny = torch.finfo(x.dtype).tiny
    shrink = (eps / length(change, norm).clamp(min=tiny)).clamp(max=1)
    return (x + per_image(shrink, change) * change).clamp(0, 1)  # against rounding


def within_reach(eps: float, norm: str, x: Tensor) -> float:
    """ε, or the diameter of all images where it is less: a larger ball holds no more of them."""
    return min(float(eps), 1.0 if norm == "linf" else math.sqrt(x[:1].numel()))


def steepest(gradient: Tensor, norm: str = "linf") -> Tensor:
    """The step of length 1 that climbs fastest: the sign, or the gradient over its length.

    Where an image's gradient is zero the step is zero, not NaN.
    """
    if norm == "linf":
        return gradient.sign()
    size = length(gradient, norm)
    # Two divisions: the inverse of a very short length would overflow.
    scale = gradient.flatten(1).abs().amax(1)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    ratio = torch.where(size == 0, torch.ones_like(size), size / scale)
    return gradient / per_image(scale, gradient) / per_image(ratio, gradient)


def uniforms(
    shape: tuple[int, ...], index: Tensor | None, seed: int, stream: int, *, device: torch.device
) -> Tensor:
    """Float32 draws ``[N, *shape]`` in [0, 1), one row for each of ``index`` (int64 ``[N]``).

    Without ``index`` there is one row, that of image 0.
    """
    index = torch.zeros(1, dtype=torch.int64) if index is None else index
    generator = torch.Generator("cpu")
    draws = torch.empty(len(index), *shape, dtype=torch.float32, device="cpu")
    for row, key in zip(draws, index.tolist(), strict=True):
        # The CPU generator keeps 32 bits of its seed: spread the keys over them.
        generator.manual_seed((seed * 0x9E3779B1 + stream * 0x85EBCA6B + key) % 2**32)
        row.uniform_(0, 1, generator=generator)
    return draws.to(device)


def normals(draws: Tensor) -> Tensor:
    """Standard normal draws in float64, of the same shape, from uniform ones in [0, 1)."""
    return torch.special.ndtri(draws.double().clamp(1e-9, 1 - 1e-9))  # the ends are infinite


def in_ball(x: Tensor, eps: float, norm: str, index: Tensor, seed: int, stream: int = 0) -> Tensor:
    """Points drawn uniformly from the ball around ``x``, then clipped to [0, 1]."""
    return Ball(x, eps, norm).start(index, seed, stream)


@dataclass(frozen=True)
class Ball:
    """The images that an attack may reach: near ``x``, in [0, 1], other than it where it may be.

    Attributes:
        x: images ``[N, C, H, W]`` in [0, 1].
        eps: radius.
        norm: ``"linf"`` or ``"l2"``.
        mask: bool ``[N, C, H, W]``, true where a pixel may change; None: everywhere.
    """

    x: Tensor
    eps: float = math.inf
    norm: str = "linf"
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: Tensor | slice) -> Ball:
        mask = None if self.mask is None else self.mask[place]
        return replace(self, x=self.x[place], mask=mask)

    def keep(self, z: Tensor) -> Tensor:
        """``z`` where a pixel may change, ``x`` elsewhere."""
        return z if self.mask is None else torch.where(self.mask, z, self.x)

    def live(self, gradient: Tensor) -> Tensor:
        """A gradient, zero where no pixel may change."""
        return gradient if self.mask is None else gradient.where(self.mask, 0)

    def project(self, z: Tensor) -> Tensor:
        """:func:`project` of ``z``, other than ``x`` only where it may be."""
        return project(self.keep(z), self.x, self.eps, self.norm)

    def steepest(self, gradient: Tensor) -> Tensor:
        """:func:`steepest`, of the pixels that may change."""
        return steepest(self.live(gradient), self.norm)

    def start(self, index: Tensor, seed: int, stream: int = 0, *, corners: bool = False) -> Tensor:
        """Uniform draws from the ball (L∞: or from its corners), then clipped to [0, 1]."""
        x = self.x
        if self.norm == "linf":
            draws = uniforms(tuple(x.shape[1:]), index, seed, stream, device=x.device).to(x.dtype)
            draws = draws.round() if corners else draws
            return self.project(x + self.eps * (2 * draws - 1))
        pixels = x[0].numel()
        draws = uniforms((pixels + 1,), index, seed, stream, device=x.device).double()
        # A normal draw points in a uniform direction; the radius grows like U^(1/pixels).
        normal = normals(draws[:, 1:]).view(x.shape)
        pixels = pixels if self.mask is None else self.mask.flatten(1).sum(1)
        radius = self.eps * draws[:, 0] ** (1 / pixels)
        change = per_image(radius, normal) * self.steepest(normal)
        return self.project(x + change.to(x.dtype))

    def on_grid(self, z: Tensor) -> Tensor:
        """Points of the ball rounded to 8 bits, k / 255, ``x`` being so: to the nearest there is.

        Where that would leave the ball, pixels are rounded towards ``x`` instead; in L2 those that
        this moves least, as few as will do.
        """
        most = 255 * within_reach(self.eps, self.norm, self.x) + 1e-4  # grey levels; and rounding
        grey = (255 * self.x.double()).round()
        want = 255 * z.double() - grey
        change = want.round()
        if self.norm == "linf":
            change = change.clamp(-math.floor(most), math.floor(most))
        else:
            size = change.abs().flatten(1)
            past = size - want.abs().flatten(1)  # how far rounding led away from x
            order = past.argsort(dim=1, descending=True, stable=True)
            saved = (2 * size - 1).where(past > 0, 0).gather(1, order)  # of the squared length
            over = size.square().sum(1, keepdim=True) - most**2 > saved.cumsum(1) - saved
            back = torch.zeros_like(over).scatter(1, order, over) & (past > 0)
            change = change - change.sign() * back.view(change.shape)
        return torch.where(change == 0, self.x, ((grey + change) / 255).to(self.x.dtype))


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """``[N]`` made to multiply ``like``, ``[N, ...]``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def keyed(*keys: int, device: torch.device | str = "cpu") -> Generator:
    """A generator whose draws follow from a few integers."""
    seed = int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)
    return Generator(device).manual_seed(seed)
