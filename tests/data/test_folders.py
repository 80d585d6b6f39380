"""Folders as people have them: hidden entries, mixtures, odd names, odd files, damaged ones."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from apudae import data
from apudae.data import list_folder, list_imagenet, read_image
from apudae.data.files import LARGEST

HIDDEN = (".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN")


def draw(path: Path, size=(10, 10), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 8, 7)).save(path, **options)
    return path


def relative(listing, folder):
    return [(str(f.relative_to(folder)), y) for f, y in zip(*listing, strict=True)]


@pytest.mark.parametrize("listed", [list_folder, list_imagenet])
def test_what_is_hidden_changes_nothing(listed, tmp_path):
    for name in ("1", "2"):
        draw(tmp_path / name / "a.png")
    expected = relative(listed(tmp_path), tmp_path)
    assert [file for file, _ in expected] == ["1/a.png", "2/a.png"]
    for name in HIDDEN:
        for place in (tmp_path, tmp_path / "1"):
            draw(place / name / "thumb.png")
            (place / f"{name}.empty").mkdir() if name.startswith(".") else None
    for place in (tmp_path, tmp_path / "2"):
        (place / "._a.jpg").write_bytes(b"no picture")
        (place / ".DS_Store").write_bytes(b"")
        for name in ("notes.txt", "labels.csv", "Thumbs.db", "a.json", "README.md"):
            (place / name).write_text("text", encoding="utf-8")
    assert relative(listed(tmp_path), tmp_path) == expected


@pytest.mark.parametrize("listed", [list_folder, list_imagenet])
def test_a_mixture_is_refused_with_examples(listed, tmp_path):
    draw(tmp_path / "1" / "a.png")
    draw(tmp_path / "0002_b.png")
    with pytest.raises(ValueError, match=r"images \(0002_b\.png\) beside folders \(1\)"):
        listed(tmp_path)


def test_an_empty_class_is_refused_by_name_and_hidden_ones_are_none(tmp_path):
    for name in ("ants", "cats"):
        draw(tmp_path / name / "a.png")
    (tmp_path / "bees").mkdir()
    with pytest.raises(ValueError, match="no images in bees"):
        list_folder(tmp_path)
    draw(tmp_path / "bees" / ".hidden.png")
    with pytest.raises(ValueError, match="no images in bees"):
        list_folder(tmp_path)
    draw(tmp_path / "bees" / "deep" / "down" / "a.PNG")
    assert list_folder(tmp_path).labels == [0, 1, 2]


@pytest.mark.parametrize(
    "suffix", [".tif", ".TIFF", ".gif", ".jfif", ".heic", ".avif", ".jp2", ".mpo"]
)
@pytest.mark.parametrize("inside", ["", "class"])
def test_images_that_are_not_read_are_named(suffix, inside, tmp_path):
    draw(tmp_path / inside / "a.png")
    (tmp_path / inside / f"b{suffix}").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"b\{suffix}: of a kind that is not read; convert"):
        list_folder(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1", "2", "10"), "1, 10, 2 are sorted by name; write 02 before 10"),
        (("train", "val"), "train, val are splits, not classes; name one of them"),
        (("Test", "training", "validation"), "are splits, not classes"),
        (("01", "02", "10"), ""),
        (("7", "8"), ""),
        (("test", "cats"), ""),
        (("train",), ""),
    ],
)
def test_folders_whose_names_mean_something_else_are_refused(names, message, tmp_path):
    for name in names:
        draw(tmp_path / name / "a.png")
    if message:
        with pytest.raises(ValueError, match=message):
            list_folder(tmp_path)
    else:
        assert list_folder(tmp_path).labels == list(range(len(names)))


@pytest.mark.parametrize("head", ["²", "٣", "1" * 20, "1" * 10, "20230101", "①"])
def test_an_odd_index_is_named(head, tmp_path):
    draw(tmp_path / f"{head}_a.png")
    with pytest.raises(ValueError, match=rf"{head}_a\.png: .* is no class index"):
        list_folder(tmp_path)
    with pytest.raises(ValueError, match=rf"{head}_a\.png: .* says no ImageNet class"):
        list_imagenet(tmp_path)


def test_some_with_an_index_and_some_without_are_refused(tmp_path):
    draw(tmp_path / "0007_a.png"), draw(tmp_path / "cat.png")
    with pytest.raises(ValueError, match=r"0007_a\.png with the index of a class, cat\.png with"):
        list_folder(tmp_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [("great white shark", "Great_White_Shark"), ("2", "0002"), ("0281", "tabby")],
)
def test_two_folders_of_one_class_are_refused(first, second, tmp_path):
    for name in (first, second):
        draw(tmp_path / name / "a.png")
    with pytest.raises(ValueError, match="the same class as"):
        list_imagenet(tmp_path)


def test_a_name_of_two_classes_is_refused(tmp_path):
    draw(tmp_path / "cardigan" / "a.png")
    with pytest.raises(ValueError, match=r"cardigan.* is the name of the classes \[264, 474\]"):
        list_imagenet(tmp_path)


def test_what_is_no_file_is_named_and_never_opened(tmp_path, monkeypatch):
    draw(tmp_path / "class" / "a.png")
    pipe, link = tmp_path / "class" / "pipe.jpg", tmp_path / "class" / "link.png"
    os.mkfifo(pipe)
    for path in (pipe, link):
        if path == link:
            pipe.unlink()
            link.symlink_to(tmp_path / "gone.png")
        with pytest.raises(ValueError, match=f"{path.name}: expected a file"):
            list_folder(tmp_path)
        with pytest.raises(RuntimeError, match=f"{path.name} cannot be read as an image"):
            read_image(path, 28)
    link.unlink()
    place = tmp_path / "class" / "s.png"
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(place.parent)  # a socket's path must be short
        listening.bind(place.name)
        with pytest.raises(ValueError, match=r"s\.png: expected a file"):
            list_folder(tmp_path)
    place.unlink()
    (tmp_path / "class" / "round").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="round: a link to a folder inside a class"):
        list_folder(tmp_path)


# --- image files ---------------------------------------------------------------------------------


def exif(*tags: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block: (tag, type, count, value of four bytes or more)."""
    body, rest = struct.pack("<2sHIH", b"II", 42, 8, len(tags)), b""
    end = 8 + 2 + 12 * len(tags) + 4
    for tag, kind, count, value in tags:
        if len(value) > 4:
            value, rest = struct.pack("<I", end + len(rest)), rest + value
        body += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0" + body + b"\0\0\0\0" + rest


