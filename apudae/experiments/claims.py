"""The paper's claims with this book's verdicts, read from the records.

The claims are those of the abstract (Kalaria et al. 2022); what is measured is this book's
re-implementation. Whether one keeps more than the other follows from an interval, never from a
point; where both keep next to nothing the question has lost its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..core.scores import Accuracy, Difference, paired_difference, same_images
from ..plots import Table
from .choose import best, outcomes
from .compare import STRONG
from .digit_choices import PURIFIER_EPS, VARIANTS
from .digits import KNOWN, PURIFIER_VERDICT, ROBUSTNESS
from .place import Place
from .results import results

HOLDS, FAILS, OPEN, NOTHING = "holds", "does not hold", "not decided", "both fall"
LITTLE = 5.0  # per cent: what keeps no more has fallen
CLEANS, BETTER = "1. a DAE helps", "2. adaptive beats direct"
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
        return paired_difference(self.other, self.one)

    @property
    def verdict(self) -> str:
        """What the interval says; :data:`NOTHING` where both keep at most :data:`LITTLE` %."""
        if max(Accuracy.of(part).percent for part in (self.other, self.one)) <= LITTLE:
            return NOTHING
        return HOLDS if self.gain.low > 0 else FAILS if self.gain.high < 0 else OPEN

    def row(self) -> list[str]:
        """Its cells in :func:`claims`."""
        before, after = (f"{Accuracy.of(k).percent:.1f} %" for k in (self.other, self.one))
        return [
            self.text,
            f"{len(self.one):,} {self.images}",
            f"[{self.verdict}]({self.chapter})",
            f"{before} → {after}".replace(" ", "\N{NO-BREAK SPACE}"),
            str(self.gain),
        ]


def each_claim(place: Place | None = None) -> Iterator[Claim]:
    """The three claims on digits, on CIFAR-10 and on photographs; then one of this book's own.

    Of what a record of colours does not have yet nothing is said; those of digits must be there.
    """
    place = place or Place()
    digits, eps = results("mnist", place=place), 0.2
    on = f"digits, {eps}"
    pair = digits.shared(["no defense", "direct"], "PGD", eps)
    yield Claim(CLEANS, PART, on, *pair, "09_against_other_defenses")
    record = place.record(VARIANTS.record)
    tested = [row for row in record["rows"] if row["split"] == "test"]
    rows = [best(tested, name) for name in ("direct", record["chosen"]["variant"])]
    pair = [outcomes(row)[record["eps"].index(eps)] for row in rows]
    yield Claim(BETTER, PART, on, *pair, "06_adaptive_purification")
    judged = {(row.defense, row.eps): row for row in (*ROBUSTNESS, PURIFIER_VERDICT)}

    def pair_of(*names: str, eps: float) -> list[Tensor]:
        return same_images(*(judged[name, eps].outcomes(place) for name in names))

    pair = pair_of("direct", "adaptive, chosen", eps=eps)
    yield Claim(STURDIER, ALL, on, *pair, "08_honest_evaluation")
    known = {(row.defense, row.eps): row for row in KNOWN if row.load(place)}
    for name, at in known:
        if name == "white-box choice" and ("direct", at) in known:
            pair = same_images(*(known[k, at].outcomes(place) for k in ("direct", name)))
            told = f"digits, {at:g}, chosen against this attacker"
            yield Claim(STURDIER, ALL, told, *pair, "08_honest_evaluation")
    yield from _of_colours("cifar10", "CIFAR-10 (JPEG copy), 8/255", "10_cifar10", place)
    yield from _of_colours("imagenet", "photographs, 4/255", "11_imagenet", place, relative=True)
    eps = PURIFIER_EPS["linf"]
    pair = pair_of("direct", "purifier", eps=eps)
    yield Claim(TRAINED, ALL, f"digits, {eps}", *pair, "13_a_purifier_that_holds")


def _of_colours(
    name: str, images: str, chapter: str, place: Place, *, relative: bool = False
) -> Iterator[Claim]:
    """The same of colour images, at the smallest ε, with the variant that was chosen.

    Args:
        name: of the study.
        images: as in :class:`Claim`.
        chapter: as in :class:`Claim`.
        place: of the records.
        relative: on those images alone that the bare classifier reads rightly, clean.
    """
    found = results(name, place=place)
    study = found.study
    _, chosen = study.kept(study.choice.chosen(place))
    for text, pair, attack in (
        (CLEANS, ("no defense", "direct"), "PGD"),
        (BETTER, ("direct", chosen), "PGD"),
        (STURDIER, ("direct", chosen), STRONG),
    ):
        eps = min(study.epsilons)
        if not all(found.has(name, attack, eps) for name in pair):
            continue
        right = found.shared(pair, attack, eps, relative=relative)
        yield Claim(text, ALL if attack == STRONG else PART, images, *right, chapter)


def claims(place: Place | None = None) -> Table:
    """Claim by claim; each verdict leads to the chapter that measures it."""
    rows = sorted((claim.row() for claim in each_claim(place)), key=lambda row: row[0])
    return Table(["claim", "images, ε", "verdict", "kept", "difference"], rows, text=3)
