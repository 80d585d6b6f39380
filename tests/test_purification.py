import pytest
import torch
from torch import nn

from apudae import attacks, checkpoints, data, evaluation
from apudae.purification import Adaptive, Defended, Direct, reconstruction_error


def images(generator, n=6):
    """Away from 0 and 1, where clipping has no kink."""
    return 0.3 + 0.4 * torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64)


def test_reconstruction_error_is_a_squared_distance_per_image(smooth_dae, generator):
    x = images(generator)
    rows = [torch.linalg.vector_norm(image - smooth_dae(image[None])[0]) ** 2 for image in x]
    torch.testing.assert_close(reconstruction_error(smooth_dae, x), torch.stack(rows))


def test_direct_is_the_clipped_output(smooth_dae, generator):
    x = images(generator)
    assert torch.equal(Direct(smooth_dae)(x), smooth_dae(x))
    assert Direct(nn.Identity())(3 * x - 1).aminmax() == (0, 1)


def test_adaptive_steps_are_those_of_torchs_adam(smooth_dae, generator):
    x = images(generator)
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=0.004)
    for _ in range(20):
        adam.zero_grad()
        reconstruction_error(smooth_dae, x + delta).sum().backward()
        adam.step()
    expected = (x + delta).detach()
    assert (expected - x).abs().max() > 0.02  # it moved, and met no border
    assert 0 < expected.min() < expected.max() < 1
    purified = Adaptive(smooth_dae, steps=20, step_size=0.004)(x).detach()
    torch.testing.assert_close(purified, expected, rtol=0, atol=1e-9)


def test_adaptive_lowers_the_error_and_stays_in_range(generator):
    dae = checkpoints.load("mnist-dae")
    x = data.load("mnist", "validation").take(32).images
    noisy = (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    path = Adaptive(dae, steps=15, step_size=0.05).trajectory(noisy)
    assert len(path) == 16
    assert torch.equal(path[0], noisy)
    errors = torch.stack([reconstruction_error(dae, step) for step in path])
    assert (errors[-1] < 0.5 * errors[0]).all()
    assert all(0 <= step.min() <= step.max() <= 1 for step in path)


@pytest.mark.parametrize("make", [Direct, Adaptive], ids=["direct", "adaptive"])
def test_each_image_is_purified_on_its_own(make, smooth_dae, generator):
    purifier, x = make(smooth_dae), images(generator)
    whole = purifier(x)
    for i in range(len(x)):
        torch.testing.assert_close(purifier(x[i : i + 1])[0], whole[i], rtol=1e-9, atol=1e-12)


def test_in_float32_the_shipped_purifier_hardly_depends_on_the_batch():
    """Adam divides by the size of a gradient and so amplifies rounding, within bounds."""
    classifier, dae = checkpoints.load("mnist-cnn"), checkpoints.load("mnist-dae")
    x, y = data.load("mnist", "validation").take(24)
    attacked = attacks.pgd(classifier, x, y, eps=0.2, steps=10)
    with torch.no_grad():
        whole = Adaptive(dae)(attacked)
        alone = torch.cat([Adaptive(dae)(image[None]) for image in attacked])
    assert (whole - alone).abs().max() < 0.02
    assert (classifier(whole).argmax(1) == classifier(alone).argmax(1)).float().mean() >= 0.95


def test_gradients_through_all_steps_are_those_of_finite_differences(smooth_dae, generator):
    """A step size far below the distance to the borders and a gradient that is nowhere tiny."""
    x = images(generator, n=2).requires_grad_(True)
    weights = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    purifier = Adaptive(smooth_dae, steps=4, step_size=0.01)
    (exact,) = torch.autograd.grad((weights * purifier(x)).sum(), x)
    h = 1e-6
    for place in torch.randperm(x.numel(), generator=generator)[:12].tolist():
        shift = torch.zeros(x.numel(), dtype=x.dtype)
        shift[place] = h
        shift = shift.view_as(x)
        up, down = ((weights * purifier(x + s)).sum() for s in (shift, -shift))
        slope = ((up - down) / (2 * h)).item()
        assert abs(slope - exact.flatten()[place].item()) < 1e-4 * (1 + abs(slope))


def test_a_zero_gradient_gives_no_nan():
    x = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    purified = Adaptive(nn.Identity(), steps=3)(x)  # R(x) = x: the error is 0 everywhere
    assert torch.equal(purified, x)
    (gradient,) = torch.autograd.grad(purified.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_result_is_the_same_in_every_grad_mode(context, smooth_dae, generator):
    purifier, x = Adaptive(smooth_dae, steps=5), images(generator)
    expected = purifier(x).detach()
    with context():
        torch.testing.assert_close(purifier(x.clone()), expected)
        assert purifier(x.clone()).requires_grad == (context is torch.enable_grad)


def test_purifying_leaves_the_dae_as_it_was(smooth_dae, generator):
    x = images(generator)
    for p in smooth_dae.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    before = [p.grad.clone() for p in smooth_dae.parameters()]
    Adaptive(smooth_dae)(x)
    Adaptive(smooth_dae)(x.requires_grad_(True)).sum().backward()
    after = [p.grad for p in smooth_dae.parameters()]
    # The caller's own backward adds to .grad; the inner one must not, so undo only the former.
    (own,) = (torch.autograd.grad(Adaptive(smooth_dae)(x).sum(), list(smooth_dae.parameters())),)
    for old, new, part in zip(before, after, own, strict=True):
        torch.testing.assert_close(new, old + part)


def test_defended_is_the_composition_and_can_be_attacked_whole(smooth_dae, linear, generator):
    x = images(generator)
    y = torch.zeros(len(x), dtype=torch.int64)
    model = Defended(linear, Adaptive(smooth_dae, steps=3))
    torch.testing.assert_close(model(x), linear(model.purifier(x)))
    adversarial = attacks.pgd(model, x, y, eps=0.1, steps=3)
    assert (adversarial - x).abs().max() <= 0.1 + 1e-6


def test_purification_saves_images_from_an_attack_on_the_classifier_alone():
    classifier, dae = checkpoints.load("mnist-cnn"), checkpoints.load("mnist-dae")
    x, y = data.load("mnist", "validation").take(100)
    adversarial = attacks.pgd(classifier, x, y, eps=0.2)
    assert evaluation.accuracy(classifier, adversarial, y).correct <= 2
    for purifier in (Direct(dae), Adaptive(dae)):
        assert evaluation.accuracy(Defended(classifier, purifier), adversarial, y).correct >= 70


@pytest.mark.parametrize(("option", "value"), [("steps", -1), ("step_size", 0.0)])
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option}: expected"):
        Adaptive(nn.Identity(), **{option: value})