TURN = (0x0112, 3, 1, struct.pack("<H", 6))


@pytest.mark.parametrize(
    "odd",
    [
        (0x011A, 5, 1, struct.pack("<II", 72, 0)),  # a resolution of 72/0
        (0x011A, 2, 5, b"wide\0"),
        (0x011A, 5, 3, struct.pack("<6I", *[1] * 6)),
        (0x8769, 4, 1, struct.pack("<I", 10**9)),  # a pointer that leads out of the file
        (0x9286, 7, 4, b"\xff\xfe\xfd\xfc"),
    ],
)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_an_odd_tag_does_not_keep_a_photograph_from_being_turned(odd, kind, tmp_path):
    pixels = np.zeros((32, 40, 3), dtype=np.uint8)
    pixels[:, :20] = 255
    path = tmp_path / f"a.{kind}"
    Image.fromarray(pixels).save(path, exif=exif(TURN, odd), quality=95)
    found = read_image(path, 28)
    assert found.shape == (3, 40, 32) and found[0, :18].min() > 200 > 50 > found[0, 22:].max()


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"Exif\0\0XX", exif(TURN)[:18], b"x" * 40])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_damaged_block_of_tags_leaves_the_picture(block, kind, tmp_path):
    assert read_image(draw(tmp_path / f"a.{kind}", (40, 32), exif=block), 28).shape == (3, 32, 40)


def test_each_orientation_is_that_of_pillow(tmp_path, seed):
    from PIL import ImageOps

    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    for turn in range(10):
        tags = Image.Exif()
        tags[0x0112] = turn
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=tags)
        with Image.open(tmp_path / "a.png") as file:
            expected = np.array(ImageOps.exif_transpose(file))
        found = read_image(tmp_path / "a.png", 28).permute(1, 2, 0)
        assert torch.equal(found, torch.from_numpy(expected))


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG that says it is so large; what would follow is not there."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b""))
    return path


