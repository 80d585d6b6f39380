"""Image files of any mode and size, and folders whose names say a class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from apudae import data
from apudae.data import list_imagenet, load_folder, read_image


def read(image, tmp_path, name="a.png", size=28, **options):
    path = tmp_path / name
    image.save(path, **options)
    return read_image(path, size)


@pytest.fixture
def grey(seed):
    """32 × 32 random grey values: a size that is not scaled when 28 are asked for."""
    return np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8)


def test_grey_becomes_colour(grey, tmp_path):
    found = read(Image.fromarray(grey), tmp_path)
    assert found.dtype == torch.uint8 and found.shape == (3, 32, 32)
    assert torch.equal(found, torch.from_numpy(grey).expand(3, -1, -1))


def test_sixteen_bits_become_eight_and_are_not_cut_off(grey, tmp_path):
    wide = grey.astype(np.uint16) * 257
    found = read(Image.fromarray(wide), tmp_path)
    assert torch.equal(found[0], torch.from_numpy(grey))
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode.startswith("I")


def test_what_is_transparent_is_laid_on_white(grey, seed, tmp_path):
    alpha = np.random.default_rng(seed + 1).integers(0, 256, (32, 32), dtype=np.uint8)
    layers = np.stack([grey, grey, grey, alpha], 2)
    found = read(Image.fromarray(layers, "RGBA"), tmp_path)[0].double().numpy()
    expected = (grey * (alpha / 255.0) + 255 * (1 - alpha / 255.0)).round()
    assert np.abs(found - expected).max() <= 1
    opaque = read(Image.fromarray(np.stack([grey, np.full_like(grey, 255)], 2), "LA"), tmp_path)
    assert torch.equal(opaque[0], torch.from_numpy(grey))


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert read(image, tmp_path)[:, 0, 0].tolist() == [200, 100, 50]
    assert read(image, tmp_path, transparency=1)[:, 0, 0].tolist() == [255, 255, 255]


def test_a_photograph_is_turned_upright(tmp_path):
    pixels = np.zeros((32, 40, 3), dtype=np.uint8)
    pixels[:, :20] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6  # turn it by a quarter, clockwise
    found = read(image, tmp_path, exif=exif)
    assert found.shape == (3, 40, 32)
    assert found[0, :18].min() == 255 and found[0, 22:].max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (500, 3), (31, 33), (300, 400)])
def test_any_size_is_scaled_to_what_is_asked(shape, tmp_path):
    found = read(Image.new("RGB", shape, (9, 8, 7)), tmp_path, size=28)
    assert min(found.shape[1:]) == 32
    assert found.amax((1, 2)).tolist() == found.amin((1, 2)).tolist() == [9, 8, 7]
    x, y = load_folder(data.Listing([tmp_path / "a.png"], [5]), 28)
    assert x.shape == (1, 3, 28, 28) and y.tolist() == [5]


def test_what_cannot_be_read_is_named(grey, tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(grey).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RuntimeError, match=r"cut\.png cannot be read as an image"):
        read_image(path, 28)
    path = tmp_path / "text.jpg"
    path.write_text("no picture")
    with pytest.raises(RuntimeError, match=r"text\.jpg cannot be read as an image"):
        read_image(path, 28)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(RuntimeError, match=r"float\.tiff: grey values are floats"):
        read_image(tmp_path / "float.tiff", 28)
    Image.fromarray(grey.astype(np.int32) * 10**6 + 10**6).save(tmp_path / "wide.tiff")
    with pytest.raises(RuntimeError, match=r"wide\.tiff: expected grey values of 8 or 16 bits"):
        read_image(tmp_path / "wide.tiff", 28)


def folders(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "a.png")
    return tmp_path


def test_a_folder_says_its_class_by_index_or_name(tmp_path):
    found = list_imagenet(folders(tmp_path, "0002", "967", "Tabby", "great_grey_owl"))
    by_name = {file.parent.name: label for file, label in zip(*found, strict=True)}
    assert by_name == {"0002": 2, "967": 967, "Tabby": 281, "great_grey_owl": 24}
    names = data.imagenet_classes()
    assert len(names) == 1000 and names[2] == "great white shark" and names[967] == "espresso"


def test_files_say_it_by_their_first_number(tmp_path):
    for name in ("0002_shark.png", "0967_cup.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    assert list_imagenet(tmp_path).labels == [2, 967]


def test_a_thousand_wordnet_folders_are_counted(tmp_path):
    found = list_imagenet(folders(tmp_path, *(f"n{k:08d}" for k in range(1000))))
    assert found.labels == list(range(1000))


@pytest.mark.parametrize("name", ["n01440764", "holiday", "1000", "-1"])
def test_a_name_that_says_no_class_shows_what_was_expected(name, tmp_path):
    with pytest.raises(ValueError, match="says no ImageNet class") as caught:
        list_imagenet(folders(tmp_path, name))
    assert "'0002' or 'great white shark', '0281' or 'tabby', '0967' or 'espresso'" in str(
        caught.value
    )


def test_an_empty_folder_and_none_at_all(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        list_imagenet(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone is not a folder"):
        list_imagenet(tmp_path / "gone")
