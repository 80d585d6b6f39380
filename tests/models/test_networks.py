import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from apudae import models
from apudae.models import networks


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'resnet'; known: mnist-cnn, mnist-dae"):
        models.build("resnet")
    with pytest.raises(ValueError, match="unknown option 'hidden' of rednet; known: depth, width"):
        models.build("rednet", hidden=3)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mnist-cnn", (3, 10)), ("mnist-mlp", (3, 10)), ("mnist-dae", (3, 1, 28, 28))],
)
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


def test_tones_may_begin_as_thresholds():
    dae = models.build("mnist-dae", tones=5, thresholds=4)
    grey = torch.linspace(0, 1, 21).view(1, 1, 1, -1)
    wanted = torch.cat([(grey - k / 4).clamp(min=0) for k in range(4)], 1)
    torch.testing.assert_close(dae.encoder[:2](grey)[:, :4].detach(), wanted)
    with pytest.raises(ValueError, match="thresholds: expected 0 to 0, got 1"):
        models.build("mnist-dae", thresholds=1)


@pytest.mark.parametrize("size", [(32, 32), (16, 24)])
def test_the_cifar_classifier_takes_pixels_and_gives_logits(size, generator):
    model = models.build("cifar10-resnet", width=8).eval()
    x = torch.rand(3, 3, *size, generator=generator)
    assert model(x).shape == (3, 10)
    whole = models.build("cifar10-resnet")
    assert sum(p.numel() for p in whole.parameters()) < 2.5e6


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("mnist-cnn", *networks.MNIST),
        ("cifar10-resnet", *networks.CIFAR10),
        ("resnet50", *networks.IMAGENET),
        ("efficientnet-lite0", [0.5] * 3, [0.5] * 3),
    ],
)
def test_the_first_layer_of_a_classifier_normalises(name, mean, std):
    options = {"pretrained": False} if name in ("resnet50", "efficientnet-lite0") else {}
    first = next(m for m in models.build(name, **options).modules() if not list(m.children()))
    assert isinstance(first, models.Normalize)
    assert first.mean.flatten().tolist() == pytest.approx(mean)
    assert first.std.flatten().tolist() == pytest.approx(std)


def literal_rednet(dae, x):
    """The network as the paper's code computes it: indices from 0, a list of kept features."""
    half, kept, z = len(dae.down), [], x
    normed = dict(dae.named_children()).get("norms") or [nn.Identity()] * (2 * half - 1)
    for i in range(half):
        z = normed[i](torch.relu(dae.down[i](z)))
        if (i + 1) % 2 == 0 and len(kept) < math.ceil(half / 2) - 1:
            kept.append(z)
    used = 0
    for i in range(half):
        z = dae.up[i](z)
        if i < half - 1:
            z = normed[half + i](torch.relu(z))
        if (i + 1 + half) % 2 == 0 and used < len(kept):
            z = torch.relu(z + kept[-(used + 1)])
            used += 1
    assert used == len(kept)
    return torch.relu(z + x)


@pytest.mark.parametrize("depth", [4, 6, 8, 10, 30])
@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (3, (10, 14))])
@pytest.mark.parametrize("norm", [False, True])
def test_rednet_is_the_network_of_the_papers_code(depth, channels, size, norm, generator):
    dae = models.build("rednet", depth=depth, width=8, channels=channels, norm=norm).double()
    x = torch.rand(2, channels, *size, generator=generator, dtype=torch.float64)
    dae(1 - x)  # so that the norms have seen something
    assert sum(isinstance(m, nn.BatchNorm2d) for m in dae.modules()) == norm * (depth - 1)
    dae.eval()
    found = dae(x)
    assert found.shape == x.shape
    torch.testing.assert_close(found, literal_rednet(dae, x))
    layers = [m for m in dae.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(layers) == depth
    assert layers[0].stride == layers[-1].stride == (2, 2)


def test_rednet_by_default_is_that_of_the_paper():
    dae = models.build("rednet")
    assert (len(dae.down), len(dae.up), dae.down[3].out_channels) == (15, 15, 64)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 8, 8), "x: expected 3 channels, got 1"),
        ((2, 3, 9, 8), r"x: REDNet needs an even height and width, got \[9, 8\]"),
    ],
)
def test_rednet_names_what_does_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        models.build("rednet", depth=4, width=4)(torch.rand(shape))
    for depth in (2, 7):
        with pytest.raises(ValueError, match="depth: expected an even number of at least 4"):
            models.build("rednet", depth=depth)


def test_efficientnet_reads_a_photograph_without_a_download(repository):
    """foolbox ships 20 ImageNet images, the class index in each name."""
    folder = Path(importlib.util.find_spec("foolbox").origin).parent / "data"
    files = sorted(folder.glob("imagenet_*"))
    assert len(files) == 20
    model, right = models.build("efficientnet-lite0").eval(), 0
    for file in files:
        pixels = np.array(Image.open(file).convert("RGB").resize((224, 224)))
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            right += model(x).argmax().item() == int(file.stem.split("_")[-1])
    assert right >= 13


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite-pytorch"):
        models.build("efficientnet-lite0")
