import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from apudae import data, training
from apudae.training import batches


@pytest.fixture
def numbers(generator):
    """Images that know their place: every pixel of image i is i / 255."""
    x = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 1, 8, 6)
    return x, torch.arange(50)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_set_in_memory_gives_every_image_once_with_its_label(dtype, numbers):
    x, y = numbers
    x = x if dtype == torch.uint8 else x.float() / 255
    source = training.InMemory(x, y, batch_size=16, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        parts = list(source.epoch(epoch))
        assert [len(images) for images, _, _ in parts] == [16, 16, 16, 2]
        assert len(parts) == len(source)
        for images, labels, share in parts:
            assert images.dtype == torch.float32
            assert share == 1
            assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)
        orders.append(torch.cat([labels for _, labels, _ in parts]))
        assert torch.equal(orders[-1].sort().values, y)
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 15, 16, 50])
def test_processes_share_every_batch_and_keep_step(world, n, monkeypatch):
    seen, steps, weight = [], [], 0.0
    for rank in range(world):
        monkeypatch.setattr(batches.processes, "world", lambda: world)
        monkeypatch.setattr(batches.processes, "rank", lambda rank=rank: rank)
        parts = list(batches.shares(n, 16, 5, 2))
        steps.append(len(parts))
        assert all(len(index) for index, _ in parts)
        seen += [i for index, share in parts if share for i in index.tolist()]
        weight += sum(share for _, share in parts)
    assert sorted(seen) == list(range(n))
    assert len(set(steps)) == 1
    assert weight == pytest.approx(world * steps[0])  # on average, each batch counts once


def literal_flip_and_shift(image, flip, top, left, reach):
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    height, width = image.shape[1:]
    cut = padded[:, top : top + height, left : left + width]
    return cut[:, :, ::-1] if flip else cut


def test_augmentation_is_a_mirror_and_a_shift(generator):
    x = torch.rand(200, 3, 12, 10, generator=generator)
    state = generator.get_state()
    found = batches.flip_and_shift(x, generator)
    generator.set_state(state)
    flip, top, left = torch.rand(3, 200, generator=generator).numpy()
    for k in range(200):
        expected = literal_flip_and_shift(
            x[k].numpy(), flip[k] < 0.5, int(top[k] * 9), int(left[k] * 9), 4
        )
        assert np.array_equal(found[k].numpy(), expected)
    assert 0.3 < (flip < 0.5).mean() < 0.7


def test_digits_are_turned_about_their_centre(generator):
    """Beside SciPy's interpolation: each pixel from where it was before."""
    x = torch.rand(20, 1, 12, 10, generator=generator, dtype=torch.float64)
    state = generator.get_state()
    found = batches.turn(x, generator)
    generator.set_state(state)
    u = 2 * torch.rand(4, 20, generator=generator, dtype=torch.float64).numpy() - 1
    down, right = np.mgrid[:12, :10] - np.array([5.5, 4.5])[:, None, None]
    for k in range(20):
        angle, size = np.deg2rad(15) * u[0, k], 1 + 0.1 * u[1, k]
        from_right = (np.cos(angle) * right - np.sin(angle) * down) / size + 2 * u[2, k]
        from_down = (np.sin(angle) * right + np.cos(angle) * down) / size + 2 * u[3, k]
        at = [from_down + 5.5, from_right + 4.5]
        wanted = ndimage.map_coordinates(x[k, 0].numpy(), at, order=1, mode="grid-constant")
        np.testing.assert_allclose(found[k, 0].numpy(), wanted, atol=1e-9)
    torch.testing.assert_close(batches.turn(x, generator, 0, 0, 0), x, rtol=0, atol=1e-9)


def test_a_set_is_mirrored_or_turned_or_neither(generator):
    x, y = torch.rand(8, 1, 12, 12, generator=generator), torch.zeros(8).long()
    options = (False, True, "turn")
    sets = [training.InMemory(x, y, batch_size=8, augment=augment) for augment in options]
    plain, mirrored, turned = (next(iter(one.epoch(0)))[0] for one in sets)
    assert torch.equal(plain.sort(0).values, x.sort(0).values)
    assert len({float(part.sum()) for part in (plain, mirrored, turned)}) == 3
    with pytest.raises(ValueError, match="augment: expected True, False or 'turn', got 'flip'"):
        training.InMemory(x, y, batch_size=8, augment="flip")


