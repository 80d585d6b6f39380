import pytest
import torch
from support import shipped
from torch import nn

from apudae import attacks, data
from apudae.attacks.autoattack import _bump, _reviews, _share, _two_squares
from apudae.core.norms import NORMS, Ball, length, project


class Hill(nn.Module):
    """Class 0 wins on a small hill around ``top``; the margin of class 1 falls with distance²."""

    def __init__(self, top, height):
        super().__init__()
        self.top, self.height = top, height

    def forward(self, x):
        high = self.height - (x - self.top).flatten(1).square().sum(1)
        return torch.stack([high, torch.zeros_like(high)], 1)


class Staircase(nn.Module):
    """The same logits, rounded: their gradient is zero everywhere."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        return (logits * 10).round().detach() / 10 + 0 * logits


def test_reviews_are_those_of_the_paper():
    """Croce & Hein, §3.1, by hand: p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99."""
    assert _reviews(100) == {22, 41, 57, 70, 80, 87, 93, 99}


@pytest.mark.parametrize("norm", NORMS)
def test_halved_steps_reach_a_top_that_a_fixed_step_jumps_over(norm, generator):
    x = torch.full((5, 1, 4, 4), 0.5, dtype=torch.float64)
    top = x + 0.02 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    y = torch.ones(5, dtype=torch.int64)  # −distance² is the margin: no image can fall
    hill = Hill(top, -1e-9)
    found = attacks.apgd(hill, x, y, eps=0.3, norm=norm, loss="margin", steps=100)
    assert length(found - top, norm).max() < 0.01
    fixed = attacks.pgd(hill, x, y, eps=0.3, norm=norm, loss="margin", steps=100, step_size=0.6)
    assert length(fixed - top, norm).min() > 5 * length(found - top, norm).max()


class Waves(nn.Module):
    """Two classes; the margin is rugged, and too low for any image to fall."""

    def __init__(self, pixels, generator):
        super().__init__()
        draw = {"generator": generator, "dtype": torch.float64}
        self.inner = 6 * torch.randn(9, pixels, **draw) / pixels**0.5
        self.outer = torch.randn(9, **draw)

    def forward(self, x):
        margin = torch.sin(x.flatten(1) @ self.inner.T) @ self.outer - 50
        return torch.stack([torch.zeros_like(margin), margin], 1)


def literal_apgd(model, x, z, *, eps, norm, steps):
    """Algorithm 1 of Croce & Hein 2020 for one image, line by line; every iterate."""

    def f(z):
        z = z.clone().requires_grad_(True)
        logits = model(z)[0]
        value = logits[1] - logits[0]
        return value.item(), torch.autograd.grad(value, z)[0]

    def inside(z):
        return project(z, x, eps, norm)

    def step(z, gradient, size):
        way = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        return inside(z + size * way)

    w = sorted(_reviews(steps))
    size, iterates, values = 2 * eps, [z], []
    value, gradient = f(z)
    values.append(value)
    top, peak, peak_gradient = value, z, gradient
    z_next = step(z, gradient, size)  # the first step has no momentum
    before, z = z, z_next
    rose, last, size_then, top_then = 0, 0, size, top
    for k in range(1, steps + 1):
        iterates.append(z)
        new, gradient = f(z)
        rose += new > value
        value = new
        if new > top:
            top, peak, peak_gradient = new, z, gradient
        if k in w:
            first = rose < 0.75 * (k - last)
            second = size == size_then and top == top_then
            size_then, top_then, last, rose = size, top, k, 0
            if first or second:
                size, z, gradient = size / 2, peak, peak_gradient
        straight = step(z, gradient, size)
        z, before = inside(z + 0.75 * (straight - z) + 0.25 * (z - before)), z
    return iterates


@pytest.mark.parametrize("norm", NORMS)
def test_apgd_visits_the_points_of_the_algorithm(norm, generator):
    x = torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.zeros(6, dtype=torch.int64)
    model = Waves(16, generator)
    seen = []

    class Spying(nn.Module):
        def forward(self, z):
            seen.append(z.detach().clone())
            return model(z)

    eps = 0.2 if norm == "linf" else 0.6
    attacks.apgd(Spying(), x, y, eps=eps, norm=norm, loss="margin", steps=30)
    assert len(seen) == 31
    visited = torch.stack(seen, 1)
    for image in range(6):
        one = x[image : image + 1]
        start = visited[image, 0][None]
        expected = torch.cat(literal_apgd(model, one, start, eps=eps, norm=norm, steps=30))
        torch.testing.assert_close(visited[image], expected, rtol=0, atol=1e-6)


def literal_two_squares(z, x, eps, luck, size):
    """Square in L2 for one image, as in algorithm 3 and AutoAttack's code."""
    change = z - x
    channels, height, width = change.shape
    corner = [int(luck[k] * max(n - size, 1)) for k, n in ((0, height), (1, width))]
    other = [int(luck[k] * max(n - size, 1)) for k, n in ((2, height), (3, width))]
    windows = []
    for top, left in (corner, other):
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top : top + size, left : left + size] = True
        windows.append(mask)
    held = change[:, windows[0] | windows[1]].norm()
    unused = max(eps**2 - change.norm() ** 2, 0) / channels
    bump = _bump(size, x)
    bump = bump.T if luck[4] < 0.5 else bump
    new = change.clone()
    new[:, windows[1]] = 0
    for c in range(channels):
        top, left = corner
        old = change[c, top : top + size, left : left + size]
        shape = (-1 if luck[5 + c] < 0.5 else 1) * bump
        shape = shape + (old / old.norm() if old.norm() > 0 else 0)
        shape = shape / shape.norm()
        new[c, top : top + size, left : left + size] = shape * (held**2 + unused) ** 0.5
    return x + eps * new / new.norm()


