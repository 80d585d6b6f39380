"""Save, load and verify weights: safetensors files and one manifest of their SHA-256 sums.

:data:`WEIGHTS` is the folder of the models the book shows. Its ``manifest.json`` says, for each,
which architecture it is, how it was trained and what was measured::

    classifier = models.load("mnist-cnn")
    models.about("mnist-cnn")["measured"]
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..core.arguments import check_count, check_name, check_type, check_writable, checked, require
from ..core.files import (
    as_json,
    inside,
    locked,
    read_json,
    require_whole,
    sweep,
    sweep_weights,
    verify,
    weights_file,
    write_aside,
    write_json,
)
from .networks import MODELS, build

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
_ENTRY = {"file": str, "sha256": str, "architecture": str, "options": dict[str, int]}


@checked
def names(folder: str | Path = WEIGHTS) -> list[str]:
    """Names of the checkpoints in a folder's manifest."""
    return list(_manifest(folder))


@checked
def about(name: str, folder: str | Path = WEIGHTS) -> dict[str, Any]:
    """What the manifest says of a checkpoint: architecture, training, measurements, SHA-256."""
    manifest = _manifest(folder)
    known = ", ".join(manifest) or "none, no manifest.json there"
    require(name in manifest, f"unknown checkpoint {name!r} in {folder}; known: {known}")
    return manifest[name]


@checked
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
        RuntimeError: the file's SHA-256 differs (both are told), it holds NaN or infinity, or the
            manifest is damaged; the message names the file.
    """
    entry = about(name, folder)
    path = Path(folder) / entry["file"]
    try:
        verify(path, entry["sha256"])
        weights = load_file(path)
    except SafetensorError as error:
        raise RuntimeError(f"{path} is damaged: {error}") from error
    except FileNotFoundError:
        if about(name, folder) == entry:
            raise
        return load(name, folder, device=device)  # it was saved anew in between
    try:
        expected = _state(entry["architecture"], entry["options"])
    except ValueError as error:
        raise RuntimeError(f"{Path(folder) / MANIFEST} is damaged: {name}: {error}") from error
    check_fits(expected, weights, path, entry["architecture"])
    model = build(entry["architecture"], **entry["options"])
    model.load_state_dict(weights)  # copies, and so widens float16 to the model's float32
    return model.eval().requires_grad_(False).to(device)


@checked
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
    Several processes may save into a folder.

    Args:
        name: of the checkpoint, letters, digits and ``_-.``; the file's name begins with it.
        model: whose ``state_dict`` is stored.
        architecture: the model's key in ``models.MODELS``.
        options: what ``models.build`` needs besides, such as ``{"latent": 64}``.
        about: anything a reader should know, as JSON: training settings, measurements.
        folder: where to write; made if it is missing.
        dtype: of the stored floats. Half precision halves the file: measure after reloading.

    Raises:
        ValueError: a name or an option that cannot be used, a model of another architecture, or a
            weight that is no finite number in ``dtype`` (half precision ends at 65,504); the entry
            is named. Nothing is written then.
    """
    folder = Path(folder)
    check_place(name, folder)
    require(dtype.is_floating_point, f"dtype: expected a floating-point dtype, got {dtype!r}")
    options = {k: check_count(v, f"options[{k!r}]", minimum=0) for k, v in (options or {}).items()}
    expected, found, weights = _state(architecture, options), model.state_dict(), {}
    wanted = f"model: expected {architecture} with options {options}"
    _check_alike(expected, found, wanted, "what came", architecture)
    for key, value in found.items():
        plain = value.layout == torch.strided and not value.is_meta
        require(plain, f"model: {key} holds no numbers that can be stored")
        kind = dtype if value.is_floating_point() else value.dtype
        weights[key] = value.to("cpu", kind, copy=True).contiguous()
        finite = bool(weights[key].to(expected[key].dtype).isfinite().all())
        odd = f"model: {key} holds what is no finite number in {dtype}, or once it is loaded"
        require(finite, f"{odd}; its largest is {value.abs().max().item():g}")
    content = to_bytes(weights)
    sha256 = hashlib.sha256(content).hexdigest()
    # The file is named by its content, so the manifest's rename is the moment of change.
    path = folder / weights_file(name, sha256)
    entry = {"file": path.name, "sha256": sha256, "architecture": architecture, "options": options}
    entry = (about or {}) | entry
    as_json(entry, "about")
    sweep(folder)
    with locked(folder / MANIFEST):
        manifest = _manifest(folder) | {name: entry}
        write_aside(path, content)
        write_json(folder / MANIFEST, dict(sorted(manifest.items())))
        sweep_weights(folder, name, [row["file"] for row in manifest.values()])
    return path


