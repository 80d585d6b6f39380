"""Attacks and purifiers on a GPU: APUDAE_CUDA=1 pytest tests/training/test_cuda.py"""

from __future__ import annotations

import pytest
import torch
from support import BOTH, RANDOM, call

from apudae import attacks, data, models
from apudae.core.norms import length
from apudae.evaluation import Budget, evaluate
from apudae.purification import PRESETS, Adaptive, Defended, Direct, calibrate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or not asked for")


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist", "validation").take(100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "norm"), BOTH)
def test_attacks_run_where_the_images_are(name, norm, dtype, digits):
    x, y = (part.cuda() for part in digits)
    model = models.load("mnist-cnn").to("cuda", dtype)
    eps = 0.1 if norm == "linf" else 1.5
    made = [
        call(
            name, model, x, y, eps=eps, norm=norm, **({"index": index} if index is not None else {})
        )
        for index in (
            (None, torch.arange(100), torch.arange(100).cuda()) if name in RANDOM else (None,)
        )
    ]
    assert made[0].device == x.device
    assert all(torch.equal(made[0], other) for other in made[1:])
    assert length(made[0] - x, norm).max() <= eps + 1e-5
    assert 0 <= made[0].min() <= made[0].max() <= 1


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.5)])
def test_the_suite_leaves_as_many_as_on_the_cpu(norm, eps, digits):
    left = []
    for device in ("cpu", "cuda"):
        model = models.load("mnist-cnn").to(device)
        x, y = (part.to(device) for part in digits)
        left.append(int(attacks.suite(model, x, y, eps=eps, norm=norm).standing.sum()))
    assert abs(left[0] - left[1]) <= 2


@pytest.mark.parametrize("name", [*PRESETS, "direct"])
def test_purifiers_do_as_on_the_cpu(name, digits):
    """Images, gradient and noise, in float64."""
    found = []
    for device in ("cpu", "cuda"):
        dae = models.load("mnist-dae").to(device, torch.float64)
        x = digits.images[:8].to(device, torch.float64).requires_grad_(True)
        if name == "direct":
            purifier = Direct(dae, noise=0.1)
        else:
            level = calibrate(dae, x.detach())
            purifier = Adaptive.preset(name, dae, level, steps=5, stop=-1.0)
        purified = purifier(x, torch.arange(8))
        (gradient,) = torch.autograd.grad(purified.square().sum(), x)
        assert purified.device == x.device
        found.append((purified.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)
    if PRESETS.get(name) is None or PRESETS[name].options["stepper"] != "adam":
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_protocol_runs_where_the_images_are(noise, digits, tmp_path):
    small = Budget(pgd=5, apgd=5, queries=20, draws=2, weights=(0.1,), curve=5, scoring=3)
    found = []
    for device in ("cpu", "cuda"):
        dae, classifier = (models.load(k).to(device) for k in ("mnist-dae", "mnist-cnn"))
        model = Defended(classifier, Direct(dae, noise=noise))
        x, y = (part[:20].to(device) for part in digits)
        options = {"eps": 0.3, "budget": small, "progress": False, "record": tmp_path / device}
        found.append(evaluate(model, x, y, **options))
        assert evaluate(model, x, y, **options).right().tolist() == found[-1].right().tolist()
    assert found[1].rows[2].mebibytes is not None
    assert abs(found[0].worst.percent - found[1].worst.percent) <= 15
