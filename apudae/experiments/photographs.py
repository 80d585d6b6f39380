"""A folder of photographs, divided by the hashes of its files into train, validation and test.

So it does not matter how they are called, and what was trained or chosen on is known for good.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from .. import data, models
from ..core.arguments import require
from ..data.sets import user_path

FOLDER = "imagenet_sample"  # below the root of the data
SIZE, CROP = 224, 64  # of the images, and of the squares that a DAE is trained on


def find(folder: Path | None, root: Path | None) -> data.Listing:
    """The photographs of a folder, by default of ``imagenet_sample`` below the root of the data."""
    given = root or os.environ.get("APUDAE_DATA")
    if not folder and not given:
        raise FileNotFoundError(
            "ImageNet: name a folder of photographs with --folder, one folder for each class"
        )
    return data.list_imagenet(folder or user_path(given) / FOLDER)


def keys(listing: data.Listing) -> list[str]:
    """The first 16 digits of each file's SHA-256."""
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in listing.files]


def divide(listing: data.Listing, train: int, validation: int) -> dict[str, data.Listing]:
    """Train, validation and test images of a folder, in the order of their hashes.

    Raises:
        ValueError: there are too few.
    """
    least, there = train + validation + 1, len(listing.files)
    require(
        there >= least,
        f"folder: expected at least {least} images to train, choose and evaluate on, got {there}",
    )
    order = _ordered(listing)
    return {
        "train": _listed(order[:train]),
        "validation": _listed(order[train : train + validation]),
        "test": _listed(order[train + validation :]),
    }


def unseen(listing: data.Listing, seen: Collection[str]) -> data.Listing:
    """The images whose keys nothing was trained or chosen on, in the order of their hashes.

    Raises:
        ValueError: none is left.
    """
    kept = [entry for entry in _ordered(listing) if entry[0] not in seen]
    require(bool(kept), "folder: every image in it was used to train or to choose")
    return _listed(kept)


def crops(listing: data.Listing) -> data.Split:
    """Squares of 64 pixels that tile the middle of each image, uint8 ``[16 N, 3, 64, 64]``."""
    cut = []
    for path in listing.files:
        image = data.read_image(path, SIZE)
        top, left = ((length - 4 * CROP) // 2 for length in image.shape[1:])
        middle = image[:, top : top + 4 * CROP, left : left + 4 * CROP]
        tiles = middle.unfold(1, CROP, CROP).unfold(2, CROP, CROP)  # [3, 4, 4, 64, 64]
        cut.append(tiles.flatten(1, 2).transpose(0, 1))
    tiles = torch.cat(cut).contiguous()
    return data.Split(tiles, torch.zeros(len(tiles), dtype=torch.int64))


def centres(listing: data.Listing) -> data.Split:
    """The middle of each image, float32 ``[N, 3, 224, 224]`` in [0, 1], and the labels."""
    return data.Split(*data.load_folder(listing, SIZE))


@lru_cache(maxsize=2)
def classifier(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """A pretrained classifier, frozen, in evaluation mode."""
    return models.build(name).to(device).eval().requires_grad_(False)


def _ordered(listing: data.Listing) -> list[tuple[str, Path, int]]:
    return sorted(zip(keys(listing), *listing, strict=True))


def _listed(order: list[tuple[str, Path, int]]) -> data.Listing:
    return data.Listing([path for _, path, _ in order], [label for *_, label in order])
