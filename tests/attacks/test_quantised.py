"""Attacks scored on what an 8-bit file can hold."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ATTACKS, BOTH, SMALL, Linear, call, digits, module_of, run, shipped
from torch import nn

from apudae import attacks
from apudae.core.norms import NORMS, Ball, length
from apudae.evaluation.attackers import plan
from apudae.purification import Defended

LEVELS = 255


def on_grid(x):
    return torch.equal((LEVELS * x.double()).round() / LEVELS, x.double()) or bool(
        ((LEVELS * x.double()).round() - LEVELS * x.double()).abs().max() < 1e-4
    )


def grey(shape, *, dtype=torch.float32):
    return (torch.rand(shape) * LEVELS).round().to(dtype) / LEVELS


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(BOTH),
    st.one_of(st.floats(0.004, 1.0), st.integers(1, 64).map(lambda k: k / LEVELS)),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_attack_rounded_lies_on_the_grid_in_the_ball_and_under_the_mask(
    pair, eps, dtype, masked, seed
):
    torch.manual_seed(seed)
    (name, norm), x = pair, grey((3, 2, 6, 7), dtype=dtype)
    model = Linear((2, 6, 7), 4, torch.Generator().manual_seed(seed))
    y, mask = model(x).argmax(1), (torch.rand(6, 7) < 0.5) if masked else None
    if masked:
        mask[0, 0] = True
    attack = attacks.quantised(ATTACKS[name])
    options = {"eps": eps, "mask": mask} | ({} if name == "cw" else {"norm": norm})
    found = attack(model, x, y, **options)
    assert found.dtype == dtype
    assert on_grid(found)
    assert length(found - x, norm).max() <= eps + 1e-5
    assert 0 <= found.min() <= found.max() <= 1
    if masked:
        assert torch.equal(found[..., ~mask], x[..., ~mask])
    # Not further from what was found than a level, but for what the ball does not hold.
    plain = call(name, model, x, y, eps=eps, norm=norm, mask=mask)
    assert (found - plain).abs().max() < 1.01 / LEVELS


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 0.3), st.integers(0, 2**31))
def test_in_linf_every_pixel_goes_to_the_nearest_level_of_the_ball(eps, seed):
    torch.manual_seed(seed)
    x = grey((4, 1, 3, 3), dtype=torch.float64)
    z = (x + eps * (2 * torch.rand(x.shape).double() - 1)).clamp(0, 1)
    levels = torch.arange(LEVELS + 1).double() / LEVELS
    far = (levels - z[..., None]).abs()
    far[(levels - x[..., None]).abs() > eps + 1e-9] = math.inf  # not in the ball
    found = Ball(x, eps, "linf").on_grid(z)
    torch.testing.assert_close((found - z).abs(), far.amin(-1), rtol=0, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.floats(0.002, 1.0), st.integers(0, 2**31))
def test_in_l2_as_few_pixels_as_will_do_are_rounded_towards_the_image(side, eps, seed):
    torch.manual_seed(seed)
    x = grey((3, 1, 1, side), dtype=torch.float64)
    ball = Ball(x, eps, "l2")
    z = ball.project(x + 2 * eps * torch.randn(x.shape).double() / side**0.5)
    nearest = (LEVELS * z).round() - (LEVELS * x).round()
    found = LEVELS * (ball.on_grid(z) - x)
    assert length(found, "l2").max() <= LEVELS * eps + 1e-3
    for image, near, exact in zip(found, nearest, LEVELS * (z - x), strict=True):
        back = (near - image).abs()  # 0 or 1: no pixel is moved by more than it must be
        assert back.max() < 1 + 1e-9
        moved = back > 0.5
        if near.norm() <= LEVELS * eps:
            assert not moved.any()
            continue
        # Those that were rounded away from x, most of all; without the last it would not do.
        away = near.abs() - exact.abs()
        assert moved.any()
        assert away[moved].min() >= away[~moved].clamp(min=0).max() - 1e-9 if (~moved).any() else 1
        last = away.masked_fill(~moved, math.inf).argmin()
        image = image.clone().flatten()
        image[last] = near.flatten()[last]
        ties = (away[moved] - away[moved].min() < 1e-9).sum()
        assert image.norm() > LEVELS * eps or ties > 1


def test_what_lies_on_the_grid_already_is_left_alone():
    x = grey((5, 1, 4, 4))
    for norm, eps in (("linf", 8 / LEVELS), ("l2", 0.2)):
        ball = Ball(x, eps, norm)
        once = ball.on_grid(ball.start(torch.arange(5), 0))
        assert torch.equal(ball.on_grid(once), once)
        assert torch.equal(ball.on_grid(x), x)
    # A change of exactly ε, however ε was rounded.
    x = torch.full((1, 1, 1, 2), 100 / LEVELS)
    for k in range(1, 100):
        for eps in (k / LEVELS, torch.tensor(k / LEVELS).item(), k * (1 / LEVELS)):
            found = LEVELS * (Ball(x, eps, "linf").on_grid(x + k / LEVELS) - x)
            assert found.round().unique().tolist() == [k]


def test_deepfool_is_undone_by_rounding_on_a_shipped_model_and_a_full_step_is_not():
    net, (x, y) = shipped("mnist-cnn"), digits(30)
    x, y = x[net(x).argmax(1) == y], y[net(x).argmax(1) == y]

    def standing(attack, **options):
        return (net(attack(net, x, y, **options)).argmax(1) == y).double().mean().item()

    for norm in NORMS:
        assert standing(attacks.deepfool, norm=norm) == 0
        assert standing(attacks.quantised(attacks.deepfool), norm=norm) > 0.3
    ball = {"eps": 0.1, "steps": 50}
    stops, goes = (partial(attacks.pgd, early_stop=stop) for stop in (True, False))
    left = standing(stops, **ball)
    assert left < 0.6
    assert standing(attacks.quantised(stops), **ball) > left + 0.15
    assert standing(attacks.quantised(goes), **ball) <= left + 0.1


def test_a_rounded_attack_is_called_like_the_attack_it_was():
    net, (x, y) = shipped("mnist-cnn"), digits(8)
    fixed = partial(attacks.pgd, steps=3, seed=5, eps=0.2)
    rounded = attacks.quantised(fixed)
    assert inspect.signature(rounded) == inspect.signature(fixed)
    assert attacks.taken(rounded, {"seed": 1, "eps": 1, "index": 2}) == {"index": 2}
    assert attacks.taken(partial(rounded, net), {"seed": 1, "mask": 2}) == {"mask": 2}
    found = rounded(net, x, y)
    assert torch.equal(found, rounded(net, x=x, y=y))
    assert torch.equal(found, Ball(x, 0.2, "linf").on_grid(fixed(net, x, y)))

    def mine(model, images, labels, **options):
        return (images + 0.3 * options["eps"]).clamp(max=1)

    assert on_grid(attacks.quantised(mine)(net, x, y, eps=0.1))
    assert on_grid(attacks.quantised(mine)(net, images=x, labels=y, eps=0.1))
    placed = attacks.quantised(lambda net, a, b, eps: mine(net, a, b, eps=eps))
    assert on_grid(placed(net, x, y, 0.1))
    own = {"mine": attacks.quantised(mine), "PGD": rounded}
    assert on_grid(attacks.suite(net, x, y, eps=0.2, attacks=own).images)
    with pytest.raises(ValueError, match="'C&W' knows L2 only"):
        attacks.suite(net, x, y, eps=0.2, attacks={"C&W": attacks.quantised(partial(attacks.cw))})


@pytest.mark.parametrize("x", [torch.full((2, 1, 28, 28), 0.3), torch.rand(2, 1, 28, 28), "x"])
def test_images_that_no_file_holds_are_refused_before_the_model_is_asked(x):
    model = module_of(lambda x: pytest.fail("asked"))
    y = torch.zeros(2).long()
    for attack in (attacks.quantised(attacks.fgsm), run_quantised):
        with pytest.raises(ValueError, match=r"^x: expected"):
            attack(model, x, y, eps=0.1)


def run_quantised(model, x, y, **options):
    return run(model, (x, y), quantised=True, **options)


@pytest.mark.parametrize("quantised", ["no", 1, None])
def test_the_option_is_true_or_false(quantised):
    with pytest.raises(ValueError, match=r"^quantised: expected"):
        run(shipped("mnist-cnn"), digits(2), eps=0.1, quantised=quantised)


@pytest.mark.parametrize("norm", NORMS)
def test_the_protocol_scores_on_the_grid_and_says_so(norm, tmp_path):
    net, split = shipped("mnist-cnn"), digits(12)
    eps = 0.1 if norm == "linf" else 1.0
    options = {"eps": eps, "norm": norm, "budget": SMALL, "record": tmp_path / "r"}
    own = {"DeepFool": attacks.deepfool}
    report = run(net, split, quantised=True, attacks=own, **options)
    assert on_grid(report.images)
    assert "on the 8-bit grid" in report.summary().splitlines()[0]
    assert report.settings["quantised"] is True
    assert run(net, split, quantised=True, attacks=own, **options).rows == report.rows
    with pytest.raises(ValueError, match="made with another quantised"):
        run(net, split, attacks=own, **options)
    free = run(net, split, curves=False, eps=eps, norm=norm, budget=SMALL)
    assert "8-bit" not in free.summary()
    with pytest.raises(ValueError, match="under the same attack"):
        report.minus(free)


class OnGridOnly(nn.Module):
    """A classifier that misreads whatever no file could hold."""

    def __init__(self):
        super().__init__()
        self.net = shipped("mnist-cnn")

    def forward(self, x):
        off = ((LEVELS * x).round() - LEVELS * x).abs().flatten(1).amax(1) > 1e-3
        logits = self.net(x)
        return torch.where(off[:, None], logits.roll(1, 1), logits)


def test_whatever_is_scored_is_rounded_before():
    """Attacks, curves and the classifier alone: a level or two mislead no network."""
    model = Defended(OnGridOnly(), nn.Identity())
    x, y = digits(8)
    y = y.clone()
    y[0] = (y[0] + 1) % 10  # one that is wrong
    with pytest.raises(ValueError, match=r"eps: 0\.001765 is less than a grey level"):
        run(model, (x, y), eps=0.45 / LEVELS, budget=SMALL, quantised=True)
    with pytest.raises(ValueError, match=r"eps: 0\.001765 is less than a grey level"):
        attacks.quantised(attacks.pgd)(model, x, y, eps=0.45 / LEVELS)
    report = run(model, (x, y), eps=1 / LEVELS, budget=SMALL, quantised=True)
    clean = report.rows[0].misread
    assert sum(clean) >= 1
    assert all(row.misread[k] in (-1, clean[k]) for row in report.rows for k in range(8))
    assert report.alone["PGD"] == report.alone["clean"]
    points = report.curves["ε"] | report.curves["steps"]
    assert min(map(float, report.curves["ε"])) > 0.0039
    assert all(v == clean for k, v in points.items() if float(k) < 2.1 / LEVELS or float(k) >= 2)


def test_the_protocol_goes_on_behind_the_border_where_it_rounds():
    options = {"eps": 0.1, "norm": "linf", "seed": 0, "batch_size": None}
    x, _ = digits(2)
    planned = plan(shipped("mnist-cnn"), x, SMALL, random=False, classes=10, **options)
    stops = [inspect.signature(attack.rounded().run).parameters for attack in planned]
    assert sum("early_stop" in options for options in stops) >= 4
    assert not any(options["early_stop"].default for options in stops if "early_stop" in options)
