"""What an evaluation returns, writes, resumes and refuses, with a small budget on few digits."""

import json
import math
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import support
import torch
from support import SMALL, Opaque, components, module_of, names, run, small
from torch import nn

from apudae import evaluation
from apudae.core import record
from apudae.core.arguments import AttackWarning
from apudae.core.scores import Accuracy
from apudae.evaluation import BUDGETS, Budget, Report, __main__, protocol
from apudae.purification import Defended, Direct


@pytest.fixture(scope="module")
def classifier():
    return small()


@pytest.fixture(scope="module")
def digits():
    return support.read(24)


def defended():
    return Defended(small(), Direct(components(), noise=0.2))


@pytest.mark.parametrize("random", [False, True])
def test_a_killed_evaluation_goes_on_where_it_was(digits, tmp_path, monkeypatch, random):
    dae = components()
    purifier = Direct(dae, noise=0.2) if random else Direct(dae)
    model = Defended(small(), purifier)
    few = digits.take(20)
    budget = replace(SMALL, pgd=1, apgd=5, queries=10, curve=10, scoring=8)
    options = {"eps": 0.1, "budget": budget, "title": "it"}
    whole = run(model, few, **options)
    assert len(set(whole.chosen())) > 2 and 0 < whole.worst.correct < 20  # several have a say

    calls, keep = [], protocol.Evaluation._keep

    def dying(self):
        keep(self)
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(protocol.Evaluation, "_keep", dying)
    with pytest.raises(KeyboardInterrupt):
        run(model, few, **options, record=tmp_path / "r_0.2")
    begun = Report.load("r_0.2", tmp_path)
    assert 0 < len(begun.rows) < len(whole.rows)
    monkeypatch.setattr(protocol.Evaluation, "_keep", keep)
    resumed = run(model, few, **options, record=tmp_path / "r_0.2")
    assert resumed.right().tolist() == whole.right().tolist()
    assert [row.misread for row in resumed.rows] == [row.misread for row in whole.rows]
    assert resumed.curves == whole.curves and resumed.findings == whole.findings
    assert torch.equal(resumed.images, whole.images)
    for row, first in zip(resumed.rows, begun.rows, strict=False):
        assert row.seconds == first.seconds  # not run again
    loaded = Report.load("r_0.2", tmp_path)
    assert loaded.worst == whole.worst and torch.equal(loaded.images, whole.images)
    assert (
        run(model, few, **options, record=tmp_path / "r_0.2").rows == loaded.rows
    )  # done: no work
    with pytest.raises(ValueError, match="was made with another eps; move it or name another"):
        run(model, few, **options | {"eps": 0.2}, record=tmp_path / "r_0.2")
    with pytest.raises(ValueError, match=r"another number of images \(20 there, 19 here\); move"):
        run(model, few.take(19), **options, record=tmp_path / "r_0.2")
    with pytest.raises(ValueError, match="was made with another model_sha256"):
        other = Defended(model.classifier, Direct(dae, repeats=2, noise=0.2 if random else 0.0))
        run(other, few, **options, record=tmp_path / "r_0.2")


def test_a_report_prints_draws_and_compares(digits, classifier):
    model, few = defended(), digits.take(24)
    report = run(model, few, eps=0.2, budget=SMALL, title="noisy")
    bare = run(classifier, few, eps=0.2, budget=SMALL)
    text = str(report)
    assert "own budget, n = 24" in text and "chosen per image" in text and "PGD, no defense" in text
    assert "no warnings" in str(bare) and str(bare.worst) in bare.summary()
    assert report._repr_markdown_().count("\n") == len(report.rows) + 2 + 2
    for curve in report.curves:
        assert report.figure(curve)._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="curve: expected one of ε, steps, got 'draws'"):
        bare.figure("draws")
    gap = report.minus(bare)
    assert gap.points == pytest.approx(report.worst.percent - bare.worst.percent)
    with pytest.raises(ValueError, match="other: expected a report on the same images"):
        report.minus(run(classifier, digits.take(20), eps=0.2, budget=SMALL, curves=False))
    json.dumps(report.to_dict())
    assert len(report.chosen()) == 24 and set(report.chosen()) <= {r.name for r in report.rows}


