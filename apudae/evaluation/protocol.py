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
from ..core.arguments import check_logits, warn
from ..core.calling import ask, evaluating
from ..core.norms import length
from ..core.record import differences
from ..core.scores import Accuracy, outcomes, paired_difference
from ..purification.purifier import Defended
from .attackers import Attack, Budget, seconds_per_pass
from .cost import Meter
from .diagnostics import Finding, clearly_fewer
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
    ) -> None:
        self.model, self.x, self.y, self.index = model, x, y, index
        self.budget, self.batch_size, self.size = budget, batch_size, batch_size or 250
        self.record = None if record is None else Path(record)
        draws = budget.scoring if settings["random"] else 1
        self.report = Report(settings, len(x), draws, images=x.clone())
        self.bar: tqdm | None = None
        if record is not None and Path(f"{record}.json").is_file():
            old = Report.load(self.record.name, self.record.parent)
            if differ := differences(settings, old.settings):
                raise ValueError(
                    f"record: {self.record}.json was made with another {', '.join(differ)}; "
                    "move it or name another"
                )
            if old.images is not None or old.complete:
                self.report = old
                self.report.images = None if old.images is None else old.images.to(x.device)

    def start(self, planned: list[Attack], points: list, progress: bool) -> None:
        """Estimate the time, begin the bar, and measure what needs no attack."""
        names = {row.name for row in self.report.rows}
        if progress:
            gradient, forward = seconds_per_pass(self.model, self.x, self.y)
            jobs = [(a, self.report.n) for a in planned if a.name not in names]
            jobs += [(a, self.few) for _, _, a in points]
            total = sum(n * (a.gradients * gradient + a.forwards * forward) for a, n in jobs)
            print(f"at most about {max(total / 60, 0.1):.1f} min on this machine", flush=True)
            self.bar = tqdm(total=len(jobs), unit="attack", leave=False)
        if "clean" not in names:
            self._offer(Row("clean", "input", []), self.x, torch.arange(self.report.n))
            bare = self.model.classifier if isinstance(self.model, Defended) else None
            if bare is not None:
                self.report.alone = self._alone(bare)
            self._keep()

    @property
    def few(self) -> int:
        """Images that the curves are drawn for."""
        return min(self.report.n, self.budget.curve)

    def attack(self, attack: Attack) -> None:
        """Run one on all images, or on those that still stand, and keep what it found."""
        if any(row.name == attack.name for row in self.report.rows):
            return
        if self.bar is not None:
            self.bar.set_postfix_str(attack.name)
        stands = torch.ones(self.report.n, dtype=torch.bool)
        if not attack.everywhere:
            stands = self.report.misread() < 1
        place = stands.nonzero().flatten()
        row = Row(attack.name, attack.kind, [])
        if len(place):
            counted = self.model.classifier if isinstance(self.model, Defended) else self.model
            with Meter(counted, self.x.device) as cost:
                at = place.to(self.x.device)
                images = attack.run(self.x[at], self.y[at], self.index[place]).detach()
            self._check_inside(images, at, attack.name)
            row.calls, row.seconds = cost.images / len(place), cost.seconds
            row.mebibytes = cost.mebibytes
            if attack.kind == "ablation":
                row.fixed = self._misread(images, place, first=KNOWN_DRAW, draws=1).tolist()
            self._offer(row, images, place)
        else:
            row.misread = [-1] * self.report.n
            self.report.rows.append(row)
        self._keep()
        self._tick()

    def point(self, curve: str, value: float, attack: Attack) -> None:
        """One point of a curve, on the first images."""
        done = self.report.curves.setdefault(curve, {})
        if str(value) in done:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(f"{attack.name}, {curve} = {value:g}")
        part = torch.arange(self.few)
        images = attack.run(self.x[: self.few], self.y[: self.few], self.index[: self.few])
        done[str(value)] = self._misread(images, part).tolist()
        self._keep()
        self._tick()

    def close(self) -> None:
        """Score again on fresh draws, raise what the results call for, save."""
        report = self.report
        everywhere = torch.arange(report.n)
        if report.draws > 1:
            fresh = self._misread(report.images, everywhere, first=report.draws)
            report.rescored = fresh.tolist()
        report.findings += judge(report)
        report.complete = True
        self._keep()
        if self.bar is not None:
            self.bar.close()

    def finished(self) -> Report:
        """The report, its warnings drawn."""
        for finding in self.report.findings:
            warn(f"{self.report.settings['title']}: {finding}")
        return self.report

    def _alone(self, classifier: nn.Module) -> dict[str, list[int]]:
        s = self.report.settings
        options = {"eps": s["eps"], "norm": s["norm"], "seed": s["seed"], "index": self.index}
        options["batch_size"] = self.batch_size
        hit = attacks.pgd(
            classifier, self.x, self.y, steps=self.budget.pgd, early_stop=True, **options
        )
        found = {"clean": self.x, "PGD": hit}
        return {
            k: (~outcomes(classifier, z, self.y, batch_size=self.size)).int().tolist()
            for k, z in found.items()
        }

    def _offer(self, row: Row, images: Tensor, place: Tensor) -> None:
        """Score images and keep those that are misread more often than what was kept before."""
        report, at = self.report, place.to(self.x.device)
        misread = self._misread(images, place)
        counts = torch.full((report.n,), -1, dtype=torch.int64)
        counts[place] = misread
        before = torch.tensor([r.misread for r in report.rows]).amax(0) if report.rows else None
        better = torch.ones_like(misread, dtype=torch.bool)
        if before is not None:
            better = misread > before[place]
        chosen = better.to(self.x.device)
        report.images[at[chosen]] = images[chosen].to(report.images.dtype)
        row.misread = counts.tolist()
        report.rows.append(row)

    @torch.no_grad()
    def _misread(self, images: Tensor, place: Tensor, *, first: int = 0, draws: int = 0) -> Tensor:
        """Of the scoring draws, how many are misread, int64 ``[len(place)]`` on the CPU."""
        draws = draws or self.report.draws
        counts = torch.zeros(len(place), dtype=torch.int64)
        with evaluating(self.model):
            for start in range(0, len(place), self.size):
                part = slice(start, start + self.size)
                labels = self.y[place[part].to(self.y.device)]
                for draw in range(first, first + draws):
                    keys = self.index[place[part]]
                    logits = ask(self.model, images[part], draw=draw, index=keys)
                    check_logits(logits, labels)
                    counts[part] += (logits.argmax(1) != labels).long().cpu()
        return counts

    def _check_inside(self, images: Tensor, at: Tensor, name: str) -> None:
        s = self.report.settings
        x = self.x[at]
        if images.shape != x.shape:
            raise ValueError(f"attacks: {name!r} returned shape {list(images.shape)}")
        far = length(images - x, s["norm"]).max().item()
        low, high = images.min().item(), images.max().item()
        if not (low >= 0 and high <= 1 and far <= s["eps"] + 1e-5):
            raise ValueError(
                f"attacks: {name!r} left the {s['norm']} ball of radius {s['eps']:g} or [0, 1]: "
                f"it went {far:.4g} far, to values in [{low:.4g}, {high:.4g}]"
            )

    def _keep(self) -> None:
        if self.record is not None:
            self.report.save(self.record.name, self.record.parent, device=self.x.device)

    def _tick(self) -> None:
        if self.bar is not None:
            self.bar.update()


