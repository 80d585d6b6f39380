"""A bundle: all that a run has made, in a folder of few files that can be carried elsewhere.

A zip of records, weights and unfinished work, cut into parts; the name of each begins with the
zip's hash and says how many there are.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
import zipfile
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from .. import models
from ..core.arguments import require
from ..core.files import require_whole, write_aside
from . import recipes
from .place import Place

FILES, LARGEST = 8, 8 * 2**20  # at most, and bytes of each
_FOLDERS = ("results", "weights", "work")
_PART = re.compile(r"([0-9a-f]{16})-(\d)-of-(\d)\.part")


def pack(folder: Path, bundle: Path, *, files: int = FILES, largest: int = LARGEST) -> None:
    """Put records, weights and unfinished work into a bundle; the old one stays until it is whole.

    What does not fit is named: unfinished work first, the largest of it.

    Args:
        folder: of these folders.
        bundle: where the parts go.
        files: parts, at most.
        largest: bytes of each, at most.
    """
    room, whole = files * largest - 1000, io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for unit in _units(folder):
            content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in unit}
            needed = sum(len(part) + 2 * len(name) + 200 for name, part in content.items())
            if needed > room:
                print(f"left out of the bundle, too large: {', '.join(content)}", flush=True)
                continue
            room -= needed
            for name, part in content.items():
                packed.writestr(zipfile.ZipInfo(name), part, zipfile.ZIP_DEFLATED)
    content = whole.getvalue()
    parts = [content[k : k + largest] for k in range(0, len(content), largest)]
    mark = hashlib.sha256(content).hexdigest()[:16]
    names = [f"{mark}-{k}-of-{len(parts)}.part" for k in range(1, len(parts) + 1)]
    bundle.mkdir(parents=True, exist_ok=True)
    for name, part in zip(names, parts, strict=True):
        write_aside(bundle / name, part)
    for path in bundle.glob("*.part"):
        if _PART.fullmatch(path.name) and path.name not in names:
            path.unlink()


def _units(folder: Path) -> list[list[Path]]:
    """Files that belong together: a record and its images, all weights; the small ones first."""
    units: dict[tuple[int, str], list[Path]] = {}
    for number, name in enumerate(_FOLDERS):
        for path in sorted((folder / name).rglob("*")):
            inner = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in inner.parts):
                stem = re.sub(r"-[0-9a-f]{8}$", "", inner.with_suffix("").as_posix())
                unit = number, name if name == "weights" or "tried" in inner.parts else stem
                units.setdefault(unit, []).append(path)
    size = {unit: sum(path.stat().st_size for path in paths) for unit, paths in units.items()}
    return [units[unit] for unit in sorted(units, key=lambda unit: (unit[0], size[unit]))]


def unpacked(bundle: Path) -> dict[str, bytes]:
    """What a bundle holds, by path; nothing where there is none.

    Raises:
        RuntimeError: no set of parts is complete, or they are damaged.
    """
    there = sorted(path for path in bundle.glob("*.part") if _PART.fullmatch(path.name))
    sets = [list(several) for _, several in groupby(there, key=lambda path: path.name[:16])]
    # Of two whole ones the newer: who is killed while packing leaves the older beside it.
    for paths in sorted(sets, key=lambda paths: -max(path.stat().st_mtime_ns for path in paths)):
        mark = paths[0].name[:16]
        content = b"".join(path.read_bytes() for path in paths)
        if hashlib.sha256(content).hexdigest()[:16] == mark:
            with zipfile.ZipFile(io.BytesIO(content)) as packed:
                return {name: packed.read(name) for name in packed.namelist()}
    require_whole(not there, f"{bundle}: a part is missing or damaged")
    return {}


def write(folder: Path, content: dict[str, bytes]) -> None:
    """Put what a bundle holds into a folder."""
    for name, part in content.items():
        path = folder / name
        require_whole(path.resolve().is_relative_to(folder.resolve()), f"bundle: {name} leads out")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, part)


def unpack(bundle: Path, place: Place) -> None:
    """Take a bundle apart: its records and weights go to a place, the unfinished work does not.

    Raises:
        ValueError: others of the same names are there; nothing was written then.
    """
    content = unpacked(bundle)
    require(content, f"bundle: there is none in {bundle}")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), content)
        found = replace(place, weights=Path(folder, "weights"), results=Path(folder, "results"))
        nets = models.names(found.weights) if found.weights.is_dir() else []
        others = [k for k in nets if place.has(k) and place.sha256(k) != found.sha256(k)]
        records = {Path(k).name: part for k, part in content.items() if k.startswith("results/")}
        for name, part in records.items():
            path = place.results / name
            others += [name] if path.is_file() and path.read_bytes() != part else []
        require(not others, f"bundle: others are there: {', '.join(others)}; name other folders")
        for name in nets:
            recipes.copy(name, found.weights, place.weights)
        write(place.results, records)
    print(f"{len(nets)} networks in {place.weights}, {len(records)} files in {place.results}")