def test_own_attacks_join_and_must_stay_in_the_ball(digits, classifier):
    few = digits.take(20)
    grey = lambda model, x, y, *, eps: x + (0.5 - x).clamp(-eps, eps)  # noqa: E731
    options = {"eps": 0.2, "budget": SMALL, "curves": False}
    report = run(classifier, few, attacks={"grey": grey}, **options)
    assert report.rows[-1].name == "grey"
    with pytest.raises(ValueError, match=r"attacks: 'far' left the linf ball of radius 0\.05"):
        far = {"far": lambda model, x, y: 1 - x}
        run(classifier, few, attacks=far, **options | {"eps": 0.05})


def test_l2_and_few_classes(digits, classifier):
    report = run(
        Defended(classifier, Direct(components())),
        digits.take(20),
        eps=1.5,
        norm="l2",
        budget=SMALL,
    )
    assert max(map(float, report.curves["ε"])) == 14.0
    assert report.worst.correct <= report.clean.correct


def test_bad_input(digits, classifier):
    few = digits.take(20)
    options = {"budget": SMALL, "curves": False}
    with pytest.raises(ValueError, match=r"eps: expected a number > 0; without an attack"):
        run(classifier, few, eps=0, **options)
    with pytest.raises(ValueError, match="random: the model was said not to be"):
        run(defended(), few, eps=0.1, random=False, **options)
    with pytest.raises(ValueError, match="budget: expected quick or reference or a Budget, got"):
        run(classifier, few, eps=0.1, budget="huge")
    with pytest.raises(ValueError, match="expected values in \\[0, 1\\]"):
        run(classifier, (few.images * 255, few.labels), eps=0.1, **options)
    with pytest.raises(ValueError, match="model: NaN logits for 20 of 20 images"):
        nan = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        nn.init.constant_(nan[1].weight, math.nan)
        run(nan, few, eps=0.1, **options)
    with pytest.raises(ValueError, match=r"model: expected logits \[20, classes\], got shape"):
        run(nn.Identity(), few, eps=0.1, **options)
    with pytest.raises(ValueError, match="number of images: expected an integer >= 1, got 0"):
        run(classifier, (few.images[:0], few.labels[:0]), eps=0.1, **options)


def test_rates_have_intervals_too():
    assert str(Accuracy.of(torch.full((200,), 0.5, dtype=torch.float64))) == str(Accuracy(100, 200))
    assert set(BUDGETS) == {"quick", "reference"}


