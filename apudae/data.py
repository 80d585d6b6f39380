"""Images by name: ``load("mnist", "test")`` -> images ``[N, C, H, W]`` in [0, 1], labels ``[N]``.

Two profiles. ``quick`` is a sample of 5,000 real digits that travels with the package; ``full``
is the whole data set, found on disk or downloaded. The 1,000 validation and 1,000 test digits of
the sample are MNIST *training* digits, so they are taken out of the full training split: no model
trained with this module has seen them, whatever the profile.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")
PROFILES = ("quick", "full")

SAMPLE = Path(__file__).parent / "samples" / "mnist_5k.npz"

# SHA-256 of the bundled sample (made by scripts/bundle_mnist.py) and of the four MNIST files,
# unpacked, as torchvision leaves them in <root>/MNIST/raw.
SHA256 = {
    "mnist_5k.npz": "66500fbe1a569189a3076ba7c2d8c19c2b72e975fdc984a9e57e681d936d4f24",
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_MNIST_FILES = tuple(name for name in SHA256 if name.endswith("-ubyte"))


class Split(NamedTuple):
    """Images float32 ``[N, C, H, W]`` in [0, 1] and labels int64 ``[N]``."""

    images: Tensor
    labels: Tensor

    def take(self, n: int) -> Split:
        """The first ``n`` images and labels. Splits are shuffled once, so these are a sample."""
        return Split(self.images[:n], self.labels[:n])


def load(
    name: str,
    split: str = "test",
    *,
    profile: str | None = None,
    root: str | Path | None = None,
    download: bool = True,
) -> Split:
    """Load one split of a data set.

    ==========  ===================  =========================================
    ``mnist``   ``quick`` (bundled)  ``full``
    ==========  ===================  =========================================
    train       3,000 digits         58,000: all but the 2,000 held-out digits
    validation  1,000 digits         the same 1,000
    test        1,000 digits         the 10,000 official test digits
    ==========  ===================  =========================================

    Args:
        name: ``"mnist"``.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        profile: ``"quick"`` or ``"full"``; by default ``$APUDAE_PROFILE``, else ``"quick"``.
        root: where to look for full data sets first; by default ``$APUDAE_DATA``. Then the
            user's cache (``$XDG_CACHE_HOME/apudae``, else ``~/.cache/apudae``) is searched.
        download: fetch a missing full data set into the cache, with a progress bar.

    Raises:
        ValueError: unknown name, split or profile; the message lists the known ones.
        FileNotFoundError: the full data set is not here and could not be downloaded.
        RuntimeError: a damaged file; the message names it and both checksums.
    """
    profile = profile or os.environ.get("APUDAE_PROFILE", "quick")
    for value, known, what in (
        (name, tuple(_LOADERS), "data set"),
        (split, SPLITS, "split"),
        (profile, PROFILES, "profile"),
    ):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")
    return _LOADERS[name](split, profile, root, download)


def sample_index(split: str) -> np.ndarray:
    """Positions of a bundled split's digits among the 60,000 MNIST training images."""
    with _open_sample() as sample:
        return sample[f"{split}_index"].astype(np.int64)


def fingerprint(images: Tensor) -> str:
    """SHA-256 of the images' 8-bit pixels, in order: what a record says it was measured on."""
    pixels = (images * 255).round().to(torch.uint8).cpu().contiguous()
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()


def verify(path: Path, expected: str) -> None:
    """Raise unless the file is there and has the expected SHA-256."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; reinstall the package or restore the file")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise RuntimeError(f"{path} is damaged: SHA-256 is {found}, expected {expected}")


def _to_split(images: np.ndarray, labels: np.ndarray) -> Split:
    pixels = torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1)
    return Split(pixels.float().div_(255), torch.from_numpy(labels.astype(np.int64)))


def _open_sample() -> np.lib.npyio.NpzFile:
    verify(SAMPLE, SHA256[SAMPLE.name])
    return np.load(SAMPLE)


def _load_mnist(split: str, profile: str, root: str | Path | None, download: bool) -> Split:
    if profile == "quick" or split == "validation":
        with _open_sample() as sample:
            return _to_split(sample[f"{split}_images"], sample[f"{split}_labels"])
    from torchvision.datasets import MNIST  # slow to import, and only the full profile needs it

    folder = _find_mnist(root, download)
    for name in _MNIST_FILES:
        verify(folder / "MNIST" / "raw" / name, SHA256[name])
    whole = MNIST(folder, train=split == "train", download=False)
    images, labels = whole.data.numpy(), whole.targets.numpy()
    if split == "train":
        keep = np.ones(len(images), dtype=bool)
        keep[sample_index("validation")] = keep[sample_index("test")] = False
        images, labels = images[keep], labels[keep]
    return _to_split(images, labels)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apudae"


def _find_mnist(root: str | Path | None, download: bool) -> Path:
    """The folder that holds ``MNIST/raw``; downloaded into the cache if need be."""
    given = root or os.environ.get("APUDAE_DATA")
    candidates = [Path(given).expanduser()] if given else []
    candidates.append(_cache())
    for folder in candidates:
        if all((folder / "MNIST" / "raw" / name).is_file() for name in _MNIST_FILES):
            return folder
        if given and folder == candidates[0]:
            warnings.warn(f"{folder} holds no MNIST/raw; looking in {_cache()}", stacklevel=4)
    reason = "downloading was switched off"
    if download:
        try:
            return _download_mnist(_cache())
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            reason = f"the download failed ({error})"
    looked = ", ".join(str(folder / "MNIST" / "raw") for folder in candidates)
    raise FileNotFoundError(
        f"the full MNIST data set is not on this machine: looked in {looked}; {reason}. "
        f"Put its four unpacked files ({', '.join(_MNIST_FILES)}) in a folder <root>/MNIST/raw and "
        "set APUDAE_DATA=<root>, or use profile='quick', which needs no download."
    )


def _download_mnist(cache: Path) -> Path:
    """Download aside, verify, then move into place: an interrupted run leaves nothing behind."""
    from torchvision.datasets import MNIST

    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".mnist-", dir=cache))
    try:
        MNIST(aside, download=True)
        for archive in (aside / "MNIST" / "raw").glob("*.gz"):
            archive.unlink()
        shutil.rmtree(cache / "MNIST", ignore_errors=True)  # an incomplete older copy
        (aside / "MNIST").rename(cache / "MNIST")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return cache


_LOADERS = {"mnist": _load_mnist}
