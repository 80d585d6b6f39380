import pytest
import torch
from support import shipped
from torch import nn
from torch.nn import functional as F

from apudae import attacks, data
from apudae.attacks import (
    BPDA,
    EOT,
    Averaged,
    Exact,
    Fixed,
    Objective,
    ReconstructionAware,
    Surrogate,
    Uncut,
    View,
)
from apudae.core.calling import ask
from apudae.core.norms import project
from apudae.purification import (
    Adam,
    Adaptive,
    Defended,
    Descent,
    Direct,
    Normalised,
    Sign,
    calibrate,
    reconstruction_error,
    smooth,
)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    dae = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 4))
    for net in (dae, classifier):
        net.double().requires_grad_(False)
    return classifier, nn.Sequential(dae, nn.Sigmoid())


@pytest.fixture
def images(generator):
    x = torch.rand(5, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (5,), generator=generator)


def walk(dae, **options):
    return Adaptive(dae, stepper="descent", steps=4, step_size=0.05, **options)


def gradient(model, x, y, loss="ce"):
    return Objective(model, loss).gradient(x, y)


def autograd(function, x):
    z = x.clone().requires_grad_(True)
    return torch.autograd.grad(function(z).sum(), z)[0]


def ce(y):
    return lambda logits: F.cross_entropy(logits, y, reduction="none")


def test_bpda_takes_the_classifiers_gradient_at_the_purified_image(parts, images):
    (classifier, dae), (x, y) = parts, images
    model = Defended(classifier, walk(dae))
    value, fell, found = gradient(BPDA(model), x, y)
    purified = model.purifier(x)
    expected = autograd(lambda z: ce(y)(classifier(z)), purified)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(value, ce(y)(model(x)))
    assert torch.equal(fell, model(x).argmax(1) != y)
    assert not torch.allclose(found, gradient(model, x, y)[2])


def test_bpda_with_a_stand_in_multiplies_by_its_jacobian(parts, images):
    (classifier, dae), (x, y) = parts, images
    model = Defended(classifier, walk(dae))
    found = gradient(BPDA(model, dae), x, y)[2]
    upstream = autograd(lambda z: ce(y)(classifier(z)), model.purifier(x))
    expected = autograd(lambda z: dae(z) * upstream, x)
    torch.testing.assert_close(found, expected)


def test_averaged_bpda_is_the_mean_over_the_iterates(parts, images):
    (classifier, dae), (x, y) = parts, images
    for purifier in (walk(dae), walk(dae, reconstruct=True), Direct(dae, repeats=2)):
        model = Defended(classifier, purifier)
        seen = list(purifier.trajectory(x).images)
        seen[-1] = purifier.seen_by_classifier(seen[-1])
        expected = sum(autograd(lambda z: ce(y)(classifier(z)), z) for z in seen) / len(seen)
        value, _, found = gradient(Averaged(model), x, y)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(value, ce(y)(model(x)))


def test_a_surrogate_is_followed_and_the_model_judges(parts, images):
    (classifier, dae), (x, y) = parts, images
    model = Defended(classifier, walk(dae))
    value, _, found = gradient(Surrogate(model, classifier), x, y)
    torch.testing.assert_close(found, autograd(lambda z: ce(y)(classifier(z)), x))
    torch.testing.assert_close(value, ce(y)(model(x)))


@pytest.mark.parametrize("which", ["classifier", "bpda", "exact"])
def test_the_reconstruction_aware_gradient_is_that_of_loss_minus_error(parts, images, which):
    (classifier, dae), (x, y) = parts, images
    model = Defended(classifier, walk(dae))
    other = {"classifier": None, "bpda": BPDA(model), "exact": model}[which]
    value, _, found = gradient(ReconstructionAware(model, 0.3, other), x, y)
    error = autograd(lambda z: reconstruction_error(dae, z), x)
    alone = gradient(classifier if other is None else other, x, y)[2]
    torch.testing.assert_close(found, alone - 0.3 * error)
    torch.testing.assert_close(value, ce(y)(model(x)) - 0.3 * reconstruction_error(dae, x))


def test_the_reconstruction_aware_gradient_by_finite_differences(parts, images):
    (classifier, dae), (x, y) = parts, images
    model = Defended(classifier, walk(dae))
    view = ReconstructionAware(model, 0.3, model)
    found, h = gradient(view, x, y)[2], 1e-6
    way = torch.randn_like(x)
    there, back = (Objective(view).value(x + side * h * way, y)[0] for side in (1, -1))
    torch.testing.assert_close(
        (found * way).flatten(1).sum(1), (there - back) / (2 * h), rtol=1e-5, atol=1e-7
    )


