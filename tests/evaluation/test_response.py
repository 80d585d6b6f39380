"""What is done after a warning: all of it, whatever the model looks like inside."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from support import SMALL, module_of, run, small
from torch import nn

from apudae import attacks, data
from apudae.core.norms import Ball, normals, uniforms
from apudae.evaluation import response
from apudae.evaluation.abstention import towards_each
from apudae.evaluation.isolation import Isolated
from apudae.purification import Adaptive, ResizePad

BRIEF = replace(SMALL, pgd=5, apgd=5, queries=20)


class Rounding(nn.Module):
    """A classifier whose gradient is gone, with more inside it."""

    def __init__(self, inner=None, more=None, cut=False):
        super().__init__()
        self.inner, self.more, self.cut = inner or small(), more, cut

    def forward(self, x):
        x = x.detach() if self.cut else x
        z = (20 * self.inner(x)).round() / 20
        return z if self.more is None else z + 0 * self.more(x).sum(1, keepdim=True)


class Brain(nn.Module):
    """In bfloat16 inside."""

    def __init__(self):
        super().__init__()
        self.net = copy.deepcopy(small()).bfloat16()

    def forward(self, x):
        return self.net(x.bfloat16()).float()


def flat(classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes)).eval()


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist", "validation").take(12)


def planned(model, digits):
    options = {"eps": 0.1, "norm": "linf", "seed": 0, "batch_size": None}
    ball = Ball(digits.images, 0.1)
    return {
        row.name
        for row in response.respond(
            model, ball, digits.labels, BRIEF, random=False, classes=10, **options
        )
    }


def test_a_decoy_inside_switches_no_attack_off(digits):
    always = {"border", "border, NES", "Square, again", "learned substitute"}
    opaque = module_of(lambda x: x.flatten(1)[:, :10].detach())
    for model in (opaque, Rounding(more=flat(10)), Isolated(Rounding(), False)):
        assert always <= planned(model.eval(), digits)
    assert not any("Rounding" in name for name in planned(Isolated(Rounding(), False), digits))


def test_a_classifier_of_the_models_own_type_is_found_inside():
    model = nn.Sequential(nn.Hardtanh(0, 1), flat(3))
    assert attacks.inside.inner_classifiers(model, torch.rand(2, 1, 28, 28)) == [model[1]]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Rounding(module_of(torch.no_grad()(small()))), id="no gradient inside"),
        pytest.param(Rounding(small(), flat(9)), id="a head without the last class"),
        pytest.param(
            module_of(
                lambda x: (20 * small()(x)).round() / 20 - torch.tensor([0.0] * 9 + [torch.inf])
            ),
            id="a class that is masked out",
        ),
        pytest.param(Rounding(Brain(), cut=True), id="another precision inside"),
    ],
)
def test_odd_parts_do_not_end_an_evaluation(model, digits):
    x, y = digits
    more, labels = data.load("mnist", "validation")
    nines = (labels == 9).nonzero().flatten()[:4]  # of the last class
    x, y = torch.cat([x, more[nines]]), torch.cat([y, labels[nines]])
    report = run(model.eval(), data.Split(x, y), eps=0.05, curves=False, budget=BRIEF)
    assert report.complete


def test_quantised_attacks_stay_in_the_ball_of_their_own_radius(digits):
    options = {"eps": 0.03, "quantised": True, "curves": False, "budget": BRIEF}
    assert run(Rounding().eval(), digits, **options).complete
    speaking = module_of(lambda x: torch.cat([small()(x), x.new_zeros(len(x), 1)], 1))
    assert run(speaking, digits, **options | {"abstain": 10}).complete


def test_the_border_is_not_walked_to_where_all_are_misread(digits):
    model = module_of(lambda x: flat(10)(x.view(x.size(0), -1).view(x.shape)))
    x, y = digits.images, (model(digits.images).argmax(1) + 1) % 10
    assert torch.equal(attacks.boundary(model, x, y, eps=0.1, steps=2), x)


class Heard(attacks.NES):
    """Which queries it gives a gradient for: its directions are keyed by their numbers."""

    def looks(self, x, turn):
        self.turns = [*getattr(self, "turns", []), turn]
        yield from super().looks(x, turn)


def test_a_walk_along_estimates_does_not_depend_on_the_batch():
    """One digit finds its start at once, the other among many of its own class."""
    x, y = data.load("mnist", "validation")
    threes, eights = ((y == k).nonzero().flatten() for k in (3, 8))
    starts = x[torch.cat([threes[1:20], eights[1:2]])]
    options = {"eps": 0.01, "steps": 3, "starts": starts}
    heard = []
    for some in (torch.stack([threes[0], eights[0]]), eights[:1]):
        view = Heard(small(), 0.05, samples=3)
        attacks.boundary(view, x[some], y[some], index=some, **options)
        heard.append(view.turns)
    assert heard[0] == heard[1] and len(heard[0]) >= 3


def test_who_wants_an_answer_asks_no_more_images_at_once_than_it_may(digits):
    most = []

    def counting(x):
        most.append(len(x))
        return small()(x)

    model, (x, y) = module_of(counting), digits
    options = {"eps": 0.1, "steps": 2, "batch_size": 5}
    towards_each(model, x, y, abstain=9, targets=2, **options)
    assert max(most) <= 5


def test_infinite_logits_are_named():
    model = module_of(lambda x: flat(10)(x).index_fill(1, torch.tensor([0]), torch.inf))
    x, y = torch.rand(3, 1, 28, 28), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="NaN or infinity"):
        attacks.pgd(model, x, y, eps=0.1, steps=2)


def test_a_purifiers_own_draws_are_no_attacks(digits):
    """PGD's random starts are streams of the same generator."""
    x, seen = digits.images[:1], []
    purifier = Adaptive(module_of(lambda z: seen.append(z) or 0 * z), expected=(1.0, 3))
    purifier.error(x)
    for k, noisy in enumerate(seen[-1]):
        start = normals(uniforms((1, 28, 28), torch.arange(1), 0, k, device=x.device))[0]
        assert (noisy - x[0] - start).abs().max() > 0.1


def test_black_pixels_keep_their_gradient_behind_a_resize():
    x = torch.zeros(1, 1, 12, 12)
    x[..., 4:8, 4:8] = 0.5
    x.requires_grad_(True)
    ResizePad(0.9)(x, torch.zeros(1, dtype=torch.int64)).sum().backward()
    assert (x.grad != 0).float().mean() > 0.9
