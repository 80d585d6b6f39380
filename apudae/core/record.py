"""Results that say what made them, and can be gone on with: one JSON file each.

A record says what was done to what (its *account*: attack, budget, data, models), and holds rows
that are stored as soon as they are measured::

    record = Record("toy", {"eps": 0.1}, folder, keys=("defense",))
    record.measure(("direct",), lambda: {"n": 100, "correct": 93})   # only if it is not there

Whoever goes on with a record must give the same account, and the same models. What made it is added
at each writing: the package's version, torch's, the device, the date. The file ends with a digest
of itself; what is read is checked.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from .. import __version__
from .arguments import check_count, check_number, check_type, require
from .files import (
    check_sums,
    inside,
    locked,
    model_fingerprint,
    read_json,
    require_whole,
    sweep,
    write_json,
)
from .prints import differences, identity, unlike
from .processes import check_shared, everyones, rank, together, world

# Those of schema 1 have no digest; of the shipped ones SHA256SUMS beside them tells it.
SCHEMA = 2
# Versions whose outcomes stand. `scripts/outputs.py` ran the same calls under the first three and
# found every byte alike. 0.4.0 mended the cross-entropy's gradient: single steps, and all attacks
# on the bare classifier, which that changes most, were measured again.
SAME_OUTCOMES = ("0.1.0", "0.2.0", "0.3.0", "0.4.0")

Row = dict[str, Any]
T = TypeVar("T")


class Record:
    """A record that is being filled.

    Args:
        name: of the file, without ending.
        about: the account, plain data.
        folder: of the file.
        keys: fields that tell one row from another; a row begins with them.
        device: where it is measured.
        anew: begin again where the account differs, and do not refuse.
        alone: it belongs to this process, not to all that act as one.

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
        alone: bool = False,
    ) -> None:
        self.name, self.folder, self.keys, self.device = name, folder, keys, device
        self._alone = alone
        if not alone:
            together(partial(check_shared, folder))
        self.about: Row = json.loads(json.dumps(about))  # tuples as they come back
        self._written, self._identify, self._anew = 0.0, dict, anew
        sweep(folder)
        self.more = self._first(self._stored)
        self.rows: list[Row] = self.more.pop("rows", [])

    @property
    def path(self) -> Path:
        """The file."""
        return inside(self.folder, self.name, ".json")

    def _first(self, action: Callable[[], T]) -> T:
        """Do it in the first of the processes that share the record; all get its result."""
        return action() if self._alone else together(action, first=True)

    def _stored(self) -> Row:
        """What the file holds beside this account; empty without one, or if it begins anew."""
        if not self.path.exists():
            return {}
        old = load(self.name, self.folder, self.keys)
        differ = differences(self.about, old)
        if differ and self._anew:
            return {}
        self._refuse("was made with another", ", ".join(differ))
        known = ("schema", "made", "keys", *self.about)
        return {k: v for k, v in old.items() if k not in known}

    def of(self, models: Mapping[str, nn.Module], x: Tensor) -> None:
        """Say what models the rows are of; their prints are stored with the next row.

        Rows of an older version, which stored none, are told by the print in them, if any.

        Args:
            models: images -> logits, by name; where a row holds a print, it begins with the name.
            x: images ``[N, C, H, W]``; the first ones are asked.

        Raises:
            ValueError: rows that are stored are of another model; it is named.
        """
        there = self.more.get("models", {})
        for name, model in models.items():
            if name in there:
                differ = unlike(identity(model, x), there[name])
            else:
                told = {r["model"] for r in self.rows if "model" in r and r[self.keys[0]] == name}
                differ = "its print differs" if told - {model_fingerprint(model)[:16]} else ""
            self._refuse(f"holds rows of another {name}:", differ)
        new = {name: model for name, model in models.items() if name not in there}
        self._identify = lambda: {name: identity(model, x) for name, model in new.items()}

    def _refuse(self, why: str, differ: str) -> None:
        require(not differ, f"{self.path} {why} {differ}; move it or name another folder")

    def find(self, *key: object) -> Row | None:
        """The row of a key, or None."""
        wanted = json.loads(json.dumps(key))
        return next((row for row in self.rows if self._key(row) == wanted), None)

    def _key(self, row: Row) -> list[Any]:
        return [row[k] for k in self.keys]

    def measure(self, key: tuple[object, ...], make: Callable[[], Row]) -> Row:
        """The row of a key; made, and stored with what made it, only if it is not there."""
        if (row := self._first(partial(self.find, *key))) is not None:
            return row
        if models := self._identify():
            self.more["models"], self._identify = self.more.get("models", {}) | models, dict
        shown = " | ".join(f"{k:g}" if isinstance(k, float) else str(k) for k in key)
        mark = hashlib.sha256(repr(key).encode()).hexdigest()[:8]
        lock = locked(self.folder / f"{self.name}.{mark}", wait=-1, what=shown)

        def latest() -> tuple[Row | None, list[Row], Row]:
            self._catch_up({})
            return self.find(*key), self.rows, self.more  # another run has measured it meanwhile

        with nullcontext() if rank() else lock:
            row, self.rows, self.more = self._first(latest)
            if row is None:
                start = time.perf_counter()
                row = dict(zip(self.keys, key, strict=True)) | make()
                row["seconds"] = seconds = round(time.perf_counter() - start, 1)
                made = provenance(self.device)
                row |= {k: made[k] for k in ("apudae", "torch", "device", "date")}
                row |= {"processes": world()} if world() > 1 else {}
                row = everyones(row)[0]
                count = (
                    f"{row['correct']} of {row['n']}, " if {"correct", "n"} <= row.keys() else ""
                )
                if rank() == 0:
                    print(f"{shown}: {count}{seconds:g} s", flush=True)
            if self.find(*key) is None:
                self.rows.append(row)
                self.save()
        return row

    def save(self, *, at_most_every: float = 0.0, **more: Any) -> None:
        """Store all rows, with what else there is to say, now and before.

        Rows that another run has added since are kept. Of several processes that act as one, the
        first writes, and the others take over what it then has.

        Args:
            at_most_every: of a record of one process: write only if the last writing is as many
                seconds ago.
            more: plain data; what is a dictionary is joined with what stands there.
        """
        if time.monotonic() - self._written < at_most_every and (self._alone or world() == 1):
            self.more |= more
            return
        self.rows, self.more = self._first(partial(self._write, more))

    def _write(self, more: Row) -> tuple[list[Row], Row]:
        with locked(self.path):
            self._catch_up(more)
            rows = {"keys": self.keys, "rows": self.rows} if self.keys else {}
            save(self.name, self.about | rows | self.more, device=self.device, folder=self.folder)
        self._written = time.monotonic()
        return self.rows, self.more

    def _catch_up(self, more: Row) -> None:
        """Take over what others have stored since, and say more."""
        if self.keys and (there := self._stored()):
            theirs, ours = there.get("models", {}), self.more.get("models", {})
            for name in theirs.keys() & ours.keys():
                differ = unlike(ours[name], theirs[name])
                self._refuse(f"holds rows of another {name}:", differ)
            added = [row for row in there.pop("rows") if not self.find(*self._key(row))]
            self.rows = added + self.rows
            more, self.more = self.more | more, there
        self._say(more)

    def _say(self, more: Row) -> None:
        for name, value in more.items():
            old = self.more.get(name)
            joins = isinstance(value, dict) and isinstance(old, dict)
            self.more[name] = old | value if joins else value


