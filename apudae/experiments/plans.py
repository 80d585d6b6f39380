"""A DAE and settings for photographs, chosen before a test image is seen: what is tried, and how.

A :class:`Plan` says what is tried on a data set; it makes the :class:`.choose.Choice` that tries
it, and the defenses at the settings that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from torch import nn

from .. import data, purification
from ..core.files import locked, model_fingerprint, write_aside
from ..core.record import Record, Row
from . import defenses, recipes
from .choose import Choice, Trial, best, gains, score
from .place import Options, Place

# What a network that is only tried is called in a row, and how it is used.
TRIED = {"tried, direct": "direct", "tried, adaptive": "adaptive, simple"}
DEFAULT = "adaptive, default"  # the authors' variant at the authors' steps

# Published defenses that need no network of their own, and the options that are tried.
TRANSFORMS: dict[str, tuple[type[nn.Module], tuple[Options, ...]]] = {
    "bit depth": (purification.BitDepth, tuple({"bits": bits} for bits in (2, 3, 4, 5))),
    "median": (purification.Median, ({"size": 2}, {"size": 3})),
    "jpeg": (purification.JPEG, tuple({"quality": quality} for quality in (10, 25, 50, 75))),
    "resize and pad": (
        purification.ResizePad,
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
        validation: loads images and labels from a place; μ and s are measured on all.
        sigmas: noise levels.
        depths: layers.
        brief: epochs of a DAE that is tried.
        long: and of the one that is kept.
        variants: options that are tried of each variant of :data:`apudae.purification.PRESETS`.
        published: how many of :data:`TRANSFORMS` are kept.
    """

    dae: str
    recipe: Callable[[float, int, int], recipes.Recipe]
    train: Callable[[Place], data.Split]
    validation: Callable[[Place], data.Split]
    sigmas: tuple[float, ...]
    depths: tuple[int, ...]
    brief: int
    long: int
    variants: Mapping[str, tuple[Options, ...]]
    published: int
    classifier: Callable[[Place], nn.Module]

    def trials(self, record: Record, images: data.Split, place: Place) -> Iterator[Trial]:
        """What is tried, one after the other."""
        net, train = self.classifier(place), cache(partial(self.train, place))

        def briefly(use: str, depth: int, sigma: float) -> nn.Module:
            recipe = self.recipe(sigma, depth, self.brief)
            dae = recipes.tried(f"{self.dae}-{depth}-{sigma:g}", recipe, train, place)
            return defended(net, use, dae, (0.0, 1.0, 0))

        def networks(**options: Any) -> Iterator[Trial]:
            for name, use in TRIED.items():
                yield Trial(name, options, partial(briefly, use, **options))

        def of(**options: Any) -> list[Row]:
            return [r for r in record.rows if r["defense"] in TRIED and r["options"] == options]

        depth = self.depths[0]
        for sigma in self.sigmas:
            yield from networks(depth=depth, sigma=sigma)
        sigma = max(self.sigmas, key=lambda s: sum(map(score, of(depth=depth, sigma=s))))
        for deeper in self.depths[1:]:
            yield from networks(depth=deeper, sigma=sigma)
            if gains(of(depth=depth, sigma=sigma), of(depth=deeper, sigma=sigma)):
                depth = deeper
        recipes.train_missing({self.dae: self.recipe(sigma, depth, self.long)}, train, place)
        self.check(record.about | record.more, place)
        dae = place.model(self.dae)
        level = purification.calibrate(dae, self.validation(place).images, batch_size=50)
        record.save(dae_sha256=place.sha256(self.dae), calibration=list(level))
        yield Trial("no defense", {}, lambda: net)
        grid = {adaptively(name): several for name, several in self.variants.items()}
        grid |= {name: several for name, (_, several) in TRANSFORMS.items()}
        for name, several in {"direct": ({},), **grid}.items():
            for options in several:
                yield Trial(name, options, partial(defended, net, name, dae, level, **options))
        at_best = {name: score(best(record.rows, name)) for name in grid}
        chosen = {
            "sigma": sigma,
            "depth": depth,
            "variant": max(self.variants, key=lambda name: at_best[adaptively(name)]),
            "published": sorted(TRANSFORMS, key=at_best.get, reverse=True)[: self.published],
        }
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
    ) -> dict[str, defenses.Defense]:
        """Every use and every published defense, at the settings that were chosen.

        Args:
            choice: whose record holds them.
            classifier: from a place, the classifier; settings hold for another one, too.
            weights: that it needs.
        """

        def made(name: str, place: Place, **changes: Any) -> nn.Module:
            record, net = place.record(choice.record), classifier(place)
            self.check(record, place, net if classifier is self.classifier else None)
            options = {} if name == DEFAULT else best(record["rows"], name)["options"]
            dae, level = place.model(self.dae), purification.Calibration(*record["calibration"])
            return defended(net, name, dae, level, **options | changes)

        needed = (*weights, self.dae)
        uses = ("direct", *map(adaptively, self.variants), DEFAULT)
        found = {name: defenses.Defense(partial(made, name), needed) for name in uses}
        for name in TRANSFORMS:
            published = replace(defenses.PUBLISHED[name], options={})
            found[name] = replace(published, make=partial(made, name), weights=needed)
        return {"no defense": defenses.Defense(classifier, weights), **found}


def adaptively(variant: str) -> str:
    """What a table calls a variant of adaptive purification."""
    return f"adaptive, {variant}"


def defended(
    classifier: nn.Module,
    name: str,
    dae: nn.Module,
    level: purification.Calibration,
    **options: Any,
) -> purification.Defended:
    """A classifier behind what a table calls by this name, with these options.

    Args:
        classifier: images -> logits.
        name: ``"direct"``, ``"adaptive, …"``, or a key of :data:`TRANSFORMS`.
        dae: that is used, unless by a transform.
        level: its calibration, for adaptive purification.
        options: of the purifier.
    """
    if name in TRANSFORMS:
        purifier = TRANSFORMS[name][0](**options)
    elif name == "direct":
        purifier = purification.Direct(dae, **options)
    else:
        variant = "probabilistic" if name == DEFAULT else name.removeprefix(adaptively(""))
        purifier = purification.Adaptive.preset(variant, dae, level, **options)
    return purification.Defended(classifier, purifier.to(next(dae.parameters()).device))


def kept(chosen: Row) -> tuple[set[str], str]:
    """Published defenses that a choice leaves out, and the variant it prefers."""
    return set(TRANSFORMS) - set(chosen["published"]), adaptively(chosen["variant"])


def take_along(choice: Choice, plan: Plan, place: Place) -> None:
    """Put the shipped choice into a place, if the DAE there is the one it was made for."""
    shipped = Place().record(choice.record)
    if place.record(choice.record) or not shipped or not place.has(plan.dae):
        return
    if place.sha256(plan.dae) == shipped["dae_sha256"]:
        copy = place.results / f"{choice.record}.json"
        with locked(copy):
            if not copy.is_file():
                write_aside(copy, (Place().results / copy.name).read_bytes())
