"""Training a purifier through a frozen classifier."""

from __future__ import annotations

import pytest
import torch
from support import dies_after, shipped
from torch import nn
from torch.nn import functional as F

from apudae import attacks, data, models, training
from apudae.core.scores import accuracy
from apudae.evaluation import verify
from apudae.experiments import recipes
from apudae.purification import Defended, Direct


class Shift(nn.Module):
    """A purifier with one parameter."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by, dtype=torch.float64))

    def forward(self, x):
        return x + self.by


def test_the_loss_is_what_its_definition_says(linear, generator):
    """One FGSM step on a linear classifier: the attacked image is known in closed form."""
    x = 0.4 + 0.2 * torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (6,), generator=generator)
    classifier, model = linear.eval().requires_grad_(False), Shift(0.05)
    task = training.purifying(classifier, attacks.fgsm, eps=0.1, weight=0.7)
    loss = task(model, x, y, generator)
    weight = classifier.weight
    slope = ((classifier(x + 0.05).softmax(1) - F.one_hot(y, 3)) @ weight).view_as(x)
    hit = x + 0.1 * slope.sign()
    drawn = hit + 0.05
    by_hand = F.cross_entropy(classifier(drawn).float(), y) + 0.7 * (drawn - x).square().mean()
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-6, atol=1e-6)
    loss.backward()
    assert model.by.grad is not None and classifier.weight.grad is None


def test_the_term_of_trades_is_what_its_definition_says(linear, generator):
    """The clean image's cross-entropy, and how far the attacked one's probabilities are from it."""
    x = 0.4 + 0.2 * torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (6,), generator=generator)
    classifier, model = linear.eval().requires_grad_(False), Shift(0.03)

    def attack(model, x, y, *, eps):
        return x - eps

    task = training.purifying(classifier, attack, eps=0.1, weight=0.7, trades=6.0)
    loss = task(model, x, y, generator)
    clean, hit = (classifier(z + 0.03).softmax(1) for z in (x, x - 0.1))
    far = (clean * (clean / hit).log()).sum(1).mean()
    by_hand = -clean.gather(1, y[:, None]).log().mean() + 6 * far + 0.7 * 0.07**2
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-5, atol=1e-6)


def test_epsilon_grows_during_the_warm_up():
    seen = []

    def attack(model, x, y, *, eps, step_size):
        seen.append((eps, step_size))
        return x

    classifier = models.build("mnist-cnn", width=4).eval()
    x, y = data.load("mnist", "train").take(20)
    task = training.purifying(classifier, attack, eps=0.4, warm_up=0.5, relative_step=0.25)
    training.fit(models.build("mnist-dae", width=4), x, y, task=task, epochs=4, batch_size=10)
    shares = [max(k / 8 / 0.5, 1e-3) for k in range(4)] + [1.0] * 4
    assert seen == [pytest.approx((0.4 * s, 0.1 * s)) for s in shares]


def test_a_run_that_was_cut_off_in_the_warm_up_ends_the_same(tmp_path, monkeypatch):
    x, y = data.load("mnist", "train").take(40)
    classifier = shipped("mnist-cnn")

    def fit(path):
        task = training.purifying(classifier, attacks.pgd, eps=0.2, warm_up=1.0, steps=1)
        net = models.build("mnist-dae", width=4)
        run = {"task": task, "epochs": 3, "batch_size": 20, "checkpoint": path}
        training.fit(net, x, y, **run, progress=False)
        return net.state_dict()

    whole = fit(tmp_path / "a.pt")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        dies_after(patch, 3, KeyboardInterrupt)
        fit(tmp_path / "b.pt")
    again = fit(tmp_path / "b.pt")
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_it_makes_a_purifier_harder_to_attack():
    """And the classifier is not touched."""
    classifier = shipped("mnist-cnn").eval().requires_grad_(False)
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    train = data.load("mnist", "train").take(400)
    x, y = data.load("mnist", "validation").take(100)
    left = {}
    pgd = {"eps": 0.15, "steps": 3, "relative_step": 0.5, "early_stop": False}
    kinds = {
        "denoising": training.denoising(0.3),
        "purifying": training.purifying(classifier, attacks.pgd, warm_up=0.3, **pgd),
    }
    for name, task in kinds.items():
        dae = models.build("mnist-dae", width=16)
        training.fit(dae, *train, task=task, epochs=8, batch_size=50, lr=2e-3)
        whole = nn.Sequential(dae, classifier).eval()
        hit = attacks.pgd(whole, x, y, eps=0.15, steps=20)
        left[name] = accuracy(whole, hit, y).percent
    assert left["purifying"] > left["denoising"] + 10
    assert all(torch.equal(before[k], v) for k, v in classifier.state_dict().items())


def test_the_loss_on_bounds_is_what_its_definition_says(generator):
    """κ and ε on their way, the worst logits bounded by hand: two linear layers."""
    torch.manual_seed(generator.initial_seed() % 2**31)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval().requires_grad_(False)
    model = nn.Conv2d(1, 1, 1)
    x = 0.4 + 0.2 * torch.rand(6, 1, 4, 4, generator=generator)
    y = torch.randint(3, (6,), generator=generator)
    task = training.certifying(classifier, eps=0.1, weight=0.7, clean=0.2, ramp=(0.2, 0.6))
    with torch.no_grad():
        model.weight.fill_(0.5), model.bias.fill_(0.2)
    drawn, weight = 0.5 * x + 0.2, classifier[1].weight
    clean = F.cross_entropy(classifier(drawn), y)
    error = 0.7 * (drawn - x).square().mean()
    for progress, share in ((0.0, 0.0), (0.3, 0.25), (0.6, 1.0), (0.9, 1.0)):
        task.announce(progress)
        loss = task(model, x, y, generator)
        kappa, radius = 1 - 0.8 * share, 0.5 * 0.1 * share  # the purifier halves the box
        logits, apart = classifier(drawn), (weight[None] - weight[y, None]).abs().sum(2)
        worst = logits - logits.gather(1, y[:, None]) + radius * apart
        by_hand = kappa * clean + (1 - kappa) * F.cross_entropy(worst, y) + error
        torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-5)
    loss.backward()
    assert model.weight.grad is not None and weight.grad is None


def test_without_a_classifier_the_network_is_one_itself(generator):
    torch.manual_seed(generator.initial_seed() % 2**31)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = 0.4 + 0.2 * torch.rand(6, 1, 4, 4, generator=generator)
    y, weight = torch.randint(3, (6,), generator=generator), model[1].weight
    task = training.certifying(eps=0.1, clean=0.0, ramp=(0.0, 0.5))
    logits, apart = model(x), (weight[None] - weight[y, None]).abs().sum(2)
    worst = logits - logits.gather(1, y[:, None]) + 0.1 * apart
    for progress, wanted in ((0.0, F.cross_entropy(logits, y)), (0.5, F.cross_entropy(worst, y))):
        task.announce(progress)
        loss = task(model, x, y, generator)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    assert task.labelled


def test_training_on_bounds_moves_them():
    """The DAE of digits, trained on for a moment: its bounds were hopeless and prove something."""
    classifier = shipped("mnist-cnn").eval().requires_grad_(False)
    train, dae = data.load("mnist", "train").take(300), models.load("mnist-dae")
    dae.requires_grad_(True)
    before = verify(Defended(classifier, Direct(dae)), *train, eps=0.001)
    task = training.certifying(classifier, eps=0.001, ramp=(0.0, 0.5), weight=0.1, clean=0.0)
    training.fit(dae, *train, task=task, epochs=5, batch_size=30, lr=1e-3, progress=False)
    after = verify(Defended(classifier, Direct(dae)), *train, eps=0.001)
    assert after.margins.mean() > before.margins.mean() / 100
    assert before.right.sum() == 0 < after.right.sum()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eps": 0.0}, "eps"),
        ({"weight": -1.0}, "weight"),
        ({"clean": 1.5}, "clean: expected a share, 0 to 1, got 1.5"),
        ({"ramp": (0.5, 0.5)}, "ramp: expected two growing shares"),
    ],
)
def test_bad_settings_of_bounds_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        training.certifying(models.build("mnist-cnn").eval(), **{"eps": 0.1} | change)
    with pytest.raises(ValueError, match=r"classifier: expected one in evaluation mode"):
        training.certifying(models.build("mnist-cnn").train(), eps=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eps": 0.0}, "eps"),
        ({"weight": -1.0}, "weight"),
        ({"trades": -1.0}, "trades"),
        ({"warm_up": 1.5}, "warm_up: expected a share of the training, 0 to 1, got 1.5"),
    ],
)
def test_bad_settings_are_named(change, words):
    options = {"eps": 0.1, "weight": 1.0, "warm_up": 0.0} | change
    classifier = models.build("mnist-cnn").eval()
    with pytest.raises(ValueError, match=words):
        training.purifying(classifier, attacks.pgd, **options)


def test_a_classifier_that_is_being_trained_is_refused():
    with pytest.raises(ValueError, match=r"classifier: expected one in evaluation mode"):
        training.purifying(models.build("mnist-cnn").train(), attacks.pgd, eps=0.1)


def test_a_purifier_made_for_proofs_is_trained_in_two_parts():
    """The reader alone, then what draws: neither touches the other's weights."""
    net = models.build("mnist-certified", width=2, hidden=8)
    x, y = data.load("mnist", "train").take(64)
    options = {"epochs": 1, "batch_size": 32, "progress": False}

    def kept():
        return {k: v.clone() for k, v in net.state_dict().items()}

    before = kept()
    recipes.fit_reader(net, x, y, task=training.certifying(eps=0.1, clean=0.0), **options)
    middle = kept()
    classifier = shipped("mnist-cnn").eval().requires_grad_(False)
    task = training.certifying(classifier, eps=0.1, clean=1.0)
    recipes.fit_drawing(net, x, y, task=task, **options)
    after = kept()
    for name in before:
        parts = torch.equal(before[name], middle[name]), torch.equal(middle[name], after[name])
        assert parts == ((True, False) if name.startswith("drawing") else (False, True))
