"""The recorded studies: what was trained, chosen, compared and certified, and what came out.

What came out:

- :func:`results`: a comparison of defenses as :class:`Results`: tables, pairs, checks; its rows are
  :data:`CLEAN`, :data:`CW`, :data:`STRONG` (the protocol) and weak attacks
- :func:`claims`: the paper's claims with verdicts
- :func:`verdict`, :func:`ladder`: a defense under the protocol, or under attackers who know more
- :func:`record`, :func:`names`: records as they are, in the folder :data:`RESULTS`
- :func:`best`, :func:`outcomes`, :func:`outdated`: of their rows; :func:`setting`, :func:`passes`:
  of a variant's options
- :func:`defenses`, :func:`build`: the defenses of a study, images -> logits

The tables: :data:`STUDIES`, :data:`VARIANTS`, :data:`LADDER`, :data:`CERTIFIED`, :data:`SETS`.

For a study of your own: a :class:`Study` with :class:`Defense` and :class:`Profile`, run at a
:class:`Place`; and its networks by :class:`Recipe`, a :class:`Verdict`, a :class:`Ladder`,
:class:`Certified`.
"""

from torch import Tensor, nn

from ..core.record import Row, outdated
from ..core.record import names as _names
from ..evaluation import Report
from .choose import best, outcomes
from .claims import claims
from .colours import SETS
from .compare import CLEAN, CW, STRONG, Profile, Study
from .defenses import Defense
from .digits import CERTIFIED, LADDER, VARIANTS, passes, setting
from .place import RESULTS, Place
from .recipes import Recipe
from .results import Results, find, results, studies
from .verdicts import Certified, Ladder, Verdict

__all__ = [
    "CERTIFIED",
    "CLEAN",
    "CW",
    "LADDER",
    "RESULTS",
    "SETS",
    "STRONG",
    "STUDIES",
    "VARIANTS",
    "Certified",
    "Defense",
    "Ladder",
    "Place",
    "Profile",
    "Recipe",
    "Results",
    "Study",
    "Verdict",
    "best",
    "build",
    "claims",
    "defenses",
    "ladder",
    "names",
    "outcomes",
    "outdated",
    "passes",
    "record",
    "results",
    "setting",
    "verdict",
]

STUDIES = studies(Place())


def names() -> list[str]:
    """Names of the shipped records."""
    return _names(RESULTS)


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
