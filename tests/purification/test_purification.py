import math
import os
import subprocess
import sys

import pytest
import support
import torch
from scipy.stats import norm
from support import shipped
from torch import nn

from apudae import attacks, data, models, purification
from apudae.core import scores
from apudae.core.norms import uniforms
from apudae.purification import (
    PRESETS,
    Adaptive,
    Calibration,
    Defended,
    Direct,
    calibrate,
    reconstruction_error,
)

LEVEL = Calibration(0.35, 0.1, 100)


def level_for(dae, x):
    """μ among the errors at hand, so that some images are normal and others are not."""
    d = reconstruction_error(dae, x).detach()
    return Calibration(d.sort().values[1:3].mean().item(), 0.2 * d.mean().item(), len(x))


VARIANTS = {
    **{name: {} for name in PRESETS},
    "descent": {"stepper": "descent", "step_size": 0.05},
    "tanh": {"stepper": purification.Sign(tau=0.1), "step_size": 0.02},
    "smooth adam": {"stepper": purification.Adam(eps=0.1), "step_size": 0.02},
    "noisy descent": {"stepper": "descent", "step_size": 0.05, "noise": 0.01},
    "paced sigmoid": {"objective": "sigmoid", "stepper": "descent", "paced": True},
    "stops": {"stepper": "descent", "step_size": 0.05, "stop": 0.5, "steps": 12},
    "noisy, stops": {"stepper": "l2", "step_size": 0.05, "noise": 0.01, "stop": 0.5},
    "bounded, reconstructs": {"stepper": "descent", "eps": 0.02, "reconstruct": True},
    "expected": {"stepper": "descent", "step_size": 0.05, "expected": (0.3, 3), "seed": 7},
    "expected, noisy": {"expected": (0.1, 1), "noise": 0.01, "stop": 0.5, "steps": 4},
}


def variant(name, dae, x):
    level = level_for(dae, x)
    if name in PRESETS:
        return Adaptive.preset(name, dae, level, steps=6)
    return Adaptive(dae, calibration=level, **{"steps": 6, **VARIANTS[name]})


