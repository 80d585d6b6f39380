"""The paper's claims with this book's verdicts, read from the records.

The claims are those of the abstract (Kalaria et al. 2022); what is measured is this book's
re-implementation. Whether one keeps more than the other follows from an interval, never from a
point; where both keep next to nothing the question has lost its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from . import cifar, comparison, imagenet, records, robust_purifier, robustness
from .lineup import CLEAN, STRONG, Lineup
from .plots import Table
from .scores import Accuracy, Difference, paired_difference
from .standings import Standings

HOLDS, FAILS, OPEN, NOTHING = "holds", "does not hold", "not decided", "both fall"
LITTLE = 5.0  # per cent: what keeps no more has fallen
CLEANS = "1. a DAE helps"
BETTER = "2. adaptive beats direct"
STURDIER = "3. even if the attacker knows"
TRAINED = "4. trained on attacks"  # this book's own
PART, ALL = "knows the classifier", "knows everything"


@dataclass(frozen=True)
class Claim:
    """A claim and what was measured of it.

    Attributes:
        text: what is claimed, in short: that ``one`` keeps more images than ``other``.
        attacker: what it knows.
        images: what was measured on, with the attack's ε.
        other: outcomes of what it is held against, per image: bool or rates ``[N]``.
        one: outcomes of what the claim speaks of, on the same images.
        chapter: file of the chapter that measures it, without suffix.
    """

    text: str
    attacker: str
    images: str
    other: Tensor
    one: Tensor
    chapter: str

    @property
    def gain(self) -> Difference:
        """How many points ``one`` is better, paired."""
        pair = self.other, self.one
        if any(part.is_floating_point() for part in pair):
            pair = tuple(part.double() for part in pair)
        return paired_difference(*pair)

    @property
    def verdict(self) -> str:
        """What the interval says; :data:`NOTHING` where both keep at most :data:`LITTLE` %."""
        if max(Accuracy.of(part).percent for part in (self.other, self.one)) <= LITTLE:
            return NOTHING
        return HOLDS if self.gain.low > 0 else FAILS if self.gain.high < 0 else OPEN

    def row(self) -> list[str]:
        """Its cells in :func:`table`."""
        before, after = (Accuracy.of(part).percent for part in (self.other, self.one))
        kept = f"{before:.1f} % → {after:.1f} %".replace(" ", "\N{NO-BREAK SPACE}")
        images, told = f"{len(self.one):,} {self.images}", f"[{self.verdict}]({self.chapter})"
        return [self.text, images, kept, str(self.gain), told]


def claims() -> Iterator[Claim]:
    """The three claims on digits, on CIFAR-10 and on photographs; then one of this book's own."""
    digits, eps = Standings.load(), 0.2
    told = f"digits, {eps}"
    pair = [digits.right(name, "PGD", eps) for name in ("no defense", "direct")]
    yield Claim(CLEANS, PART, told, *pair, "09_against_other_defenses")
    tried = records.load("mnist_variants")
    pair = [
        comparison.outcomes(tried, "test", name)[tried["eps"].index(eps)]
        for name in ("direct", tried["chosen"]["variant"])
    ]
    yield Claim(BETTER, PART, told, *pair, "06_adaptive_purification")
    pair = [robustness.load(name, eps).right() for name in ("direct", "chosen")]
    yield Claim(STURDIER, ALL, told, *pair, "08_honest_evaluation")
    colours = cifar.lineup(cifar.made_on()), cifar.PLAN.record
    yield from _natural("CIFAR-10 (JPEG copy), 8/255", *colours, "10_cifar10")
    photographs = imagenet.lineup(), imagenet.PLAN.record
    yield from _natural("photographs, 4/255", *photographs, "11_imagenet", relative=True)
    found, eps = Standings.load(lineup=robust_purifier.lineup()), robust_purifier.EPS["linf"]
    one, other = found.right("purifier", STRONG, eps), digits.right("direct", STRONG, eps)
    n = min(len(one), len(other))
    yield Claim(TRAINED, ALL, f"digits, {eps}", other[:n], one[:n], "13_a_purifier_that_holds")


def _natural(
    images: str, line: Lineup, choice: str, chapter: str, *, relative: bool = False
) -> Iterator[Claim]:
    """The same of colour images, at the smallest ε, with the variant that was chosen.

    Args:
        images: as in :class:`Claim`.
        line: what was compared.
        choice: name of the record of the choice.
        chapter: as in :class:`Claim`.
        relative: on those images alone that :meth:`Standings.relative` counts.
    """
    found, eps = Standings.load(lineup=line), min(line.epsilons)
    chosen = f"adaptive, {records.load(choice)['chosen']['variant']}"
    for text, other, one, attack in (
        (CLEANS, "no defense", "direct", "PGD"),
        (BETTER, "direct", chosen, "PGD"),
        (STURDIER, "direct", chosen, STRONG),
    ):
        pair = [found.right(name, attack, eps) for name in (other, one)]
        n = min(map(len, pair))
        known = found.right("no defense", CLEAN)[:n]
        pair = [part[:n][known] if relative else part[:n] for part in pair]
        yield Claim(text, ALL if attack == STRONG else PART, images, *pair, chapter)


def table() -> Table:
    """Claim by claim; each verdict leads to the chapter that measures it."""
    rows = sorted((claim.row() for claim in claims()), key=lambda row: row[0])
    return Table(["claim", "images, ε", "kept", "difference", "verdict"], rows, text=2)