def judge(report: Report) -> list[Finding]:
    """Warnings that the results themselves call for; see :data:`apudae.evaluation.RULES`."""
    found = []
    ran = {row.name for row in report.rows}
    white = report.right("PGD")
    for name in {"transfer"} & ran:
        if clearly_fewer(white, report.right(name)):
            gap = paired_difference(white, report.right(name))
            found.append(Finding("black box wins", f"{name} against PGD: {gap}"))
    if "Square" in ran:
        kept = [row for row in report.rows if row.name != "Square"]
        without = torch.tensor([row.misread for row in kept]).amax(0).clamp(min=0)
        square = torch.tensor(next(r for r in report.rows if r.name == "Square").misread)
        both = torch.maximum(without, square)
        pair = [1 - counts.double() / report.draws for counts in (without, both)]
        pair = pair if report.draws > 1 else [rate == 1 for rate in pair]
        if clearly_fewer(*pair):
            gap = paired_difference(*pair)
            found.append(Finding("black box wins", f"with Square the worst case falls by {gap}"))
    if clearly_fewer(white, report.right("noise")):
        gap = paired_difference(white, report.right("noise"))
        found.append(Finding("noise wins", f"noise against PGD: {gap}"))
    steps = {float(k): report._share(v) for k, v in report.curves.get("steps", {}).items()}
    most = max(steps, default=0.0)
    weaker = [k for k in steps if clearly_fewer(steps[most], steps[k])]
    if weaker:
        seen = (
            f"PGD with {most:g} steps leaves more than with {', '.join(f'{k:g}' for k in weaker)}"
        )
        found.append(Finding("more steps are weaker", seen))
    radii = {float(k): report._share(v) for k, v in report.curves.get("ε", {}).items()}
    if radii:
        left = Accuracy.of(radii[max(radii)])
        if left.percent > 10:
            found.append(Finding("does not fall", f"at ε = {max(radii):g} {left} stand"))
    return found
