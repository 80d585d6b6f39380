import math

import pytest
import torch
from scipy import stats

from apudae.core import norms


def images(generator, n=8, shape=(3, 5, 4)):
    return torch.rand(n, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("norm", norms.NORMS)
def test_length_is_that_of_numpy(norm, generator):
    change = images(generator) - 0.5
    order = 2 if norm == "l2" else math.inf
    expected = torch.linalg.vector_norm(change.flatten(1), ord=order, dim=1)
    torch.testing.assert_close(norms.length(change, norm), expected)


def test_the_clip_is_that_of_torch_and_lets_gradients_through_at_its_ends():
    z = torch.tensor([-0.1, 0.0, 0.4, 1.0, 1.1, math.nan], requires_grad=True)
    torch.testing.assert_close(norms.clip(z), z.clamp(0, 1), equal_nan=True)
    (slope,) = torch.autograd.grad(norms.clip(z).nansum(), z)
    assert slope[:5].tolist() == [0, 1, 1, 1, 0]


def test_very_short_changes_still_have_a_length_and_a_direction():
    change = torch.full((1, 1, 2, 2), 1e-30)
    torch.testing.assert_close(norms.length(change, "l2"), torch.tensor([2e-30]))
    torch.testing.assert_close(norms.steepest(change, "l2"), torch.full((1, 1, 2, 2), 0.5))
    tiny = torch.full((1, 1, 2, 2), 1e-40)  # below float32's normal numbers
    torch.testing.assert_close(norms.steepest(tiny, "l2"), torch.full((1, 1, 2, 2), 0.5))


@pytest.mark.parametrize("norm", norms.NORMS)
def test_the_steepest_step_has_length_one_and_is_zero_where_the_gradient_is(norm, generator):
    gradient = torch.randn(4, 3, 5, 4, generator=generator, dtype=torch.float64)
    gradient[1] = 0
    step = norms.steepest(gradient, norm)
    expected = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(norms.length(step, norm), expected)
    other = norms.steepest(torch.randn(gradient.shape, generator=generator).double(), norm)
    assert ((step * gradient).flatten(1).sum(1) >= (other * gradient).flatten(1).sum(1)).all()


def test_the_l2_length_spans_channels(generator):
    """Normalising channel by channel would allow a colour image √3 times too much."""
    step = norms.steepest(torch.randn(1, 3, 5, 4, generator=generator), "l2")
    assert step.norm().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("norm", norms.NORMS)
def test_projection_changes_nothing_inside_and_ends_on_the_border_outside(norm, generator):
    x = 0.4 + 0.2 * images(generator)  # the border of [0, 1] is out of reach
    step = norms.steepest(torch.randn(x.shape, generator=generator).double(), norm)
    torch.testing.assert_close(norms.project(x + 0.1 * step, x, 0.2, norm), x + 0.1 * step)
    torch.testing.assert_close(norms.project(x + 0.9 * step, x, 0.2, norm), x + 0.2 * step)


def test_the_l2_projection_is_the_nearest_point_of_the_ball(generator):
    x = 0.4 + 0.2 * images(generator)
    z = x + torch.randn(x.shape, generator=generator).double()
    nearest = norms.project(z, x, 0.2, "l2")
    for _ in range(20):
        other = norms.in_ball(x, 0.2, "l2", torch.arange(len(x)), int(torch.randint(99, ())))
        assert (norms.length(nearest - z, "l2") <= norms.length(other - z, "l2") + 1e-12).all()


@pytest.mark.parametrize("norm", norms.NORMS)
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_draws_are_uniform_in_the_ball(norm, seed):
    """The radius to the power d is uniform; so is a pixel in L∞, in L2 it is Beta((d+1)/2)."""
    n, d = 4000, 4
    x = torch.full((n, 1, 2, 2), 0.5, dtype=torch.float64)
    change = (norms.in_ball(x, 0.3, norm, torch.arange(n), seed) - x) / 0.3
    radius = norms.length(change, norm)
    shape = 1 if norm == "linf" else (d + 1) / 2
    assert stats.kstest(radius.numpy() ** d, "uniform").pvalue > 1e-3
    for pixel in change.flatten(1).T:
        assert stats.kstest((pixel.numpy() + 1) / 2, "beta", (shape, shape)).pvalue > 1e-3
    after = torch.corrcoef(torch.stack([change[:-1].flatten(), change[1:].flatten()]))[0, 1]
    assert abs(after) < 4 / (n * d) ** 0.5  # an image's draw says nothing about the next one's


@pytest.mark.parametrize("norm", norms.NORMS)
def test_draws_belong_to_seed_index_and_stream_not_to_the_batch(norm, generator):
    x = images(generator)
    keys = torch.tensor([5, 900, 3, 3, 60_000, 1, 0, 2])
    whole = norms.in_ball(x, 0.2, norm, keys, 1)
    for place in range(len(x)):
        alone = norms.in_ball(x[place : place + 1], 0.2, norm, keys[place : place + 1], 1)
        torch.testing.assert_close(alone[0], whole[place], rtol=0, atol=1e-15)
    x[3] = x[2]
    again = norms.in_ball(x, 0.2, norm, keys, 1)
    assert torch.equal(again[2], again[3])  # the same key
    for other in (norms.in_ball(x, 0.2, norm, keys, 2), norms.in_ball(x, 0.2, norm, keys, 1, 1)):
        assert (again != other).double().mean() > 0.9


def test_an_unknown_norm_is_named():
    with pytest.raises(ValueError, match="norm: expected one of linf, l2, got 'L1'"):
        norms.check_norm("L1")
