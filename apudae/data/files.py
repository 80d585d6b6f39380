"""Image files of any size and mode as tensors, and folders of them with their classes.

- :func:`list_folder`, :func:`list_imagenet`: the files of a folder and their labels
- :func:`read_image`, :func:`load_folder`: their pixels
- :func:`imagenet_classes`: what ImageNet's labels mean
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.arguments import require

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Listing(NamedTuple):
    """Image files and their labels."""

    files: list[Path]
    labels: list[int]


def list_folder(folder: str | Path) -> Listing:
    """The images of an ImageNet-like folder, sorted by name.

    Either one folder for each class (labels 0, 1, ... in the order of their names), or plain files
    whose names begin with the class index, as in ``0002_shark.jpg``. Other plain files get label 0,
    which is enough for denoising. Where labels must be ImageNet's, take :func:`list_imagenet`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no images.
    """
    return _list(
        Path(folder),
        lambda classes: range(len(classes)),
        lambda head, _: int(head) if head.isdigit() else 0,
    )


def imagenet_classes() -> list[str]:
    """The 1,000 names of ImageNet's classes, in the order of their indices (torchvision's)."""
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def list_imagenet(folder: str | Path) -> Listing:
    """The images of a folder with ImageNet's class indices as labels, sorted by name.

    One folder for each class, named by its index (``2`` or ``0002``) or by its name as torchvision
    has it (``great white shark``; capitals and underscores do not matter); or all 1,000 folders by
    their WordNet ids; or plain files whose names begin with the index (``0002_shark.jpg``).

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no images, or a name says no class (what was expected is shown).
    """

    def of_folders(classes: list[Path]) -> Iterable[int]:
        if len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", path.name) for path in classes):
            return range(1000)
        return [_index(path.name, path) for path in classes]

    return _list(Path(folder), of_folders, _index)


def read_image(path: Path, size: int) -> Tensor:
    """An image file as uint8 ``[3, H, W]``, its shorter side scaled to 8/7 of ``size``.

    Grey becomes colour, 16 bits become 8, what is transparent is laid on white, and a photograph
    is turned upright as its camera noted.

    Raises:
        RuntimeError: the file cannot be read as an image, or its values have no known range; the
            message names it.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = _rgb(ImageOps.exif_transpose(file), path)
    except (OSError, SyntaxError, ValueError) as error:
        raise RuntimeError(f"{path} cannot be read as an image: {error}") from error
    scale = size * 8 / 7 / min(image.size)
    wanted = tuple(max(size, round(length * scale)) for length in image.size)
    image = image.resize(wanted, Image.Resampling.BICUBIC)  # as it is where the size is right
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def load_folder(listing: Listing, size: int = 224) -> tuple[Tensor, Tensor]:
    """The centres of images: float32 ``[N, 3, size, size]`` in [0, 1], and int64 labels ``[N]``.

    Raises:
        RuntimeError: a file cannot be read; the message names it.
    """
    cut = []
    for path in listing.files:
        image = read_image(path, size)
        top, left = ((length - size) // 2 for length in image.shape[1:])
        cut.append(image[:, top : top + size, left : left + size])
    return torch.stack(cut).float().div_(255), torch.tensor(listing.labels)


def _rgb(image, path: Path):
    """A Pillow image of any mode with three channels of 8 bits."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 2**16 - 1:
            raise RuntimeError(
                f"{path}: expected grey values of 8 or 16 bits, got {values.min()} to "
                f"{values.max()}"
            )
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise RuntimeError(f"{path}: grey values are floats of unknown range; store 8 or 16 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image.convert("RGB")


def _index(text: str, path: Path) -> int:
    """The class that a name says."""
    names = [name.lower() for name in imagenet_classes()]
    plain = text.lower().replace("_", " ")
    if plain in names:
        return names.index(plain)
    require(
        text.isdigit() and int(text) < len(names),
        f"{path}: {text!r} says no ImageNet class; expected such as '0002' or 'great white shark', "
        "'0281' or 'tabby', '0967' or 'espresso'",
    )
    return int(text)


def _list(
    folder: Path,
    of_folders: Callable[[list[Path]], Iterable[int]],
    of_head: Callable[[str, Path], int],
) -> Listing:
    """The images in the folders of a folder, or else in itself.

    Labels are those of the folders, or what a file's name says before its first underscore.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")

    def images(paths: Iterable[Path]) -> list[Path]:
        return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)

    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    found = []
    for folder_of_class, label in zip(classes, of_folders(classes), strict=True):
        found += [(path, label) for path in images(folder_of_class.rglob("*"))]
    if not classes:
        found = [
            (path, of_head(path.name.split("_")[0], path)) for path in images(folder.iterdir())
        ]
    require(bool(found), f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return Listing([path for path, _ in found], [label for _, label in found])
