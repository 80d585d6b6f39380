"""Recorded results: ``apudae/results/*.json``, what was measured and on what.

A record is a JSON object. ``save`` adds what made it: the package's version, torch's, the device,
the time. ``load`` refuses a damaged one by name.
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from . import __version__
from .checkpoints import write_aside

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1


def names(folder: Path = RESULTS) -> list[str]:
    """Names of the records in a folder."""
    return sorted(path.stem for path in folder.glob("*.json"))


def load(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Read a record.

    Raises:
        ValueError: unknown name (the known ones are listed), or a record of another schema.
        RuntimeError: the file is not JSON; the message names it.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(names(folder)) or "none"
        raise ValueError(f"unknown record {name!r} in {folder}; known: {known}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RuntimeError(f"{path} is damaged: {error}") from error
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, got {record.get('schema')!r}")
    return record


def save(
    name: str, record: dict[str, Any], *, device: torch.device | str = "cpu", folder: Path = RESULTS
) -> Path:
    """Write a record with what made it; the old one stays until the new one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    whole = {"schema": SCHEMA, "made": provenance(device), **record}
    write_aside(path, (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def older(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of rows or records by name, those that another version of this package made: its version."""
    made = {
        name: row.get("made", row).get("apudae", "an unknown one") for name, row in rows.items()
    }
    return {name: version for name, version in made.items() if version != __version__}


def pack(outcomes: Tensor) -> str:
    """Outcomes, bool ``[N]``, as hexadecimal text: four images a character."""
    return np.packbits(outcomes.cpu().numpy()).tobytes().hex()


def unpack(text: str, n: int) -> Tensor:
    """The ``n`` outcomes that ``pack`` has written."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n)
    return torch.from_numpy(bits.astype(bool))


def provenance(device: torch.device | str = "cpu") -> dict[str, str]:
    """What made a result: versions, device and date."""
    device = torch.device(device)
    gpu = device.type == "cuda"
    return {
        "apudae": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if gpu else f"CPU, {_threads()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _threads() -> str:
    n = torch.get_num_threads()
    return f"{platform.machine()}, {n} thread{'s' if n > 1 else ''}"
