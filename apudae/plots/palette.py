"""Colours, dashes and marks of the book; what a defense is drawn in, it is drawn in everywhere.

The colours are those of Okabe and Ito (2008), and a brown; colour-blind readers can tell them
apart, and what matters is never said by colour alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

INK, RED, BLUE, GREEN, ORANGE = "#222222", "#D55E00", "#0072B2", "#009E73", "#E69F00"
PURPLE, SKY, BROWN = "#CC79A7", "#56B4E9", "#8C564B"
SLATE, GREY, PALE = "#6E6E6E", "#BBBBBB", "#DCE9F5"
SHADES = ("#C6DBEF", "#FDD0A2", "#C7E9C0", "#DADAEB", "#FEE391", "#D9D9D9")  # of areas


class Style(NamedTuple):
    """Colour, dashes and mark of a line, as matplotlib names them."""

    colour: str
    dashes: Any
    mark: str


# By the word that the name of a line begins with.
OWN: Mapping[str, Style] = {
    "no defense": Style(SLATE, (0, (1, 1)), "v"),
    "direct": Style(BLUE, "--", "s"),
    "purifier": Style(GREEN, "-.", "^"),
    "adaptive, default": Style(BROWN, ":", "X"),  # the authors'
    "adaptive": Style(ORANGE, ":", "D"),
}
PLAIN = Style(INK, "-", "o")
# Of lines that are no defense's; attacks that stand beside each other keep theirs.
_FREE = (PLAIN, Style(PURPLE, "--", "p"), Style(SKY, "-.", "P"), Style(RED, ":", "*"))
_ATTACKS = dict(zip(("worst case", "PGD on the classifier", "FGSM"), _FREE, strict=False))


def own(name: str) -> Style | None:
    """That of a defense which has one for itself."""
    return next((s for key, s in OWN.items() if re.match(rf"(the )?{key}\b", name)), None)


def styles(names: Iterable[str]) -> dict[str, Style]:
    """One for each line of a chart: its own, or one that is no defense's; a fifth as the first."""
    names = list(names)
    found: dict[str, Style] = {}
    for name in names:
        style = own(name) or _ATTACKS.get(name)
        if style and style not in found.values():
            found[name] = style
    rest = [name for name in names if name not in found]
    free = [style for style in _FREE if style not in found.values()] or _FREE
    found |= {name: free[k % len(free)] for k, name in enumerate(rest)}
    return {name: found[name] for name in names}
