"""What an attack may not touch stays as it was; inside, it does all that can be done."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ATTACKS, BOTH, RANDOM, SMALL, Linear, call, digits, module_of, run, shipped
from torch import nn

from apudae import attacks
from apudae.core.arguments import check_mask
from apudae.core.norms import NORMS, length, per_image
from apudae.purification import Defended

SHAPE = (2, 6, 7)


def inner(n, shape=SHAPE):
    """Images far from 0 and 1, so that ε meets neither."""
    return 0.4 + 0.2 * torch.rand(n, *shape, dtype=torch.float64)


def linear(classes=2, shape=SHAPE):
    return Linear(shape, classes, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))


def some_mask(*shape):
    mask = torch.rand(shape) < 0.4
    mask.flatten()[torch.randint(mask.numel(), (1,))] = True
    mask[..., 0, 0] = True  # so that no image is left without
    return mask


@st.composite
def masks(draw, n=3, shape=SHAPE):
    """A mask in any form that is offered, and what it is once it is spread over the images."""
    channels, *pixels = shape
    form = draw(
        st.sampled_from([(), (channels,), (1,), (n, channels), (n, 1), (1, channels), (1, 1)])
    )
    torch.manual_seed(draw(st.integers(0, 2**31)))
    mask = some_mask(*form, *pixels)
    kinds = [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64]
    return mask.to(draw(st.sampled_from(kinds))), mask.expand(n, *shape)


@settings(max_examples=80, deadline=None)
@given(masks(), st.sampled_from(BOTH), st.floats(1e-3, 1.0), st.booleans())
def test_what_is_masked_stays_to_the_last_bit_and_the_rest_is_in_the_ball(form, pair, eps, edge):
    mask, whole = form
    name, norm = pair
    x = torch.rand(3, *SHAPE)
    x, model = (x.round() if edge else x), linear(5)
    y = model(x).argmax(1)
    found = call(name, model, x, y, eps=eps, norm=norm, mask=mask)
    assert torch.equal(found[~whole], x[~whole])
    assert length(found - x, norm).max() <= eps * (1 + 1e-5) + 1e-5
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(("name", "norm"), BOTH)
def test_a_mask_of_all_pixels_is_none_bit_for_bit(name, norm):
    x, model = torch.rand(4, *SHAPE), linear(5)
    y = model(x).argmax(1)
    options = {"eps": 0.1 if norm == "linf" else 0.5, "norm": norm}
    plain = call(name, model, x, y, **options)
    for mask in (torch.ones(SHAPE[1:]), torch.ones(4, *SHAPE, dtype=torch.bool)):
        assert check_mask(mask, x) is None
        assert torch.equal(call(name, model, x, y, mask=mask, **options), plain)


@pytest.mark.parametrize(("name", "norm"), BOTH)
def test_an_image_alone_with_its_mask_is_attacked_as_in_its_batch(name, norm):
    x, model, mask = torch.rand(5, *SHAPE, dtype=torch.float64), linear(5), some_mask(5, *SHAPE)
    mask[2] = True  # one that may change anywhere, among others
    y = model(x).argmax(1)
    options = {"eps": 0.2 if norm == "linf" else 1.0, "norm": norm}
    chunks = {} if name == "noise" else {"batch_size": 2}
    whole = call(name, model, x, y, mask=mask, **options, **chunks)
    for k in range(5):
        keys = {"index": torch.tensor([k])} if name in RANDOM else {}
        one = slice(k, k + 1)
        alone = call(name, model, x[one], y[one], mask=mask[one], **options, **keys)
        torch.testing.assert_close(alone, whole[one], rtol=0, atol=1e-7)


# --- oracles -----------------------------------------------------------------------------------


def best_change(model, y, mask, eps, norm):
    """Of two classes the best change of a linear model, in closed form."""
    slope = (model.weight[1 - y] - model.weight[y]).view(-1, *SHAPE).detach() * mask
    if norm == "linf":
        return eps * slope.sign()
    return eps * slope / per_image(length(slope, "l2"), slope)


@settings(max_examples=30, deadline=None)
@given(masks(), st.sampled_from(NORMS), st.sampled_from(["fgsm", "bim", "pgd", "apgd"]))
def test_gradient_attacks_on_a_linear_model_are_the_closed_form_under_the_mask(form, norm, name):
    mask, whole = form
    x, model = inner(3), linear()
    y = model(x).argmax(1)
    eps = 0.05 if norm == "linf" else 0.2
    budget = {"fgsm": {}, "apgd": {"steps": 40}}.get(name, {"steps": 30})
    # On the margin: its gradient is the same everywhere, and the best iterate is the last.
    found = getattr(attacks, name)(
        model, x, y, eps=eps, norm=norm, mask=mask, loss="margin", **budget
    )
    best = best_change(model, y, whole, eps, norm)
    gain, most = (model(z)[range(3), 1 - y] - model(z)[range(3), y] for z in (found, x + best))
    at_rest = model(x)[range(3), 1 - y] - model(x)[range(3), y]
    assert ((gain - at_rest) / (most - at_rest)).min() >= (1 - 1e-9 if name == "fgsm" else 0.97)
    if name == "fgsm" or norm == "linf":
        torch.testing.assert_close(found, x + best)


def test_r_fgsm_draws_its_random_direction_among_the_pixels_that_may_change():
    x, model, mask = inner(40), linear(), some_mask(*SHAPE)
    options = {"eps": 0.2, "alpha": 0.2, "norm": "l2", "mask": mask}  # the random step alone
    change = attacks.rfgsm(model, x, model(x).argmax(1), **options) - x
    torch.testing.assert_close(length(change, "l2"), torch.full((40,), 0.2, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(masks(n=6), st.sampled_from(NORMS))
def test_deepfool_goes_the_shortest_way_that_the_mask_leaves(form, norm):
    mask, whole = form
    x, model = inner(6), linear(4)
    y = model(x).argmax(1)
    with torch.no_grad():
        gaps = model(x).gather(1, y[:, None]) - model(x)
        slopes = (model.weight[y][:, None] - model.weight[None]).view(6, 4, *SHAPE)
        slopes = (slopes * whole[:, None]).flatten(2)
        shortest = gaps / slopes.norm(dim=2, p=2 if norm == "l2" else 1)
        shortest[range(6), y] = math.inf
        shortest = shortest.amin(1)
    found = attacks.deepfool(model, x, y, norm=norm, mask=mask)
    near = shortest < (0.3 if norm == "linf" else 0.5)  # else the way meets 0 or 1
    ratio = (length(found - x, norm) / shortest)[near]
    assert ((ratio >= 1.02 - 1e-9) & (ratio < 1.03 + 1e-3 / shortest[near])).all()
    assert (model(found).argmax(1) != y)[near].all()


def test_cw_finds_the_shortest_way_that_the_mask_leaves():
    x, model, mask = inner(20), linear(), some_mask(*SHAPE)
    y = model(x).argmax(1)
    slope = ((model.weight[0] - model.weight[1]).view(SHAPE) * mask).norm()
    shortest = ((model(x)[:, 0] - model(x)[:, 1]).abs() / slope).detach()
    near = shortest < 0.3
    found = attacks.cw(model, x, y, mask=mask, steps=200, searches=9)
    assert near.sum() >= 10
    assert (length(found - x, "l2") / shortest)[near].max() < 1.06
    assert (model(found).argmax(1) != y)[near].all()


def counted(model):
    """The model, and how many images it was asked about."""
    seen = []

    def forward(x):
        seen.append(len(x))
        return model(x)

    return module_of(forward), seen


@pytest.mark.parametrize("corner", [(0, 0), (24, 25), (11, 3)])
def test_square_finds_what_brute_force_finds_under_a_sticker(corner):
    """Of 2 × 2 pixels anywhere in 28 × 28; chance alone would hardly ever meet them."""
    x, model = inner(3, (1, 28, 28)), linear(3, (1, 28, 28))
    y, mask = model(x).argmax(1), torch.zeros(28, 28)
    top, left = corner
    mask[top : top + 2, left : left + 2] = 1
    asked, seen = counted(model)
    options = {"eps": 0.1, "queries": 300, "early_stop": False}
    found = attacks.square(asked, x, y, mask=mask, **options)
    masked = len(seen)
    attacks.square(asked, x, y, **options)
    assert len(seen) == 2 * masked  # as many queries as without

    def margins(z):
        with torch.no_grad():
            return attacks.margin(model(z), y)

    tried = []
    for signs in itertools.product((-0.1, 0.1), repeat=4):
        z = x.clone()
        z[..., top : top + 2, left : left + 2] += torch.tensor(signs).double().view(2, 2)
        tried.append(margins(z))
    torch.testing.assert_close(margins(found), torch.stack(tried).amax(0))


def test_square_in_l2_spends_all_of_its_length_under_the_mask():
    x, model, mask = inner(4, (1, 12, 12)), linear(3, (1, 12, 12)), torch.zeros(12, 12)
    mask[4:9, 5:10] = 1
    y = model(x).argmax(1)
    options = {"eps": 0.3, "norm": "l2", "mask": mask, "early_stop": False}
    start, long = (attacks.square(model, x, y, queries=q, **options) for q in (1, 200))
    best = attacks.fgsm(model, x, y, loss="margin", eps=0.3, norm="l2", mask=mask)
    torch.testing.assert_close(length(long - x, "l2"), torch.full((4,), 0.3).double())
    rise = [attacks.margin(model(z), y) - attacks.margin(model(x), y) for z in (start, long, best)]
    assert (rise[1] >= rise[0]).all()
    assert (rise[1] / rise[2]).mean() > 0.5


@pytest.mark.parametrize("norm", NORMS)
def test_noise_is_uniform_in_the_ball_of_the_pixels_that_may_change(norm):
    x, n = torch.full((4000, 1, 3, 4), 0.5), 4000
    mask = torch.zeros(3, 4)
    mask[0, :2] = mask[2, 3] = 1
    change = attacks.noise(nn.Identity(), x, torch.zeros(n).long(), eps=0.2, norm=norm, mask=mask)
    change = (change - x)[:, 0][:, mask.bool()] / 0.2
    assert change.mean(0).abs().max() < 0.05
    if norm == "linf":
        assert (change.square().mean(0) - 1 / 3).abs().max() < 0.02
    else:  # in 3 dimensions the cubes of the radii are uniform
        cubes = change.norm(dim=1) ** 3
        assert abs(cubes.mean() - 1 / 2) < 0.02
        assert abs(cubes.square().mean() - 1 / 3) < 0.02


def test_a_random_start_does_not_leave_the_mask_behind_a_view():
    net, (x, y) = shipped("mnist-cnn"), digits(4)
    mask = torch.zeros(28, 28)
    mask[8:20, 8:20] = 1
    for view in (attacks.EOT(net, 2), attacks.Surrogate(net, net), attacks.Fixed(net)):
        found = attacks.pgd(view, x, y, eps=0.3, steps=3, mask=mask)
        assert torch.equal(found[..., mask == 0], x[..., mask == 0])


def test_a_larger_sticker_never_leaves_more_standing():
    net, (x, y) = shipped("mnist-cnn"), digits(40)
    standing = []
    for side in (6, 12, 20, 28):
        mask = torch.zeros(28, 28)
        low = (28 - side) // 2
        mask[low : low + side, low : low + side] = 1
        found = attacks.pgd(net, x, y, eps=0.3, steps=20, mask=mask)
        standing.append(int((net(found).argmax(1) == y).sum()))
    assert standing == sorted(standing, reverse=True)
    assert standing[0] > 20 > 5 > standing[-1]


# --- what cannot be a mask ---------------------------------------------------------------------

BAD = {
    "a list": [[True]],
    "a number": 1.0,
    "one dimension": torch.ones(7),
    "five dimensions": torch.ones(1, 4, *SHAPE),
    "other pixels": torch.ones(7, 6),
    "one pixel": torch.ones(1, 1),
    "other channels": torch.ones(3, 6, 7),
    "other images": torch.ones(3, *SHAPE),
    "NaN": torch.full((6, 7), math.nan),
    "0.5": torch.full((6, 7), 0.5),
    "-1": -torch.ones(6, 7),
    "255": torch.full((6, 7), 255, dtype=torch.uint8),
    "nothing": torch.zeros(6, 7),
    "nothing of one image": torch.ones(4, *SHAPE) * torch.tensor([1, 1, 0, 1]).view(4, 1, 1, 1),
    "numpy": torch.ones(6, 7).numpy(),
    "sparse": torch.ones(6, 7).to_sparse(),
    "compressed rows": torch.ones(6, 7).to_sparse_csr(),
    "meta": torch.ones(6, 7, device="meta"),
    "complex": torch.ones(6, 7, dtype=torch.complex64),
    "quantised": torch.quantize_per_tensor(torch.ones(6, 7), 1.0, 0, torch.quint8),
    "nested": torch.nested.nested_tensor([torch.ones(7)] * 6),
}


@pytest.mark.parametrize("mask", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("name", [*ATTACKS, "suite"])
def test_what_is_no_mask_is_refused_by_name_before_the_model_is_asked(name, mask):
    x, (model, seen) = torch.rand(4, *SHAPE), counted(linear())
    y = torch.zeros(4).long()
    attack = attacks.suite if name == "suite" else partial(call, name)
    with pytest.raises(ValueError, match=r"^mask: ") as caught:
        attack(model, x, y, eps=0.1, mask=mask)
    assert not seen and "\n" not in str(caught.value)


# --- the suite and the protocol ----------------------------------------------------------------


def test_the_suite_attacks_under_the_mask_and_refuses_what_does_not():
    net, (x, y) = shipped("mnist-cnn"), digits(12)
    mask = torch.zeros(12, 1, 28, 28)
    mask[:, :, 6:22, 6:22] = 1
    worst = attacks.suite(net, x, y, eps=0.3, mask=mask)
    assert torch.equal(worst.images[mask == 0], x[mask == 0])
    assert int(worst.standing.sum()) < 10

    def ignores(model, x, y, *, eps, mask):
        return attacks.fgsm(model, x, y, eps=eps)

    with pytest.raises(ValueError, match="'mine' changed pixels that the mask keeps"):
        attacks.suite(net, x, y, eps=0.1, mask=mask, attacks={"mine": ignores})
    for attack in (attacks.as_published.fgsm, partial(attacks.pgd, mask=None)):
        with pytest.raises(ValueError, match="attacks: 'mine' takes no mask"):
            attacks.suite(net, x, y, eps=0.1, mask=mask, attacks={"mine": attack})


def test_an_attack_that_takes_any_options_hears_of_a_mask_only_where_there_is_one():
    net, split, heard = shipped("mnist-cnn"), digits(3), []

    def mine(model, x, y, **options):
        heard.append(options.pop("mask", "none"))
        return x

    for mask in ({}, {"mask": torch.eye(28)}):
        attacks.suite(net, *split, eps=0.1, attacks={"mine": mine}, **mask)
        run(net, split, eps=0.1, attacks={"mine": mine}, curves=False, budget=SMALL, **mask)
    assert heard[:2] == ["none"] * 2
    assert all(torch.equal(mask[0, 0], torch.eye(28).bool()) for mask in heard[2:])
    assert len(heard) == 4


def test_the_protocol_attacks_under_the_mask_and_its_record_knows_it(tmp_path):
    net, (x, y) = shipped("mnist-cnn"), digits(20)
    mask = torch.zeros(28, 28)
    mask[4:24, 4:24] = 1
    options = {"eps": 0.2, "budget": SMALL, "record": tmp_path / "r"}
    report = run(net, (x, y), mask=mask, **options)
    assert torch.equal(report.images[..., mask == 0], x[..., mask == 0])
    assert "51 % of the pixels may change" in report.summary()
    assert "does not fall" not in {finding.name for finding in report.findings}
    assert max(report.points("ε")) == 0.4
    assert run(net, (x, y), mask=mask[None, None].bool(), **options).rows == report.rows
    for other in (None, mask.T.contiguous().roll(1, 0)):
        with pytest.raises(ValueError, match="made with another mask"):
            run(net, (x, y), mask=other, **options)
    free = run(net, (x, y), eps=0.2, budget=SMALL, curves=False)
    assert free.worst.correct <= report.worst.correct
    with pytest.raises(ValueError, match="under the same attack"):
        report.minus(free)
    own = {"attacks": {"published": attacks.as_published.fgsm}, "mask": mask}
    with pytest.raises(ValueError, match="attacks: 'published' takes no mask"):
        run(net, (x, y), eps=0.3, budget=SMALL, **own)


def test_where_the_model_is_blind_under_the_mask_nothing_falls_anywhere_in_the_report():
    """Whatever forgot the mask would show: attacks, curves, the classifier alone."""
    mask = torch.zeros(28, 28)
    mask[0, 0] = 1

    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = shipped("mnist-cnn")

        def forward(self, x):
            return self.net(x * (1 - mask))

    x, y = digits(8)
    report = run(Defended(Blind(), nn.Identity()), (x, y), eps=0.5, budget=SMALL, mask=mask)
    clean = report.rows[0].misread
    assert all(row.misread[k] in (-1, clean[k]) for row in report.rows for k in range(8))
    assert report.alone["PGD"] == report.alone["clean"]
    assert all(v == clean for curve in report.curves.values() for v in curve.values())