def noisy(parts, noise=0.05):
    return Defended(parts[0], walk(parts[1], calibration=(0.1, 1.0, 9), noise=noise))


def test_eot_averages_gradients_over_named_draws_and_draws_anew(parts, images):
    x, y = images
    model = Defended(parts[0], Direct(parts[1], noise=0.3))
    view, objective = EOT(model, draws=3), Objective(EOT(model, draws=3))
    seen = []
    for turn in range(2):
        draws = [view.model.number(3 * turn + k) for k in range(3)]
        losses = [autograd(lambda z, d=d: ce(y)(model(z, None, d)), x) for d in draws]
        value, fell, found = objective.gradient(x, y)
        torch.testing.assert_close(found, sum(losses) / 3)
        answers = torch.stack([model(x, None, d) for d in draws])
        torch.testing.assert_close(value, torch.stack([ce(y)(z) for z in answers]).mean(0))
        assert torch.equal(fell, (answers.argmax(2) != y).sum(0) >= 2)
        seen += draws
    assert len(set(seen)) == 6 and min(seen) >= 40  # never those that scores are taken of


def test_eot_averages_gradients_not_predictions(images):
    """logits (s·x, 0) with s drawn as ±3: the mean prediction is flat, the mean gradient is not."""
    x, _ = images
    y = torch.ones(len(x), dtype=torch.int64)

    class Flip(nn.Module):
        def forward(self, x, index=None, draw=0):
            slope = 3.0 if draw % 2 else -3.0
            total = slope * x.flatten(1).sum(1)
            return torch.stack([total, torch.zeros_like(total)], 1)

    found = gradient(EOT(Flip(), draws=2), x, y)[2]
    total = x.flatten(1).sum(1)
    expected = 3 * ((3 * total).sigmoid() - (-3 * total).sigmoid()) / 2
    torch.testing.assert_close(found, expected[:, None, None, None].expand_as(x))


def test_a_foreign_random_model_is_seeded_and_torchs_generator_put_back(images):
    class Noise(nn.Module):
        def forward(self, x):
            return (x + torch.randn_like(x)).flatten(1)

    x, _ = images
    before = torch.random.get_rng_state()
    a, b, c = (ask(Noise(), x, draw=draw) for draw in (4, 4, 5))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fixed_is_one_draw(parts, images):
    (x, y), model = images, Defended(parts[0], Direct(parts[1], noise=0.3))
    objective = Objective(Fixed(model, draw=7))
    for _ in range(2):
        found = objective.gradient(x, y)[2]
        torch.testing.assert_close(found, autograd(lambda z: ce(y)(model(z, None, 7)), x))


def test_where_the_graph_is_cut_there_is_a_zero_gradient_or_an_error(parts, images):
    x, y = images

    class Cut(nn.Module):
        def forward(self, x):
            return parts[0](x.detach())

    assert gradient(Uncut(Cut()), x, y)[2].eq(0).all()
    with pytest.raises(ValueError, match="model: the logits carry no gradient"):
        gradient(Exact(Cut()), x, y)
    found = gradient(Uncut(parts[0]), x, y)[2]
    torch.testing.assert_close(found, gradient(parts[0], x, y)[2])


VIEWS = {
    "exact": lambda m: m,
    "bpda": BPDA,
    "averaged": Averaged,
    "surrogate": lambda m: Surrogate(m, m.classifier),
    "aware": lambda m: ReconstructionAware(m, 0.1),
    "eot": lambda m: EOT(m, 2),
    "eot of bpda": lambda m: EOT(BPDA(m), 2),
    "fixed": Fixed,
}
RUNS = {
    "pgd": {"steps": 4},
    "apgd": {"steps": 5},
    "square": {"queries": 12},
}


