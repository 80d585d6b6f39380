import math
from functools import partial

import pytest
import torch
from support import read, small

from apudae import attacks
from apudae.core.norms import NORMS, length


def inner(generator, n=40, shape=(1, 4, 4)):
    """Images far from 0 and 1, so that the shortest way meets neither."""
    return 0.45 + 0.1 * torch.rand(n, *shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def two(linear, generator):
    return type(linear)((1, 4, 4), 2, generator)


def closed_form(model, x, norm):
    """The smallest change of a linear model: min over k of (z_y − z_k) / ‖w_y − w_k‖ (dual)."""
    with torch.no_grad():
        logits, weight = model(x), model.weight
        y = logits.argmax(1)
        gaps = logits.gather(1, y[:, None]) - logits
        slopes = (weight[y][:, None] - weight[None]).norm(dim=2, p=2 if norm == "l2" else 1)
        distance = gaps / slopes
        distance[torch.arange(len(x)), y] = math.inf
        return y, distance.amin(1)


@pytest.mark.parametrize("norm", NORMS)
def test_deepfool_on_a_linear_model_is_the_closed_form(norm, linear, generator):
    x = inner(generator)
    y, shortest = closed_form(linear, x, norm)
    attacked = attacks.deepfool(linear, x, y, norm=norm)
    ratio = length(attacked - x, norm) / shortest
    assert (linear(attacked).argmax(1) != y).all()
    # With the overshoot, and a hundred-thousandth of the logits to be clear of the border.
    assert (ratio >= 1.02 - 1e-9).all()
    within = linear(x).abs().amax(1) * 1e-4 < 1e-2 * shortest
    assert (ratio[within] < 1.03).all()
    assert within.double().mean() > 0.5


def test_deepfool_leaves_alone_what_is_already_wrong(linear, generator):
    x = inner(generator)
    y = (linear(x).argmax(1) + 1) % 3
    assert torch.equal(attacks.deepfool(linear, x, y), x)
    assert torch.equal(attacks.cw(linear, x, y, steps=5), x)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_cw_on_a_linear_binary_model_is_within_two_percent(margin, two, generator):
    x = inner(generator)
    y, shortest = closed_form(two, x, "l2")
    shortest = shortest + margin / (two.weight[0] - two.weight[1]).norm().detach()
    far = shortest < 0.4  # else the way may meet 0 or 1
    attacked = attacks.cw(two, x[far], y[far], confidence=margin)
    logits = two(attacked)
    won = logits.gather(1, 1 - y[far, None]) - logits.gather(1, y[far, None])
    assert (won >= margin - 1e-9).all()
    ratio = length(attacked - x[far], "l2") / shortest[far]
    assert (ratio > 1 - 1e-6).all()
    assert (ratio[shortest[far] > 5e-3] < 1.02).all()  # half of Adam's first step
    assert far.sum() >= 10


def test_cw_moves_black_and_white_pixels(two, generator):
    """At 0 and 1 the change of variables is flat; the attack must still find the way inwards."""
    x = torch.randint(2, (20, 1, 4, 4), generator=generator).double()
    y = two(x).argmax(1)
    inwards = (two.weight[1 - y] - two.weight[y]).view_as(x) * (0.5 - x).sign() > 0
    free = (two.weight[1 - y] - two.weight[y]).view_as(x) * inwards
    gap = (two(x).gather(1, y[:, None]) - two(x).gather(1, 1 - y[:, None]))[:, 0]
    shortest = (gap / free.flatten(1).norm(dim=1)).detach()
    # Where no pixel has to cross the whole range, the free pixels' closed form holds.
    full = (shortest[:, None] * free.flatten(1).abs()).amax(1) / free.flatten(1).norm(dim=1) < 1
    attacked = attacks.cw(two, x, y, step_size=0.03, steps=400)
    ratio = (length(attacked - x, "l2") / shortest)[full & (gap > 5e-2)]
    assert len(ratio) >= 3
    assert (ratio < 1.03).all()
    assert (ratio > 1 - 1e-6).all()


def test_confidence_costs_length():
    model, (x, y) = small(), read(20)
    distances = []
    for confidence in (0, 3):
        attacked = attacks.cw(
            model, x, y, confidence=confidence, steps=60, searches=5, step_size=0.05
        )
        logits = model(attacked).detach()
        others = logits.scatter(1, y[:, None], -math.inf).amax(1)
        won = others - logits.gather(1, y[:, None])[:, 0]
        assert (won >= confidence - 1e-3).all()
        distances.append(length(attacked - x, "l2"))
    assert distances[0].mean() < distances[1].mean()


def test_cw_returns_the_image_where_it_finds_nothing(two, generator):
    x = inner(generator)
    sure = type(two)((1, 4, 4), 2, generator)
    with torch.no_grad():
        sure.weight[1] = sure.weight[0]  # equal logits: argmax says 0, and nothing can change it
    y = torch.zeros(len(x), dtype=torch.int64)
    assert torch.equal(attacks.cw(sure, x, y, steps=5, searches=2), x)


@pytest.mark.parametrize("attack", [attacks.cw, attacks.deepfool])
def test_epsilon_limits_the_length_and_changes_nothing_below_it(attack, linear, generator):
    x = inner(generator)
    y, _ = closed_form(linear, x, "l2")
    if attack is attacks.cw:
        attack = partial(attack, steps=100, searches=6)
    free = attack(linear, x, y)
    eps = length(free - x, "l2").median().item()
    limited = attack(linear, x, y, eps=eps)
    short = length(free - x, "l2") <= eps
    assert torch.equal(limited[short], free[short])
    longest = length(limited - x, "l2")[~short]
    torch.testing.assert_close(longest, torch.full_like(longest, eps))


def test_more_candidates_never_lengthen_the_way(linear, generator):
    model = type(linear)((1, 4, 4), 6, generator)
    x = inner(generator)
    y = model(x).argmax(1)
    few, many = (length(attacks.deepfool(model, x, y, candidates=k) - x, "l2") for k in (2, 6))
    assert (many <= few + 1e-6).all()
    assert (many < few - 1e-6).any()
