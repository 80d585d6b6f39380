"""Where a study finds its data and weights, and leaves its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import data, models
from ..core.record import Row, load

Options = dict[str, Any]  # of a defense, a variant or a training: plain data
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Place:
    """The folders of a run, and its device: a GPU if there is one.

    Attributes:
        root: of the data sets; without, see :func:`apudae.data.load`.
        weights: of the networks.
        results: of the records.
        work: where what was stopped waits, and networks that are only tried.
    """

    root: Path | None = None
    weights: Path = field(default_factory=lambda: models.WEIGHTS)
    results: Path = field(default_factory=lambda: RESULTS)
    work: Path = Path("runs")
    device: torch.device = field(
        default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    _loaded: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def tried(self) -> Path:
        """Folder of networks that are only tried."""
        return self.work / "tried"

    def has(self, *names: str) -> bool:
        """Whether the weights of all these names are there."""
        return set(names) <= set(models.names(self.weights))

    def model(self, name: str) -> nn.Module:
        """A network by the name of its weights, frozen; the same one each time."""
        if name not in self._loaded:
            self._loaded[name] = models.load(name, self.weights, device=self.device)
        return self._loaded[name]

    def sha256(self, name: str) -> str:
        """Of a network's file."""
        return models.about(name, self.weights)["sha256"]

    def load(self, name: str, split: str = "test", **options: Any) -> data.Split:
        """A split of a data set, on the device."""
        return self.here(data.load(name, split, root=self.root, **options))

    def here(self, split: data.Split) -> data.Split:
        """Images and labels on the device."""
        return data.Split(*(part.to(self.device) for part in split))

    def record(self, name: str) -> Row:
        """What a record holds; nothing where there is none."""
        there = (self.results / f"{name}.json").is_file()
        return load(name, self.results) if there else {}

    def rows(self, name: str) -> list[Row]:
        """The rows of a record, those that are stored."""
        return self.record(name).get("rows", [])

    def lacking(self, name: str, keys: Sequence[str], wanted: Sequence[tuple]) -> list[tuple]:
        """Which rows a record does not have yet: of the wanted ones, by their ``keys``."""
        there = {tuple(row[k] for k in keys) for row in self.rows(name)}
        return [key for key in wanted if key not in there]