def plain(purifier, x, index=None, draw=0):
    """The same, unrolled in the plainest way: one graph through all steps, no image leaves it."""
    dae, o = purifier.dae, purifier.options
    mu, sigma, _ = o["calibration"]
    z, done = x, torch.zeros(len(x), dtype=torch.bool)
    m = v = torch.zeros_like(x)
    kind = o["stepper"] if isinstance(o["stepper"], str) else type(o["stepper"]).__name__.lower()
    constant = getattr(o["stepper"], "eps", 1e-8), getattr(o["stepper"], "tau", None)
    spread, copies = o.get("expected", (0.0, 1))
    streams = [(2**16 - 1) * 2**16 + k for k in range(copies)]
    draws = [uniforms(x.shape[1:], None, o["seed"], s, device=x.device) for s in streams]
    noise = [spread * torch.from_numpy(norm.ppf(u.double())).to(x.dtype) for u in draws]
    for t in range(1, o["steps"] + 1):
        d = sum((z - dae(z + n)).square().flatten(1).sum(1) for n in noise) / copies
        value = {
            "error": d,
            "hinge": (d - mu).clamp(min=0) ** 2 / sigma**2,
            "match": (d - mu) ** 2 / sigma**2,
            "sigmoid": d * torch.sigmoid((d - mu) / sigma),
        }[o["objective"]]
        (g,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        if kind == "adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            root = (v / (1 - 0.999**t)).clamp(min=1e-30).sqrt()
            step = m / (1 - 0.9**t) / (root + constant[0])
        elif kind == "sign":
            step = torch.tanh(g / constant[1]) if constant[1] else g.sign()
        elif kind == "l2":
            step = g / g.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        else:
            step = g
        if o["paced"]:
            step = step * torch.sigmoid((d - mu) / sigma).view(-1, 1, 1, 1)
        after = z - o["step_size"] * step
        if o["noise"]:
            key = torch.zeros(1, dtype=torch.int64) if index is None else index
            u = uniforms(x.shape[1:], key, o["seed"], (draw + 1) * 2**16 + t, device=x.device)
            size = (((d - mu).clamp(min=0) / (2 * sigma)) ** 2).clamp(max=4).view(-1, 1, 1, 1)
            after = after + o["noise"] * size * (2 * u.to(x.dtype) - 1)
        if o["eps"] is not None:
            after = torch.minimum(torch.maximum(after, x - o["eps"]), x + o["eps"])
        if o["stop"] is not None:
            done = done | (d <= mu + o["stop"] * sigma)
        z = torch.where(done.view(-1, 1, 1, 1), z, after.clamp(0, 1))
    return dae(z).clamp(0, 1) if o["reconstruct"] else z


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
    assert torch.equal(Direct(smooth_dae, repeats=3)(x), smooth_dae(smooth_dae(smooth_dae(x))))
    assert Direct(nn.Identity())(3 * x - 1).aminmax() == (0, 1)


def test_direct_adds_normal_noise_first(generator):
    x = torch.full((400, 1, 8, 8), 0.5, dtype=torch.float64)
    seen = []
    purifier = Direct(nn.Identity(), noise=0.3, seed=generator.initial_seed())
    purifier.dae.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    purifier(x, torch.arange(400))
    draws = (seen[-1] - x).flatten() / 0.3
    assert draws.abs().max() > 2  # not clipped: 0.5 + 0.3 * 2 leaves [0, 1]
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):  # 25,600 draws: 4 standard errors
        error = math.sqrt(q * (1 - q) / draws.numel())
        assert abs((draws < norm.ppf(q)).double().mean().item() - q) < 4 * error


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_its_plain_loop(name, smooth_dae, generator):
    x = images(generator, n=12)
    purifier = variant(name, smooth_dae, x)
    index = torch.randperm(12, generator=generator)
    purified = purifier(x, index, 3).detach()
    torch.testing.assert_close(purified, plain(purifier, x.requires_grad_(True), index, 3).detach())
    assert (purified - x).abs().max() > 1e-4
    assert 0 <= purified.min() <= purified.max() <= 1
    if purifier.eps is not None and not purifier.returns_reconstruction:
        assert (purified - x).abs().max() <= purifier.eps + 1e-12


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_those_of_the_plain_loop(name, smooth_dae, generator):
    """To the images and to the DAE's weights, with images that stop on the way."""
    x = images(generator, n=6).requires_grad_(True)
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    purifier = variant(name, smooth_dae, x)
    sources = [x, *smooth_dae.parameters()]
    options = {"allow_unused": True, "materialize_grads": True}  # all may stop at once
    ours = torch.autograd.grad((direction * purifier(x)).sum(), sources, **options)
    theirs = torch.autograd.grad((direction * plain(purifier, x)).sum(), sources, **options)
    for own, reference in zip(ours, theirs, strict=True):
        assert own.isfinite().all()
        torch.testing.assert_close(own, reference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("stepper", ["descent", "adam", "l2"])
def test_in_float32_too_on_the_digits_dae(stepper):
    """The relative difference of the gradients over the whole batch is at most 1e-4."""
    dae, classifier = shipped("mnist-dae"), shipped("mnist-cnn")
    x, y = data.load("mnist", "validation").take(16)
    level = calibrate(dae, data.load("mnist", "validation").images[:200])
    x = attacks.pgd(classifier, x, y, eps=0.2, steps=10).requires_grad_(True)
    size = {"descent": 0.05, "adam": 0.02, "l2": 0.5}[stepper]
    # Adam as a smooth surrogate: the rounding of the plain one is larger than its slope.
    kind = purification.Adam(eps=1e-2) if stepper == "adam" else stepper
    purifier = Adaptive(dae, stepper=kind, step_size=size, steps=8, calibration=level)
    found = []
    for purify in (purifier, lambda z: plain(purifier, z)):
        loss = nn.functional.cross_entropy(classifier(purify(x)), y)
        found.append(torch.autograd.grad(loss, x)[0])
    ours, theirs = found
    assert theirs.norm() > 0
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_adaptive_lowers_the_error_and_stays_in_range(generator):
    dae = shipped("mnist-dae")
    x = data.load("mnist", "validation").take(32).images
    noisy = (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    path = Adaptive(dae, steps=15, step_size=0.05).trajectory(noisy).images
    assert len(path) == 16
    assert torch.equal(path[0], noisy)
    errors = torch.stack([reconstruction_error(dae, step) for step in path])
    assert (errors[-1] < 0.5 * errors[0]).all()
    assert all(0 <= step.min() <= step.max() <= 1 for step in path)


@pytest.mark.parametrize("name", [*VARIANTS, "direct", "direct, noisy"])
def test_each_image_is_purified_on_its_own(name, smooth_dae, generator):
    x = images(generator)
    if name.startswith("direct"):
        purifier = Direct(smooth_dae, repeats=2, noise=0.1 if "noisy" in name else 0)
    else:
        purifier = variant(name, smooth_dae, x)
    index = torch.randperm(50, generator=generator)[: len(x)]
    for keys in (None, index):
        whole = purifier(x, keys)
        for i in range(len(x)):
            own = None if keys is None else keys[i : i + 1]
            alone = purifier(x[i : i + 1], own)[0]
            torch.testing.assert_close(alone, whole[i], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("purifier", [Direct, Adaptive])
def test_noise_follows_from_its_keys_and_from_nothing_else(purifier, smooth_dae, generator):
    x = images(generator, n=4)
    x[1] = x[0]
    options = {"noise": 0.1} | ({"calibration": (0.0, 0.1, 9)} if purifier is Adaptive else {})
    make = lambda seed: purifier(smooth_dae, seed=seed, **options)  # noqa: E731
    first = make(0)(x)
    assert torch.equal(first, make(0)(x))
    torch.testing.assert_close(first[0], first[1])  # without index: the same noise for all
    index = torch.arange(4)
    keyed = make(0)(x, index)
    torch.testing.assert_close(keyed[0], first[0])
    others = (keyed, make(1)(x), make(0)(x, None, 1))
    assert all((other[1] - first[1]).abs().max() > 1e-4 for other in others)
    torch.manual_seed(generator.initial_seed())
    state = torch.random.get_rng_state()
    assert torch.equal(make(0)(x, index), keyed)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert make(0).random
    assert not purifier(smooth_dae).random


class Counting(nn.Module):
    """Counts the images that pass."""

    def __init__(self, dae):
        super().__init__()
        self.dae, self.images = dae, 0

    def forward(self, x):
        self.images += len(x)
        return self.dae(x)


@pytest.mark.parametrize("graph", [False, True])
def test_images_that_are_done_cost_nothing_more(graph, smooth_dae, generator):
    x = images(generator, n=40)
    options = {"stepper": "descent", "step_size": 0.05, "steps": 15}
    start = reconstruction_error(smooth_dae, x).detach()
    level = Calibration(start.quantile(0.4).item(), 0.01, 40)
    path = Adaptive(smooth_dae, **options).trajectory(x).errors
    done = (path <= level.mu).double()
    # One look for each image and step up to the one that finds it done.
    looks = sum(int(done[:, i].argmax()) + 1 if done[:15, i].any() else 15 for i in range(len(x)))
    dae = Counting(smooth_dae)
    purifier = Adaptive(dae, calibration=level, stop=0.0, **options)
    purifier(x)
    dae.images = 0
    purified = purifier(x.requires_grad_(graph))
    assert dae.images == looks < 15 * 40
    before = x[start <= level.mu]
    assert len(before) >= 15
    assert torch.equal(purified[start <= level.mu], before)


def test_a_trajectory_is_what_was_done(smooth_dae, linear, generator):
    x = images(generator)
    for name in ("simple", "probabilistic", "stops", "bounded, reconstructs"):
        purifier = variant(name, smooth_dae, x)
        path = Defended(linear, purifier).trajectory(x)
        assert path.images.shape == (purifier.steps + 1, *x.shape)
        assert torch.equal(path.images[0], x)
        for t in (0, 1, purifier.steps):
            z = purifier.replace(steps=t, reconstruct=False)(x).detach()
            torch.testing.assert_close(path.images[t], z)
            torch.testing.assert_close(path.errors[t], reconstruction_error(smooth_dae, z))
            read = linear(purifier.replace(steps=t)(x)).argmax(1)
            assert torch.equal(path.predictions[t], read)
    path = Direct(smooth_dae, repeats=2).trajectory(x)
    assert torch.equal(path.images[1], smooth_dae(x))
    assert len(path.images) == 3
    assert path.predictions is None
    with pytest.raises(ValueError, match="purifier: a Identity records no trajectory"):
        Defended(linear, nn.Identity()).trajectory(x)


def test_calibration_is_mean_and_spread_of_the_errors(smooth_dae, generator):
    x = images(generator, n=23)
    d = reconstruction_error(smooth_dae, x)
    mu, sigma, n = calibrate(smooth_dae, x, batch_size=7)
    assert (mu, sigma, n) == (pytest.approx(d.mean().item()), pytest.approx(d.std().item()), 23)


def test_draws_are_averaged_as_probabilities(smooth_dae, linear, generator):
    x = images(generator)
    purifier = Direct(smooth_dae, noise=0.2)
    model = Defended(linear, purifier, draws=5)
    expected = sum(linear(purifier(x, None, k)).softmax(1) for k in range(5)) / 5
    torch.testing.assert_close(model(x).exp(), expected)
    again = sum(linear(purifier(x, None, k)).softmax(1) for k in range(10, 15)) / 5
    torch.testing.assert_close(model(x, None, 2).exp(), again)
    assert (expected - again).abs().max() > 1e-6


class Foreign(nn.Module):
    """Somebody else's random purifier, which knows no keys."""

    def forward(self, x):
        return (x + 0.1 * torch.rand_like(x)).clamp(0, 1)


def test_any_module_can_be_the_purifier(linear, generator):
    x = images(generator)
    logits = Defended(linear, Foreign(), draws=3)(x)
    assert logits.shape == (6, 3)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(6).double())


def test_in_float32_the_shipped_purifier_hardly_depends_on_the_batch():
    """Adam divides by the size of a gradient and so amplifies rounding, within bounds."""
    classifier, dae = shipped("mnist-cnn"), shipped("mnist-dae")
    attacked = support.attacked(24, 0.2, steps=10)
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


@pytest.mark.parametrize("stepper", purification.STEPPERS)
@pytest.mark.parametrize("objective", purification.OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_gradient_gives_no_nan(stepper, objective, dtype):
    """R(x) = x: the error is 0 everywhere, and 0 is also the hinge's corner."""
    x = torch.full((2, 1, 4, 4), 0.5, dtype=dtype, requires_grad=True)
    options = {"stepper": stepper, "objective": objective, "calibration": (0.0, 1.0)}
    purified = Adaptive(nn.Identity(), steps=3, noise=0.1, **options)(x)
    assert torch.equal(purified, x)
    assert purified.dtype == dtype
    (gradient,) = torch.autograd.grad(purified.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


def test_the_presets_are_the_authors_table():
    """Steps, step size · 255 and noise · 255, as the paper's code has them."""
    table = {
        "simple": ("error", "adam", 12, 1, 0),
        "biased": ("sigmoid", "adam", 16, 1, 0),
        "probabilistic": ("hinge", "adam", 13, 2, 0.7),
        "kl": ("match", "adam", 16, 2, 0),
    }
    for name, (objective, stepper, steps, size, noise) in table.items():
        o = Adaptive.preset(name, nn.Identity(), (1.0, 1.0)).options
        assert (o["objective"], o["stepper"], o["steps"]) == (objective, stepper, steps)
        assert 255 * o["step_size"] == pytest.approx(size)
        assert 255 * o["noise"] == pytest.approx(noise)
    assert Adaptive.preset("biased-steps", nn.Identity(), (1.0, 1.0)).paced
    assert (
        Adaptive.preset("probabilistic-mean", nn.Identity(), (1, 1)).options["objective"] == "match"
    )
    assert Adaptive.preset("l2", nn.Identity()).options["stepper"] == "l2"
    assert Adaptive.preset("sign", nn.Identity()).eps == 8 / 255


def test_the_callers_autocast_changes_nothing(generator):
    dae = models.build("mnist-dae").eval()
    for weights in (False, True):
        dae.requires_grad_(weights)
        x = torch.rand(2, 1, 28, 28, generator=generator).requires_grad_(True)
        found = []
        for on in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                purified = Adaptive(dae, steps=3, stepper="descent", step_size=0.01)(x)
                (gradient,) = torch.autograd.grad(purified.square().sum(), x)
            found.append((purified.detach(), gradient))
        for plainly, inside in zip(*found, strict=True):
            torch.testing.assert_close(plainly, inside)


def test_layers_in_training_mode_are_named(generator):
    dae = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.Sigmoid())
    x = torch.rand(4, 1, 4, 4, generator=generator)
    with pytest.raises(ValueError, match="dae: BatchNorm2d in training mode, which draws anew"):
        Adaptive(dae)(x)
    calibrate(dae, x)
    assert dae.training
    assert dae[1].num_batches_tracked == 0
    Adaptive(dae.eval())(x)


def test_a_trajectory_goes_on_when_all_images_are_done(smooth_dae, generator):
    x = images(generator)
    purifier = Adaptive(smooth_dae, steps=5, stop=0.0, calibration=(1e3, 1.0))
    path = purifier.trajectory(x)
    assert torch.equal(path.images, x.expand(6, *x.shape))


def test_the_callers_gradients_are_left_alone(smooth_dae, generator):
    x = images(generator).requires_grad_(True)
    x.grad = torch.ones_like(x)
    Adaptive(smooth_dae, steps=3)(x)
    Adaptive(smooth_dae, steps=3).trajectory(x)
    assert torch.equal(x.grad, torch.ones_like(x))


def test_draws_that_would_all_be_the_same_are_refused(smooth_dae, linear):
    noisy = Direct(smooth_dae, noise=0.1)
    with pytest.raises(ValueError, match="draws: a Sequential cannot hand the number of the draw"):
        Defended(linear, nn.Sequential(noisy, noisy), draws=4)
    assert Defended(linear, nn.Sequential(noisy)).random
    assert not Defended(linear, Direct(smooth_dae), draws=4).random


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
    before, after = (nn.functional.cross_entropy(model(z), y) for z in (x, adversarial))
    assert after > before


def test_purification_saves_images_from_an_attack_on_the_classifier_alone():
    classifier, dae = shipped("mnist-cnn"), shipped("mnist-dae")
    _, y = support.digits(100)
    adversarial = support.attacked(100, 0.2)
    assert scores.accuracy(classifier, adversarial, y).correct <= 2
    for purifier in (Direct(dae), Adaptive(dae)):
        assert scores.accuracy(Defended(classifier, purifier), adversarial, y).correct >= 70


def test_half_precision_reads_the_same_digits():
    """bfloat16 where the processor has it; elsewhere both are the same."""
    classifier, dae = shipped("mnist-cnn"), shipped("mnist-dae")
    x, y = data.load("mnist", "validation").take(200)
    attacked = support.attacked(200, 0.2, steps=10)
    right = [
        scores.outcomes(Defended(classifier, Adaptive(dae, precision=p)), attacked, y)
        for p in ("float32", "auto")
    ]
    assert (right[0] == right[1]).float().mean() >= 0.97
    x = x[:4].requires_grad_(True)
    loss = Defended(classifier, Adaptive(dae, steps=2, precision="auto"))(x).sum()
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


MEMORY = """
import os, pathlib, sys, torch
from apudae import data, models
from apudae.purification import Adaptive, reconstruction_error
torch.set_num_threads(1)
dae = models.load("mnist-dae")
x = data.load("mnist", "train").images[:32]
def peak():  # KiB; ru_maxrss would start at the peak of the process that started this one
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
def unrolled(z):
    for _ in range(steps):
        (g,) = torch.autograd.grad(reconstruction_error(dae, z).sum(), z, create_graph=True)
        z = (z - 0.05 * g).clamp(0, 1)
    return z
def ours(z):
    return Adaptive(dae, stepper="descent", step_size=0.05, steps=steps)(z)
steps = int(sys.argv[1])
for way in (ours, unrolled):
    if os.fork():  # each in a process of its own, and the imports but once
        if os.wait()[1]:
            sys.exit(1)
        continue
    z = x.clone().requires_grad_(True)
    # The network's own: once forward, once back.
    torch.autograd.grad(Adaptive(dae, stepper="descent", step_size=0.05, steps=1)(z).sum(), z)
    before = peak()
    torch.autograd.grad(way(z).sum(), z)
    print(peak() - before, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_full_gradient_needs_a_fifteenth_of_the_memory():
    # glibc gives large blocks back at once, so that the peak is what was held, not the heap.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEMORY, "50"]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    ours, unrolled = map(int, run.stdout.split())
    assert unrolled > 200_000  # KiB
    assert ours <= unrolled / 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps: expected an integer from 0 to 65535, got -1"),
        ({"step_size": 0.0}, "step_size: expected a finite number > 0"),
        ({"eps": -0.1}, r"eps: expected a finite number >= 0, got -0\.1"),
        ({"noise": math.nan}, "noise: expected a finite number >= 0"),
        ({"seed": -1}, "seed: expected an integer >= 0"),
        ({"objective": "hinge"}, "calibration: objective 'hinge' needs the mean and spread"),
        ({"stop": 0.0}, "calibration: stop needs"),
        ({"noise": 0.1}, "calibration: noise needs"),
        ({"paced": True}, "calibration: paced needs"),
        ({"objective": "loss"}, "objective: expected one of error, hinge, match, sigmoid, got"),
        ({"stepper": "lbfgs"}, "stepper: expected one of adam, descent, sign, l2, got 'lbfgs'"),
        ({"precision": "half"}, "precision: expected one of float32, auto"),
        ({"calibration": (math.nan, 1.0, 9)}, "mu: expected a finite number >= 0, got nan"),
        ({"calibration": (1.0, math.inf, 9)}, "sigma: expected a finite number > 0, got inf"),
        ({"calibration": (1.0, 0.0, 9)}, r"sigma: expected a finite number > 0, got 0\.0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(nn.Identity(), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda dae: Direct(dae, repeats=0), "repeats: expected an integer >= 1, got 0"),
        (lambda dae: Direct(dae, noise=-1.0), "noise: expected a finite number >= 0"),
        (lambda dae: Adaptive.preset("lbfgs", dae), "name: expected one of simple, biased, "),
        (lambda dae: Adaptive.preset("biased", dae), "calibration: objective 'sigmoid' needs"),
        (lambda dae: Defended(dae, Direct(dae), draws=0), "draws: expected an integer >= 1"),
    ],
)
def test_more_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(nn.Identity())


class Broken(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)


@pytest.mark.parametrize("use", [Direct, Adaptive, calibrate])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :, ::2, ::2], r"dae: expected outputs of its input's shape \[8, 1, 4, 4\]"),
        (lambda x: x[:, :, :1, :1], "dae: expected outputs of its input's shape"),
        (lambda x: 2 * x - 1, r"dae: expected outputs about in \[0, 1\], got \[-1"),
        (lambda x: 255 * x, r"dae: expected outputs about in \[0, 1\], got \[0, 2"),
        (lambda x: x / 0, "dae: its output holds NaN or infinite values"),
        (lambda x: (x, x), "dae: expected outputs of its input's shape .*, got tuple"),
    ],
    ids=["smaller", "would broadcast", "-1 to 1", "0 to 255", "NaN", "a pair"],
)
def test_a_dae_that_returns_no_images_is_named(use, change, message):
    x = torch.zeros(8, 1, 4, 4)  # like a digit, mostly dark
    x[:, :, 1] = 1
    with pytest.raises(ValueError, match=message):
        use(Broken(change), x) if use is calibrate else use(Broken(change))(x)


def test_errors_that_are_all_the_same_cannot_calibrate(generator):
    with pytest.raises(ValueError, match="sigma: expected a finite number > 0, got 0"):
        calibrate(nn.Identity(), images(generator))
    with pytest.raises(ValueError, match="number of images: expected an integer >= 2, got 1"):
        calibrate(nn.Identity(), images(generator, n=1))


def test_rednet_which_leaves_the_range_a_little_is_no_error(generator):
    dae = models.build("rednet", depth=4, width=4)
    x = torch.rand(4, 3, 8, 8, generator=generator)
    assert Direct(dae)(x).shape == Adaptive(dae, steps=1)(x).shape == x.shape
    assert Direct(dae)(x[:0]).shape == Adaptive(dae, steps=1)(x[:0]).shape == (0, 3, 8, 8)


def test_wrong_keys_are_named(smooth_dae, generator):
    x = images(generator)
    with pytest.raises(ValueError, match="index: expected 6"):
        Adaptive(smooth_dae)(x, torch.arange(5))
    with pytest.raises(ValueError, match="draw: expected an integer >= 0"):
        Direct(smooth_dae)(x, None, -1)
    with pytest.raises(ValueError, match="draw: expected less than 65534, got 65534"):
        Direct(smooth_dae)(x, None, 65534)


def test_a_purifier_says_what_it_is(smooth_dae):
    purifier = Adaptive.preset("probabilistic", smooth_dae, LEVEL, stop=1.0)
    assert "objective=hinge" in repr(purifier)
    assert "stop=1" in repr(purifier)
    assert repr(purifier.replace(stepper=purification.Sign(0.5))).count("Sign(tau=0.5)") == 1
    assert "steps=30, step_size=0.02" in repr(Adaptive(smooth_dae))
