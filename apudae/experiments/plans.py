"""A DAE and settings for photographs, chosen before a test image is seen: what is tried, and how.

A :class:`Plan` says what is tried on a data set; it makes the :class:`.choose.Choice` that tries
it, and the defenses at the settings that were chosen.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from torch import nn

from ..core.files import model_fingerprint
from ..core.record import Record, Row
from ..data import Split
from ..purification import (
    JPEG,
    Adaptive,
    BitDepth,
    Calibration,
    Defended,
    Direct,
    Median,
    ResizePad,
    calibrate,
)
from . import defenses, recipes
from .choose import Choice, Options, Trial, best, gains, score
from .defenses import Defense
from .place import Place
from .recipes import Recipe

# What a network that is only tried is called in a row, and how it is used.
TRIED = {"tried, direct": "direct", "tried, adaptive": "simple"}


DEFAULT = "adaptive, default"  # the authors' variant at the authors' steps


# Published defenses that need no network of their own, and the options that are tried.
TRANSFORMS: dict[str, tuple[type[nn.Module], tuple[Options, ...]]] = {
    "bit depth": (BitDepth, tuple({"bits": bits} for bits in (2, 3, 4, 5))),
    "median": (Median, ({"size": 2}, {"size": 3})),
    "jpeg": (JPEG, tuple({"quality": quality} for quality in (10, 25, 50, 75))),
    "resize and pad": (
        ResizePad,
        tuple({"smallest": scale} for scale in (0.7, 0.8, 0.9)),
    ),
}


@dataclass(frozen=True)
class Plan:
    """A DAE and settings, chosen before a test image is seen; each step is stored when it is done.

    1. Denoising autoencoders of several noise levels are trained briefly at the least depth, and of
       several depths at the best level; a deeper one costs more at every image for ever, so it is
       taken only if its interval of the difference lies above zero.
    2. The best of them is trained longer.
    3. Every variant of adaptive purification gets its steps, and the published defenses that need
       no network of their own get their settings.

    The score is always the number of validation images read rightly, without an attack and under
    PGD on the classifier alone, added up over all ε.

    Attributes:
        dae: name of the weights of the DAE that is kept.
        recipe: of a DAE, from its noise level, depth and epochs.
        train: loads images for it from a place.
        validation: loads images and labels from a place; μ and σ are measured on all.
        sigmas: noise levels.
        depths: layers.
        brief: epochs of a DAE that is tried.
        long: and of the one that is kept.
        variants: options that are tried of each variant of :data:`apudae.purification.PRESETS`.
        published: how many of :data:`TRANSFORMS` are kept.
    """

    dae: str
    recipe: Callable[[float, int, int], Recipe]
    train: Callable[[Place], Split]
    validation: Callable[[Place], Split]
    sigmas: tuple[float, ...]
    depths: tuple[int, ...]
    brief: int
    long: int
    variants: Mapping[str, tuple[Options, ...]]
    published: int
    classifier: Callable[[Place], nn.Module]

    def trials(self, record: Record, images: Split, place: Place) -> Iterator[Trial]:
        """What is tried, one after the other."""
        net, train = self.classifier(place), cache(partial(self.train, place))

        def purified(dae: nn.Module, level: tuple, use: str, **options: Any) -> nn.Module:
            direct = use == "direct"
            purifier = Direct(dae) if direct else Adaptive.preset(use, dae, level, **options)
            return Defended(net, purifier)

        def networks(sigma: float, depth: int) -> Iterator[Trial]:
            file, recipe = f"{self.dae}-{depth}-{sigma:g}", self.recipe(sigma, depth, self.brief)
            for name, use in TRIED.items():

                def make(use: str = use) -> nn.Module:
                    dae = recipes.tried(file, recipe, train, place)
                    return purified(dae, (0.0, 1.0, 0), use)

                yield Trial(name, {"depth": depth, "sigma": sigma}, make)

        def of(**options: Any) -> list[Row]:
            return [r for r in record.rows if r["defense"] in TRIED and r["options"] == options]

        depth = self.depths[0]
        for sigma in self.sigmas:
            yield from networks(sigma, depth)
        sigma = max(self.sigmas, key=lambda s: sum(map(score, of(depth=depth, sigma=s))))
        for deeper in self.depths[1:]:
            yield from networks(sigma, deeper)
            if gains(of(depth=depth, sigma=sigma), of(depth=deeper, sigma=sigma)):
                depth = deeper
        kept = {self.dae: self.recipe(sigma, depth, self.long)}
        recipes.train_missing(kept, train, place)
        self.check(record.about | record.more, place)
        dae = place.model(self.dae)
        level = calibrate(dae, self.validation(place).images, batch_size=50)
        record.save(dae_sha256=place.sha256(self.dae), calibration=list(level))
        yield Trial("no defense", {}, lambda: net)
        yield Trial("direct", {}, partial(purified, dae, level, "direct"))
        for name, several in self.variants.items():
            for options in several:
                yield Trial(
                    adaptively(name), options, partial(purified, dae, level, name, **options)
                )
        for name, (_, several) in TRANSFORMS.items():
            for options in several:
                yield Trial(name, options, partial(transformed, net, name, options, place))
        at_best = {row["defense"]: score(best(record.rows, row["defense"])) for row in record.rows}
        variant = max(self.variants, key=lambda name: at_best[adaptively(name)])
        published = sorted(TRANSFORMS, key=at_best.get, reverse=True)[: self.published]
        chosen = {"sigma": sigma, "depth": depth, "variant": variant, "published": published}
        record.save(chosen=chosen)

    def check(self, record: Row, place: Place, classifier: nn.Module | None = None) -> None:
        """Raise ``ValueError`` if a choice was made for another DAE, or another classifier."""
        here = {"DAE": place.sha256(self.dae)}
        if classifier is not None:
            here["classifier"] = model_fingerprint(classifier)
        for what, sha256 in here.items():
            if record.get(f"{what.lower()}_sha256", sha256) != sha256:
                raise ValueError(
                    f"the settings for {self.dae} were chosen with another {what} than is here; "
                    "move the record, or take the weights that belong to it"
                )

    def choice(self, record: str, n: int, about_data: Row, **more: Any) -> Choice:
        """The choice that this plan is for, on the first ``n`` validation images."""
        return Choice(
            record=record,
            trials=self.trials,
            images=lambda place: self.validation(place).take(n),
            classifier=self.classifier,
            steps=20,
            about=lambda place: {
                "what": "which validation images are read correctly without an attack and under "
                "PGD on the classifier alone, by purification and published defenses at several "
                "settings",
                "data": about_data,
                "classifier_sha256": model_fingerprint(self.classifier(place)),
                "epochs": {"tried": self.brief, "kept": self.long},
            },
            **more,
        )

    def defenses(
        self, choice: Choice, classifier: Callable[[Place], nn.Module], weights: tuple[str, ...]
    ) -> dict[str, Defense]:
        """Every use and every published defense, at the settings that were chosen.

        Args:
            choice: whose record holds them.
            classifier: from a place, the classifier; settings hold for another one, too.
            weights: that it needs.
        """

        def settings(place: Place, name: str) -> tuple[Options, Calibration]:
            record, net = place.record(choice.record), classifier(place)
            self.check(record, place, net if classifier is self.classifier else None)
            options = {} if name == DEFAULT else best(record["rows"], name)["options"]
            return options, Calibration(*record["calibration"])

        def used(name: str, preset: str, place: Place, **changes: Any) -> nn.Module:
            options, level = settings(place, name)
            dae = place.model(self.dae)
            if name == "direct":
                return Defended(classifier(place), Direct(dae, **changes))
            preset = Adaptive.preset(preset, dae, level, **options | changes)
            return Defended(classifier(place), preset)

        def made(name: str, place: Place, **changes: Any) -> nn.Module:
            options, _ = settings(place, name)
            return transformed(classifier(place), name, options | changes, place)

        uses = {"direct": "", **{adaptively(k): k for k in self.variants}, DEFAULT: "probabilistic"}
        needed = (*weights, self.dae)
        return {
            "no defense": Defense(classifier, weights),
            **{k: Defense(partial(used, k, v), needed) for k, v in uses.items()},
            **{
                k: replace(defenses.PUBLISHED[k], make=partial(made, k), weights=needed, options={})
                for k in TRANSFORMS
            },
        }


def adaptively(variant: str) -> str:
    """What a table calls a variant of adaptive purification."""
    return f"adaptive, {variant}"


def transformed(classifier: nn.Module, name: str, options: Options, place: Place) -> nn.Module:
    """A classifier behind one of :data:`TRANSFORMS`."""
    return Defended(classifier, TRANSFORMS[name][0](**options).to(place.device)).eval()


def kept(chosen: Row) -> tuple[set[str], str]:
    """Published defenses that a choice leaves out, and the variant it prefers."""
    return set(TRANSFORMS) - set(chosen["published"]), adaptively(chosen["variant"])


def take_along(choice: Choice, plan: Plan, place: Place) -> None:
    """Put the shipped choice into a place, if the DAE there is the one it was made for."""
    shipped = Place().record(choice.record)
    if place.record(choice.record) or not shipped or not place.has(plan.dae):
        return
    if place.sha256(plan.dae) == shipped["dae_sha256"]:
        place.results.mkdir(parents=True, exist_ok=True)
        shutil.copy(Place().results / f"{choice.record}.json", place.results)
