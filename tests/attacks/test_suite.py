from functools import partial

import pytest
import torch
from support import Hot, module_of, read, shipped, small

from apudae import attacks, data
from apudae.attacks.suite import standard
from apudae.core.norms import length
from apudae.evaluation import evaluate


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist", "validation").take(150)


@pytest.fixture(scope="module")
def model():
    return shipped("mnist-cnn")


SMALL = {
    "FGSM": attacks.fgsm,
    "PGD": partial(attacks.pgd, steps=10, early_stop=True),
    "Square": partial(attacks.square, queries=30),
}


def test_the_worst_case_is_the_union_of_what_each_attack_fells(digits, model):
    x, y = digits
    worst = attacks.suite(model, x, y, eps=0.1, attacks=SMALL)
    each = [model(attack(model, x, y, eps=0.1)).argmax(1) == y for attack in SMALL.values()]
    expected = (model(x).argmax(1) == y) & torch.stack(each).all(0)
    assert torch.equal(worst.standing, expected)
    assert torch.equal(model(worst.images).argmax(1) == y, worst.standing)
    assert 0 < worst.standing.sum() < len(x)


def test_each_image_is_credited_to_the_first_attack_that_felled_it(digits, model):
    x, y = digits
    worst = attacks.suite(model, x, y, eps=0.1, attacks=SMALL)
    assert worst.names == ("clean", "FGSM", "PGD", "Square")
    wrong = model(x).argmax(1) != y
    fgsm = model(attacks.fgsm(model, x, y, eps=0.1)).argmax(1) != y
    assert torch.equal(worst.felled_by == 0, wrong)
    assert torch.equal(worst.felled_by == 1, ~wrong & fgsm)
    after = worst.standing_after()
    assert after["clean"] == (~wrong).sum()
    assert after["FGSM"] == (~wrong & ~fgsm).sum()
    assert after["Square"] == worst.standing.sum()
    assert list(after.values()) == sorted(after.values(), reverse=True)


def test_attacks_see_only_the_images_that_still_stand(digits, model):
    x, y = digits
    seen = []

    def spy(model, x, y, *, eps, index):
        seen.append(index)
        return attacks.pgd(model, x, y, eps=eps, index=index, steps=5)

    worst = attacks.suite(model, x, y, eps=0.1, attacks={"first": spy, "second": spy})
    right = (model(x).argmax(1) == y).nonzero().flatten()
    assert torch.equal(seen[0], right)
    assert torch.equal(seen[1], right[worst.felled_by[right] != 1])


def test_images_keep_their_own_random_draws(digits, model):
    """What a later attack does to an image does not depend on which others fell before."""
    x, y = digits
    worst = attacks.suite(model, x, y, eps=0.1, seed=3, attacks=SMALL)
    pgd = attacks.pgd(model, x, y, eps=0.1, steps=10, early_stop=True, seed=3)
    felled = worst.felled_by == 2
    assert felled.sum() > 10
    torch.testing.assert_close(worst.images[felled], pgd[felled], rtol=0, atol=1e-4)


def test_an_image_that_stands_is_returned_at_its_highest_loss(digits, model):
    x, y = digits
    worst = attacks.suite(model, x, y, eps=0.05, attacks={"noise": attacks.noise} | SMALL)
    stand = worst.standing
    losses = torch.nn.functional.cross_entropy
    with torch.no_grad():
        kept = losses(model(worst.images[stand]), y[stand], reduction="none")
        for attack in (attacks.noise, attacks.fgsm, SMALL["PGD"]):
            other = attack(model, x[stand], y[stand], eps=0.05)
            single = losses(model(other), y[stand], reduction="none")
            assert (kept >= single - 1e-3).double().mean() > 0.95  # noise is keyed by place
        assert (kept >= losses(model(x[stand]), y[stand], reduction="none")).all()
    assert length(worst.images - x).max() <= 0.05 + 1e-6


