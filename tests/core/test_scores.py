import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, norm
from torch import nn

from apudae.core.scores import (
    Accuracy,
    Difference,
    Outcomes,
    accuracy,
    auc,
    outcomes,
    paired_difference,
    roc,
    same_images,
)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (1, 1), (892, 1000), (50, 100), (1000, 1000)])
def test_the_interval_is_wilsons_formula(correct, n):
    z = 1.959963984540054
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = Accuracy(correct, n).interval()
    assert low == pytest.approx(100 * max(centre - half, 0), abs=1e-9)
    assert high == pytest.approx(100 * min(centre + half, 1), abs=1e-9)


def test_it_prints_with_its_interval():
    assert str(Accuracy(892, 1000)) == "89.2 % [87.1, 91.0]"


class Fixed(nn.Module):
    """Answers with the pixel's value as a class; dropout shows the mode."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, x):
        classes = torch.arange(4, device=x.device)
        return self.dropout(-(x.flatten(1)[:, :1] * 3 - classes).abs() - 1)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_counting_is_exact_for_any_batch_size_and_modes_come_back(batch_size, generator):
    y = torch.randint(4, (100,), generator=generator)
    shown = torch.where(torch.arange(100) % 4 == 0, (y + 1) % 4, y)  # a quarter is wrong
    x = (shown / 3).float().view(100, 1, 1, 1)
    model = Fixed().train()
    assert torch.equal(outcomes(model, x, y, batch_size=batch_size), shown == y)
    assert accuracy(model, x, y, batch_size=batch_size) == Accuracy(75, 100)
    assert model.training
    assert model.dropout.training


def test_bad_input_is_named():
    x, y = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="x: expected values"):
        outcomes(Fixed(), x + 1, y)
    with pytest.raises(ValueError, match="number of images: expected an integer >= 1, got 0"):
        accuracy(Fixed(), x[:0], y[:0])
    with pytest.raises(ValueError, match=r"second: expected shape \[3\], got \[2\]"):
        paired_difference(y.bool(), y[:2].bool())


@pytest.mark.parametrize(
    ("both", "first_only", "second_only", "n"),
    [
        (0.5, 0.1, 0.2, 200),
        (0.97, 0.004, 0.0, 1000),
        (0.99, 0.001, 0.001, 1000),
        (0.0, 0.5, 0.5, 50),
    ],
)
def test_the_paired_interval_covers_the_truth_as_often_as_it_says(both, first_only, second_only, n):
    """Also where only a handful of images differ: at least 95 % but for simulation error."""
    rng = np.random.default_rng(7)
    truth = 100 * (second_only - first_only)
    hits = 0
    for _ in range(1000):
        u = torch.from_numpy(rng.random(n))
        one = (u >= both) & (u < both + first_only)
        two = (u >= both + first_only) & (u < both + first_only + second_only)
        difference = paired_difference((u < both) | one, (u < both) | two)
        assert difference.low < difference.points < difference.high
        hits += difference.low <= truth <= difference.high
    assert hits >= 930


def test_the_paired_interval_is_narrower_than_the_unpaired_one():
    first = torch.arange(1000) < 900
    second = torch.arange(1000) < 920
    other = (torch.arange(1000) - 920) % 1000 < 920  # as often right, on other images
    assert paired_difference(first, second).low > 0
    assert paired_difference(first, other).low < 0


def test_the_same_outcomes_leave_an_interval_around_nothing():
    same = torch.arange(1000) < 900
    difference = paired_difference(same, same)
    assert difference.points == 0
    assert -0.6 < difference.low < 0 < difference.high < 0.6
    worst = paired_difference(same & False, same | True)
    assert worst.points == 100
    assert 99 < worst.low < 100


def test_swapping_the_models_mirrors_the_interval(generator):
    first, second = torch.rand(2, 300, generator=generator) > 0.3
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.points == pytest.approx(-back.points)
    assert there.low == pytest.approx(-back.high)
    assert there.high == pytest.approx(-back.low)


def test_differences_print_with_their_sign():
    assert str(Difference(1.26, -0.2, 2.4)) == "+1.3 points [-0.2, +2.4]"


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


class Broken(nn.Module):
    def forward(self, x):
        logits = torch.zeros(len(x), 4)
        logits[: len(x) // 2] = math.nan
        return logits


@pytest.mark.parametrize("labels", [torch.zeros(2, dtype=torch.int64), torch.zeros(3)])
def test_labels_that_are_not_one_whole_number_per_image_are_named(labels):
    with pytest.raises(ValueError, match=r"^y: expected (3|int64) labels"):
        outcomes(Fixed(), torch.zeros(3, 1, 1, 1), labels)


def test_nan_logits_and_foreign_labels_are_refused():
    x, y = torch.rand(6, 1, 2, 2), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match="model: NaN logits for 3 of 6 images"):
        outcomes(Broken(), x, y)
    with pytest.raises(ValueError, match=r"labels in 0 \.\. 3, got 0 \.\. 4"):
        outcomes(Fixed(), x, torch.tensor([0, 1, 2, 3, 4, 0]))
    with pytest.raises(ValueError, match=r"expected logits \[6, classes\], got shape \[6\]"):
        outcomes(lambda_module(lambda z: z.flatten(1).sum(1)), x, y)


def test_modes_come_back_after_an_error():
    model = Broken().train()
    with pytest.raises(ValueError, match="NaN"):
        outcomes(model, torch.rand(6, 1, 2, 2), torch.zeros(6, dtype=torch.int64))
    assert model.training


def test_the_roc_curve_and_its_area_by_counting(generator):
    """Coarse scores, so that ties are common; every threshold counted by hand."""
    clean = torch.randint(6, (40,), generator=generator).float()
    attacked = torch.randint(6, (25,), generator=generator).float() + 1
    false, true = roc(clean, attacked)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    thresholds = sorted({*clean.tolist(), *attacked.tolist()}, reverse=True)
    for k, threshold in enumerate(thresholds, 1):
        assert false[k] == (clean >= threshold).float().mean()
        assert true[k] == (attacked >= threshold).float().mean()
    trapezoids = torch.trapezoid(true, false).item()
    wins = [(a > c) + 0.5 * (a == c) for a in attacked.tolist() for c in clean.tolist()]
    assert auc(clean, attacked).percent == pytest.approx(100 * trapezoids, abs=1e-3)
    assert auc(clean, attacked).percent == pytest.approx(100 * sum(wins) / len(wins))
    statistic = mannwhitneyu(attacked.numpy(), clean.numpy()).statistic
    assert auc(clean, attacked).percent == pytest.approx(100 * statistic / (40 * 25))


@pytest.mark.parametrize("shift", [0.3, 1.0, 2.0])
def test_the_interval_of_an_area_covers_the_true_one(shift, generator):
    """Normal scores: the area is Φ(shift / √2). 400 draws: 95 % ± 3 standard errors."""
    expected = 100 * norm.cdf(shift / 2**0.5)
    covered = 0
    for _ in range(400):
        clean = torch.randn(60, generator=generator)
        found = auc(clean, torch.randn(60, generator=generator) + shift)
        assert 0 <= found.low <= found.percent <= found.high <= 100
        covered += found.low <= expected <= found.high
    assert 0.90 <= covered / 400 <= 0.985


def test_areas_at_the_ends_and_of_too_few():
    low, high = torch.zeros(5), torch.ones(5)
    # Five of five: Wilson's lower bound is n / (n + z²), z the normal 97.5 % quantile.
    assert str(auc(low, torch.ones(9))) == f"100.0 % [{100 * 5 / (5 + 1.959964**2):.1f}, 100.0]"
    none = auc(high, low)
    assert none.percent == none.low == 0 < none.high
    with pytest.raises(ValueError, match="number of attacked scores: expected an integer >= 2"):
        auc(low, high[:1])


def test_two_rates_have_a_spread_too():
    """Student's quantile for one degree of freedom reaches from end to end."""
    found = paired_difference(torch.zeros(2).double(), torch.tensor([0.2, 0.6]).double())
    assert found.points == pytest.approx(40) and (found.low, found.high) == (-100, 100)


