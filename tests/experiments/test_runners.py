"""Each runner once from end to end on toys: what it stores is what a direct measurement says.

Nothing is patched: what is tested is declared with small numbers, as a study of one's own would be.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from toys import BRIEF, Blur, Cut, dots, files, linear, place_with, stripes

from apudae import attacks, data, models, training
from apudae.core import record, scores
from apudae.core.norms import Ball
from apudae.core.prints import data_print
from apudae.core.record import Record, pack, unpack
from apudae.core.scores import same_images
from apudae.data import Split
from apudae.evaluation import Report, Smoothed, certify, evaluate, verify, votes
from apudae.experiments import (
    CLEAN,
    CW,
    STRONG,
    Certified,
    Defense,
    Ladder,
    Place,
    Profile,
    Proved,
    Recipe,
    Results,
    Study,
    Verdict,
    colours,
    digit_choices,
    digits,
    plans,
    recipes,
    white_box,
)
from apudae.experiments.choose import Choice, Trial, best, gains, outcomes
from apudae.experiments.compare import Comparison
from apudae.experiments.defenses import KNOWN
from apudae.purification import (
    PRESETS,
    Adaptive,
    BitDepth,
    Calibration,
    Defended,
    Direct,
    ResizePad,
)

pytestmark = pytest.mark.filterwarnings("ignore::apudae.core.arguments.AttackWarning")
MANY = 10**9


def place_in(folder):
    return Place(None, folder / "weights", folder / "results", folder / "work")


def interrupted(run, left, step):
    """Run until it is through, with Ctrl-C after every so many passes; how often it was stopped."""
    stops = 0
    while True:
        left[0] = step
        try:
            run()
        except KeyboardInterrupt:
            stops += 1
            assert stops < 50
        else:
            return stops
        finally:
            left[0] = MANY


def plain(rows):
    """Rows without what differs from run to run."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "date")} for row in rows]


# --- the comparison ----------------------------------------------------------------------------


def declared(net):
    defenses = {
        "no defense": Defense(lambda place: net),
        "rounds": Defense(lambda place, bits: Defended(net, BitDepth(bits)), options={"bits": 2}),
        "random": Defense(lambda place: Defended(net, ResizePad(0.7))),
    }
    weak = {"noise": attacks.noise, "FGSM": attacks.fgsm}
    full = Profile(10_000, 4, 5, (0.2, 0.1), BRIEF, fewer={"random": (1500, 2)})
    sizes = {"full": full, "quick": replace(full, weak=30, epsilons=(0.1,), data="quick")}
    return Study("toy", lambda place, size: dots(2200), defenses, weak, (0.1, 0.2), sizes, batch=4)


def toy(net):
    """The study above, with a brief C&W."""
    return replace(declared(net), cw={"steps": 5, "searches": 1})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Place and passes of a run in one go."""
    place, left = place_in(tmp_path_factory.mktemp("compared")), [MANY]
    toy(Cut(linear(), left)).run(place)
    return place, MANY - left[0]


def keys(place, name="toy"):
    return [(r["defense"], r["attack"], r["eps"]) for r in place.record(name)["rows"]]


def by_key(place, leave_out=""):
    """Rows but for times, ordered by what they are of."""
    rows = [{k: v for k, v in row.items() if k != leave_out} for row in place.record("toy")["rows"]]
    return sorted(plain(rows), key=lambda row: [row["defense"], row["attack"], row["eps"]])


def test_a_new_data_set_attack_or_defense_is_a_row():
    """All that a study of one's own takes."""
    assert len(inspect.getsource(declared).splitlines()) - 1 <= 10


def test_rows_under_another_attack_of_the_same_name_are_refused(tmp_path):
    def weak(steps):
        return lambda model, x, y, **options: attacks.pgd(model, x, y, steps=steps, **options)

    place = place_in(tmp_path)
    studies = [replace(toy(linear()), attacks={"A": weak(steps)}) for steps in (1, 20)]
    for study in (studies[0], studies[0]):
        Comparison(study, place, "quick").record.save()
    with pytest.raises(ValueError, match=r"toy_quick\.json was made with another attacks_sha256"):
        Comparison(studies[1], place, "quick")


def test_every_row_is_made_once_the_cheap_ones_first(compared):
    place, _ = compared
    rows, study = place.record("toy")["rows"], toy(linear())
    assert study.missing(place) == [] and list(place.work.iterdir()) == []
    assert len(set(keys(place))) == len(rows) == 3 * (1 + 4 + 1 + 2)
    kinds = [attack for _, attack, _ in keys(place)]
    assert kinds == sorted(kinds, key=[CLEAN, "noise", "FGSM", CW, STRONG].index)
    sizes = {CLEAN: 2200, "noise": 2200, "FGSM": 2200, CW: 4, STRONG: 5}
    fewer = {CLEAN: 1500, "noise": 1500, "FGSM": 1500, CW: 4, STRONG: 2}
    for row in rows:
        assert row["n"] == (fewer if row["defense"] == "random" else sizes)[row["attack"]]
    stored = place.record("toy")
    assert stored["profile"]["weak"] == 2200  # there are no more images
    assert stored["data"]["sha256"] == data.fingerprint(dots(2200).images)
    assert stored["ms_per_image"].keys() == stored["gradient"].keys() == study.defenses.keys()
    assert min(stored["ms_per_image"].values()) > 0
    assert stored["gradient"]["no defense"].keys() == {"ms", "mebibytes", "batch"}
    assert stored["gradient"]["no defense"]["batch"] == 4


def test_a_row_says_what_a_direct_measurement_says(compared):
    place, _ = compared
    found, (x, y) = Results(toy(linear()), place), dots(2200)
    for name, model in toy(linear()).build(place).items():
        n, few = (1500, 2) if name == "random" else (2200, 5)
        index, net = torch.arange(n), getattr(model, "classifier", model)
        # In one go here; the runner stores every thousand images.
        for attack, hit in (
            (CLEAN, x[:n]),
            ("noise", attacks.noise(net, x[:n], y[:n], eps=0.2, index=index)),
            ("FGSM", attacks.fgsm(net, x[:n], y[:n], eps=0.2)),
        ):
            now = scores.outcomes(model, hit, y[:n], index=index)
            assert torch.equal(found.right(name, attack, 0.2 if attack != CLEAN else 0.0), now)
        hit = attacks.cw(net, x[:4], y[:4], steps=5, searches=1)
        now = scores.outcomes(model, hit, y[:4], index=torch.arange(4))
        assert torch.equal(found.right(name, CW), now)
        (row,) = (r for r in found.rows if (r["defense"], r["attack"]) == (name, CW))
        assert row["l2"] == round((hit - x[:4]).flatten(1).norm(dim=1).mean().item(), 3)
        options = {"eps": 0.2, "budget": BRIEF, "curves": False, "progress": False}
        report = evaluate(model, x[:few], y[:few], **options)
        assert torch.equal(found.right(name, STRONG, 0.2), report.right())
        (row,) = (r for r in found.rows if (r["defense"], r["eps"]) == (name, 0.2) if "stands" in r)
        assert row["correct"] == round(report.right().sum().item(), 2)
        assert row["stands"] == {k: round(v, 2) for k, v in report.stands().items()}
        assert row["warnings"].keys() == {finding.name for finding in report.findings}
        assert torch.equal(unpack(row["outcomes"], few), report.right() == 1)
        assert ("random forward" in row["warnings"]) == ("misread" in row) == (name == "random")
    assert found.accuracy("no defense", CLEAN).percent == 100


