"""Bounds hold: against all corners of small boxes, random inputs, and float32's rounding."""

import itertools
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from apudae import models
from apudae.core.bounds import Interval, Leads, interval, margins, traced


def box_around(x, eps):
    return Interval(x - eps, x + eps)


def corners(box):
    """Every corner of the first box: ``[2^D, D]``."""
    ends = zip(box.low[0].tolist(), box.high[0].tolist(), strict=True)
    return torch.tensor(list(itertools.product(*ends)), dtype=box.low.dtype)


def doubles(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_of_one_linear_layer_they_are_the_corners(generator):
    net, box = nn.Linear(6, 4).double(), box_around(doubles(generator, 1, 6), 0.3)
    all_of_it = net(corners(box))
    found = interval(net, box, rounding=False)
    torch.testing.assert_close(found.low[0], all_of_it.amin(0))
    torch.testing.assert_close(found.high[0], all_of_it.amax(0))
    y = torch.tensor([2])
    low = margins(net, box, y, rounding=False)
    exact = (all_of_it[:, 2:3] - all_of_it).amin(0)
    exact[2] = torch.inf
    torch.testing.assert_close(low[0], exact)
    apart = (found.low[0, 2] - found.high[0])[torch.arange(4) != 2]
    assert (low[0][torch.arange(4) != 2] > apart + 1e-6).all()  # the logits move together


class Branches(nn.Module):
    """Arithmetic with constants, two branches, added and side by side, every call style."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.register_buffer("scale", torch.tensor([1.0, -2.0, 0.5, -0.1, 3.0]))

    def forward(self, x):
        z = 1 - (x - 0.5) * self.scale / -0.7
        z = torch.relu(z) + self.body(z).clamp(-0.5, 2) * 2 + torch.sigmoid(z)
        z = (z - self.body(x).relu()).flatten(1).view(-1, 5)
        return torch.cat([z, self.body(x)], 1)


def test_leads_are_bounded_as_tightly_as_a_linear_layer_can_be(generator):
    """Over a box each difference of two logits has its least value in a corner."""
    net, box = Leads(6, 4).double(), box_around(doubles(generator, 1, 6), 0.3)
    logits = net.linear(corners(box))
    apart = logits[:, :, None] - logits[:, None]  # [corners, from, to]
    found = interval(net, box, rounding=False)
    for k in range(4):
        others = [j for j in range(4) if j != k]
        least = apart[:, k, others].amin(0).min()
        most = apart[:, k, others].amax(0).min()
        torch.testing.assert_close(found.low[0, k], least)
        torch.testing.assert_close(found.high[0, k], most)
    x = doubles(generator, 5, 6)
    leads, right = net(x), net.linear(x).argmax(1)
    assert ((leads > 0).sum(1) == 1).all() and torch.equal(leads.argmax(1), right)


CHAINS = {
    "linear": ((7,), lambda: nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 4))),
    "branches": ((5,), Branches),
    "convolutions": (
        (2, 6, 6),
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2),
            nn.BatchNorm2d(4),
            nn.Sigmoid(),
            nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1),
            nn.Hardtanh(-0.2, 0.4),
            nn.AvgPool2d(2),
            nn.MaxPool2d(3),
            nn.Flatten(),
            nn.Linear(3, 4),
        ),
    ),
    "groups": ((4, 4, 4), lambda: nn.Sequential(nn.Conv2d(4, 6, 2, groups=2, dilation=2))),
    "a DAE": ((1, 28, 28), lambda: models.build("mnist-dae", latent=4, width=2, tones=2)),
    "made for proofs": ((1, 28, 28), lambda: models.build("mnist-certified", width=2, hidden=9)),
    "a classifier": ((1, 28, 28), lambda: models.build("mnist-cnn", width=2)),
    "residual": ((3, 8, 8), lambda: models.build("cifar10-resnet", width=2)),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.3])
def test_no_input_in_the_box_leaves_them(name, eps, generator):
    shape, make = CHAINS[name]
    torch.manual_seed(generator.initial_seed() % 2**31)
    net = make().eval()
    for layer in net.modules():  # norms that have seen something
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    x = torch.rand(3, *shape, generator=generator)
    box = box_around(x, eps)
    found, y, wide = interval(net, box), torch.tensor([0, 1, 2]), deepcopy(net).double()
    widths = (found.high - found.low).flatten()
    assert (widths > 0).all()
    images = net(x).dim() == 4  # of digits
    low = None if images or net(x).dim() > 2 else margins(net, box, y)
    with torch.no_grad():
        for kind in ("corner", "inside"):
            for _ in range(20):
                u = torch.rand(3, *shape, generator=generator)
                u = u.round() if kind == "corner" else u
                z = (box.low + 2 * eps * u).clamp(box.low, box.high)
                for network, point in ((net, z), (wide, z.double())):
                    out = network(point).double()
                    assert (found.low <= out).all() and (out <= found.high).all()
                    if low is not None:
                        gaps = out.gather(1, y[:, None]) - out
                        own = torch.arange(out.shape[1]) == y[:, None]
                        assert (gaps >= low)[~own].all() and low[own].isinf().all()


def test_what_float32_loses_is_allowed_for(generator):
    """A long sum of large terms that cancel: float32 is off by far more than float64's bounds."""
    net = nn.Linear(4000, 1, bias=False)
    x = torch.rand(1, 4000, generator=generator) * 100
    box = Interval(x, x)
    exact = interval(net, box, rounding=True)
    shuffled = [torch.randperm(4000, generator=generator) for _ in range(50)]
    products = (net.weight * x).detach()[0]
    sums = torch.tensor([np.cumsum(products[p].numpy())[-1].item() for p in shuffled]).double()
    bare = interval(deepcopy(net).double(), Interval(x.double(), x.double()), rounding=False)
    assert ((sums - bare.low.item()).abs() > 1e-9).any()
    assert exact.low.item() <= sums.min() and sums.max() <= exact.high.item()


def test_training_can_follow_them(generator):
    """Gradients reach weights and box, as finite differences say."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x, y = doubles(generator, 2, 3), torch.tensor([0, 2])

    def worst(low, high):
        found = margins(net, Interval(low, high), y, rounding=False)
        return found[found.isfinite()]

    ends = (x - 0.1).requires_grad_(), (x + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(worst, ends)
    worst(*ends).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


class Looks(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Beside(nn.Module):
    """A layer's output beside a constant."""

    def forward(self, x):
        return torch.cat([x, torch.zeros(1, 3)], 1)


class Scaled(nn.Module):
    def forward(self, x):
        return torch.add(x, x, alpha=-3.0)


class Divides(nn.Module):
    def forward(self, x):
        return 1 / x


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Looks(), "Looks is no graph of layers"),
        (Divides(), "division by a layer"),
        (Scaled(), "no bounds are known of alpha in sums"),
        (Beside(), "no bounds are known of cat"),
        (nn.Sequential(nn.GELU()), "no bounds are known of GELU"),
        (nn.Sequential(nn.BatchNorm2d(1)).train(), "0 is in training mode"),
        (nn.Sequential(nn.Dropout()).train(), "0 is in training mode"),
        (nn.Sequential(nn.Conv2d(1, 1, 1, padding_mode="circular")), "padded with zeros"),
    ],
)
def test_what_has_no_bounds_is_named(net, message):
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match=message):
        interval(net, Interval(x, x))


def test_a_box_must_be_one():
    net, x = nn.Linear(2, 2), torch.rand(3, 2)
    with pytest.raises(ValueError, match="a lower bound lies above"):
        interval(net, Interval(x + 1, x))
    with pytest.raises(ValueError, match="a lower bound lies above the upper one, or is NaN"):
        interval(net, Interval(x * torch.nan, x))
    with pytest.raises(ValueError, match=r"bounds of one shape, got \[\[3, 2\], \[2, 2\]\]"):
        interval(net, Interval(x, x[:2]))
    with pytest.raises(ValueError, match="y"):
        margins(net, Interval(x, x), torch.tensor([0, 1, 2]))


def test_a_graph_shares_its_weights():
    net = nn.Sequential(nn.Linear(2, 2))
    graph, x = traced(net), torch.rand(1, 2)
    with torch.no_grad():
        net[0].weight.zero_(), net[0].bias.fill_(3)
    assert interval(graph, Interval(x, x), rounding=False).low.tolist() == [[3, 3]]
