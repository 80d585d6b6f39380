"""Where a training loop's batches come from: sets in memory, or folders that are streamed.

A source has a length ``n`` and a method ``epoch(number)`` that yields ``(images, labels, share)``:
float32 images ``[B, C, H, W]`` in [0, 1] and int64 labels ``[B]`` on the training device, and the
share of the whole batch that this process got, times the number of processes (1 if there is one).
The order follows from the seed and the epoch's number alone, so a run that was interrupted after
an epoch goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..core import processes
from ..core.arguments import check_count, check_images, check_labels, checked, require
from ..core.norms import keyed
from ..core.prints import exact
from ..data.files import Listing, read_image

Batch = tuple[Tensor, Tensor, float]
REACH = 4  # pixels that an augmented image is shifted by at most


def shares(n: int, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, float]]:
    """This process's part of each batch of an epoch: indices ``[B]``, never empty, and its share.

    Every index comes once over all processes. Where a last batch has too few for all of them, the
    others get an image that counts nothing (share 0): they must keep step.
    """
    world, rank = processes.world(), processes.rank()
    order = torch.randperm(n, generator=keyed(seed, epoch))
    for batch in order.split(batch_size):
        mine = batch[rank::world]
        share = len(mine) * world / len(batch)
        yield (mine, share) if len(mine) else (batch[:1], 0.0)


def check_set(images: Tensor, labels: Tensor | None = None, kind: str = "") -> None:
    """Raise ``ValueError`` unless images (float in [0, 1] or uint8) and labels can be used."""
    if images.dtype != torch.uint8:
        check_images(images, f"{kind}images")
    elif images.ndim != 4:
        raise ValueError(
            f"{kind}images: expected 4 dimensions [N, C, H, W], got shape {list(images.shape)}"
        )
    check_count(len(images), f"{kind}images")
    if labels is not None:
        check_labels(labels, len(images), name=f"{kind}labels")


def check_augment(augment: bool | str) -> None:
    """Raise ``ValueError`` unless it says whether, and how, images are augmented."""
    told = f"augment: expected True, False or 'turn', got {augment!r}"
    require(isinstance(augment, bool) or augment == "turn", told)


def as_float(images: Tensor) -> Tensor:
    """8-bit pixels as float32 in [0, 1]; other images as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


@checked
class InMemory:
    """A set that lives on the training device as 8-bit pixels, and is augmented there.

    Args:
        images: ``[N, C, H, W]``, uint8, or float32 in [0, 1] (kept as they are).
        labels: int64 ``[N]``.
        batch_size: images per step, over all processes.
        augment: mirror images at random and shift them by up to 4 pixels (the border reflected);
            with ``"turn"`` turn them by up to 15°, shift them by up to 2 pixels and stretch them by
            up to a tenth (black comes in): for digits, which must not be mirrored.
        seed: of order and augmentation.
        device: where to keep them.
    """

    told = "a source of apudae.training"

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        augment: bool | str = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        check_set(images, labels)
        check_augment(augment)
        large = augment is not True or min(images.shape[2:]) > REACH
        require(large, f"augment: images {list(images.shape[2:])} are too small to be shifted")
        self.images, self.labels = images.to(device), labels.to(device)
        self.device = self.images.device
        self.n, self.batch_size = len(images), batch_size
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def look(self) -> tuple[Tensor, Tensor]:
        """All labels, and one image ``[1, C, H, W]``."""
        return self.labels, as_float(self.images[:1])

    def fingerprint(self) -> str:
        """Of images and labels, so that a run is resumed on the same ones."""
        return f"{exact(self.images)}, labels {exact(self.labels)}"

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        draws = keyed(self.seed, number, 1, processes.rank(), device=self.device)
        for index, share in shares(self.n, self.batch_size, self.seed, number):
            index = index.to(self.device, non_blocking=True)
            x = as_float(self.images[index])
            if self.augment:
                x = (turn if self.augment == "turn" else flip_and_shift)(x, draws)
            yield x, self.labels[index], share


