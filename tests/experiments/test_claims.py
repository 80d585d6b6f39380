"""The front page's verdicts follow from what was measured."""

from __future__ import annotations

import re

import pytest
import torch
from support import BOOK

from apudae import experiments
from apudae.experiments.claims import (
    ALL,
    BETTER,
    CLEANS,
    FAILS,
    HOLDS,
    NOTHING,
    OPEN,
    STURDIER,
    Claim,
    each_claim,
)


@pytest.fixture(scope="module")
def found():
    return list(each_claim())


@pytest.mark.parametrize(
    ("other", "one", "verdict"),
    [
        ([False] * 40, [True] * 40, HOLDS),
        ([True] * 40, [False] * 40, FAILS),
        ([True, False] * 20, [False, True] * 20, OPEN),
        ([False] * 3 + [True] * 37, [True] * 40, OPEN),
        ([0.1] * 40, [0.9] * 39 + [0.8], HOLDS),
        ([False] * 40, [False] * 40, NOTHING),
        ([True] * 2 + [False] * 38, [False] * 40, NOTHING),
        ([True] * 3 + [False] * 37, [False] * 40, OPEN),
    ],
)
def test_a_verdict_follows_from_the_interval(other, one, verdict):
    claim = Claim("a", "b", "c", torch.tensor(other), torch.tensor(one), "05_x")
    assert claim.verdict == verdict
    assert claim.row()[2] == f"[{verdict}](05_x)" and claim.row()[1] == "40 c"


def test_the_claims_are_read_from_the_records(found):
    again = [c for c in found if c.images.endswith("chosen against this attacker")]
    assert {(c.text, c.attacker) for c in again} == {(STURDIER, ALL)}
    assert [len(c.one) for c in again] == [200, 1000, 1000]  # at 0.1, 0.2 and 0.3
    found = [c for c in found if c not in again]
    assert [c.text for c in found[:9]] == [CLEANS, BETTER, STURDIER] * 3
    digits = experiments.results("mnist")
    assert torch.equal(found[0].one, digits.right("direct", "PGD", 0.2))
    chosen = experiments.verdict("mnist", "adaptive, chosen", 0.2)
    assert found[2].one.double().mean() == pytest.approx(chosen.worst.percent / 100)
    assert found[2].verdict == FAILS
    assert len(found[9].one) >= 100 and found[9].attacker == ALL
    bare = experiments.results("imagenet").right("no defense", experiments.CLEAN)
    for photographs in found[6:9]:  # only those that the bare classifier reads rightly
        assert len(photographs.one) == bare.sum()


def test_the_chapter_that_a_claim_leads_to_shows_its_numbers(found):
    for one in found:
        told = (BOOK / f"{one.chapter}.ipynb").read_text()
        for part in (one.other, one.one):
            percent = f"{100 * part.double().mean().item():.1f} %"
            shown = rf"(?<![\d.]){re.escape(percent)}"  # 2.0 % is not a part of 82.0 %
            assert re.search(shown, told), (one.text, one.images, percent)


def test_the_table_leads_to_each_proof():
    text = experiments.claims()._repr_markdown_()
    assert len(re.findall(r"\[[a-z ]+\]\(\d\d_\w+\)", text)) == 13
    assert re.findall(r"(?m)^\| (\d)", text) == list("1112223333334")