@pytest.mark.parametrize("size", [3, 5])
def test_squares_in_l2_move_the_length_of_one_into_the_shape_of_another(size, generator):
    x = torch.rand(20, 3, 8, 9, generator=generator, dtype=torch.float64)
    away = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    z = x + 0.4 * away / away.flatten(1).norm(dim=1)[:, None, None, None]
    z[:5] = x[:5]  # no change yet
    luck = torch.rand(20, 8, generator=generator)
    moved = _two_squares(z, Ball(x, 0.5, "l2"), luck, size)
    for image in range(20):
        expected = literal_two_squares(z[image], x[image], 0.5, luck[image].tolist(), size)
        torch.testing.assert_close(moved[image], expected)


def test_apgd_needs_no_step_size_where_pgd_does():
    """PGD with a step that is too long or too short for the ball; APGD sets its own."""
    x, y = data.load("mnist", "validation").take(200)
    model = shipped("mnist-cnn")

    def standing(attacked):
        return (model(attacked).argmax(1) == y).sum()

    options = {"eps": 0.1, "steps": 20, "early_stop": True}
    by_itself = standing(attacks.apgd(model, x, y, **options))
    for step_size in (0.001, 0.2):
        assert by_itself < standing(attacks.pgd(model, x, y, step_size=step_size, **options)) - 5


def test_targeted_dlr_fells_what_one_loss_leaves_standing():
    x, y = data.load("mnist", "validation").take(200)
    model = shipped("mnist-cnn")
    options = {"eps": 0.1, "steps": 20, "early_stop": True}
    one, many = (
        (model(attacks.apgd(model, x, y, loss=loss, **options)).argmax(1) != y).sum()
        for loss in ("dlr", "dlr-targeted")
    )
    assert many > one


def test_the_scale_of_the_logits_blinds_the_cross_entropy_but_not_the_dlr():
    """Logits times 1,000: softmax is exactly 0 or 1 in float32 and has no gradient."""
    x, y = data.load("mnist", "validation").take(100)
    model = shipped("mnist-cnn")
    scaled = nn.Sequential(model, Scale(1000.0))
    standing = {
        loss: (
            scaled(attacks.apgd(scaled, x, y, eps=0.15, steps=20, loss=loss)).argmax(1) == y
        ).sum()
        for loss in ("ce", "dlr", "margin")
    }
    assert standing["ce"] > 60
    assert max(standing["dlr"], standing["margin"]) < 35


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, z):
        return self.factor * z


def test_targeted_dlr_refuses_to_be_targeted(linear, generator):
    x = torch.rand(3, 1, 4, 4, generator=generator)
    with pytest.raises(ValueError, match="targeted: not with loss='dlr-targeted'"):
        attacks.apgd(
            linear, x, torch.arange(3), eps=0.1, loss="dlr-targeted", targeted=True, steps=1
        )
    with pytest.raises(ValueError, match="'dlr-targeted' needs 4 classes"):
        attacks.apgd(linear, x, torch.arange(3), eps=0.1, loss="dlr-targeted", steps=1)