def test_a_run_that_is_stopped_again_and_again_gives_the_same_rows(compared, tmp_path, capsys):
    whole, passes = compared
    place, left = place_in(tmp_path), [MANY]
    study = toy(Cut(linear(), left))
    assert interrupted(lambda: study.run(place), left, passes // 4) >= 3
    printed = [line for line in capsys.readouterr().out.splitlines() if line.count(" | ") == 2]
    assert len(printed) == len(keys(place)) == 24  # none is measured twice
    assert by_key(place) == by_key(whole)  # in another order, where seconds were others
    assert list(place.work.iterdir()) == []  # what unfinished rows had left is gone
    before = files(tmp_path)
    study.run(place)
    assert files(tmp_path) == before and capsys.readouterr().out == ""


def test_a_weak_row_goes_on_where_it_was_killed(tmp_path):
    """Killed in the second piece of three: the first is kept, and the row is as if in one go."""
    log = tmp_path / "seen"  # what a file holds is no part of what the attack is

    def seen():
        return list(map(int, log.read_text("utf-8").split()))

    def fgsm(model, x, y, *, eps, index):
        with log.open("a", encoding="utf-8") as file:
            print(index[0].item(), file=file)
        if seen() == [0, 1000]:
            raise KeyboardInterrupt
        return attacks.fgsm(model, x, y, eps=eps)

    place = place_in(tmp_path)
    full = Profile(10_000, 4, 0, (), BRIEF)
    study = replace(toy(linear()), attacks={"FGSM": fgsm}, epsilons=(0.2,), profiles={"full": full})
    with pytest.raises(KeyboardInterrupt):
        study.run(place, only=["no defense"])
    begun = place.work / "toy_0_FGSM_0.2.json"
    assert json.loads(begun.read_text())["done"] == 1000
    kept = begun.read_bytes()
    study.run(place, only=["no defense"])
    assert seen() == [0, 1000, 1000, 2000] and not begun.exists()
    x, y = dots(2200)
    now = scores.outcomes(linear(), attacks.fgsm(linear(), x, y, eps=0.2), y)
    assert torch.equal(Results(study, place).right("no defense", "FGSM", 0.2), now)
    # Other settings: what an older run has left is not mixed in.
    begun.write_bytes(kept)
    other = replace(study, profiles={"full": replace(full, cw=3)})
    other.run(replace(place, results=tmp_path / "other"), only=["no defense"])
    assert seen()[4:] == [0, 1000, 2000]
    begun.write_text('{"done": 1')
    with pytest.raises(RuntimeError, match=r"toy_0_FGSM_0\.2\.json is damaged"):
        study.run(replace(place, results=tmp_path / "third"), only=["no defense"])


def test_two_runs_for_different_defenses_share_a_record(compared, tmp_path):
    """Both begin before either has written a row."""
    whole, _ = compared
    place, study = place_in(tmp_path), toy(linear())
    one, two = (Comparison(study, place, "full", [name]) for name in ("rounds", "random"))
    one.run()
    two.run()
    then = by_key(whole, leave_out="model")  # there it stood in another wrapper
    assert by_key(place, leave_out="model") == [r for r in then if r["defense"] != "no defense"]
    assert {name for name, *_ in study.missing(place)} == {"no defense"}
    assert place.record("toy")["ms_per_image"].keys() == {"rounds", "random"}
    assert place.record("toy")["gradient"].keys() == {"rounds", "random"}
    with pytest.raises(ValueError, match=r"only: expected no defense, rounds, random; got jpg"):
        study.run(place, only=["jpg"])


def test_the_price_of_the_protocol_is_what_clean_images_take(compared, tmp_path, capsys):
    """The slow one comes last, as the rows say that are there already."""
    whole, _ = compared
    place, study = place_in(tmp_path), toy(linear())
    stored = whole.record("toy")
    sha256 = {k: m for k, m in Comparison(study, place, "full").sha256.items()}
    rows = [row | {"model": sha256[row["defense"]]} for row in stored["rows"] if row["n"] > 5]
    for row in rows:
        row["seconds"] = {"no defense": 5.0, "rounds": 15.4, "random": 11.0}[row["defense"]]
    record.save("toy", stored | {"rows": rows, "models": {}}, place.results)
    study.run(place)
    strong = [key[0] for key in keys(place) if key[1] == STRONG]
    # In ms: 5 of 5000/2200, 2 of 11000/1500, 5 of 15400/2200.
    assert strong == ["no defense", "no defense", "random", "random", "rounds", "rounds"]


def test_profiles_have_records_of_their_own(tmp_path):
    place, study = place_in(tmp_path), toy(linear())
    asked = []

    def images(place, size):
        asked.append(size)
        return dots(40)

    study = replace(study, images=images)
    study.run(place, "quick", ["rounds"])
    assert asked == ["quick"] and record.names(place.results) == ["toy_quick"]
    assert {n for _, _, n in keys(place, "toy_quick")} == {0.0, 0.1, 0.2}
    strong = [eps for _, attack, eps in keys(place, "toy_quick") if attack == STRONG]
    assert strong == [0.1] and Results(study, place, "quick").accuracy("rounds", CLEAN).n == 30
    assert len(study.missing(place)) == 24 and len(study.missing(place, "quick")) == 2 * 7


def test_verdicts_of_their_own_and_no_protocol_at_all(compared):
    """Of what has a verdict the protocol is not run again; of what is too slow not at all."""
    study = toy(linear())
    verdict = Verdict("v", "rounds", study.defenses["rounds"], dots, 4, 0.2, BRIEF, "rounds")
    study = replace(study, verdicts=(verdict,))
    full = study.profiles["full"]

    def strong(profile, name):
        return [eps for attack, eps in study.rows(profile, name) if attack == STRONG]

    assert strong(full, "rounds") == strong(full, "random") == [0.2, 0.1]
    assert strong(replace(full, ours=False), "rounds") == []
    assert strong(replace(full, ours=False), "random") == [0.2, 0.1]
    assert strong(replace(full, fewer={"random": (100, 0)}), "random") == []
    assert full.within(100).fewer == {"random": (100, 2)} and full.within(3).strong == 3


def test_the_images_of_a_set_are_asked_in_one_random_order(compared, tmp_path):
    """The same images give the same outcomes: draws belong to a place in the set."""
    whole, _ = compared
    place, order = place_in(tmp_path), data.Order(2200)
    study = replace(toy(linear()), order=order)
    study.run(place, only=["no defense", "random"])
    stored, (x, y) = place.record("toy"), dots(2200).at(order.places())
    assert stored["data"] == {"order": {"of": 2200, "seed": 0}} | data_print(x, y)
    assert "in the order of data.Order: " in stored["outcomes"]
    now, then = Results(study, place), Results(toy(linear()), whole)
    places = now.outcomes("random", "noise", 0.2).places
    assert torch.equal(places, order.places(1500))
    for name, attack, eps in (("no defense", CLEAN, 0.0), ("no defense", "noise", 0.2)):
        pair = same_images(now.outcomes(name, attack, eps), then.outcomes(name, attack, eps))
        assert torch.equal(*pair) and len(pair[0]) == 2200
    pair = same_images(*(k.outcomes("random", "noise", 0.2) for k in (now, then)))
    assert torch.equal(*pair) and 900 < len(pair[0]) < 1500
    report = evaluate(
        study.build(place)["random"],
        x[:2],
        y[:2],
        eps=0.2,
        budget=BRIEF,
        curves=False,
        progress=False,
        index=places[:2],
    )
    assert torch.equal(now.right("random", STRONG, 0.2), report.right())
    # Nobody goes on in another order; of the bundled digits, a random sample, there is none.
    with pytest.raises(ValueError, match=r"toy\.json was made with another data"):
        toy(linear()).run(place)
    with pytest.raises(ValueError, match=r"order: expected one of 2200 images, got Order\(of=9"):
        replace(study, order=data.Order(9)).run(place)
    account = Comparison(replace(study, order=data.Order(9)), place, "quick").record.about
    assert "order" not in account["data"]


def test_a_record_made_otherwise_is_refused_and_older_rows_are_named(compared, tmp_path, capsys):
    whole, _ = compared
    place, study = place_in(tmp_path), toy(Cut(linear(), [MANY]))
    stored = whole.record("toy")
    record.save("toy", stored, place.results)
    for changes, part in (
        ({"profiles": {"full": replace(study.profiles["full"], strong=4)}}, "profile"),
        ({"cw": {"steps": 6, "searches": 1}}, "weak"),
        ({"about_attacks": {"FGSM": "one step"}}, "weak"),
        ({"about_data": {"name": "dots"}}, "data"),
        ({"images": lambda place, size: dots(2200, seed=5)}, "data"),
    ):
        with pytest.raises(ValueError, match=rf"toy\.json was made with another {part}; move it"):
            replace(study, **changes).run(place)
    rows = [row | ({"apudae": "0.0.9"} if row["n"] > 5 else {}) for row in stored["rows"]]
    record.save("toy", stored | {"rows": rows}, place.results)
    study.run(place)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == sum(row["n"] > 5 for row in rows) == 15
    assert shown[0] == "made by older code, and kept: ['no defense', 'clean', 0.0]"
    assert place.record("toy")["rows"] == rows


# --- choices -----------------------------------------------------------------------------------


def rounding(net):
    """A choice among three roundings, and a random defense on fewer images."""

    def trials(table, images, place):
        for bits in (1, 2, 3):
            make = partial(Defended, net, BitDepth(bits))
            yield Trial("rounds", {"bits": bits}, make, more={"bits": bits})
        assert len(table.rows) >= 3  # what was yielded is there when the next is asked for
        yield Trial("random", {}, lambda: Defended(net, ResizePad(0.7)), n=7)
        table.save(chosen=best(table.rows, "rounds")["options"])

    images = lambda place: dots(20)  # noqa: E731
    return Choice("toy", trials, images, lambda place: net, (0.0, 0.2), 3)


def test_settings_are_tried_once_and_a_rule_chooses(tmp_path, capsys):
    left = [MANY]
    whole, place, choice = place_in(tmp_path / "1"), place_in(tmp_path / "2"), None
    choice = rounding(Cut(linear(), left))
    assert choice.missing(whole) == ["choice"]
    choice.run(whole)
    stored, passes = whole.record("toy"), MANY - left[0]
    assert interrupted(lambda: choice.run(place), left, passes - 2) == 1
    assert plain(place.record("toy")["rows"]) == plain(stored["rows"])
    assert place.record("toy")["chosen"] == stored["chosen"]
    capsys.readouterr()
    before = files(tmp_path)
    choice.run(place)
    assert files(tmp_path) == before and capsys.readouterr().out == ""
    assert choice.chosen(place) == stored["chosen"] and choice.missing(place) == []

    x, y = dots(20)
    hit = [x, attacks.pgd(linear(), x, y, eps=0.2, steps=3)]
    for row in stored["rows"]:
        name, n = row["defense"], 7 if row["defense"] == "random" else 20
        purifier = ResizePad(0.7) if name == "random" else BitDepth(row["bits"])
        model, index = Defended(linear(), purifier), torch.arange(n)
        now = [scores.outcomes(model, z[:n], y[:n], index=index) for z in hit]
        assert all(map(torch.equal, outcomes(row), now)) and row["n"] == n
        assert row["correct"] == [int(part.sum()) for part in now]
    at_best = max(stored["rows"][:3], key=lambda row: sum(row["correct"]))
    assert stored["chosen"] == at_best["options"]
    told = {"split": "validation", "n": 20, "sha256": data.fingerprint(x)}
    assert stored["data"] == told | {"exact": data_print(x, y)["exact"]}


def test_a_choice_made_otherwise_is_not_gone_on_with(tmp_path):
    place, choice = place_in(tmp_path), rounding(linear())
    choice.run(place)
    for changes, part in (
        ({"steps": 4}, "attack"),
        ({"epsilons": (0.0, 0.1)}, "eps"),
        ({"images": lambda place: dots(19)}, "data"),
        ({"about": lambda place: {"attack": {"aims_at": "all"}, "more": 1}}, "attack, more"),
    ):
        with pytest.raises(ValueError, match=rf"toy\.json was made with another {part}; move it"):
            replace(choice, **changes).run(place)


def test_trials_may_ask_images_of_their_own_and_random_ones_need_no_keys(tmp_path):
    """Rows of two splits; without keys a random defense draws for all what it draws for image 0."""
    net, seen = linear(), []

    def mine(model):
        seen.append(model)
        return [dots(6, seed=9).images], dots(6, seed=9).labels

    def trials(table, images, place):
        make = lambda: Defended(net, ResizePad(0.7))  # noqa: E731
        yield Trial("random", {}, make, split="validation")
        yield Trial("random", {}, make, split="test", asked=mine)
        table.save(chosen="random")

    images = lambda place: dots(20)  # noqa: E731
    choice = Choice("toy", trials, images, lambda place: net, (0.0,), 1, keyed=False, splits=True)
    choice.run(place_in(tmp_path))
    first, second = place_in(tmp_path).record("toy")["rows"]
    assert (first["split"], second["split"]) == ("validation", "test")
    assert (first["n"], second["n"]) == (20, 6) and len(seen) == 1
    x, y = dots(20)
    now = scores.outcomes(Defended(net, ResizePad(0.7)), x, y)
    assert torch.equal(outcomes(first)[0], now)


def tried(defense, correct, **options):
    return {"defense": defense, "options": options, "correct": correct}


def test_the_best_mean_wins_and_the_first_of_two_alike():
    rows = [tried("a", right, k=k) for k, right in enumerate(([9, 0], [5, 5], [6, 4], [0, 9]))]
    assert best([*rows, tried("b", [99, 99])], "a")["options"] == {"k": 1}


def test_the_rule_for_the_noise_level():
    rows = [
        tried("direct", [9, 9], sigma=0.1),
        tried("adaptive", [1, 1], sigma=0.1, steps=1, step_size=0.1),
        tried("direct", [7, 7], sigma=0.2),
        tried("adaptive", [4, 4], sigma=0.2, steps=1, step_size=0.1),
        tried("adaptive", [5, 4], sigma=0.2, steps=2, step_size=0.3),
        tried("direct", [1, 1], sigma=0.3),
        tried("adaptive", [9, 9], sigma=0.3, steps=1, step_size=0.1),
    ]
    assert digit_choices.choose_level(rows) == {"sigma": 0.2, "steps": 2, "step_size": 0.3}


def test_the_rule_for_the_variant_and_what_is_tested():
    rows = [
        tried("direct", [9, 9]),
        tried("simple", [5, 5]),
        tried("simple", [4, 7], steps=40),
        tried("biased", [5, 6], steps=30),
        tried("kl", [1, 1]),
    ]
    assert digit_choices.choose_variant(rows) == {"variant": "biased", "options": {"steps": 30}}
    known = list(digit_choices.OTHERS.items())
    variants = [("biased", {"steps": 30}), ("simple", {"steps": 40}), ("kl", {})]
    assert digit_choices.tested(rows) == [*known[:3], *variants, *known[3:]]
    rows[3]["options"]["steps"] = 50  # of two alike the one with fewer steps
    assert digit_choices.choose_variant(rows)["variant"] == "simple"


def test_settings_and_passes():
    assert digit_choices.setting("simple", {"step_size": 0.05}) == "12 × 0.05"
    assert digit_choices.passes("simple", {"steps": 30}) == 60
    assert digit_choices.setting("direct, twice", {"repeats": 2}) == "2 ×"
    assert digit_choices.passes("direct, twice", {"repeats": 2}) == 2
    assert digit_choices.passes("no defense", {}) == 0
    assert digit_choices.setting("no defense", {}) == "–"
    whole = digit_choices.OTHERS["simple, then R"]
    assert digit_choices.passes("simple, then R", whole) == 61


@pytest.mark.parametrize(("gained", "taken"), [(40, True), (0, False)])
def test_a_deeper_network_must_gain_what_cannot_be_chance(gained, taken):
    """One that reads ``gained`` more of 100 images in all trials, and one that reads as many."""
    rows = [
        [{"n": 100, "outcomes": [pack(torch.arange(100) < right)] * 2}] * 2
        for right in (30, 30 + gained)
    ]
    assert gains(*rows) is taken


def few(n):
    return lambda place: data.load("mnist", "validation").take(n)


def small_dae(seed, name, folder, **about):
    """A DAE that has learned nothing, and is quick."""
    torch.manual_seed(seed)
    options = {"latent": 4, "width": 2}
    how = {"architecture": "mnist-dae", "options": options, "folder": folder, "about": about}
    models.save(name, models.build("mnist-dae", **options), **how)


def test_a_noise_level_is_chosen_for_digits_and_its_network_kept(tmp_path):
    """The networks that would be trained for half an hour are there already, untrained."""
    place = place_with(tmp_path, "mnist-cnn")
    for number, sigma in enumerate(digit_choices.SIGMAS):
        small_dae(number, f"mnist-dae-{sigma:g}", place.tried, sigma=sigma)
    choice = replace(digit_choices.SELECTION, images=few(2), steps=2)
    choice.run(place)
    stored = place.record("mnist_selection")
    assert len(stored["rows"]) == 4 * 7 and stored["attack"]["aims_at"] == "mnist-cnn"
    assert stored["classifier_sha256"] == place.sha256("mnist-cnn")
    chosen = stored["chosen"]
    assert chosen == digit_choices.choose_level(stored["rows"])
    kept, tried = models.about("mnist-dae", place.weights), f"mnist-dae-{chosen['sigma']:g}"
    assert kept["sigma"] == chosen["sigma"]
    assert kept["sha256"] == models.about(tried, place.tried)["sha256"]
    row = next(r for r in stored["rows"] if r["options"] == chosen)
    x, y = few(2)(place)
    walk = {k: v for k, v in chosen.items() if k != "sigma"}
    model = Defended(place.model("mnist-cnn"), Adaptive(place.model("mnist-dae"), **walk))
    assert torch.equal(outcomes(row)[0], scores.outcomes(model, x, y))


def test_a_variant_is_chosen_for_digits_and_the_best_of_each_tested(tmp_path):
    """What is tried and in which order; the scores are made up, the models are built and asked."""
    place = place_with(tmp_path, "mnist-cnn")
    small_dae(0, "mnist-dae", place.weights)
    images = few(2)(place)
    keys = ("split", "defense", "options")
    table = Record("mnist_variants", {"eps": [0.0]}, place.results, keys=keys)
    generator = digit_choices.variants(table, images, place)
    for k, trial in enumerate(generator):
        assert trial.make()(images.images[:2]).shape == (2, 10)
        assert (trial.asked is None) == (trial.split == "validation")
        score = 900 if trial.options == {"step_size": 0.05} else k
        row = {"split": trial.split, "defense": trial.defense, "options": trial.options}
        table.rows.append(row | {"correct": [score], "n": 1000})
    stored = place.record("mnist_variants")
    rows = [row for row in stored["rows"] if row["split"] == "validation"]
    assert stored["chosen"] == {"variant": "simple", "options": {"step_size": 0.05}}
    tests = [(r["defense"], r["options"]) for r in stored["rows"] if r["split"] == "test"]
    assert tests == digit_choices.tested(rows) and len(tests) == len(digit_choices.OTHERS) + len(
        PRESETS
    )
    assert stored["calibration"][2] == 2 and all(row["ms_per_image"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("tried", "choice"),
    [
        (digit_choices.PURIFIERS, digit_choices.PURIFIER_CHOICE),
        (digit_choices.STRONGER_PURIFIERS, digit_choices.STRONGER_CHOICE),
        (digit_choices.BEGUN_PURIFIERS, digit_choices.BEGUN_CHOICE),
    ],
    ids=["first", "stronger", "begun"],
)
def test_purifiers_are_chosen_attacked_as_a_whole(tried, choice, tmp_path):
    """The first two of each kind, hardly trained."""
    place = place_with(tmp_path, "mnist-cnn")
    tried = replace(tried, table=dict(list(tried.table.items())[:2]))
    for number, name in enumerate(tried.table):
        torch.manual_seed(number)
        model = digit_choices.purifier_recipe(name).model
        net = models.build("mnist-dae", **model)
        how = {"architecture": "mnist-dae", "options": model, "folder": place.tried}
        models.save(f"{tried.label}-{number}", net, **how)
    replace(choice, images=few(2), trials=tried.trials).run(place)
    stored = place.record(choice.record)
    assert [(r["defense"], r["options"]) for r in stored["rows"]] == list(tried.table.items())
    score = {row["defense"]: sum(row["correct"]) for row in stored["rows"]}
    assert stored["chosen"] == max(score, key=score.get)
    assert all(row["correct"][1] <= row["correct"][0] for row in stored["rows"])
    assert len(stored["attack"]["names"]) == len(tried.probes)


def test_recipes_of_the_purifiers_that_were_chosen(tmp_path):
    place = place_with(tmp_path, "mnist-cnn")
    wanted = digit_choices.purifier_recipes("latent 128, tones")
    assert set(wanted) == {"mnist-purifier", "mnist-purifier-l2", *recipes.OTHERS}
    assert wanted["mnist-purifier"].model == {"latent": 128, "tones": 8}
    assert wanted["mnist-purifier-l2"].model == {"latent": 64, "tones": 8, "width": 16}
    task = wanted["mnist-purifier-l2"].task(place.model("mnist-cnn"))
    assert "'norm', 'l2'" in task.name and "('eps', 2.0)" in task.name
    further = digit_choices.purifier_recipe("ε to 0.33, corners, TRADES", seed=1)
    assert further.model == {"latent": 128, "tones": 8, "seed": 1} and further.options["seed"] == 1
    name = further.task(place.model("mnist-cnn")).name
    assert all(part in name for part in ("corner_pgd", "('eps', 0.33)", "('trades', 6.0)"))
    begun = digit_choices.purifier_recipe("the same, half past the thresholds", 4)
    assert begun.model == {"latent": 128, "tones": 8, "thresholds": 8}
    assert (begun.options["augment"], begun.options["epochs"]) == ("turn", 4)
    assert "both_ways" in begun.task(place.model("mnist-cnn")).name


def test_half_of_a_training_attack_passes_what_is_flat():
    """Black pixels below a threshold have no slope; only the half that passes it moves them up."""
    model = nn.Sequential(models.Cut(0.2, 0.0), nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        model[2].bias.zero_()
    x, y = torch.full((6, 1, 2, 2), 0.05), torch.zeros(6).long()
    hit = recipes.both_ways(model, x, y, 1, eps=0.3, steps=3, step_size=0.2, early_stop=False)
    start = Ball(x[:3], 0.3).start(torch.arange(3), 1, corners=True)
    torch.testing.assert_close(hit[:3], start)
    torch.testing.assert_close(hit[3:], torch.full((3, 1, 2, 2), 0.35))


def test_the_strongest_is_the_best_of_both_choices_once_all_were_tried(tmp_path):
    place = place_with(tmp_path)
    for choice, table in (("STRONGER", digit_choices.STRONGER), ("BEGUN", digit_choices.BEGUN)):
        with pytest.raises(
            ValueError, match="mnist_begun_choice: not complete; run mnist-stronger"
        ):
            digit_choices.strongest(place)
        record = getattr(digit_choices, f"{choice}_CHOICE").record
        rows = Record(record, {}, place.results, keys=("defense",))
        for k, name in enumerate(table):
            score = 9 if name == "ε to 0.33" else k  # the second of the first table
            rows.rows.append({"defense": name, "correct": [0, score]})
        rows.save(chosen="any")
    assert digit_choices.strongest(place) == "ε to 0.33"


def test_walks_are_chosen_against_an_attacker_who_knows_them(tmp_path):
    """By halving; the networks that would be trained are there already, untrained."""
    place = place_with(tmp_path, "mnist-cnn", "mnist-dae")
    record.save("mnist_selection", {"chosen": {"sigma": 0.4}}, place.results)
    cnn = models.load("mnist-cnn").state_dict()
    for seed, (classifier, dae) in white_box.SEEDS.items():
        small_dae(seed, dae, place.tried)
        net = models.build("mnist-cnn")
        net.load_state_dict(cnn)
        models.save(classifier, net, architecture="mnist-cnn", folder=place.tried)
    small_dae(2, "mnist-dae-latent-128", place.tried)
    rounds = (
        white_box.Round(4, ("shipped",), (0.2,), 2),
        white_box.Round(6, ("shipped", "another seed"), (0.1, 0.3), 1),
    )
    short = [one for one in white_box.CANDIDATES if one[1]["steps"] == 5]
    assert [kind for kind, _ in short] == ["x̂"] * 2 + ["R(x̂)"] * 2
    tried = partial(white_box.trials, rounds=rounds, left=short, effort={"steps": 2, "queries": 2})
    replace(white_box.CHOICE, trials=tried, images=few(6)).run(place)
    stored = place.record("mnist_white_box")
    first = [row for row in stored["rows"] if row["split"] == "4 digits"]
    assert [(r["defense"], white_box.walk(r)) for r in first] == [("direct", {}), *short]
    last = [row for row in stored["rows"] if row["split"] == "6 digits"]
    assert len(last) == 2 * (1 + len(white_box.best(stored["rows"], rounds[0], short))) == 10
    assert stored["chosen"] == dict(white_box.best(stored["rows"], rounds[1], short))
    for row in stored["rows"]:
        assert row["correct"][0] == max(row["correct"]) and len(row["correct"]) == len(
            row["epsilons"]
        )
    for name in ("white-box choice", "white-box choice, then R"):
        model = KNOWN[name].build(place)
        assert model.purifier.returns_reconstruction == ("R" in name)
        assert model.purifier.steps == 5
    turn = white_box.Round(2, ("shipped", "a third seed"), (0.3,), 1, first=6)
    again = partial(white_box.seeds, turn=turn, steps=2, queries=2)
    replace(white_box.SEEDED, trials=again, images=few(8)).run(place)
    rows = place.rows("mnist_seeds")
    kinds = [("direct", {}), *stored["chosen"].items()]
    assert [(row["defense"], white_box.walk(row)) for row in rows] == 2 * kinds
    assert len({row["options"]["networks"] for row in rows}) == 2 and rows[0]["n"] == 2


def test_of_two_alike_the_walk_with_fewer_steps_is_better():
    candidates = [("x̂", {"steps": steps}) for steps in (10, 5, 7)]
    rows = [
        {"split": "4 digits", "defense": kind, "options": {"networks": name, **options}}
        | {"correct": [4, right]}
        for kind, options in candidates
        for name, right in (("a", 2), ("b", 3 if options["steps"] == 7 else 1))
    ]
    turn = white_box.Round(4, ("a", "b"), (0.2,), 2)
    assert [o["steps"] for _, o in white_box.best(rows, turn, candidates)] == [7, 5]


# --- colours: a plan, its choice, and a comparison that follows from it --------------------------


def brief(sigma, depth, epochs):
    recipe = recipes.rednet(sigma, depth, epochs, width=8)
    return replace(recipe, options=recipe.options | {"batch_size": 20, "augment": False})


def coloured():
    """CIFAR-10's plan, choice, study and classifiers, on stripes."""
    short = {"epochs": 8, "batch_size": 20, "ema": 0.0, "augment": False}
    nets = recipes.CIFAR10 | recipes.CIFAR10_TRAINED
    nets = {
        name: replace(recipe, options=recipe.options | short, model={"width": 8})
        for name, recipe in nets.items()
    }
    plan = replace(
        colours.cifar10_plan("cifar10-jpeg"),
        recipe=brief,
        train=lambda place: stripes(200, 0, torch.uint8),
        validation=lambda place: stripes(40, 1),
        sigmas=(0.1, 0.2),
        depths=(4, 6),
        long=3,
        variants={name: ({"steps": 2},) for name in PRESETS},
    )
    about = {"name": data.TITLES["cifar10-jpeg"]}
    choice = plan.choice("cifar10_selection", 20, about, epsilons=(0.0, recipes.COLOUR_EPS))
    choice = replace(choice, steps=2)
    whole = colours.cifar10("cifar10-jpeg")
    trained = whole.defenses["adversarial training"]
    few = dict.fromkeys((*map(plans.adaptively, plan.variants), plans.DEFAULT), (4, 0))
    full = whole.profiles["full"]
    full = replace(full, weak=20, cw=2, strong=2, budget=BRIEF, fewer=few)
    study = replace(
        whole,
        images=lambda place, size: stripes(20, 2),
        defenses=plan.defenses(choice, plan.classifier, (colours.NET,))
        | {"adversarial training": trained},
        cw={"steps": 2, "searches": 1},
        profiles={"full": full},
        choice=choice,
        chosen={"full": (6, 2)},
    )
    return plan, study, nets


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """Everything trained, chosen and compared once."""
    place = place_in(tmp_path_factory.mktemp("colours"))
    plan, study, nets = coloured()
    assert list(study.build(place_with_one(place, plan, nets))) == ["no defense"]
    study.choice.run(place)
    recipes.train_missing(nets, partial(plan.train, place), place, progress=False)
    study.run(place)
    return place


def place_with_one(place, plan, nets):
    """The place with the classifier alone."""
    first = {name: nets[name] for name in recipes.CIFAR10}
    recipes.train_missing(first, partial(plan.train, place), place, progress=False)
    return place


def test_what_is_chosen_for_colours_follows_the_rule(chosen):
    plan, *_ = coloured()
    stored = chosen.record("cifar10_selection")
    rows, found = stored["rows"], stored["chosen"]

    def of(**options):
        return [r for r in rows if r["options"] == options and r["defense"].startswith("tried, ")]

    def total(rows):
        return sum(sum(row["correct"]) for row in rows)

    sigma = max(plan.sigmas, key=lambda sigma: total(of(depth=4, sigma=sigma)))
    pair = of(depth=4, sigma=sigma), of(depth=6, sigma=sigma)
    assert [len(part) for part in pair] == [2, 2]  # two uses
    depth = 6 if gains(*pair) else 4
    score = {r["defense"]: 0 for r in rows}
    for row in rows:
        score[row["defense"]] = max(score[row["defense"]], sum(row["correct"]))
    published = sorted(plans.TRANSFORMS, key=score.get, reverse=True)[:3]
    variant = max(plan.variants, key=lambda name: score[f"adaptive, {name}"])
    parts = {"sigma": sigma, "depth": depth, "variant": variant, "published": published}
    assert found == parts
    about = models.about("cifar10-dae", chosen.weights)
    assert about["options"] == {"depth": depth, "width": 8}
    assert about["training"]["epochs"] == 3 and about["sha256"] == stored["dae_sha256"]
    assert stored["calibration"][2] == 40 and stored["data"]["n"] == 20  # μ and s: on all
    assert [r["defense"] for r in rows].count("direct") == 1
    assert {r["defense"] for r in rows} >= {*plans.TRANSFORMS, *map(plans.adaptively, PRESETS)}
    for name, (_, grid) in plans.TRANSFORMS.items():
        assert [r["options"] for r in rows if r["defense"] == name] == list(grid)


def test_what_is_compared_follows_from_the_choice(chosen):
    _, study, _ = coloured()
    found, stored = study.at(chosen), chosen.record("cifar10")
    picked = chosen.record("cifar10_selection")["chosen"]
    assert set(models.names(chosen.weights)) == {
        "cifar10-resnet",
        "cifar10-dae",
        "cifar10-adversarial",
    }
    assert study.missing(chosen) == [] and list(chosen.work.glob("*.json")) == []
    assert set(found.defenses) & set(plans.TRANSFORMS) == set(picked["published"])
    assert {row["attack"] for row in stored["rows"]} == {CLEAN, CW, STRONG, *study.attacks}
    strong = {row["defense"] for row in stored["rows"] if row["attack"] == STRONG}
    variant = plans.adaptively(picked["variant"])
    assert {name for name in strong if name.startswith("adaptive")} == {variant}
    assert {"direct", "adversarial training", "no defense"} <= strong
    sizes = {row["defense"]: row["n"] for row in stored["rows"] if row["attack"] == "PGD"}
    assert sizes[variant] == 6 and sizes[plans.DEFAULT] == 4 and sizes["direct"] == 20
    assert Results(study, chosen).accuracy("no defense", CLEAN).correct >= 15  # it has learned


def test_rows_of_colours_are_what_a_direct_measurement_says(chosen):
    _, study, _ = coloured()
    built, found = study.build(chosen), Results(study, chosen)
    assert list(built) == found.names()
    net, (x, y) = built["no defense"], stripes(20, 2)
    hit = attacks.as_published.bim(net, x, y, eps=recipes.COLOUR_EPS)
    for name, model in built.items():
        if name == "adversarial training":
            assert model is not net
            assert torch.equal(found.right(name, CLEAN), scores.outcomes(model, x, y))
            continue
        assert name == "no defense" or model.classifier is net
        right = found.right(name, "authors' BIM", recipes.COLOUR_EPS)
        n = len(right)
        now = scores.outcomes(model, hit[:n], y[:n], index=torch.arange(n))
        assert torch.equal(right, now), name
    level = Calibration(*chosen.record("cifar10_selection")["calibration"])
    default = built[plans.DEFAULT].purifier
    same = Adaptive.preset("probabilistic", chosen.model("cifar10-dae"), level)
    assert default.options == same.options


def test_all_of_colours_goes_on_and_finds_nothing_to_do(chosen, capsys):
    _, study, nets = coloured()
    before = files(chosen.weights, chosen.results)
    study.choice.run(chosen)
    recipes.train_missing(nets, never, chosen)
    study.run(chosen)
    assert capsys.readouterr().out == "" and files(chosen.weights, chosen.results) == before


def never(*args):
    raise AssertionError("nothing is left to train")


def test_a_plan_that_is_stopped_goes_on(chosen, tmp_path):
    """Cut after every few images that are loaded for training, and within the trials."""
    plan, study, _ = coloured()
    place, left = replace(place_in(tmp_path), weights=tmp_path / "w"), [MANY]
    how = models.about("cifar10-resnet", chosen.weights)
    how = {k: how[k] for k in ("architecture", "options")}
    models.save("cifar10-resnet", chosen.model("cifar10-resnet"), folder=place.weights, **how)
    net = Cut(chosen.model("cifar10-resnet"), left)
    plan = replace(plan, classifier=lambda place: net)
    choice = replace(study.choice, trials=plan.trials, classifier=plan.classifier)
    stops = interrupted(lambda: choice.run(place), left, 30)
    assert stops >= 2
    now, then = (p.record("cifar10_selection") for p in (place, chosen))
    assert plain(now["rows"]) == plain(then["rows"]) and now["chosen"] == then["chosen"]
    assert now["dae_sha256"] == then["dae_sha256"]
    assert list(place.work.iterdir()) == [place.tried]


def test_other_networks_than_a_choice_knows_are_refused(chosen, tmp_path):
    _, study, _ = coloured()
    other = replace(chosen, results=tmp_path, _loaded={})
    stored = chosen.record("cifar10_selection")
    for part, name in (("dae_sha256", "DAE"), ("classifier_sha256", "classifier")):
        record.save("cifar10_selection", stored | {part: "0" * 64}, tmp_path)
        with pytest.raises(ValueError, match=rf"cifar10-dae were chosen with another {name}"):
            study.build(other)
    # Of another classifier, as of photographs, the settings hold nevertheless.
    plan, choice = coloured()[0], study.choice
    free = plan.defenses(choice, lambda place: place.model("cifar10-resnet"), (colours.NET,))
    assert free["direct"].build(other).classifier is other.model("cifar10-resnet")


# --- verdicts, ladders, certificates -------------------------------------------------------------


def test_a_verdict_is_the_whole_protocol_and_goes_on(tmp_path, capsys):
    left, own = [MANY], {"FGSM again": attacks.fgsm}
    net = Cut(linear(), left)
    row = Defense(lambda place: Defended(net, Direct(Blur())))
    images = lambda place: dots(20)  # noqa: E731
    verdict = Verdict("toy_verdict", "direct", row, images, 12, 0.1, BRIEF, "direct", own)
    whole, place = place_in(tmp_path / "1"), place_in(tmp_path / "2")
    assert verdict.missing(whole) == ["verdict"] and verdict.load(whole) is None
    report = verdict.run(whole)
    passes = MANY - left[0]
    assert interrupted(lambda: verdict.run(place), left, passes - 5) == 1
    for found in (report, verdict.load(whole), verdict.load(place)):
        assert found.complete and (found.n, found.settings["eps"]) == (12, 0.1)
        assert torch.equal(found.right(), report.right())
        assert [r.name for r in found.rows] == [r.name for r in report.rows]
    names = {r.name for r in report.rows}
    assert {"PGD", "BPDA", "APGD-CE", "APGD-margin", "Square", "FGSM again"} <= names
    x, y = dots(20).take(12)
    model = Defended(linear(), Direct(Blur()))
    assert torch.equal(report.right("clean"), scores.outcomes(model, x, y))
    assert torch.equal(report.right(), scores.outcomes(model, report.images, y))
    assert 0 < report.worst.correct < report.clean.correct
    assert report.settings["title"] == "direct" and "ε" in report.curves
    before = files(tmp_path)
    verdict.run(place)
    assert files(tmp_path) == before and verdict.missing(place) == []
    with pytest.raises(ValueError, match="made with another eps"):
        replace(verdict, eps=0.2).run(place)


def test_proofs_are_stored_row_by_row_and_go_on(tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    clamp = torch.nn.Hardtanh(0.2, 0.6)
    defenses = {
        "alone": Defense(lambda place: net),
        "clamped": Defense(lambda place: Defended(net, Direct(clamp))),
    }
    x, _ = dots(20)
    images = Split(x, net(x).argmax(1))
    proved, place = (
        Proved("toy_proved", defenses, lambda place: images, (0.01, 0.1)),
        place_in(tmp_path),
    )
    assert len(proved.missing(place)) == 6
    proved.run(place)
    assert proved.missing(place) == []
    right = {key: proved.right(*key, place) for key in proved.wanted()}
    assert right["alone", 0.0].all() and 0 < right["alone", 0.1].sum() < 20
    assert torch.equal(
        right["clamped", 0.1], verify(defenses["clamped"].build(place), *images, eps=0.1).right
    )
    asked = proved.row("clamped", 0.0, place)
    assert asked["drawings"] == 20
    assert asked["error"] == pytest.approx((clamp(x) - x).square().mean().item(), rel=1e-5)
    assert "drawings" not in proved.row("alone", 0.0, place)
    before = files(tmp_path)
    proved.run(place)
    assert files(tmp_path) == before


def test_a_ladder_is_stored_rung_by_rung_and_goes_on(tmp_path):
    left = [MANY]
    net, dae = Cut(linear(), left), Blur()
    walk = Adaptive(dae, steps=2, step_size=0.1)
    defenses = {
        "direct": Defense(lambda place: Defended(net, Direct(dae))),
        "adaptive": Defense(lambda place: Defended(net, walk)),
    }
    images = lambda place: dots(20)  # noqa: E731
    ladder = Ladder("toy_ladder", defenses, images, (0.1,), (0.1,), steps=2, queries=3)
    whole, place = place_in(tmp_path / "1"), place_in(tmp_path / "2")
    ladder.run(whole)
    passes = MANY - left[0]
    assert ladder.missing(place) == ["rungs"]
    assert interrupted(lambda: ladder.run(place), left, passes // 2) >= 1
    assert plain(ladder.rows(place)) == plain(ladder.rows(whole))
    assert ladder.missing(place) == []
    before = files(tmp_path)
    ladder.run(place)
    assert files(tmp_path) == before
    common = {"classifier alone", "classifier, judged by the defense", "aware, λ = 0.1", "BPDA"}
    common |= {"BPDA, averaged", "full gradient", "full gradient, PGD", "Square"}
    stand_ins = {"BPDA, the DAE", "surrogate: descent", "surrogate: smooth steps"}
    assert set(ladder.outcomes("direct", 0.1, place)) == common
    assert set(ladder.outcomes("adaptive", 0.1, place)) == common | stand_ins
    (x, y), model = dots(20), Defended(linear(), Direct(Blur()))
    rungs = ladder.rungs(model, x, 0.1)
    assert rungs["full gradient"] is model and rungs["classifier alone"] is model.classifier
    kinds = {"BPDA": attacks.BPDA, "BPDA, averaged": attacks.Averaged}
    kinds |= {"aware, λ = 0.1": attacks.ReconstructionAware}
    kinds |= {"classifier, judged by the defense": attacks.Surrogate}
    assert all(type(rungs[name]) is kind for name, kind in kinds.items())
    hit = attacks.pgd(model, x, y, eps=0.1, steps=2, early_stop=True)
    found = ladder.outcomes("direct", 0.1, place)
    assert torch.equal(found["full gradient, PGD"], scores.outcomes(model, hit, y))
    hit = attacks.apgd(linear(), x, y, eps=0.1, steps=2, early_stop=False)
    assert torch.equal(found["classifier alone"], scores.outcomes(model, hit, y))
    assert found["full gradient, PGD"].any() and found["classifier alone"].sum() >= 2
    # Who goes on after the classifier has erred is another attacker than who stops there.
    hit = attacks.apgd(linear(), x, y, eps=0.1, steps=2, early_stop=True)
    assert not torch.equal(found["classifier alone"], scores.outcomes(model, hit, y))
    with pytest.raises(ValueError, match=r"toy_ladder\.json was made with another attack, data"):
        replace(ladder, steps=3, images=lambda place: dots(21)).run(place)


@pytest.fixture(scope="module")
def subject():
    """Certificates of six digits; what is trained gets the shipped weights at once."""

    def images(place, split="test", **options):
        return place.load("mnist", split, profile="quick", **options).take(200)

    def learned(net, *images, **options):
        net.load_state_dict(models.load("mnist-smoothing-0.25").state_dict())

    recipe = lambda sigma: replace(recipes.digits_dae(sigma, width=16), fit=learned)  # noqa: E731
    small = {"sigmas": (0.25,), "n": 6, "draws": (200, 100), "attacked": 4, "radii": (1.0, 8.0)}
    small |= {"steps": 2, "per_gradient": 2, "judges": 100}
    return Certified("mnist", "digits", "mnist-cnn", recipe, images, {"name": "few"}, **small)


def test_certificates_and_attacks_on_them(subject, tmp_path, capsys):
    place = place_with(tmp_path, "mnist-cnn")
    wanted = [("denoised", 0.25, r) for r in (0.0, 1.0, 8.0)] + [("bare", 0.25, 0.0)]
    assert subject.missing(place) == wanted
    subject.run(place)
    assert capsys.readouterr().out.count(" s\n") == 4
    assert subject.missing(place) == [] and list(place.work.iterdir()) == []
    about = models.about("mnist-smoothing-0.25", place.weights)
    assert about["options"] == {"width": 16} and about["data"]["n"] == 200
    x, y = data.load("mnist", "test", profile="quick").take(6)
    assert torch.equal(subject.labels(place), y)
    again = certify(subject.base("denoised", 0.25, place), x, sigma=0.25, n=200)
    found = subject.certificates("denoised", 0.25, place)
    assert torch.equal(found.predictions, again.predictions)
    assert torch.equal(found.votes, again.votes) and (found.n, found.alpha) == (200, 0.001)
    assert subject.certificates("denoised", 0.25, place).accuracy(y).correct >= 5
    model = subject.base("denoised", 0.25, place)
    view = attacks.EOT(Smoothed(model, 0.25, draws=2), 1)
    for radius in subject.radii:  # attacked within so many σ, judged by a vote of fresh draws
        ball = {"eps": 0.25 * radius, "norm": "l2", "steps": 2, "early_stop": False}
        hit = attacks.pgd(view, x[:4], y[:4], **ball)
        read = [votes(model, z, k, 0.25, (100,), seed=1)[0].argmax() for k, z in enumerate(hit)]
        right = torch.stack(read) == y[:4]
        assert torch.equal(subject.standing(0.25, radius, place), right)
        row = subject.row("denoised", 0.25, place, radius)
        assert row["correct"] == right.sum() and row["n"] == 4
    assert 0 < row["correct"] < 4  # of eight σ, so that this says something
    bare = subject.certificates("bare", 0.25, place)
    assert bare.accuracy(y).correct >= 5  # the shipped classifier, under slight noise
    before = files(tmp_path)
    subject.run(place)  # nothing is left to do
    assert files(tmp_path) == before and capsys.readouterr().out == ""
    assert place.record("mnist_certified")["data"]["name"] == "few"
    with pytest.raises(ValueError, match=r"mnist_certified\.json was made with another attack"):
        replace(subject, steps=3).run(place)


# --- trainings -----------------------------------------------------------------------------------


def counted(task, left):
    """The same task, and Ctrl-C at a batch."""

    def batches():  # what a generator keeps is no part of what the task is
        while left[0] != 1:
            left[0] -= 1
            yield
        left[0] -= 1
        raise KeyboardInterrupt

    clock = batches()

    def again(model, x, y, generator):
        next(clock)
        return task(model, x, y, generator)

    again.name = "counted"
    return again


@pytest.mark.parametrize("stage", ["warm-up", "training"])
def test_a_training_that_is_cut_off_goes_on(stage, tmp_path):
    """Four epochs of five batches, and two of a warm-up before them: as if in one go."""
    left = [MANY]
    task = lambda classifier: counted(training.denoising(0.1), left)  # noqa: E731
    fit = {"batch_size": 4, "lr": 1e-3, "seed": 0}
    first = lambda classifier: counted(training.denoising(0.3), left)  # noqa: E731
    warm = Recipe("mnist-magnet", first, fit | {"epochs": 2})
    recipe = Recipe("mnist-magnet", task, fit | {"epochs": 4}, warm_up=warm, defended="mnist-cnn")
    images = data.load("mnist", "train").take(20)
    where = [place_with(tmp_path / name, "mnist-cnn") for name in made(tmp_path, "one", "two")]
    recipes.train("net", recipe, images, where[0], progress=False)
    used = []
    left[0] = 8 if stage == "warm-up" else 22
    for _ in range(2):
        try:
            recipes.train("net", recipe, images, where[1], progress=False)
        except KeyboardInterrupt:
            used.append(sorted(path.name for path in where[1].work.iterdir()))
            left[0] = MANY
    both = ["net.pt", "net.warm-up.pt"]
    assert used == [["net.warm-up.pt"] if stage == "warm-up" else both]
    assert MANY - left[0] == (25 if stage == "warm-up" else 10)  # whole epochs are kept
    about = [models.about("net", place.weights) for place in where]
    assert about[0]["sha256"] == about[1]["sha256"]
    assert list(where[1].work.iterdir()) == []
    assert about[1]["training"] == fit | {"epochs": 4} and about[1]["data"]["n"] == 20
    assert about[1]["classifier_sha256"] == where[1].sha256("mnist-cnn")
    assert about[1]["made"]["apudae"]


def made(folder, *names):
    for name in names:
        (folder / name).mkdir()
    return names


def test_eight_bits_train_what_floats_train_and_changes_are_recorded(tmp_path):
    place = place_in(tmp_path)
    for name, dtype in (("bits", torch.uint8), ("floats", torch.float32)):
        images = data.load("mnist", "train", dtype=dtype).take(20)
        recipe = Recipe("mnist-magnet", recipes.denoising(0.1), {"epochs": 9, "batch_size": 5})
        test = lambda place: data.load("mnist", "test").take(3)  # noqa: E731
        net = recipes.train(name, recipe, images, place, progress=False, epochs=1)
        stored = models.load(name, place.weights)
        for one, other in zip(net.parameters(), stored.parameters(), strict=True):
            assert torch.equal(one, other) and not one.requires_grad  # rounded as it is stored
    about = [models.about(name, place.weights) for name in ("bits", "floats")]
    assert about[0]["sha256"] == about[1]["sha256"] and about[0]["training"]["epochs"] == 1
    assert "classifier_sha256" not in about[0] and "measured" not in about[0]
    recipe = Recipe("mnist-mlp", options={"epochs": 1, "batch_size": 10}, model={"width": 4})
    net = recipes.train("classifier", recipe, images, place, test=test, progress=False)
    right = scores.outcomes(net, *test(place)).sum().item()
    measured = models.about("classifier", place.weights)["measured"]
    assert measured == {"split": "test", "n": 3, "correct": right}


def test_every_published_network_is_trained_stored_and_built(tmp_path):
    """One step each on few digits: what comes back is what was stored."""
    place, x = place_with(tmp_path, "mnist-cnn"), data.load("mnist", "train").take(20)
    for name, recipe in recipes.PUBLISHED.items():
        gan = recipe.fit is recipes.fit_gan
        short = {"steps": 1, "batch_size": 4, "critic_steps": 1} if gan else {"epochs": 1}
        if recipe.warm_up:
            recipe = replace(recipe, warm_up=replace(recipe.warm_up, options=short))
        images = Split((255 * x.images).byte(), x.labels) if gan else x
        net = recipes.train(name, recipe, images, place, progress=False, **short)
        about = models.about(name, place.weights)
        if gan:  # eight bits teach what floats teach
            recipes.train("again", recipe, x, place, progress=False, **short)
            assert models.about("again", place.weights)["sha256"] == about["sha256"]
        assert about["training"].items() >= short.items() and about["data"]["n"] == 20
        assert about["classifier_sha256"] == place.sha256("mnist-cnn")
        assert not any(p.requires_grad for p in net.parameters())
    classifier = place.model("mnist-cnn")
    for defense in digits.defenses.PUBLISHED.values():
        model = defense.build(place)
        assert model(x.images[:3]).shape == (3, 10) and not model.training
        assert defense.retrained == (classifier not in list(model.modules()))


def test_what_is_tried_waits_aside_and_what_is_kept_gets_its_name(tmp_path):
    place, asked = place_in(tmp_path), []

    def images():
        asked.append(1)
        return data.load("mnist", "train").take(10)

    recipe = Recipe("mnist-magnet", recipes.denoising(0.1), {"epochs": 1, "batch_size": 5})
    net = recipes.tried("a", recipe, images, place)
    again = recipes.tried("a", recipe, images, place)
    assert asked == [1] and models.names(place.weights) == []
    assert models.names(place.tried) == ["a"] and list(place.work.glob("*.pt")) == []
    recipes.keep("a", "b", place)
    kept = models.about("b", place.weights)
    tried = models.about("a", place.tried)
    assert kept["sha256"] == tried["sha256"] and kept["training"] == tried["training"]
    for one, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    recipes.train_missing({"b": recipe}, never, place)
    recipes.train_missing({"b": recipe, "c": recipe}, images, place, progress=False)
    assert asked == [1, 1] and set(models.names(place.weights)) == {"b", "c"}


def test_tones_are_functions_of_a_single_pixel():
    net = models.build("mnist-dae", tones=3)
    x = torch.rand(2, 1, 28, 28)
    assert net(x).shape == x.shape
    assert net.encoder[0].kernel_size == (1, 1) and net.encoder[0].out_channels == 3
    assert isinstance(net.encoder[0], nn.Conv2d)
    same = models.build("mnist-dae", tones=0).state_dict().keys()
    assert models.build("mnist-dae").state_dict().keys() == same


def test_the_report_of_a_verdict_needs_no_images(tmp_path):
    """The large file of images may be left out of a package: outcomes stand in the record."""
    x, y = dots(4)
    options = {"eps": 0.2, "budget": BRIEF, "curves": False, "progress": False}
    report = evaluate(linear(), x, y, record=tmp_path / "v", **options)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    again = Report.load("v", tmp_path)
    assert again.images is None and torch.equal(again.right(), report.right())
