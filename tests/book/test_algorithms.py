"""The algorithms that a chapter shows in full are those of the package."""

from __future__ import annotations

import math
from functools import partial
from unittest import mock

import pytest
import torch
from PIL import Image
from scipy.stats import beta, norm
from support import code, notebook, shipped
from torch import nn

from apudae import attacks, data, evaluation, models, purification, training
from apudae.attacks import as_published, autoattack, losses
from apudae.core import norms
from apudae.core.scores import auc
from apudae.experiments import photographs


def shown_in_full(name):
    """What a chapter's cells tagged "algorithm" define, and nothing else of the chapter."""
    imports = {"math": math, "torch": torch, "nn": nn, "F": torch.nn.functional}
    imports |= {"attacks": attacks, "purification": purification, "beta": beta, "norm": norm}
    cells = [cell for cell in code(notebook(name)) if "algorithm" in cell.metadata.get("tags", [])]
    assert cells, f"{name} shows no algorithm"
    for cell in cells:
        exec(cell.source, imports)
    return imports


@pytest.fixture
def digits(generator):
    start = torch.randint(900, (1,), generator=generator).item()
    x, y = data.load("mnist", "validation")
    return x[start : start + 16], y[start : start + 16]


@pytest.fixture
def usual():
    """The chapters write the cross-entropy in the usual way.

    In float64 that is the package's, but for rounding where the classifier is very sure.
    """
    with mock.patch.dict(losses.LOSSES, ce=partial(nn.functional.cross_entropy, reduction="none")):
        yield


@pytest.fixture
def exact(digits, usual):
    """In float64: the sign of a rounding error would turn an image round in float32."""
    x, y = digits
    return shipped("mnist-cnn", torch.float64), x.double(), y


def test_chapter_1_shows_the_packages_fgsm(exact):
    model, x, y = exact
    shown = shown_in_full("01_threat_models.ipynb")["fgsm"]
    torch.testing.assert_close(shown(model, x, y, eps=0.2), attacks.fgsm(model, x, y, eps=0.2))


GRADIENTS = "02_gradient_attacks.ipynb"


@pytest.fixture(scope="module")
def chapter_2():
    return shown_in_full(GRADIENTS)


def same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_chapter_2_shows_the_packages_fgsm_bim_and_pgd(norm, exact, chapter_2):
    model, x, y = exact
    eps = 0.1 if norm == "linf" else 1.5
    ours = attacks.fgsm(model, x, y, eps=eps, norm=norm)
    same(chapter_2["fgsm"](model, x, y, eps=eps, norm=norm), ours)
    ours = attacks.bim(model, x, y, eps=eps, norm=norm, steps=7)
    same(chapter_2["bim"](model, x, y, eps=eps, norm=norm, steps=7), ours)
    start = norms.in_ball(x, eps, norm, torch.arange(len(x)), 3)
    ours = attacks.pgd(model, x, y, eps=eps, norm=norm, steps=7, seed=3)
    same(chapter_2["pgd"](model, x, y, eps=eps, norm=norm, steps=7, start=start), ours)


def test_chapter_2_shows_the_packages_rfgsm(exact, chapter_2):
    model, x, y = exact
    draws = norms.uniforms(tuple(x.shape[1:]), torch.arange(len(x)), 3, 0, device=x.device)
    signs = (draws - 0.5).sign()
    shown = chapter_2["rfgsm"](model, x, y, eps=0.1, alpha=0.04, random_signs=signs)
    same(shown, attacks.rfgsm(model, x, y, eps=0.1, alpha=0.04, seed=3))


@pytest.mark.parametrize("eps", [0.01, 0.1])
def test_chapter_2_shows_the_packages_apgd(eps, exact, chapter_2):
    """Where nothing falls, both return the point of the highest loss."""
    model, x, y = exact
    assert chapter_2["reviews_of"](100) == autoattack._reviews(100)
    start = norms.in_ball(x, eps, "linf", torch.arange(len(x)), 3)
    shown = chapter_2["apgd"](model, x, y, eps=eps, steps=30, start=start)
    ours = attacks.apgd(model, x, y, eps=eps, steps=30, seed=3)
    # The package prefers a misread point to a higher loss; of an image that falls, the two agree.
    with torch.no_grad():
        fell = [model(z).argmax(1) != y for z in (shown, ours)]
    agree = fell[0] == fell[1]
    assert agree.all() if eps < 0.1 else agree.double().mean() > 0.8
    same(shown[agree], ours[agree])


def test_chapter_2_shows_the_packages_deepfool(exact, chapter_2):
    model, x, y = exact
    same(chapter_2["deepfool"](model, x, y), attacks.deepfool(model, x, y))


