"""ImageNet: a classifier from the shelf stays as it is, and a DAE is put before it.

``python -m apudae.experiments imagenet --folder PHOTOGRAPHS`` divides the folder by the SHA-256 of
its files (so that it does not matter how they are called): 260 to train denoising autoencoders on
crops of them, 40 to choose on, the rest to evaluate. The choice is record ``imagenet_selection``,
the comparison record ``imagenet``. With the weights that are shipped nothing is trained or chosen,
and the folder may be as small as you like; images that were trained or chosen on are left out.

The classifier has probably seen such images in its own training, so what counts is accuracy
*relative to the clean one on the same images*.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from . import attacks, authors, data, models, records, selection, training, versus
from .data import Split
from .image_files import Listing, list_imagenet, load_folder, read_image
from .lineup import CW, SEARCHES, Lineup, Profile
from .plan import Budget
from .recipes import Recipe
from .selection import DEFAULT, Plan, Selection

CLASSIFIERS = ("efficientnet-lite0", "resnet50")
FOLDER = "imagenet_sample"  # below the root of the data
TITLE = "ImageNet (500 training images, probably)"
EPSILONS = (4 / 255, 8 / 255)
TRAINED_ON, CHOSEN_ON = 260, 40
SIZE, CROP = 224, 64  # of the images, and of the squares that a DAE is trained on


def _dae(sigma: float, depth: int, epochs: int) -> Recipe:
    """A REDNet for one noise level, half as wide as CIFAR-10's: it has fifty times the pixels."""
    options = {"batch_size": 32, "lr": 1e-3, "augment": True, "epochs": epochs, "seed": 0}
    net = {"depth": depth, "width": 32}
    return Recipe("rednet", lambda _: training.denoising(sigma), options, net)


PLAN = Plan(
    record="imagenet_selection",
    dae="imagenet-dae",
    recipe=_dae,
    sigmas=(0.05, 0.1, 0.2, 0.3),
    depths=(10,),
    brief=4,
    long=24,
    epsilons=(EPSILONS[0],),
    variants={
        "simple": ({}, {"step_size": 4 / 255}),
        "probabilistic": ({}, {"step_size": 4 / 255}),
        "l2": ({"step_size": 0.5}, {"step_size": 2.0}),
        "sign": ({}, {"step_size": 0.5 / 255}),
    },
    images=40,
    published=1,
)
WEAK = {
    "noise": attacks.noise,
    "FGSM": attacks.fgsm,
    "R-FGSM": partial(attacks.rfgsm, alpha=authors.ALPHA),
    "BIM": partial(attacks.bim, steps=authors.STEPS),
    "PGD": partial(attacks.pgd, steps=20),
}
_SMALL = Budget(pgd=20, apgd=20, targets=1, queries=100, draws=1, weights=(0.1,), scoring=5)
PROFILES = {
    "quick": Profile(
        data="quick",
        weak=2,
        cw=1,
        strong=1,
        epsilons=(EPSILONS[0],),
        budget=Budget(pgd=2, apgd=2, targets=1, queries=2, draws=1, weights=(0.1,), scoring=2),
        fewer={f"adaptive, {name}": (2, 0) for name in PLAN.variants} | {DEFAULT: (2, 0)},
    ),
    "full": Profile(
        data="full",
        weak=100,
        cw=4,
        strong=100,
        epsilons=EPSILONS,
        budget=_SMALL,
        fewer={f"adaptive, {name}": (10, 0) for name in PLAN.variants}
        | {DEFAULT: (10, 0), "jpeg": (100, 40)},
    ),
}

CHOSEN = {"quick": (2, 1), "full": (100, 100)}  # images of the chosen variant


def keys(listing: Listing) -> list[str]:
    """The first 16 digits of each file's SHA-256."""
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in listing.files]


def divide(listing: Listing) -> dict[str, Listing]:
    """Train, validation and test images of a folder, in the order of their hashes.

    Raises:
        ValueError: there are too few.
    """
    least = TRAINED_ON + CHOSEN_ON + 1
    if len(listing.files) < least:
        raise ValueError(
            f"folder: expected at least {least} images to train, choose and evaluate on, got "
            f"{len(listing.files)}"
        )
    order = sorted(zip(keys(listing), *listing, strict=True))
    ends = {
        "train": (0, TRAINED_ON),
        "validation": (TRAINED_ON, least - 1),
        "test": (least - 1, None),
    }
    return {
        split: Listing([path for _, path, _ in part], [label for *_, label in part])
        for split, (start, stop) in ends.items()
        for part in [order[start:stop]]
    }


def unseen(listing: Listing, results: Path = records.RESULTS) -> Listing:
    """The images that nothing was trained or chosen on, in the order of their hashes.

    Raises:
        ValueError: none is left.
    """
    seen = set()
    if PLAN.record in records.names(results):
        seen = set(records.load(PLAN.record, results)["data"]["seen_sha256"])
    kept = sorted(p for p in zip(keys(listing), *listing, strict=True) if p[0] not in seen)
    if not kept:
        raise ValueError("folder: every image in it was used to train or to choose")
    return _listed(kept)


