"""Images by name: ``load("mnist", "test")`` -> images ``[N, C, H, W]`` in [0, 1], labels ``[N]``.

MNIST has two profiles. ``quick`` is a sample of 5,000 real digits that travels with the package;
``full`` is the whole data set, found on disk or downloaded. The 1,000 validation and 1,000 test
digits of the sample are MNIST *training* digits, so they are taken out of the full training split:
no model trained with this module has seen them, whatever the profile. Of CIFAR-10's 50,000 training
images, 5,000 are held out for validation in the same way.

``"cifar10-jpeg"`` is **not** CIFAR-10, but a copy of it whose images were stored as JPEG files
(quality 75), in another order. That removes fine detail and favours purifiers, so its results are
named "CIFAR-10 (JPEG copy)" wherever they stand. ``"cifar10-20"`` are the first 20 test images of
the original, from the package foolbox: enough to look at, without a download. ``"photographs"`` are
two that travel with the package, a cat and a cup of coffee at 224 × 224, with ImageNet's labels.

Sets too large for memory are streamed from files (:class:`apudae.training.Streamed`).
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ..core.arguments import check_choice, check_count, checked
from ..core.files import verify

SPLITS = ("train", "validation", "test")
PROFILES = ("quick", "full")
SAMPLE = Path(__file__).parent / "samples" / "mnist_5k.npz"
PHOTOGRAPHS = SAMPLE.with_name("photographs.npz")
# SHA-256 of the bundled sample (made by scripts/bundle_mnist.py) and of the four MNIST files,
# unpacked, as torchvision leaves them in <root>/MNIST/raw.
SHA256 = {
    "mnist_5k.npz": "66500fbe1a569189a3076ba7c2d8c19c2b72e975fdc984a9e57e681d936d4f24",
    "photographs.npz": "3ef4239504528374306df2e484e68b166ccd4776f851299764fd58c2541fc6b3",
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "cifar10_jpeg.npz": "32674ba93de041a5f0eac7c3eb27f7c50a34dc402eb08fe528010a8cc6e609eb",
}
_MNIST_FILES = tuple(name for name in SHA256 if name.endswith("-ubyte"))
_CIFAR_FILES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta")
# What a table calls a set.
TITLES = {
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar10-jpeg": "CIFAR-10 (JPEG copy)",
    "cifar10-20": "CIFAR-10 (20 test images)",
    "photographs": "two photographs",
}
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True)
class Order:
    """In which order the images of a set are asked: one random permutation, always the same.

    The first official test digits are harder than the rest, and who asks "the first n" of a set
    measures how it was put together. The first n of a permutation are a random sample.

    Attributes:
        of: images of the whole set.
        seed: of the permutation.
    """

    of: int
    seed: int = 0

    def places(self, n: int | None = None) -> Tensor:
        """Places in the set of the first ``n`` images that are asked, or of all: int64 ``[n]``."""
        whole = np.random.RandomState(self.seed).permutation(self.of)  # promised to stay as it is
        return torch.from_numpy(whole[:n].astype(np.int64))


class Split(NamedTuple):
    """Images ``[N, C, H, W]``, float32 in [0, 1] or uint8, and labels int64 ``[N]``."""

    images: Tensor
    labels: Tensor

    def take(self, n: int) -> Split:
        """The first ``n`` images and labels: of the bundled digits a random sample.

        Of fewer, all; a negative ``n`` is a ``ValueError``.
        """
        check_count(n, "n", minimum=0)
        return Split(self.images[:n], self.labels[:n])

    def at(self, places: Tensor) -> Split:
        """Those at some places, int64 ``[n]``, in their order."""
        places = places.to(self.labels.device)
        return Split(self.images[places], self.labels[places])


@checked
def load(
    name: str,
    split: str = "test",
    *,
    profile: str | None = None,
    root: str | Path | None = None,
    download: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Split:
    """Load one split of a data set into memory.

    ==========  ====================  =============================  ===============
    split       ``mnist``, ``quick``  ``mnist``, ``full``            ``cifar10``
    ==========  ====================  =============================  ===============
    train       3,000 digits          58,000: all but the held-out   45,000 images
    validation  1,000 digits          the same 1,000                 the other 5,000
    test        1,000 digits          the 10,000 official digits     10,000
    ==========  ====================  =============================  ===============

    The original CIFAR-10 is fetched through torchvision. Its home is slow; name another address of
    ``cifar-10-python.tar.gz`` in ``$APUDAE_CIFAR10_URL``. The JPEG copy is read from
    ``<root>/cifar10_jpeg/cifar10_jpeg.npz`` and never downloaded.

    Args:
        name: ``"mnist"``, ``"cifar10"``, ``"cifar10-jpeg"``, ``"cifar10-20"`` or ``"photographs"``
            (test only).
        split: ``"train"``, ``"validation"`` or ``"test"``.
        profile: ``"quick"`` or ``"full"``; by default ``$APUDAE_PROFILE``, else ``"quick"``. Only
            MNIST has both.
        root: where to look for full data sets first; by default ``$APUDAE_DATA``. Then the
            user's cache (``$XDG_CACHE_HOME/apudae``, else ``~/.cache/apudae``) is searched.
        download: fetch a missing full data set into the cache, with a progress bar.
        dtype: ``torch.float32``, or ``torch.uint8`` for training: a quarter of the memory.

    Raises:
        ValueError: unknown name, split or profile; the message lists the known ones.
        FileNotFoundError: the full data set is not here and could not be downloaded.
        RuntimeError: a damaged file; the message names it and both checksums.
    """
    where = "profile" if profile is not None else "profile ($APUDAE_PROFILE)"
    profile = os.environ.get("APUDAE_PROFILE") or "quick" if profile is None else profile
    for value, known, what, argument in (
        (name, tuple(_LOADERS), "data set", "name"),
        (split, SPLITS, "split", "split"),
        (profile, PROFILES, "profile", where),
    ):
        if value not in known:
            raise ValueError(f"{argument}: unknown {what} {value!r}; known: {', '.join(known)}")
    if dtype not in (torch.float32, torch.uint8):
        raise ValueError(f"dtype: expected torch.float32 or torch.uint8, got {dtype}")
    if name in ("cifar10-20", "photographs") and split != "test":
        raise ValueError(f"split: {name!r} has test images only, got {split!r}")
    given = root or os.environ.get("APUDAE_DATA")
    folder = user_path(given) if given else None
    images, labels = _LOADERS[name](split, profile, folder, download)
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    if dtype == torch.float32:
        pixels = pixels.float().div_(255)
    return Split(pixels, torch.from_numpy(labels.astype(np.int64)))


@checked
def sample_index(split: str) -> np.ndarray:
    """Positions of a bundled split's digits among the 60,000 MNIST training images."""
    check_choice(split, SPLITS, "split")
    with _verified(SAMPLE) as sample:
        return sample[f"{split}_index"].astype(np.int64)


