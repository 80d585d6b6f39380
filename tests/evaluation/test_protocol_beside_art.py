"""The protocol beside ART's AutoAttack, on an adversarially trained network."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import digits, names, shipped

from apudae.core import scores
from apudae.core.arguments import AttackWarning
from apudae.evaluation import BUDGETS, evaluate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("whole", [False, True])
def test_the_hardened_network_is_attacked_as_hard_as_by_art(monkeypatch, whole):
    # ART imports a fork of this module, for several processes; one is asked for here.
    monkeypatch.setitem(sys.modules, "multiprocess", multiprocessing)
    from art.attacks.evasion import AutoAttack, AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    hardened, eps = shipped("mnist-adversarial"), 0.31
    x, y = digits(400 if whole else 200)
    # Theirs has five restarts of 100 steps and two losses: no match for the quick budget.
    ours = replace(BUDGETS["reference"], queries=5000 if whole else 200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        report = evaluate(hardened, x, y, eps=eps, budget=ours, curves=False, progress=False)
    # 5,000 queries of Square find more than the gradients do, here as in ART.
    assert names(report) <= ({"black box wins"} if whole else set())
    assert 20 <= report.worst.percent <= 80
    estimator = PyTorchClassifier(
        hardened,
        torch.nn.CrossEntropyLoss(),
        (1, 28, 28),
        10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    shared = {"norm": np.inf, "eps": eps, "eps_step": 0.1, "batch_size": 200, "verbose": False}
    parts = [
        AutoProjectedGradientDescent(estimator, loss_type=loss, max_iter=100, **shared)
        for loss in ("cross_entropy", "difference_logits_ratio")
    ]
    if whole:  # their own list, with five restarts, DeepFool and Square: ten minutes
        parts = None
    np.random.seed(0)  # their random starts
    theirs = AutoAttack(estimator, eps=eps, eps_step=0.1, batch_size=200, attacks=parts)
    found = torch.from_numpy(theirs.generate(x.numpy(), y.numpy()))
    assert (found - x).abs().max() <= eps + 1e-5
    other = scores.accuracy(hardened, found, y).percent
    print(f"ours {report.worst}, ART's AutoAttack {other:.1f} %")
    assert report.worst.percent <= other + 1
