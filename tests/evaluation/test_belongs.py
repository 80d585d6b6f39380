"""A stored number is given back for its own model and images alone, and is never lost."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from apudae import training
from apudae.core import files, record
from apudae.core.record import Record
from apudae.data import Split
from apudae.evaluation import Budget, Certificates, certification, certify, evaluate
from apudae.evaluation import votes as votes_of
from apudae.evaluation.report import Report
from apudae.experiments import Place, digits

evaluating = importlib.import_module("apudae.evaluation.evaluate")
fitting = importlib.import_module("apudae.training.fit")

BRIEF = Budget(
    pgd=2, apgd=2, restarts=1, targets=1, queries=3, draws=1, weights=(0.1,), curve=2, scoring=2
)
X = torch.randint(256, (8, 1, 4, 4), generator=torch.Generator().manual_seed(0)) / 255
Y = torch.arange(8) % 2
pytestmark = pytest.mark.filterwarnings("ignore::apudae.core.arguments.AttackWarning")


class Mine(nn.Module):
    """A plain tensor, which is no buffer; a function; a number that only its code knows."""

    def __init__(self, kept=0.5, function=None):
        super().__init__()
        self.m, self.function = torch.full((1,), kept), function or (lambda x: x)

    def forward(self, x):
        mean = self.function(x).flatten(1).mean(1)
        return torch.stack([mean, self.m.expand(len(x))], 1)


class Otherwise(Mine):
    def forward(self, x):
        return super().forward(x).flip(1)


def measured(folder, model=None, x=X, y=Y, **more):
    options = {"eps": 0.1, "budget": BRIEF, "curves": False, "progress": False, "title": "it"}
    return evaluate(model or Mine(), x, y, record=folder / "r", **options | more)


def votes(folder, model=None, x=X, **more):
    options = {"sigma": 0.2, "n": 100, "n0": 10, "noise_trained": True}
    return certify(model or Mine(), x, record=folder / "r", **options | more)


@pytest.mark.parametrize("ask", [measured, votes])
def test_another_model_or_other_images_are_refused_and_the_reason_is_told(ask, tmp_path):
    first = ask(tmp_path)
    good = (tmp_path / "r.json").read_bytes()
    again = ask(tmp_path, Mine(), X.clone())
    assert type(again) is type(first) and (tmp_path / "r.json").read_bytes() == good
    near = (X * 255 + 0.46 * (X < 0.5)) / 255  # the same pixels once they are rounded
    exec_ = {}
    exec("def double(x): return 2 * x\ndef triple(x): return 3 * x", exec_)
    for model, x, why in (
        (Mine(0.51), X, r"model \(its weights, other values, or code differ"),
        (Mine(function=lambda x: 1 * x), X, r"model \(its weights, other values, or code"),
        (Otherwise(), X, r"model \(its weights, other values, or code"),
        (Mine(), near, "data_exact"),
        (Mine(), X.double(), "data_exact"),
    ):
        with pytest.raises(ValueError, match=f"r.json was made with another .*{why}"):
            ask(tmp_path, model, x)
    os.unlink(tmp_path / "r.json")
    ask(tmp_path, Mine(function=exec_["double"]))
    with pytest.raises(ValueError, match=r"answers otherwise: logits differ by up to 0\.\d"):
        triple = exec_["triple"]
        triple.__name__ = triple.__qualname__ = "double"  # no source: its answers tell
        ask(tmp_path, Mine(function=triple))
    assert (tmp_path / "r.json").is_file()


class Counting(Mine):
    """It keeps something that its own calls change."""

    def __init__(self, keeps):
        super().__init__()
        self.total = {"float": 0.0, "buffer": nn.Buffer(torch.zeros(1))}.get(keeps, [])
        self.keeps, self._calls = keeps, 0

    def forward(self, x):
        self._calls += self.keeps == "private"  # a count of calls tells no models apart
        if self.keeps == "cache":  # filled by the first call, and then as it is
            self.total = self.total or [0.5]
        elif self.keeps == "list":
            self.total.append(len(x) / 2)
        elif self.keeps in ("float", "buffer"):
            self.total += 0.5
        return super().forward(x)


@pytest.mark.parametrize("keeps", ["float", "buffer", "list", "cache", "private", "nothing"])
@pytest.mark.parametrize("ask", [measured, votes])
def test_a_model_that_its_own_calls_change_is_not_called_another(ask, keeps, tmp_path):
    model, changes = Counting(keeps), keeps in ("float", "buffer", "list")
    first = ask(tmp_path, model)
    findings = {finding.name for finding in getattr(first, "findings", [])}
    assert ("changes as it is asked" in findings) == (changes and ask is measured)
    for again in (model, Counting(keeps)):
        if changes:
            with pytest.raises(ValueError, match="it keeps what its own calls change; let counts"):
                ask(tmp_path, again)
        else:
            ask(tmp_path, again)


def test_labels_masks_and_own_attacks_belong_to_a_report_too(tmp_path):
    def still(model, x, y, **options):
        return x

    def other(model, x, y, **options):
        return x.clone()

    def few(steps):
        def attack(model, x, y, **options):
            return (x + 0 * steps).clamp(0, 1)

        return attack

    measured(tmp_path / "few", attacks={"mine": few(1)})
    with pytest.raises(ValueError, match=r"r\.json was made with another own_attacks_sha256"):
        measured(tmp_path / "few", attacks={"mine": few(20)})
    measured(tmp_path, attacks={"mine": still})
    measured(tmp_path, attacks={"mine": still})
    for changes, part in (
        ({"y": 1 - Y}, "labels_sha256"),
        ({"attacks": {"mine": other}}, "own_attacks_sha256"),
    ):
        with pytest.raises(ValueError, match=rf"r\.json was made with another {part}"):
            measured(tmp_path, **{"attacks": {"mine": still}} | changes)


def older(folder):
    """The same record as an older version would have written it."""
    whole = record.load("r", folder)
    part = whole.get("settings", whole)
    for name in ("model", "data_exact", "own_attacks_sha256", "mask", "quantised"):
        part.pop(name, None)
    (folder / "r.json").write_text(json.dumps(whole | {"schema": 1}), "utf-8")


@pytest.mark.parametrize("ask", [measured, votes])
def test_an_older_record_is_gone_on_with_where_its_prints_leave_no_doubt(ask, tmp_path):
    ask(tmp_path)
    older(tmp_path)
    ask(tmp_path)
    with pytest.raises(ValueError, match="8-bit pixels only"):
        ask(tmp_path, x=(X * 255 + 0.3 * (X < 0.5)) / 255)
    weights = Mine()
    weights.more = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="another model_sha256"):
        ask(tmp_path, weights)


def test_rows_of_another_model_are_refused(tmp_path):
    def opened(model):
        toy = Record("toy", {"a": 1}, tmp_path, keys=("defense",))
        toy.of({"one": model}, X)
        return toy

    def row():
        return {"n": 8, "correct": 8}

    opened(Mine()).measure(("one",), row)
    assert opened(Mine()).find("one")
    late = opened(Mine())
    with pytest.raises(ValueError, match=r"toy\.json holds rows of another one: its weights"):
        opened(Mine(0.7))
    os.unlink(late.path)
    opened(Mine(0.7)).measure(("one",), row)
    with pytest.raises(ValueError, match="holds rows of another one"):  # put there since
        late.save()


def blank(n):
    return Split(torch.zeros(n, 1, 28, 28), Y[:n])


class Dies(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_kill_at_any_write_step_loses_no_certificate(tmp_path, monkeypatch):
    """Before and after each rename and removal; the votes lie in a file or in the row."""
    stage, asked, cast = [0], [], votes_of

    def spied(model, image, key, *rest, **more):
        asked.append(key)
        return cast(model, image, key, *rest, **more)

    def dying(step):
        def act(*args, **kwargs):
            stage[0] -= 1
            if stage[0] == 0:
                raise Dies
            found = step(*args, **kwargs)
            stage[0] -= 1
            if stage[0] == 0:
                raise Dies
            return found

        return act

    small = {"n": 2, "draws": (20, 5), "alpha": 0.1, "sigmas": (0.5,), "radii": ()}
    subject = replace(digits.CERTIFIED, images=lambda place, **more: blank(2), **small)
    monkeypatch.setattr(certification, "votes", spied)
    monkeypatch.setattr(record.time, "monotonic", iter(range(0, 10**6, 10)).__next__)
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    whole = None
    for kill in range(1, 60):
        place = Place(results=tmp_path / f"{kill}", work=tmp_path / f"{kill}" / "work")
        asked.clear()
        stage[0] = kill
        try:
            subject.run(place)
            died = False
        except Dies:
            died = True
        stage[0] = 0
        before = subject.missing(place)
        subject.run(place)
        assert died or not before
        assert len(asked) <= 2 * 2 + 1  # an image at most is asked again
        assert not list(place.work.glob("*.json"))
        found = [subject.certificates(kind, 0.5, place).votes for kind in subject.kinds]
        whole = whole or found
        assert all(map(torch.equal, found, whole))
        if not died:
            break
    assert 8 < kill < 59 and isinstance(whole[0], torch.Tensor)


def test_a_piece_is_removed_after_its_row_is_stored(tmp_path, monkeypatch):
    gone, there = [], []
    unlink = Path.unlink

    def watched(self, missing_ok=False):
        if self.name.endswith(".json"):
            gone.append(self.name)
            there.append(len(record.load("mnist_certified", tmp_path)["rows"]))
        return unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    small = {"n": 2, "draws": (20, 5), "alpha": 0.1, "sigmas": (0.5,), "radii": ()}
    subject = replace(digits.CERTIFIED, images=lambda place, **more: blank(2), **small)
    subject.run(Place(results=tmp_path, work=tmp_path / "w"))
    assert there == [1, 2] and len(gone) == 2


def trained(folder, epochs=1):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    options = {"epochs": epochs, "checkpoint": folder / "r.pt", "progress": False}
    return training.fit(net, X, Y, **options).loss


@pytest.mark.parametrize("ask", [measured, votes, trained])
def test_what_is_finished_can_be_read_where_nothing_can_be_written(ask, tmp_path, monkeypatch):
    first = ask(tmp_path)
    read_only, folder = {"r.json", "r.pt"}, tmp_path / "empty"
    folder.mkdir()

    def refuses(folder, name):
        raise ValueError(f"{name}: cannot write to the folder")

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for module in (files, evaluating, certification, fitting):
        monkeypatch.setattr(module, "check_writable", refuses)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert read_only & before.keys() and type(ask(tmp_path)) is type(first)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=r"(record|checkpoint): cannot write to the folder"):
        ask(folder)


def test_an_unfinished_report_without_its_images_is_not_begun_anew(tmp_path, monkeypatch):
    keep, times = Report.save, []

    def killed(self, *args, **options):
        keep(self, *args, **options)
        times.append(1)
        if len(times) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Report, "save", killed)
        measured(tmp_path)
    (images,) = tmp_path.glob("*.safetensors")
    moved = images.rename(tmp_path / "moved")
    with pytest.raises(RuntimeError, match=r"r\.json is unfinished, and the file of its images is"):
        measured(tmp_path)
    moved.rename(images)
    assert measured(tmp_path).complete


def test_a_report_that_is_saved_anew_while_it_is_read_is_read_anew(tmp_path, monkeypatch):
    report = measured(tmp_path)
    loads, other = record.load, replace(report, images=1 - report.images)

    def slow(name, folder, *keys):
        found = loads(name, folder, *keys)
        monkeypatch.setattr(record, "load", loads)
        other.save("r", tmp_path)  # whose images are in another file
        return found

    monkeypatch.setattr(record, "load", slow)
    assert torch.equal(Report.load("r", tmp_path).images, other.images)


def test_images_that_do_not_fit_their_report_are_refused(tmp_path):
    measured(tmp_path)
    (images,) = tmp_path.glob("*.safetensors")
    other = tmp_path / "r-mine-12345678.safetensors"  # of a record called r-mine
    other.write_bytes(b"x")
    report = Report.load("r", tmp_path)
    report.save("r", tmp_path)
    assert other.is_file() and images.is_file()
    whole = bytearray(images.read_bytes())
    whole[-1] ^= 1
    images.write_bytes(whole)
    with pytest.raises(RuntimeError, match=f"{images.name} is damaged"):
        Report.load("r", tmp_path)
    assert isinstance(votes(tmp_path / "new"), Certificates)