def _verified(path: Path) -> np.lib.npyio.NpzFile:
    verify(path, SHA256[path.name])
    return np.load(path)


# What a loader returns: uint8 pixels [N, C, H, W] and labels [N].
_Pixels = tuple[np.ndarray, np.ndarray]


def _load_mnist(split: str, profile: str, root: Path | None, download: bool) -> _Pixels:
    if profile == "quick" or split == "validation":
        with _verified(SAMPLE) as sample:
            return sample[f"{split}_images"][:, None], sample[f"{split}_labels"]
    from torchvision.datasets import MNIST  # slow to import, and only the full profile needs it

    folder = _find("MNIST", "MNIST/raw", _MNIST_FILES, root, download, MNIST)
    for name in _MNIST_FILES:
        verify(folder / "MNIST" / "raw" / name, SHA256[name])
    whole = MNIST(folder, train=split == "train", download=False)
    images, labels = whole.data.numpy(), whole.targets.numpy()
    if split == "train":
        keep = np.ones(len(images), dtype=bool)
        keep[sample_index("validation")] = keep[sample_index("test")] = False
        images, labels = images[keep], labels[keep]
    return images[:, None], labels


def _load_cifar10(split: str, profile: str, root: Path | None, download: bool) -> _Pixels:
    from torchvision.datasets import CIFAR10

    source = type("CIFAR10", (CIFAR10,), {"url": os.environ.get("APUDAE_CIFAR10_URL", CIFAR10.url)})
    folder = _find("CIFAR-10", CIFAR10.base_folder, _CIFAR_FILES, root, download, source)
    whole = CIFAR10(folder, train=split != "test", download=False)  # checks its MD5 sums
    return _held_out(whole.data.transpose(0, 3, 1, 2), np.array(whole.targets), split)


