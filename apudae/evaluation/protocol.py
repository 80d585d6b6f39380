"""An evaluation under way: attacks are run one by one, each image's worst case is kept.

:func:`apudae.evaluation.evaluate` decides what is run; `Evaluation` runs it, scores it, saves it
and goes on after a kill; :func:`judge` raises the warnings that the results call for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import attacks
from ..attacks.adaptive import KNOWN_DRAW, HalfPrecision
from ..attacks.objective import check_inside
from ..attacks.suite import taken
from ..core.arguments import check_logits
from ..core.calling import ask, evaluating, logits_of
from ..core.files import require_whole, sweep_weights
from ..core.norms import Ball
from ..core.prints import differences
from ..core.processes import count, everyones, rank, together, wait_for, world
from ..core.scores import Accuracy, paired_difference
from ..purification.purifier import Defended
from .abstention import SILENT, silent_class
from .attackers import Attack, Budget, seconds_per_pass
from .cost import Meter
from .diagnostics import Finding
from .isolation import BATCH, sees_neighbours
from .report import NOT_YET, Report, Row
from .response import answered


class Evaluation:
    """An evaluation under way: what it attacks, and the report so far.

    Several processes have every so-manieth image each, and a report of these alone, saved beside
    the record as ``<record>.part-1-of-2.json``. What is stored of an image is taken from any of
    them, so that other numbers of processes can go on.

    Args:
        model: images -> logits.
        x: images ``[N, C, H, W]``.
        y: labels ``[N]``.
        index: of the images.
        settings: of the report; a record made with others is refused.
        budget: of the attacks.
        record: where the report is saved after every attack, without ending, or None.
        batch_size: images per pass.
        mask: of the pixels that may change, bool ``[N, C, H, W]``, or None.

    Attributes:
        half: whether attacks search in half precision.
    """

    half = False
    met = 0  # how often processes have come to where all wait for all
    _numbers = itertools.count()  # of evaluations, the same in all processes

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        settings: dict[str, Any],
        budget: Budget,
        record: str | Path | None,
        batch_size: int | None,
        mask: Tensor | None = None,
    ) -> None:
        self.model, self.budget = model, budget
        self.batch_size, self.size = batch_size, batch_size or 250
        self.record = None if record is None else Path(record)
        draws = budget.scoring if settings["random"] else 1
        self.whole = Report(settings, len(x), draws, images=x.clone())
        self.places = torch.arange(rank(), len(x), world())
        self.x, self.y, self.index = x[self.places], y[self.places], index[self.places]
        self.all, self.labels, self.keys = (
            Ball(x, settings["eps"], settings["norm"], mask),
            y,
            index,
        )
        self.ball = self.all[self.places.to(x.device)]
        self.bar, self.number = tqdm(disable=True), next(self._numbers)
        self.few = int((self.places < budget.curve).sum())  # images that the curves are drawn for
        stored = together(partial(self._stored, settings))
        done = [report for _, report in stored if report.complete]
        self.report = done[0] if done else self._mine(stored)

    def _stored(self, settings: dict[str, Any]) -> list[tuple[Tensor, Report]]:
        """What is saved, by one process or several: of which images, and a report."""
        if self.record is None:
            return []
        found, folder = [], self.record.parent
        for name in [self.record.name, *_part_names(self.record)]:
            if not (folder / f"{name}.json").is_file():
                continue
            old = Report.load(name, folder)
            part = old.settings.pop("part", {"places": range(old.n), "of": old.n})
            if differ := differences(settings, old.settings):
                if part["of"] != len(self.labels):  # of another number, all prints differ
                    told = f"number of images ({part['of']:,} there, {len(self.labels):,} here)"
                    prints = ("data", "labels", "index")
                    differ = [told, *(d for d in differ if not d.startswith(prints))]
                raise ValueError(
                    f"record: {folder / name}.json was made with another {', '.join(differ)}; "
                    "move it or name another"
                )
            old.settings = old.settings if old.complete else settings  # which may tell more
            require_whole(
                old.complete or old.images is not None,
                f"{folder / name}.json is unfinished, and the file of its images is missing; put "
                "it back, or remove the record",
            )
            found.append((torch.tensor(part["places"]), old))
        return found

    def _mine(self, stored: list[tuple[Tensor, Report]]) -> Report:
        """This process's part of what is stored."""
        whole = self.whole.join(stored) if stored else self.whole
        whole.findings = next((part.findings for _, part in stored if part.findings), [])
        mine = whole.part(self.places)
        if world() == 1:
            mine.rescored = []  # which is the last thing that one process does
        else:
            part = {"places": self.places.tolist(), "of": whole.n}
            mine.settings = self.whole.settings | {"part": part}
        return mine

    def finish(
        self,
        planned: list[Attack],
        points: list[tuple[str, float, Attack]],
        progress: bool,
        respond: Callable[[list[Finding]], list[Attack]] = lambda findings: [],
    ) -> None:
        """All attacks and points of curves that are left, and what their results call for.

        ``respond`` gives the attacks that warnings call for; they are run before the curves.
        """
        report, first = self.report, {"clean", *(attack.name for attack in planned)}
        if report.settings.get("quantised"):
            planned = [attack.rounded() for attack in planned]
            points = [(curve, value, attack.rounded()) for curve, value, attack in points]
        if progress and rank() == 0:
            gradient, forward = seconds_per_pass(self.model, self.x, self.y)
            jobs = [(a, report.n) for a in planned] + [(a, self.few) for _, _, a in points]
            total = sum(n * (a.gradients * gradient + a.forwards * forward) for a, n in jobs)
            print(
                f"about {max(total / 60, 0.1):.1f} min on this machine, if it is idle", flush=True
            )
            self.bar = tqdm(total=len(jobs) * world(), unit="attack", leave=False)
        self._begin()
        self.on_all = next(((a.name, a.what) for a in planned if a.what), None)
        for attack in planned:
            self._attack(attack)
        whole = self._whole()
        seen = together(partial(self._seen, whole), first=True)
        report.findings = report.findings + seen
        stood = whole.stood(first)
        more = respond(report.findings + self._judged(whole, first)) if stood else []
        for attack in more:
            if attack.name in first:  # of the caller's
                attack = replace(attack, name=f"{attack.name}, in response")
            self._attack(attack.rounded() if report.settings.get("quantised") else attack)
        for point in points:
            self._point(*point, points)
        if report.draws > 1:
            self._rescore()
        self._end(first, bool(more))

    def _begin(self) -> None:
        """Clean images, with the defense and without."""
        report = self.report
        clean = self._row("clean", "input")
        if left := _left(clean.misread):
            self._offer(clean, self.x[left], torch.tensor(left))
        if isinstance(self.model, Defended):
            known = list(report.alone.values()) or [[NOT_YET] * report.n]
            if any(map(_left, known)):
                report.alone = self._alone(self.model.classifier)
        self._keep()

    def _rescore(self) -> None:
        """A random model: the attack chosen for each image, on fresh draws."""
        report = self.report
        report.rescored = report.rescored or [NOT_YET] * report.n
        if left := _left(report.rescored):
            place = torch.tensor(left)
            fresh = self._misread(report.images[left], place, first=report.draws)
            for at, count in zip(left, fresh.tolist(), strict=True):
                report.rescored[at] = count

    def _whole(self) -> Report:
        """What all processes have found so far; each waits for the others."""
        if world() == 1:
            return self.report
        self._keep()
        turn = f"done {self.number}"
        self.met += world()
        count(turn, 1)
        wait_for(turn, self.met, self._show)
        parts = []
        for plain, images in everyones((self.report.to_dict(), self.report.images.cpu())):
            part = Report.from_dict(plain)
            part.images = images
            parts.append((torch.tensor(part.settings["part"]["places"]), part))
        whole = self.whole.join(parts)
        whole.findings = self.report.findings
        return whole

    def _seen(self, whole: Report) -> list[Finding]:
        """Whether attacked images, the fallen first, are answered by their batch."""
        place = whole.counts().argsort(descending=True)[:8]
        told = {finding.name for finding in whole.findings}
        if BATCH in told or not sees_neighbours(self.model, whole.images[place], self.keys[place]):
            return []
        seen = "those to attacked images are others among other neighbours, so that the "
        return [Finding(BATCH, f"{seen}number is not to be trusted")]

    def _judged(self, whole: Report, first: set[str]) -> list[Finding]:
        """What the planned attacks, without those of a response, call for."""
        return judge(replace(whole, rows=[row for row in whole.rows if row.name in first]))

    def _end(self, first: set[str], responded: bool) -> None:
        """One report of all images; process 0 saves it, in the place of the parts."""
        whole = self._whole()
        found = whole.findings + self._judged(whole, first)
        if whole.settings.get("abstain") is None:
            told = together(partial(self._silent, whole), first=True)
            found += [Finding(SILENT, told)] if told else []
        whole.findings = answered(whole, found, first) if responded else found
        whole.complete, self.report = True, whole
        together(self._keep)
        if world() > 1 and rank() == 0 and self.record is not None:
            for name in _part_names(self.record):
                (self.record.parent / f"{name}.json").unlink(missing_ok=True)
                sweep_weights(self.record.parent, name, ())
        self.bar.close()

    def _row(self, name: str, kind: str, search: str = "float32") -> Row:
        """The row of an attack; a new one, if there is none, with nothing in it yet."""
        rows = self.report.rows
        found = next((row for row in rows if row.name == name), None)
        if found is None:
            found = Row(name, kind, [NOT_YET] * self.report.n, search=search)
            rows.append(found)
        return found

    def _attack(self, attack: Attack) -> None:
        """Run one on all images, or on those that still stand, and keep what it found."""
        self._show(attack.name)
        stands = self.report.misread() < 1
        row = self._row(attack.name, attack.kind, attack.search)
        left = torch.tensor(_left(row.misread), dtype=torch.int64)
        place = left if attack.everywhere else left[stands[left]]
        if len(left):
            for at in left.tolist():
                row.misread[at] = -1
        if len(place):
            counted = self.model.classifier if isinstance(self.model, Defended) else self.model
            before = len(row.ran)
            with Meter(counted, self.x.device) as cost:
                inside = self.ball[place]
                named = taken(attack.run, {"index": self.index[place], "mask": inside.mask})
                images = attack.run(inside.x, self.y[place], **named)
            images = check_inside(images, inside, attack.name)
            row.calls = (before * row.calls + cost.images) / (before + len(place))
            row.seconds, row.mebibytes = row.seconds + cost.seconds, cost.mebibytes
            if attack.kind == "ablation":
                row.fixed = row.fixed or [NOT_YET] * self.report.n
                fixed = self._misread(images, place, first=KNOWN_DRAW, draws=1)
                for at, hit in zip(place.tolist(), fixed.tolist(), strict=True):
                    row.fixed[at] = hit
            self._offer(row, images, place)
        if len(left):
            self._keep()
        self._count()

    def _point(
        self, curve: str, value: float, attack: Attack, points: list[tuple[str, float, Attack]]
    ) -> None:
        """One point of a curve, on the first images; the same attack is not made twice."""
        if not self.few:
            return
        done = self.report.curves.setdefault(curve, {})
        known = done.get(str(value), [NOT_YET] * self.few)
        if left := _left(known):
            self._show(f"{attack.name}, {curve} = {value:g}")
            curves, rows = self.report.curves, self.report.rows
            same = [curves.get(c, {}).get(str(v)) for c, v, a in points if a.what == attack.what]
            same += [
                row.misread[: self.few] for row in rows if self.on_all == (row.name, attack.what)
            ]
            same = next((counts for counts in same if counts and not _left(counts)), None)
            if same is None:
                part = torch.tensor(left)
                inside = self.ball[part]
                keyed = {"index": self.index[part], "mask": inside.mask}
                images = attack.run(inside.x, self.y[part], **keyed)
                same = list(known)
                for at, wrong in zip(left, self._misread(images, part).tolist(), strict=True):
                    same[at] = wrong
            done[str(value)] = list(same)
            self._keep()
        self._count()

    def _show(self, what: str = "") -> None:
        """How far all processes are, and what this one does."""
        if rank() == 0 and not self.bar.disable:
            if what:
                self.bar.set_postfix_str(what)
            if world() > 1:
                self.bar.n = count(f"attacks {self.number}")
                self.bar.refresh()

    def _count(self) -> None:
        count(f"attacks {self.number}", 1)
        if world() == 1:
            self.bar.update()

    @torch.no_grad()
    def _silent(self, whole: Report) -> str:
        """That the model seems to abstain, and nobody said so."""
        read, few = {}, slice(0, min(self.size, 250))
        with evaluating(self.model):
            for name, images in (("clean", self.all.x), ("attacked", whole.images)):
                logits = ask(self.model, images[few], index=self.keys[few])
                read[name] = logits.argmax(1)
        return silent_class(self.labels, read, logits.shape[1])

    def _alone(self, classifier: nn.Module) -> dict[str, list[int]]:
        """Which images the classifier misreads without its defense, clean and under PGD."""
        options = {key: self.report.settings[key] for key in ("eps", "norm", "seed")}
        options |= {"index": self.index, "batch_size": self.batch_size, "steps": self.budget.pgd}
        rounded = bool(self.report.settings.get("quantised"))
        pgd = attacks.quantised(attacks.pgd) if rounded else attacks.pgd
        options |= {"early_stop": not rounded, "mask": self.ball.mask}
        hit = pgd(HalfPrecision(classifier, self.half), self.x, self.y, **options)
        with evaluating(classifier):
            read = {
                k: torch.cat([logits_of(classifier, part).argmax(1) for part in z.split(self.size)])
                for k, z in {"clean": self.x, "PGD": hit}.items()
            }
        return {k: (digits != self.y).int().tolist() for k, digits in read.items()}

    def _offer(self, row: Row, images: Tensor, place: Tensor) -> None:
        """Score images and keep those that are misread more often than what was kept before."""
        report, counts = self.report, torch.tensor(row.misread)
        counts[place] = NOT_YET
        row.misread = counts.tolist()
        before = report.counts()
        counts[place] = self._misread(images, place)
        row.misread = counts.tolist()
        self._spoken(row, images, place)
        better = (counts > before)[place]
        report.images[place[better]] = images[better].to(report.images.dtype)

    def _spoken(self, row: Row, images: Tensor, place: Tensor) -> None:
        """Of a model that may abstain: on how many draws it does, or answers wrongly instead."""
        silent, report = self.report.settings.get("abstain"), self.report
        if silent is None:
            return
        if row.name == "clean":
            quiet = self._misread(images, place, right=lambda read, y: read != silent)
            told = report.abstained or {k: [NOT_YET] * report.n for k in ("clean", "fooled")}
            for at, count in zip(place.tolist(), quiet.tolist(), strict=True):
                told["clean"][at], told["fooled"][at] = count, 0
            report.abstained = told
        right = lambda read, y: (read == y) | (read == silent)  # noqa: E731
        counts = torch.tensor(report.abstained["fooled"])
        counts[place] = counts[place].maximum(self._misread(images, place, right=right))
        report.abstained["fooled"] = counts.tolist()

    @torch.no_grad()
    def _misread(
        self,
        images: Tensor,
        place: Tensor,
        *,
        first: int = 0,
        draws: int = 0,
        right: Callable[[Tensor, Tensor], Tensor] = torch.eq,
    ) -> Tensor:
        """Of the scoring draws, how many are misread, int64 ``[len(place)]`` on the CPU.

        ``right`` of the classes read and the labels says what is not.
        """
        counts = torch.zeros(len(place), dtype=torch.int64)
        parts = zip(*(whole.split(self.size) for whole in (images, place, counts)), strict=True)
        with evaluating(self.model):
            for some, at, count in parts:
                for draw in range(first, first + (draws or self.report.draws)):
                    logits = ask(self.model, some, draw=draw, index=self.index[at])
                    check_logits(logits, self.y[at])
                    count += (~right(logits.argmax(1), self.y[at])).long().cpu()  # a part of counts
        return counts

    def _keep(self) -> None:
        """Save this process's part, or the whole; of that process 0 is in charge."""
        whole = "part" not in self.report.settings
        if self.record is not None and not (whole and rank()):
            name = self.record.name if whole else part_name(self.record)
            self.report.save(name, self.record.parent, device=self.x.device)


