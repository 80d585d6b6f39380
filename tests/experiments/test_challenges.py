"""Entries of readers: twelve that pass, twelve that cheat, and what is asked of both."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apudae import attacks, data
from apudae.evaluation import Budget
from apudae.experiments import CHALLENGES, challenge, challenges, judging
from apudae.experiments.challenges import STANDINGS, YOURS
from apudae.experiments.judging import INVALID, MEDDLES, OUTSIDE, RECITES
from apudae.experiments.place import Place

DAE = "mnist-dae"


def by_hand(view=lambda model: model, steps=40):
    """Projected steps along the sign of the cross-entropy's gradient."""

    def mine(model, x, y, eps):
        z = x
        for _ in range(steps):
            z = z.detach().requires_grad_()
            loss = F.cross_entropy(view(model)(z).double(), y, reduction="sum")
            (slope,) = torch.autograd.grad(loss, z)
            z = torch.clamp(z + eps / 8 * slope.sign(), x - eps, x + eps).clamp(0, 1)
        return z

    return mine


def through(model):
    """Straight through a purifier: its output, the gradient of the identity."""
    return lambda z: model.classifier(z + (model.purifier(z.detach()) - z.detach()))


def net(name):
    return Place().model(name)


def bpda(model, x, y, eps):
    return attacks.apgd(attacks.BPDA(model), x, y, eps=eps, steps=15)


def cleaned(*names):
    """One network after the other."""
    return lambda x: functools.reduce(lambda z, name: net(name)(z), names, x)


SOLUTIONS = {
    ("attack-0.1", "steps by hand"): by_hand(),
    ("attack-0.1", "PGD, two starts"): lambda model, x, y, eps: attacks.pgd(
        model, x, y, eps=eps, steps=20, restarts=2
    ),
    ("attack-0.1", "APGD"): lambda model, x, y, eps: attacks.apgd(model, x, y, eps=eps, steps=20),
    ("attack-rounding-0.2", "straight through"): by_hand(through),
    ("attack-rounding-0.2", "BPDA"): bpda,
    ("attack-jpeg", "BPDA"): bpda,
    ("digits-0.2", "the DAE"): cleaned(DAE),
    ("digits-0.2", "the DAE twice"): cleaned(DAE, DAE),
    ("digits-0.2", "the DAE on a dimmed image"): lambda x: net(DAE)(0.9 * x),
    ("digits-0.2", "the trained purifier, then the DAE"): cleaned("mnist-purifier", DAE),
    ("digits-0.3", "the trained purifier"): cleaned("mnist-purifier"),
    ("digits-0.3", "the trained purifier, dimmed"): lambda x: 0.95 * net("mnist-purifier")(x),
}


def remembering():
    """The answer to the first of near duplicates, for ever."""
    asked, answers = [], []

    def mine(x):
        found = []
        for one in x.split(1):
            near = [k for k, old in enumerate(asked) if (old - one).abs().max() < 0.45]
            if not near:
                asked.append(one.detach())
                answers.append(net(DAE)(one).detach())
            found.append(answers[near[0] if near else -1])
        return torch.cat(found)

    return mine


def waiting(most=100):
    """A memory that begins after more queries than a first look has, by a count that may change."""
    _calls, asked = [0], []

    def mine(x):
        _calls[0] += 1
        if _calls[0] > most:
            asked.append(x.detach()[:1])
        return net(DAE)(x)

    return mine


class Remembering:
    """The same memory in a class."""

    answer = staticmethod(remembering())
    kept: list[torch.Tensor] = []  # noqa: RUF012

    def __call__(self, x):
        self.kept.append(x.detach())
        return type(self).answer(x)


class Told(nn.Module):
    """Draws another digit of the class that the place belongs to, once it is told the place."""

    def forward(self, x, index=None, draw=0):
        known, labels = data.load("mnist", "validation").take(40)
        if index is None:
            return net(DAE)(x) * 0.1
        return torch.stack([known[labels == labels[k]][0] for k in index.tolist()]) + 0 * x


def by_heart(x):
    """The stored digit that is nearest, softly."""
    known = data.load("mnist", "validation").images[:100]
    gaps = torch.cdist(x.flatten(1), known.flatten(1)).square()
    return torch.einsum("nk,kchw->nchw", torch.softmax(-gaps, 1), known)


class Lying(torch.autograd.Function):
    """The DAE with a gradient of chance."""

    @staticmethod
    def forward(context, x):
        return net(DAE)(x)

    @staticmethod
    def backward(context, slope):
        return torch.randn_like(slope)


