import pytest
import torch

from apudae import models


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'resnet'; known: mnist-cnn, mnist-dae"):
        models.build("resnet")


@pytest.mark.parametrize(("name", "shape"), [("mnist-cnn", (3, 10)), ("mnist-dae", (3, 1, 28, 28))])
def test_shapes_and_seeds(name, shape):
    x = torch.rand(3, 1, 28, 28)
    state = torch.random.get_rng_state()
    first, again, other = (models.build(name, seed=seed)(x) for seed in (1, 1, 2))
    assert first.shape == shape
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_normalisation_is_inside_the_model(generator):
    x = torch.rand(2, 3, 5, 5, generator=generator)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    normal = models.Normalize(mean, std)(x)
    for c in range(3):
        torch.testing.assert_close(normal[:, c], (x[:, c] - mean[c]) / std[c])


def test_a_dae_stays_in_range_and_has_the_bottleneck_it_was_asked_for(generator):
    dae = models.build("mnist-dae", latent=7)
    x = 3 * torch.randn(4, 1, 28, 28, generator=generator)
    out = dae(x)
    assert dae.encoder(x).shape == (4, 7)
    assert 0 <= out.min() <= out.max() <= 1