def of(places, right=None):
    """Outcomes that are the places themselves, as rates, so that a mix-up is seen."""
    places = torch.tensor(places)
    return Outcomes(places.double() / 100 if right is None else torch.tensor(right), places)


def test_outcomes_are_paired_by_image_and_never_by_place_in_a_list():
    one, other, third = of([7, 3, 9, 0, 5]), of([5, 0, 1, 7]), of([0, 8, 7, 2, 5])
    found = same_images(one, other, third)
    assert [part.tolist() for part in found] == [[0.07, 0.0, 0.05]] * 3
    (alone,) = same_images(one)
    assert torch.equal(alone, one.right)
    bools = same_images(of([4, 2], [True, False]), of([2, 4], [True, False]))
    assert [part.tolist() for part in bools] == [[True, False], [False, True]]


def test_outcomes_of_other_images_are_not_compared():
    with pytest.raises(ValueError, match="no image in common"):
        same_images(of([1, 2]), of([3]))
    with pytest.raises(
        ValueError, match=r"places: expected one for each outcome, \[2\], got \[3\]"
    ):
        Outcomes(torch.ones(2), torch.arange(3))
    with pytest.raises(ValueError, match="places: an image comes twice"):
        of([1, 2, 1])
    with pytest.raises(ValueError, match=r"several\[1\]: expected an? Outcomes, got"):
        same_images(of([1]), torch.ones(2))
    with pytest.raises(ValueError, match="number of outcomes: expected an integer >= 1, got 0"):
        same_images()
