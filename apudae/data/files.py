"""Image files of any size and mode as tensors, and folders of them with their classes.

Hidden entries, and what systems leave in folders, are passed over; whatever else would leave a
label or an image in doubt is refused by name.

- :func:`list_folder`, :func:`list_imagenet`: the files of a folder and their labels
- :func:`read_image`, :func:`load_folder`: their pixels
- :func:`imagenet_classes`: what ImageNet's labels mean
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.arguments import check_count, checked, require

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LARGEST = 100_000_000  # pixels of an image, in its file and after scaling
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# Images to anyone who looks into a folder, but not read from one.
_UNREAD = re.compile(
    r"\.(apng|arw|avifs?|bpg|cr[23]|cur|dcx|dds|dib|dng|emf|eps|exr|fits?|ft[cu]|gif|hdr|hei[cf]|hif|"
    r"icb|icns|ico|iim|im|j2[ck]|jfif?|jif|jp2|jp[cefx]|jpg_large|jpg~|jxl|jxr|mpo|msp|nef|orf|palm|"
    r"p[bgnp]m|pc[dx]|pef|pfm|png~|psd|pxr|qoi|ras|raw|rgba?|rw2|sgi|svg|tga|tiff?|vda|vst|wmf|"
    r"x[bcp][fm])",
    re.IGNORECASE,
)
_OF_SYSTEMS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")


class Listing(NamedTuple):
    """Image files and their labels."""

    files: list[Path]
    labels: list[int]


@checked
def list_folder(folder: str | Path) -> Listing:
    """The images of an ImageNet-like folder, sorted by name.

    Either one folder for each class (labels 0, 1, ... in the order of their names), or plain files
    whose names begin with the class index, below a million, as in ``0002_shark.jpg``. Where no
    plain file does, all get label 0, which is enough for denoising. Where labels must be
    ImageNet's, take :func:`list_imagenet`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no images, an empty class, plain images beside classes or some with an
            index and some without, or image files of a kind that is not read.
    """

    def of_heads(heads: list[str], files: list[Path]) -> list[int]:
        names: dict[bool, list[str]] = {True: [], False: []}
        for head, path in zip(heads, files, strict=True):
            names[head.isdigit()].append(path.name)
        require(
            not (names[True] and names[False]),
            f"{folder}: {_some(names[True])} with the index of a class, {_some(names[False])} "
            "without; rename them, or put all into one folder inside it if labels do not matter",
        )
        for head, path in zip(heads, files, strict=True):
            require(
                head.isdigit() <= bool(re.fullmatch(r"0*[0-9]{1,6}", head)),
                f"{path}: {head!r} is no class index; expected a number below a million",
            )
        return [int(head) if head.isdigit() else 0 for head in heads]

    def of_folders(classes: list[Path]) -> range:
        names = [path.name for path in classes]
        ordered = not all(map(str.isdecimal, names)) or sorted(names, key=int) == names
        require(ordered, f"{folder}: {_some(names)} are sorted by name; write 02 before 10")
        splits = {"train", "training", "val", "valid", "validation", "test"}
        whole = len(names) > 1 and splits.issuperset(map(str.lower, names))
        require(not whole, f"{folder}: {_some(names)} are splits, not classes; name one of them")
        return range(len(classes))

    return _list(Path(folder), of_folders, of_heads, empty=False)


def imagenet_classes() -> list[str]:
    """The 1,000 names of ImageNet's classes, in the order of their indices (torchvision's)."""
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


@checked
def list_imagenet(folder: str | Path) -> Listing:
    """The images of a folder with ImageNet's class indices as labels, sorted by name.

    One folder for each class, named by its index (``2`` or ``0002``) or by its name as torchvision
    has it (``great white shark``; capitals and underscores do not matter); or all 1,000 folders by
    their WordNet ids; or plain files whose names begin with the index (``0002_shark.jpg``).

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no images, plain ones beside classes or of a kind that is not read; or
            a name says no class (what was expected is shown), or two, or two folders say the same.
    """

    def of_folders(classes: list[Path]) -> list[int]:
        if len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", path.name) for path in classes):
            return list(range(1000))
        found: dict[int, Path] = {}
        for path in classes:
            other = found.setdefault(_index(path.name, path), path)
            require(other is path, f"{path}: the same class as {other.name!r} beside it")
        return list(found)

    def of_heads(heads: list[str], files: list[Path]) -> list[int]:
        return [_index(head, path) for head, path in zip(heads, files, strict=True)]

    return _list(Path(folder), of_folders, of_heads, empty=True)


@checked
def read_image(path: str | Path, size: int) -> Tensor:
    """An image file as uint8 ``[3, H, W]``, its shorter side scaled to 8/7 of ``size``.

    Grey becomes colour, 16 bits become 8, what is transparent is laid on white, a photograph is
    turned upright as its camera noted, and an animation is its first picture.

    Raises:
        RuntimeError: the file cannot be read as an image, its values have no known range, or it has
            more than 100 million pixels, before or after scaling; the message names it.
    """
    from PIL import Image

    check_count(size, "size")
    path = Path(path)
    tiff = ("TIFF",) * (path.suffix.lower() in (".tif", ".tiff"))
    try:
        require(path.is_file(), "there is no such file, or it is a pipe or a device")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # LARGEST is below
            with Image.open(path, formats=(*_FORMATS, *tiff)) as file:
                _check_size(file.size, "")
                image = _rgb(_upright(file))
        scale = size * 8 / 7 / min(image.size)
        wanted = tuple(max(size, round(length * scale)) for length in image.size)
        _check_size(wanted, f" at size {size}")
        image = image.resize(wanted, Image.Resampling.BICUBIC)  # as it is where the size is right
    except _Range as error:
        raise RuntimeError(f"{path}: {error}") from error
    except Exception as error:  # Pillow raises many kinds, those of damaged files too
        why = str(error) or type(error).__name__
        raise RuntimeError(f"{path} cannot be read as an image: {why}") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@checked
def load_folder(listing: Listing, size: int = 224) -> tuple[Tensor, Tensor]:
    """The centres of images: float32 ``[N, 3, size, size]`` in [0, 1], and int64 labels ``[N]``.

    Raises:
        RuntimeError: a file cannot be read; the message names it.
    """
    require(len(listing.files) > 0, "listing: expected at least one file, got none")
    cut = []
    for path in listing.files:
        image = read_image(path, size)
        top, left = ((length - size) // 2 for length in image.shape[1:])
        cut.append(image[:, top : top + size, left : left + size])
    return torch.stack(cut).float().div_(255), torch.tensor(listing.labels)


class _Range(Exception):
    """What an image holds is not known to be 8 or 16 bits."""


def _check_size(size: tuple[int, int], where: str) -> None:
    width, height = size
    require(
        width * height <= LARGEST,
        f"it has {width} × {height} pixels{where}, more than {LARGEST // 10**6} million",
    )


def _upright(image):
    """A Pillow image turned as its orientation says; of its other tags some may be damaged."""
    from PIL import Image

    image.load()  # PNG may say it at the end
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:
        return image
    turn = Image.Transpose
    turns = (turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE)
    turns = dict(enumerate((*turns, turn.ROTATE_270, turn.TRANSVERSE, turn.ROTATE_90), 2))
    return image.transpose(turns[orientation]) if orientation in turns else image


def _rgb(image):
    """A Pillow image of any mode with three channels of 8 bits."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        values = np.asarray(image).astype(np.int64)
        low, high = values.min(), values.max()
        if low < 0 or high > 2**16 - 1:
            raise _Range(f"expected grey values of 8 or 16 bits, got {low} to {high}")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise _Range("grey values are floats of unknown range; store 8 or 16 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image.convert("RGB")


def _index(text: str, path: Path) -> int:
    """The class that a name says."""
    plain = text.lower().replace("_", " ")
    named = [k for k, name in enumerate(imagenet_classes()) if name.lower() == plain]
    require(len(named) < 2, f"{path}: {text!r} is the name of the classes {named}; take an index")
    if named:
        return named[0]
    require(
        bool(re.fullmatch("0*[0-9]{1,3}", text)),
        f"{path}: {text!r} says no ImageNet class; expected such as '0002' or 'great white shark', "
        "'0281' or 'tabby', '0967' or 'espresso'",
    )
    return int(text)


def _list(
    folder: Path,
    of_folders: Callable[[list[Path]], Sequence[int]],
    of_heads: Callable[[list[str], list[Path]], list[int]],
    *,
    empty: bool,
) -> Listing:
    """The images in the folders of a folder, or else in itself.

    Labels are those of the folders, or what the files' names say before their first underscore.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    inside = _visible(folder)
    gone = [path.name for path in inside if path.is_symlink() and not path.exists()]
    require(not gone, f"{folder}: links that lead nowhere ({_some(gone)})")
    classes, plain = [path for path in inside if path.is_dir()], _images(inside)
    require(
        not (classes and plain),
        f"{folder}: images ({_some(p.name for p in plain)}) beside folders "
        f"({_some(c.name for c in classes)}); expected either, each folder a class",
    )
    if classes:
        found = [_images(_below(path)) for path in classes]
        bare = [path.name for path, files in zip(classes, found, strict=True) if not files]
        require(
            empty or not bare or len(bare) == len(classes),
            f"{folder}: no images in {_some(bare)}; an empty folder would be a class of its own",
        )
        counted = zip(found, of_folders(classes), strict=True)
        plain = [path for files in found for path in files]
        labels = [label for files, label in counted for _ in files]
    else:
        labels = of_heads([path.name.split("_")[0] for path in plain], plain)
    require(bool(plain), f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return Listing(plain, labels)


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, but for what is hidden or of the system."""
    inside = sorted(folder.iterdir())
    return [p for p in inside if not (p.name.startswith(".") or p.name.lower() in _OF_SYSTEMS)]


def _below(folder: Path) -> Iterator[Path]:
    """All files in a folder and its folders."""
    for path in _visible(folder):
        if not path.is_dir():
            yield path
        else:
            require(not path.is_symlink(), f"{path}: a link to a folder inside a class")
            yield from _below(path)


def _images(paths: Iterable[Path]) -> list[Path]:
    """The image files among them, sorted; others that look like images are refused."""
    paths = sorted(paths)
    unread = [path for path in paths if _UNREAD.fullmatch(path.suffix)]
    require(
        not unread,
        f"{_some(map(str, unread))}: of a kind that is not read; convert to {', '.join(SUFFIXES)}",
    )
    found = [path for path in paths if path.suffix.lower() in SUFFIXES]
    for path in found:
        require(path.is_file(), f"{path}: expected a file, got a broken link, pipe or device")
    return found


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
