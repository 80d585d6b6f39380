"""The APuDAE authors' own networks, from a clone of their public repository, beside their log.

The repository (arXiv 2208.13838) holds a REDNet-30, ``denoise_batch.pt``, and a ResNet-18 for
CIFAR-10, ``basic_training``. Neither is shipped, so this is for a reader who has cloned it::

    python -m apudae.experiments cifar10 --authors CLONE --results runs/results

Weights are read with ``weights_only``, which runs no code of a file. What does not fit is refused
by name. What came out is read as of any comparison: ``Results(study(CLONE), place)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data, models, purification
from ..attacks.as_published import LOGGED, LOGGED_N
from ..core.arguments import check_writable, odd, require
from ..core.files import model_fingerprint
from ..core.record import Record, Row
from ..plots import Table
from . import colours, plans
from .compare import CLEAN, Study
from .defenses import Defense
from .place import Place
from .results import Results

DAE, CLASSIFIER = "denoise_batch.pt", "basic_training"
MU, SIGMA = 2.8560, 0.9227  # theirs, of test images
SET_SIGMA = 0.5  # which their main script then takes for s
LEVEL = "cifar10_authors_level"  # record of μ and s as they are measured here
_ENDINGS = (".pt", ".pth", ".pth.tar", ".t7")


# Their networks. -------------------------------------------------------------------------------


class _Whole(nn.Module):
    """Stands in for their class where a network was stored as an object: a holder of layers."""


# Their script loads the DAE as an object. `weights_only` makes nothing but tensors, plain values
# and what stands here: torch's own layers, which hold them. It refuses all else.
_LAYERS = [
    *(nn.Sequential, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU, nn.DataParallel),
    *((_Whole, f"{module}.REDNet30") for module in ("reformer_model", "__main__")),
]


def rednet(folder: Path) -> nn.Module:
    """Their DAE, images -> images, frozen; its layers are told by their order.

    Args:
        folder: which holds ``denoise_batch.pt``, at any depth.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is there twice, cannot be read without running code, or does not fit: a
            tensor is missing, too many, of another shape, or not finite. It is named.
    """
    path = _one(folder, DAE, folder.rglob(DAE))
    net, found = models.build("rednet", norm=True), _read(path)
    half = len(net.down)
    layers = [(f"down.{k}.", f"norms.{k}.") for k in range(half)]
    layers += [(f"up.{k}.", f"norms.{half + k}.") for k in range(half)]
    ours = [key for part in chain(*layers) for key in net.state_dict() if key.startswith(part)]
    theirs = iter(found)
    names = {key: next(theirs, key) for key in ours}
    return _filled(net, names, found, path, "REDNet-30 without batch norm after its last layer")


def resnet(folder: Path) -> nn.Module:
    """Their classifier, images in [0, 1] -> logits ``[N, 10]``, frozen.

    Args:
        folder: which holds a file ``basic_training``, or one weights file in a folder of that name;
            tensors are called as in kuangliu's CIFAR-10 networks, or as in torchvision.

    Raises:
        FileNotFoundError, ValueError: as of :func:`rednet`.
    """
    from torchvision.models import resnet18

    places = list(folder.rglob(CLASSIFIER))
    inside = (path for place in places for path in place.rglob("*") if _is_weights(path))
    path = _one(folder, CLASSIFIER, chain(places, inside))
    found = _read(path)
    with torch.device("meta"):  # where no random weights are drawn
        net = resnet18(num_classes=10)
        net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)  # as for small images
    net.maxpool = nn.Identity()
    names = {}
    for key in net.state_dict():
        other = key.replace("downsample", "shortcut").replace("fc.", "linear.")
        names[key] = other if other in found else key
    return _filled(net, names, found, path, "ResNet-18")


def _is_weights(path: Path) -> bool:
    return path.name.endswith(_ENDINGS) and path.name != DAE


def _one(folder: Path, name: str, paths: Iterable[Path]) -> Path:
    found = sorted(path for path in paths if path.is_file())
    if not found:
        raise FileNotFoundError(f"{folder}: expected the authors' {name} in it, found none")
    require(len(found) == 1, f"{folder}: expected one {name}, got {', '.join(map(str, found))}")
    return found[0]


def _read(path: Path) -> Mapping[str, Any]:
    """What a file holds by name: a state dict, also one nested or of a network as an object."""
    try:
        with torch.serialization.safe_globals(_LAYERS):
            found = torch.load(path, map_location="cpu", weights_only=True)
        found = found.state_dict() if isinstance(found, nn.Module) else found
    except Exception as error:  # torch raises many kinds, with advice not to be followed
        code = re.search(r"GLOBAL (\S+)", str(error))
        got = f"an object of {code[1]}, which may run code" if code else "what it cannot read"
        raise ValueError(f"{path}: expected tensors by name for torch.load, got {got}") from error
    kind = type(found).__name__
    require(isinstance(found, Mapping), f"{path}: expected tensors by name, got a {kind}")
    inner = {k: v for k, v in found.items() if isinstance(v, Mapping) and _tensors(v)}
    require(
        len(inner) < 2, f"{path}: expected one set of weights, got {', '.join(map(str, inner))}"
    )
    found = next(iter(inner.values()), found)
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def _tensors(found: Mapping) -> bool:
    return any(isinstance(value, Tensor) for value in found.values())


def _filled(
    net: nn.Module, names: Mapping[str, str], found: Mapping[str, Any], path: Path, what: str
) -> nn.Module:
    """The network with tensors of a file, in evaluation mode; ``names`` are ours -> theirs."""
    state = net.state_dict()
    for ours, theirs in names.items():
        shape, value = list(state[ours].shape), found.get(theirs)
        got = "nothing" if value is None else odd(value) or list(value.shape)
        require(got == shape, f"{path}: {theirs}: expected {shape}, {ours} of a {what}, got {got}")
        finite = bool(value.isfinite().all())
        require(finite, f"{path}: {theirs}: expected finite numbers, got NaN or infinity")
    for more in [key for key in found if key not in names.values()]:
        got = odd(found[more]) or list(found[more].shape)
        raise ValueError(f"{path}: {more}: expected nothing more of a {what}, got {got}")
    net.to_empty(device="cpu").load_state_dict(
        {ours: found[theirs] for ours, theirs in names.items()}
    )
    return net.eval().requires_grad_(False)


# The comparison. -------------------------------------------------------------------------------


def level(dae: nn.Module, place: Place, name: str = colours.SETS[0]) -> purification.Calibration:
    """μ and s of their DAE as their code takes them, but on validation images; stored in a record.

    The error is that of R clipped to [0, 1], and one above 20 counts as 3. Theirs, 2.8560 and
    0.9227, are of test images. The validation images here are of CIFAR-10's training set, and their
    DAE has probably seen them.

    Args:
        dae: of :func:`rednet`.
        place: of the data and the record.
        name: of the data set.

    Raises:
        ValueError: the record is of another DAE or another set.
    """

    def measure() -> Row:
        x = place.load(name, "validation").take(LOGGED_N).images
        clipped = nn.Sequential(dae, nn.Hardtanh(0.0, 1.0))
        parts = [purification.reconstruction_error(clipped, z) for z in x.split(50)]
        d = torch.cat(parts).double()
        mu, sigma = (f(d.where(d <= 20, 3.0)).item() for f in (torch.mean, torch.std))
        theirs = f"theirs, of test images: {MU:.4f} and {SIGMA:.4f}"
        print(f"of {len(d)} validation images μ = {mu:.4f}, s = {sigma:.4f} ({theirs})", flush=True)
        return {"n": len(d), "mu": mu, "sigma": sigma, "above_20": int((d > 20).sum())}

    about = {
        "what": "reconstruction error of clean images by the APuDAE authors' DAE, clipped to [0, "
        "1]: mean and spread on validation images, which are of the training set; theirs are of "
        "test images",
        "data": {"name": data.TITLES[name]},
        "theirs": {"mu": MU, "sigma": SIGMA},
        "dae_sha256": model_fingerprint(dae),
    }
    record = Record(LEVEL, about, place.results, keys=("split",), device=place.device)
    row = record.measure(("validation",), measure)
    return purification.Calibration(row["mu"], row["sigma"], row["n"])


def study(folder: Path, name: str = colours.SETS[0]) -> Study:
    """What is compared on one of :data:`.colours.SETS`: their networks, their steps, both attacks.

    Nothing is chosen. *adaptive, default* is their default as their script runs it, with s = 0.5;
    the variants have the measured one.
    """
    whole = colours.cifar10(name)
    variants = [plans.DEFAULT, *map(plans.adaptively, purification.PRESETS)]
    strong = {"quick": 0, "full": 20}  # images under the protocol, whose gradient is slow

    @cache
    def networks(device: torch.device) -> tuple[nn.Module, nn.Module]:
        return resnet(folder).to(device), rednet(folder).to(device)

    def made(defense: str, place: Place) -> nn.Module:
        net, dae = networks(place.device)
        if defense == "no defense":
            return net
        found = level(dae, place, name)
        found = found._replace(sigma=SET_SIGMA) if defense == plans.DEFAULT else found
        return plans.defended(net, defense, dae, found)

    return replace(
        whole,
        name="cifar10_authors",
        images=lambda place, profile: place.load(name),  # the first ones of quick are of this set
        defenses={k: Defense(partial(made, k)) for k in ("no defense", "direct", *variants)},
        about_data=whole.about_data
        | {
            "networks": "the APuDAE authors'",
            "level": f"record {LEVEL}; in {plans.DEFAULT!r} s = {SET_SIGMA:g}, as in their script",
        },
        profiles={
            k: replace(profile, cw=0, fewer=dict.fromkeys(variants, (profile.weak, strong[k])))
            for k, profile in whole.profiles.items()
        },
        choice=None,
        kept=None,
        chosen={},
    )


def run(
    folder: Path, name: str, place: Place, profile: str = "full", only: list[str] | None = None
) -> None:
    """Compare, going on where it was stopped, and print what came out beside their log."""
    for part in ("results", "work"):
        check_writable(getattr(place, part), part)
    compared = study(folder, name)
    compared.run(place, profile, only)
    print(beside_the_log(Results(compared, place, profile)), flush=True)


def beside_the_log(found: Results) -> Table:
    """Accuracies under the attacks as their code makes them, below those that they logged."""
    columns = [name if name == CLEAN else f"authors' {name}" for name in LOGGED]
    here = found.weak(found.epsilons[0], columns)
    log = ["authors' log", LOGGED_N, *(f"{percent} %" for percent in LOGGED.values())]
    return Table(here.header, [log, *here.rows])
