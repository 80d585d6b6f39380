"""Colours, dashes and marks of the book; what a defense is drawn in, it is drawn in everywhere.

The colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; what
matters is never said by colour alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

INK, RED, BLUE, GREEN, ORANGE = "#222222", "#D55E00", "#0072B2", "#009E73", "#E69F00"
GREY, PALE = "#BBBBBB", "#DCE9F5"
SHADES = ("#C6DBEF", "#FDD0A2", "#C7E9C0", "#DADAEB", "#FEE391", "#D9D9D9")  # of areas


class Style(NamedTuple):
    """Colour, dashes and mark of a line."""

    colour: str
    dashes: str
    mark: str


STYLES = (
    Style(INK, "-", "o"),
    Style(BLUE, "--", "s"),
    Style(GREEN, "-.", "^"),
    Style(ORANGE, ":", "D"),
)
# By the word that the name of a line begins with.
OWN: Mapping[str, Style] = dict(
    zip(("no defense", "direct", "purifier", "adaptive"), STYLES, strict=True)
)


def own(name: str) -> Style | None:
    """That of a defense which has one for itself."""
    return next((style for key, style in OWN.items() if re.match(rf"{key}\b", name)), None)


def styles(names: Iterable[str]) -> dict[str, Style]:
    """One for each line of a chart: its own, or one that is free; of a fifth line the first."""
    names = list(names)
    found: dict[str, Style] = {}
    for name in names:
        style = own(name)
        if style and style not in found.values():
            found[name] = style
    free = [style for style in STYLES if style not in found.values()]
    rest = [name for name in names if name not in found]
    found |= {name: (free or STYLES)[k % len(free or STYLES)] for k, name in enumerate(rest)}
    return {name: found[name] for name in names}
