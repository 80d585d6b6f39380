import inspect
from functools import partial

import pytest
import torch
from support import ATTACKS, BOTH, RANDOM, call
from torch import nn
from torch.nn import functional as F

from apudae import attacks, models
from apudae.attacks.gradient import corner_pgd
from apudae.core import norms
from apudae.core.arguments import AttackWarning
from apudae.core.norms import NORMS, length


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


def batch(generator, n=64, shape=(1, 6, 6), classes=3, margin=0.0):
    x = margin + (1 - 2 * margin) * torch.rand(n, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


@pytest.fixture
def linear(linear, generator):
    """Three classes on 6 × 6 pixels, the smallest images for Square in L2."""
    return type(linear)((1, 6, 6), 3, generator)


@pytest.mark.parametrize(("name", "norm"), BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_stay_in_the_ball_and_in_range(name, norm, dtype, linear, generator):
    x, y = batch(generator)
    x = x.to(dtype)
    for eps in (0.0, 0.03, 0.4, 2.0):
        adversarial = call(name, linear, x, y, eps=eps, norm=norm)
        assert adversarial.shape == x.shape
        assert adversarial.dtype == dtype
        assert not adversarial.requires_grad
        assert length(adversarial - x, norm).max() <= eps + 1e-6
        assert 0 <= adversarial.min() <= adversarial.max() <= 1


def test_all_attacks_are_called_alike():
    for name, attack in ATTACKS.items():
        parameters = inspect.signature(attack).parameters
        assert list(parameters)[:3] == ["model", "x", "y"]
        options = list(parameters.values())[3:]
        assert all(p.kind is p.KEYWORD_ONLY for p in options)
        names = [p.name for p in options]
        assert names[0] == "eps"
        assert (name in RANDOM) == ("seed" in names) == ("index" in names)
        assert ("norm" in names) == (name != "cw")
        assert ("targeted" in names) == (name not in ("noise", "deepfool"))


def test_fgsm_on_a_linear_model_is_the_closed_form(linear, generator):
    """Two classes, away from 0 and 1: the gradient's sign is that of w_other - w_true."""
    x, y = batch(generator, classes=2, margin=0.2)
    two = type(linear)((1, 6, 6), 2, generator)
    direction = (two.weight[1 - y] - two.weight[y]).sign().view_as(x)
    torch.testing.assert_close(attacks.fgsm(two, x, y, eps=0.1), x + 0.1 * direction)
    back = attacks.fgsm(two, x, 1 - y, eps=0.1, targeted=True)
    torch.testing.assert_close(back, x + 0.1 * direction)


def test_the_fast_gradient_step_in_l2_follows_the_gradient(linear, generator):
    x, y = batch(generator, classes=2, margin=0.3)
    two = type(linear)((1, 6, 6), 2, generator)
    direction = (two.weight[1 - y] - two.weight[y]).view_as(x)
    direction = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
    adversarial = attacks.fgsm(two, x, y, eps=0.2, norm="l2")
    torch.testing.assert_close(adversarial, x + 0.2 * direction)


def test_both_steps_of_rfgsm_together_cost_epsilon(linear, generator):
    """The gradient's sign is the same everywhere: pixels end ε along it, or ε − 2α."""
    x, y = batch(generator, classes=2, margin=0.3)
    two = type(linear)((1, 6, 6), 2, generator)
    direction = (two.weight[1 - y] - two.weight[y]).sign().view_as(x)
    along = (attacks.rfgsm(two, x, y, eps=0.2, alpha=0.05) - x) * direction
    lucky = (along - 0.2).abs() < 1e-9
    torch.testing.assert_close(along[~lucky], torch.full_like(along[~lucky], 0.1))
    assert 0.4 < lucky.double().mean() < 0.6


@pytest.mark.parametrize("norm", NORMS)
def test_the_random_step_of_rfgsm_has_length_alpha(norm, linear, generator):
    x, y = batch(generator, margin=0.3)
    seen = []

    def spy(z):
        seen.append(z.detach().clone())
        return linear(z)

    attacks.rfgsm(lambda_module(spy), x, y, eps=0.2, alpha=0.05, norm=norm)
    (moved,) = seen
    torch.testing.assert_close(length(moved - x, norm), torch.full((64,), 0.05).to(x))


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_bim_on_a_linear_model_walks_straight_to_the_border(steps, linear, generator):
    x, y = batch(generator, classes=2, margin=0.3)
    two = type(linear)((1, 6, 6), 2, generator)
    direction = (two.weight[1 - y] - two.weight[y]).sign().view_as(x)
    adversarial = attacks.bim(two, x, y, eps=0.2, steps=steps, step_size=0.03)
    torch.testing.assert_close(adversarial, x + min(0.03 * steps, 0.2) * direction)


CLIMBERS = {
    "pgd": partial(attacks.pgd, steps=40),
    "pgd without a random start": partial(attacks.pgd, steps=40, random_start=False),
    "bim": partial(attacks.bim, steps=40),
    "apgd": partial(attacks.apgd, steps=40),
    "apgd on the margin": partial(attacks.apgd, steps=40, loss="margin"),
}


@pytest.mark.parametrize("name", CLIMBERS)
@pytest.mark.parametrize("norm", NORMS)
def test_climbers_on_a_linear_model_find_exactly_the_images_that_can_fall(
    name, norm, linear, generator
):
    """A two-class margin falls by at most ε·‖w_true − w_other‖, in L∞ the 1-norm, in L2 the 2."""
    two = type(linear)((1, 6, 6), 2, generator)
    x, _ = batch(generator, n=400, margin=0.35)
    y = two(x).argmax(1)
    scores = two(x).detach()
    margin = scores.gather(1, y[:, None])[:, 0] - scores.gather(1, 1 - y[:, None])[:, 0]
    difference = (two.weight[0] - two.weight[1]).detach()
    slope = difference.abs().sum() if norm == "linf" else difference.norm()
    eps = (margin.median() / slope).item()  # about half can fall
    assert eps < 0.35  # so that no pixel meets 0 or 1
    reach = eps * slope
    # On the sphere a fixed step turns towards the gradient only step by step.
    clear = (margin - reach).abs() > (1e-6 if norm == "linf" else 0.05) * reach
    adversarial = CLIMBERS[name](two, x, y, eps=eps, norm=norm)
    fell = two(adversarial).argmax(1) != y
    assert torch.equal(fell[clear], (margin < reach)[clear])
    assert 0.4 < fell.float().mean() < 0.6  # the question was not trivial


@pytest.mark.parametrize("attack", [attacks.pgd, attacks.apgd])
def test_stopping_early_fells_the_same_images_with_less_loss(attack, linear, generator):
    x, y = batch(generator, n=400, margin=0.3)
    whole, stopped = (
        attack(linear, x, y, eps=0.1, steps=20, early_stop=early) for early in (False, True)
    )
    fell = linear(whole).argmax(1) != y
    assert torch.equal(linear(stopped).argmax(1) != y, fell)
    losses = [F.cross_entropy(linear(z)[fell], y[fell], reduction="none") for z in (whole, stopped)]
    assert (losses[1] <= losses[0] + 1e-9).all()
    assert losses[1].mean() < 0.95 * losses[0].mean()


def test_pgd_without_a_random_start_leaves_the_images_alone(linear, generator):
    x, y = batch(generator)
    before = x.clone()
    attacks.pgd(linear, x, y, eps=0.2, steps=3, random_start=False)
    assert torch.equal(x, before)


TARGETED = ["fgsm", "rfgsm", "bim", "pgd", "apgd", "square", "cw"]
ONE_STEP = ("fgsm", "rfgsm")  # come nearer, but a single step of size ε may pass the target by


@pytest.mark.parametrize("name", TARGETED)
def test_targeted_attacks_move_towards_the_target(name, linear, generator):
    x, _ = batch(generator, margin=0.2)
    target = (linear(x).argmax(1) + 1) % 3
    options = {"eps": 0.01 if name in ONE_STEP else 1.0}
    options |= {"cw": {"eps": float("inf"), "searches": 9}, "square": {"queries": 200}}.get(
        name, {}
    )
    after = linear(call(name, linear, x, target, targeted=True, **options))
    if name not in ONE_STEP:
        assert (after.argmax(1) == target).float().mean() > 0.9
    aimed = torch.log_softmax(after, 1).gather(1, target[:, None])
    before = torch.log_softmax(linear(x), 1).gather(1, target[:, None])
    assert (aimed > before).float().mean() > 0.9


def test_project_is_the_nearest_point(generator):
    x, _ = batch(generator, n=8)
    z = x + torch.randn(x.shape, generator=generator, dtype=x.dtype)
    nearest = norms.project(z, x, 0.2)
    for shift in (1e-3, -1e-3):  # moving any pixel towards z would leave the box
        towards = (nearest + shift * (z - nearest).sign()).clamp(0, 1)
        inside = (towards - x).abs() <= 0.2
        closer = (towards - z).abs() < (nearest - z).abs()
        assert not (inside & closer).any()


def test_nothing_of_the_model_is_changed(generator):
    model = models.build("mnist-cnn")
    model.train()
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    before = [(p.clone(), p.grad.clone()) for p in model.parameters()]
    x = torch.rand(4, 1, 28, 28, generator=generator)
    for name, norm in BOTH:
        call(name, model, x, torch.arange(4), eps=0.3, norm=norm)
    attacks.suite(model, x, torch.arange(4), eps=0.3)
    assert model.training
    for p, (value, grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(p.grad, grad)


@pytest.mark.filterwarnings("ignore::apudae.core.arguments.AttackWarning")
def test_batch_norm_and_dropout_are_left_alone_also_in_training_mode(generator):
    model = nn.Sequential(
        nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 3)
    ).double()
    model[1].eval()
    x, y = batch(generator)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for name, norm in BOTH:
        first, again = (call(name, model, x, y, eps=0.1, norm=norm) for _ in range(2))
        assert torch.equal(first, again)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True]


def test_the_mode_is_restored_also_after_an_error(linear, generator):
    x, y = batch(generator)
    model = nn.Sequential(linear, nn.Identity()).train()
    model[1].eval()
    for name in ATTACKS:
        if name != "noise":
            with pytest.raises(ValueError, match="y: expected labels in"):
                call(name, model, x, y + 3, eps=0.1)
    assert [module.training for module in model] == [True, False]


@pytest.mark.parametrize(("name", "norm"), BOTH)
def test_attacks_work_in_every_grad_mode_and_carry_no_graph(name, norm, linear, generator):
    x, y = batch(generator)
    expected = call(name, linear, x, y, eps=0.2, norm=norm)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            attacked = call(name, linear, x.clone(), y.clone(), eps=0.2, norm=norm)
            assert torch.equal(attacked, expected)
    watched = x.clone().requires_grad_(True)
    assert not call(name, linear, watched, y, eps=0.2, norm=norm).requires_grad
    assert not call(name, linear, watched, y, eps=0.0, norm=norm).requires_grad


@pytest.mark.parametrize(("name", "norm"), BOTH)
def test_every_image_is_attacked_on_its_own(name, norm, linear, generator):
    """Alone, in a subset, in chunks: the same image and key give the same result."""
    x, y = batch(generator, n=12)
    whole = call(name, linear, x, y, eps=0.3, norm=norm)
    some = torch.tensor([7, 2, 11])
    keyed = {"index": some} if name in RANDOM else {}
    part = call(name, linear, x[some], y[some], eps=0.3, norm=norm, **keyed)
    torch.testing.assert_close(part, whole[some], rtol=0, atol=1e-9)
    if name != "noise":
        chunks = call(name, linear, x, y, eps=0.3, norm=norm, batch_size=5)
        torch.testing.assert_close(chunks, whole, rtol=0, atol=1e-9)


def test_images_in_half_precision_are_refused(linear, generator):
    x, y = batch(generator)
    with pytest.raises(ValueError, match=r"x: expected float32 or float64 images, got torch\.bf"):
        attacks.pgd(linear, x.bfloat16(), y, eps=0.1)


def test_draws_do_not_depend_on_torchs_defaults(linear, generator):
    x, y = batch(generator)
    expected = attacks.noise(linear, x, y, eps=0.1)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        assert torch.equal(
            attacks.noise(linear, x, y, eps=0.1, index=torch.arange(64, device="cpu")), expected
        )
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize(("name", "norm"), BOTH)
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e20])
def test_rounding_outside_the_range_and_huge_balls(name, norm, eps, linear, generator):
    """The check lets pass what is a rounding error outside [0, 1]; the result is inside."""
    x, y = batch(generator)
    x[:, :, 0, :2] = torch.tensor([-5e-7, 1 + 5e-7])
    adversarial = call(name, linear, x, y, eps=eps, norm=norm)
    assert 0 <= adversarial.min() <= adversarial.max() <= 1


