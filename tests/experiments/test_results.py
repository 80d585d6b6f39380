"""What is read from the record of a comparison, against counts made by hand."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from apudae import experiments
from apudae.core import record
from apudae.core.record import pack
from apudae.core.scores import Accuracy, Outcomes, paired_difference, same_images
from apudae.data import Order
from apudae.evaluation import BUDGETS
from apudae.experiments import Place, Results, digits, results

DEFENSES = ("no defense", "resize and pad", "adversarial training")
PLAIN = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(BUDGETS["quick"]).items()}


def row(defense, attack, eps, *right, **more):
    outcomes = pack(torch.tensor(right).bool())
    key = {"defense": defense, "attack": attack, "eps": eps}
    return key | {"n": len(right), "correct": sum(right), "outcomes": outcomes} | more


def three(*clean):
    """Three defenses on eight digits, a random one among them."""
    return [
        row("no defense", "clean", 0.0, *(clean or (1, 1, 1, 1, 1, 1, 1, 0))),
        row("no defense", "PGD", 0.3, 0, 0, 0, 0, 0, 0, 0, 0),
        row("no defense", "C&W", 0.0, 0, 0, 0, 1),
        row("no defense", "protocol", 0.3, 0, 0, 0, 0, stands={"PGD": 0.0}),
        row("adversarial training", "clean", 0.0, 1, 1, 1, 1, 1, 1, 0, 0),
        row("adversarial training", "PGD", 0.3, 1, 1, 1, 1, 1, 0, 0, 0),
        row("resize and pad", "clean", 0.0, 1, 1, 1, 1, 1, 1),
        row("resize and pad", "C&W", 0.0, 1, 0, 0, 1),
        row("resize and pad", "protocol", 0.3, 0, 1, misread=[15, 0], draws=20)
        | {"stands": {"PGD": 1.6, "Square": 1.25}, "correct": 1.25},
    ]


@pytest.fixture
def read(tmp_path):
    """Reads such rows where there are no verdicts."""

    def of(rows, **more):
        whole = {"rows": rows, "ms_per_image": {"no defense": 0.123}}
        whole |= {"profile": {"budget": PLAIN}} | more
        record.save("mnist", whole, tmp_path)
        return results("mnist", place=Place(results=tmp_path))

    return of


def test_a_table_counts_all_images_unless_it_is_asked_for_the_relative(read):
    found = read(three())
    for table in (found.table(0.3), found.weak(0.3)):
        place = table.header.index("clean")
        assert table.rows[0][place] == str(found.accuracy("no defense", "clean"))
    relative = found.table(0.3, relative=True)
    assert relative.rows[0][2] == str(found.relative("no defense", "clean")) == str(Accuracy(7, 7))


def test_rows_are_read_as_they_were_written(read):
    found = read(three())
    assert found.names() == list(DEFENSES)
    assert found.right("no defense", "C&W").tolist() == [False, False, False, True]
    assert found.right("resize and pad", "protocol", 0.3).tolist() == [0.25, 1.0]
    assert str(found.accuracy("adversarial training", "PGD", 0.3)) == str(Accuracy(5, 8))
    assert found.stands("resize and pad", 0.3) == {"PGD": 80.0, "Square": 62.5}
    assert found.epsilons == (0.1, 0.2, 0.3) and found.budget == "quick"
    assert not found.has("adversarial training", "protocol", 0.3)
    with pytest.raises(ValueError, match=r"no row 'adversarial training', 'protocol', 0\.3 in"):
        found.right("adversarial training", "protocol", 0.3)
    assert "adversarial training, ε = 0.3" in found.missing()
    assert "no defense, ε = 0.3" not in found.missing()
    assert read(three(), profile={"budget": PLAIN | {"pgd": 1}, "epsilons": [0.3]}).budget == "own"


def test_what_has_not_been_made_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown record .mnist_quick. in .*; known: .*mnist"):
        results("mnist", "quick")
    with pytest.raises(ValueError, match=r"study: expected one of mnist, cifar10, .*got 'x'"):
        results("x")
    with pytest.raises(ValueError, match=r"unknown record 'cifar10' in .*; known: none"):
        results("cifar10", place=Place(results=tmp_path))
    with pytest.raises(ValueError, match=r"name: expected one of challenges, cifar10, .*got 'x'"):
        experiments.record("x")
    with pytest.raises(ValueError, match=r"defense: expected one of no defense, .*got 'prayer'"):
        experiments.build("mnist", "prayer")
    assert experiments.verdict("mnist", "jpeg", 0.2) is None


def test_differences_are_taken_on_the_digits_that_both_have(read):
    found = read(three())
    gap = found.minus("adversarial training", "resize and pad", "clean")
    ones = torch.ones(6, dtype=torch.bool)
    assert str(gap) == str(paired_difference(ones, ones)) and gap.points == 0
    rates = found.minus("resize and pad", "no defense", "protocol", 0.3)
    assert rates.points == pytest.approx(62.5)


def test_each_defense_is_checked_against_its_own_attack(read):
    checks = {check.name: check for check in read(three()).checks()}
    assert checks.keys() == {"resize and pad", "adversarial training"}
    trained = checks["adversarial training"]
    assert (trained.attack, trained.eps) == ("PGD", 0.3)
    assert trained.before.correct == 0 and trained.after.correct == 5 and trained.holds
    assert not checks["resize and pad"].holds  # one digit of four is no evidence


def test_the_table_says_what_it_does_not_know(read):
    found = read(three())
    rows = {row[0]: row for row in found.table(0.3).rows}
    assert rows["adversarial training"][4:6] == ["–", "not run"]
    assert rows["resize and pad"][4:6] == [f"{Accuracy(1.25, 2)} of 2", "quick"]
    assert rows["no defense"][6] == "0.12" and rows["resize and pad"][6] == "–"
    assert rows["adversarial training"][7] == "retrained" and rows["no defense"][7] == "as it was"
    assert found.weak(0.3).rows[0][1] == "8"


def test_a_chart_is_sorted_by_its_last_attack_and_says_of_how_many(read):
    found = read(three())
    (axes,) = found.chart(0.3).axes
    there = {
        name: found.accuracy(name, "protocol", 0.3)
        for name in DEFENSES
        if found.has(name, "protocol", 0.3)
    }
    wanted = [f"{k} ({v.n:,})" for k, v in sorted(there.items(), key=lambda p: -p[1].percent)]
    assert [label.get_text() for label in axes.texts] == wanted
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["worst case", "PGD on the classifier"]
    marks = axes.containers[0].lines[0].get_xdata().tolist()
    assert marks == [there[label.split(" (")[0]].percent for label in wanted]


def test_relative_to_what_the_bare_classifier_reads(read):
    found = read(three(0, 1, 1, 1, 0, 1, 1, 1))
    assert found.relative("no defense", "clean") == Accuracy(6, 6)
    assert found.relative("adversarial training", "PGD", 0.3) == Accuracy(3, 6)
    # On the first two images, of which one counts: 20 fresh draws, none misread.
    assert found.relative("resize and pad", "protocol", 0.3) == Accuracy(1.0, 1)
    rows = {row[0]: row for row in found.table(0.3, relative=True).rows}
    assert rows["adversarial training"][2:4] == [str(Accuracy(4, 6)), str(Accuracy(3, 6))]
    assert rows["resize and pad"][4] == f"{Accuracy(1, 1)} of 1"
    gap = found.minus("adversarial training", "no defense", "PGD", 0.3, relative=True)
    shares = [found.relative(k, "PGD", 0.3).percent for k in ("adversarial training", "no defense")]
    whole = found.minus("adversarial training", "no defense", "PGD", 0.3)
    assert gap.points == pytest.approx(shares[0] - shares[1]) and gap.points != whole.points
    assert found.minus("resize and pad", "no defense", "protocol", 0.3, relative=True).points == 100
    weak = found.weak(0.3, ("clean", "PGD"), relative=True).rows
    assert weak[0][:3] == ["no defense", "6", "100.0 % [61.0, 100.0]"]


def test_a_table_of_some_attacks(read):
    found = read(three())
    whole, some = found.weak(0.3), found.weak(0.3, ("PGD", "clean"))
    assert some.header == ["defense", "n", "PGD", "clean"]
    places = [whole.header.index(name) for name in some.header]
    assert some.rows == [[row[k] for k in places] for row in whole.rows]
    with pytest.raises(ValueError, match=r"some of clean, noise.*got DeepFool"):
        found.weak(0.3, ("DeepFool",))


def test_a_verdict_stands_where_the_study_leaves_the_protocol_to_it():
    found = results("mnist_purifier")
    report = experiments.verdict("mnist_purifier", "purifier", 0.3)
    assert found.has("purifier", "protocol", 0.3)
    assert torch.equal(found.right("purifier", "protocol", 0.3), report.right())
    assert found.budget_of("purifier", 0.3) == "own"  # ten restarts
    assert found.budget_of("no defense", 0.3) == "quick"
    left = found.stands("purifier", 0.3)
    assert list(left.values()) == sorted(left.values(), reverse=True)
    assert list(left.values())[-1] == pytest.approx(report.worst.percent)


def test_a_verdict_does_not_stand_for_a_row_that_the_comparison_will_have():
    study, full = digits.COMPARISON, digits.COMPARISON.profiles["full"]
    assert {name for name, _ in Results(study, Place()).reports} == set(digits.defenses.OURS)
    ours = replace(study, profiles={"full": replace(full, ours=True)})
    assert Results(ours, Place()).reports == {}


def test_pairs_are_taken_on_the_images_that_both_really_have(read):
    """A row, and the verdict of another study, which took its images in another order."""
    order = Order(10_000)
    shuffled = read(three(), data={"order": asdict(order)})
    row = shuffled.outcomes("no defense", "clean")
    assert row.places.tolist() == order.places(8).tolist() and not row.right[7]
    assert shuffled.outcomes("resize and pad", "clean").places.tolist() == order.places(6).tolist()
    assert read(three()).outcomes("no defense", "clean").places.tolist() == list(range(8))
    # As before among themselves, for they have the same order.
    gaps = [
        k.minus("adversarial training", "no defense", "PGD", 0.3) for k in (shuffled, read(three()))
    ]
    assert gaps[0] == gaps[1]
    there = torch.arange(10_000)
    whole = Outcomes(there == order.places(8)[2], there)
    assert same_images(whole, row)[0].sum() == 1
    pair = same_images(row, whole)
    assert pair[0].tolist() == [True] * 7 + [False] and pair[1].nonzero().item() == 2
    with pytest.raises(ValueError, match="no image in common"):
        same_images(row, Outcomes(torch.ones(8), torch.arange(8)))


def test_verdicts_know_their_digits():
    """All were asked in the official order, so they are paired with each other."""
    for verdict in (*digits.ROBUSTNESS, digits.PURIFIER_VERDICT):
        found = verdict.outcomes(Place())
        assert torch.equal(found.places, torch.arange(verdict.n))
        assert torch.equal(found.right, verdict.load(Place()).right())
    with pytest.raises(ValueError, match=r"direct_0\.3: expected a complete record in"):
        digits.ROBUSTNESS[0].outcomes(Place(results=Place().results / "none"))


def test_two_verdicts_are_compared_on_the_same_images():
    one, other = (experiments.verdict("mnist", k, 0.2) for k in ("adaptive, chosen", "direct"))
    assert one.minus(other) == paired_difference(other.right(), one.right())


def test_what_a_row_has_measured_itself_goes_before_a_verdict(read, tmp_path):
    """A record of the quick profile has the protocol of all its defenses."""
    mine = row("direct", "protocol", 0.3, 1, 0, stands={"PGD": 1.0})
    record.save(
        "mnist_quick", {"rows": [mine], "ms_per_image": {}, "profile": {"budget": PLAIN}}, tmp_path
    )
    place = Place(results=tmp_path)
    for path in Place().results.glob("mnist_robust_direct_0.3*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = results("mnist", "quick", place)
    assert found.right("direct", "protocol", 0.3).tolist() == [True, False]
    assert found.budget_of("direct", 0.3) == "quick" and found.stands("direct", 0.3) == {"PGD": 50}


@pytest.mark.parametrize(
    ("more", "lacking"),
    [
        ({"profile": None}, "profile, budget"),
        *(({"profile": wrong}, "budget") for wrong in ({}, {"budget": "quick"})),
        *(({"ms_per_image": wrong}, "ms_per_image") for wrong in (None, 3.0)),
        ({"rows": [{"defense": "no defense", "attack": "clean", "eps": 0.0}]}, "outcomes of"),
        ({"rows": [{"defense": "no defense", "attack": "clean"}]}, "it has no eps"),
        ({"rows": None}, "rows"),
    ],
)
def test_a_record_that_lacks_a_part_is_refused_by_its_file(more, lacking, tmp_path):
    whole = {"rows": three(), "ms_per_image": {}, "profile": {"budget": PLAIN}} | more
    record.save("mnist", {k: v for k, v in whole.items() if v is not None}, tmp_path)
    told = rf"mnist\.json (lacks|is damaged: ).*{lacking}"
    with pytest.raises(RuntimeError, match=told) as error:
        results("mnist", place=Place(results=tmp_path))
    assert "\n" not in str(error.value)