def names(folder: Path) -> list[str]:
    """Names of the records in a folder."""
    return sorted(path.stem for path in folder.glob("*.json") if path.is_file())


def load(name: str, folder: Path, keys: Sequence[str] = ()) -> Row:
    """Read a record, and check it.

    Args:
        name: of the record.
        folder: of its file.
        keys: fields that tell rows apart, where the record does not name them itself.

    Raises:
        ValueError: unknown name (the known ones are listed), or a record of another schema.
        RuntimeError: the file was changed, is no record, or holds what cannot be; it is named, and
            the row.
    """
    path = inside(folder, name, ".json")
    known = ", ".join(names(folder)) or "none"
    require(os.path.lexists(path), f"unknown record {name!r} in {folder}; known: {known}")
    record = read_json(
        path, sealed=lambda found: isinstance(found, dict) and found.get("schema") == SCHEMA
    )
    require_whole(isinstance(record, dict), f"{path} is damaged: expected fields by name")
    schema = record.get("schema")
    if schema != SCHEMA:
        check_sums(path)
    fits = type(schema) is int and schema in (1, SCHEMA)
    require(fits, f"{path}: expected schema 1 or {SCHEMA}, got {schema!r}")
    try:
        _check(record, record.get("keys", keys))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise RuntimeError(f"{path} is damaged: {error}") from error
    return record


def save(name: str, record: Row, folder: Path, *, device: torch.device | str = "cpu") -> Path:
    """Write a record with what made it; the old one stays until the new one is complete."""
    path = inside(folder, name, ".json")
    write_json(path, {"schema": SCHEMA, "made": provenance(device), **record})
    return path


# What is known of fields, in rows and beside them, wherever they are there.
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("profile", "data", "settings", "weak", "stands", "curves", "alone"), dict),
    **dict.fromkeys(("made", "models_sha256", "warnings"), dict[str, str]),
    **dict.fromkeys(("rows", "calibration", "findings"), list),
    **{"keys": list[str], "models": dict[str, dict]},
    **dict.fromkeys(("defense", "split", "kind", "dae_sha256", "classifier_sha256"), str),
    **dict.fromkeys(("apudae", "torch", "device", "date", "labels", "images_sha256"), str),
}
_SIZES = ("seconds", "sigma", "radius", "l2", "ms_per_image", "mebibytes", "calls")