def flip_and_shift(x: Tensor, draws: Generator, reach: int = REACH) -> Tensor:
    """Each image mirrored with probability 1/2 and shifted by up to ``reach`` pixels."""
    n, _, height, width = x.shape
    flip, top, left = torch.rand(3, n, generator=draws, device=x.device)
    top, left = ((u * (2 * reach + 1)).long()[:, None] for u in (top, left))
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.arange(width, device=x.device)
    columns = torch.where((flip < 0.5)[:, None], columns.flip(1), columns)
    padded = F.pad(x, (reach,) * 4, mode="reflect").permute(0, 2, 3, 1)
    image = torch.arange(n, device=x.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def turn(
    x: Tensor, draws: Generator, degrees: float = 15, reach: float = 2, stretch: float = 0.1
) -> Tensor:
    """Each image turned, shifted by so many pixels and stretched at random, up to these amounts."""
    n, _, height, width = x.shape
    u = 2 * torch.rand(4, n, generator=draws, device=x.device, dtype=x.dtype) - 1
    angle, size = u[0] * math.radians(degrees), 1 + stretch * u[1]
    cos, sin = angle.cos() / size, angle.sin() / size
    right, down = 2 * reach * u[2] / width, 2 * reach * u[3] / height
    tall = height / width  # what is 1 in the grid is half of either side
    moves = torch.stack([cos, -sin * tall, right, sin / tall, cos, down], 1).view(n, 2, 3)
    grid = F.affine_grid(moves, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


@checked
class Streamed:
    """A folder's images, read and decoded ahead of time by worker processes.

    Args:
        listing: files and labels, from :mod:`apudae.data`.
        size: of the square crops; the shorter side is scaled to 8/7 of it first.
        crop: ``"random"`` (and mirrored at random) or ``"centre"``.
        batch_size: images per step, over all processes.
        seed: of order and crops.
        workers: processes that decode; 0 decodes in this one.
        device: where the batches go.
    """

    told = "a source of apudae.training"

    def __init__(
        self,
        listing: Listing,
        *,
        size: int = 224,
        crop: str = "random",
        batch_size: int = 32,
        seed: int = 0,
        workers: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        check_count(size, "size")
        check_count(batch_size, "batch_size")
        check_count(workers, "workers", minimum=0)
        if crop not in ("random", "centre"):
            raise ValueError(f"crop: expected 'random' or 'centre', got {crop!r}")
        self.listing, self.size, self.crop = listing, size, crop
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.device, self.n = torch.device(device), len(listing.files)

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def look(self) -> tuple[Tensor, Tensor]:
        """All labels, and a grey image ``[1, 3, size, size]``."""
        example = torch.full((1, 3, self.size, self.size), 0.5, device=self.device)
        return torch.tensor(self.listing.labels), example

    def fingerprint(self) -> str:
        """Of names, sizes, bytes and labels, so that a run is resumed on the same ones.

        Of more than a gigabyte, of the bytes of every second, third, ... file.
        """
        sizes = [path.stat().st_size for path in self.listing.files]
        every, told = sum(sizes) // 2**30 + 1, hashlib.sha256()
        for number, (path, label) in enumerate(zip(*self.listing, strict=True)):
            content = b"" if number % every else path.read_bytes()
            told.update(f"{path.name} {sizes[number]} {label} {len(content)} ".encode() + content)
        return told.hexdigest()

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """A uint8 image as one epoch crops it, and its label: what (epoch, index) stands for."""
        epoch, index = key
        image = read_image(self.listing.files[index], self.size)
        room = [length - self.size for length in image.shape[1:]]
        top, left = (r // 2 for r in room)
        if self.crop == "random":
            u = torch.rand(3, generator=keyed(self.seed, epoch, 1, index)).tolist()
            top, left = (int(u[k] * (r + 1)) for k, r in enumerate(room))
            image = image.flip(2) if u[2] < 0.5 else image
        cut = image[:, top : top + self.size, left : left + self.size]
        return cut.contiguous(), self.listing.labels[index]

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        parts = list(shares(self.n, self.batch_size, self.seed, number))
        loader = DataLoader(
            self,
            batch_sampler=[[(number, k) for k in index.tolist()] for index, _ in parts],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
        )
        for (x, y), (_, share) in zip(loader, parts, strict=True):
            x, y = (part.to(self.device, non_blocking=True) for part in (x, y))
            yield as_float(x), y, share
