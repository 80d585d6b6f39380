"""Results that say what made them, and can be gone on with: one JSON file each.

A record says what was done to what (its *account*: attack, budget, data, models), and holds rows
that are stored as soon as they are measured::

    record = Record("toy", {"eps": 0.1}, folder, keys=("defense",))
    record.measure(("direct",), lambda: {"n": 100, "correct": 93})   # only if it is not there

Whoever goes on with a record must give the same account. What made it is added at each writing:
the package's version, torch's, the device, the date.
"""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from .. import __version__
from .arguments import require
from .files import read_json, write_aside

SCHEMA = 1
# Versions whose outcomes are this one's: `scripts/outputs.py` ran the same calls under both and
# found every byte alike. What they measured is as valid as what this one does.
SAME_OUTCOMES = ("0.1.0", "0.2.0")

Row = dict[str, Any]


class Record:
    """A record that is being filled.

    Args:
        name: of the file, without ending.
        about: the account, plain data.
        folder: of the file.
        keys: fields that tell one row from another; a row begins with them.
        device: where it is measured.
        anew: begin again where the account differs, and do not refuse.

    Raises:
        ValueError: the record was made otherwise; each part of the account that differs is named.
    """

    def __init__(
        self,
        name: str,
        about: Row,
        folder: Path,
        *,
        keys: tuple[str, ...] = (),
        device: torch.device | str = "cpu",
        anew: bool = False,
    ) -> None:
        self.name, self.folder, self.keys, self.device = name, folder, keys, device
        self.about: Row = json.loads(json.dumps(about))  # tuples as they come back
        self._written = 0.0
        old = load(name, folder) if self.path.is_file() else dict(self.about)
        if differ := differences(self.about, old):
            require(
                anew,
                f"{self.path} was made with another {', '.join(differ)}; move it or name another "
                "folder",
            )
            old = {}
        self.rows: list[Row] = old.pop("rows", [])
        self.more = {k: v for k, v in old.items() if k not in ("schema", "made", *self.about)}

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{self.name}.json"

    def find(self, *key: object) -> Row | None:
        """The row of a key, or None."""
        wanted = json.loads(json.dumps(key))
        return next((row for row in self.rows if [row[k] for k in self.keys] == wanted), None)

    def measure(self, key: tuple[object, ...], make: Callable[[], Row]) -> Row:
        """The row of a key; made, and stored with what made it, only if it is not there."""
        if (row := self.find(*key)) is not None:
            return row
        start = time.perf_counter()
        row = dict(zip(self.keys, key, strict=True)) | make()
        seconds = round(time.perf_counter() - start, 1)
        made = provenance(self.device)
        row |= {"seconds": seconds} | {k: made[k] for k in ("apudae", "torch", "device", "date")}
        self.rows.append(row)
        shown = " | ".join(f"{k:g}" if isinstance(k, float) else str(k) for k in key)
        count = f"{row['correct']} of {row['n']}, " if {"correct", "n"} <= row.keys() else ""
        self.save()
        print(f"{shown}: {count}{seconds:g} s", flush=True)
        return row

    def save(self, *, at_most_every: float = 0.0, **more: Any) -> None:
        """Store all rows, with what else there is to say, now and before.

        Rows that another process has added since are kept; of two that write in the same moment one
        may lose its row, which is then made again.

        Args:
            at_most_every: write only if the last writing is as many seconds ago.
            more: plain data; what is a dictionary is joined with what stands there.
        """
        if time.monotonic() - self._written < at_most_every:
            self.more |= more
            return
        there = load(self.name, self.folder) if self.keys and self.path.is_file() else {}
        if there and not differences(self.about, there):
            ours = [[row[k] for k in self.keys] for row in self.rows]
            added = [r for r in there.pop("rows") if [r[k] for k in self.keys] not in ours]
            self.rows = added + self.rows
            more = self.more | more
            self.more = {k: v for k, v in there.items() if k not in ("schema", "made", *self.about)}
        for name, value in more.items():
            old = self.more.get(name)
            joins = isinstance(value, dict) and isinstance(old, dict)
            self.more[name] = old | value if joins else value
        rows = {"rows": self.rows} if self.keys else {}
        save(self.name, self.about | rows | self.more, device=self.device, folder=self.folder)
        self._written = time.monotonic()


def differences(about: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Names of the parts of an account that a stored one tells otherwise."""
    return [name for name, value in about.items() if old.get(name) != value]


def names(folder: Path) -> list[str]:
    """Names of the records in a folder."""
    return sorted(path.stem for path in folder.glob("*.json"))


def load(name: str, folder: Path) -> Row:
    """Read a record.

    Raises:
        ValueError: unknown name (the known ones are listed), or a record of another schema.
        RuntimeError: the file is not JSON; the message names it.
    """
    path = folder / f"{name}.json"
    known = ", ".join(names(folder)) or "none"
    require(path.is_file(), f"unknown record {name!r} in {folder}; known: {known}")
    record = read_json(path)
    schema = record.get("schema")
    require(schema == SCHEMA, f"{path}: expected schema {SCHEMA}, got {schema!r}")
    return record


def save(name: str, record: Row, folder: Path, *, device: torch.device | str = "cpu") -> Path:
    """Write a record with what made it; the old one stays until the new one is complete."""
    path = folder / f"{name}.json"
    whole = {"schema": SCHEMA, "made": provenance(device), **record}
    write_aside(path, (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def maker(made: Mapping[str, Any]) -> str:
    """The version of this package that made a record or a row."""
    return made.get("made", made).get("apudae", "an unknown one")


def outdated(made: Mapping[str, Any]) -> bool:
    """Whether the code that made a record or a row may have given other outcomes than this one."""
    return maker(made) not in SAME_OUTCOMES


def pack(outcomes: Tensor) -> str:
    """Outcomes, bool ``[N]``, as hexadecimal text: four images a character."""
    return np.packbits(outcomes.cpu().numpy()).tobytes().hex()


def unpack(text: str, n: int) -> Tensor:
    """The ``n`` outcomes that ``pack`` has written."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n)
    return torch.from_numpy(bits.astype(bool))


def counted(right: Tensor) -> Row:
    """What a row holds of outcomes, bool ``[N]``."""
    return {"n": len(right), "correct": int(right.sum()), "outcomes": pack(right)}


def provenance(device: torch.device | str = "cpu") -> dict[str, str]:
    """What made a result: versions, device and date."""
    device = torch.device(device)
    threads = torch.get_num_threads()
    cpu = f"CPU, {platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "apudae": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
