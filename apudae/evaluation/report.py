"""What an evaluation found: tables, figures, a record that can be continued."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .. import plots
from ..core import record as records
from ..core.arguments import (
    check_choice,
    check_count,
    check_images,
    check_number,
    check_type,
    require,
)
from ..core.files import sweep_weights, verify, weights_file, write_aside
from ..core.norms import NORMS
from ..core.scores import Accuracy, Difference, paired_difference
from .attackers import BUDGETS, Budget
from .diagnostics import RULES, Finding

# What settings are: of a type, or one of some. What older versions did not write may be missing.
_SETTINGS: dict[str, Any] = {
    **{"title": str, "norm": NORMS, "budget": (*BUDGETS, "own"), "eps": float, "options": dict},
    **dict.fromkeys(("random", "curves", "quantised"), bool | None),
    **dict.fromkeys(("data_sha256", "labels_sha256", "index_sha256", "data_exact"), str | None),
    **{"model_sha256": str | None, "own_attacks_sha256": str | None, "model": dict | None},
    **{"seed": int | None, "own_attacks": list[str] | None, "mask": dict | None},
    **{"abstain": int | None, "substitutes": dict | None, "part": dict | None},
}
NOT_YET = -2  # of an image: that is still to be asked
_ABSTAINED, _WON = ("clean", "fooled"), ("found", "by chance", "rises")
_KINDS = ("input", "white box", "surrogate", "ablation", "black box", "own")
ON_ALL = ("clean", "noise", "PGD", "transfer")  # these are run on all images


@dataclass
class Row:
    """One attack.

    Attributes:
        name: of the attack.
        kind: ``"input"`` (nothing or noise), ``"white box"``, ``"surrogate"``, ``"ablation"``,
            ``"black box"`` or ``"own"``.
        misread: per image, of the scoring draws how many were misread; −1 where the attack was not
            run, because the image had fallen for sure; −2 where it is still to be run.
        seconds: of the attack.
        calls: images through the classifier, per image attacked.
        mebibytes: peak memory above what was held before, or None.
        fixed: of the ablation with fixed randomness, per image whether the draw that the attack
            knew is misread (0 or 1); else empty.
        search: precision that the attack computed in. What it found was scored in the images' own.
    """

    name: str
    kind: str
    misread: list[int]
    seconds: float = 0.0
    calls: float = 0.0
    mebibytes: float | None = None
    fixed: list[int] = field(default_factory=list)
    search: str = "float32"

    @property
    def ran(self) -> list[int]:
        """Counts of the images that the attack was run on."""
        return [count for count in self.misread if count >= 0]


@dataclass
class Report:
    """The result of :func:`apudae.evaluation.evaluate`; shows itself as a table.

    Attributes:
        settings: what was asked: attack, budget, seed, fingerprints of images and model.
        n: images.
        draws: scoring draws: 1 of a model that is not random.
        rows: attacks in the order they were run.
        alone: outcomes of the classifier without its defense, clean and attacked, or empty.
        rescored: of a random model, per image, of the fresh draws how many were misread under the
            attack chosen for it.
        abstained: of a model that may abstain, per image of the scoring draws: how many abstain on
            the clean image (``"clean"``), and the most that read an attacked one as a wrong class
            (``"fooled"``); else empty.
        could_win: what the attack unit tests told, see ``evaluation.could_win``; else empty.
        curves: ``"ε"``, ``"steps"`` and of a random model ``"draws"``: value -> outcomes.
        findings: raised warnings.
        images: each image's strongest attack, ``[N, C, H, W]``.
        complete: whether nothing is left to run.
        made: versions, device and date.
    """

    settings: dict[str, Any]
    n: int
    draws: int = 1
    rows: list[Row] = field(default_factory=list)
    alone: dict[str, list[int]] = field(default_factory=dict)
    rescored: list[int] = field(default_factory=list)
    curves: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    abstained: dict[str, list[int]] = field(default_factory=dict)
    could_win: dict[str, list[int]] = field(default_factory=dict)
    images: Tensor | None = None
    complete: bool = False
    made: dict[str, str] = field(default_factory=dict)

    def counts(self, *, without: str = "") -> Tensor:
        """Per image the most draws that were misread under one attack, int64 ``[N]``.

        ``without`` names a row that is left out.
        """
        rows = [row.misread for row in self.rows if row.name != without]
        return torch.tensor(rows).amax(0).clamp(min=0)

    def misread(self) -> Tensor:
        """Per image the largest share of misread draws so far, ``[N]``."""
        return self.counts().double() / self.draws

    def outcomes(self, misread: Tensor | list[int]) -> Tensor:
        """What counts of misread draws ``[N]`` mean.

        bool ``[N]``, right or not; of a random model the rates of right draws, float64 ``[N]``.
        """
        counts = torch.as_tensor(misread)
        return counts == 0 if self.draws == 1 else 1 - counts.double() / self.draws

    def stood(self, names: set[str]) -> float:
        """How many images stand after the rows of these names: a sum of rates."""
        rows = [row.misread for row in self.rows if row.name in names]
        return float((1 - torch.tensor(rows).amax(0).clamp(min=0).double() / self.draws).sum())

    def stands(self) -> dict[str, float]:
        """Per attack, in their order, how many images stand after it: a sum of rates."""
        counts = torch.tensor([row.misread for row in self.rows]).clamp(min=0).cummax(0).values
        rates = 1 - counts.double() / self.draws
        return {row.name: rate.sum().item() for row, rate in zip(self.rows, rates, strict=True)}

    def chosen(self) -> list[str]:
        """Per image the attack it is scored under: the first of those misread most often."""
        worst = torch.tensor([row.misread for row in self.rows]).argmax(0)
        return [self.rows[k].name for k in worst.tolist()]

    def right(self, row: str | None = None) -> Tensor:
        """Outcomes in the worst case over all attacks, or under one that was run on all images.

        bool ``[N]``; of a random model float64 rates ``[N]``, in the worst case those on fresh
        draws (before they were taken: on the draws that chose).
        """
        if row is not None:
            (found,) = (r for r in self.rows if r.name == row)
            require(len(found.ran) == self.n, f"row: {row!r} was not run on all images")
            return self.outcomes(found.misread)
        return self.outcomes(self.rescored if self.draws > 1 and self.rescored else self.counts())

    @property
    def clean(self) -> Accuracy:
        """Accuracy without an attack."""
        return Accuracy.of(self.right("clean"))

    @property
    def worst(self) -> Accuracy:
        """Accuracy in each image's worst case."""
        return Accuracy.of(self.right())

    @property
    def always(self) -> Accuracy:
        """Images that were read rightly in *every* scoring draw of their worst case.

        What is left where an attacker may hand an image in again (DiffBreak, arXiv 2411.16598).
        """
        return Accuracy.of(self.right() == 1)

    @property
    def voted(self) -> Accuracy:
        """Images that were read rightly in more than half of these draws: a majority vote."""
        return Accuracy.of(self.right() > 0.5)

    def minus(self, other: Report) -> Difference:
        """How many points this model is better than another on the same images, worst cases."""
        for key in ("data_sha256", "labels_sha256", "eps", "norm", "mask", "quantised"):
            same = self.settings.get(key) == other.settings.get(key)
            require(same, "other: expected a report on the same images, under the same attack")
        return paired_difference(other.right(), self.right())

    def table(self, *, brief: bool = False) -> plots.Table:
        """Attacks, on how many images, how many are read rightly, and what stands after each.

        ``brief`` leaves out what each was run on, what it cost, and the precision it searched in:
        a :class:`apudae.plots.DotPlot`.
        """
        rows, stands = [], self.stands()
        for name, outcome in self.alone.items():
            kind = "input" if name == "clean" else "white box"
            right = Accuracy.of(torch.tensor(outcome) == 0)
            rows.append([f"{name}, no defense", kind, self.n, right, *"–––––"])
        for row in self.rows:
            ran = row.ran
            right = Accuracy.of(self.outcomes(ran)) if ran else "–"
            cells = [row.name, row.kind, len(ran), right, Accuracy(stands[row.name], self.n)]
            memory = "–" if row.mebibytes is None else f"{row.mebibytes:.0f}"
            search = "–" if row.kind == "input" else row.search
            rows.append([*cells, f"{row.calls:.0f}", f"{row.seconds:.0f}", memory, search])
        if self.rescored:
            cells = ["chosen per image", "fresh draws", self.n, self.worst, self.worst]
            rows.append([*cells, *"––––"])
        on = " (on the draws that choose)" if self.draws > 1 else ""  # so a little too low
        so_far = f"worst case so far{on}"
        header = ["attack", "kind", "n", "read rightly", so_far, "calls", "s", "MiB", "search"]
        if brief:
            bare = len(self.alone)  # of these the accuracy stands in another column
            rows = [[*row[:2], row[3 if k < bare else 4]] for k, row in enumerate(rows)]
            return plots.DotPlot([*header[:2], header[4]], rows, text=2)
        return plots.Table(header, rows, text=2)

    def summary(self) -> str:
        """The result in a few lines, with n, budget and intervals."""
        s, how = self.settings, ""
        if mask := s.get("mask"):
            how += f", {100 * mask['share']:.3g} % of the pixels may change"
        how += ", scored on the 8-bit grid" if s.get("quantised") else ""
        ball = f"{s['norm']} ε = {s['eps']:.4g}{how}"
        lines = [
            f"{s['title']}: {ball}, {s['budget']} budget, n = {self.n}",
            f"clean {self.clean}",
            f"worst case over {len(self.rows)} inputs and attacks {self.worst}",
        ]
        if self.draws > 1:
            lines.append(f"in every one of {self.draws} draws {self.always}, in most {self.voted}")
        if self.alone:
            bare = {k: Accuracy.of(torch.tensor(v) == 0) for k, v in self.alone.items()}
            lines.append("no defense: " + ", ".join(f"{k} {v}" for k, v in bare.items()))
        if self.abstained:
            silent, fooled = (
                Accuracy.of(torch.tensor(self.abstained[k]) / self.draws) for k in _ABSTAINED
            )
            lines.append(f"abstains on {silent} of the clean images")
            lines.append(f"misled to an answer, and a wrong one: {fooled}")
        if self.could_win.get("found"):
            n = len(self.could_win["found"])
            won = Accuracy.of(torch.tensor(self.could_win["found"]) == 1)
            lines.append(f"attack unit tests passed: {won}, n = {n}")
        for row in self.rows:
            if row.fixed:
                known = Accuracy.of(torch.tensor(row.fixed) == 0)
                lines.append(f"its randomness fixed, and known to the attacker: {known}")
        if not self.complete:
            lines.append("unfinished: run it again to go on")
        raised = [str(finding) for finding in self.findings] or ["no warnings"]
        return "\n".join([*lines, *raised])

    def figure(self, curve: str) -> plots.Picture:
        """Accuracy over ``"ε"``, ``"steps"`` or ``"draws"``."""
        check_choice(curve, self.curves, "curve")
        points = {k: Accuracy.of(right) for k, right in self.points(curve).items()}
        return plots.curves({self.settings["title"]: points}, xlabel=curve)

    def points(self, curve: str) -> dict[float, Tensor]:
        """Outcomes at each value of a curve; none where it was not drawn."""
        return {float(k): self.outcomes(v) for k, v in self.curves.get(curve, {}).items()}

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{self.table()!r}"

    def _repr_markdown_(self) -> str:
        return self.table()._repr_markdown_()

    def part(self, places: Tensor) -> Report:
        """What it says of some of the images, int64 ``[M]``, ascending."""

        def some(values: list[int]) -> list[int]:
            return [values[k] for k in places.tolist() if k < len(values)]

        return replace(
            self,
            n=len(places),
            rows=[replace(r, misread=some(r.misread), fixed=some(r.fixed)) for r in self.rows],
            alone={name: some(counts) for name, counts in self.alone.items()},
            rescored=some(self.rescored),
            abstained={name: some(counts) for name, counts in self.abstained.items()},
            curves={
                name: {value: few for value, counts in points.items() if (few := some(counts))}
                for name, points in self.curves.items()
            },
            images=None if self.images is None else self.images[places],
        )

    def join(self, parts: Sequence[tuple[Tensor, Report]]) -> Report:
        """This report with what others say of some of its images each: places, and a report.

        What two of them tell of an image is the same, as far as both go: who goes further is heard.
        """
        empty = {"rows": [], "alone": {}, "rescored": [], "abstained": {}, "curves": {}}
        whole = replace(self, **empty, images=self.images.clone())
        far = torch.full((self.n,), -1)
        for places, part in parts:
            known = [[count != NOT_YET for count in row.misread] for row in part.rows]
            know = torch.tensor(known, dtype=torch.int64).view(-1, part.n).sum(0)
            further = know > far[places]
            far[places] = torch.where(further, know, far[places])
            if part.images is not None:
                whole.images[places[further]] = part.images[further].to(whole.images)
            heard = [(k, at) for k, at in enumerate(places.tolist()) if further[k]]

            def put(old: list[int], new: list[int], n: int, heard: list = heard) -> list[int]:
                old = old or [NOT_YET] * (n if new else 0)
                for k, at in heard:
                    if k < len(new):
                        old[at] = new[k]
                return old

            there = {row.name: row for row in whole.rows}
            for row in part.rows:
                if row.name not in there:
                    there[row.name] = replace(row, misread=[NOT_YET] * self.n, fixed=[])
                    whole.rows.append(there[row.name])
                old = there[row.name]
                a, b = len(old.ran), len(row.ran)
                old.calls = (a * old.calls + b * row.calls) / max(a + b, 1)
                old.seconds = max(old.seconds, row.seconds)
                sizes = [size for size in (old.mebibytes, row.mebibytes) if size is not None]
                old.mebibytes = max(sizes, default=None)
                old.misread = put(old.misread, row.misread, self.n)
                old.fixed = put(old.fixed, row.fixed, self.n)
            for mine, theirs in ((whole.alone, part.alone), (whole.abstained, part.abstained)):
                for name, counts in theirs.items():
                    mine[name] = put(mine.get(name, []), counts, self.n)
            whole.could_win = whole.could_win or part.could_win
            whole.rescored = put(whole.rescored, part.rescored, self.n)
            for name, points in part.curves.items():
                known = whole.curves.setdefault(name, {})
                for value, counts in points.items():
                    known[value] = put(known.get(value, []), counts, self._few)
        return whole

    @property
    def _few(self) -> int:
        """How many images the curves are drawn for."""
        return min(self.n, self.settings["options"]["curve"])

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without the images."""
        return {key: value for key, value in asdict(self).items() if key != "images"}

    def save(self, name: str, folder: str | Path, *, device: torch.device | str = "cpu") -> Path:
        """Write ``name.json``, and the images beside it; each whole or not at all.

        The JSON is a record (``core.record``). The images' file has a part of their hash in its
        name, which the JSON knows: whenever the writer is killed, the two fit.
        """
        self._check()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = self.to_dict()
        record.pop("made")
        if self.images is not None:
            whole = save({"images": self.images.cpu().contiguous()})
            record["images_sha256"] = hashlib.sha256(whole).hexdigest()
            write_aside(_images_file(name, folder, record), whole)
        path = records.save(name, record, folder, device=device)
        if self.images is not None:
            sweep_weights(folder, name, [_images_file(name, folder, record).name])
        return path

    @classmethod
    def load(cls, name: str, folder: str | Path) -> Report:
        """Read a saved report; its images too, where they lie beside it.

        Raises:
            ValueError: there is none of that name, or of another schema.
            RuntimeError: it, or the file of its images, is damaged; the file is named.
        """
        folder = Path(folder)
        record = records.load(name, folder)
        try:
            report = cls.from_dict(record)
        except ValueError as error:
            raise RuntimeError(f"{folder / name}.json is damaged: {error}") from error
        images = _images_file(name, folder, record)
        with suppress(FileNotFoundError):
            try:
                verify(images, record.get("images_sha256", ""))
                report.images = load_file(images)["images"]
                check_images(report.images, "images")
                require(len(report.images) == report.n, f"images: expected {report.n}")
            except (SafetensorError, LookupError, ValueError) as error:
                raise RuntimeError(f"{images} is damaged: {error}") from error
        if report.images is None and records.load(name, folder) != record:
            return cls.load(name, folder)  # it was saved anew in between
        return report

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Report:
        """From :meth:`to_dict`, without the images.

        Raises:
            ValueError: something in it cannot be; it is named.
        """
        try:
            known = {k: v for k, v in record.items() if k in cls.__dataclass_fields__}
            known["rows"] = [Row(**row) for row in record["rows"]]
            known["findings"] = [Finding(**finding) for finding in record["findings"]]
            report = cls(**known)
            report._check()
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"no report: {error!r}") from error
        return report

    def _check(self) -> None:
        """Raise ``ValueError`` unless what is here can be: kinds, lengths, ranges."""
        s, sizes = self.settings, [self.n, self.draws]
        n, draws = records.whole_numbers(sizes, "n and draws", 2, 1, math.inf)
        names, told = [row.name for row in self.rows], [finding.name for finding in self.findings]
        for rule, name, values in (
            *((rule, name, [s.get(name)]) for name, rule in _SETTINGS.items()),
            *((str, "rows", names), (_KINDS, "kind", [row.kind for row in self.rows])),
            *((RULES, "findings", told), (str, "findings", [each.seen for each in self.findings])),
            (("clean", "PGD"), "alone", self.alone),
            (("ε", "steps", "draws"), "curves", self.curves),
            (_ABSTAINED, "abstained", self.abstained),
            (_WON, "could_win", self.could_win),
            (bool, "complete", [self.complete]),
        ):
            for value in values:
                (check_choice if isinstance(rule, (tuple, dict)) else check_type)(value, rule, name)
        check_number(s["eps"], "eps", exclusive=True)
        if (mask := s.get("mask")) is not None:
            check_type(mask["sha256"], str, "mask")
            check_number(mask["share"], "mask", exclusive=True, below=1)
        budget = Budget(**s["options"])
        drawn = budget.scoring if s.get("random", draws > 1) else 1
        require(draws == drawn, f"draws: expected {drawn}, got {draws}")
        require(len(set(names)) == len(names), "rows: one comes twice")
        require(names[:1] == ["clean"] or not (names or self.complete), "rows: 'clean' is missing")
        part, low = s.get("part"), 0 if self.complete else NOT_YET
        if part is not None:  # of the images of several processes
            whole = check_count(part["of"], "part: of", minimum=n)
            records.whole_numbers(part["places"], "part: places", n, 0, whole - 1)
        fresh = n if draws > 1 and (self.complete or (part and self.rescored)) else 0
        records.whole_numbers(self.rescored, "rescored", fresh, low, draws)
        for name, counts in self.alone.items():
            records.whole_numbers(counts, f"alone, {name}", n, low, 1)
        for name, counts in self.abstained.items():
            records.whole_numbers(counts, f"abstained, {name}", n, low, draws)
        for name, counts in self.could_win.items():
            records.whole_numbers(counts, f"could_win, {name}", len(counts), 0, 1)
        for row in self.rows:
            check_type(row.search, str, "search")
            least = min(low, 0 if row.name in ON_ALL else -1)
            records.whole_numbers(row.misread, f"misread, {row.name}", n, least, draws)
            ran = n - row.misread.count(-1) if row.kind == "ablation" else 0
            records.whole_numbers(row.fixed, f"fixed, {row.name}", ran, low, 1)
        for curve, points in self.curves.items():
            require(points, f"{curve}: no point of it is there")
            for value, counts in points.items():
                check_number(float(value), curve)
                few = n if part is None else sum(k < budget.curve for k in part["places"])
                few = min(few, budget.curve)
                records.whole_numbers(counts, f"{curve} = {value}", few, low, draws)


def _images_file(name: str, folder: Path, record: Mapping[str, Any]) -> Path:
    return folder / weights_file(name, record.get("images_sha256", ""))
