"""The comparison of defenses on a data set: weak and strong attackers side by side.

A :class:`Study` says what is compared. *Weak* attacks aim at the bare classifier and have never
heard of the defense. *Strong* is :func:`apudae.evaluation.evaluate`, each image's worst case. A row
per defense, attack and ε is stored when it is done, the cheap ones first, so that a run that was
stopped is of use.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import groupby, product
from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks, data
from ..core import scores
from ..core.arguments import AttackWarning, require
from ..core.calling import differentiable
from ..core.files import model_fingerprint, sweep_weights
from ..core.prints import data_print, identity, model_print
from ..core.processes import divided
from ..core.record import Record, Row, counted, outdated, pack, unpack
from ..evaluation import Budget, evaluate
from ..evaluation.cost import Meter
from ..purification import Defended
from .choose import Choice, milliseconds
from .defenses import Defense
from .place import Place
from .verdicts import Verdict

CLEAN, CW, STRONG = "clean", "C&W", "protocol"
KEYS = ("defense", "attack", "eps")
PIECE = 1000  # images between two savings of a weak row


@dataclass(frozen=True)
class Profile:
    """How much of everything.

    Attributes:
        weak: images under the weak attacks.
        cw: images under C&W, which is slow; with 0 it is left out.
        strong: images under the protocol.
        epsilons: of the protocol, in this order.
        budget: of the protocol.
        data: profile of the test images, see :func:`apudae.data.load`.
        fewer: images under the weak attacks and the protocol, of defenses that are slow; with 0
            there is no protocol.
        ours: whether defenses with verdicts of their own are put under the protocol here.
    """

    weak: int
    cw: int
    strong: int
    epsilons: tuple[float, ...]
    budget: Budget
    data: str = "full"
    fewer: dict[str, tuple[int, int]] = field(default_factory=dict)
    ours: bool = True

    def n(self, defense: str, attack: str) -> int:
        """Images of a row."""
        weak, strong = self.fewer.get(defense, (self.weak, self.strong))
        return strong if attack == STRONG else min(self.cw, weak) if attack == CW else weak

    def within(self, images: int) -> Profile:
        """The same for a set of so many images, if that is fewer."""
        sizes = {k: min(getattr(self, k), images) for k in ("weak", "cw", "strong")}
        fewer = {k: tuple(min(n, images) for n in pair) for k, pair in self.fewer.items()}
        return replace(self, **sizes, fewer=fewer)


@dataclass(frozen=True)
class Study:
    """What is compared on a data set.

    Attributes:
        name: of the record; with ``_quick`` behind it that of the quick profile.
        images: loads test images from a place, in a profile.
        defenses: by name, in the book's order; all stand before or instead of one classifier.
        attacks: that aim at the bare classifier, by name.
        epsilons: of these attacks.
        profiles: how much of everything, by name.
        what: the images are, in the plural.
        about_attacks: what the record says of the attacks on the classifier.
        about_data: what it says of the data, besides the fingerprint.
        cw: options of C&W.
        verdicts: of the protocol that stand in records of their own.
        choice: of settings, where one was made; ``defenses`` then look them up.
        kept: from what was chosen, names of the defenses that are left out, and of the variant that
            gets images of its own.
        chosen: per profile, how many images that variant gets under weak attacks and under the
            protocol.
        norm: of all attacks.
        batch: images at a time for which time and memory of the full gradient are measured; with 0
            they are not.
        order: in which the images of the whole set are asked; by default as they come. A random
            draw is keyed by the image's place in the set, whatever the order.
    """

    name: str
    images: Callable[[Place, str], data.Split]
    defenses: Mapping[str, Defense]
    attacks: Mapping[str, Callable[..., Tensor]]
    epsilons: tuple[float, ...]
    profiles: Mapping[str, Profile]
    what: str = "images"
    about_attacks: Row = field(default_factory=dict)
    about_data: Row = field(default_factory=dict)
    cw: Row = field(default_factory=lambda: {"steps": 200, "searches": 5})
    verdicts: tuple[Verdict, ...] = ()
    choice: Choice | None = None
    kept: Callable[[Row], tuple[set[str], str]] | None = None
    chosen: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    norm: str = "linf"
    batch: int = 0
    order: data.Order | None = None

    def record(self, profile: str = "full") -> str:
        """Name of a profile's record."""
        return f"{self.name}_quick" if profile == "quick" else self.name

    def at(self, place: Place) -> Study:
        """The study after the choice that lies at a place: what is kept, and on how many images."""
        chosen = self.choice.chosen(place) if self.choice else {}
        if not chosen:
            return self
        (out, variant), profiles = self.kept(chosen), dict(self.profiles)
        for name, sizes in self.chosen.items():
            fewer = profiles[name].fewer | {variant: sizes}
            profiles[name] = replace(profiles[name], fewer=fewer)
        left = {k: v for k, v in self.defenses.items() if k not in out}
        return replace(self, defenses=left, profiles=profiles)

    def build(self, place: Place) -> dict[str, nn.Module]:
        """The defenses whose weights and settings are there, by name."""
        if self.choice and not self.choice.chosen(place):
            return {"no defense": self.defenses["no defense"].build(place)}
        kept = self.at(place).defenses
        return {k: row.build(place) for k, row in kept.items() if place.has(*row.weights)}

    def rows(self, profile: Profile, defense: str) -> list[tuple[str, float]]:
        """Attack and ε of all rows that a defense has under a profile."""
        found = [(CLEAN, 0.0), *product(self.attacks, self.epsilons)]
        found += [(CW, 0.0)] if profile.n(defense, CW) else []
        judged = defense in {verdict.defense for verdict in self.verdicts}
        if (profile.ours or not judged) and profile.n(defense, STRONG):
            found += product([STRONG], profile.epsilons)
        return found

    def keys(self, profile: Profile, defenses: Iterable[str]) -> list[tuple[str, str, float]]:
        """Of all rows that defenses have under a profile."""
        return [(name, *pair) for name in defenses for pair in self.rows(profile, name)]

    def missing(self, place: Place, profile: str = "full") -> list[tuple[str, str, float]]:
        """Keys of the rows that a record does not have yet."""
        study = self.at(place)
        wanted = study.keys(study.profiles[profile], study.defenses)
        return place.lacking(self.record(profile), KEYS, wanted)

    def check_only(self, only: list[str] | None) -> None:
        """Raise ``ValueError`` unless these are names of its defenses."""
        unknown = ", ".join(sorted(set(only or ()) - set(self.defenses)))
        require(not unknown, f"only: expected {', '.join(self.defenses)}; got {unknown}")

    def run(self, place: Place, profile: str = "full", only: list[str] | None = None) -> None:
        """Fill the record of a profile; rows that older code made are named, and kept.

        Args:
            place: of data, weights, record and unfinished work.
            profile: how much of everything.
            only: defenses to measure; all without. Runs for different ones can share a record.

        Raises:
            ValueError: the record was made with other settings; each is named.
        """
        Comparison(self.at(place), place, profile, only).run()