def test_chapter_2_shows_the_packages_cw(digits, chapter_2):
    x, y = digits
    model = shipped("mnist-cnn")
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    options = {"steps": 60, "searches": 5, "step_size": 0.05}
    ours = norms.length(attacks.cw(model, x, y, **options) - x, "l2")
    shown = norms.length(chapter_2["cw"](model, x, y, **options) - x, "l2")
    # The package cuts runs short; of 400 digits that changes about one in four.
    torch.testing.assert_close((shown / ours).median().item(), 1.0, rtol=1e-3, atol=0)


def test_chapter_2_shows_the_packages_square(exact, chapter_2):
    model, x, y = exact
    keys, device = torch.arange(len(x)), x.device
    stripes = norms.uniforms((1, 28, 28), keys, 3, 0, device=device)[:, :, :1]
    stripes = 1 - 2 * (stripes < 0.5).float()
    luck = norms.uniforms((autoattack._BLOCK, 6), keys, 3, 1, device=device)
    shown = chapter_2["square"](model, x, y, eps=0.1, queries=60, stripes=stripes, luck=luck)
    same(shown, attacks.square(model, x, y, eps=0.1, queries=60, seed=3))


def test_chapter_3_shows_the_packages_objective(digits):
    x, y = digits
    dae = shipped("mnist-dae")
    shown = shown_in_full("03_training_a_dae.ipynb")["denoising_loss"]
    losses = [
        shown(dae, x, 0.3, torch.Generator().manual_seed(5)),
        training.denoising(0.3)(dae, x, y, torch.Generator().manual_seed(5)),
    ]
    torch.testing.assert_close(*losses)


ERRORS = "04_reconstruction_error.ipynb"


def test_chapter_4_shows_the_packages_reconstruction_error_and_auc(digits, generator):
    shown = shown_in_full(ERRORS)
    x, _ = digits
    dae = shipped("mnist-dae")
    ours = purification.reconstruction_error(dae, x)
    torch.testing.assert_close(shown["reconstruction_error"](dae, x), ours)
    clean, attacked = (torch.randint(9, (30,), generator=generator) + k for k in (0, 2))
    assert shown["area"](clean, attacked).item() == pytest.approx(auc(clean, attacked).percent)


def test_chapter_4_shows_tweedies_formula(generator):
    """R*(x) − x = s² ∇ log p_s(x), the gradient taken by autograd in float64."""
    shown = shown_in_full(ERRORS)
    points = torch.rand(20, 2, generator=generator, dtype=torch.float64)
    z = torch.rand(9, 2, generator=generator, dtype=torch.float64).requires_grad_(True)
    (slope,) = torch.autograd.grad(shown["log_density"](z, points, 0.2).sum(), z)
    residual = shown["best_denoiser"](z, points, 0.2) - z
    torch.testing.assert_close(residual, 0.2**2 * slope)


def test_chapter_5_shows_the_packages_defense(digits):
    x, _ = digits
    classifier, dae = shipped("mnist-cnn"), shipped("mnist-dae")
    shown = shown_in_full("05_direct_purification.ipynb")
    theirs = shown["DefendedClassifier"](classifier, shown["DirectPurifier"](dae))
    ours = purification.Defended(classifier, purification.Direct(dae))
    torch.testing.assert_close(theirs(x), ours(x))


def test_chapter_6_shows_the_packages_purifier(digits):
    """In float64: Adam divides by the size of a gradient, and so amplifies rounding."""
    x = digits[0].double()
    dae = shipped("mnist-dae", torch.float64)
    shown = shown_in_full("06_adaptive_purification.ipynb")["purify"]
    level = purification.calibrate(dae, x)
    wishes = {
        "error": lambda d: d,
        "match": lambda d: (d - level.mu) ** 2 / level.sigma**2,
    }
    for objective, wish in wishes.items():
        options = {"steps": 12, "step_size": 0.05, "objective": objective, "calibration": level}
        ours = purification.Adaptive(dae, **options)(x)
        moved = (ours - x).abs().max()
        assert moved > 0.1
        assert (shown(dae, x, 12, 0.05, wish) - ours).abs().max() < 1e-4 * moved


