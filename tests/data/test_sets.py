import hashlib
import os
import pickle
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from apudae import data
from apudae.core import files
from apudae.data import sets
from apudae.models import networks


def hashes(images):
    pixels = (images * 255).round().to(torch.uint8).numpy()
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize(("split", "n"), [("train", 3000), ("validation", 1000), ("test", 1000)])
def test_the_bundled_sample_keeps_the_contract(split, n):
    x, y = data.load("mnist", split)
    assert x.shape == (n, 1, 28, 28)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.min() == 0
    assert x.max() == 1
    assert torch.bincount(y).tolist() == [n // 10] * 10


def test_the_first_images_of_a_split_are_a_mixture_of_classes():
    assert len(data.load("mnist", "test").take(100).labels.unique()) == 10


def test_the_order_of_a_test_set_is_one_permutation_for_good():
    """Pinned: whoever draws it anew, with whatever versions, gets the same images."""
    order = data.Order(10_000)
    places = order.places()
    assert places.dtype == torch.int64 and torch.equal(places.sort().values, torch.arange(10_000))
    assert places[:8].tolist() == [9394, 898, 2398, 5906, 2343, 8225, 5506, 6451]
    assert torch.equal(order.places(300), places[:300])
    torch.manual_seed(5)  # it is not torch's generator that draws
    assert torch.equal(data.Order(10_000).places(), places)
    assert not torch.equal(data.Order(10_000, seed=1).places(), places)
    # The first n of it are a sample of the whole set, not of its beginning.
    assert 4000 < places[:1000].double().mean() < 6000


def test_a_split_at_places_keeps_images_and_labels_together():
    whole, places = data.load("mnist", "test"), data.Order(1000).places(50)
    some = whole.at(places)
    assert torch.equal(some.images, whole.images[places])
    assert torch.equal(some.labels, whole.labels[places]) and len(some.labels) == 50


def test_no_digit_is_in_two_splits():
    seen = [h for split in data.SPLITS for h in hashes(data.load("mnist", split).images)]
    assert len(set(seen)) == len(seen) == 5000


def test_the_quick_profile_is_what_the_environment_says(monkeypatch):
    monkeypatch.setenv("APUDAE_PROFILE", "nonsense")
    with pytest.raises(ValueError, match="unknown profile 'nonsense'; known: quick, full"):
        data.load("mnist")


def test_full_training_digits_are_neither_validation_nor_test(full_data):
    x, y = data.load("mnist", "train", profile="full", root=full_data)
    assert x.shape == (58_000, 1, 28, 28)
    train = set(hashes(x))
    assert len(train) == 58_000
    held_out = [
        h for split in ("validation", "test") for h in hashes(data.load("mnist", split).images)
    ]
    assert not train & set(held_out)
    official = data.load("mnist", "test", profile="full", root=full_data)
    assert official.images.shape == (10_000, 1, 28, 28)
    assert not (train | set(held_out)) & set(hashes(official.images))
    assert abs(x.mean().item() - 0.1307) < 1e-3
    assert abs(x.std().item() - 0.3081) < 1e-3
    assert y.bincount().min() > 5000


def test_the_sample_is_where_its_index_says(full_data):
    whole = np.fromfile(full_data / "MNIST/raw/train-images-idx3-ubyte", np.uint8)[16:]
    whole = whole.reshape(-1, 28, 28)
    for split in data.SPLITS:
        ours = (data.load("mnist", split).images[:, 0] * 255).round().numpy()
        assert np.array_equal(whole[data.sample_index(split)], ours)


def test_the_environment_switches_the_profile(full_data, monkeypatch):
    monkeypatch.setenv("APUDAE_PROFILE", "full")
    monkeypatch.setenv("APUDAE_DATA", str(full_data))
    assert len(data.load("mnist", "test").images) == 10_000
    assert len(data.load("mnist", "test", profile="quick").images) == 1_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnits",), "unknown data set 'mnits'; known: mnist"),
        (("mnist", "valid"), "unknown split 'valid'; known: train, validation, test"),
    ],
)
def test_unknown_names_list_the_known_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(*arguments)


