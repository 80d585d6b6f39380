"""Certificates, against models whose smoothed version is known in closed form."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy.stats import binom, norm
from support import components, fresh, small
from torch import nn

from apudae import attacks, data, evaluation
from apudae.core import record
from apudae.core.arguments import AttackWarning
from apudae.evaluation import (
    ABSTAINED,
    Certificates,
    Smoothed,
    certification,
    certify,
    lower_bound,
    votes,
)
from apudae.purification import Defended, Direct

ALPHA = 0.05


class Half(nn.Module):
    """Class 1 on one side of a line through the image's plane: the exact radius is a distance."""

    def __init__(self, distance, direction=(0.6, 0.8)):
        super().__init__()
        self.distance = distance
        self.register_buffer("w", torch.tensor(direction).view(1, 1, 2))

    def forward(self, x):
        side = ((x - 0.5) * self.w).flatten(1).sum(1) + self.distance
        return torch.stack([torch.zeros_like(side), side], 1)


def grey(n):
    return torch.full((n, 1, 1, 2), 0.5)


def certified(model, x, **options):
    return certify(model, x, noise_trained=True, **{"alpha": ALPHA, "seed": fresh()} | options)


@pytest.mark.parametrize("distance", [0.2, 0.7])
def test_a_radius_is_too_large_no_more_often_than_alpha_allows(distance):
    found = certified(Half(distance), grey(2000), sigma=0.4, n=200)
    too_large = (found.radii > distance) & (found.predictions == 1)
    wrong = found.predictions == 0
    assert int((too_large | wrong).sum()) <= binom.ppf(0.9999, 2000, ALPHA)
    assert int((found.predictions == 1).sum()) > 500  # something was certified at all


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 3.0])
def test_with_many_draws_the_radius_is_nearly_the_exact_one(distance):
    found = certified(Half(0.3 * distance), grey(15), sigma=0.3, n=100_000, batch_size=50_000)
    assert (found.predictions == 1).all()
    assert found.radii.median() >= 0.95 * 0.3 * distance


def test_a_constant_classifier_is_certified_to_the_closed_form():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([0.0, 0.0, 1.0]).expand(len(x), 3)

    for n in (10, 1000):
        found = certified(Constant(), grey(3), sigma=0.25, n=n)
        expected = 0.25 * norm.ppf(ALPHA ** (1 / n))
        assert found.predictions.tolist() == [2, 2, 2]
        torch.testing.assert_close(found.radii, torch.full((3,), expected, dtype=torch.float64))


def test_a_fair_coin_abstains():
    found = certified(Half(0.0), grey(1000), sigma=0.5, n=500)
    abstained = int((found.predictions == ABSTAINED).sum())
    assert abstained >= binom.ppf(0.0001, 1000, 1 - ALPHA)
    k = int((found.predictions == ABSTAINED).nonzero()[0])
    assert math.isnan(found.radii[k])
    with pytest.raises(ValueError, match=rf"image {k}: the smoothed classifier abstains"):
        found.radius(k)


def test_the_bound_is_clopper_and_pearsons():
    """By its definition: with the bound as the truth, so many votes or more have probability α."""
    for k, n in ((7, 10), (960, 1000), (1, 30)):
        low = lower_bound(k, n, ALPHA)
        assert binom.sf(k - 1, n, low) == pytest.approx(ALPHA, rel=1e-6)
    assert lower_bound(0, 10, ALPHA) == 0


def test_votes_have_the_probability_of_the_half_plane():
    count = votes(Half(0.2).eval(), grey(1)[0], 0, 0.4, (0, 40_000), seed=fresh())[1]
    assert count.sum() == 40_000
    p = norm.cdf(0.5)
    assert binom.ppf(1e-5, 40_000, p) <= count[1] <= binom.ppf(1 - 1e-5, 40_000, p)


def test_the_choosing_draws_do_not_count():
    first, second = votes(Half(0.1).eval(), grey(1)[0], 3, 0.4, (250, 750), seed=1)
    alone = votes(Half(0.1).eval(), grey(1)[0], 3, 0.4, (1000,), seed=1)[0]
    assert torch.equal(first + second, alone) and first.sum() == 250 and second.sum() == 750


