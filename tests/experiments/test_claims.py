"""The front page's verdicts follow from what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from apudae.standings import Standings

from apudae import claims, robustness

BOOK = Path(__file__).parents[1] / "book"


def claim(other, one):
    return claims.Claim("a", "b", "c", torch.tensor(other), torch.tensor(one), "05_x")


@pytest.mark.parametrize(
    ("other", "one", "verdict"),
    [
        ([False] * 40, [True] * 40, claims.HOLDS),
        ([True] * 40, [False] * 40, claims.FAILS),
        ([True, False] * 20, [False, True] * 20, claims.OPEN),
        ([False] * 3 + [True] * 37, [True] * 40, claims.OPEN),
        ([0.1] * 40, [0.9] * 39 + [0.8], claims.HOLDS),
        ([False] * 40, [False] * 40, claims.NOTHING),
        ([True] * 2 + [False] * 38, [False] * 40, claims.NOTHING),
        ([True] * 3 + [False] * 37, [False] * 40, claims.OPEN),
    ],
)
def test_a_verdict_follows_from_the_interval(other, one, verdict):
    found = claim(other, one)
    assert found.verdict == verdict
    assert found.row()[-1] == f"[{verdict}](05_x)" and found.row()[1] == "40 c"


def test_the_claims_are_read_from_the_records():
    found = list(claims.claims())
    assert [c.text for c in found[:9]] == [claims.CLEANS, claims.BETTER, claims.STURDIER] * 3
    digits = Standings.load()
    assert torch.equal(found[0].one, digits.right("direct", "PGD", 0.2))
    chosen = robustness.load("chosen", 0.2)
    assert found[2].one.double().mean() == pytest.approx(chosen.worst.percent / 100)
    assert found[2].verdict == claims.FAILS
    assert len(found[9].one) >= 100 and found[9].attacker == claims.ALL
    for photographs in found[6:9]:  # only those that the bare classifier reads rightly
        assert len(photographs.one) == 88


def test_the_chapter_that_a_claim_leads_to_shows_its_numbers():
    for one in claims.claims():
        told = (BOOK / f"{one.chapter}.ipynb").read_text()
        for part in (one.other, one.one):
            percent = f"{100 * part.double().mean().item():.1f} %"
            shown = rf"(?<![\d.]){re.escape(percent)}"  # 2.0 % is not a part of 82.0 %
            assert re.search(shown, told), (one.text, one.images, percent)


def test_the_table_leads_to_each_proof():
    text = claims.table()._repr_markdown_()
    assert len(re.findall(r"\[[a-z ]+\]\(\d\d_\w+\)", text)) == 10
    assert re.findall(r"(?m)^\| (\d)", text) == list("1112223334")
