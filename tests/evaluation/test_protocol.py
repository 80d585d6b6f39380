"""The protocol against defenses of which the truth is known."""

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import support
import torch
from support import SMALL, Detached, Hot, Noisy, Opaque, Quantise, Rarely, shipped
from torch import nn

from apudae import evaluation, models
from apudae.core import files, record
from apudae.core.arguments import AttackWarning
from apudae.core.scores import Accuracy
from apudae.evaluation import BUDGETS, RULES, Budget, Finding, Report, inspect_model, protocol
from apudae.evaluation.diagnostics import is_random
from apudae.purification import Adaptive, Calibration, Defended, Direct


def run(model, digits, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        return evaluation.evaluate(model, *digits, progress=False, **options)


def names(report):
    return {finding.name for finding in report.findings}


@pytest.fixture(scope="module")
def classifier():
    return shipped("mnist-cnn")


@pytest.fixture(scope="module")
def digits():
    """Sixty: masked and plain models are compared image by image."""
    return support.digits(60)


@pytest.fixture(scope="module")
def base(classifier, digits):
    return run(classifier, digits, eps=0.1)


def differ(one, other):
    """On how many of the same images two reports differ, by rates where one is random."""
    return (one.right().double() - other.right().double()).abs().sum().item()


def test_the_plain_network_raises_nothing_and_keeps_its_numbers_consistent(base, digits):
    assert base.findings == [] and base.clean.percent >= 99
    assert 20 <= base.worst.percent <= 80
    assert base.worst.correct <= base.right("PGD").sum() <= base.right("noise").sum()
    stands = base.right()
    for row in base.rows[3:]:  # later attacks see only what still stands
        ran = torch.tensor(row.misread) >= 0
        assert (ran | ~stands).all()
    radii = [sum(v) for v in base.curves["ε"].values()]
    assert radii == sorted(radii) and radii[-1] == 50
    again = models.build("mnist-cnn")
    again.load_state_dict(models.load("mnist-cnn").state_dict())
    with torch.no_grad():
        misread = again.eval()(base.images).argmax(1) != digits.labels
    assert torch.equal(misread, ~stands)


def test_the_hardened_network_raises_nothing(digits):
    assert run(shipped("mnist-adversarial"), digits, eps=0.2).findings == []


def test_logits_times_1000_hide_nothing(classifier, digits, base):
    report = run(Hot(classifier), digits, eps=0.1)
    assert "zero gradients" in names(report)
    assert differ(report, base) <= 2


def test_a_rounding_hides_nothing(classifier, digits, base):
    report = run(Defended(classifier, Quantise(100)), digits, eps=0.1)
    assert {"zero gradients", "black box wins", "does not fall"} <= names(report)
    assert differ(report, base) <= 2


def test_a_rounding_inside_a_model_hides_nothing(classifier, digits, base):
    report = run(Opaque(Quantise(100), classifier), digits, eps=0.1)
    assert "zero gradients" in names(report)
    assert "straight-through" in {row.name for row in report.rows}
    assert differ(report, base) <= 2


def test_a_cut_inner_loop_hides_nothing(classifier, digits):
    dae = shipped("mnist-dae")
    budget = replace(BUDGETS["quick"], queries=100)
    options = {"eps": 0.2, "curves": False, "budget": budget}
    honest = Adaptive(dae, stepper="descent", steps=3, step_size=0.05)
    truth = run(Defended(classifier, honest), digits, **options)
    assert truth.findings == []
    report = run(Defended(classifier, Detached(dae, 3, 0.05)), digits, **options)
    assert {"zero gradients", "unseen optimisation"} <= names(report)
    assert differ(report, truth) <= 2


def test_a_defense_that_fails_by_chance_is_scored_by_its_mean(classifier, digits, base):
    few = replace(BUDGETS["quick"], queries=50)
    report = run(Rarely(classifier), digits, eps=0.1, curves=False, budget=few)
    assert "random forward" in names(report)
    truth = 0.95 * base.worst.percent
    assert abs(report.worst.percent - truth) <= 3
    assert abs(report.clean.percent - 95) <= 3
    assert report.always.percent < report.worst.percent - 5  # what "any draw" would have said


class Stripe(nn.Module):
    """Two classes, linear in the pixels."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        score = (x - 0.5).flatten(1) @ self.weight
        return torch.stack([-score, score], 1)


def test_noise_on_a_linear_model_against_the_exact_answer():
    """The best attack moves every pixel by ε; then the score is normal."""
    generator = torch.Generator().manual_seed(3)
    weight, eps, sigma = torch.randn(36, generator=generator), 0.05, 0.2
    x = 0.2 + 0.6 * torch.rand(200, 1, 6, 6, generator=generator)
    score = (x - 0.5).flatten(1) @ weight
    y = (score > 0).long()
    left = score.abs() - eps * weight.abs().sum()
    rates = torch.special.ndtr(left / (sigma * weight.norm()))
    truth = 100 * rates.mean().item()
    model = Defended(Stripe(weight), Noisy(sigma))
    report = run(model, (x, y), eps=eps)
    assert "random forward" in names(report)
    assert 20 < truth < 80 and abs(report.worst.percent - truth) <= 3
    assert {"one known draw", "APGD-margin"} <= {row.name for row in report.rows}
    assert set(report.curves) == {"ε", "steps", "draws"}


def test_probabilities_noise_that_wins_and_steps_that_weaken_are_seen(classifier, digits):
    x, y = digits.take(40)
    found = inspect_model(nn.Sequential(classifier, nn.Softmax(1)), x, y, eps=0.1)
    assert "probabilities" in {finding.name for finding in found}
    report = run(classifier, digits.take(40), eps=0.1, budget=SMALL)
    for row in report.rows:
        if row.name == "noise":
            row.misread = [1] * 40
        if row.name == "PGD":
            row.misread = [0] * 40
    report.curves["steps"] = {"5": [1] * 20, "10": [0] * 20}
    report.curves["ε"] = {"0.1": [0] * 20, "0.5": [0] * 15 + [1] * 5}
    assert {f.name for f in protocol.judge(report)} == {
        "noise wins",
        "more steps are weaker",
        "does not fall",
    }


def test_adam_steps_mask_the_gradient_and_plain_descent_does_not(classifier, digits):
    x, y = digits.take(40)
    dae = shipped("mnist-dae")
    for stepper, expected in (("adam", ["unseen optimisation"]), ("descent", [])):
        model = Defended(classifier, Adaptive(dae, stepper=stepper, steps=13, step_size=0.05))
        assert [f.name for f in inspect_model(model, x, y, eps=0.2)] == expected


def test_every_rule_is_told_whole_and_drawn_as_a_warning(classifier, digits):
    for name, rule in RULES.items():
        text = str(Finding(name, "this"))
        assert all(part in text for part in (name, rule.raised_if, rule.means, rule.do))
    with pytest.warns(AttackWarning, match="MnistCNN: few images: 5 images"):
        evaluation.evaluate(
            classifier, *digits.take(5), eps=0.1, budget=SMALL, curves=False, progress=False
        )


def test_randomness_is_found(classifier, digits):
    x = digits.images[:50]
    dae = shipped("mnist-dae")
    assert is_random(Rarely(classifier), x) and is_random(Defended(classifier, Noisy(0.1)), x)
    assert is_random(Defended(classifier, Direct(dae, noise=0.1)), x)
    assert not is_random(classifier, x) and not is_random(Defended(classifier, Direct(dae)), x)


def defended():
    return Defended(shipped("mnist-cnn"), Direct(shipped("mnist-dae"), noise=0.2))


@pytest.mark.parametrize("random", [False, True])
def test_a_killed_evaluation_goes_on_where_it_was(digits, tmp_path, monkeypatch, random):
    dae = shipped("mnist-dae")
    purifier = Direct(dae, noise=0.2) if random else Direct(dae)
    model = Defended(shipped("mnist-cnn"), purifier)
    few = digits.take(24)
    options = {"eps": 0.2, "budget": SMALL, "title": "it"}
    whole = run(model, few, **options)

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
        run(model, few, **options | {"eps": 0.1}, record=tmp_path / "r_0.2")
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
        Defended(classifier, Direct(shipped("mnist-dae"))),
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


def test_the_command(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))\n"
        "def blur():\n"
        "    return torch.nn.AvgPool2d(3, 1, 1)\n"
    )

    def call(*options):
        command = [sys.executable, "-m", "apudae.evaluation", "--n", "20", "--no-curves", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = call("--purifier", "mine:blur", "--eps", "0.1", "0.2", "--record", "r")
    assert done.returncode == 0, done.stderr
    assert "at most about" in done.stdout and "linf ε = 0.2, quick budget, n = 20" in done.stdout
    assert (tmp_path / "r-0.1.json").is_file() and (tmp_path / "r-0.2.json").is_file()
    done = call("--classifier", "mine:build", "--eps", "0.05")
    assert done.returncode == 0 and "mine:build, purifier none" in done.stdout
    for options, message in (
        (("--classifier", "mine:nothing"), "error: mine:nothing: module 'mine' has no attribute"),
        (("--purifier", "soap"), "error: purifier: expected module:function or one of none,"),
        (("--classifier", "vgg"), "error: "),
    ):
        failed = call(*options, "--eps", "0.1")
        assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in failed.stderr


def test_a_records_settings_are_all_that_decides(digits, classifier, tmp_path):
    few, options = digits.take(20), {"eps": 0.1, "budget": SMALL, "record": tmp_path / "r_0.1"}
    run(classifier, few, curves=False, **options)
    with pytest.raises(ValueError, match="was made with another curves"):
        run(classifier, few, curves=True, **options)
    for one, other in (
        (Defended(classifier, Quantise(16)), Defended(classifier, Quantise(100))),
        (Defended(classifier, Noisy(0.1)), Defended(classifier, Noisy(0.1), draws=2)),
        (Opaque(torch.round, classifier), Opaque(lambda x: 2 * x, classifier)),
        (Opaque(lambda x: 3 * x, classifier), Opaque(lambda x: 2 * x, classifier)),
    ):
        prints = [files.model_fingerprint(m) for m in (one, one, other)]
        assert prints[0] == prints[1] != prints[2]


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
        evaluation.evaluate(model, x, y, eps=0.3, budget=SMALL, curves=False, progress=False)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.inference_mode():
        report = run(model.eval(), (x, y), eps=0.3, budget=SMALL, curves=False)
    assert ("zero gradients" in names(report)) == cut
    assert ("straight-through" in {row.name for row in report.rows}) == cut
    honest = Train(False)
    honest.load_state_dict(model.state_dict())
    truth = run(honest, (x, y), eps=0.3, budget=SMALL, curves=False)
    assert report.worst.correct <= truth.worst.correct + 1


def test_noise_that_wakes_under_attack_is_found(classifier, digits):
    """Noise may depend on the image: none at clean ones says nothing."""
    dae = shipped("mnist-dae")
    level = Calibration(50.0, 1.0)
    awake = Adaptive(dae, steps=2, step_size=0.05, noise=0.2, objective="hinge", calibration=level)
    model = Defended(classifier, awake)
    assert model.random and is_random(model, digits.images[:20])

    class Waking(nn.Module):
        def forward(self, x):
            rough = (x - x.roll(1, 3)).abs().mean((1, 2, 3), keepdim=True) > 0.12
            return x + rough * 0.3 * torch.randn_like(x)

    model = Defended(classifier, Waking())
    assert not is_random(model, digits.images[:20])
    report = run(model, digits.take(20), eps=0.3, budget=SMALL, curves=False)
    assert report.settings["random"] and "random forward" in names(report)


def test_a_known_draw_is_scored_by_itself(digits):
    report = run(defended(), digits.take(20), eps=0.3, budget=SMALL, curves=False)
    (row,) = (r for r in report.rows if r.name == "one known draw")
    assert len(row.fixed) == 20 and set(row.fixed) <= {0, 1} and row.kind == "ablation"
    assert "its randomness fixed, and known to the attacker" in report.summary()


def test_masks_that_are_not_found_are_named(classifier, digits):
    def far(x):
        return torch.from_numpy((100 * x.detach().numpy()).round() / 100)

    model, few = Opaque(far, classifier), digits.take(20)
    report = run(model, few, eps=0.1, budget=SMALL, curves=False)
    assert {"zero gradients", "mask not found"} <= names(report)
    named = run(Defended(classifier, Opaque(far, nn.Identity())), few, eps=0.1, budget=SMALL)
    assert "mask not found" not in names(named)
    assert "mask not found" not in names(run(Hot(classifier), few, eps=0.1, budget=SMALL))
    floored = Opaque(lambda x: (100 * x) // 1 / 100, classifier)  # torch has no derivative of it
    report = run(floored, few, eps=0.1, budget=SMALL, curves=False)
    assert "straight-through" in {row.name for row in report.rows}


def test_what_cannot_be_measured_is_refused(digits, classifier):
    few, options = digits.take(20), {"eps": 0.1, "budget": SMALL, "curves": False}
    with pytest.raises(ValueError, match="attacks: 'PGD' is one of the protocol's own"):
        run(classifier, few, attacks={"PGD": lambda model, x, y: x}, **options)
    dae = shipped("mnist-dae")
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


def test_an_inner_loop_is_seen_however_it_was_imported(classifier, digits):
    from torch.autograd import grad

    def walk(x):
        with torch.enable_grad():
            z = x.detach().requires_grad_(True)
            return (x - 0.01 * grad(z.square().sum(), z)[0]).detach()

    found = inspect_model(Opaque(walk, classifier), *digits.take(20), eps=0.1)
    assert "unseen optimisation" in {finding.name for finding in found}