class Comparison:
    """A study under way: its models, images and record.

    Args:
        study: what is compared, after its choice.
        place: of data, weights, record and unfinished work.
        profile: how much of everything; of a smaller set, all.
        only: defenses to measure; all without.
    """

    def __init__(
        self, study: Study, place: Place, profile: str, only: list[str] | None = None
    ) -> None:
        study.check_only(only)
        self.study, self.place, sizes = study, place, study.profiles[profile]
        self.models = {k: m for k, m in study.build(place).items() if not only or k in only}
        self.sha256 = {k: model_fingerprint(model)[:16] for k, model in self.models.items()}
        self.identity = cache(lambda name: identity(self.models[name], self.x))
        whole, order = study.images(place, sizes.data), {}
        n, self.places = len(whole.labels), torch.arange(len(whole.labels))
        if study.order and sizes.data == "full":  # the bundled ones are a random sample as they are
            require(study.order.of == n, f"order: expected one of {n} images, got {study.order}")
            order, self.places = {"order": asdict(study.order)}, study.order.places()
        self.places = self.places[: sizes.weak]
        self.x, self.y = place.here(whole.at(self.places))
        self.profile = sizes.within(len(self.x))
        self.weak: dict[str, Callable[..., Tensor]] = {  # in the order of their rows
            CLEAN: lambda model, x, y: x,
            **study.attacks,
            CW: lambda model, x, y: attacks.cw(model, x, y, **study.cw),
        }
        about = {
            "what": f"which test {study.what} are read correctly under attacks that do not know "
            "of the defense, and in the worst case over attacks that do",
            "profile": asdict(self.profile),
            "weak": study.about_attacks | {CW: study.cw, "seed": 0},
            "attacks_sha256": model_print(dict(study.attacks)),
            "data": study.about_data | order | data_print(self.x, self.y),
            "outcomes": f"in the order of {'data.Order' if order else 'the split'}: "
            "record.unpack(text, n); of the protocol on a random model how many of the fresh draws "
            "were misread, per image",
        }
        self.record = Record(
            study.record(profile), about, place.results, keys=KEYS, device=place.device
        )
        self.record.of(self.models, self.x)

    def run(self) -> None:
        """Fill in what is missing, the cheap first, and store after every row."""
        for row in self.record.rows:
            if outdated(row):
                print(f"made by older code, and kept: {[row[k] for k in KEYS]}", flush=True)
        wanted, order = self.study.keys(self.profile, self.models), list(self.weak)
        weak = [key for key in wanted if key[1] != STRONG]
        weak.sort(key=lambda key: (order.index(key[1]), key[2]))
        for (attack, eps), keys in groupby(weak, key=lambda key: key[1:]):
            # Defenses of the same classifier share the attacked images.
            attacked = cache(partial(self._attacked, attack, eps))
            self._fill(keys, partial(self._attack, attacked))
        strong = [key for key in wanted if key[1] == STRONG]
        self._fill(sorted(strong, key=self._price), self._evaluate)
        costs: dict[str, Callable[[nn.Module], Any]] = {
            "ms_per_image": partial(milliseconds, x=self.x[:100])
        }
        if self.study.batch:
            costs["gradient"] = self._gradient
        for part, measure in costs.items():
            if not self.models.keys() <= self.record.more.get(part, {}).keys():
                self.record.save(**{part: {k: measure(m) for k, m in self.models.items()}})

    def _fill(self, keys: Iterable[tuple[str, str, float]], make: Callable[..., Row]) -> None:
        """Make rows; what a finished one has left goes, its strongest images too."""
        for key in keys:
            self.record.measure(key, partial(make, *key))
            (self.place.work / f"{self._file(*key)}.json").unlink(missing_ok=True)
            sweep_weights(self.place.work, self._file(*key), ())

    def _price(self, key: tuple[str, str, float]) -> tuple[float, int]:
        """Of the protocol, for the order: what the clean images have taken, for as many."""
        row = self.record.find(key[0], CLEAN, 0.0)
        seconds = row["seconds"] / row["n"] * self.profile.n(key[0], STRONG)
        return seconds, self.profile.epsilons.index(key[2])

    def _attack(self, attacked: Callable[..., Tensor], name: str, attack: str, eps: float) -> Row:
        """One weak attack, on the classifier that stands behind the defense, piece by piece."""
        model, n = self.models[name], self.profile.n(name, attack)
        classifier = model.classifier if isinstance(model, Defended) else model
        about = self.record.about | {"row": [name, attack, eps], "model": self.identity(name)}
        so_far = Record(self._file(name, attack, eps), about, self.place.work, anew=True)
        done = so_far.more.get("done", 0)
        right = unpack(so_far.more.get("right", ""), done)
        moved = torch.tensor(so_far.more.get("moved", []))
        require(len(moved) == done <= n, f"{so_far.path} is damaged: remove it")
        for start in range(done, n, PIECE):
            stop = min(start + PIECE, n)
            found, x, y = attacked(classifier, start, stop), self.x[start:stop], self.y[start:stop]
            now = scores.outcomes(model, found, y, index=self.places[start:stop])
            right = torch.cat([right, now.cpu()])
            moved = torch.cat([moved, (found - x).flatten(1).norm(dim=1).cpu()])
            so_far.save(done=stop, right=pack(right), moved=moved.tolist())
        l2 = {"l2": round(moved.mean().item(), 3)} if attack == CW else {}
        return counted(right) | {"model": self.sha256[name]} | l2

    def _attacked(
        self, attack: str, eps: float, classifier: nn.Module, start: int, stop: int
    ) -> Tensor:
        """Some images under a weak attack on the classifier behind a defense."""
        weak = self.weak[attack]

        def hit(part: Tensor) -> Tensor:
            some = start + part
            options = attacks.taken(weak, {"eps": eps, "index": self.places[some]})
            return weak(classifier, self.x[some], self.y[some], **options)

        return divided(hit, stop - start)

    def _evaluate(self, name: str, attack: str, eps: float) -> Row:
        """The protocol."""
        n = self.profile.n(name, attack)
        report = evaluate(
            self.models[name],
            self.x[:n],
            self.y[:n],
            eps=eps,
            budget=self.profile.budget,
            norm=self.study.norm,
            curves=False,
            title=name,
            index=self.places[:n],
            record=self.place.work / self._file(name, attack, eps),
        )
        right = report.right()
        row = counted(right == 1) | {"model": self.sha256[name]}
        if report.draws > 1:
            row |= {"misread": report.rescored, "draws": report.draws}
            row["correct"] = round(right.sum().item(), 2)
        return row | {
            "stands": {k: round(left, 2) for k, left in report.stands().items()},
            "warnings": {finding.name: finding.seen for finding in report.findings},
        }

    def _gradient(self, model: nn.Module) -> Row:
        """An attacker's pass (FGSM, full gradient): ms per image, MiB for a batch at the worst."""
        x, y = self.x[: self.study.batch], self.y[: self.study.batch]
        if not differentiable(model, x[:1]):
            return {}
        with Meter(model, self.place.device) as cost, warnings.catch_warnings():
            warnings.simplefilter("ignore", AttackWarning)  # a gradient may be zero
            attacks.fgsm(model, x, y, eps=self.study.epsilons[0], batch_size=len(x))
        return {
            "ms": round(1000 * cost.seconds / len(x), 1),
            "mebibytes": None if cost.mebibytes is None else round(cost.mebibytes),
            "batch": len(x),
        }

    def _file(self, name: str, attack: str, eps: float) -> str:
        """Name of what a row that was stopped leaves."""
        place = list(self.study.defenses).index(name)
        return re.sub(r"[^\w.-]", "", f"{self.record.name}_{place}_{attack}_{eps:g}")
