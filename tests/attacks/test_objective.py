import copy
import warnings

import pytest
import support
import torch
from support import ATTACKS, BOTH, call
from torch import nn

from apudae import attacks
from apudae.attacks import losses
from apudae.core.arguments import AttackWarning
from apudae.core.calling import logits_of


@pytest.fixture
def logits(generator):
    return torch.randn(50, 6, generator=generator, dtype=torch.float64)


@pytest.fixture
def y(generator):
    return torch.randint(6, (50,), generator=generator)


def test_margin_dlr_and_targeted_dlr_are_their_formulas(logits, y):
    target = (y + 1) % 6
    margins, dlrs, targeteds = [], [], []
    for z, label, goal in zip(logits.tolist(), y.tolist(), target.tolist(), strict=True):
        other = max(value for k, value in enumerate(z) if k != label)
        first, _, third, fourth, *_ = sorted(z, reverse=True)
        margins.append(other - z[label])
        dlrs.append(-(z[label] - other) / (first - third))
        targeteds.append(-(z[label] - z[goal]) / (first - (third + fourth) / 2))
    torch.testing.assert_close(attacks.margin(logits, y), torch.tensor(margins).double())
    torch.testing.assert_close(attacks.dlr(logits, y), torch.tensor(dlrs).double())
    computed = losses.dlr_targeted(logits, y, target)
    torch.testing.assert_close(computed, torch.tensor(targeteds).double())


@pytest.mark.parametrize("loss", attacks.LOSSES)
def test_every_loss_rises_as_the_true_class_loses(loss, logits, y):
    worse = logits - nn.functional.one_hot(y, 6)
    right = logits.argmax(1) == y
    lower, higher = (attacks.LOSSES[loss](z, y) for z in (logits, worse))
    assert (higher[right] > lower[right]).all()


def test_the_cross_entropy_keeps_its_gradient_where_the_classifier_is_sure(y):
    """A sign is taken of it: what float32 rounds away of p_y − 1 would be lost."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 6))
    with torch.no_grad():
        net[1].bias += torch.linspace(0, 150, 6)
    exact = copy.deepcopy(net).double()
    x = torch.rand(50, 1, 6, 6)
    found, wanted = (
        torch.autograd.grad(attacks.cross_entropy(model(z), label).sum(), z)[0].double()
        for model, z, label in (
            (net, x.clone().requires_grad_(True), y),
            (exact, x.double().requires_grad_(True), y),
        )
    )
    usual = nn.functional.cross_entropy(net(x), y, reduction="none")
    torch.testing.assert_close(attacks.cross_entropy(net(x), y), usual)
    assert (wanted.abs().amax((1, 2, 3)) < 1e-7).any()  # some are sure of the label
    off = (found - wanted).abs().amax((1, 2, 3)) / wanted.abs().amax((1, 2, 3))
    assert off.max() < 1e-4


def test_dlr_does_not_see_the_scale_of_the_logits(logits, y):
    torch.testing.assert_close(attacks.dlr(1000 * logits, y), attacks.dlr(logits, y))


def test_losses_with_equal_logits_are_finite(y):
    for loss in attacks.LOSSES.values():
        assert loss(torch.zeros(50, 6), y).isfinite().all()


def test_too_few_classes_are_named(logits, y):
    with pytest.raises(ValueError, match="'dlr' needs 3 classes, the model has 2"):
        attacks.dlr(logits[:, :2], y % 2)
    with pytest.raises(ValueError, match="'dlr-targeted' needs 4 classes, the model has 3"):
        losses.dlr_targeted(logits[:, :3], y % 3, y % 3)


def test_gradients_are_those_of_finite_differences(linear, generator):
    x = torch.rand(4, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    for loss in attacks.LOSSES:
        for targeted in (False, True):
            objective = attacks.Objective(linear, loss, targeted)
            _, _, gradient = objective.gradient(x, y)
            direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            high, low = (objective.value(x + h * direction, y)[0] for h in (1e-6, -1e-6))
            slope = (gradient * direction).flatten(1).sum(1)
            torch.testing.assert_close((high - low) / 2e-6, slope, rtol=1e-4, atol=1e-6)


def test_the_fallen_come_before_the_standing_and_then_the_higher_loss():
    x = torch.zeros(1, 1, 1, 1)
    best = attacks.Best(x)
    place = torch.tensor([0])
    offers = [(1.0, False), (0.5, False), (0.2, True), (9.0, False), (0.3, True), (0.1, True)]
    for number, (score, fell) in enumerate(offers, 1):
        best.offer(place, x + number, torch.tensor([score]), torch.tensor([fell]))
        kept = [1, 1, 3, 3, 5, 5][number - 1]
        assert best.images.item() == kept


class Softmax(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).softmax(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "noise"])
def test_probabilities_draw_a_warning_at_the_callers_line(name, dtype, generator):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 7)).to(dtype)
    x = torch.rand(20, 1, 6, 6, generator=generator)
    y = model(x.to(dtype)).argmax(1)
    with pytest.warns(AttackWarning, match="outputs look like probabilities") as caught:
        call(name, Softmax(model), x, y, eps=0.1, norm="l2")
    assert caught[0].filename == support.__file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(name, model, x, y, eps=0.1, norm="l2")


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.Dropout(0.1), nn.Dropout2d(0.1)])
def test_training_mode_draws_a_warning_only_where_it_matters(layer, linear, generator):
    model = nn.Sequential(layer, linear).double()
    x = torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.arange(3)
    with pytest.warns(AttackWarning, match=f"{type(layer).__name__} in training mode") as caught:
        attacks.pgd(model, x, y, eps=0.1, steps=1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.pgd(model.eval(), x, y, eps=0.1, steps=1)
        attacks.pgd(linear.train(), x, y, eps=0.1, steps=1)


def test_models_are_fed_in_their_own_type(generator):
    x = torch.rand(3, 1, 4, 4, generator=generator)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).to(dtype)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert logits_of(model, x).dtype == expected


class Before(nn.Module):
    """Does something to the images before a linear layer."""

    def __init__(self, change, linear):
        super().__init__()
        self.change, self.linear = change, linear

    def forward(self, x):
        return self.linear(self.change(x))


USE_GRADIENTS = [(n, k) for n, k in BOTH if n not in ("noise", "square")]


@pytest.mark.parametrize(("name", "norm"), USE_GRADIENTS)
def test_a_nan_on_the_way_is_not_swallowed(name, norm, linear, generator):
    """The root's slope at 0 is infinite; times 0 it is NaN."""
    x = torch.rand(5, 1, 4, 4, generator=generator, dtype=torch.float64)
    model = Before(lambda z: z + 0 * (0 * z).sqrt(), linear)
    y = linear(x).argmax(1).detach()
    with pytest.raises(ValueError, match="NaN or infinity in the loss or its gradient"):
        call(name, model, x, y, eps=0.1, norm=norm)