def test_a_damaged_sample_is_named_with_both_sums(tmp_path, monkeypatch):
    content = bytearray(sets.SAMPLE.read_bytes())
    content[5000] ^= 1
    damaged = tmp_path / "mnist_5k.npz"
    damaged.write_bytes(content)
    monkeypatch.setattr(sets, "SAMPLE", damaged)
    with pytest.raises(RuntimeError) as error:
        data.load("mnist", "test")
    for part in (str(damaged), hashlib.sha256(content).hexdigest(), sets.SHA256[damaged.name]):
        assert part in str(error.value)


def test_a_missing_sample_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "SAMPLE", tmp_path / "gone.npz")
    monkeypatch.setitem(sets.SHA256, "gone.npz", "0")
    with pytest.raises(FileNotFoundError, match=r"gone\.npz is missing"):
        data.load("mnist", "test")


def test_full_without_data_or_network_says_what_to_do(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("APUDAE_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with (
        pytest.warns(UserWarning, match=r"given holds no MNIST/raw; looking in"),
        pytest.raises(FileNotFoundError) as error,
    ):
        data.load("mnist", "train", profile="full")
    message = str(error.value)
    for part in (
        str(tmp_path / "given" / "MNIST" / "raw"),
        str(tmp_path / "cache" / "apudae" / "MNIST" / "raw"),
        "the download failed",
        "APUDAE_DATA=<root>",
        "profile='quick'",
    ):
        assert part in message
    left = [path.name for path in (tmp_path / "cache" / "apudae").iterdir()]
    assert left == [".MNIST.lock"]  # nothing half-written
    assert len(data.load("mnist", "train").images) == 3000  # quick goes on working


def test_a_damaged_full_file_is_named(tmp_path, full_data):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (full_data / "MNIST" / "raw").iterdir():
        (raw / file.name).symlink_to(file)
    labels = raw / "t10k-labels-idx1-ubyte"
    content = labels.read_bytes()[:-1]
    labels.unlink()
    labels.write_bytes(content)
    with pytest.raises(RuntimeError, match="t10k-labels-idx1-ubyte is damaged: SHA-256 is"):
        data.load("mnist", "test", profile="full", root=tmp_path)


def test_a_download_is_moved_into_place_when_complete(tmp_path, monkeypatch):
    """The download itself is torchvision's; what is ours is what happens around it."""
    import torchvision.datasets

    def fake(root, download):
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name in sets.SHA256:
            (raw / name).write_bytes(b"x")
        (raw / "train-images-idx3-ubyte.gz").write_bytes(b"x")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("APUDAE_DATA", raising=False)
    with pytest.raises(RuntimeError, match="is damaged"):  # the fake's content is not MNIST
        data.load("mnist", "train", profile="full")
    assert {path.name for path in (tmp_path / "apudae").iterdir()} <= {"MNIST", ".MNIST.lock"}
    assert not list((tmp_path / "apudae").rglob("*.gz"))


def test_several_processes_download_once(tmp_path):
    """Threads stand in for processes: the lock is on the file."""
    calls, cache = [], tmp_path / "cache"

    def slow(aside, download):
        calls.append(aside)
        time.sleep(0.2)
        (aside / "SET").mkdir()

    def fetch(_):
        return sets._download(slow, "SET", cache, (cache / "SET").is_dir)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(fetch, range(3))) == [cache] * 3
    assert len(calls) == 1


@pytest.fixture(scope="module")
def jpeg_copy():
    root = Path(os.environ.get("APUDAE_DATA", "/nonexistent"))
    if not (root / "cifar10_jpeg" / "cifar10_jpeg.npz").is_file():
        pytest.skip("the JPEG copy of CIFAR-10 is not at hand")
    load = {"root": root, "dtype": torch.uint8}
    return {split: data.load("cifar10-jpeg", split, **load) for split in data.SPLITS}


def test_the_jpeg_copy_is_split_without_overlap(jpeg_copy):
    sizes = {split: len(part.images) for split, part in jpeg_copy.items()}
    assert sizes == {"train": 45_000, "validation": 5_000, "test": 10_000}
    seen = {}
    for split, (x, y) in jpeg_copy.items():
        assert x.shape[1:] == (3, 32, 32)
        assert x.dtype == torch.uint8
        assert y.bincount(minlength=10).min() > 0.08 * len(y)
        seen[split] = {image.numpy().tobytes() for image in x}
    assert not seen["validation"] & seen["test"]
    # CIFAR-10 holds a few images twice in its own training set.
    assert len(seen["train"] & seen["validation"]) < 10
    mean = jpeg_copy["train"].images.float().mean((0, 2, 3)) / 255
    assert (mean - torch.tensor(networks.CIFAR10[0])).abs().max() < 0.01