def _left(counts: list[int]) -> list[int]:
    """Places that are still to be asked."""
    return [place for place, found in enumerate(counts) if found == NOT_YET]


def part_name(record: Path) -> str:
    """Of what this process saves of a shared evaluation, without ending."""
    return f"{record.name}.part-{rank() + 1}-of-{world()}"


def _part_names(record: Path) -> list[str]:
    """Of all parts that are saved."""
    found = record.parent.glob(f"{escape(record.name)}.part-*-of-*.json")
    return sorted(path.stem for path in found)


def judge(report: Report) -> list[Finding]:
    """Warnings that the results themselves call for; see :data:`apudae.evaluation.RULES`."""
    found: list[Finding] = []

    def compare(rule: str, first: Tensor, second: Tensor, seen: str) -> None:
        """Raise a rule where fewer images are right in ``second`` than in ``first``."""
        gap = paired_difference(first, second)
        if gap.high < 0:
            found.append(Finding(rule, f"{seen} {gap}"))

    white = report.right("PGD")
    if any(row.name == "transfer" for row in report.rows):
        compare("black box wins", white, report.right("transfer"), "transfer against PGD:")
    pair = (report.outcomes(report.counts(without=name)) for name in ("Square", ""))
    compare("black box wins", *pair, "with Square the worst case falls by")
    compare("noise wins", white, report.right("noise"), "noise against PGD:")
    steps = report.points("steps")
    most = max(steps, default=0.0)
    weaker = [f"{k:g}" for k in steps if paired_difference(steps[most], steps[k]).high < 0]
    if weaker:
        seen = f"PGD with {most:g} steps leaves more than with {', '.join(weaker)}"
        found.append(Finding("more steps are weaker", seen))
    radii = report.points("ε")
    if radii and not report.settings.get("mask"):
        left = Accuracy.of(radii[max(radii)])
        if left.percent > 10:
            found.append(Finding("does not fall", f"at ε = {max(radii):g} {left} stand"))
    return found