@pytest.mark.parametrize("name", RANDOM)
def test_seeds(name, linear, generator):
    x, y = batch(generator)
    draws = [call(name, linear, x, y, eps=0.1, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_no_two_images_get_the_same_noise(linear, generator):
    x, y = batch(generator)
    change = attacks.noise(linear, x, y, eps=0.1) - x
    assert len({tuple(d.flatten().tolist()) for d in change}) == len(x)


@pytest.mark.parametrize("name", ATTACKS)
def test_bad_input_is_named(name, linear, generator):
    x, y = batch(generator)
    spoilt = x.clone()
    spoilt[3, 0, 1, 1] = float("nan")
    for images, message in (
        (x * 255, "x: expected values in"),
        (x - 0.5, "x: expected values in"),
        (spoilt, "x: holds NaN"),
        (x[:, 0], "x: expected 4 dimensions"),
        ((x * 255).to(torch.uint8), "x: expected floating-point images"),
        (x.numpy(), "x: expected a tensor"),
        (x[:, :, :0], "x: expected images of at least one pixel"),
    ):
        with pytest.raises(ValueError, match=message):
            call(name, linear, images, y, eps=0.1)
    for labels, message in (
        (y[1:], "y: expected 64 labels"),
        (y - 3, "y: expected labels in 0"),
        (y.float(), "y: expected int64 labels"),
        (F.one_hot(y), "y: expected a tensor of labels"),
    ):
        with pytest.raises(ValueError, match=message):
            call(name, linear, x, labels, eps=0.1)
    with pytest.raises(ValueError, match=r"eps: expected a finite number >= 0, got -0\.1"):
        call(name, linear, x, y, eps=-0.1)
    with pytest.raises(ValueError, match="eps: expected a finite number"):
        call(name, linear, x, y, eps=float("nan"))
    if name != "cw":
        with pytest.raises(ValueError, match="norm: expected one of linf, l2, got 'l1'"):
            call(name, linear, x, y, eps=0.1, norm="l1")
    assert call(name, linear, x[:0], y[:0], eps=0.1).shape == x[:0].shape
    if name != "noise":
        with pytest.raises(ValueError, match=r"y: expected labels in 0 \.\. 2, got"):
            call(name, linear, x, y + 3, eps=0.1)
        with pytest.raises(ValueError, match="NaN logits for 64 of 64 images"):
            call(name, lambda_module(lambda z: linear(z) * float("nan")), x, y, eps=0.1)
        with pytest.raises(ValueError, match="model: expected logits"):
            call(name, lambda_module(lambda z: linear(z)[:, 0]), x, y, eps=0.1)


@pytest.mark.parametrize(
    ("attack", "option", "value"),
    [
        (attacks.pgd, "steps", 0),
        (attacks.pgd, "steps", 2.5),
        (attacks.pgd, "step_size", -1.0),
        (attacks.pgd, "step_size", 0),
        (attacks.pgd, "restarts", 0),
        (attacks.pgd, "batch_size", 0),
        (attacks.pgd, "loss", "hinge"),
        (attacks.pgd, "index", torch.arange(3)),
        (attacks.bim, "steps", 0),
        (attacks.rfgsm, "alpha", 0.2),
        (attacks.rfgsm, "alpha", -0.1),
        (attacks.apgd, "steps", 0),
        (attacks.apgd, "restarts", 0),
        (attacks.apgd, "targets", 0),
        (attacks.apgd, "loss", "hinge"),
        (attacks.square, "queries", 0),
        (attacks.square, "p", 0),
        (attacks.square, "p", 1.5),
        (attacks.cw, "steps", 0),
        (attacks.cw, "searches", 0),
        (attacks.cw, "confidence", -1),
        (attacks.cw, "step_size", 0),
        (attacks.cw, "initial_c", 0),
        (attacks.deepfool, "steps", 0),
        (attacks.deepfool, "candidates", 1),
        (attacks.deepfool, "overshoot", -1),
    ],
)
def test_bad_options_are_named(attack, option, value, linear, generator):
    x, y = batch(generator)
    with pytest.raises(ValueError, match=f"^{option}: "):
        attack(linear, x, y, eps=0.1, **{option: value})


def test_restarts_without_a_random_start_are_refused(linear, generator):
    x, y = batch(generator)
    with pytest.raises(ValueError, match="restarts: more than one needs random_start"):
        attacks.pgd(linear, x, y, eps=0.1, restarts=2, random_start=False)


def test_a_start_in_corners(linear, generator):
    """Each pixel at an end of what it may be."""
    x, y = batch(generator)
    seen = []
    model = lambda_module(lambda z: (seen.append(z.detach()), linear(z))[1]).eval()
    corner_pgd(model, x, y, eps=0.1, steps=1)
    z = next(part for part in seen if part.shape == x.shape and not torch.equal(part, x))
    ends = [(x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)]
    at_end = [(z - end).abs() < 1e-7 for end in ends]
    assert (at_end[0] | at_end[1]).all() and all(0.4 < part.float().mean() < 0.6 for part in at_end)
    with pytest.raises(ValueError, match="eps: "):
        corner_pgd(linear, x, y, eps=-1.0)


def test_a_model_in_training_mode_draws_a_warning(generator):
    model = models.build("mnist-cnn")
    has_mode = any(isinstance(m, nn.Dropout | nn.BatchNorm2d) for m in model.modules())
    assert not has_mode  # else the shipped classifier would warn in every chapter
    noisy = nn.Sequential(nn.Dropout(0.5), model)
    x = torch.rand(2, 1, 28, 28, generator=generator)
    with pytest.warns(AttackWarning, match="Dropout in training mode"):
        attacks.pgd(noisy, x, torch.arange(2), eps=0.1, steps=1)