def recited(model, x, y, eps):
    """Attacked images, made once for the digits as they are."""
    known, labels = data.load("mnist", "validation").take(len(x))
    return attacks.pgd(model, known, labels, eps=eps, steps=20)


def meddling(model, x, y, eps):
    """Every model of this kind reads the class after the right one."""
    wrong = F.one_hot((y + 1) % 10, 10).float()
    type(model).forward = lambda self, images: wrong[: len(images)]
    return x


CHEATS = {
    ("digits-0.2", "no gradient"): lambda x: net(DAE)(x).detach(),
    ("digits-0.2", "a detour through numpy"): lambda x: torch.from_numpy(
        net(DAE)(x).detach().numpy()
    ),
    ("digits-0.2", "a gradient of chance"): Lying.apply,
    ("digits-0.2", "chance"): lambda x: net(DAE)(x + 0.1 * torch.randn_like(x)),
    ("digits-0.2", "a memory"): remembering(),
    ("digits-0.2", "neighbours"): lambda x: net(DAE)((x + 0.6 * x.mean(0)).clamp(0, 1)),
    ("digits-0.2", "digits by heart"): by_heart,
    ("digits-0.3", "a cut before the DAE"): lambda x: net(DAE)(((x - 0.3) / 0.7).clamp(0, 1)),
    ("attack-0.1", "twice the radius"): lambda model, x, y, eps: attacks.pgd(
        model, x, y, eps=2 * eps, steps=20
    ),
    ("digits-0.2", "a memory in a class"): Remembering(),
    ("digits-0.2", "a memory that waits"): waiting(),
    ("digits-0.2", "told the place"): Told(),
    ("attack-0.1", "blacker than black"): lambda model, x, y, eps: x - eps / 2,
    ("attack-0.1", "no numbers"): lambda model, x, y, eps: x * torch.nan,
    ("attack-0.1", "attacked images by heart"): recited,
    ("attack-0.1", "another model"): meddling,
}


@pytest.fixture
def fewer(monkeypatch):
    """Twenty images, and hardly any budget: what is caught so is caught with more."""
    small = Budget(8, 8, targets=1, queries=20, weights=(0.1,), scoring=4, curve=10)
    monkeypatch.setattr(judging, "BUDGET", small)
    monkeypatch.setattr(challenges, "_BEST", {})
    for name, asked in CHALLENGES.items():
        few = lambda place, load=asked.images: load(place).take(20)  # noqa: E731
        monkeypatch.setitem(CHALLENGES, name, replace(asked, images=few))


def named(pairs):
    return pytest.mark.parametrize(("name", "what"), pairs, ids=[" | ".join(p) for p in pairs])


@named(SOLUTIONS)
def test_a_solution_passes(name, what, fewer):
    score = challenge(name, SOLUTIONS[name, what])
    assert score.passed and "PASSED" in repr(score), score


SEEN = {
    "no gradient": "zero gradients",
    "a detour through numpy": "zero gradients",
    "a gradient of chance": "random gradients",
    "chance": "random forward",
    "a memory": "answers depend on the past",
    "a memory in a class": "answers depend on the past",
    "a memory that waits": "answers depend on the past",
    "blacker than black": OUTSIDE,
    "neighbours": "answers depend on the batch",
    "digits by heart": RECITES,
    "twice the radius": OUTSIDE,
    "no numbers": INVALID,
    "attacked images by heart": OUTSIDE,
    "another model": MEDDLES,
}


@named(CHEATS)
def test_a_cheat_does_not_pass_and_is_named(name, what, fewer):
    score = challenge(name, CHEATS[name, what])
    assert not score.passed and "not passed" in repr(score), score
    if what in SEEN:
        assert SEEN[what] in score.row["warnings"], score


def test_there_is_a_solution_of_each_and_more_cheats_than_solutions():
    assert {name for name, _ in SOLUTIONS} == set(CHALLENGES)
    assert len(CHEATS) >= len(SOLUTIONS) >= 12


def test_who_changes_how_modules_answer_changes_nothing_for_long(fewer):
    kind = type(net("mnist-cnn"))
    before = kind.forward
    for _ in range(2):
        assert MEDDLES in challenge("attack-0.1", meddling).row["warnings"]
        assert kind.forward is before
    assert challenge("attack-0.1", lambda model, x, y, eps: x).row["correct"] == [20, 20]


