"""The tables themselves: rows that fit together, commands that make each thing once, errors."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from support import BOOK, ROOT
from toys import files, place_with, stripes

from apudae import attacks, data, experiments, models
from apudae.core import record
from apudae.evaluation import BUDGETS
from apudae.experiments import (
    CLEAN,
    CW,
    SETS,
    Place,
    colours,
    digit_choices,
    digits,
    photographs,
    plans,
    recipes,
)
from apudae.experiments.__main__ import main, parser
from apudae.experiments.challenges import Standings
from apudae.experiments.choose import Choice
from apudae.experiments.commands import COMMANDS, status
from apudae.experiments.compare import Study
from apudae.experiments.verdicts import Certified, Ladder, Proved, Verdict
from apudae.models import MODELS
from apudae.purification import PRESETS

PLACE = Place()
STUDIES = experiments.STUDIES
# The purifier's recipe depends on what is chosen; a DAE's on the level.
CHOSEN = {"mnist-dae", "cifar10-dae", "imagenet-dae"}
RECIPES = (
    recipes.DIGITS
    | recipes.PUBLISHED
    | recipes.CERTIFIED
    | recipes.CIFAR10
    | recipes.CIFAR10_TRAINED
    | recipes.CIFAR10_PURIFIER
    | digits.CERTIFIED.recipes()
    | colours.certified().recipes()
    | digit_choices.purifier_recipes("latent 64")
    | digit_choices.stronger_recipes("as before")
)


@pytest.fixture
def nowhere(tmp_path):
    return Place(None, tmp_path / "weights", tmp_path / "results", tmp_path / "work")


def arguments(place):
    """The same place on a command line."""
    pairs = (("--weights", place.weights), ("--results", place.results), ("--work", place.work))
    return [str(part) for pair in pairs for part in pair]


# --- rows ----------------------------------------------------------------------------------------


def test_every_network_can_be_trained_and_is_shipped_or_for_a_gpu():
    made = [name for command in COMMANDS.values() for name in command.weights]
    assert len(set(made)) == len(made) and set(made) == {*RECIPES, *CHOSEN}
    gpu = {name for command in COMMANDS.values() if command.gpu for name in command.weights}
    assert set(models.names()) == set(made) - gpu
    for name, recipe in RECIPES.items():
        assert recipe.architecture in MODELS
        assert models.build(recipe.architecture, **recipe.model)
        assert not recipe.defended or recipe.defended in RECIPES
        if name in models.names() and name in recipes.PUBLISHED | recipes.DIGITS:
            about = models.about(name)
            assert (about["architecture"], about["options"]) == (recipe.architecture, recipe.model)
            assert about["training"].items() >= recipe.options.items()


@pytest.mark.parametrize("name", STUDIES)
def test_every_defense_needs_networks_that_are_made(name):
    study = STUDIES[name]
    for defense in study.defenses.values():
        assert set(defense.weights) <= {*RECIPES, *CHOSEN}
    assert next(iter(study.defenses)) == "no defense"
    for verdict in study.verdicts:
        assert verdict.row is study.defenses[verdict.defense]
        assert verdict.eps in study.epsilons and verdict.budget.pgd == BUDGETS["reference"].pgd
    for profile in study.profiles.values():
        assert set(profile.fewer) <= {*study.defenses, plans.DEFAULT}
        assert set(profile.epsilons) <= set(study.epsilons)
    assert set(study.profiles) == {"quick", "full"} and study.profiles["quick"].data == "quick"
    full, names = study.profiles["full"], set(study.attacks)
    assert not names & {CLEAN, CW, experiments.STRONG} and full.data == "full"
    judged = {verdict.defense for verdict in study.verdicts}
    if not full.ours:
        rows = {key for k in judged for key in study.rows(full, k)}
        assert experiments.STRONG not in {attack for attack, _ in rows}


def test_published_defenses_have_sources_and_attacks_that_they_were_made_for():
    bibliography = (BOOK / "reference/references.bib").read_text("utf-8")
    study = STUDIES["mnist"]
    for defense in digits.defenses.PUBLISHED.values():
        assert f"{{{defense.source}," in bibliography and defense.what
        assert defense.made_for in study.rows(study.profiles["full"], "jpeg")
    retrained = {name for name, defense in study.defenses.items() if defense.retrained}
    assert retrained == {"soap", "adversarial training"}
    x, net = data.load("mnist", "test").images[:2], PLACE.model("mnist-cnn")
    for name, model in study.build(PLACE).items():
        whole = model is net or net in list(model.modules())
        assert whole == (name not in retrained) and model(x).shape == (2, 10)
        assert not model.training


def test_published_settings_are_those_that_were_chosen():
    chosen = PLACE.record("mnist_tuning")["chosen"]
    assert chosen.keys() == digit_choices.PUBLISHED.keys()
    for name, defense in digits.defenses.PUBLISHED.items():
        assert defense.options == chosen.get(name, {})
        assert name not in chosen or chosen[name] in digit_choices.PUBLISHED[name]


def test_our_own_are_built_as_chosen_on_validation_digits():
    chosen = PLACE.record("mnist_variants")["chosen"]
    ours = experiments.build("mnist", "adaptive, chosen").purifier
    assert all(ours.options[k] == v for k, v in chosen["options"].items())
    other = experiments.build("mnist", "adaptive, chosen", steps=3).purifier
    assert other.steps == 3 and other.step_size == ours.step_size
    default = experiments.build("mnist", "adaptive, default")
    assert default.random and not experiments.build("mnist", "direct").random
    assert [ours.mu, ours.sigma] == PLACE.record("mnist_variants")["calibration"][:2]
    jpeg = experiments.build("mnist", "jpeg", quality=50)
    assert jpeg.purifier.quality == 50 and jpeg.classifier is not None
    # A place without that record takes the settings that are shipped.
    elsewhere = replace(PLACE, results=PLACE.results / "none")
    again = digits.defenses.OURS["adaptive, chosen"].build(elsewhere).purifier
    assert again.options == ours.options


def test_the_verdicts_of_digits_are_asked_where_they_can_be():
    rows = {(v.defense, v.eps): v for v in digits.ROBUSTNESS}
    assert len(rows) == 9 and {v.n for v in digits.ROBUSTNESS} == {100, 200}
    assert rows["adaptive, default", 0.3].budget == digits.LIGHT != BUDGETS["reference"]
    reference = {key for key, verdict in rows.items() if verdict.budget == BUDGETS["reference"]}
    direct = {("direct", eps) for eps in (0.1, 0.2, 0.3)}
    assert reference == {*direct, ("adaptive, chosen", 0.3)}
    assert digits.PURIFIER_VERDICT.n == 1000 and digits.PURIFIER_VERDICT.budget.restarts == 10


def test_all_defenses_of_digits_meet_one_budget_on_enough_digits():
    study = STUDIES["mnist_sampled"]
    full = study.profiles["full"]
    assert full.budget == BUDGETS["quick"] and study.order == digit_choices.ORDER
    asked = {name: full.n(name, experiments.STRONG) for name in study.defenses}
    assert min(asked.values()) >= 60 and all(asked[k] == 200 for k in digits.defenses.OURS)
    assert asked["soap"] == asked["diffpure"] == asked["resize and pad"] == 200
    assert {full.n(name, CW) for name in study.defenses} == {500}
    keys = set(study.keys(full, study.defenses))
    assert {(name, experiments.STRONG, eps) for name in asked for eps in full.epsilons} <= keys


@pytest.mark.parametrize("name", SETS)
def test_either_set_of_cifar10_is_declared_alike(name):
    study, title = colours.cifar10(name), data.TITLES[name]
    assert study.about_data == {"name": title, "split": "test"} and study.name == "cifar10"
    subject, verdict = colours.certified(name), colours.purifier_verdict(name)
    assert subject.record == "cifar10_certified" and subject.about_data == {"name": title}
    assert subject.recipe(0.5).options["epochs"] == 30 and subject.classifier == "cifar10-resnet"
    assert title in verdict.title and (verdict.eps, verdict.n) == (8 / 255, 1000)
    recipe = recipes.CIFAR10_PURIFIER["cifar10-purifier"]
    assert recipe.defended == colours.NET
    assert "('eps', 0.0313" in recipe.task(PLACE.model("cifar10-resnet")).name
    choice = colours.cifar10_choice(name)
    assert choice.epsilons == (0.0, 8 / 255) and choice.steps == 20
    assert set(colours.cifar10_plan(name).variants) == set(PRESETS)


def test_another_classifier_has_a_record_of_its_own():
    study = colours.imagenet(classifier="resnet50")
    assert study.record() == "imagenet_resnet50"
    assert (
        study.about_data["classifier"] == "resnet50" and study.choice.record == "imagenet_selection"
    )
    with pytest.raises(ValueError, match="classifier: expected efficientnet-lite0 or resnet50"):
        colours.imagenet(classifier="vgg")
    with pytest.raises(ValueError, match="data: expected cifar10 or cifar10-jpeg, got 'cifar100'"):
        colours.cifar10("cifar100")


# --- commands ------------------------------------------------------------------------------------


def records_of(command):
    for row in command.rows:
        if isinstance(row, Study):
            yield from (row.record(profile) for profile in row.profiles)
        else:
            assert isinstance(row, Choice | Verdict | Ladder | Proved | Certified | Standings)
            yield row.record


def test_no_two_commands_make_the_same_record_and_every_shipped_one_is_made():
    made = [name for command in COMMANDS.values() for name in records_of(command)]
    assert len(set(made)) == len(made)
    assert set(experiments.names()) <= set(made)
    waiting = {"mnist_stronger_first"}  # for what is being measured
    missing = set(made) - set(experiments.names()) - waiting
    assert {name for name in missing if not name.endswith("_quick")} == {
        name for command in COMMANDS.values() if command.gpu for name in records_of(command)
    }
    compared = {row.name for c in COMMANDS.values() for row in c.rows if isinstance(row, Study)}
    assert compared == set(STUDIES)


def test_the_status_of_an_empty_folder_names_the_command_for_everything(nowhere, capsys):
    main(["status", *arguments(nowhere)])
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    known = [name for _, name, _ in status(nowhere)]
    assert len(set(known)) == len(known) == len(lines)
    assert set(known) >= {*experiments.names(), *models.names()}
    for name, command in COMMANDS.items():
        run = f"missing: python -m apudae.experiments {name}" + (
            ", on a GPU" if command.gpu else ""
        )
        for made in (*command.weights, *records_of(command)):
            if made.endswith("_quick"):
                shown = rf"not made: python -m apudae.experiments {name} --profile quick; .* own"
                assert re.search(shown, lines[made])
            else:
                assert lines[made].endswith(run)
    assert not nowhere.results.exists() and not nowhere.work.exists()


def test_the_status_says_what_is_there_and_by_whom(nowhere, capsys):
    main(["status"])
    shown = capsys.readouterr().out
    assert re.search(r"weights +mnist-dae +there\n", shown)
    assert re.search(
        r"record +mnist_tuning +there, CPU, x86_64, 1 thread, by version 0\.1\.0\n", shown
    )
    assert "older" not in shown
    for name, run in (
        ("cifar10-purifier", "cifar10-purifier --data cifar10-jpeg, on a GPU"),
        ("cifar10_purifier_verdict", "cifar10-purifier --data cifar10-jpeg, on a GPU"),
        ("cifar10_certified", "cifar10-certified --data cifar10-jpeg, on a GPU"),
    ):
        (line,) = (line for line in shown.splitlines() if line.split()[1:2] == [name])
        assert "there" in line or line.endswith(run)
    old = PLACE.record("mnist_tuning")
    old["made"]["apudae"] = "0.0.9"
    record.save("mnist_tuning", old | {"schema": record.SCHEMA}, nowhere.results)
    begun = PLACE.record("mnist_purifier") | {"schema": record.SCHEMA}
    begun["rows"] = [row for row in begun["rows"] if row["defense"] != "mlp"]
    record.save("mnist_purifier", begun, nowhere.results)
    states = {name: state for _, name, state in status(nowhere)}
    assert states["mnist_tuning"].endswith("by version 0.0.9, older: others may come out now")
    run = r"begun; goes on with python -m apudae\.experiments mnist-purifier \(5 rows to go: mlp\)"
    assert re.fullmatch(run, states["mnist_purifier"])


def test_the_status_goes_on_with_the_set_of_the_choice(nowhere):
    assert colours.chosen_set(nowhere) == "cifar10"  # nothing was chosen yet
    record.save("cifar10_selection", PLACE.record("cifar10_selection"), nowhere.results)
    assert colours.chosen_set(nowhere) == "cifar10-jpeg"
    states = {name: state for _, name, state in status(nowhere)}
    assert states["cifar10"].endswith("experiments cifar10 --data cifar10-jpeg")
    assert states["mnist"].endswith("experiments mnist")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_what_cannot_be_asked_for_is_refused_in_a_line(nowhere, tmp_path, monkeypatch, capsys):
    for bad in (["mnist", "--profile", "half"], ["cifar10", "--data", "cifar100"], ["mnst"]):
        with pytest.raises(SystemExit) as end:
            main(bad)
        assert end.value.code == 2 and "invalid choice" in capsys.readouterr().err
    quick = ["mnist", "--profile", "quick", *arguments(PLACE), "--results", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^error: only: expected no defense, .*; got jpg$"):
        main([*quick, "--only", "jpg"])
    monkeypatch.delenv("APUDAE_DATA", raising=False)
    command = ["imagenet", *arguments(nowhere)]
    with pytest.raises(SystemExit, match=r"^error: ImageNet: name a folder of photographs with"):
        main(command)
    with pytest.raises(SystemExit, match=r"^error: .*gone is not a folder"):
        main([*command, "--folder", str(tmp_path / "gone")])
    with pytest.raises(SystemExit, match=r"^error: .*cifar10_jpeg\.npz"):
        main(
            [
                "cifar10-purifier",
                "--data",
                "cifar10-jpeg",
                "--root",
                str(tmp_path),
                *arguments(nowhere),
            ]
        )
    # And from a shell: one line, and a code that is not 0.
    monkeypatch.setattr(sys, "argv", ["experiments", *command])
    with pytest.raises(SystemExit, match=r"^error: ImageNet") as end:
        runpy.run_module("apudae.experiments", run_name="__main__")
    assert isinstance(end.value.code, str) and "\n" not in end.value.code


def test_records_that_do_not_fit_are_refused_by_a_command(tmp_path, capsys):
    """One row is enough for that: the quick profile of digits, begun on twenty of them."""
    place = place_with(tmp_path, *models.names())
    command = ["mnist", "--profile", "quick", *arguments(place), "--only", "no defense"]
    path = place.results / "mnist_quick.json"
    place.results.mkdir()
    good = shipped_quick(place)
    for text, message in (
        (
            good.replace('"schema": 1', '"schema": 7'),
            r"quick\.json: expected schema 1 or 2, got 7",
        ),
        (good[: len(good) // 2], r"quick\.json is damaged"),
        (
            good.replace('"seed": 0', '"seed": 1'),
            r"quick\.json was made with another weak; m",
        ),
    ):
        path.write_text(text)
        with pytest.raises(SystemExit, match=rf"^error: .*{message}"):
            main(command)
        assert path.read_text() == text
    path.write_text(good.replace('"apudae": "0.1.0"', '"apudae": "0.0.9"'))
    main(command)
    shown = capsys.readouterr().out
    assert shown.count("made by older code, and kept: ['no defense', ") == 18


def shipped_quick(place):
    """The record as the quick profile would have made it, of the classifier alone."""
    study = digits.COMPARISON
    comparison = experiments.compare.Comparison(study, place, "quick", ["no defense"])
    rows = [
        {"defense": "no defense", "attack": attack, "eps": eps, "n": 1, "seconds": 0.0}
        | {"correct": 1, "outcomes": "80", "apudae": "0.1.0"}
        for attack, eps in study.rows(comparison.profile, "no defense")
    ]
    whole = comparison.record.about | {"rows": rows, "ms_per_image": {"no defense": 1.0}}
    made = {"apudae": "0.1.0", "device": "CPU"}
    return json.dumps({"schema": 1, "made": made, **whole})


def test_other_weights_than_a_choice_knows_are_refused_by_a_command(tmp_path):
    place = place_with(tmp_path, "cifar10-resnet", "cifar10-dae", "cifar10-adversarial")
    stored = PLACE.record("cifar10_selection") | {"dae_sha256": "0" * 64}
    record.save("cifar10_selection", stored, place.results)
    command = ["cifar10", "--data", "cifar10-jpeg", "--profile", "quick", *arguments(place)]
    with pytest.raises(SystemExit, match=r"^error: .*another DAE than is here; move the record"):
        main(command)


def test_the_originals_do_not_go_on_with_the_copys_record(nowhere):
    record.save("cifar10_selection", PLACE.record("cifar10_selection"), nowhere.results)
    choice = replace(
        colours.cifar10_choice("cifar10"),
        images=lambda place: stripes(20, 1),
        classifier=lambda place: PLACE.model("cifar10-resnet"),
    )
    about = choice.about
    choice = replace(choice, about=lambda place: about(PLACE))
    with pytest.raises(ValueError, match=r"cifar10_selection\.json was made with another data; mo"):
        choice.run(nowhere)


def test_the_command_says_so_before_it_looks_for_the_originals(tmp_path):
    here = Place(tmp_path, work=tmp_path)
    with pytest.raises(ValueError, match=r"cifar10_selection\.json was made with cifar10-jpeg"):
        COMMANDS["cifar10"].run(here, parser().parse_args(["cifar10"]))


@pytest.mark.parametrize("ask", [experiments.defenses, lambda name: experiments.build(name, "x")])
def test_an_unknown_study_is_answered_with_those_that_there_are(ask):
    with pytest.raises(ValueError, match=r"study: expected one of mnist, cifar10, .*got 'cifar'"):
        ask("cifar")


def test_the_shipped_choice_comes_along_with_the_weights_it_was_made_for(tmp_path):
    place = place_with(tmp_path, "cifar10-dae")
    choice, plan = colours.cifar10_choice(), colours.cifar10_plan()
    plans.take_along(choice, plan, replace(place, weights=tmp_path / "none"))
    assert not place.results.exists()
    plans.take_along(choice, plan, place)
    assert place.record("cifar10_selection") == PLACE.record("cifar10_selection")
    record.save("cifar10_selection", {"chosen": {}, "mine": 1}, place.results)
    before = files(place.results)
    plans.take_along(choice, plan, place)
    assert files(place.results) == before  # one's own is kept
    others = place_with(made(tmp_path / "others"), "cifar10-dae")
    how = {"architecture": "rednet", "options": {"depth": 10}, "folder": others.weights}
    models.save("cifar10-dae", models.build("rednet", depth=10), **how)
    plans.take_along(choice, plan, others)
    assert not others.results.exists()


def made(folder):
    folder.mkdir()
    return folder


def test_a_command_gets_what_it_may_be_asked_for():
    options = vars(parser().parse_args(["mnist"]))
    asked = {"profile": "full", "only": None, "folder": None}
    asked |= {"data": SETS[0], "classifier": colours.CLASSIFIERS[0]}
    assert options.items() >= asked.items()
    shown = parser().format_help()
    assert all(re.search(rf"^  {name} ", shown, re.M) for name in (*COMMANDS, "status"))


def test_the_quick_profile_runs_from_a_shell(tmp_path, capsys):
    """With the shipped weights, on bundled digits: here one defense of one study, the fastest."""
    place = place_with(tmp_path, "mnist-cnn", "mnist-dae", "mnist-mlp")
    main(["mnist-purifier", "--profile", "quick", "--only", "mlp", *arguments(place)])
    assert record.names(place.results) == ["mnist_purifier_l2_quick", "mnist_purifier_quick"]
    shown = capsys.readouterr().out
    for name, eps in (("mnist_purifier", 0.3), ("mnist_purifier_l2", 2.0)):
        rows = place.record(f"{name}_quick")["rows"]
        keys = [("clean", 0.0), ("noise", eps), ("PGD", eps), ("C&W", 0.0), ("protocol", eps)]
        assert [(row["attack"], row["eps"]) for row in rows] == keys
        assert [row["n"] for row in rows] == [100, 100, 100, 5, 20]
        found = experiments.results(name, "quick", place)
        assert found.accuracy("mlp", CLEAN).percent > 90 and found.budget == "own"
        assert f"mlp | PGD | {eps:g}: {rows[2]['correct']} of 100, " in shown
    assert models.names(place.weights) == ["mnist-cnn", "mnist-dae", "mnist-mlp"]


# --- photographs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten photographs of 36 × 40 pixels."""
    folder, generator = tmp_path_factory.mktemp("photographs"), torch.Generator().manual_seed(3)
    for k in range(10):
        blocks = torch.randint(256, (9, 10, 3), generator=generator, dtype=torch.uint8)
        pixels = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)
        Image.fromarray(pixels.numpy()).save(folder / f"{7 * k:04d}_{k}.png")
    return folder


