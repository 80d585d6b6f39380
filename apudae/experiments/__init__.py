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

A defense or an attack of your own, judged: :func:`challenge`, one of :data:`CHALLENGES`.

The tables: :data:`STUDIES`, :data:`VARIANTS`, :data:`LADDER`, :data:`KNOWN`, :data:`HARDER`,
:data:`CERTIFIED`, :data:`CUTS`, :data:`PROVED`, :data:`PROVED_VERDICT`,
:data:`PURIFIER_AGAIN`, :data:`STRONGER_VERDICTS`, :data:`SETS`.

For a study of your own: a :class:`Study` with :class:`Defense` and :class:`Profile`, run at a
:class:`Place`; and its networks by :class:`Recipe`, a :class:`Verdict`, a :class:`Ladder`,
:class:`Proved`, :class:`Certified`.
"""

from ..core.record import outdated
from .challenges import CHALLENGES, challenge
from .choose import best, outcomes
from .claims import claims
from .colours import SETS
from .compare import CLEAN, CW, STRONG, Profile, Study
from .defenses import Defense
from .digit_choices import VARIANTS, passes, setting
from .digits import (
    CERTIFIED,
    CUTS,
    HARDER,
    KNOWN,
    LADDER,
    PROVED,
    PROVED_VERDICT,
    PURIFIER_AGAIN,
    STRONGER_VERDICTS,
)
from .place import RESULTS, Place
from .recipes import Recipe
from .results import Results, results
from .shipped import STUDIES, build, defenses, ladder, names, record, verdict
from .verdicts import Certified, Ladder, Proved, Verdict