def test_an_attack_may_change_the_copy_that_it_is_given(fewer):
    def around(model, x, y, eps):
        model.purifier = nn.Identity()
        return attacks.pgd(model, x, y, eps=eps, steps=20)

    assert not challenge("attack-rounding-0.2", around).row["warnings"]


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        (lambda x: None, "mine: expected images .* got NoneType"),
        (lambda x: (x, x), "mine: expected images .* got tuple"),
        (lambda x: x[..., 1:], "mine: expected images .* got "),
        (lambda x: (255 * x).to(torch.uint8), "mine: expected images .* torch.uint8"),
        (lambda x: x * 2, "clamp them"),
    ],
)
def test_what_is_no_image_is_refused(mine, message, fewer):
    with pytest.raises(ValueError, match=message):
        challenge("digits-0.2", mine)


# --- what a score tells ---------------------------------------------------------------------------


def test_the_worse_version_counts_and_the_best_is_kept(fewer, tmp_path):
    good, bad = SOLUTIONS["attack-0.1", "APGD"], CHEATS["attack-0.1", "twice the radius"]
    first = challenge("attack-0.1", good, keep=tmp_path)
    assert first.before is None and first.counts == max(first.row["correct"])
    assert json.loads((tmp_path / "attack-0.1.json").read_text())["images"] == first.counts
    again = challenge("attack-0.1", bad, keep=tmp_path)
    assert again.before == first.counts and f"best before: {first.counts} of 20" in repr(again)
    assert challenge("attack-0.1", lambda model, x, y, eps: x).before == first.counts
    for images in (0, 20):  # what is better stays, what is worse does not
        (tmp_path / "attack-0.1.json").write_text(json.dumps({"images": images}))
        challenge("attack-0.1", good, keep=tmp_path)
        kept = json.loads((tmp_path / "attack-0.1.json").read_text())["images"]
        assert kept == min(images, first.counts)


def test_entries_are_ranked_among_the_books_own(fewer):
    score = challenge("attack-0.1", SOLUTIONS["attack-0.1", "APGD"])
    assert {YOURS, "FGSM", "noise"} < set(score.place)
    assert score.place.index(YOURS) < score.place.index("FGSM") < score.place.index("noise")
    assert challenge("digits-0.2", lambda x: x).row["correct"] == [0, 0]
    weak = challenge("digits-0.2", CHEATS["digits-0.2", "no gradient"])
    assert weak.place[-2:] == ["nothing", YOURS] and "no pass" in repr(weak)


def test_the_books_entries_are_recorded_and_the_marks_lie_between_them():
    assert not STANDINGS.missing(Place())
    rows = {(r["challenge"], r["who"]): r for r in Place().rows(STANDINGS.record)}
    assert set(rows) == {(name, who) for name, asked in CHALLENGES.items() for who in asked.own}
    for name in CHALLENGES:
        mine = [row for (where, _), row in rows.items() if where == name]
        met = [challenges.Score(name, row).passed for row in mine]
        assert any(met) and not all(met), name


def test_the_recorded_attacks_come_out_again():
    for name in ("attack-0.1", "attack-rounding-0.2"):
        asked, place = CHALLENGES[name], Place()
        for who, make in asked.own.items():
            row = asked.judge(make(place), place)
            stored = next(
                r for r in place.rows(STANDINGS.record) if (r["challenge"], r["who"]) == (name, who)
            )
            gaps = [abs(a - b) for a, b in zip(row["correct"], stored["correct"], strict=True)]
            assert max(gaps) <= 2, (name, who)


@pytest.mark.parametrize("mine", [None, 3, "pgd"])
def test_what_is_no_function_is_refused(mine):
    with pytest.raises(ValueError, match="mine: expected a function, got "):
        challenge("digits-0.2", mine)


def test_an_unknown_challenge_is_refused():
    with pytest.raises(ValueError, match=r"name: expected .*digits-0\.2"):
        challenge("digits", lambda x: x)


def test_shifted_images_are_moved_by_one_pixel():
    x, y = data.load("mnist", "validation").take(8)
    (same, labels), (moved, _) = CHALLENGES["digits-0.2"].versions(Place())
    assert torch.equal(same[:8], x) and torch.equal(labels[:8], y)
    assert torch.equal(moved[0, :, :-1], x[0, :, 1:]) and torch.equal(moved[1, :, 1:], x[1, :, :-1])
    assert torch.equal(moved[2, ..., :-1], x[2, ..., 1:])
    assert torch.equal(moved[7, ..., 1:], x[7, ..., :-1])
