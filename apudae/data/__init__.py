"""Images by name, and image files: ``data.load("mnist", "test")``."""

from ..core.files import fingerprint
from .files import (
    Listing,
    imagenet_classes,
    list_folder,
    list_imagenet,
    load_folder,
    read_image,
)
from .sets import CIFAR10_CLASSES, PROFILES, SPLITS, TITLES, Split, load, sample_index

__all__ = [
    "CIFAR10_CLASSES",
    "PROFILES",
    "SPLITS",
    "TITLES",
    "Listing",
    "Split",
    "fingerprint",
    "imagenet_classes",
    "list_folder",
    "list_imagenet",
    "load",
    "load_folder",
    "read_image",
    "sample_index",
]
