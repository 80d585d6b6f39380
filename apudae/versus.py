"""The recorded comparison of defenses on a data set: weak and strong attackers side by side.

``python -m apudae.experiments mnist`` fills the record ``mnist`` row by row, a row per defense, ε
and attack. *Weak* attacks aim at the bare classifier and have never heard of the defense. *Strong*
is :func:`apudae.evaluation.evaluate`, each image's worst case. Cheap rows come first, so that a run
that was stopped is of use, and every row that is there is kept.

The verdict on the book's own purification has records of its own (:mod:`apudae.robustness`); the
full comparison takes it from there. :mod:`apudae.standings` reads both.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import attacks, baselines, checkpoints, data, records, scores
from .checks import AttackWarning, ask, differentiable
from .cost import Meter
from .evaluation import evaluate, model_fingerprint
from .lineup import CLEAN, CW, MNIST, SEARCHES, STRONG, Lineup, Prices, Profile, key
from .purification import Defended

PIECE = 1000  # images between two savings of a weak row
PROVENANCE = ("apudae", "torch", "device", "date")  # of each row


class Comparison:
    """A record that is being filled.

    Args:
        record: its name.
        profile: how much of everything; of a smaller set, all.
        root: of the data.
        weights: folder of them.
        results: folder of the records.
        work: folder where a row that was stopped waits.
        only: defenses to measure; all without. Runs for different ones can share a record.
        lineup: what is compared.

    Raises:
        ValueError: the record was made with other settings; each is named.
    """

    def __init__(
        self,
        record: str,
        profile: Profile,
        *,
        root: Path | None,
        weights: Path,
        results: Path,
        work: Path,
        only: list[str] | None = None,
        lineup: Lineup = MNIST,
    ) -> None:
        self.record, self.lineup = record, lineup
        self.results, self.work = results, work
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        unknown = sorted(set(only or ()) - set(lineup.defenses))
        if unknown:
            known = ", ".join(lineup.defenses)
            raise ValueError(f"only: expected {known}; got {', '.join(unknown)}")
        models = lineup.build(weights, self.device)
        self.models = {k: model for k, model in models.items() if not only or k in only}
        test = lineup.load(profile=profile.data, root=root).take(profile.weak)
        self.x, self.y = (part.to(self.device) for part in test)
        self.profile = profile.within(len(self.x))
        settings = {
            "what": f"which test {lineup.what} are read correctly under attacks that do not know "
            "of the defense, and in the worst case over attacks that do",
            "profile": asdict(self.profile),
            "weak": lineup.told,
            "data": lineup.about_data | {"n": len(self.x), "sha256": data.fingerprint(self.x)},
            "outcomes": "in the order of the split: records.unpack(text, n); of the protocol on a "
            "random model how many of the fresh draws were misread, per image",
        }
        self.settings = json.loads(json.dumps(settings))  # tuples as they come back
        self.work.mkdir(parents=True, exist_ok=True)
        self.rows = self._stored()["rows"]
        self._kept: tuple[tuple[str, float], dict[tuple, Tensor]] = ("", 0.0), {}

    def run(self) -> None:
        """Fill in what is missing, the cheap first, and store after every row."""
        jobs = self.jobs()
        left, spent, guessed = sum(price for _, price, _ in jobs), 0.0, 0.0
        for k, (text, price, job) in enumerate(jobs, 1):
            start = time.perf_counter()
            row = job()
            seconds = time.perf_counter() - start
            made = records.provenance(self.device)
            row |= {"seconds": round(seconds, 1)} | {p: made[p] for p in PROVENANCE}
            self._store(rows={text: row})
            self._forget(text)
            left, spent, guessed = left - price, spent + seconds, guessed + price
            to_go = left * min(spent / guessed, 1.0) / 60
            print(
                f"{k} of {len(jobs)}  {text}: {row['correct']} of {row['n']}, {seconds:.1f} s; "
                f"at most about {to_go:.0f} min to go",
                flush=True,
            )
        for part, measure in self._costs().items():
            if not self.models.keys() <= self._stored().get(part, {}).keys():
                self._store(**{part: measure()})

    def jobs(self) -> list[tuple[str, float, Callable[[], dict[str, Any]]]]:
        """What is missing, the cheap first: key, seconds it takes at most, and what to do."""
        missing = [
            (name, attack, eps)
            for name in self.models
            for attack, eps in self.lineup.attacked(self.profile, name)
            if key(name, attack, eps) not in self.rows
        ]
        few = self.x[:8], self.y[:8]
        prices = Prices(self.lineup, self.models, self.profile, *few) if missing else None
        found = []
        for name, attack, eps in missing:
            price, text = prices.seconds(name, attack, eps), key(name, attack, eps)
            if attack == STRONG:
                first = prices.seconds(name, attack, self.profile.epsilons[0])
                order = (1, first, self.profile.epsilons.index(eps))
                job = partial(self._evaluate, name, eps)
            else:  # attacked images are shared, so what is made from the same ones is together
                order = (0, [CLEAN, *self.lineup.weak, CW].index(attack), eps, price)
                job = partial(self._attack, name, attack, eps)
            found.append((order, (text, price, job)))
        return [what for _, what in sorted(found, key=lambda pair: pair[0])]

    def _attack(self, name: str, attack: str, eps: float) -> dict[str, Any]:
        """One weak attack, on the classifier that stands behind the defense, piece by piece."""
        model, n = self.models[name], self.profile.n(name, attack)
        text = key(name, attack, eps)
        begun = {"settings": self.settings, "row": text, "model": self._model(name)}
        right, moved = torch.zeros(n, dtype=torch.bool), torch.zeros(n)
        done, path = 0, self._partial(text)
        if path.is_file():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RuntimeError(f"{path} is damaged: {error}; remove it") from error
            if begun.items() <= old.items():
                done = old["done"]
                right[:done] = records.unpack(old["outcomes"], done)
                moved[:done] = torch.tensor(old["moved"])
        while done < n:
            part = slice(done, min(done + PIECE, n))
            x, y, index = self.x[part], self.y[part], torch.arange(n)[part]
            found = self._attacked(model, attack, eps, part)
            right[part] = scores.outcomes(model, found, y, index=index).cpu()
            moved[part] = (found - x).flatten(1).norm(dim=1).cpu()
            done = part.stop
            so_far = {"outcomes": records.pack(right[:done]), "moved": moved[:done].tolist()}
            whole = json.dumps(begun | {"done": done} | so_far)
            checkpoints.write_aside(path, whole.encode())
        row = self._row(name, right)
        return row | ({"l2": round(moved.mean().item(), 3)} if attack == CW else {})

    def _attacked(self, model: nn.Module, attack: str, eps: float, part: slice) -> Tensor:
        """Images of the classifier behind a defense; kept, for other defenses need them too."""
        classifier = model.classifier if isinstance(model, Defended) else model
        if self._kept[0] != (attack, eps):
            self._kept = (attack, eps), {}
        known, where = self._kept[1], (id(classifier), part.start, part.stop)
        if where not in known:
            x, y, index = self.x[part], self.y[part], torch.arange(len(self.x))[part]
            if attack == CLEAN:
                known[where] = x
            elif attack == CW:
                known[where] = attacks.cw(classifier, x, y, **SEARCHES)
            else:
                weak = self.lineup.weak[attack]
                options = attacks.taken(weak, {"eps": eps, "index": index})
                known[where] = weak(classifier, x, y, **options)
        return known[where]

    def _evaluate(self, name: str, eps: float) -> dict[str, Any]:
        """The protocol."""
        n = self.profile.n(name, STRONG)
        path = self._partial(key(name, STRONG, eps)).with_suffix("")
        report = evaluate(
            self.models[name],
            self.x[:n],
            self.y[:n],
            eps=eps,
            budget=self.profile.budget,
            norm=self.lineup.norm,
            curves=False,
            title=name,
            record=path,
        )
        right = report.right()
        row = self._row(name, right == 1 if report.draws > 1 else right)
        if report.draws > 1:
            row["misread"], row["draws"] = report.rescored, report.draws
            row["correct"] = round(right.sum().item(), 2)
        worst, row["stands"] = torch.zeros(n, dtype=torch.float64), {}
        for attack in report.rows:
            misread = torch.tensor(attack.misread).clamp(min=0).double() / report.draws
            worst = torch.maximum(worst, misread)
            row["stands"][attack.name] = round((1 - worst).sum().item(), 2)
        row["warnings"] = {finding.name: finding.seen for finding in report.findings}
        return row

    def _costs(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """What is measured of each defense besides its rows."""
        costs: dict[str, Callable[[], dict[str, Any]]] = {"ms_per_image": self._times}
        return costs | ({"gradient": self._gradients} if self.lineup.batch else {})

    def _gradients(self) -> dict[str, dict[str, float | None]]:
        """An attacker's pass (FGSM, full gradient): ms per image, MiB for a batch at the worst."""
        x, y = self.x[: self.lineup.batch], self.y[: self.lineup.batch]
        found = {}
        for name, model in self.models.items():
            found[name] = {}
            if not differentiable(model, x[:1]):
                continue
            with Meter(model, self.device) as cost, warnings.catch_warnings():
                warnings.simplefilter("ignore", AttackWarning)  # a gradient may be zero
                attacks.fgsm(model, x, y, eps=self.lineup.epsilons[0], batch_size=len(x))
            ms = round(1000 * cost.seconds / len(x), 1)
            held = None if cost.mebibytes is None else round(cost.mebibytes)
            found[name] = {"ms": ms, "mebibytes": held, "batch": len(x)}
        return found

    @torch.no_grad()
    def _times(self) -> dict[str, float]:
        """Milliseconds per image: the median of five passes over a second's worth of images."""
        x, index, found = self.x[:100], torch.arange(100), {}
        for name, model in self.models.items():
            taken, many = [], min(8, len(x))
            for _ in range(6):
                start = time.perf_counter()
                ask(model, x[:many], index=index[:many]).sum().item()  # waits for a GPU
                taken.append(1000 * (time.perf_counter() - start) / many)
                many = min(max(int(1000 / taken[0]), 1), len(x))
            found[name] = round(statistics.median(taken[1:]), 4)
        return found

    def _row(self, name: str, right: Tensor) -> dict[str, Any]:
        whole = {"n": len(right), "correct": int(right.sum()), "outcomes": records.pack(right)}
        return whole | {"model": self._model(name)}

    def _model(self, name: str) -> str:
        return model_fingerprint(self.models[name])[:16]

    def _partial(self, text: str) -> Path:
        """Where a row that was stopped waits."""
        name, attack, eps = text.split(" | ")
        place = self.lineup.defenses.index(name)
        return self.work / f"{self.record}_{place}_{attack.replace('&', '')}_{eps}.json"

    def _forget(self, text: str) -> None:
        """What a finished row has left, its strongest images too."""
        path = self._partial(text)
        path.unlink(missing_ok=True)
        for images in path.parent.glob(f"{path.stem}-*.safetensors"):
            images.unlink()

    def _stored(self) -> dict[str, Any]:
        """The record as it is, or an empty one."""
        if self.record not in records.names(self.results):
            return {"rows": {}, "ms_per_image": {}}
        old = records.load(self.record, self.results)
        differ = [k for k, v in self.settings.items() if old.get(k) != v]
        if differ:
            raise ValueError(
                f"{self.results / self.record}.json was made with another {', '.join(differ)}; "
                "move it or name another folder"
            )
        return old

    def _store(self, **new: dict[str, Any]) -> None:
        """Into the record as it is now: another run may have added rows of other defenses.

        Of two that write in the same moment one may lose its row, which is then made again.
        """
        old = self._stored()
        parts = (*self._costs(), "rows")
        whole = {part: old.get(part, {}) | new.get(part, {}) for part in parts}
        self.rows = whole["rows"]
        save = partial(records.save, device=self.device, folder=self.results)
        save(self.record, self.settings | whole)


def mnist(
    root: Path | None,
    weights: Path,
    results: Path,
    work: Path,
    profile: str,
    only: list[str] | None = None,
) -> None:
    """Train what is missing, and fill the record of a profile: ``mnist``, or ``mnist_quick``."""
    baselines.train_missing(root, weights, work)
    where = {"root": root, "weights": weights, "results": results, "work": work}
    compare(MNIST, profile, only, **where)


def compare(lineup: Lineup, profile: str, only: list[str] | None, **where: Any) -> None:
    """Fill the record of a profile; rows that older code made are named, and kept."""
    name, p = lineup.records[profile], lineup.profiles[profile]
    table = Comparison(name, p, only=only, lineup=lineup, **where)
    for text in records.older(table.rows):
        print(f"made by older code, and kept: {text}", flush=True)
    table.run()
