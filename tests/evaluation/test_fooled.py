"""Defenses of kinds that fooled a protocol before: what it reports of them is near the truth.

Each stands before a classifier that half of the digits fell of, and hides nothing but that.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import support
import torch
from support import SMALL, module_of, names, run, small
from torch import nn
from torch.nn import functional as F

from apudae import attacks, data
from apudae.core.norms import Ball
from apudae.evaluation import Report
from apudae.evaluation.could_win import could_win
from apudae.evaluation.isolation import Isolated, isolated, remembers, sees_neighbours, spare
from apudae.evaluation.substitutes import distil

EPS = 0.08
BUDGET = replace(SMALL, pgd=20, apgd=20, queries=50)
OPTIONS = {"eps": EPS, "curves": False, "budget": BUDGET}


@pytest.fixture(scope="module")
def digits():
    return support.read(24)


@pytest.fixture(scope="module")
def base(digits):
    report = run(small(), digits, **OPTIONS)
    assert report.findings == [] and 8 <= report.worst.correct <= 16
    return report


class Over(nn.Module):
    """Something round a classifier."""

    def __init__(self):
        super().__init__()
        self.net = small()


class Remembering(Over):
    """What is near a query of before is answered as that was."""

    def __init__(self):
        super().__init__()
        self.seen, self.told = [], []

    def forward(self, x):
        fresh = self.net(x)
        for k, (image, logits) in enumerate(zip(x.detach(), fresh.detach(), strict=True)):
            gaps = [(image - old).abs().amax() for old in self.seen]
            if gaps and min(gaps) < 0.2:
                at = int(torch.stack(gaps).argmin())
                fresh = fresh.index_put((torch.tensor(k),), self.told[at])
            else:
                self.seen.append(image.clone())
                self.told.append(logits.clone())
        return fresh


class Voting(Over):
    def forward(self, x):
        each = [self.net(x.roll(by, 3)).argmax(1) for by in (-1, 0, 0, 0, 1)]
        return sum(F.one_hot(vote, 10).to(x) for vote in each)


class Anything(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.randn_like(gradient)


class Astray(Over):
    def forward(self, x):
        return self.net(Anything.apply(x))


class Abroad(Over):
    def forward(self, x):
        return self.net(torch.from_numpy((x.detach().numpy() * 100).round() / 100))


class Level(Over):
    def forward(self, x):
        logits = self.net(x)
        first, second = logits.topk(2, 1).values.T
        sure = F.one_hot(logits.argmax(1), 10) * 20.0
        return torch.where((first - second > 0.5)[:, None], sure, logits)


class Silent(Over):
    """A class more for what it is not sure of, and a tenth of the clean images are so."""

    def forward(self, x):
        logits = self.net(x)
        doubt = logits.amax(1) + 20 * (0.7 - logits.softmax(1).amax(1))
        return torch.cat([logits, doubt[:, None]], 1)


class Patient(Over):
    """It smooths all images until it is sure of each."""

    def forward(self, x):
        for _ in range(4):
            if self.net(x).softmax(1).amax(1).min() > 0.9:
                break
            x = (x + F.avg_pool2d(x, 3, 1, 1)) / 2
        return self.net(x)


@pytest.mark.parametrize(
    ("defense", "warning"),
    [
        (Remembering, "answers depend on the past"),
        (Voting, "flat logits"),
        (Astray, "random gradients"),
        (Abroad, "zero gradients"),
        (Level, "flat logits"),
    ],
)
def test_what_is_reported_is_what_the_classifier_behind_keeps(defense, warning, digits, base):
    report = run(defense(), digits, **OPTIONS)
    assert warning in names(report)
    assert report.worst.correct <= base.worst.correct + 3
    (finding,) = (f for f in report.findings if f.name == warning)
    assert ("in response" in finding.seen) or ("fresh copies are attacked" in finding.seen)


def test_a_stop_that_looks_at_the_batch_is_taken_out(digits, base):
    report = run(Patient(), digits, **OPTIONS)
    assert "answers depend on the batch" in names(report)
    alone = torch.cat([Patient()(z[None]) for z in report.images]).argmax(1) == digits.labels
    assert torch.equal(alone, report.right())
    assert report.worst.correct <= base.worst.correct + 8  # smoothing helps a little


def test_abstentions_are_an_outcome_of_their_own(digits):
    report = run(Silent(), digits, abstain=10, **OPTIONS)
    silent = Silent()(digits.images).argmax(1) == 10
    assert report.abstained["clean"] == silent.int().tolist()
    fooled = sum(report.abstained["fooled"])
    assert 0 < fooled < len(digits.labels) - report.worst.correct  # some only got it to be silent
    assert "abstains on" in report.summary() and "and a wrong one" in report.summary()
    assert Report.from_dict(report.to_dict()).abstained == report.abstained
    assert "a class that no image has" not in names(report)
    assert "a class that no image has" in names(run(Silent(), digits, **OPTIONS))
    with pytest.raises(ValueError, match="abstain: expected an integer from 0 to 10, got 11"):
        run(Silent(), digits, abstain=11, **OPTIONS)


def test_a_substitute_of_the_caller_is_transferred_from(digits, base):
    deaf = module_of(lambda x: small()(x).detach())
    report = run(deaf, digits, substitutes={"a twin": small()}, **OPTIONS)
    assert {"transfer from a twin", "along a twin"} <= {row.name for row in report.rows}
    assert report.worst.correct <= base.worst.correct + 2


def test_a_record_belongs_to_its_substitutes_and_names_keep_apart(digits, tmp_path):
    deaf, few = module_of(lambda x: small()(x).detach()), data.Split(*digits.take(6))
    options = OPTIONS | {"record": tmp_path / "mine"}
    run(deaf, few, substitutes={"a twin": small()}, **options)
    with pytest.raises(ValueError, match="was made with another substitutes"):
        run(deaf, few, substitutes={"a twin": Voting()}, **options)
    own = {"Square, again": attacks.noise}
    report = run(deaf, few, attacks=own, **OPTIONS)
    rows = {row.name for row in report.rows}
    assert {"Square, again", "Square, again, in response"} <= rows
    with pytest.raises(ValueError, match="'along a twin' is one of the protocol's own"):
        taken = {"along a twin": attacks.noise}
        run(deaf, few, substitutes={"a twin": small()}, attacks=taken, **OPTIONS)


# --- the pieces ---------------------------------------------------------------------------------


def test_memories_are_found_emptied_and_told_from_other_state(digits):
    x, index = digits.images[:8], torch.arange(8)

    class Counting(Over):
        def forward(self, x):
            self._calls = getattr(self, "_calls", 0) + 1
            return self.net(x)

    class Drawing(Over):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x):
            return self.net(x + 0.1 * torch.randn(x.shape, generator=self.generator))

    for model in (small(), Counting(), Drawing(), Voting(), Patient()):
        assert not remembers(spare(model), x, index)
    model = Remembering()
    model(x)  # asked before it came here
    kept = spare(model)
    assert remembers(kept, x, index)
    found, told = isolated(model, kept, x, index)
    assert isinstance(found, Isolated) and list(told) == ["answers depend on the past"]
    near = (x + 0.1).clamp(0, 1)
    torch.testing.assert_close(found(near), small()(near))
    assert len(model.seen) == 8  # the caller's model was left alone


def test_neighbours_are_noticed_where_they_matter_and_only_there(digits):
    x, index = digits.images[:8], torch.arange(8)
    for model in (small(), Voting(), Level(), nn.Sequential(nn.InstanceNorm2d(1), small())):
        assert not sees_neighbours(model, x, index)
    assert sees_neighbours(Patient(), x, index)
    shy = module_of(lambda x: small()(x + x.mean(0, keepdim=True)))
    assert sees_neighbours(shy, x, index)


def test_estimated_gradients_of_a_linear_model_are_its_gradients(linear, generator):
    x = 0.3 + 0.4 * torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 2])
    exact = attacks.Objective(linear, "margin").gradient(x, y)
    view = attacks.NES(linear, 1e-3, samples=4000)
    value, fell, found = attacks.Objective(view, "margin").gradient(x, y)
    torch.testing.assert_close(value, exact[0])
    assert torch.equal(fell, exact[1])
    cosine = F.cosine_similarity(found.flatten(1), exact[2].flatten(1))
    assert cosine.min() > 0.99  # of 16 pixels and 4000 draws: 1 - 16 / 8000
    part = attacks.Objective(view, "margin").gradient(x[1:], y[1:])[2]
    torch.testing.assert_close(part, found[1:])  # no image knows of the others


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_walk_along_the_border_ends_at_the_nearest_point_of_a_plane(norm, generator):
    """Two classes, linear: the distance of the border is known."""
    weight = torch.randn(16, generator=generator, dtype=torch.float64)

    def score(z):
        return (z.flatten(1) - 0.5) @ weight

    model = module_of(lambda z: torch.stack([-score(z), score(z)], 1).sign() + 0 * z.sum())
    slope = module_of(lambda z: torch.stack([-score(z), score(z)], 1))
    x = 0.5 + 0.05 * torch.randn(20, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = (score(x) > 0).long()
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    gap = score(x).abs() / dual
    eps = gap.median().item() * 1.001
    options = {"eps": eps, "norm": norm, "steps": 30}
    for view, slack in ((attacks.Surrogate(model, slope), 1.02),):
        z = attacks.boundary(view, x, y, **options)
        fell = model(z).argmax(1) != y
        assert fell[gap * slack < eps].all() and not fell[gap > eps].any()


def test_a_learned_substitute_is_the_same_again_and_transfers(digits):
    ball, y = Ball(digits.images, 0.15), digits.labels
    options = {"classes": 10, "queries": 16, "seed": 3}
    one, other = (distil(small(), ball, y, **options) for _ in range(2))
    z = attacks.apgd(one, *digits, eps=0.15, steps=20)
    assert torch.equal(one(z), other(z))
    noisy = attacks.noise(small(), *digits, eps=0.15)
    left, idle = ((small()(w).argmax(1) == digits.labels).sum() for w in (z, noisy))
    assert left <= idle - 3


class Voting(Over):
    """The class that most shifted copies are read as."""

    def forward(self, x):
        shifts = [(i, j) for i in (-2, 0, 2) for j in (-2, 0, 2)]
        read = [self.net(x.roll(shift, (2, 3))).argmax(1) for shift in shifts]
        return F.one_hot(torch.stack(read), 10).sum(0).float()


def test_votes_are_attacked_by_the_probabilities_behind_them(digits):
    """Not by the mean of the logits, where those that have fallen for long weigh most."""
    model, (x, y) = Voting().eval(), digits
    views = attacks.inside.views_of(model, x)
    view = next(view for name, view in views.items() if name.endswith("as called"))
    ((said, own),) = view.looks(x[:3].clone().requires_grad_(True), 0)
    shifts = [(i, j) for i in (-2, 0, 2) for j in (-2, 0, 2)]
    chances = torch.stack([small()(x[:3].roll(k, (2, 3))).softmax(1) for k in shifts])
    assert not own
    torch.testing.assert_close(said.softmax(1), chances.mean(0))
    left = (model(attacks.apgd(view, x, y, eps=EPS, steps=20, loss="margin")).argmax(1) == y).sum()
    assert left <= (model(attacks.noise(model, x, y, eps=EPS)).argmax(1) == y).sum() - 4


def test_attacks_that_could_win_are_told_from_those_that_cannot(digits):
    ball = Ball(digits.images, EPS)
    found = could_win(small(), ball, digits.labels)
    assert sum(found["found"]) >= 9 and sum(found["rises"]) == 10
    assert sum(found["by chance"]) <= 5
    blind = could_win(module_of(lambda x: small()(x.detach())), ball, digits.labels)
    assert sum(blind["found"]) <= 4 and sum(blind["rises"]) == 0
    deaf = module_of(lambda x: small()(x.detach()))
    report = run(deaf, data.Split(*digits.take(20)), **OPTIONS | {"curves": True})
    assert {"the attack cannot win", "the loss does not rise"} <= names(report)
    assert Report.from_dict(report.to_dict()).could_win == report.could_win
    assert "attack unit tests passed: " in report.summary()
