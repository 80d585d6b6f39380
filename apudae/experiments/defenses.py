"""The defenses that are compared: a row each, by name.

A defense says how it is put together from networks, at the settings it was given or that were
chosen for it on validation images::

    model = DIGITS["jpeg"].build(Place(), quality=50)      # images -> logits
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .. import models, purification
from ..core.arguments import require
from .place import Options, Place


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


def alone(classifier: str, **more: Any) -> Defense:
    """A network by itself."""
    return Defense(lambda place: place.model(classifier), (classifier,), **more)


def before(
    purifier: Callable[..., nn.Module],
    *networks: str,
    classifier: str = "mnist-cnn",
    paper: tuple[str, str, tuple[str, float]] | None = None,
    **options: Any,
) -> Defense:
    """A classifier behind ``purifier(*networks, **options)``.

    Args:
        purifier: from networks and options, images -> images.
        networks: names of their weights.
        classifier: name of its weights.
        paper: what it does, source, and what it was made for: see :class:`Defense`.
        options: its settings.
    """

    def make(place: Place, **settings: Any) -> nn.Module:
        made = purifier(*map(place.model, networks), **settings)
        return purification.Defended(place.model(classifier), made.to(place.device))

    return Defense(make, (classifier, *networks), options, *(paper or ()))


def adaptive(variant: str = "") -> Defense:
    """Digits behind a variant of adaptive purification; by default the one that was chosen.

    Choice and calibration are looked up when it is built, for they stand in a record.
    """

    def make(place: Place, **changes: Any) -> nn.Module:
        record = place.record("mnist_variants") or Place().record("mnist_variants")
        chosen = {"variant": variant, "options": {}} if variant else record["chosen"]
        dae, level = place.model("mnist-dae"), purification.Calibration(*record["calibration"])
        purifier = purification.Adaptive.preset(
            chosen["variant"], dae, level, **chosen["options"] | changes
        )
        return purification.Defended(place.model("mnist-cnn"), purifier)

    return Defense(make, ("mnist-cnn", "mnist-dae"))


def white_box(kind: str) -> Defense:
    """Digits behind the walk that was chosen against an attacker who knows it.

    Args:
        kind: what the classifier sees: a key of what the record ``mnist_white_box`` has chosen.
    """

    def make(place: Place, **changes: Any) -> nn.Module:
        record = place.record("mnist_white_box") or Place().record("mnist_white_box")
        advice = "go on with python -m apudae.experiments mnist-white-box"
        require("chosen" in record, f"mnist_white_box has not chosen yet; {advice}")
        level = purification.Calibration(*record["levels"]["shipped"])
        options = record["chosen"][kind] | changes
        purifier = purification.Adaptive(place.model("mnist-dae"), calibration=level, **options)
        return purification.Defended(place.model("mnist-cnn"), purifier)

    return Defense(make, ("mnist-cnn", "mnist-dae"))


# Those of the book's own purification have verdicts of their own.
OURS = {
    "direct": before(purification.Direct, "mnist-dae"),
    "adaptive, chosen": adaptive(),
    "adaptive, default": adaptive("probabilistic"),  # the authors' default, at their settings
}
# Each given its best chance: walks that were chosen against attackers who do not know them, and
# against those who do, before the classifier as they are and through R.
KNOWN = {
    "direct": OURS["direct"],
    "grey-box choice": OURS["adaptive, chosen"],
    "white-box choice": white_box("x̂"),
    "white-box choice, then R": white_box("R(x̂)"),
}
# Settings chosen on validation digits: record mnist_tuning.
PUBLISHED = {
    "bit depth": before(
        purification.BitDepth,
        paper=("rounds every pixel to black or white", "xu2018", ("FGSM", 0.3)),
        bits=1,
    ),
    "median": before(
        purification.Median, paper=("median of neighbouring pixels", "xu2018", ("C&W", 0.0)), size=2
    ),
    "jpeg": before(
        purification.JPEG, paper=("lossy compression", "guo2018", ("C&W", 0.0)), quality=10
    ),
    "resize and pad": before(
        purification.ResizePad,
        paper=("shrinks at random, and moves", "xie2018", ("C&W", 0.0)),
        smallest=0.8,
    ),
    "magnet": before(
        purification.Direct,
        "mnist-magnet",
        paper=("autoencoder trained on slight noise", "meng2017", ("C&W", 0.0)),
    ),
    "defense-vae": before(
        purification.Direct,
        "mnist-vae",
        paper=("variational autoencoder trained on attacked images", "li2019", ("FGSM", 0.3)),
    ),
    "defense-gan": before(
        purification.DefenseGAN,
        "mnist-generator",
        paper=("nearest image that a generator can draw", "samangouei2018", ("FGSM", 0.3)),
        **{"starts": 1, "steps": 60, "step_size": 30.0},
    ),
    "soap": Defense(
        lambda place: purification.Defended(
            place.model("mnist-soap"), purification.Soap(place.model("mnist-soap"))
        ),
        ("mnist-soap",),
        what="sign steps on the error of a decoder that shares the classifier's encoder",
        source="shi2021",
        made_for=("PGD", 0.3),
        retrained=True,
    ),
    "diffpure": before(
        purification.DiffPure,
        "mnist-diffusion",
        paper=("noise, and a diffusion model takes it off", "nie2022", ("PGD", 0.3)),
        **{"level": 0.2, "steps": 5},
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
_NAME, _WALK = "mnist-purifier", {"steps": 10, "step_size": 0.02}
PURIFIER = {
    "no defense": alone("mnist-cnn"),
    "direct": before(purification.Direct, "mnist-dae"),
    "purifier": before(purification.Direct, _NAME),
    "purifier, trained in L2": before(purification.Direct, "mnist-purifier-l2"),
    "purifier after steps": before(purification.Adaptive, _NAME, reconstruct=True, **_WALK),
    "steps alone": before(purification.Adaptive, _NAME, **_WALK),
    "small": alone("mnist-small"),
    "purifier, small": before(purification.Direct, _NAME, classifier="mnist-small"),
    "mlp": alone("mnist-mlp"),
    "purifier, mlp": before(purification.Direct, _NAME, classifier="mnist-mlp"),
    "adversarial training": PUBLISHED["adversarial training"],
}
# One that was chosen and trained later, at more expense.
STRONGER = before(purification.Direct, "mnist-purifier-strong")
# The control: a cut at ε by hand, before a network that was not trained behind it.
CUT = {
    f"cut, then the {name}": before(
        lambda dae: purification.Direct(nn.Sequential(models.Cut(0.3, 0.0), dae)), network
    )
    for name, network in (("DAE", "mnist-dae"), ("purifier", _NAME))
}
# What is proved: the purifier before three classifiers, and the classifier that is inside it.
_PROVED = "mnist-certified"
PROVED = {
    "certified purifier": before(purification.Direct, _PROVED),
    "certified purifier, small": before(purification.Direct, _PROVED, classifier="mnist-small"),
    "certified purifier, mlp": before(purification.Direct, _PROVED, classifier="mnist-mlp"),
    "its reader alone": Defense(lambda place: place.model(_PROVED).reader, (_PROVED,)),
}
