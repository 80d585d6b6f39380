"""What an evaluation found: tables, figures, a record that can be continued."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .. import plots
from ..core import record as records
from ..core.arguments import check_choice, check_images, check_number, check_type, require
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
}
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
            run, because the image had fallen for sure.
        seconds: of the attack.
        calls: images through the classifier, per image attacked.
        mebibytes: peak memory above what was held before, or None.
        fixed: of the ablation with fixed randomness, per image whether the draw that the attack
            knew is misread (0 or 1); else empty.
    """

    name: str
    kind: str
    misread: list[int]
    seconds: float = 0.0
    calls: float = 0.0
    mebibytes: float | None = None
    fixed: list[int] = field(default_factory=list)


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
            require(-1 not in found.misread, f"row: {row!r} was not run on all images")
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
        """Images that were read rightly in *every* scoring draw of their worst case."""
        return Accuracy.of(self.right() == 1)

    def minus(self, other: Report) -> Difference:
        """How many points this model is better than another on the same images, worst cases."""
        for key in ("data_sha256", "labels_sha256", "eps", "norm", "mask", "quantised"):
            same = self.settings.get(key) == other.settings.get(key)
            require(same, "other: expected a report on the same images, under the same attack")
        return paired_difference(other.right(), self.right())

    def table(self, *, brief: bool = False) -> plots.Table:
        """Attacks, on how many images, how many are read rightly, and what stands after each.

        ``brief`` leaves out what each was run on and what it cost.
        """
        rows, stands = [], self.stands()
        for name, outcome in self.alone.items():
            kind = "input" if name == "clean" else "white box"
            right = Accuracy.of(torch.tensor(outcome) == 0)
            rows.append([f"{name}, no defense", kind, self.n, right, "–", "–", "–", "–"])
        for row in self.rows:
            ran = torch.tensor([count for count in row.misread if count >= 0])
            right = Accuracy.of(self.outcomes(ran)) if len(ran) else "–"
            cells = [row.name, row.kind, len(ran), right, Accuracy(stands[row.name], self.n)]
            memory = "–" if row.mebibytes is None else f"{row.mebibytes:.0f}"
            rows.append([*cells, f"{row.calls:.0f}", f"{row.seconds:.0f}", memory])
        if self.rescored:
            cells = ["chosen per image", "fresh draws", self.n, self.worst, self.worst]
            rows.append([*cells, "–", "–", "–"])
        on = " (on the draws that choose)" if self.draws > 1 else ""  # so a little too low
        so_far = f"worst case so far{on}"
        header = ["attack", "kind", "n", "read rightly", so_far, "calls", "s", "MiB"]
        if brief:
            bare = len(self.alone)  # of these the accuracy stands in another column
            rows = [[*row[:2], row[3 if k < bare else 4]] for k, row in enumerate(rows)]
            header = [*header[:2], header[4]]
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
            lines.append(f"in every one of {self.draws} draws {self.always}")
        if self.alone:
            bare = {k: Accuracy.of(torch.tensor(v) == 0) for k, v in self.alone.items()}
            lines.append("no defense: " + ", ".join(f"{k} {v}" for k, v in bare.items()))
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

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without the images."""
        return {key: value for key, value in asdict(self).items() if key != "images"}

    def save(self, name: str, folder: Path, *, device: torch.device | str = "cpu") -> Path:
        """Write ``name.json``, and the images beside it; each whole or not at all.

        The JSON is a record (``core.record``). The images' file has a part of their hash in its
        name, which the JSON knows: whenever the writer is killed, the two fit.
        """
        self._check()
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
    def load(cls, name: str, folder: Path) -> Report:
        """Read a saved report; its images too, where they lie beside it.

        Raises:
            ValueError: there is none of that name, or of another schema.
            RuntimeError: it, or the file of its images, is damaged; the file is named.
        """
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
        fresh = n if draws > 1 and self.complete else 0
        records.whole_numbers(self.rescored, "rescored", fresh, 0, draws)
        for name, counts in self.alone.items():
            records.whole_numbers(counts, f"alone, {name}", n, 0, 1)
        for row in self.rows:
            low = 0 if row.name in ON_ALL else -1
            records.whole_numbers(row.misread, f"misread, {row.name}", n, low, draws)
            ran = n - row.misread.count(-1) if row.kind == "ablation" else 0
            records.whole_numbers(row.fixed, f"fixed, {row.name}", ran, 0, 1)
        for curve, points in self.curves.items():
            require(points, f"{curve}: no point of it is there")
            for value, counts in points.items():
                check_number(float(value), curve)
                name, few = f"{curve} = {value}", min(n, budget.curve)
                records.whole_numbers(counts, name, few, 0, draws)


def _images_file(name: str, folder: Path, record: Mapping[str, Any]) -> Path:
    return folder / weights_file(name, record.get("images_sha256", ""))
