"""Knobs, turned on validation images.

A defense with badly chosen settings proves nothing. The published ones get what the book's own
purification got: the rule of :func:`apudae.comparison.choose` on the same 1,000 validation digits
(fewer where a pass is slow), under PGD on the classifier alone: record ``mnist_tuning``. What is
chosen stands in :data:`apudae.baselines.BASELINES`, and a test compares.

:class:`Settings` is such a record that is being filled, whatever the data set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import attacks, baselines, checkpoints, data, records, scores

RECORD = "mnist_tuning"
EPSILONS = (0.0, 0.1, 0.2, 0.3)
PGD_STEPS = 50
_STEPS = tuple({"step_size": size} for size in (3.0, 10.0, 30.0, 100.0))
# Defense-GAN and DiffPure: as many steps as an attacker on a CPU can differentiate through.
GRID: dict[str, tuple[dict[str, Any], ...]] = {
    "bit depth": tuple({"bits": bits} for bits in (1, 2, 3, 4)),
    "median": tuple({"size": size} for size in (2, 3)),
    "jpeg": tuple({"quality": quality} for quality in (10, 25, 50, 75)),
    "resize and pad": tuple({"smallest": scale} for scale in (0.5, 0.6, 0.7, 0.8, 0.9)),
    "diffpure": tuple({"level": level, "steps": 5} for level in (0.1, 0.2, 0.3, 0.4, 0.5)),
    "defense-gan": tuple(
        shape | size
        for shape in ({"starts": 1, "steps": 60}, {"starts": 2, "steps": 30})
        for size in _STEPS
    ),
}
DIGITS = {"diffpure": 500, "defense-gan": 200}  # instead of all


class Settings:
    """A record of settings that are tried on validation images: a row for each, stored at once.

    Args:
        record: its name.
        about: what was done to what; a record with another account is refused.
        results: folder of the records.
        device: where it is measured.

    Raises:
        ValueError: the record was made otherwise; what differs is named.
    """

    def __init__(
        self, record: str, about: dict[str, Any], results: Path, device: torch.device | str
    ) -> None:
        self.record, self.about, self.results, self.device = record, about, results, device
        self.rows: list[dict[str, Any]] = []
        self.more: dict[str, Any] = {}
        if record in records.names(results):
            old = records.load(record, results)
            differ = [k for k, v in about.items() if old.get(k) != v]
            if differ:
                where = results / f"{record}.json"
                raise ValueError(f"{where} was made with another {', '.join(differ)}; move it")
            self.rows = old["rows"]
            known = {"schema", "made", "rows", *about}
            self.more = {k: v for k, v in old.items() if k not in known}

    def measure(
        self,
        defense: str,
        options: dict[str, Any],
        make: Callable[[], nn.Module],
        attacked: list[Tensor],
        y: Tensor,
    ) -> dict[str, Any]:
        """The row of a defense with options; asked of the images only if it is not there.

        Args:
            defense: its name.
            options: what is tried, plain values.
            make: builds images -> logits.
            attacked: images ``[N, C, H, W]`` for each ε.
            y: their labels.
        """
        for row in self.rows:
            if row["defense"] == defense and row["options"] == options:
                return row
        model, index = make(), torch.arange(len(y))
        right = [scores.outcomes(model, z, y, index=index) for z in attacked]
        row = {"defense": defense, "options": options, "n": len(y)}
        row["correct"] = [int(r.sum()) for r in right]
        self.rows.append(row | {"outcomes": [records.pack(r) for r in right]})
        print(row, flush=True)
        self.save()
        return self.rows[-1]

    def save(self, **more: Any) -> None:
        """Store all rows, with what else there is to say, now and before."""
        self.more |= more
        whole = self.about | {"rows": self.rows} | self.more
        records.save(self.record, whole, device=self.device, folder=self.results)


def choose(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The rule: the highest mean accuracy over all ε, 0 included; of two alike, the first."""
    able = [row for row in rows if row["defense"] == name]
    return max(able, key=lambda row: sum(row["correct"]))["options"]


def tune(weights: Path, results: Path) -> None:
    """Measure what the record lacks, and store it after every row.

    Raises:
        ValueError: the record was made with other settings; each is named.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = checkpoints.load("mnist-cnn", weights, device=device)
    x, y = (part.to(device) for part in data.load("mnist", "validation"))
    networks = {part for name in GRID for part in baselines.BASELINES[name].weights}
    about: dict[str, Any] = {
        "what": "which validation digits are read correctly under PGD on the classifier alone, by "
        "published defenses at several settings",
        "attack": {"name": "pgd", "aims_at": "mnist-cnn", "steps": PGD_STEPS, "seed": 0},
        "data": {"split": "validation", "n": len(x), "sha256": data.fingerprint(x)},
        "weights_sha256": {
            name: checkpoints.about(name, weights)["sha256"]
            for name in sorted(networks - {"classifier"} | {"mnist-cnn"})
        },
        "eps": list(EPSILONS),
        "outcomes": "per eps, in the order of the split: records.unpack(text, n)",
    }
    table = Settings(RECORD, about, results, device)
    attacked = [attacks.pgd(classifier, x, y, eps=eps, steps=PGD_STEPS) for eps in EPSILONS]
    for name, several in GRID.items():
        n = DIGITS.get(name, len(x))
        for options in several:
            make = partial(baselines.build, name, classifier, weights, **options)
            table.measure(name, options, make, [z[:n] for z in attacked], y[:n])