def check_place(name: str, folder: Path) -> None:
    """Raise an error that says why unless weights of a name can be saved in a folder."""
    require(check_name(name) != "sha256", "name: 'sha256' is what a manifest ends with")
    weights_file(name, "")
    check_writable(folder, "folder")
    _manifest(folder)


def check_fits(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, what: str
) -> None:
    """Raise unless both hold the same entries, and those found finite numbers of the same kind.

    Raises:
        ValueError: they differ; the first entry that does is named.
        RuntimeError: one holds NaN or infinity.
    """
    require_whole(isinstance(found, Mapping), f"{path} is damaged: it holds no weights by name")
    _check_alike(expected, found, f"{path} does not fit {what}", "the file", "the model")
    for key, value in found.items():
        finite = bool(value.to(expected[key].dtype).isfinite().all())
        require_whole(finite, f"{path} is damaged: {key} holds NaN or infinity")


def _check_alike(ours: Mapping, theirs: Mapping, what: str, *sides: str) -> None:
    def told(value: object) -> str:
        if not isinstance(value, Tensor):
            return "nothing" if value is None else "no tensor"
        # Floats of any width fit, and so do integers: they are converted.
        float_, bool_ = value.is_floating_point(), value.dtype == torch.bool
        other = " of complex numbers" if value.is_complex() else " of integers"
        return f"{list(value.shape)}{'' if float_ else ' of bool' if bool_ else other}"

    for key in sorted(ours.keys() | theirs.keys()):
        here, there = told(theirs.get(key)), told(ours.get(key))
        require(here == there, f"{what}: {key} is {here} in {sides[0]}, {there} in {sides[1]}")


def _state(architecture: str, options: Mapping[str, int]) -> dict[str, Tensor]:
    """The entries of an architecture, without numbers; ``ValueError`` for what cannot be built."""
    known = ", ".join(MODELS)
    require(architecture in MODELS, f"unknown architecture {architecture!r}; known: {known}")
    if "pretrained" in inspect.signature(MODELS[architecture]).parameters:
        options = {**options, "pretrained": 0}  # nothing needs to be downloaded for it
    try:
        with torch.device("meta"):
            return build(architecture, **options).state_dict()
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"options: {options}: {str(error).splitlines()[0]}") from error


def _manifest(folder: str | Path) -> dict[str, Any]:
    """What a folder holds, by name: it may come from elsewhere, so every entry is looked at."""
    path = Path(folder) / MANIFEST
    manifest = read_json(path) if path.exists() else {}
    require_whole(isinstance(manifest, dict), f"{path} is damaged: expected entries by name")
    for name, entry in manifest.items():
        try:
            for key, kind in _ENTRY.items():
                check_type(check_type(entry, dict, "entry").get(key), kind, key)
            ok = check_name(name) and re.fullmatch("[0-9a-f]{64}", entry["sha256"])
            ok = ok and inside(path.parent, entry["file"]).suffix == ".safetensors"
        except ValueError:
            ok = False
        require_whole(
            bool(ok),
            f"{path} is damaged: {name}: expected a file beside it, its SHA-256, an architecture "
            "and whole numbers as options",
        )
    return manifest
