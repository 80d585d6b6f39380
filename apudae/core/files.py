"""Fingerprints of images and models, checksums, and files that are never half written."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(images: Tensor) -> str:
    """SHA-256 of the images' 8-bit pixels, in order: what a record says it was measured on."""
    if images.dtype != torch.uint8:
        images = (images * 255).round().to(torch.uint8)
    return hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()


def verify(path: Path, expected: str) -> None:
    """Raise unless the file is there and has the expected SHA-256."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; reinstall the package or restore the file")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise RuntimeError(f"{path} is damaged: SHA-256 is {found}, expected {expected}")


def read_json(path: Path) -> Any:
    """What a JSON file holds; a ``RuntimeError`` names the file that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RuntimeError(f"{path} is damaged: {error}") from error


def write_torch(path: Path, state: dict[str, Any]) -> None:
    """``torch.save`` to a temporary neighbour, then rename."""
    content = io.BytesIO()
    torch.save(state, content)
    write_aside(path, content.getvalue())


def write_aside(path: Path, content: bytes) -> None:
    """Write to a temporary neighbour, then rename: no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's structure, plain attributes, functions and weights."""
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
        whole.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))
