"""The attacks on a GPU, which the other tests hide: APUDAE_CUDA=1 pytest tests/test_cuda.py"""

from __future__ import annotations

import pytest
import torch
from every_attack import BOTH, RANDOM, call

from apudae import attacks, checkpoints, data
from apudae.norms import length

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or not asked for")


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist", "validation").take(100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "norm"), BOTH)
def test_attacks_run_where_the_images_are(name, norm, dtype, digits):
    x, y = (part.cuda() for part in digits)
    model = checkpoints.load("mnist-cnn").to("cuda", dtype)
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
        model = checkpoints.load("mnist-cnn").to(device)
        x, y = (part.to(device) for part in digits)
        left.append(int(attacks.suite(model, x, y, eps=eps, norm=norm).standing.sum()))
    assert abs(left[0] - left[1]) <= 2