def test_photographs_are_divided_by_what_they_are_not_by_how_they_are_called(folder, tmp_path):
    listing = photographs.find(folder, None)
    parts = photographs.divide(listing, train=4, validation=2)
    assert {split: len(part.files) for split, part in parts.items()} == {
        "train": 4,
        "validation": 2,
        "test": 4,
    }
    whole = {path: label for part in parts.values() for path, label in zip(*part, strict=True)}
    assert whole == dict(zip(*listing, strict=True))
    for k, path in enumerate(listing.files):
        (tmp_path / f"{999 - k:04d}_renamed.png").write_bytes(path.read_bytes())
    again = photographs.divide(data.list_imagenet(tmp_path), train=4, validation=2)
    for split, part in parts.items():
        assert photographs.keys(part) == photographs.keys(again[split])
    with pytest.raises(ValueError, match=r"folder: expected at least 11 images to train, .*got 10"):
        photographs.divide(listing, train=8, validation=2)


def test_what_was_trained_or_chosen_on_is_not_evaluated(folder, tmp_path):
    listing = photographs.find(folder, None)
    parts = photographs.divide(listing, train=4, validation=2)
    seen = [key for split in ("train", "validation") for key in photographs.keys(parts[split])]
    kept = photographs.unseen(listing, seen)
    assert kept == parts["test"] and not set(seen) & set(photographs.keys(kept))
    # A folder of one's own: an image that was trained on, and a new one.
    (tmp_path / "0007_old.png").write_bytes(parts["train"].files[0].read_bytes())
    Image.new("RGB", (250, 240), (200, 100, 0)).save(tmp_path / "0007_new.png")
    x, y = photographs.centres(photographs.unseen(data.list_imagenet(tmp_path), seen))
    assert x.shape == (1, 3, 224, 224) and y.tolist() == [7] and x[0, 0].min() > 0.7
    (tmp_path / "0007_new.png").unlink()
    with pytest.raises(ValueError, match="every image in it was used to train or to choose"):
        photographs.unseen(data.list_imagenet(tmp_path), seen)


