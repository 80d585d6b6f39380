"""Fingerprints of images and models, checksums, and files that are never half written."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from .arguments import check_name, check_writable, checked, require


def require_whole(met: object, message: str) -> None:
    """Raise ``RuntimeError`` with a message unless a file is as it should be."""
    if not met:
        raise RuntimeError(message)


@checked
def fingerprint(images: Tensor) -> str:
    """SHA-256 of the images' 8-bit pixels, in order: what a record says it was measured on."""
    if images.dtype != torch.uint8:
        images = (images * 255).round().to(torch.uint8)
    return hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verify(path: Path, expected: str) -> None:
    """Raise unless the file is there and has the expected SHA-256."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; reinstall the package or restore the file")
    found = sha256_of(path)
    require_whole(found == expected, f"{path} is damaged: SHA-256 is {found}, expected {expected}")


# The last entry of what `write_json` writes; recognised even where a bit of its name is flipped.
_SEAL = re.compile(r'\n "[^"]{6}": "([^"]{64})"\n}\n?\Z')
_UNSEALED = "0" * 64  # stands in its place while it is taken


def read_json(path: Path, *, sealed: Callable[[Any], bool] = lambda found: False) -> Any:
    """What a JSON file holds, less the digest of itself at its end, which must fit.

    Args:
        path: of the file.
        sealed: whether what was found must have had a digest; older versions wrote none.

    Raises:
        RuntimeError: it is damaged, no file, no JSON, or holds a name twice or a number that is
            not finite; it is named.
    """
    try:
        require(path.is_file(), "it is no file")
        text = path.read_text(encoding="utf-8")
        found = _DECODER.decode(text)
        if seal := _SEAL.search(text):
            unsealed = text[: seal.start(1)] + _UNSEALED + text[seal.end(1) :]
            require(seal[1] == _sha256(unsealed), "its SHA-256 does not fit what it holds")
            found.pop("sha256", None)
        require(seal or not sealed(found), "it ends without a SHA-256 of itself")
    except (ValueError, RecursionError) as error:
        raise RuntimeError(f"{path} is damaged: {error}") from error
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that ends with a digest of itself; whole or not at all.

    Raises:
        ValueError: a number in it is not finite, a value no plain data, or a name ``"sha256"``.
    """
    require("sha256" not in content, f"{path}: 'sha256' is the name of the digest at its end")
    text = as_json({**content, "sha256": _UNSEALED}, path)
    before, after = text.rsplit(_UNSEALED, 1)
    write_aside(path, (before + _sha256(text) + after).encode())


def as_json(content: Any, name: object) -> str:
    """The text of plain data; ``ValueError`` with a name for what could not be read again."""
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        _DECODER.decode(text.encode().decode())
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{name}: cannot be written as JSON: {error}") from error
    return text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} stands there twice")
    return found


def _finite(text: str) -> float:
    require(math.isfinite(number := float(text)), f"{text[:20]} is no finite number")
    return int(text) if text.lstrip("-").isdigit() else number


_NUMBERS = dict.fromkeys(("parse_constant", "parse_float", "parse_int"), _finite)
_DECODER = json.JSONDecoder(object_pairs_hook=_once, **_NUMBERS)


def check_sums(path: Path) -> None:
    """Raise ``RuntimeError`` if ``SHA256SUMS`` beside a file tells another SHA-256 of it.

    A file that is not listed passes, unless one that is listed is missing: it may be this one.
    """
    sums = path.with_name("SHA256SUMS")
    if not sums.is_file():
        return
    listed = {}
    for line in sums.read_bytes().decode(errors="replace").splitlines():
        fits = re.fullmatch(r"[0-9a-f]{64}  [\w.-]+", line)
        require_whole(fits, f"{sums} is damaged: expected a SHA-256 and a name, got {line!r}")
        listed[line[66:]] = line[:64]
    found = _sha256(path.read_text(encoding="utf-8"))
    fits = listed.get(path.name, found) == found
    require_whole(fits, f"{path} is damaged: SHA-256 is {found}, {sums.name} tells another")
    for name in () if path.name in listed else listed:
        there = path.with_name(name).is_file()
        require_whole(there, f"{sums} is damaged: it lists {name}, which is not there")


def write_torch(path: Path, state: dict[str, Any]) -> None:
    """``torch.save``, sealed with its SHA-256, to a temporary neighbour, then rename."""
    content = io.BytesIO()
    torch.save(state, content)
    body = content.getvalue()
    write_aside(path, body + _seal(body))


def read_torch(path: Path) -> dict[str, Any]:
    """What :func:`write_torch` has written, on the CPU.

    Raises:
        RuntimeError: the file was changed, cut off, or written by something else; it is named.
    """
    what = f"{path} is not a checkpoint of a training run"
    whole = path.read_bytes()
    body = whole[: -len(_seal(b""))]
    require_whole(
        whole == body + _seal(body),
        f"{what}, or is damaged: its SHA-256 differs or is missing; move it to begin again",
    )
    try:
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise RuntimeError(f"{what}: {error}") from error


def _seal(content: bytes) -> bytes:
    return f"\nsha256 {hashlib.sha256(content).hexdigest()}\n".encode()