def _check(record: Row, keys: Sequence[str]) -> None:
    """Raise ``ValueError`` unless a record holds what can be: kinds, lengths, ranges, sums."""
    _check_fields(record)
    require("made" in record, "made: it is missing")
    prints = (record.get("model"), record.get("settings", {}).get("model"))
    for found in (*prints, *record.get("models", {}).values()):
        if isinstance(found, dict):  # what `prints.identity` gives
            check_type(found.get("sha256"), str, "model")
            for text in check_type(found.get("answers"), list[str], "model"):
                list(map(float, text.split()))
    require(not keys or "rows" in record, "rows: there are none")
    rows, seen = record.get("rows", []), []
    for number, row in enumerate(rows if keys else [r for r in rows if isinstance(r, dict)]):
        key = [row[k] for k in keys if k in row] if isinstance(row, dict) else []
        try:
            check_type(row, dict, "row")
            lacking = ", ".join(k for k in keys if k not in row)
            require(not lacking, f"it has no {lacking}")
            require(not keys or key not in seen, "it comes twice")
            seen.append(key)
            _check_fields(row)
            _check_outcomes(row)
            if "votes" in row:  # of a certificate: with a prediction, for each image
                n = record.get("data", {}).get("n", len(row["votes"]))
                draws = record.get("options", {}).get("n", math.inf)
                whole_numbers(row["votes"], "votes", n, 0, draws)
                whole_numbers(row.get("predictions"), "predictions", n, -1, math.inf)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"row {number} {key or ''}: {error}") from error


def _check_fields(fields: Row) -> None:
    for name, value in fields.items():
        if name in _KINDS:
            check_type(value, _KINDS[name], name)
        if name in _SIZES and (name, value) != ("mebibytes", None):
            several = isinstance(value, dict) and name == "ms_per_image"  # a number per defense
            for number in value.values() if several else [value]:
                check_number(number, name)


def _check_outcomes(row: Row) -> None:
    """The count of images, their outcomes, and what was counted of these."""
    if "n" not in row:
        require("outcomes" not in row, "n: it is missing")
        return
    n = check_count(row["n"], "n", minimum=0)
    right, correct = row.get("outcomes", []), row.get("correct")
    several = isinstance(right, list)  # one for each ε
    counts = [int(unpack(text, n).sum()) for text in (right if several else [right])]
    if "misread" in row:
        draws = check_count(row.get("draws"), "draws")
        wrong = whole_numbers(row["misread"], "misread", n, 0, draws)
        require(not counts or counts == [wrong.count(0)], "misread: it does not fit the outcomes")
        rate = sum(1 - k / draws for k in wrong)
        check_number(correct, "correct")
        require(abs(correct - rate) < 0.006, f"correct: expected {rate:.2f}, got {correct!r}")
    elif "outcomes" in row:
        wanted = counts if several else counts[0]
        fits = correct == wanted and not isinstance(correct, bool)
        require(fits, f"correct: expected {wanted}, as the outcomes have it, got {correct!r}")
    elif correct is not None:
        for count in correct if isinstance(correct, list) else [correct]:
            fits = check_number(count, "correct") <= n
            require(fits, f"correct: expected 0 to {n}, got {count!r}")
    for name, left in row.get("stands", {}).items():
        fits = check_number(left, "stands") <= n
        require(fits, f"stands: expected 0 to {n} of {name}, got {left!r}")


def whole_numbers(values: Any, name: str, n: int, low: int, high: float) -> list[int]:
    """Raise ``ValueError`` unless these are ``n`` integers from ``low`` to ``high``."""
    check_type(values, list, name)
    require(len(values) == n, f"{name}: expected {n} integers, one per image, got {len(values)}")
    odd = [v for v in values if type(v) is not int or not low <= v <= high]
    bounds = f">= {low}" if high == math.inf else f"from {low} to {high}"
    require(not odd, f"{name}: expected integers {bounds}, got {odd[:1]}")
    return values


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
    """The ``n`` outcomes that ``pack`` has written.

    Raises:
        ValueError: it has written something else.
    """
    size = 2 * -(-n // 8)
    fits = isinstance(text, str) and len(text) == size and not text.strip("0123456789abcdef")
    require(fits, f"outcomes: expected {size} hexadecimal digits for {n} images")
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    require(not bits[n:].any(), f"outcomes: there are more than {n}")
    return torch.from_numpy(bits[:n].astype(bool))


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