@pytest.mark.parametrize("name", ["fgsm", "bim", "deepfool"])
def test_an_infinite_slope_gives_an_error_or_images(name, linear, generator):
    """A root as gamma correction, at a black pixel: no L2 direction, but in L∞ a sign."""
    x = torch.rand(5, 1, 4, 4, generator=generator, dtype=torch.float64)
    x[:, :, 0, 0] = 0
    model = Before(torch.sqrt, linear)
    y = model(x).argmax(1).detach()
    with pytest.raises(ValueError, match="NaN or infinity"):
        call(name, model, x, y, eps=0.1, norm="l2")
    if name != "deepfool":
        assert call(name, model, x, y, eps=0.1).isfinite().all()


@pytest.mark.parametrize(("name", "norm"), USE_GRADIENTS)
def test_a_model_cut_from_its_images_is_named(name, norm, linear, generator):
    x = torch.rand(5, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = linear(x).argmax(1).detach()
    frozen = copy.deepcopy(linear).requires_grad_(False)
    for inner in (linear, frozen):
        with pytest.raises(ValueError, match="carry no gradient of the images"):
            call(name, Before(torch.detach, inner), x, y, eps=0.1, norm=norm)


@pytest.mark.parametrize(("name", "norm"), [pair for pair in BOTH if pair[0] != "noise"])
def test_a_model_that_edits_its_input_is_refused(name, norm, generator):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    x = torch.rand(5, 1, 6, 6, generator=generator, dtype=torch.float64)
    before = x.clone()
    with pytest.raises((ValueError, RuntimeError), match=r"in place|in-place"):
        call(
            name, Before(lambda z: z.sub_(0.5), linear), x, torch.arange(5) % 3, eps=0.1, norm=norm
        )
    assert torch.equal(x, before)


@pytest.mark.parametrize(("name", "norm"), [pair for pair in BOTH if pair[0] != "noise"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_a_label_too_large_is_named_wherever_it_stands(name, norm, eps, linear, generator):
    x = torch.rand(12, 1, 6, 6, generator=generator, dtype=torch.float64)
    linear = type(linear)((1, 6, 6), 3, generator)
    y = torch.zeros(12, dtype=torch.int64)
    y[-1] = 3
    with pytest.raises(ValueError, match=r"y: expected labels in 0 \.\. 2, got"):
        call(name, linear, x, y, eps=eps, norm=norm, batch_size=5)