def test_batches_and_neighbours_change_nothing():
    x = torch.rand(6, 1, 1, 2)
    options = {"sigma": 0.3, "n": 730, "n0": 30, "alpha": ALPHA, "noise_trained": True}
    whole = certify(Half(0.1), x, **options)
    small = certify(Half(0.1), x, **options, batch_size=130)
    part = certify(Half(0.1), x[2:4], **options, index=torch.tensor([2, 3]))
    assert torch.equal(whole.votes, small.votes) and torch.equal(whole.votes[2:4], part.votes)
    assert len(set(whole.votes.tolist())) > 1
    other = certify(Half(0.1), x, **options, seed=1)
    assert not torch.equal(whole.votes, other.votes)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    x, path = torch.rand(5, 1, 1, 2), tmp_path / "c.json"
    options = {"sigma": 0.3, "n": 200, "alpha": ALPHA, "noise_trained": True}
    whole = certify(Half(0.1), x, **options)
    asked, cast = [], evaluation.votes

    def dies(model, image, key, *rest, **more):
        asked.append(key)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return cast(model, image, key, *rest, **more)

    monkeypatch.setattr(certification, "votes", dies)
    monkeypatch.setattr(record.time, "monotonic", iter(range(0, 10**6, 10)).__next__)
    with pytest.raises(KeyboardInterrupt):
        certify(Half(0.1), x, **options, record=path)
    again = certify(Half(0.1), x, **options, record=path)
    assert asked == [0, 1, 2, 3, 3, 4]
    assert torch.equal(again.votes, whole.votes) and torch.equal(
        again.predictions, whole.predictions
    )
    with pytest.raises(ValueError, match=r"c\.json was made with another sigma, seed"):
        certify(Half(0.1), x, **options | {"sigma": 0.2}, seed=1, record=path)
    with pytest.raises(ValueError, match="another model_sha256"):
        certify(Half(0.2), x, **options, record=path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"votes": 3}))
    with pytest.raises(RuntimeError, match=r"c\.json is damaged"):
        certify(Half(0.1), x, **options, record=path)


def test_accuracy_falls_with_the_radius():
    found = Certificates(torch.tensor([1, 0, 1, ABSTAINED]), torch.tensor([990, 1000, 800, 510]),
                         0.5, 1000, 0.001)  # fmt: skip
    y = torch.tensor([1, 1, 1, 1])
    assert found.certified(y).tolist() == [True, False, True, False]
    assert found.accuracy(y, 0.5).correct == 1 and found.accuracy(y, 5.0).correct == 0
    assert found.radius(0) == pytest.approx(0.5 * norm.ppf(lower_bound(990, 1000, 0.001)))


@pytest.fixture(scope="module")
def base():
    return Defended(small(), Direct(components()))


def test_no_certified_digit_falls_inside_its_radius(base):
    """PGD on the soft stand-in, up to the radius; judged by votes, as the certificate is."""
    start = fresh() % 900
    x, y = (part[start : start + 24] for part in data.load("mnist", "validation"))
    found = certify(base, x, sigma=0.5, n=1000, alpha=ALPHA)
    sure = (found.predictions != ABSTAINED).nonzero().flatten()
    assert len(sure) >= 16 and found.accuracy(y).correct >= 12
    fallen = 0
    for k in sure.tolist():
        radius, label = 0.999 * found.radius(k), found.predictions[k : k + 1]
        attacked = attacks.pgd(
            Smoothed(base, 0.5), x[k : k + 1], label, eps=radius, norm="l2", steps=20
        )
        assert (attacked - x[k]).norm() <= radius + 1e-4
        count = votes(base.eval(), attacked[0], k, 0.5, (1000,), seed=7)[0]
        fallen += binom.sf(1000 - int(count[label]) - 1, 1000, 0.5) < 1e-4  # surely below one half
    assert fallen <= binom.ppf(0.9999, len(sure), ALPHA)