@pytest.fixture
def folder(tmp_path):
    """Two classes of images, each of one grey level."""
    for label, name in enumerate(("n01", "n02")):
        (tmp_path / name).mkdir()
        for k in range(5):
            grey = Image.new("RGB", (40 + k, 50), (10 * k + 100 * label,) * 3)
            grey.save(tmp_path / name / f"{k}.png")
    (tmp_path / "n01" / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_is_streamed_once_per_epoch_in_any_number_of_workers(workers, folder):
    listing = data.list_folder(folder)
    assert listing.labels == [0] * 5 + [1] * 5
    source = training.Streamed(listing, size=16, batch_size=4, workers=workers, seed=1)
    seen = []
    for images, labels, share in source.epoch(0):
        assert images.shape[1:] == (3, 16, 16)
        assert share == 1
        grey = (images[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(grey >= 100, labels == 1)
        seen += grey.tolist()
    assert sorted(seen) == sorted(10 * k + 100 * label for label in (0, 1) for k in range(5))


def test_random_crops_follow_from_the_epoch_and_not_from_the_workers(tmp_path, generator):
    for k in range(3):
        pixels = torch.randint(256, (60, 60, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{k:04d}_x.png")
    listing = data.list_folder(tmp_path)
    assert listing.labels == [0, 1, 2]
    runs = []
    for workers, epoch in ((0, 0), (2, 0), (0, 1)):
        source = training.Streamed(listing, size=28, batch_size=3, workers=workers)
        x, y, _ = next(iter(source.epoch(epoch)))
        runs.append(x[y.argsort()])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    centre = training.Streamed(listing, size=28, crop="centre", batch_size=3, workers=0)
    x, y, _ = next(iter(centre.epoch(0)))
    whole = data.read_image(listing.files[0], 28)
    assert whole.shape == (3, 32, 32)
    expected = whole[:, 2:30, 2:30].float() / 255
    assert torch.equal(x[y.argsort()][0], expected)


def test_bad_folders_and_images_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="gone is not a folder"):
        data.list_folder(tmp_path / "gone")
    (tmp_path / "n01" / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        data.list_folder(tmp_path / "n01" / "empty")
    broken = folder / "n01" / "2.png"
    broken.write_bytes(broken.read_bytes()[:30])
    for workers in (0, 1):
        source = training.Streamed(data.list_folder(folder), size=16, batch_size=4, workers=workers)
        with pytest.raises(RuntimeError, match=r"2\.png cannot be read as an image"):
            list(source.epoch(0))


def test_bad_options_are_named(folder, numbers):
    listing = data.list_folder(folder)
    with pytest.raises(ValueError, match="crop: expected 'random' or 'centre', got 'top'"):
        training.Streamed(listing, crop="top")
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1"):
        training.InMemory(*numbers, batch_size=0)
    with pytest.raises(ValueError, match="labels: expected 50 labels"):
        training.InMemory(numbers[0], numbers[1][1:], batch_size=5)
    small = torch.rand(3, 1, 4, 9)
    with pytest.raises(ValueError, match=r"augment: images \[4, 9\] are too small to be shifted"):
        training.InMemory(small, torch.zeros(3).long(), batch_size=2, augment=True)


def test_a_folder_is_told_by_all_its_bytes_and_labels(tmp_path):
    """Files of the same names and sizes may be others, or of other classes."""

    def told(pixels):
        for name, grey in pixels.items():
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (9, 9), grey).save(tmp_path / name / "a.bmp")
        return training.Streamed(data.list_folder(tmp_path), size=8).fingerprint()

    prints = [told({"a": one, "b": two}) for one, two in ((1, 2), (2, 1), (1, 3), (1, 2))]
    assert prints[0] == prints[3] and len(set(prints)) == 3
