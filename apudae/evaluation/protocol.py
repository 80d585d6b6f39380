"""An evaluation under way: attacks are run one by one, each image's worst case is kept.

:func:`apudae.evaluation.evaluate` decides what is run; `Evaluation` runs it, scores it, saves it
and goes on after a kill; :func:`judge` raises the warnings that the results call for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import attacks
from ..attacks.adaptive import KNOWN_DRAW
from ..attacks.objective import check_inside
from ..attacks.suite import taken
from ..core.arguments import check_logits
from ..core.calling import ask, evaluating
from ..core.files import require_whole
from ..core.norms import Ball
from ..core.prints import differences
from ..core.scores import Accuracy, outcomes, paired_difference
from ..purification.purifier import Defended
from .attackers import Attack, Budget, seconds_per_pass
from .cost import Meter
from .diagnostics import Finding
from .report import Report, Row


class Evaluation:
    """An evaluation under way: what it attacks, and the report so far.

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
    """

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
        self.model, self.x, self.y, self.index = model, x, y, index
        self.ball = Ball(x, settings["eps"], settings["norm"], mask)
        self.budget, self.batch_size, self.size = budget, batch_size, batch_size or 250
        self.record = None if record is None else Path(record)
        draws = budget.scoring if settings["random"] else 1
        self.report = Report(settings, len(x), draws, images=x.clone())
        self.bar = tqdm(disable=True)
        self.few = min(len(x), budget.curve)  # images that the curves are drawn for
        if record is not None and Path(f"{record}.json").is_file():
            old = Report.load(self.record.name, self.record.parent)
            if differ := differences(settings, old.settings):
                raise ValueError(
                    f"record: {self.record}.json was made with another {', '.join(differ)}; "
                    "move it or name another"
                )
            old.settings = old.settings if old.complete else settings  # which may tell more
            require_whole(
                old.complete or old.images is not None,
                f"{self.record}.json is unfinished, and the file of its images is missing; put it "
                "back, or remove the record",
            )
            self.report = old
            self.report.images = None if old.images is None else old.images.to(x.device)

    def finish(
        self, planned: list[Attack], points: list[tuple[str, float, Attack]], progress: bool
    ) -> None:
        """All attacks and points of curves that are left, and what their results call for."""
        report, names = self.report, {row.name for row in self.report.rows}
        planned = [attack for attack in planned if attack.name not in names]
        if report.settings.get("quantised"):
            planned = [attack.rounded() for attack in planned]
            points = [(curve, value, attack.rounded()) for curve, value, attack in points]
        if progress:
            gradient, forward = seconds_per_pass(self.model, self.x, self.y)
            jobs = [(a, report.n) for a in planned] + [(a, self.few) for _, _, a in points]
            total = sum(n * (a.gradients * gradient + a.forwards * forward) for a, n in jobs)
            print(f"at most about {max(total / 60, 0.1):.1f} min on this machine", flush=True)
            self.bar = tqdm(total=len(jobs), unit="attack", leave=False)
        if "clean" not in names:
            clean = Row("clean", "input", [-1] * report.n)
            self._offer(clean, self.x, torch.arange(report.n))
            report.rows.append(clean)
            if isinstance(self.model, Defended):
                report.alone = self._alone(self.model.classifier)
            self._keep()
        for attack in planned:
            self._attack(attack)
        for point in points:
            self._point(*point)
        if report.draws > 1:
            fresh = self._misread(report.images, torch.arange(report.n), first=report.draws)
            report.rescored = fresh.tolist()
        report.findings += judge(report)
        report.complete = True
        self._keep()
        self.bar.close()

    def _attack(self, attack: Attack) -> None:
        """Run one on all images, or on those that still stand, and keep what it found."""
        self.bar.set_postfix_str(attack.name)
        place = torch.arange(self.report.n)
        if not attack.everywhere:
            place = place[self.report.misread() < 1]
        row = Row(attack.name, attack.kind, [-1] * self.report.n)
        if len(place):
            counted = self.model.classifier if isinstance(self.model, Defended) else self.model
            with Meter(counted, self.x.device) as cost:
                inside = self.ball[place]
                named = taken(attack.run, {"index": self.index[place], "mask": inside.mask})
                images = attack.run(inside.x, self.y[place], **named)
            images = check_inside(images, inside, attack.name)
            row.calls, row.seconds = cost.images / len(place), cost.seconds
            row.mebibytes = cost.mebibytes
            if attack.kind == "ablation":
                row.fixed = self._misread(images, place, first=KNOWN_DRAW, draws=1).tolist()
            self._offer(row, images, place)
        self.report.rows.append(row)
        self._keep()
        self.bar.update()

    def _point(self, curve: str, value: float, attack: Attack) -> None:
        """One point of a curve, on the first images."""
        done = self.report.curves.setdefault(curve, {})
        if str(value) in done:
            return
        self.bar.set_postfix_str(f"{attack.name}, {curve} = {value:g}")
        part = torch.arange(self.few)
        inside = self.ball[part]
        keyed = {"index": self.index[part], "mask": inside.mask}
        images = attack.run(inside.x, self.y[part], **keyed)
        done[str(value)] = self._misread(images, part).tolist()
        self._keep()
        self.bar.update()

    def _alone(self, classifier: nn.Module) -> dict[str, list[int]]:
        """Which images the classifier misreads without its defense, clean and under PGD."""
        options = {key: self.report.settings[key] for key in ("eps", "norm", "seed")}
        options |= {"index": self.index, "batch_size": self.batch_size, "steps": self.budget.pgd}
        rounded = bool(self.report.settings.get("quantised"))
        pgd = attacks.quantised(attacks.pgd) if rounded else attacks.pgd
        options |= {"early_stop": not rounded, "mask": self.ball.mask}
        hit = pgd(classifier, self.x, self.y, **options)
        return {
            k: (~outcomes(classifier, z, self.y, batch_size=self.size)).int().tolist()
            for k, z in {"clean": self.x, "PGD": hit}.items()
        }

    def _offer(self, row: Row, images: Tensor, place: Tensor) -> None:
        """Score images and keep those that are misread more often than what was kept before."""
        report, counts = self.report, torch.tensor(row.misread)
        before = report.counts() if report.rows else counts.clone()
        counts[place] = self._misread(images, place)
        row.misread = counts.tolist()
        better = (counts > before)[place]
        report.images[place[better]] = images[better].to(report.images.dtype)

    @torch.no_grad()
    def _misread(self, images: Tensor, place: Tensor, *, first: int = 0, draws: int = 0) -> Tensor:
        """Of the scoring draws, how many are misread, int64 ``[len(place)]`` on the CPU."""
        counts = torch.zeros(len(place), dtype=torch.int64)
        parts = zip(*(whole.split(self.size) for whole in (images, place, counts)), strict=True)
        with evaluating(self.model):
            for some, at, count in parts:
                for draw in range(first, first + (draws or self.report.draws)):
                    logits = ask(self.model, some, draw=draw, index=self.index[at])
                    check_logits(logits, self.y[at])
                    count += (logits.argmax(1) != self.y[at]).long().cpu()  # a part of counts
        return counts

    def _keep(self) -> None:
        if self.record is not None:
            self.report.save(self.record.name, self.record.parent, device=self.x.device)


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