def test_beyond_its_radius_a_digit_does_fall(base):
    """So that the test above could fail."""
    x, y = data.load("mnist", "validation").take(3)
    attacked = attacks.pgd(Smoothed(base, 0.5), x, y, eps=10.0, norm="l2", steps=20)
    counts = [votes(base.eval(), z, k, 0.5, (300,))[0] for k, z in enumerate(attacked)]
    assert sum(int(count[label]) < 150 for count, label in zip(counts, y, strict=True)) >= 2


def test_the_stand_in_is_the_mean_of_probabilities():
    x, model = torch.rand(3, 1, 1, 2).double(), Half(0.1).double()
    smoothed = Smoothed(model, 0.3, draws=40_000)
    found = smoothed(x, index=torch.arange(3)).exp()
    torch.testing.assert_close(found.sum(1), torch.ones(3).double())
    # The mean of a logistic function under a normal distribution, by quadrature.
    nodes = torch.linspace(-8, 8, 20_001).double()
    weight = (-(nodes**2) / 2).exp() / math.sqrt(2 * math.pi) * (nodes[1] - nodes[0])
    centre = model(x)[:, 1:]
    expected = (torch.sigmoid(centre + 0.3 * nodes) * weight).sum(1)
    assert (found[:, 1] - expected).abs().max() < 4 * 0.075 / 200
    z = x.clone().requires_grad_(True)
    smoothed(z).sum().backward()
    assert z.grad.abs().sum() > 0


class Keyed(nn.Module):
    """Noise that is keyed by the draw, or comes from a global generator."""

    def __init__(self, model, keyed):
        super().__init__()
        self.model = model
        if keyed:
            self.forward = self.named
        self.seen = []

    def named(self, x, index, draw):
        self.seen += [(int(k), draw) for k in index]
        return self.model(x)

    def forward(self, x):
        return self.model(x + 0.1 * torch.randn_like(x))


def test_votes_of_a_random_model_are_drawn_one_by_one_or_refused():
    x, options = grey(2), {"noise_trained": True, "n": 30, "n0": 10}
    with pytest.raises(ValueError, match="model: it is random; let its forward take index and"):
        certify(Keyed(Half(0.2), False), x, sigma=0.5, **options)
    model = Keyed(Half(0.2), True)
    model.forward(x, torch.arange(2), 0)
    model.seen.clear()
    votes(model, x[1], 1, 0.5, (10, 30))
    assert sorted(model.seen) == [(k, 1) for k in range(40)]


def test_a_model_that_looks_at_the_batch_is_not_certified():
    class Centred(nn.Module):
        def forward(self, x):
            return Half(0.2)(x - x.mean(0))

    for n in (1, 4):  # the votes on a single image are a batch, too
        with pytest.raises(ValueError, match="model: its answers depend on the batch"):
            certify(Centred(), torch.rand(n, 1, 1, 2), sigma=0.5, n=30, noise_trained=True)
    assert len(certify(Half(0.2), grey(0), sigma=0.5, n=30, noise_trained=True).votes) == 0


def test_a_model_in_half_precision_is_fed_in_it_wherever_its_numbers_are():
    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("w", torch.ones(2, 3, dtype=torch.bfloat16))

        def forward(self, x):
            return x.flatten(1) @ self.w

    found = evaluation.accuracy(Buffered(), grey(3), torch.zeros(3).long())
    assert found.n == 3


def test_bad_arguments_are_named(base):
    x = data.load("mnist", "validation").images[:1]
    with pytest.raises(ValueError, match="sigma: expected a finite number > 0, got 0"):
        certify(base, x, sigma=0)
    with pytest.raises(ValueError, match=r"n: even 9 of 9 votes certify nothing at alpha = 0\.001"):
        certify(base, x, sigma=0.5, n=9)
    certify(base, x, sigma=0.5, n=10)
    for alpha in (0, 1, -0.1):
        with pytest.raises(ValueError, match="alpha: expected a probability"):
            certify(base, x, sigma=0.5, alpha=alpha)
    with pytest.raises(ValueError, match=r"x: expected values in \[0, 1\]"):
        certify(base, x + 1, sigma=0.5)
    with pytest.warns(AttackWarning, match="no denoiser stands before it"):
        certify(base.classifier, x, sigma=0.5, n=10)
