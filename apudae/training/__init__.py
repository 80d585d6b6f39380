"""One training loop for every network of the book."""

from ..core.processes import precision_of
from .batches import InMemory, Streamed
from .fit import History, fit, measure
from .gan import train_gan
from .tasks import (
    Task,
    adversarial,
    classification,
    denoising,
    from_attacked,
    joint,
    noise_prediction,
    purifying,
)

__all__ = [
    "History",
    "InMemory",
    "Streamed",
    "Task",
    "adversarial",
    "classification",
    "denoising",
    "fit",
    "from_attacked",
    "joint",
    "measure",
    "noise_prediction",
    "precision_of",
    "purifying",
    "train_gan",
]