def _listed(order: list[tuple[str, Path, int]]) -> Listing:
    return Listing([path for _, path, _ in order], [label for *_, label in order])


def crops(listing: Listing) -> Tensor:
    """Squares of 64 pixels that tile the middle of each image, uint8 ``[16 N, 3, 64, 64]``."""
    cut = []
    for path in listing.files:
        image = read_image(path, SIZE)
        top, left = ((length - 4 * CROP) // 2 for length in image.shape[1:])
        middle = image[:, top : top + 4 * CROP, left : left + 4 * CROP]
        tiles = middle.unfold(1, CROP, CROP).unfold(2, CROP, CROP)  # [3, 4, 4, 64, 64]
        cut.append(tiles.flatten(1, 2).transpose(0, 1))
    return torch.cat(cut).contiguous()


@lru_cache(maxsize=2)
def classifier(name: str = CLASSIFIERS[0], device: torch.device | str = "cpu") -> nn.Module:
    """A pretrained classifier, frozen, in evaluation mode."""
    return models.build(name).to(device).eval().requires_grad_(False)


def lineup(
    folder: Path | None = None,
    name: str = CLASSIFIERS[0],
    results: Path = records.RESULTS,
) -> Lineup:
    """What is compared around a classifier of :data:`CLASSIFIERS`.

    Args:
        folder: of photographs; by default ``imagenet_sample`` below the root of the data.
        name: of the classifier.
        results: folder of the records.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"classifier: expected {' or '.join(CLASSIFIERS)}, got {name!r}")

    def build(weights: Path, device: torch.device | str = "cpu") -> dict[str, nn.Module]:
        made = {"results": results, "same": name == CLASSIFIERS[0]}
        return selection.defenses(PLAN, classifier(name, device), weights, device, **made)

    def load(profile: str, root: Path | None = None) -> Split:
        if profile == "quick":
            return data.load("photographs")
        listing = list_imagenet(folder or _default(root))
        kept = unseen(listing, results)
        few = Listing(*(part[: PROFILES["full"].weak] for part in kept))
        return Split(*load_folder(few, SIZE))

    more = "" if name == CLASSIFIERS[0] else f"_{name}"
    return Lineup(
        what="images",
        load=load,
        build=build,
        needs=(PLAN.dae,),
        trained_by="imagenet",
        defenses=PLAN.kept(results),
        weak=WEAK,
        epsilons=EPSILONS,
        gradients={"FGSM": 1, "R-FGSM": 1, "BIM": 7, "PGD": 20},
        told={"BIM": "7 steps", "PGD": "20 steps", CW: SEARCHES, "seed": 0},
        about_data={"name": TITLE, "classifier": name, "size": SIZE},
        profiles=selection.with_chosen(PROFILES, PLAN, results, CHOSEN),
        records={"quick": f"imagenet_quick{more}", "full": f"imagenet{more}"},
        batch=8,
    )


def _default(root: Path | None) -> Path:
    given = root or os.environ.get("APUDAE_DATA")
    if not given:
        raise FileNotFoundError(
            "ImageNet: name a folder of photographs with --folder, one folder for each class"
        )
    return Path(given).expanduser() / FOLDER


def run(
    folder: Path | None,
    root: Path | None,
    weights: Path,
    results: Path,
    work: Path,
    profile: str,
    only: list[str] | None = None,
    name: str = CLASSIFIERS[0],
) -> None:
    """Train and choose what is missing, and fill the record of a profile.

    With the shipped weights goes the shipped choice, so that any folder can be evaluated, however
    small. The quick profile takes both as they are, and two photographs.
    """
    selection.take_along(PLAN, weights, results)
    if profile != "quick" and not selection.chosen_of(PLAN, results):
        prepare(folder or _default(root), weights, results, work)
    where = {"root": root, "weights": weights, "results": results, "work": work}
    versus.compare(lineup(folder, name, results), profile, only, **where)


def prepare(folder: Path, weights: Path, results: Path, work: Path) -> None:
    """Train the DAEs and choose, for the classifier that needs no download."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = divide(list_imagenet(folder))
    seen = [key for split in ("train", "validation") for key in keys(parts[split])]
    tiles = crops(parts["train"]).to(device)
    train = Split(tiles, torch.zeros(len(tiles), dtype=torch.int64, device=device))
    held_out = Split(*(part.to(device) for part in load_folder(parts["validation"], SIZE)))
    where = {"weights": weights, "results": results, "work": work}
    about = {"name": TITLE, "seen_sha256": seen}
    Selection(PLAN, classifier(device=device), train, held_out, about_data=about, **where).run()
