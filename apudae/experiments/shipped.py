"""The shipped studies, as a reader asks for them: records, defenses, verdicts."""

from __future__ import annotations

from torch import Tensor, nn

from ..core import record as records
from ..core.record import Row
from ..evaluation import Report
from .digits import LADDER
from .place import RESULTS, Place
from .results import find, studies

STUDIES = studies(Place())


def names() -> list[str]:
    """Names of the shipped records."""
    return records.names(RESULTS)


def record(name: str) -> Row:
    """A shipped record as it is: what was done to what, who made it, and its rows.

    Raises:
        ValueError: there is none of that name.
    """
    found = Place().record(name)
    if not found:
        raise ValueError(f"name: expected one of {', '.join(names())}, got {name!r}")
    return found


def defenses(study: str) -> dict[str, nn.Module]:
    """The defenses of a study whose weights are there, images -> logits, by name."""
    return find(study, Place()).build(Place())


def build(study: str, defense: str, **changes: object) -> nn.Module:
    """One defense of a study, images -> logits, with options of its own or others.

    Raises:
        ValueError: the study has no such defense; the known ones are listed.
    """
    known = find(study, Place()).defenses
    if defense not in known:
        raise ValueError(f"defense: expected one of {', '.join(known)}, got {defense!r}")
    return known[defense].build(Place(), **changes)


def verdict(study: str, defense: str, eps: float) -> Report | None:
    """The report of a defense under the whole protocol; None where there is none yet."""
    verdicts = find(study, Place()).verdicts
    rows = (row for row in verdicts if (row.defense, row.eps) == (defense, eps))
    return next((row.load(Place()) for row in rows), None)


def ladder(defense: str, eps: float) -> dict[str, Tensor]:
    """What each attacker of the ladder has left of the validation digits: bool ``[N]``."""
    return LADDER.outcomes(defense, eps, Place())