def check_like(ours: Any, theirs: Any, what: str) -> None:
    """Raise ``RuntimeError`` unless what was read is built like what is here, all numbers finite.

    Args:
        ours: dictionaries, sequences, tensors and plain values.
        theirs: has the same keys, lengths, types, shapes.
        what: names the file and the part of it.
    """
    fits = type(ours) is type(theirs)
    if fits and isinstance(ours, (list, tuple)):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if fits and isinstance(ours, dict):
        fits = ours.keys() == theirs.keys()
    elif fits and isinstance(ours, Tensor):
        fits = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    require_whole(fits, f"{what} does not fit this run")
    if isinstance(ours, dict):
        for key in ours:
            check_like(ours[key], theirs[key], f"{what}: {key}")
    elif isinstance(ours, (Tensor, float)):
        finite = bool(torch.as_tensor(theirs).isfinite().all())
        require_whole(finite, f"{what} holds NaN or infinity")


def inside(folder: Path, name: str, ending: str = "") -> Path:
    """The file of a name in a folder; ``ValueError`` if it leads elsewhere, or is too long."""
    path = folder / f"{check_name(name)}{ending}"
    fits = len(_hidden(path, _LOCK).name.encode()) < 256
    require(fits, f"name: {name[:20]}... is too long for a file")
    return path


def write_aside(path: Path, content: bytes) -> None:
    """Write to a temporary neighbour, then rename: no reader ever sees half a file."""
    with locked(path):
        aside = _hidden(path, _PART)
        try:
            aside.write_bytes(content)
            aside.replace(path)
        except OSError as error:  # a full disk does not say which file it has no room for
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        finally:
            aside.unlink(missing_ok=True)


_PART, _LOCK = ".part.apudae", ".lock.apudae"  # hidden beside a file, under its name
_SWEPT = 2.0  # seconds; who sweeps a folder holds each of its locks for a moment


def _hidden(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}{ending}")


@contextmanager
def locked(path: Path, *, wait: float = 60.0, what: str = "") -> Iterator[None]:
    """Hold a file, which need not be there, for this thread alone: to read, change and write it.

    Who holds it may do so again. It ends with its holder, also by a kill.

    Args:
        path: of the file; its folder is made if it is missing.
        wait: seconds until another one lets it go; below 0 as long as it takes, and it is said.
        what: is being waited for.

    Raises:
        RuntimeError: another one still holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.parent.resolve() / path.name
    lock = FileLock(_hidden(path, _LOCK), is_singleton=True)
    try:
        lock.acquire(timeout=max(wait, 0), poll_interval=0.01)
    except Timeout:
        advice = "another run writes it; wait for its end, or name another"
        require_whole(wait < 0, f"{path} is in use: {advice}")
        print(f"{what or path.name}: another run is at it, and is waited for", flush=True)
        lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        if lock.lock_counter == 1:  # while it is held: who waits sees that this file is gone
            with suppress(OSError):
                Path(lock.lock_file).unlink()
        lock.release()


@contextmanager
def held(path: Path | None, name: str) -> Iterator[None]:
    """A file for one run alone, if there is one; what killed ones left half written goes.

    One that is there, in a folder that cannot be written to, is as it is: it can be read. Whoever
    goes on with it calls :func:`check_writable` first.

    Args:
        path: of the file, or None.
        name: of the argument that named it.

    Raises:
        ValueError: nothing can be written there.
        RuntimeError: another run is at it.
    """
    if path is None or (path.is_file() and not os.access(path.parent, os.W_OK)):
        yield
        return
    check_writable(path.parent, name)
    require(not path.is_dir(), f"{name}: expected a file, {path} is a folder")
    sweep(path.parent)
    with locked(path, wait=_SWEPT):
        yield


def sweep(folder: Path) -> None:
    """Remove what killed writers left half written; what is being written stays."""
    for left in folder.glob(".*.apudae"):
        path = left.with_name(left.name[1:].removesuffix(_PART).removesuffix(_LOCK))
        with suppress(OSError, RuntimeError), locked(path, wait=0):
            _hidden(path, _PART).unlink(missing_ok=True)


def sweep_weights(folder: Path, name: str, keep: Collection[str]) -> None:
    """Remove safetensors files that are called by a name and their own content, but a few."""
    for path in folder.glob(f"{glob.escape(name)}-????????.safetensors"):
        ours = path.name not in keep and path.is_file()
        with suppress(FileNotFoundError):  # another process sweeps, too
            if ours and path.name == weights_file(name, sha256_of(path)):
                path.unlink()


def weights_file(name: str, sha256: str) -> str:
    """What a safetensors file is called: by a name, and a part of its content's SHA-256."""
    return inside(Path(), name, f"-{sha256[:8]}.safetensors").name


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's structure, plain attributes, functions and weights.

    Older versions told models apart by it alone; :func:`apudae.core.prints.model_print` tells more.
    """
    whole = hashlib.sha256(repr(model).encode())
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            if key.startswith("_") or key == "training":
                continue
            code = getattr(value, "__code__", None)
            if code is not None:
                value = code.co_code.hex(), [c for c in code.co_consts if _plain(c)]
            if _plain(value):
                whole.update(f"{name}.{key}={value!r};".encode())
    for name, value in model.state_dict().items():
        whole.update(name.encode())
        try:
            plain = value.detach().cpu().contiguous().view(-1)
            whole.update(plain.view(torch.uint8).numpy().tobytes())
        except (AttributeError, RuntimeError):  # sparse, quantised, on no device, or no tensor
            whole.update(type(value).__name__.encode())
    return whole.hexdigest()


def _plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))
