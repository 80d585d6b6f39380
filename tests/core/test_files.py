"""Files that are never half written, and prints that tell models and images apart."""

from __future__ import annotations

import copy

import pytest
import torch
from support import Noisy, Opaque, Quantise

from apudae.core import files
from apudae.purification import Defended


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    files.write_aside(path, b"old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        files.write_aside(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_whole_or_as_it_was_at_every_moment(tmp_path, monkeypatch):
    """Seen by a reader that looks while it is written: before the rename the old file stands."""
    path, seen = tmp_path / "file.json", []
    files.write_aside(path, b"old")
    rename = type(path).replace

    def spy(self, target):
        seen.append((self != path, path.read_bytes(), self.read_bytes()))
        return rename(self, target)

    monkeypatch.setattr("pathlib.Path.replace", spy)
    files.write_aside(path, b"new")
    assert seen == [(True, b"old", b"new")] and path.read_bytes() == b"new"


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    path = tmp_path / "weights"
    with pytest.raises(FileNotFoundError, match="weights is missing"):
        files.verify(path, "0")
    path.write_bytes(b"a")
    with pytest.raises(RuntimeError, match="weights is damaged: SHA-256 is ca978112"):
        files.verify(path, "0")
    files.verify(path, "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb")


def test_images_of_the_same_pixels_have_one_print(generator):
    pixels = torch.randint(256, (3, 1, 4, 4), generator=generator, dtype=torch.uint8)
    print_ = files.fingerprint(pixels)
    assert files.fingerprint(pixels.float() / 255) == print_
    assert files.fingerprint(pixels.flip(0)) != print_


def test_models_that_differ_in_anything_have_other_prints(linear):
    moved = copy.deepcopy(linear)
    with torch.no_grad():
        moved.weight[0, 0] += 1e-6
    for one, other in (
        (linear, moved),
        (Defended(linear, Quantise(16)), Defended(linear, Quantise(100))),
        (Defended(linear, Noisy(0.1)), Defended(linear, Noisy(0.1), draws=2)),
        (Opaque(torch.round, linear), Opaque(lambda x: 2 * x, linear)),
        (Opaque(lambda x: 3 * x, linear), Opaque(lambda x: 2 * x, linear)),
    ):
        prints = [files.model_fingerprint(m) for m in (one, copy.deepcopy(one), other)]
        assert prints[0] == prints[1] != prints[2]
