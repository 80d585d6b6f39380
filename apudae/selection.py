"""A DAE and settings for photographs, chosen on validation images, before a test image is seen.

The same steps for CIFAR-10 and ImageNet, each stored as soon as it is done:

1. denoising autoencoders (REDNet, Mao et al. 2016) of several noise levels are trained briefly at
   the least depth, and of several depths at the best level; a deeper one costs more at every image
   for ever, so it is taken only if its interval of the difference lies above zero;
2. the best of them is trained longer;
3. every variant of adaptive purification gets its steps, and the published defenses that need no
   network of their own get their settings.

The score is always the number of validation images read rightly, without an attack and under PGD on
the classifier alone, added up over all ε. A :class:`Plan` says what is tried.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import attacks, checkpoints, data, recipes, records
from .data import Split
from .evaluation import model_fingerprint
from .lineup import Profile
from .purification import Adaptive, Calibration, Defended, Direct, calibrate
from .recipes import Recipe
from .scores import paired_difference
from .transforms import JPEG, BitDepth, Median, ResizePad
from .tuning import Settings, choose

DEFAULT = "adaptive, default"  # the authors' variant at the authors' steps
PGD_STEPS = 20

Options = tuple[dict[str, Any], ...]
# Published defenses that need no network of their own.
TRANSFORMS: dict[str, tuple[type[nn.Module], Options]] = {
    "bit depth": (BitDepth, tuple({"bits": bits} for bits in (2, 3, 4, 5))),
    "median": (Median, ({"size": 2}, {"size": 3})),
    "jpeg": (JPEG, tuple({"quality": quality} for quality in (10, 25, 50, 75))),
    "resize and pad": (ResizePad, tuple({"smallest": scale} for scale in (0.7, 0.8, 0.9))),
}


@dataclass(frozen=True)
class Plan:
    """What is tried on a data set.

    Attributes:
        record: name of the record.
        dae: name of the weights of the DAE that is kept.
        recipe: of a DAE, from its noise level, depth and epochs.
        sigmas: noise levels.
        depths: layers.
        brief: epochs of a DAE that is tried.
        long: and of the one that is kept.
        epsilons: of PGD on the classifier; without an attack is tried, too.
        variants: options that are tried of each variant of :data:`apudae.variants.PRESETS`.
        images: how many validation images all this is tried on; the first ones.
        published: how many of :data:`TRANSFORMS` are kept.
    """

    record: str
    dae: str
    recipe: Callable[[float, int, int], Recipe]
    sigmas: tuple[float, ...]
    depths: tuple[int, ...]
    brief: int
    long: int
    epsilons: tuple[float, ...]
    variants: dict[str, Options]
    images: int
    published: int = 3

    @property
    def ours(self) -> tuple[str, ...]:
        """Names of the purifications that are tried."""
        return ("direct", *(f"adaptive, {name}" for name in self.variants))

    def kept(self, results: Path = records.RESULTS) -> tuple[str, ...]:
        """Names of all defenses: of the published ones those that were chosen, once they are."""
        chosen = chosen_of(self, results)
        published = chosen["published"] if chosen else TRANSFORMS
        return ("no defense", *self.ours, DEFAULT, *(n for n in TRANSFORMS if n in published))


def chosen_of(plan: Plan, results: Path = records.RESULTS) -> dict[str, Any]:
    """What a record has chosen; empty as long as it has not."""
    if plan.record not in records.names(results):
        return {}
    return records.load(plan.record, results).get("chosen", {})


def take_along(plan: Plan, weights: Path, results: Path) -> None:
    """Put the shipped choice into a folder of records, if the weights are those it was made for."""
    ours = records.RESULTS
    if plan.record in records.names(results) or plan.record not in records.names(ours):
        return
    shipped = records.load(plan.record, ours).get("dae_sha256")
    there = plan.dae in checkpoints.names(weights)
    if there and checkpoints.about(plan.dae, weights)["sha256"] == shipped:
        results.mkdir(parents=True, exist_ok=True)
        shutil.copy(ours / f"{plan.record}.json", results)


def with_chosen(
    profiles: dict[str, Profile], plan: Plan, results: Path, sizes: dict[str, tuple[int, int]]
) -> dict[str, Profile]:
    """Profiles in which the variant that was chosen gets images of its own, protocol included.

    Args:
        profiles: by name.
        plan: whose choice it is; before it is made nothing changes.
        results: folder of its record.
        sizes: per profile, how many images the variant gets under weak attacks and the protocol.
    """
    chosen = chosen_of(plan, results)
    if not chosen:
        return profiles
    name = f"adaptive, {chosen['variant']}"
    return {
        k: replace(p, fewer=p.fewer | {name: sizes[k]}) if k in sizes else p
        for k, p in profiles.items()
    }


def purifier(
    name: str, options: dict[str, Any], dae: nn.Module, level: Calibration | tuple
) -> nn.Module:
    """``"direct"``, ``"adaptive, VARIANT"`` with options, or :data:`DEFAULT`."""
    if name == "direct":
        return Direct(dae)
    preset = "probabilistic" if name == DEFAULT else name.removeprefix("adaptive, ")
    return Adaptive.preset(preset, dae, level, **options)


def transformed(
    classifier: nn.Module, name: str, options: dict[str, Any], device: torch.device | str
) -> nn.Module:
    """The classifier behind one of :data:`TRANSFORMS`."""
    return Defended(classifier, TRANSFORMS[name][0](**options).to(device)).eval()


def _called(depth: int, sigma: float, use: str) -> str:
    """Of a DAE that is tried, in a use."""
    return f"depth {depth}, σ = {sigma:g}: {use}"


def score(rows: list[dict[str, Any]], name: str) -> int:
    """Of a defense at its best settings."""
    return max(sum(row["correct"]) for row in rows if row["defense"] == name)


def defenses(
    plan: Plan,
    classifier: nn.Module,
    weights: Path,
    device: torch.device | str = "cpu",
    results: Path = records.RESULTS,
    *,
    same: bool = True,
) -> dict[str, nn.Module]:
    """The classifier and all defenses that were chosen around it, by name.

    Args:
        plan: what was chosen.
        classifier: to be defended.
        weights: folder of the DAE.
        device: where all of them are to be.
        results: folder of the plan's record.
        same: insist that the choice was made around this very classifier.

    Raises:
        ValueError: the settings were chosen for another DAE or classifier than the one that is
            there.
    """
    found: dict[str, nn.Module] = {"no defense": classifier}
    chosen = chosen_of(plan, results)
    if not chosen or plan.dae not in checkpoints.names(weights):
        return found
    record, dae = records.load(plan.record, results), checkpoints.load(plan.dae, weights)
    _check_same(plan, record, weights, classifier if same else None)
    level, dae = Calibration(*record["calibration"]), dae.to(device)
    for name in (*plan.ours, DEFAULT):
        options = {} if name == DEFAULT else choose(record["rows"], name)
        found[name] = Defended(classifier, purifier(name, options, dae, level))
    for name in chosen["published"]:
        found[name] = transformed(classifier, name, choose(record["rows"], name), device)
    return {name: found[name] for name in plan.kept(results)}


def _check_same(
    plan: Plan, record: dict[str, Any], weights: Path, classifier: nn.Module | None
) -> None:
    there = {"DAE": checkpoints.about(plan.dae, weights)["sha256"]}
    if classifier is not None:
        there["classifier"] = model_fingerprint(classifier)
    for what, found in there.items():
        if record[f"{what.lower()}_sha256"] != found:
            raise ValueError(
                f"{plan.record}.json was made with another {what} than is here; move the record, "
                "or take the weights that belong to it"
            )


class Selection:
    """The record of a plan that is being filled.

    Args:
        plan: what is tried.
        classifier: to be defended, images -> logits.
        train: images for the DAEs, uint8 or float32.
        validation: images and labels to choose on; the plan's first ones, μ and σ are measured on
            all.
        about_data: what the record says of them.
        weights: folder of the networks.
        results: folder of the records.
        work: folder where trainings wait, and the networks that are only tried.

    Raises:
        ValueError: the record was made with other images or another classifier.
    """

    def __init__(
        self,
        plan: Plan,
        classifier: nn.Module,
        train: Split,
        validation: Split,
        *,
        about_data: dict[str, Any],
        weights: Path,
        results: Path,
        work: Path,
    ) -> None:
        self.plan, self.classifier = plan, classifier
        self.train, self.validation = train, validation
        self.weights, self.work = weights, work
        self.device = train.images.device
        x, self.y = validation.take(plan.images)
        about = {
            "what": "which validation images are read correctly without an attack and under PGD on "
            "the classifier alone, by purification and published defenses at several settings",
            "attack": {"name": "pgd", "steps": PGD_STEPS, "seed": 0},
            "data": about_data
            | {"split": "validation", "n": len(x), "sha256": data.fingerprint(x)},
            "classifier_sha256": model_fingerprint(classifier),
            "eps": [0.0, *plan.epsilons],
            "epochs": {"tried": plan.brief, "kept": plan.long},
            "outcomes": "per eps, in the order of the split: records.unpack(text, n)",
        }
        self.table = Settings(plan.record, about, results, self.device)
        hit = [
            attacks.pgd(classifier, x, self.y, eps=eps, steps=PGD_STEPS) for eps in plan.epsilons
        ]
        self.attacked = [x, *hit]

    def run(self) -> None:
        """Try what has not been tried, and choose."""
        plan, table = self.plan, self.table
        if "chosen" in table.more:
            record = table.more | table.about
            _check_same(plan, record, self.weights, self.classifier)
            return
        sigma = max(plan.sigmas, key=lambda level: self._tried(level, plan.depths[0]))
        depth = plan.depths[0]
        for deeper in plan.depths[1:]:
            depth = deeper if self._gains(sigma, depth, deeper) else depth
        dae = self._network(plan.dae, plan.recipe(sigma, depth, plan.long), self.weights)
        sha256 = checkpoints.about(plan.dae, self.weights)["sha256"]
        if table.more.get("dae_sha256", sha256) != sha256:
            _check_same(plan, table.more | table.about, self.weights, self.classifier)
        level = calibrate(dae, self.validation.images, batch_size=50)
        table.save(dae_sha256=sha256, calibration=list(level))
        self._turn(dae, level)
        published = sorted(TRANSFORMS, key=lambda name: score(table.rows, name), reverse=True)
        variant = max(plan.variants, key=lambda name: score(table.rows, f"adaptive, {name}"))
        kept = published[: plan.published]
        table.save(chosen={"sigma": sigma, "depth": depth, "variant": variant, "published": kept})

    def _network(self, name: str, recipe: Recipe, folder: Path) -> nn.Module:
        """The network of a name, trained if it is not in the folder."""
        if name in checkpoints.names(folder):
            return checkpoints.load(name, folder, device=self.device)
        fit = partial(recipes.train, name, recipe, self.train, folder)
        return recipes.resumably(name, self.work, fit)

    def _tried(self, sigma: float, depth: int) -> int:
        """The score of a noise level and a depth: direct, and adaptive at the authors' steps."""
        recipe = self.plan.recipe(sigma, depth, self.plan.brief)

        def behind(use: str) -> nn.Module:
            name = f"{self.plan.dae}-{depth}-{sigma:g}"
            dae = self._network(name, recipe, self.work)
            return Defended(self.classifier, purifier(use, {}, dae, (0.0, 1.0, 0)))

        return sum(
            sum(self._measure(_called(depth, sigma, use), {}, partial(behind, use)))
            for use in ("direct", "adaptive, simple")
        )

    def _gains(self, sigma: float, depth: int, deeper: int) -> bool:
        """Whether more layers are worth it: per image the share of its trials read rightly."""
        shares = []
        for layers in (depth, deeper):
            self._tried(sigma, layers)
            trials = [
                records.unpack(text, row["n"])
                for row in self.table.rows
                if row["defense"].startswith(_called(layers, sigma, ""))
                for text in row["outcomes"]
            ]
            shares.append(torch.stack(trials).double().mean(0))
        return paired_difference(*shares).low > 0

    def _turn(self, dae: nn.Module, level: Calibration) -> None:
        """Every variant's steps, and the settings of the published defenses."""

        def behind(use: str, options: dict[str, Any]) -> nn.Module:
            return Defended(self.classifier, purifier(use, options, dae, level))

        self._measure("no defense", {}, lambda: self.classifier)
        self._measure("direct", {}, partial(behind, "direct", {}))
        for preset, several in self.plan.variants.items():
            for options in several:
                use = f"adaptive, {preset}"
                self._measure(use, options, partial(behind, use, options))
        for name, (_, several) in TRANSFORMS.items():
            for options in several:
                make = partial(transformed, self.classifier, name, options, self.device)
                self._measure(name, options, make)

    def _measure(
        self, name: str, options: dict[str, Any], make: Callable[[], nn.Module]
    ) -> list[int]:
        return self.table.measure(name, options, make, self.attacked, self.y)["correct"]