def _load_cifar10_jpeg(split: str, profile: str, root: Path | None, download: bool) -> _Pixels:
    path = (root or _cache()) / "cifar10_jpeg" / "cifar10_jpeg.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"the JPEG copy of CIFAR-10 is not on this machine: looked for {path}. Set APUDAE_DATA "
            "to the folder that holds cifar10_jpeg/, or use 'cifar10', the original."
        )
    with _verified(path) as stored:
        jpeg, offset = stored["jpeg"].tobytes(), stored["offset"]
        chosen = np.flatnonzero(stored["is_test"] == (split == "test"))
        labels = stored["label"][chosen]
    files = (io.BytesIO(jpeg[offset[k] : offset[k + 1]]) for k in chosen)
    return _held_out(_decoded(files), labels, split)


def _load_cifar10_20(split: str, profile: str, root: Path | None, download: bool) -> _Pixels:
    # CIFAR-10's terms do not say that its images may be passed on, so none are bundled. The package
    # foolbox, which the attacks are tested against, carries the first 20 as PNG files.
    found = importlib.util.find_spec("foolbox")  # found, not imported: that takes seconds
    paths = sorted(Path(found.origin).parent.glob("data/cifar10_*.png")) if found else []
    if not paths:
        raise FileNotFoundError(
            "the 20 CIFAR-10 images come with the package foolbox: pip install foolbox"
        )
    return _decoded(paths), np.array([int(path.stem.split("_")[2]) for path in paths])


def _load_photographs(split: str, profile: str, root: Path | None, download: bool) -> _Pixels:
    with _verified(PHOTOGRAPHS) as stored:
        return stored["images"][:, :, 16:-16, 16:-16], stored["labels"]


def _decoded(files: Iterable[Path | IO[bytes]]) -> np.ndarray:
    from PIL import Image

    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return np.stack(images).transpose(0, 3, 1, 2)


def _held_out(images: np.ndarray, labels: np.ndarray, split: str) -> _Pixels:
    """Of training images a tenth, the same ones each time, is the validation split."""
    if split == "test":
        return images, labels
    order = np.random.RandomState(0).permutation(len(images))
    chosen = order[: len(images) // 10] if split == "validation" else order[len(images) // 10 :]
    return images[chosen], labels[chosen]


def user_path(path: str | Path) -> Path:
    """A path whose ``~``, if it begins with one, is the home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{path}: this user has no home directory; set APUDAE_DATA or XDG_CACHE_HOME to a "
            "folder for data sets"
        ) from error


def _cache() -> Path:
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "apudae"


def _find(
    title: str,
    folder: str,
    files: tuple[str, ...],
    root: Path | None,
    download: bool,
    source: Callable[..., object],
) -> Path:
    """The root that holds ``folder`` with all ``files``; downloaded into the cache if need be."""

    def complete(candidate: Path) -> bool:
        return all((candidate / folder / name).is_file() for name in files)

    if root and complete(root):
        return root
    cache = _cache()  # not before: there may be no home directory, nor need of one
    if root:
        warnings.warn(f"{root} holds no {folder}; looking in {cache}", stacklevel=5)
    if complete(cache):
        return cache
    reason = "downloading was switched off"
    if download:
        try:
            return _download(source, Path(folder).parts[0], cache, lambda: complete(cache))
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            reason = f"the download failed ({error})"
    looked = ", ".join(str(candidate / folder) for candidate in (root, cache) if candidate)
    hint = " or use profile='quick', which needs no download." if title == "MNIST" else ""
    raise FileNotFoundError(
        f"the full {title} data set is not on this machine: looked in {looked}; {reason}. "
        f"Put its unpacked files ({', '.join(files)}) in a folder <root>/{folder} and "
        f"set APUDAE_DATA=<root>,{hint}".rstrip(",")
    )


def _download(
    source: Callable[..., object], folder: str, cache: Path, complete: Callable[[], bool]
) -> Path:
    """Download aside, verify, then move into place: an interrupted run leaves nothing behind.

    One process at a time: those that waited find the set in place.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder}.lock"):
        if complete():
            return cache
        with tempfile.TemporaryDirectory(
            prefix=".download-", dir=cache, ignore_cleanup_errors=True
        ) as place:
            aside = Path(place)
            source(aside, download=True)
            for archive in aside.rglob("*.gz"):
                archive.unlink()
            shutil.rmtree(cache / folder, ignore_errors=True)  # an incomplete older copy
            (aside / folder).rename(cache / folder)
    return cache


_LOADERS = {
    "mnist": _load_mnist,
    "cifar10": _load_cifar10,
    "cifar10-jpeg": _load_cifar10_jpeg,
    "cifar10-20": _load_cifar10_20,
    "photographs": _load_photographs,
}
