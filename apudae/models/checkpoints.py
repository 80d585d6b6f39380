"""Save, load and verify weights: safetensors files and one manifest of their SHA-256 sums.

:data:`WEIGHTS` is the folder of the models the book shows. Its ``manifest.json`` says, for each,
which architecture it is, how it was trained and what was measured::

    classifier = models.load("mnist-cnn")
    models.about("mnist-cnn")["measured"]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..core.arguments import require
from ..core.files import read_json, verify, write_aside
from .networks import MODELS, build

WEIGHTS = Path(__file__).parent / "weights"


def names(folder: str | Path = WEIGHTS) -> list[str]:
    """Names of the checkpoints in a folder's manifest."""
    return list(_manifest(folder))


def about(name: str, folder: str | Path = WEIGHTS) -> dict[str, Any]:
    """What the manifest says of a checkpoint: architecture, training, measurements, SHA-256."""
    manifest = _manifest(folder)
    known = ", ".join(manifest) or "none, no manifest.json there"
    require(name in manifest, f"unknown checkpoint {name!r} in {folder}; known: {known}")
    return manifest[name]


def load(
    name: str, folder: str | Path = WEIGHTS, *, device: torch.device | str = "cpu"
) -> nn.Module:
    """Build a model and fill it with verified weights.

    It comes in evaluation mode with frozen parameters, as a defended classifier should be; call
    ``model.requires_grad_(True)`` to train it further.

    Raises:
        ValueError: unknown name (the known ones are listed), or weights that do not fit the
            architecture (the first differing entry is named).
        FileNotFoundError: the manifest names a file that is not there.
        RuntimeError: the file's SHA-256 differs; the message names the file and both sums.
    """
    entry = about(name, folder)
    path = Path(folder) / entry["file"]
    verify(path, entry["sha256"])
    model = build(entry["architecture"], **entry["options"])
    weights = load_file(path)
    check_fits(model.state_dict(), weights, path, entry["architecture"])
    model.load_state_dict(weights)  # copies, and so widens float16 to the model's float32
    return model.eval().requires_grad_(False).to(device)


def save(
    name: str,
    model: nn.Module,
    *,
    architecture: str,
    options: dict[str, int] | None = None,
    about: dict[str, Any] | None = None,
    folder: str | Path = WEIGHTS,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a model's weights and its entry in the manifest.

    Whenever it is interrupted, the manifest names a complete file: the old one or the new one.

    Args:
        name: of the checkpoint; the file's name begins with it.
        model: whose ``state_dict`` is stored.
        architecture: the model's key in ``models.MODELS``.
        options: what ``models.build`` needs besides, such as ``{"latent": 64}``.
        about: anything a reader should know, as JSON: training settings, measurements.
        folder: where to write; made if it is missing.
        dtype: of the stored floats. Half precision halves the file: measure after reloading.
    """
    if architecture not in MODELS:
        raise ValueError(f"unknown architecture {architecture!r}; known: {', '.join(MODELS)}")
    folder = Path(folder)
    manifest = _manifest(folder)
    weights = {
        key: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    content = to_bytes(weights)
    sha256 = hashlib.sha256(content).hexdigest()
    # The file is named by its content, so the manifest's rename is the moment of change.
    path = folder / f"{name}-{sha256[:8]}.safetensors"
    write_aside(path, content)
    old = manifest.get(name, {}).get("file", path.name)
    manifest[name] = {
        **(about or {}),
        "file": path.name,
        "sha256": sha256,
        "architecture": architecture,
        "options": options or {},
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_aside(folder / "manifest.json", text.encode())
    if old != path.name:
        (folder / old).unlink(missing_ok=True)
    return path


def check_fits(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, what: str
) -> None:
    """Raise ``ValueError`` unless both hold the same entries; the first that differs is named."""
    for key in sorted(expected.keys() | found.keys()):
        ours, theirs = (
            list(part[key].shape) if key in part else "nothing" for part in (expected, found)
        )
        require(
            ours == theirs,
            f"{path} does not fit {what}: {key} is {theirs} in the file, {ours} in the model",
        )


def _manifest(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "manifest.json"
    return read_json(path) if path.is_file() else {}
