"""The defenses that are compared: a row each, by name.

A defense says how it is put together from networks, at the settings it was given or that were
chosen for it on validation images::

    model = DIGITS["jpeg"].build(Place(), quality=50)      # images -> logits
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..purification import (
    JPEG,
    Adaptive,
    BitDepth,
    Calibration,
    Defended,
    DefenseGAN,
    DiffPure,
    Direct,
    Median,
    ResizePad,
    Soap,
)
from .place import Place

Options = dict[str, Any]


@dataclass(frozen=True)
class Defense:
    """A classifier, alone or behind a purifier.

    Attributes:
        make: from a place and options, the whole defense, images -> logits.
        weights: names of the networks it needs.
        options: its settings: the paper's, or chosen on validation images.
        what: it does, in a few words.
        source: key of the bibliography.
        made_for: a weak attack that its paper stops, and ε (0 for C&W).
        retrained: its classifier is another one than the defended.
    """

    make: Callable[..., nn.Module]
    weights: tuple[str, ...] = ()
    options: Options = field(default_factory=dict)
    what: str = ""
    source: str = ""
    made_for: tuple[str, float] | None = None
    retrained: bool = False

    def build(self, place: Place, **changes: Any) -> nn.Module:
        """The defense with trained weights, in evaluation mode.

        Args:
            place: of the weights.
            changes: options other than its own, such as ``quality=50`` of ``"jpeg"``.
        """
        return self.make(place, **self.options | changes).eval()


def build_all(defenses: Mapping[str, Defense], place: Place) -> dict[str, nn.Module]:
    """Those whose weights are there, by name."""
    return {name: d.build(place) for name, d in defenses.items() if place.has(*d.weights)}


def alone(classifier: str, **more: Any) -> Defense:
    """A network by itself."""
    return Defense(lambda place: place.model(classifier), (classifier,), **more)


def before(
    classifier: str, purifier: Callable[..., nn.Module], *networks: str, **more: Any
) -> Defense:
    """A classifier behind ``purifier(*networks, **options)``."""

    def make(place: Place, **options: Any) -> nn.Module:
        made = purifier(*map(place.model, networks), **options).to(place.device)
        return Defended(place.model(classifier), made)

    return Defense(make, (classifier, *networks), **more)


def adaptive(classifier: str, dae: str, settings: Callable[[Place], Options]) -> Defense:
    """A classifier behind a variant of adaptive purification; ``settings`` of ``Adaptive.preset``.

    They are looked up when it is built, for they stand in a record.
    """

    def make(place: Place, **changes: Any) -> nn.Module:
        options = settings(place)
        level = Calibration(*options.pop("calibration"))
        preset = Adaptive.preset(options.pop("preset"), place.model(dae), level, **options)
        return Defended(place.model(classifier), preset.replace(**changes) if changes else preset)

    return Defense(make, (classifier, dae))


def chosen_digits(place: Place) -> Options:
    """The variant that was chosen on validation digits, at its settings: :func:`adaptive`."""
    record = place.record("mnist_variants") or Place().record("mnist_variants")
    chosen = record["chosen"]
    return chosen["options"] | {"preset": chosen["variant"], "calibration": record["calibration"]}


def default_digits(place: Place) -> Options:
    """The authors' default, at their settings."""
    return {"preset": "probabilistic", "calibration": chosen_digits(place)["calibration"]}


# Those of the book's own purification have verdicts of their own.
OURS = {
    "direct": before("mnist-cnn", Direct, "mnist-dae"),
    "adaptive, chosen": adaptive("mnist-cnn", "mnist-dae", chosen_digits),
    "adaptive, default": adaptive("mnist-cnn", "mnist-dae", default_digits),
}
# Settings chosen on validation digits: record mnist_tuning.
PUBLISHED = {
    "bit depth": before(
        "mnist-cnn",
        BitDepth,
        options={"bits": 1},
        what="rounds every pixel to black or white",
        source="xu2018",
        made_for=("FGSM", 0.3),
    ),
    "median": before(
        "mnist-cnn",
        Median,
        options={"size": 2},
        what="median of neighbouring pixels",
        source="xu2018",
        made_for=("C&W", 0.0),
    ),
    "jpeg": before(
        "mnist-cnn",
        JPEG,
        options={"quality": 10},
        what="lossy compression",
        source="guo2018",
        made_for=("C&W", 0.0),
    ),
    "resize and pad": before(
        "mnist-cnn",
        ResizePad,
        options={"smallest": 0.8},
        what="shrinks at random, and moves",
        source="xie2018",
        made_for=("C&W", 0.0),
    ),
    "magnet": before(
        "mnist-cnn",
        Direct,
        "mnist-magnet",
        what="autoencoder trained on slight noise",
        source="meng2017",
        made_for=("C&W", 0.0),
    ),
    "defense-vae": before(
        "mnist-cnn",
        Direct,
        "mnist-vae",
        what="variational autoencoder trained on attacked images",
        source="li2019",
        made_for=("FGSM", 0.3),
    ),
    "defense-gan": before(
        "mnist-cnn",
        DefenseGAN,
        "mnist-generator",
        options={"starts": 1, "steps": 60, "step_size": 30.0},
        what="nearest image that a generator can draw",
        source="samangouei2018",
        made_for=("FGSM", 0.3),
    ),
    "soap": Defense(
        lambda place: Defended(place.model("mnist-soap"), Soap(place.model("mnist-soap"))),
        ("mnist-soap",),
        what="sign steps on the error of a decoder that shares the classifier's encoder",
        source="shi2021",
        made_for=("PGD", 0.3),
        retrained=True,
    ),
    "diffpure": before(
        "mnist-cnn",
        DiffPure,
        "mnist-diffusion",
        options={"level": 0.2, "steps": 5},
        what="noise, and a diffusion model takes it off",
        source="nie2022",
        made_for=("PGD", 0.3),
    ),
    "adversarial training": alone(
        "mnist-adversarial",
        what="classifier trained on attacked images",
        source="madry2018",
        made_for=("PGD", 0.3),
        retrained=True,
    ),
}
DIGITS = {"no defense": alone("mnist-cnn")} | OURS | PUBLISHED

# A purifier that was trained through the classifier, before it and before others.
_WALK = {"steps": 10, "step_size": 0.02}
PURIFIER = {
    "no defense": alone("mnist-cnn"),
    "denoiser": before("mnist-cnn", Direct, "mnist-dae"),
    "purifier": before("mnist-cnn", Direct, "mnist-purifier"),
    "purifier, trained in L2": before("mnist-cnn", Direct, "mnist-purifier-l2"),
    "purifier after steps": before(
        "mnist-cnn", Adaptive, "mnist-purifier", options=_WALK | {"reconstruct": True}
    ),
    "steps alone": before("mnist-cnn", Adaptive, "mnist-purifier", options=_WALK),
    "small": alone("mnist-small"),
    "purifier, small": before("mnist-small", Direct, "mnist-purifier"),
    "mlp": alone("mnist-mlp"),
    "purifier, mlp": before("mnist-mlp", Direct, "mnist-purifier"),
    "adversarial training": alone("mnist-adversarial", retrained=True),
}
