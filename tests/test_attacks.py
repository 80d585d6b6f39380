import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apudae import attacks, checkpoints, data, models

ATTACKS = [attacks.noise, attacks.fgsm, attacks.pgd]


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


def batch(generator, n=64, shape=(1, 4, 4), classes=3, margin=0.0):
    x = margin + (1 - 2 * margin) * torch.rand(n, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("eps", [0.0, 0.03, 0.4, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_stay_in_the_ball_and_in_range(attack, eps, dtype, linear, generator):
    x, y = batch(generator)
    x = x.to(dtype)
    adversarial = attack(linear, x, y, eps=eps)
    assert adversarial.shape == x.shape
    assert adversarial.dtype == dtype
    assert not adversarial.requires_grad
    assert (adversarial - x).abs().max() <= eps + 1e-6
    assert 0 <= adversarial.min() <= adversarial.max() <= 1


def test_fgsm_on_a_linear_model_is_the_closed_form(linear, generator):
    """Two classes, away from 0 and 1: the gradient's sign is that of w_other - w_true."""
    x, y = batch(generator, classes=2, margin=0.2)
    two = type(linear)((1, 4, 4), 2, generator)
    direction = (two.weight[1 - y] - two.weight[y]).sign().view_as(x)
    torch.testing.assert_close(attacks.fgsm(two, x, y, eps=0.1), x + 0.1 * direction)
    back = attacks.fgsm(two, x, 1 - y, eps=0.1, targeted=True)
    torch.testing.assert_close(back, x + 0.1 * direction)


@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_on_a_linear_model_finds_exactly_the_images_that_can_fall(
    random_start, linear, generator
):
    """The margin of a two-class linear model falls by at most ε·‖w_true − w_other‖₁."""
    two = type(linear)((1, 4, 4), 2, generator)
    x, _ = batch(generator, n=400, margin=0.3)
    y = two(x).argmax(1)
    scores = two(x).detach()
    margin = scores.gather(1, y[:, None])[:, 0] - scores.gather(1, 1 - y[:, None])[:, 0]
    norm = (two.weight[0] - two.weight[1]).abs().sum()
    eps = min((margin.median() / norm).item(), 0.3)  # about half can fall
    reach = eps * norm
    clear = (margin - reach).abs() > 1e-6
    adversarial = attacks.pgd(two, x, y, eps=eps, steps=20, random_start=random_start)
    fell = two(adversarial).argmax(1) != y
    assert torch.equal(fell[clear], (margin < reach)[clear])
    assert 0.4 < fell.float().mean() < 0.6  # the question was not trivial


def test_stopping_early_fells_the_same_images_with_less_loss(linear, generator):
    x, y = batch(generator, n=400, margin=0.3)
    whole, stopped = (
        attacks.pgd(linear, x, y, eps=0.1, steps=20, early_stop=early) for early in (False, True)
    )
    fell = linear(whole).argmax(1) != y
    assert torch.equal(linear(stopped).argmax(1) != y, fell)
    losses = [F.cross_entropy(linear(z)[fell], y[fell], reduction="none") for z in (whole, stopped)]
    assert (losses[1] <= losses[0] + 1e-9).all()
    assert losses[1].mean() < 0.9 * losses[0].mean()


def test_pgd_without_a_random_start_leaves_the_images_alone(linear, generator):
    x, y = batch(generator)
    before = x.clone()
    attacks.pgd(linear, x, y, eps=0.2, steps=3, random_start=False)
    assert torch.equal(x, before)


def test_targeted_pgd_reaches_the_target(linear, generator):
    x, _ = batch(generator)
    target = (linear(x).argmax(1) + 1) % 3
    reached = linear(attacks.pgd(linear, x, target, eps=1.0, targeted=True)).argmax(1) == target
    assert reached.float().mean() > 0.95


def test_project_is_the_nearest_point(generator):
    x, _ = batch(generator, n=8)
    z = x + torch.randn(x.shape, generator=generator, dtype=x.dtype)
    nearest = attacks.project(z, x, 0.2)
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
    for attack in ATTACKS:
        attack(model, x, torch.arange(4), eps=0.3)
    assert model.training
    for p, (value, grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(p.grad, grad)


def test_batch_norm_and_dropout_are_left_alone_also_in_training_mode(generator):
    model = nn.Sequential(
        nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    model[1].eval()
    x, y = batch(generator)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for attack in ATTACKS:
        attack(model, x, y, eps=0.1)
        assert torch.equal(attack(model, x, y, eps=0.1), attack(model, x, y, eps=0.1))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_work_in_every_grad_mode_and_carry_no_graph(attack, linear, generator):
    x, y = batch(generator)
    expected = attack(linear, x, y, eps=0.2)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(attack(linear, x.clone(), y.clone(), eps=0.2), expected)
    watched = x.clone().requires_grad_(True)
    assert not attack(linear, watched, y, eps=0.2).requires_grad
    assert not attack(linear, watched, y, eps=0.0).requires_grad


def test_an_image_does_not_depend_on_the_batch_after_it(linear, generator):
    x, y = batch(generator)
    whole = attacks.pgd(linear, x, y, eps=0.2, steps=5)
    torch.testing.assert_close(attacks.pgd(linear, x[:7], y[:7], eps=0.2, steps=5), whole[:7])
    for early in (False, True):
        whole, parts = (
            attacks.pgd(linear, x, y, eps=0.2, steps=5, early_stop=early, batch_size=size)
            for size in (None, 5)
        )
        torch.testing.assert_close(whole, parts)


def test_seeds(linear, generator):
    x, y = batch(generator)
    draws = [attacks.noise(linear, x, y, eps=0.1, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).float().mean() > 0.9
    assert len({tuple(d.flatten().tolist()) for d in draws[0] - x}) == len(x)  # no image alike


def test_strength_on_the_shipped_classifier_is_in_the_right_order():
    x, y = data.load("mnist", "validation").take(200)
    model = checkpoints.load("mnist-cnn")

    def standing(x_adv):
        return (model(x_adv).argmax(1) == y).float().mean().item()

    clean = standing(x)
    scores = [standing(attack(model, x, y, eps=0.1)) for attack in ATTACKS]
    assert clean >= scores[0] > scores[1] > scores[2]
    assert scores[0] > 0.95
    assert standing(attacks.pgd(model, x, y, eps=0.3)) == 0


def test_pgd_raises_the_loss_beyond_fgsm():
    """At an ε at which few fall, so that early stopping hides nothing."""
    x, y = data.load("mnist", "validation").take(200)
    model = checkpoints.load("mnist-cnn")
    losses = [F.cross_entropy(model(attack(model, x, y, eps=0.02)), y) for attack in ATTACKS[1:]]
    assert losses[1] > losses[0]


@pytest.mark.parametrize("attack", ATTACKS)
def test_bad_input_is_named(attack, linear, generator):
    x, y = batch(generator)
    with pytest.raises(ValueError, match="x: expected values in"):
        attack(linear, x * 255, y, eps=0.1)
    with pytest.raises(ValueError, match="y: expected 64 labels"):
        attack(linear, x, y[1:], eps=0.1)
    with pytest.raises(ValueError, match=r"eps: expected a finite number >= 0, got -0\.1"):
        attack(linear, x, y, eps=-0.1)
    assert len(attack(linear, x[:0], y[:0], eps=0.1)) == 0


def test_bad_pgd_options_are_named(linear, generator):
    x, y = batch(generator)
    with pytest.raises(ValueError, match="steps: expected an integer >= 1, got 0"):
        attacks.pgd(linear, x, y, eps=0.1, steps=0)
    with pytest.raises(ValueError, match="step_size"):
        attacks.pgd(linear, x, y, eps=0.1, step_size=-1)
    with pytest.raises(ValueError, match="batch_size"):
        attacks.pgd(linear, x, y, eps=0.1, batch_size=0)
    with pytest.raises(ValueError, match="step_size: expected a finite number > 0, got 0"):
        attacks.pgd(linear, x, y, eps=0.1, step_size=0)
    for attack in ATTACKS[1:]:
        with pytest.raises(ValueError, match=r"y: expected labels in 0 \.\. 2, got"):
            attack(linear, x, y + 3, eps=0.1)
        with pytest.raises(ValueError, match="NaN logits for 64 of 64 images"):
            attack(lambda_module(lambda z: linear(z) * float("nan")), x, y, eps=0.1)