def test_chapter_7_shows_the_packages_gradients(digits):
    x, y = digits
    x = x.double()
    classifier, dae = (shipped(n, torch.float64) for n in ("mnist-cnn", "mnist-dae"))
    shown = shown_in_full("07_adaptive_attacks.ipynb")
    walk = purification.Adaptive(dae, stepper="descent", steps=3, step_size=0.1)
    model = purification.Defended(classifier, walk)

    def ours(view):
        return attacks.Objective(view).gradient(x, y)[2]

    same(shown["bpda_gradient"](classifier, walk, x, y), ours(attacks.BPDA(model)))
    averaged = shown["averaged_gradient"](classifier, walk.iterates(x), y)
    same(averaged, ours(attacks.Averaged(model)))

    noisy = purification.Defended(classifier, purification.Direct(dae, noise=0.3))
    view = attacks.EOT(noisy, 3)
    draws = [view.model.number(k) for k in range(3)]
    same(shown["eot_gradient"](noisy, x, y, draws), ours(view))

    def step(z):
        with torch.enable_grad():
            z = z if z.requires_grad else z.requires_grad_(True)
            d = purification.reconstruction_error(dae, z).sum()
            (g,) = torch.autograd.grad(d, z, create_graph=True)
        return z - 0.1 * g

    # The package also clips; of pixels at the border the two differ.
    inside = (0.2 + 0.6 * x).requires_grad_(True)
    upstream = torch.randn_like(x)
    out = walk(inside)
    (full,) = torch.autograd.grad(out, inside, upstream)
    end, back = shown["there_and_back"](step, inside.detach(), 3, upstream)
    free = ((out > 0) & (out < 1)).flatten(1).all(1)
    assert free.any()
    same(end[free], out[free])
    same(back[free], full[free])


def test_chapter_9_shows_the_packages_diffusion(digits, generator):
    x = digits[0].double()
    net = models.build("mnist-diffusion").double().requires_grad_(False)
    purifier = purification.DiffPure(net, level=0.4, steps=7, seed=3)
    index = torch.arange(len(x))
    noises = [purifier._normal(x, index, 2, k) for k in range(len(purifier.levels))]
    shown = shown_in_full("09_against_other_defenses.ipynb")["diffuse_and_back"]
    same(shown(net, x, purifier.levels, noises), purifier(x, index, 2))


def test_chapter_10_shows_the_authors_bim(generator):
    net = models.build("cifar10-resnet", width=8).double().eval().requires_grad_(False)
    x = torch.rand(8, 3, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (8,), generator=generator)
    shown = shown_in_full("10_cifar10.ipynb")["bim_as_published"]
    ours = {"eps": 8 / 255, "steps": 5, "step_size": 3 / 255}
    same(shown(net, x, y, **ours), as_published.bim(net, x, y, **ours, clip=False))


def test_chapter_11_shows_the_packages_squares(tmp_path):
    image = data.load("photographs").images[0]
    Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()).save(tmp_path / "1_cat.png")
    listing = data.list_imagenet(tmp_path)
    whole = data.read_image(listing.files[0], photographs.SIZE)
    tiles = shown_in_full("11_imagenet.ipynb")["tiles"]
    assert torch.equal(tiles(whole), photographs.crops(listing).images)


def test_chapter_12_shows_the_packages_certificate(generator):
    defined = shown_in_full("12_guarantees.ipynb")
    shown = defined["certificate"]
    model, x = shipped("mnist-cnn"), data.load("mnist", "validation").images[:30]
    options = {"sigma": 0.6, "n": 200, "n0": 50, "alpha": 0.01}
    found = evaluation.certify(model, x, noise_trained=True, **options)
    assert 0 < (found.predictions == evaluation.ABSTAINED).sum() < 30
    for k, image in enumerate(x):
        first, counts = evaluation.votes(model, image, k, 0.6, (50, 200))
        choice, radius = shown(first, counts, 0.6, 0.01)
        if found.predictions[k] == evaluation.ABSTAINED:
            assert choice is None and radius is None
        else:
            assert choice == found.predictions[k]
            assert radius == pytest.approx(found.radius(k), rel=1e-9)
    # Its draws are others than the package's; the shares are the same up to chance.
    for k in (found.predictions == evaluation.ABSTAINED).nonzero().flatten()[:2].tolist():
        mine = defined["count"](model, x[k : k + 1], 0.6, 2000, seed=k)
        (votes,) = evaluation.votes(model, x[k], k, 0.6, (2000,))
        assert mine.sum() == 2000
        assert (mine - votes).abs().max() < 5 * (2 * 2000 * 0.25) ** 0.5


def test_chapter_13_shows_the_packages_objective(digits):
    x, y = digits
    classifier = shipped("mnist-cnn")
    net = models.build("mnist-dae", width=4)

    def pgd(*part, seed, **options):  # training draws a seed for every batch
        return attacks.pgd(*part, seed=5, **options)

    options = {"eps": 0.2, "steps": 7, "relative_step": 0.25, "early_stop": False}
    task = training.purifying(classifier, pgd, weight=3.0, **options)
    task.announce(1.0)
    ours = task(net.train(), x, y, torch.Generator().manual_seed(0))
    shown = shown_in_full("13_a_purifier_that_holds.ipynb")["purifying_loss"]
    torch.testing.assert_close(shown(net.eval(), classifier, x, y, 0.2, 3.0, seed=5), ours)
    ours.backward()
    assert net.encoder[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in classifier.parameters())