def test_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))\n"
        "def blur():\n"
        "    return torch.nn.AvgPool2d(3, 1, 1)\n"
    )

    command = [sys.executable, "-m", "apudae.evaluation", "--n", "20", "--no-curves"]
    run = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True)
    options = ["--purifier", "mine:blur", "--eps", "0.3", "0.4", "--record", "r"]
    done = run([*command, *options])
    assert done.returncode == 0, done.stderr
    assert (
        "min on this machine" in done.stdout and "linf ε = 0.4, quick budget, n = 20" in done.stdout
    )
    assert (tmp_path / "r-0.3.json").is_file() and (tmp_path / "r-0.4.json").is_file()

    monkeypatch.chdir(tmp_path)  # the same without the seconds that a process takes to begin
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.delitem(sys.modules, __main__.__name__)
    monkeypatch.setattr(sys, "argv", ["", "--classifier", "mine:nothing", "--eps", "0.1"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("apudae.evaluation", run_name="__main__", alter_sys=True)
    message = "error: mine:nothing: module 'mine' has no attribute"
    shown = capsys.readouterr().err
    assert end.value.code == 1 and shown.splitlines()[-1].startswith(message)
    assert "Traceback" not in shown
    few = ["--n", "20", "--no-curves", "--eps", "0.05"]
    assert __main__.main(["--classifier", "mine:build", *few]) == 0
    assert "mine:build, purifier none" in capsys.readouterr().out
    for options, message in (
        (("--purifier", "soap"), "error: purifier: expected one of module:function, none,"),
        (("--classifier", "vgg"), "error: "),
    ):
        assert __main__.main([*options, *few]) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_a_records_settings_are_all_that_decides(digits, classifier, tmp_path):
    few, options = digits.take(20), {"eps": 0.1, "budget": SMALL, "record": tmp_path / "r_0.1"}
    run(classifier, few, curves=False, **options)
    with pytest.raises(ValueError, match="was made with another curves"):
        run(classifier, few, curves=True, **options)


def test_a_kill_between_the_two_files_loses_one_attack_at_most(
    digits, classifier, tmp_path, monkeypatch
):
    few, options = digits.take(20), {"eps": 0.3, "budget": SMALL, "curves": False}
    whole = run(classifier, few, **options)
    calls, save = [], record.save

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:  # the images are written, their record is not
            raise KeyboardInterrupt
        return save(*args, **kwargs)

    monkeypatch.setattr(record, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        run(classifier, few, **options, record=tmp_path / "r_0.3")
    begun = Report.load("r_0.3", tmp_path)
    assert len(begun.rows) == 3 and begun.images is not None
    assert "unfinished" in begun.summary()
    monkeypatch.setattr(record, "save", save)
    resumed = run(classifier, few, **options, record=tmp_path / "r_0.3")
    assert [row.misread for row in resumed.rows] == [row.misread for row in whole.rows]
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


class Train(nn.Module):
    """Somebody's own model: trainable weights, batch norm, training mode, a cut in front."""

    def __init__(self, cut):
        super().__init__()
        self.norm, self.last, self.cut = nn.BatchNorm2d(1), nn.Linear(64, 4), cut

    def forward(self, x):
        x = x.detach() if self.cut else x
        return self.last(self.norm(x).flatten(1))


@pytest.mark.parametrize("cut", [False, True])
def test_a_model_of_ones_own_is_left_as_it_was(generator, cut):
    model = Train(cut)
    x = torch.rand(24, 1, 8, 8, generator=generator)
    y = model.eval()(x).argmax(1)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.warns(AttackWarning, match="BatchNorm2d in training mode"):
        options = {"budget": SMALL, "curves": False, "progress": False}
        report = evaluation.evaluate(model, x, y, eps=0.3, **options)
    assert "training mode" in names(report) and "BatchNorm2d" in report.summary()
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.inference_mode():
        report = run(model.eval(), (x, y), eps=0.3, budget=SMALL, curves=False)
    assert "training mode" not in names(report)
    assert ("zero gradients" in names(report)) == cut
    assert ("straight-through" in {row.name for row in report.rows}) == cut
    honest = Train(False)
    honest.load_state_dict(model.state_dict())
    truth = run(honest, (x, y), eps=0.3, budget=SMALL, curves=False)
    assert report.worst.correct <= truth.worst.correct + 1


def test_what_cannot_be_measured_is_refused(digits, classifier):
    few, options = digits.take(20), {"eps": 0.1, "budget": SMALL, "curves": False}
    for name in ("PGD", "transfer"):  # which a bare classifier has not, but warnings look for
        with pytest.raises(ValueError, match=f"attacks: '{name}' is one of the protocol's own"):
            run(classifier, few, attacks={name: lambda model, x, y: x}, **options)
    tiny = torch.rand(2, 1, 4, 4), torch.zeros(2).long()
    with pytest.raises(ValueError, match=r"x: Square in L2 needs 6 x 6 pixels or more, got \[4, 4"):
        run(module_of(lambda x: pytest.fail("asked")), tiny, norm="l2", **options)
    dae = components()
    with pytest.raises(ValueError, match="a Sequential cannot hand the number of a draw on to"):
        run(nn.Sequential(Direct(dae, noise=0.2), classifier), few, **options)
    with pytest.raises(ValueError, match=r"put `with torch.enable_grad\(\):` round that part"):

        def bare(x):
            z = x.detach().requires_grad_(True)
            return x - torch.autograd.grad(z.square().sum(), z)[0]

        run(Opaque(bare, classifier), few, **options)
    with pytest.raises(ValueError, match="model: it changes its input in place"):
        run(Opaque(lambda x: x.mul_(0.5), classifier), few, **options)
    for wrong in (1, 50):
        with pytest.raises(ValueError, match="scoring: expected 2 to 49 draws"):
            Budget(scoring=wrong)
    near, far = (run(classifier, few, **options | {"eps": eps}) for eps in (0.1, 0.2))
    with pytest.raises(ValueError, match="under the same attack"):
        near.minus(far)


def test_a_label_without_a_class_is_found_behind_the_first_look_too(classifier):
    x, y = support.digits(60)
    with pytest.raises(ValueError, match=r"y: expected labels in 0 \.\. 9, got 0 \.\. 10"):
        run(classifier, (x, torch.where(torch.arange(60) == 55, 10, y)), eps=0.1, budget=SMALL)
