import copy
import math

import pytest
import torch
from torch import nn

from apudae import data, models, training
from apudae.evaluation import accuracy
from apudae.purification import Defended, Direct


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist", "train").take(600)


def test_denoising_is_the_mean_squared_error_of_the_denoised_image(generator):
    x = torch.rand(50, 1, 28, 28, generator=generator)
    y = torch.zeros(50, dtype=torch.int64)
    loss = training.denoising(0.4)(nn.Identity(), x, y, generator)
    assert abs(loss.item() - 0.16) < 0.01  # R(x) = x leaves exactly the noise: σ² per pixel
    noisy = []
    training.denoising(0.4)(lambda z: noisy.append(z) or z, x, y, generator)
    assert noisy[0].min() < 0  # not clipped
    assert noisy[0].max() > 1


def test_a_classifier_learns(digits):
    model = models.build("mnist-cnn", width=8)
    history = training.fit(
        model, *digits, epochs=6, batch_size=32, validation=data.load("mnist", "validation")
    )
    assert history.loss[-1] < 0.3 * history.loss[0]
    assert len(history.loss) == len(history.validation) == len(history.seconds) == 6
    assert accuracy(model, *data.load("mnist", "validation")).percent > 80


def test_a_dae_learns_to_clean(digits):
    dae = models.build("mnist-dae", width=8)
    objective = training.denoising(0.4)
    before = training.measure(dae, *digits, objective)
    training.fit(dae, *digits, objective=objective, epochs=8, batch_size=32, lr=5e-3)
    after = training.measure(dae, *digits, objective)
    identity = training.measure(nn.Identity(), *digits, objective)
    assert after < 0.5 * before
    assert after < 0.5 * identity


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_state(digits):
    x, y = digits.images[:128], digits.labels[:128]
    start = models.build("mnist-dae", width=4)
    state = torch.random.get_rng_state()
    results = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(start)
        training.fit(model, x, y, objective=training.denoising(0.3), epochs=1, seed=seed)
        results.append(torch.cat([p.flatten() for p in model.parameters()]).detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_image_is_seen_once_per_epoch(digits):
    x = digits.images[:100]
    y = torch.arange(100)
    seen = []

    def objective(model, images, labels, generator):
        assert torch.equal(images, x[labels])
        seen.append(labels)
        return model(images).square().mean()

    training.fit(
        models.build("mnist-dae", width=4), x, y, objective=objective, epochs=3, batch_size=32
    )
    assert [len(batch) for batch in seen] == [32, 32, 32, 4] * 3
    for epoch in range(3):
        assert torch.cat(seen[4 * epoch : 4 * epoch + 4]).sort().values.tolist() == list(range(100))
    assert torch.cat(seen[:4]).tolist() != torch.cat(seen[4:8]).tolist()


def test_modes_are_restored(digits):
    model = models.build("mnist-cnn", width=4).eval()
    model.net[0].train()
    training.fit(
        model, digits.images[:64], digits.labels[:64], epochs=1, validation=digits.take(64)
    )
    assert not model.training
    assert model.net[0].training
    assert not model.net[1].training


def test_a_frozen_model_and_bad_validation_images_are_named(digits):
    model = models.build("mnist-cnn", width=4).requires_grad_(False)
    with pytest.raises(ValueError, match="model: no parameter is trainable"):
        training.fit(model, *digits)
    with pytest.raises(ValueError, match="validation images: expected values in"):
        bad = (digits.images * 255, digits.labels)
        training.fit(model.requires_grad_(True), *digits, validation=bad)


def test_a_loss_that_explodes_stops_with_a_clear_error(digits):
    def explode(model, x, y, generator):
        return model(x).mean() * math.nan

    with pytest.raises(RuntimeError, match="the loss became nan at epoch 1, step 1"):
        training.fit(models.build("mnist-dae", width=4), *digits, objective=explode)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"lr": 0.0}, "lr: expected a finite number > 0"),
    ],
)
def test_bad_options_are_named(options, message, digits):
    with pytest.raises(ValueError, match=message):
        training.fit(models.build("mnist-cnn"), *digits, **options)
    with pytest.raises(ValueError, match="sigma: expected a finite number > 0"):
        training.denoising(0)
    with pytest.raises(ValueError, match="labels: expected 600 labels"):
        training.fit(models.build("mnist-cnn"), digits.images, digits.labels[1:])


def test_what_was_trained_can_defend(digits):
    """The pieces fit: a DAE trained here goes straight into a defended classifier."""
    dae = models.build("mnist-dae", width=4)
    training.fit(dae, *digits, objective=training.denoising(0.4), epochs=1)
    logits = Defended(models.build("mnist-cnn"), Direct(dae))(digits.images[:3])
    assert logits.shape == (3, 10)