@pytest.mark.parametrize("attack", RUNS)
@pytest.mark.parametrize("name", VIEWS)
def test_every_view_can_be_attacked_and_keeps_the_contract(parts, images, name, attack):
    x, y = images
    model = noisy(parts) if "eot" in name or name == "fixed" else Defended(parts[0], walk(parts[1]))
    run = lambda **more: getattr(attacks, attack)(  # noqa: E731
        VIEWS[name](model), x, y, eps=0.1, **RUNS[attack], **more
    )
    model.train()
    found = run()
    assert torch.equal(found, project(found, x, 0.1)) and not torch.equal(found, x)
    assert torch.equal(found, run())
    torch.testing.assert_close(run(batch_size=2), found, rtol=0, atol=1e-9)
    assert all(m.training for m in model.modules())


def test_what_a_view_returns_is_judged_by_the_model(parts, images):
    x, y = images
    model = Defended(parts[0], walk(parts[1]))
    y = model(x).argmax(1)
    z = attacks.pgd(Surrogate(model, parts[0]), x, y, eps=0.5, steps=10, early_stop=True)
    worst = attacks.suite(model, x, y, eps=0.5, attacks={"view": lambda m, x, y, eps: z}).standing
    assert torch.equal(model(z).argmax(1) == y, worst)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"stepper": "adam"}, {"descent": Descent, "smooth steps": Adam}),
        ({"stepper": "sign"}, {"descent": Descent, "smooth steps": Sign}),
        ({"stepper": Sign(tau=0.1)}, {"descent": Descent}),
        ({"stepper": "l2"}, {"descent": Descent, "smooth steps": Normalised}),
        ({"stepper": "descent"}, {}),
        ({"stepper": "descent", "stop": 0.0}, {"as it is": Descent}),
        (
            {"stepper": "adam", "objective": "hinge", "noise": 0.01},
            {"descent": Descent, "smooth steps": Adam, "match": Descent},
        ),
    ],
)
def test_smooth_stand_ins(parts, images, options, kinds):
    x, _ = images
    purifier = Adaptive(parts[1], calibration=(0.1, 1.0, 9), step_size=0.02, steps=3, **options)
    found = smooth(purifier, x)
    assert {k: type(v.stepper) for k, v in found.items()} == kinds
    for other in found.values():
        assert not other.random and other.enough is None
        # About as far in all as the purifier itself.
        ratio = (other(x) - x).norm() / (purifier(x) - x).norm()
        assert 0.2 < ratio < 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: 2 * x, r"x: expected values in \[0, 1\]"),
        (lambda x: x[:0], "number of images: expected an integer >= 1, got 0"),
        (lambda x: x[0], "x: expected 4 dimensions"),
    ],
)
def test_stand_ins_are_scaled_by_images_alone(parts, change, told):
    purifier = Adaptive(parts[1].float(), steps=1)
    with pytest.raises(ValueError, match=told):
        smooth(purifier, change(torch.full((2, 1, 4, 4), 0.9)))


def test_a_smooth_stand_in_ends_where_adam_does_and_its_gradient_tells():
    classifier, dae = shipped("mnist-cnn"), shipped("mnist-dae")
    x, y = data.load("mnist", "validation").take(60)
    level = calibrate(dae, x)
    model = Defended(
        classifier, Adaptive.preset("probabilistic-mean", dae, level, step_size=0.05, steps=6)
    )
    moved = attacks.noise(model, x, y, eps=0.2)
    stand_in = smooth(model.purifier, x, radius=0.2)["smooth steps"]
    far = (model.purifier(moved) - moved).flatten(1).norm(dim=1)
    apart = (model.purifier(moved) - stand_in(moved)).flatten(1).norm(dim=1)
    assert (apart / far).median() < 0.7


def test_bad_input(parts):
    classifier, dae = parts
    model = Defended(classifier, walk(dae))
    with pytest.raises(ValueError, match="model: expected a Defended one, got Sequential"):
        BPDA(classifier)
    with pytest.raises(ValueError, match="model: the iterates of a Identity are not known"):
        Averaged(Defended(classifier, nn.Identity()))
    with pytest.raises(ValueError, match="weight: expected a finite number >= 0, got -1"):
        ReconstructionAware(model, -1)
    with pytest.raises(ValueError, match="dae: expected one"):
        ReconstructionAware(Defended(classifier, nn.Identity()), 1)
    with pytest.raises(ValueError, match="draws: expected an integer >= 1, got 0"):
        EOT(model, 0)
    with pytest.raises(TypeError, match="Blank does not say what it differentiates"):
        gradient(
            type("Blank", (View,), {"forward": lambda s, x: x})(),
            torch.rand(1, 1, 2, 2),
            torch.tensor([0]),
        )
