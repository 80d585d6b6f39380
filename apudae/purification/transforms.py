"""Published defenses that need no training: they transform the image before it is classified.

:class:`BitDepth`, :class:`Median`, :class:`JPEG` and :class:`ResizePad` are modules images ->
images, to be put before a classifier with :class:`~apudae.purification.Defended`. None of them
withstands an attacker who knows it (Athalye et al. 2018); they are here to be compared with.

What is rounded has a derivative of zero nearly everywhere, and nothing here pretends otherwise. An
attacker takes :class:`~apudae.attacks.BPDA`, as :func:`apudae.evaluation.evaluate` does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.arguments import check_count, check_number, checked
from ..core.norms import clip, per_image, uniforms

# The quantisation tables of the JPEG standard (ITU-T T.81, annex K), rows of an 8 × 8 block.
_LUMINANCE = """
16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99"""
# Y, Cb, Cr of red, green, blue (JFIF 1.02).
_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


@checked
class BitDepth(nn.Module):
    """Round every pixel to ``2^bits`` levels: feature squeezing (Xu et al. 2018, §II-B).

    The paper compares the predictions before and after, to *detect* an attack; here the squeezed
    image is classified. For digits it takes 1 bit.

    Args:
        bits: per pixel and channel, 1 to 8.
    """

    def __init__(self, bits: int = 1) -> None:
        super().__init__()
        check_count(bits, "bits", maximum=8)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        top = 2**self.bits - 1
        return (x * top).round() / top

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


@checked
class Median(nn.Module):
    """The median of a pixel's neighbourhood: feature squeezing (Xu et al. 2018, §II-C).

    Of an even number the upper of the two in the middle, as in the authors' code (scipy). Beyond
    the border the outermost pixels are repeated.

    Args:
        size: of the square neighbourhood; the paper's is 2 for digits, 2 or 3 for photographs.
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        check_count(size, "size")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.size // 2, (self.size - 1) // 2
        padded = F.pad(x, (before, after, before, after), mode="replicate")
        near = padded.unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(4)
        return near.sort(-1).values[..., self.size**2 // 2]

    def extra_repr(self) -> str:
        return f"size={self.size}"


@checked
class JPEG(nn.Module):
    """What is left of an image after JPEG compression (Dziugaite et al. 2016; Guo et al. 2018).

    The lossy part of JPEG: 8 × 8 cosine transform, division by the standard's tables, rounding,
    and back. Against a real encoder it is simplified in one point: colours are not subsampled.

    Args:
        quality: 1 to 100, as libjpeg counts; 75 in Guo et al.
    """

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        check_count(quality, "quality", maximum=100)
        self.quality = quality
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        tables = [
            [min(max((int(q) * scale + 50) // 100, 1), 255) for q in table.split()]
            for table in (_LUMINANCE, _CHROMINANCE)
        ]
        k, n = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0)[None]
        basis = torch.cos((2 * n + 1) * k * math.pi / 16) / 2
        basis[0] /= math.sqrt(2)
        colours = torch.tensor(_YCBCR, dtype=torch.float64)
        for name, value in (
            ("tables", torch.tensor(tables, dtype=torch.float64).view(2, 8, 8)),
            ("basis", basis),
            ("colours", colours),
            ("back", torch.linalg.inv(colours)),
        ):
            self.register_buffer(name, value.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        if channels not in (1, 3):
            raise ValueError(f"x: expected 1 or 3 channels, got {channels}")
        with torch.autocast(x.device.type, enabled=False):  # it is about single levels of 255
            return self._compressed(x, channels, height, width)

    def _compressed(self, x: Tensor, channels: int, height: int, width: int) -> Tensor:
        z = (255 * x).round()
        if channels == 3:
            z = torch.einsum("dc,nchw->ndhw", self.colours.to(x.dtype), z)
        z = torch.cat([z[:, :1] - 128, z[:, 1:]], 1).round()
        z = F.pad(z, (0, -width % 8, 0, -height % 8), mode="replicate")
        blocks = z.unfold(2, 8, 8).unfold(3, 8, 8)  # [N, C, rows, columns, 8, 8]
        basis = self.basis.to(x.dtype)
        tables = self.tables.to(x.dtype)[[0] if channels == 1 else [0, 1, 1]][:, None, None]
        kept = ((basis @ blocks @ basis.T) / tables).round() * tables
        z = (basis.T @ kept @ basis).transpose(3, 4).flatten(4, 5).flatten(2, 3)
        z = z[:, :, :height, :width].round()
        z = torch.cat([z[:, :1] + 128, z[:, 1:]], 1)
        if channels == 3:
            z = torch.einsum("dc,nchw->ndhw", self.back.to(x.dtype), z).round()
        return z.clamp(0, 255) / 255

    def extra_repr(self) -> str:
        return f"quality={self.quality}"


@checked
class ResizePad(nn.Module):
    """Shrink each image to a random size and put it at a random place (Xie et al. 2018).

    Simplified: the paper enlarges photographs of 299 pixels to between 299 and 330, on a canvas of
    331, with the nearest pixel; a classifier of one fixed size asks for the canvas to be the image,
    and a derivative for bilinear interpolation.

    Args:
        smallest: of the random scales, which are uniform up to 1.
        seed: of the draws, which are keyed by it, the image's ``index`` and the ``draw``.
    """

    random = True

    def __init__(self, smallest: float = 0.8, *, seed: int = 0) -> None:
        super().__init__()
        check_number(smallest, "smallest", exclusive=True)
        if smallest > 1:
            raise ValueError(f"smallest: expected at most 1, got {smallest}")
        check_count(seed, "seed", minimum=0)
        self.smallest, self.seed = smallest, seed

    def forward(self, x: Tensor, index: Tensor | None = None, draw: int = 0) -> Tensor:
        u = uniforms((3,), index, self.seed, draw, device=x.device).to(x.dtype)
        scale = (self.smallest + (1 - self.smallest) * u[:, 0]).expand(len(x))
        # Of the canvas [-1, 1]² the image fills the square of half-width `scale` around `centre`.
        centre = (per_image(1 - scale, u[:, 1:]) * (2 * u[:, 1:] - 1)).expand(len(x), 2)
        theta = x.new_zeros(len(x), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
        theta[:, :, 2] = -centre / scale[:, None]
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return clip(F.grid_sample(x, grid, align_corners=False))

    def extra_repr(self) -> str:
        return f"smallest={self.smallest:g}"