def test_the_jpeg_copy_is_named_as_such():
    assert data.TITLES["cifar10-jpeg"] == "CIFAR-10 (JPEG copy)"


def test_a_missing_jpeg_copy_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar10_jpeg\.npz. Set APUDAE_DATA"):
        data.load("cifar10-jpeg", root=tmp_path)


def tiny_cifar(root):
    """Files in CIFAR-10's own format: each image is filled with its number."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        pixels = np.repeat(np.arange(10 * k, 10 * k + 10, dtype=np.uint8), 3072).reshape(10, 3072)
        with (folder / name).open("wb") as file:
            pickle.dump({"data": pixels, "labels": list(range(10))}, file)
    with (folder / "batches.meta").open("wb") as file:
        pickle.dump({"label_names": list("abcdefghij")}, file)


def test_original_cifar_is_found_and_a_tenth_held_out(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    tiny_cifar(tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    parts = {split: data.load("cifar10", split, root=tmp_path) for split in data.SPLITS}
    numbers = {
        split: (x[:, 0, 0, 0] * 255).round().int().tolist() for split, (x, _) in parts.items()
    }
    assert [len(numbers[split]) for split in data.SPLITS] == [45, 5, 10]
    assert sorted(numbers["train"] + numbers["validation"]) == list(range(50))
    assert numbers["test"] == list(range(50, 60))
    for split, (x, y) in parts.items():
        assert [number % 10 for number in numbers[split]] == y.tolist()
        assert (x == x[:, :1, :1, :1]).all()


def test_cifar_is_fetched_from_the_address_that_is_asked_for(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    asked = []

    def refuse(self):
        asked.append(self.url)
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("APUDAE_DATA", raising=False)
    monkeypatch.setenv("APUDAE_CIFAR10_URL", "https://example.org/cifar.tar.gz")
    with pytest.raises(FileNotFoundError, match="the full CIFAR-10 data set is not on this"):
        data.load("cifar10")
    assert asked == ["https://example.org/cifar.tar.gz"]


def test_eight_bit_pixels_are_the_same_images():
    whole, small = (data.load("mnist", dtype=d) for d in (torch.float32, torch.uint8))
    assert small.images.dtype == torch.uint8
    assert torch.equal(small.images.float() / 255, whole.images)
    assert files.fingerprint(small.images) == files.fingerprint(whole.images)
    with pytest.raises(ValueError, match=r"dtype: expected torch\.float32 or torch\.uint8"):
        data.load("mnist", dtype=torch.float16)


def test_twenty_original_images_come_with_foolbox(monkeypatch):
    x, y = data.load("cifar10-20")
    assert x.shape == (20, 3, 32, 32) and x.min() >= 0 and x.max() <= 1
    assert y.tolist()[:5] == [3, 8, 8, 0, 6]
    names = [data.CIFAR10_CLASSES[label] for label in y.tolist()]
    assert names[:4] == ["cat", "ship", "ship", "airplane"]
    with pytest.raises(ValueError, match="test images only, got 'train'"):
        data.load("cifar10-20", "train")
    monkeypatch.setattr(sets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install foolbox"):
        data.load("cifar10-20")


def test_the_twenty_are_the_first_ones_of_cifar(full_data):
    """Against the JPEG copy, which holds the same pictures in another order."""
    x, y = data.load("cifar10-20")
    other, labels = data.load("cifar10-jpeg", root=full_data)
    for image, label in zip(x, y, strict=True):
        error = (other - image).square().flatten(1).mean(1)
        assert error.min() < 3e-3 and labels[error.argmin()] == label


def test_two_photographs_travel_with_the_package(no_network):
    x, y = data.load("photographs")
    assert x.shape == (2, 3, 224, 224) and x.min() >= 0 and x.max() <= 1
    assert y.tolist() == [282, 967]
    assert (x[0].mean((1, 2)).diff() < 0).all()  # an orange cat: red above green above blue
    with pytest.raises(ValueError, match="test images only, got 'validation'"):
        data.load("photographs", "validation")
