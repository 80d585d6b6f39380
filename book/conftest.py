"""How `pytest --nbval book/` compares a cell's output with the stored one.

nbval compares text exactly. Here, numbers may differ by a relative 1e-4, since another
processor rounds differently. A cell's metadata may widen that for what is measured in percent,
with its interval, as in "89.2 % [87.1, 91.0]"::

    "tolerance_points": 1.5                               an accuracy: up to 1.5
    "tolerance_points": 3, "tags": ["trains-live"]        after live training: up to 3

A difference, as in "+1.9 points [-0.1, +3.9]", may then move by 0.5 at most, since its sign
matters; so may a margin under attack, as in "-6.7 logits", where steps along a sign end a little
elsewhere on another processor. Everything else (words, counts, ε, the columns of a table) must agree. Pictures are
not compared, nor is the width of white space.
"""

import os
import re

import pytest

RELATIVE = 1e-4
WIDEST, WIDEST_LIVE = 1.5, 3.0

# Chapters run on the CPU, with the bundled data and without progress bars.
os.environ.update(
    APUDAE_PROFILE="quick", CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1"
)

DIFFERENCE = 0.5

NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)
MEASURED = re.compile(
    r"[-+−]?\d+(?:\.\d+)?\s(%|points|logits)(\s\[[-+−\d.,\s]+\])?"
)
PICTURE = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/=]+")


class Output(str):
    """A text that equals another if its words are the same and its numbers close."""

    points: float = 0.0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        if _words(self) != _words(other):
            return False
        return all(
            a == b
            or abs(a - b)
            <= max(RELATIVE * max(abs(a), abs(b)), min(self.points, widest))
            for (a, widest), (b, _) in zip(
                _numbers(self), _numbers(other), strict=True
            )
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _words(text: str) -> str:
    return " ".join(NUMBER.sub("#", text).split())


def _numbers(text: str) -> list[tuple[float, float]]:
    """Each number, and how far a cell's metadata can let it move."""
    measured = list(MEASURED.finditer(text))
    numbers = []
    for match in NUMBER.finditer(text):
        widest = 0.0
        for span in measured:
            if span.start() <= match.start() and match.end() <= span.end():
                widest = WIDEST_LIVE if span.group(1) == "%" else DIFFERENCE
        numbers.append((float(match.group().replace("−", "-")), widest))
    return numbers


def points(metadata: dict) -> float:
    """The tolerance a cell asks for; refused where it asks for too much."""
    asked = float(metadata.get("tolerance_points", 0))
    widest = (
        WIDEST_LIVE if "trains-live" in metadata.get("tags", []) else WIDEST
    )
    if not 0 <= asked <= widest:
        raise ValueError(
            f"tolerance_points is {asked:g}, at most {widest:g} is allowed here"
        )
    return asked


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if type(item).__name__ == "IPyNbCell":
            _soften(item)
    return (yield)


def _soften(cell) -> None:
    exact, tolerance = cell.sanitize, points(cell.cell.metadata)

    def sanitize(text):
        if not isinstance(text, str):
            return exact(text)
        output = Output(PICTURE.sub("data:image/png", exact(text)))
        output.points = tolerance
        return output

    cell.sanitize = sanitize