@pytest.mark.parametrize(
    "shape", [(14_000, 14_500), (10**5, 10**5), (11_000, 9_999), (2**31 - 1, 9)]
)
def test_a_file_of_too_many_pixels_is_named_before_it_is_decoded(shape, tmp_path):
    assert shape[0] * shape[1] > LARGEST
    with pytest.raises(RuntimeError, match=r"big\.png cannot be read as an image: .*pixels"):
        read_image(bomb(tmp_path / "big.png", *shape), 28)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (2, 9000)])
def test_a_thin_image_that_scaling_would_blow_up_is_named(shape, tmp_path):
    path = draw(tmp_path / "thin.png", shape)
    with pytest.raises(RuntimeError, match=r"thin\.png .* at size 224, more than 100 million"):
        read_image(path, 224)
    assert min(read_image(path, 14).shape[1:]) == 16


def test_formats_are_those_of_the_suffixes(tmp_path):
    for kind in ("GIF", "PPM", "TIFF", "ICO", "EPS", "TGA"):
        Image.new("RGB", (16, 16)).save(tmp_path / "a.png", format=kind)
        with pytest.raises(RuntimeError, match=r"a\.png cannot be read as an image"):
            read_image(tmp_path / "a.png", 14)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "MPO"):  # ImageNet has a PNG called .JPEG
        Image.new("RGB", (16, 16)).save(tmp_path / "a.png", format=kind)
        assert read_image(tmp_path / "a.png", 14).shape == (3, 16, 16)


def test_an_animation_is_its_first_picture(tmp_path):
    first, second = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 200))
    for name in ("a.png", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        first.save(tmp_path / name, save_all=True, append_images=[second], **options)
        assert read_image(tmp_path / name, 14)[:, 0, 0].tolist() == [200, 0, 0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        Image.fromarray(noise).save(folder / name, exif=exif(TURN)) if name != "a.bmp" else (
            Image.fromarray(noise).save(folder / name)
        )
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(["a.png", "a.jpg", "a.webp", "a.bmp"]),
    cut=st.integers(0, 10**6),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=6),
)
def test_a_damaged_file_is_read_or_named(whole, name, cut, flips):
    """An image file has no digest: what still decodes is an image; nothing else gets out."""
    content = bytearray((whole / name).read_bytes())
    for place, bit in flips:
        content[place % len(content)] ^= 1 << bit
    path = whole / f"damaged_{name}"
    path.write_bytes(content[: cut % len(content) + 1] if cut % 2 else content)
    try:
        found = read_image(path, 14)
    except RuntimeError as error:
        assert f"damaged_{name}" in str(error)
    else:
        assert found.dtype == torch.uint8 and min(found.shape[1:]) >= 14


# --- data sets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [-1, -3, 1.5, True, "3", None, float("nan")])
def test_a_split_takes_a_count(n):
    with pytest.raises(ValueError, match=r"^n: expected an integer"):
        data.load("mnist", "validation").take(n)


def test_without_a_home_the_given_folder_is_enough(tmp_path, monkeypatch):
    from apudae.data import sets

    def none(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", lambda self: none(self) if "~" in str(self) else self)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("APUDAE_DATA", raising=False)
    here = tmp_path / "MNIST" / "raw"
    here.mkdir(parents=True)
    for name in sets._MNIST_FILES:
        (here / name).write_bytes(b"")
    with pytest.raises(RuntimeError, match="ubyte is damaged"):  # found, and looked at
        data.load("mnist", profile="full", root=tmp_path)
    for root in (None, "~/data"):
        with pytest.raises(FileNotFoundError, match="no home directory; set APUDAE_DATA or XDG"):
            data.load("mnist", profile="full", root=root)
        with pytest.raises(FileNotFoundError, match="no home directory"):
            data.load("cifar10-jpeg", root=root)
    assert len(data.load("mnist", profile="quick").images) == 1000


def test_a_link_that_leads_nowhere_is_no_class_that_is_left_out(tmp_path):
    for name in ("a", "c"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"links that lead nowhere \(b\)"):
        data.list_folder(tmp_path)