@pytest.mark.parametrize("norm", NORMS)
def test_square_needs_no_gradient(norm):
    x, y = data.load("mnist", "validation").take(100)
    model = Staircase(shipped("mnist-cnn"))
    eps = 0.2 if norm == "linf" else 3.0
    with torch.no_grad():
        blind = model(attacks.bim(model, x, y, eps=eps, norm=norm)).argmax(1) == y
        seeing = model(attacks.square(model, x, y, eps=eps, norm=norm, queries=300)).argmax(1) == y
    assert blind.sum() > 90
    assert seeing.sum() < 50


class Spy(nn.Module):
    """Remembers how often each image (known by its first pixel) was asked about, and where."""

    def __init__(self, model):
        super().__init__()
        self.model, self.batches = model, []

    def forward(self, x):
        assert not torch.is_grad_enabled()
        self.batches.append(x.clone())
        return self.model(x)


@pytest.mark.parametrize("norm", NORMS)
def test_square_asks_exactly_as_often_as_allowed_and_stays_inside(norm, linear, generator):
    """A model that nothing fells is asked ``queries`` times, always about images in the ball."""
    sure = type(linear)((3, 8, 9), 3, generator)
    x = torch.rand(5, 3, 8, 9, generator=generator, dtype=torch.float64)
    y = sure(x).argmax(1)
    steady = Hill(x, 1e9)
    spy = Spy(steady)
    attacks.square(spy, x, torch.zeros_like(y), eps=0.3, norm=norm, queries=57)
    assert [len(batch) for batch in spy.batches] == [5] * 57
    for batch in spy.batches:
        assert length(batch - x, norm).max() <= 0.3 + 1e-9
        assert 0 <= batch.min() <= batch.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_queries_of_square_add_up(norm, linear, generator):
    """From nearly nothing with one query to most images with 300."""
    model = type(linear)((2, 8, 8), 4, generator)
    x = torch.rand(200, 2, 8, 8, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    eps = 0.1 if norm == "linf" else 0.6
    felled = [
        (
            model(attacks.square(model, x, y, eps=eps, norm=norm, queries=queries)).argmax(1) != y
        ).sum()
        for queries in (1, 20, 300)
    ]
    assert felled[0] < felled[1] < felled[2]


def test_one_square_at_a_time_in_linf(generator):
    """Two kept images in a row differ in one square, where every channel is x ± ε."""
    x = 0.4 + 0.2 * torch.rand(1, 3, 10, 10, generator=generator, dtype=torch.float64)
    spy = Spy(Hill(x, 1e9))
    attacks.square(spy, x, torch.zeros(1, dtype=torch.int64), eps=0.2, queries=40)
    for image in spy.batches:
        torch.testing.assert_close((image - x).abs(), torch.full_like(x, 0.2))
    stripes = (spy.batches[0] - x).sign()
    assert (stripes == stripes[:, :, :1]).all()
    kept = spy.batches[0]
    for image in spy.batches[1:]:
        rows, columns = ((image != kept)[0].any(0).any(axis).nonzero() for axis in (1, 0))
        if len(rows):
            side = _side(100, len(spy.batches), spy, image)
            assert rows.max() - rows.min() < side
            assert columns.max() - columns.min() < side
        if model_margin(spy, image) > model_margin(spy, kept):
            kept = image


def model_margin(spy, image):
    logits = spy.model(image)
    return (logits[:, 1] - logits[:, 0]).item()


def _side(pixels, queries, spy, image):
    query = next(q for q, batch in enumerate(spy.batches) if batch is image)
    return max(round((_share(0.8, query - 1, queries) * pixels) ** 0.5), 1)


def test_squares_shrink_as_in_the_authors_schedule():
    """At 10,000 queries: p, then halved after 10, 50, 200, 500, 1,000, 2,000, ... queries."""
    shares = [_share(0.8, query, 10_000) for query in (5, 30, 100, 300, 700, 1500, 3000, 9000)]
    assert shares == [0.8 / 2**k for k in (0, 1, 2, 3, 4, 5, 6, 9)]


@pytest.mark.parametrize("size", [1, 3, 4, 5, 9])
def test_the_bump_has_length_one_and_two_opposite_hills(size):
    bump = _bump(size, torch.zeros((), dtype=torch.float64))
    assert bump.norm().item() == pytest.approx(1, abs=1e-6)
    if size > 1:
        assert bump[: size // 2].norm() == pytest.approx(bump[size // 2 :].norm().item())
        assert (bump[: size // 2] > 0).all()
        assert (bump[size // 2 :] < 0).all()