@pytest.mark.parametrize(
    "attack",
    [
        lambda x, y: x,
        lambda model, x: x,
        lambda model, x, y, alpha: x,
        lambda model, x, y, *, epsilon: x,
    ],
)
def test_an_attack_that_cannot_be_called_is_named_before_any_other_runs(attack):
    model = module_of(lambda x: pytest.fail("asked"))
    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2).long()
    options = {"eps": 0.1, "attacks": {"mine": attack}}
    for run in (attacks.suite, evaluate):
        with pytest.raises(ValueError, match="attacks: 'mine' cannot be called as attack"):
            run(model, x, y, **options)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_withstands_the_standard_list_withstands_each_of_its_members(norm):
    """On a model whose cross-entropy has no gradient, so that the first of them fell little."""
    model, (x, y) = Hot(small()), read(40)
    eps = 0.08 if norm == "linf" else 1.2
    worst = attacks.suite(model, x, y, eps=eps, norm=norm)
    assert worst.names == ("clean", "PGD", "APGD-CE", "APGD-DLR", "Square")
    assert 10 <= worst.standing.sum() <= 30
    for attack in standard(classes=10).values():
        alone = model(attack(model, x, y, eps=eps, norm=norm)).argmax(1) == y
        assert (alone | ~worst.standing).double().mean() > 0.97  # one may fall by rounding
    assert length(worst.images - x, norm).max() <= eps + 1e-5


def test_two_classes_are_enough_for_the_standard_list(linear, generator):
    two = type(linear)((1, 4, 4), 2, generator)
    x = torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    worst = attacks.suite(two, x, two(x).argmax(1), eps=0.01)
    assert worst.names == ("clean", "PGD", "APGD-CE", "APGD-margin", "Square")


def test_the_standard_list_is_the_quick_budget():
    quick = standard(classes=10)
    assert quick["PGD"].keywords["steps"] == quick["APGD-CE"].keywords["steps"] == 50
    assert quick["Square"].keywords["queries"] == 500


def test_an_attack_that_leaves_the_ball_is_refused(digits, model):
    x, y = digits
    for cheat, message in (
        (lambda model, x, y: (x + 0.11).clamp(0, 1), "'cheat' left the linf ball of radius 0.1"),
        (lambda model, x, y: x - 0.05, r"'cheat' left the .* values in \[-0.05"),
        (lambda model, x, y: x * float("nan"), "'cheat' left"),
        (lambda model, x, y: x[:-1], "'cheat' returned shape"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.suite(model, x, y, eps=0.1, attacks={"cheat": cheat})


def test_options_that_were_fixed_stay_fixed(digits, model):
    """The list may hold the attack of another norm, if its images stay in the ball asked for."""
    x, y = (part[:20] for part in digits)
    inside = partial(attacks.pgd, norm="linf", eps=0.01, steps=3)
    worst = attacks.suite(model, x, y, eps=1.0, norm="l2", attacks={"small": inside})
    assert length(worst.images - x).max() <= 0.01 + 1e-6


def test_options_stay_fixed_also_for_attacks_that_take_any(digits, model):
    x, y = (part[:5] for part in digits)
    seen = {}

    def spy(model, x, y, **options):
        seen.update(options)
        return x

    attacks.suite(model, x, y, eps=0.1, seed=3, attacks={"spy": partial(spy, seed=7, eps=0.01)})
    assert (seen["seed"], seen["eps"], seen["norm"]) == (7, 0.01, "linf")


def test_images_of_another_type_or_with_a_graph_are_taken(digits, model):
    x, y = (part[:5] for part in digits)
    images = x.double().requires_grad_(True)
    worst = attacks.suite(model, x, y, eps=0.1, attacks={"odd": lambda model, x, y: images * 1})
    assert worst.images.dtype == x.dtype
    assert not worst.images.requires_grad


@pytest.mark.parametrize("attack", [attacks.cw, partial(attacks.cw, steps=5)])
def test_cw_is_refused_where_epsilon_is_not_its_length(attack, digits, model):
    x, y = (part[:5] for part in digits)
    with pytest.raises(ValueError, match="attacks: 'short' knows L2 only"):
        attacks.suite(model, x, y, eps=0.1, attacks={"short": attack})


def test_empty_batches_and_empty_lists(digits, model):
    x, y = digits
    worst = attacks.suite(model, x[:0], y[:0], eps=0.1)
    assert worst.images.shape == x[:0].shape
    assert len(worst.standing) == 0
    assert worst.names == ("clean", "PGD", "APGD-CE", "APGD-DLR", "Square")
    with pytest.raises(ValueError, match="attacks: expected at least one"):
        attacks.suite(model, x, y, eps=0.1, attacks={})
