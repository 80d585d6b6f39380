"""ImageNet: a folder that is divided by hashes, a choice, a comparison; with a tiny classifier."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from apudae.plan import Budget
from PIL import Image
from torch import nn

from apudae import (
    data,
    experiments,
    image_files,
    imagenet,
    lineup,
    models,
    records,
    scores,
    selection,
    versus,
)

pytestmark = pytest.mark.filterwarnings("ignore::apudae.checks.AttackWarning")
RECIPE = imagenet.PLAN.recipe


# These come first: what follows runs with other sizes.


def test_another_classifier_has_a_record_of_its_own():
    assert imagenet.lineup(name="resnet50").records["full"] == "imagenet_resnet50"
    with pytest.raises(ValueError, match="classifier: expected efficientnet-lite0 or resnet50"):
        imagenet.lineup(name="vgg")


def test_crops_tile_the_middle(tmp_path):
    pixels = torch.arange(256 * 256).remainder(251).view(256, 256).to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    tiles = imagenet.crops(image_files.Listing([tmp_path / "a.png"], [0]))
    assert tiles.shape == (16, 3, 64, 64) and tiles.dtype == torch.uint8
    rows = [torch.cat(list(tiles[4 * k : 4 * k + 4]), 2) for k in range(4)]
    assert torch.equal(torch.cat(rows, 1)[1], pixels)


def test_too_few_images_and_no_folder_are_named(tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "0002_a.png")
    with pytest.raises(ValueError, match="expected at least 301 images"):
        imagenet.divide(image_files.list_imagenet(tmp_path))
    monkeypatch.delenv("APUDAE_DATA", raising=False)
    command = ["imagenet", "--weights", str(tmp_path), "--results", str(tmp_path)]
    with pytest.raises(SystemExit, match="name a folder of photographs with --folder"):
        experiments.main(command)
    with pytest.raises(SystemExit, match="gone is not a folder"):
        experiments.main([*command, "--folder", str(tmp_path / "gone")])


def tiny_classifier():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            models.Normalize(*models.IMAGENET),
            nn.Conv2d(3, 16, 5, stride=4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 1000),
        ).eval()


def brief(sigma, depth, epochs):
    recipe = RECIPE(sigma, depth, epochs)
    return replace(recipe, model={"depth": 4, "width": 8}, options=recipe.options)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Twenty photographs of 36 × 40 pixels, named as the classifier reads them, and one run."""
    top, generator = tmp_path_factory.mktemp("imagenet"), torch.Generator().manual_seed(3)
    folder, model = top / "photographs", tiny_classifier()
    folder.mkdir()
    plan = replace(imagenet.PLAN, recipe=brief, sigmas=(0.1, 0.2), brief=1, long=2, images=4)
    plan = replace(plan, variants={"simple": ({"steps": 2},), "l2": ({"steps": 2},)})
    budget = Budget(pgd=2, apgd=2, targets=1, queries=3, draws=1, weights=(0.1,), scoring=2)
    searches, default = {"steps": 2, "searches": 1}, {selection.DEFAULT: (4, 2)}
    full = replace(imagenet.PROFILES["full"], weak=8, cw=2, strong=3, budget=budget, fewer=default)
    with pytest.MonkeyPatch.context() as patch:
        for where, name, value in (
            (imagenet, "PLAN", plan),
            (imagenet, "SIZE", 32),
            (imagenet, "CROP", 8),
            (imagenet, "TRAINED_ON", 6),
            (imagenet, "CHOSEN_ON", 4),
            (imagenet, "classifier", lambda name="", device="cpu": model),
            (selection, "PGD_STEPS", 2),
            (versus, "SEARCHES", searches),
            (lineup, "SEARCHES", searches),
        ):
            patch.setattr(where, name, value)
        patch.setitem(imagenet.PROFILES, "full", full)
        patch.setattr(imagenet, "CHOSEN", {"full": (8, 2)})
        for k in range(20):
            blocks = torch.randint(256, (9, 10, 3), generator=generator, dtype=torch.uint8)
            pixels = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)
            path = folder / f"0_{k}.png"
            Image.fromarray(pixels.numpy()).save(path)
            x, _ = image_files.load_folder(image_files.Listing([path], [0]), 32)
            label = model(x).argmax().item()
            path.rename(folder / f"{label:04d}_{k}.png")
        folders = {"weights": top / "w", "results": top / "r", "work": top / "k"}
        imagenet.run(folder, None, *folders.values(), "full")
        yield folder, folders


