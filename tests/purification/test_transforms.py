"""Transforming defenses, beside numpy, scipy, Pillow and closed forms."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from support import shipped

from apudae import data
from apudae.evaluation import Budget, evaluate
from apudae.purification import JPEG, BitDepth, Defended, Median, ResizePad

pytestmark = pytest.mark.filterwarnings("ignore::apudae.core.arguments.AttackWarning")

ALL = [BitDepth(2), Median(2), JPEG(75), ResizePad(0.7)]


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_is_numpys_rounding(bits, generator):
    x = torch.rand(5, 3, 9, 7, generator=generator, dtype=torch.float64)
    top = 2**bits - 1
    assert np.array_equal(BitDepth(bits)(x), np.round(x.numpy() * top) / top)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_median_is_scipys(size, generator):
    x = torch.rand(4, 2, 11, 8, generator=generator)
    wanted = ndimage.median_filter(x.numpy(), size=(1, 1, size, size), mode="nearest")
    assert np.array_equal(Median(size)(x), wanted)


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(quality, channels, generator):
    """Smooth images; an encoder computes in integers, so now and then a block's number differs."""
    x = torch.rand(6, channels, 5, 6, generator=generator)
    x = torch.nn.functional.interpolate(x, (29, 34), mode="bicubic").clamp(0, 1)
    x = (255 * x).round() / 255
    ours = 255 * JPEG(quality)(x)
    off = []
    for image, found in zip(x, ours, strict=True):
        pixels = (255 * image).round().byte().permute(1, 2, 0).squeeze(2).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
        wanted = np.asarray(Image.open(file)).reshape(29, 34, channels).transpose(2, 0, 1)
        off.append(np.abs(found.numpy() - wanted))
    assert np.mean(off) < 0.8 and np.mean(np.stack(off) <= 2) >= 0.9


def test_shrinking_keeps_the_image_and_moves_it(generator):
    x = torch.rand(3, 1, 28, 28, generator=generator)
    assert torch.allclose(ResizePad(1.0)(x), x, atol=1e-5)
    disc = torch.zeros(1, 1, 28, 28)
    disc[..., 10:18, 10:18] = 1
    index = torch.arange(200)
    found = ResizePad(0.5)(disc.expand(200, -1, -1, -1), index)
    mass = found.sum((1, 2, 3)) / 64  # the square of the scale
    assert 0.24 < mass.min() < 0.35 and 0.9 < mass.max() < 1.01
    place = torch.linspace(-1, 1, 29)[:-1] + 1 / 28
    x_of = (found.sum((1, 2)) * place).sum(1) / found.sum((1, 2, 3))
    assert abs(x_of.mean()) < 0.06 and x_of.max() > 0.25 and x_of.min() < -0.25
    assert (x_of.abs() <= 1 - mass.sqrt() + 0.02).all()  # never over the border


def test_draws_belong_to_the_image_not_to_its_batch(generator):
    x = torch.rand(6, 1, 28, 28, generator=generator)
    index, blur = torch.arange(6), ResizePad(0.6)
    whole = blur(x, index, 3)
    assert torch.equal(whole[4:5], blur(x[4:5], index[4:5], 3))
    assert not torch.equal(whole, blur(x, index, 4))
    assert not torch.equal(whole, ResizePad(0.6, seed=1)(x, index, 3))
    model = Defended(torch.nn.Flatten(), blur)
    assert model.random and torch.equal(model(x, index, 3), whole.flatten(1))


@pytest.mark.parametrize("transform", [Median(3), ResizePad(0.7)])
def test_the_derivative_is_a_finite_difference(transform, generator):
    x = torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(transform, (x,), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_the_protocol_goes_round_all_of_them(transform):
    classifier = shipped("mnist-cnn")
    few = data.load("mnist", "validation").take(20)
    budget = Budget(pgd=10, apgd=20, queries=50, draws=2, scoring=5, weights=(0.1,))
    options = {"eps": 0.3, "budget": budget, "progress": False, "curves": False}
    report = evaluate(Defended(classifier, transform), *few, **options)
    assert report.clean.percent >= 75
    assert report.worst.percent <= 15


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BitDepth(9), "bits: expected an integer from 1 to 8, got 9"),
        (lambda: BitDepth(0), "bits"),
        (lambda: Median(0), "size"),
        (lambda: JPEG(101), "quality: expected an integer from 1 to 100, got 101"),
        (lambda: ResizePad(0.0), "smallest"),
        (lambda: ResizePad(1.5), "smallest: expected at most 1"),
        (lambda: JPEG()(torch.rand(1, 2, 8, 8)), "x: expected 1 or 3 channels, got 2"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