def test_the_study_of_photographs_takes_what_its_choice_has_not_seen(folder, nowhere):
    """The choice of a place says what was seen; without one nothing was."""
    study = colours.imagenet(folder)
    listing = photographs.find(folder, None)
    assert len(study.images(nowhere, "full").images) == 10
    seen = photographs.keys(listing)[:7]
    stored = {"data": {"seen_sha256": seen}, "dae_sha256": "0"}
    record.save("imagenet_selection", stored, nowhere.results)
    x, y = study.images(nowhere, "full")
    kept = photographs.unseen(listing, seen)
    assert len(x) == 3 and y.tolist() == kept.labels
    assert torch.equal(x, data.load_folder(kept, 224)[0])
    assert len(study.images(nowhere, "quick").images) == 2
    with pytest.raises(ValueError, match="expected at least 301 images"):
        colours.imagenet_choice(folder, nowhere)


def test_crops_tile_the_middle(tmp_path):
    pixels = torch.arange(256 * 256).remainder(251).view(256, 256).to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    tiles = photographs.crops(data.Listing([tmp_path / "a.png"], [0])).images
    assert tiles.shape == (16, 3, 64, 64) and tiles.dtype == torch.uint8
    shown = data.read_image(tmp_path / "a.png", photographs.SIZE)
    side, middle = 4 * photographs.CROP, None
    top, left = ((length - side) // 2 for length in shown.shape[1:])
    middle = shown[:, top : top + side, left : left + side]
    rows = [torch.cat(list(tiles[4 * k : 4 * k + 4]), 2) for k in range(4)]
    assert torch.equal(torch.cat(rows, 1), middle) and torch.equal(middle[1], pixels)


# --- the script that converts older records ------------------------------------------------------


OLD = {
    "mnist": {
        "outcomes": "records.unpack(text, n)",
        "rows": {
            "no defense | clean | 0": {"n": 8, "correct": 3, "outcomes": "a8", "apudae": "0.1.0"},
            "resize and pad | protocol | 0.3": {"n": 2, "correct": 1.5, "outcomes": "40"}
            | {"misread": [10, 0], "draws": 20, "stands": {"PGD": 1.5}},
        },
    },
    "mnist_ladder": {
        "data": {"n": 8},
        "models_sha256": {"chosen": "0"},
        "outcomes": "records.unpack(text, n)",
        "rows": {"direct | 0.2 | BPDA": "c1", "chosen | 0.3 | aware, λ = 0.1": "01"},
    },
    "mnist_selection": {
        "data": {"n": 8},
        "rows": [
            {"sigma": 0.2, "use": "direct", "correct": [2, 0], "outcomes": ["88", "00"]},
            {"sigma": 0.2, "steps": 15, "step_size": 0.02, "use": "adaptive", "correct": [1, 8]}
            | {"outcomes": ["01", "ff"]},
        ],
    },
    "mnist_certified": {
        "rows": {
            "denoised | certified | 0.25": {"predictions": [7], "votes": [9], "seconds": 1.0},
            "denoised | attacked, 0.5 σ | 0.25": {"n": 4, "outcomes": "b0"},
        }
    },
}


@pytest.fixture(scope="module")
def converting():
    return runpy.run_path(str(ROOT / "scripts/convert_records.py"))["main"]


def test_older_records_get_the_one_form_of_rows_with_the_same_outcomes(tmp_path, converting):
    made_by = {"apudae": "0.1.0", "device": "CPU"}
    for name, old in OLD.items():
        for row in old["rows"] if isinstance(old["rows"], list) else []:
            row["dae_sha256"] = "1"
        (tmp_path / f"{name}.json").write_text(json.dumps({"schema": 1, "made": made_by} | old))
    converting(tmp_path)
    new = {name: record.load(name, tmp_path) for name in OLD}
    assert all(whole["made"] == made_by for whole in new.values())
    assert new["mnist"]["outcomes"] == "record.unpack(text, n)"
    clean, strong = new["mnist"]["rows"]
    key = {"defense": "no defense", "attack": "clean", "eps": 0.0}
    assert clean == key | OLD["mnist"]["rows"]["no defense | clean | 0"]
    key = {"defense": "resize and pad", "attack": "protocol", "eps": 0.3}
    assert strong == key | OLD["mnist"]["rows"]["resize and pad | protocol | 0.3"]
    one, other = new["mnist_ladder"]["rows"]
    key = {"defense": "direct", "eps": 0.2, "attack": "BPDA"}
    assert one == key | {"n": 8, "correct": 3, "outcomes": "c1"}
    key = {"defense": "adaptive, chosen", "eps": 0.3, "attack": "aware, λ = 0.1"}
    assert other == key | {"n": 8, "correct": 1, "outcomes": "01"}
    direct, walk = new["mnist_selection"]["rows"]
    parts = {"n": 8, "correct": [2, 0], "outcomes": ["88", "00"], "dae_sha256": "1"}
    assert direct == {"defense": "direct", "options": {"sigma": 0.2}} | parts
    assert walk["options"] == {"sigma": 0.2, "steps": 15, "step_size": 0.02}
    assert (walk["defense"], walk["correct"], walk["outcomes"]) == (
        "adaptive",
        [1, 8],
        ["01", "ff"],
    )
    certified, attacked = new["mnist_certified"]["rows"]
    key = {"kind": "denoised", "sigma": 0.25}
    assert certified == key | {"radius": 0.0, "predictions": [7], "votes": [9], "seconds": 1.0}
    assert attacked == key | {"radius": 0.5, "n": 4, "outcomes": "b0", "correct": 3}
    before = files(tmp_path)
    converting(tmp_path)
    assert files(tmp_path) == before


def test_the_shipped_records_have_that_form_already(tmp_path, converting):
    for path in PLACE.results.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = files(tmp_path)
    converting(tmp_path)
    assert files(tmp_path) == before


def test_every_weak_attack_can_be_called_as_the_runner_does():
    """With ε and the images' numbers, where it takes them."""
    for study in STUDIES.values():
        for weak in study.attacks.values():
            taken = attacks.taken(weak, {"eps": 0.1, "index": torch.arange(2)})
            assert "eps" in taken


def test_the_originals_are_meant_unless_the_copy_is_named():
    for row in (colours.certified(), colours.certified(SETS[0])):
        assert row.about_data == {"name": "CIFAR-10"}
    assert colours.certified(SETS[1]).about_data == {"name": "CIFAR-10 (JPEG copy)"}
    assert colours.cifar10().about_data["name"] == "CIFAR-10"
    assert colours.purifier_verdict().title == "purifier, CIFAR-10"