def test_what_was_trained_or_chosen_on_is_not_evaluated(done):
    folder, folders = done
    listing = image_files.list_imagenet(folder)
    parts = imagenet.divide(listing)
    sizes = {split: len(part.files) for split, part in parts.items()}
    assert sizes == {"train": 6, "validation": 4, "test": 10}
    seen = records.load("imagenet_selection", folders["results"])["data"]["seen_sha256"]
    assert set(seen) == {*imagenet.keys(parts["train"]), *imagenet.keys(parts["validation"])}
    kept = imagenet.unseen(listing, folders["results"])
    assert not set(seen) & set(imagenet.keys(kept)) and kept == parts["test"]
    record = records.load("imagenet", folders["results"])
    x, _ = image_files.load_folder(kept, 32)
    assert record["data"]["sha256"] == data.fingerprint(x[:8])


def test_the_division_does_not_care_how_files_are_called(done, tmp_path):
    folder, _ = done
    listing = image_files.list_imagenet(folder)
    for k, path in enumerate(listing.files):
        (tmp_path / f"{999 - k:04d}_renamed.png").write_bytes(path.read_bytes())
    again = imagenet.divide(image_files.list_imagenet(tmp_path))
    for split, part in imagenet.divide(listing).items():
        assert imagenet.keys(part) == imagenet.keys(again[split])


def test_the_comparison_is_what_a_direct_measurement_says(done):
    folder, folders = done
    what = imagenet.lineup(folder, results=folders["results"])
    assert what.missing("full", folders["results"]) == []
    models_ = what.build(folders["weights"], "cpu")
    assert "direct" in models_ and selection.DEFAULT in models_
    x, y = what.load(profile="full")
    record = records.load("imagenet", folders["results"])
    rows, gradient = record["rows"], record["gradient"]
    assert gradient.keys() == record["ms_per_image"].keys() == models_.keys()
    assert gradient["adaptive, simple"]["ms"] > gradient["no defense"]["ms"] > 0
    assert rows["no defense | clean | 0"]["correct"] == 8  # as the files are called
    attacked = imagenet.WEAK["BIM"](models_["no defense"], x[:8], y[:8], eps=4 / 255)
    row = rows[lineup.key("direct", "BIM", 4 / 255)]
    now = scores.outcomes(models_["direct"], attacked, y[:8])
    assert torch.equal(records.unpack(row["outcomes"], row["n"]), now)


def test_a_folder_of_ones_own(done, tmp_path):
    """One image that was trained on and one that is new: the new one is evaluated."""
    folder, folders = done
    old = imagenet.divide(image_files.list_imagenet(folder))["train"].files[0]
    (tmp_path / "0007_old.png").write_bytes(old.read_bytes())
    Image.new("RGB", (50, 40), (200, 100, 0)).save(tmp_path / "0007_new.png")
    what = imagenet.lineup(tmp_path, results=folders["results"])
    x, y = what.load(profile="full")
    assert x.shape == (1, 3, 32, 32) and y.tolist() == [7] and x[0, 0].min() > 0.7
    (tmp_path / "0007_new.png").unlink()
    with pytest.raises(ValueError, match="every image in it was used to train or to choose"):
        what.load(profile="full")


def test_a_small_folder_needs_no_training_with_the_shipped_weights(done, tmp_path, monkeypatch):
    """The shipped choice comes along with the weights it was made for, and only with those."""
    _, folders = done
    monkeypatch.setattr(records, "RESULTS", folders["results"])
    images, results = tmp_path / "mine", tmp_path / "results"
    images.mkdir()
    for k in range(2):
        Image.new("RGB", (50, 40), (200, 100 * k, 0)).save(images / f"0007_{k}.png")
    imagenet.run(images, None, folders["weights"], results, tmp_path / "work", "full")
    assert records.names(results) == ["imagenet", "imagenet_selection"]
    record = records.load("imagenet", results)
    assert record["data"]["n"] == 2
    assert {row["n"] for row in record["rows"].values()} == {2}
    assert imagenet.lineup(images, results=results).missing("full", results) == []
    others = tmp_path / "other weights"
    others.mkdir()
    with pytest.raises(ValueError, match="expected at least 11 images"):
        imagenet.run(images, None, others, tmp_path / "r", tmp_path / "work", "full")
