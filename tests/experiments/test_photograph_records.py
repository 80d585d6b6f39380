"""The shipped comparisons on CIFAR-10 and ImageNet; a slice again where the data is at hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from apudae.standings import Standings

from apudae import (
    attacks,
    checkpoints,
    cifar,
    data,
    image_files,
    imagenet,
    lineup,
    records,
    scores,
)
from apudae.evaluation import evaluate, model_fingerprint

LINEUPS = {"cifar10": cifar.lineup(cifar.made_on()), "imagenet": imagenet.lineup()}


@pytest.fixture(scope="module")
def built():
    return {k: line.build(checkpoints.WEIGHTS, "cpu") for k, line in LINEUPS.items()}


def at_hand(name):
    """Images and labels of the shipped record, or the reason why there are none."""
    line, record = LINEUPS[name], records.load(name)
    try:
        test = line.load(profile="full", root=None).take(record["data"]["n"])
    except (FileNotFoundError, RuntimeError) as error:
        pytest.skip(str(error))
    if data.fingerprint(test.images) != record["data"]["sha256"]:
        pytest.skip("other images than the record's are at hand")
    return test


@pytest.mark.parametrize("name", LINEUPS)
def test_the_record_was_made_with_the_shipped_models_and_settings(name, built):
    line, record = LINEUPS[name], records.load(name)
    profile = line.profiles["full"].within(record["data"]["n"])
    assert record["profile"] == json.loads(json.dumps(asdict(profile)))
    assert set(built[name]) == set(line.defenses)
    for text, row in record["rows"].items():
        defense, attack, _ = text.split(" | ")
        assert row["model"] == model_fingerprint(built[name][defense])[:16], text
        assert row["n"] == profile.n(defense, attack), text
    assert not records.older(record["rows"])
    smallest = f"{lineup.STRONG} | {min(line.epsilons):g}"  # what falls there falls further out
    assert all(lineup.STRONG in text for text in line.missing("full"))
    assert not any(text.endswith(smallest) for text in line.missing("full"))
    assert set(record["ms_per_image"]) == set(line.defenses)
    assert (records.RESULTS / f"{name}.json").stat().st_size <= 500_000


@pytest.mark.parametrize("name", LINEUPS)
def test_the_worst_case_is_never_above_any_of_its_attacks(name):
    found = Standings.load(lineup=LINEUPS[name])
    for defense in found.names():
        for eps in found.epsilons:
            if found.has(defense, lineup.STRONG, eps):
                worst = found.right(defense, lineup.STRONG, eps).double()
                clean = found.right(defense, "clean")[: len(worst)].double()
                assert (worst <= clean).all()
                left = list(found.stands(defense, eps).values())
                assert left == sorted(left, reverse=True)
                assert left[-1] == pytest.approx(100 * worst.mean().item(), abs=0.1)


@pytest.mark.parametrize("attack", ["clean", "authors' BIM", "R-FGSM"])
@pytest.mark.parametrize("defense", ["no defense", "direct", "jpeg", "adversarial training"])
def test_a_slice_of_the_cifar10_rows_is_what_is_measured_now(defense, attack, built):
    n, models, record = 100, built["cifar10"], records.load("cifar10")
    x, y = at_hand("cifar10").take(n)
    aimed = models[defense if defense == cifar.TRAINED else "no defense"]
    eps, images = cifar.EPS, x
    if attack == "clean":
        eps = 0.0
    else:
        index = torch.arange(n)
        options = attacks.taken(cifar.WEAK[attack], {"eps": eps, "index": index})
        images = cifar.WEAK[attack](aimed, x, y, **options)
    now = scores.outcomes(models[defense], images, y)
    row = record["rows"][lineup.key(defense, attack, eps)]
    then = records.unpack(row["outcomes"], row["n"])[:n]
    assert (now == then).double().mean() >= 0.97


def test_a_slice_of_the_cifar10_protocol_is_what_is_measured_now(built):
    n, name = 20, "adversarial training"
    x, y = at_hand("cifar10").take(n)
    budget = LINEUPS["cifar10"].profiles["full"].budget
    settings = {"eps": cifar.EPS, "budget": budget, "curves": False, "progress": False}
    report = evaluate(built["cifar10"][name], x, y, **settings)
    row = records.load("cifar10")["rows"][lineup.key(name, lineup.STRONG, cifar.EPS)]
    then = records.unpack(row["outcomes"], row["n"])[:n]
    assert (report.right().bool() == then).double().mean() >= 0.9
    assert then.any() and not then.all()  # so that agreement says something


def test_a_slice_of_the_imagenet_rows_is_what_is_measured_now(built):
    n, models, record = 8, built["imagenet"], records.load("imagenet")
    x, y = at_hand("imagenet").take(n)
    eps = imagenet.EPSILONS[0]
    images = attacks.fgsm(models["no defense"], x, y, eps=eps)
    compared = []
    for defense in ("no defense", "direct", "jpeg", f"adaptive, {chosen()}"):
        for attack, z in (("clean", x), ("FGSM", images)):
            row = record["rows"][lineup.key(defense, attack, eps if attack == "FGSM" else 0.0)]
            then = records.unpack(row["outcomes"], row["n"])[:n]
            compared.append(scores.outcomes(models[defense], z, y) == then)
    assert torch.cat(compared).double().mean() >= 0.95


def chosen():
    return records.load(imagenet.PLAN.record)["chosen"]["variant"]


def test_what_was_trained_or_chosen_on_is_not_in_the_record():
    test = at_hand("imagenet")
    folder = imagenet._default(None)
    seen = set(records.load(imagenet.PLAN.record)["data"]["seen_sha256"])
    kept = imagenet.unseen(image_files.list_imagenet(folder))
    kept = image_files.Listing(*(part[: len(test.images)] for part in kept))
    assert not seen & set(imagenet.keys(kept)) and len(seen) <= 300
    images, labels = image_files.load_folder(kept, imagenet.SIZE)
    assert torch.equal(images, test.images) and torch.equal(labels, test.labels)


def test_the_records_say_what_their_images_are():
    assert "JPEG copy" in records.load("cifar10")["data"]["name"]
    assert "probably" in records.load("imagenet")["data"]["name"]
    for name, line in LINEUPS.items():
        assert records.load(name)["weak"] == json.loads(json.dumps(line.told))
