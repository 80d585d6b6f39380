import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from apudae import data, models
from apudae.core import files, scores
from apudae.experiments import photographs
from apudae.experiments.colours import DIVIDED


def test_the_shipped_weights_are_listed_and_verified():
    assert {"mnist-cnn", "mnist-dae"} <= set(models.names())
    for name in models.names():
        models.load(name)
    named = {models.about(name)["file"] for name in models.names()}
    assert {path.name for path in models.WEIGHTS.glob("*.safetensors")} == named


def test_loaded_models_are_frozen_and_in_evaluation_mode():
    model = models.load("mnist-cnn")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_classifier_is_as_good_as_its_manifest_says(full_data):
    test = data.load("mnist", "test", profile="full", root=full_data)
    measured = models.about("mnist-cnn")["measured"]
    found = scores.accuracy(models.load("mnist-cnn"), *test)
    assert found.n == measured["n"] == 10_000
    assert abs(found.correct - measured["correct"]) <= 3  # another processor rounds differently
    assert found.percent >= 99.0


def test_save_and_load_are_inverse_up_to_half_precision(tmp_path):
    model = models.build("mnist-dae", latent=5, seed=3)
    models.save(
        "mine",
        model,
        architecture="mnist-dae",
        options={"latent": 5},
        about={"note": "é"},
        folder=tmp_path,
    )
    again = models.load("mine", tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float())
    assert models.about("mine", tmp_path)["note"] == "é"
    assert len(list(tmp_path.iterdir())) == 2  # the manifest and one file
    models.save("mine", models.build("mnist-cnn"), architecture="mnist-cnn", folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # the old file is gone
    assert models.load("mine", str(tmp_path))(torch.rand(1, 1, 28, 28)).shape == (1, 10)
    exact = tmp_path / "exact"
    models.save("mine", model, architecture="mnist-dae", folder=exact, dtype=torch.float32)
    assert torch.equal(
        load_file(exact / models.about("mine", exact)["file"])["encoder.0.bias"],
        model.state_dict()["encoder.0.bias"],
    )


def test_an_unknown_checkpoint_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown checkpoint 'x' .* known: .*mnist-cnn"):
        models.load("x")


def test_a_damaged_file_is_named_with_both_sums(tmp_path):
    path = models.save("m", models.build("mnist-cnn"), architecture="mnist-cnn", folder=tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RuntimeError) as error:
        models.load("m", tmp_path)
    for part in (
        str(path),
        hashlib.sha256(content).hexdigest(),
        models.about("m", tmp_path)["sha256"],
    ):
        assert part in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"m-\w+\.safetensors is missing"):
        models.load("m", tmp_path)


def test_another_architecture_is_refused_by_its_first_differing_entry(tmp_path):
    models.save("m", models.build("mnist-cnn", width=8), architecture="mnist-cnn", folder=tmp_path)
    with pytest.raises(ValueError, match=r"net\.1\.bias is \[8\] in the file, \[32\] in the model"):
        models.load("m", tmp_path)


TRAINED_ON = {"mnist": 58_000, "cifar10": 45_000, "imagenet": 16 * 260}  # crops of 260 photographs


def test_the_manifest_says_how_each_was_trained():
    for name in models.names():
        entry = json.loads(json.dumps(models.about(name)))
        training = entry["training"]
        assert training.get("epochs", training.get("steps", 0)) >= 1  # a GAN counts in steps
        assert entry["data"]["n"] == TRAINED_ON[name.split("-")[0]]
        assert {"torch", "device", "date", "apudae"} <= entry["made"].keys()


def test_the_shipped_weights_saw_the_training_split_alone(full_data):
    """Its hash is in the manifest; that it holds no held-out digit is tested with the data."""
    train = data.load("mnist", "train", profile="full", root=full_data)
    expected = {"mnist": files.fingerprint(train.images)}
    try:
        train = data.load("cifar10-jpeg", "train", root=full_data, dtype=torch.uint8)
        expected["cifar10"] = files.fingerprint(train.images)
        parts = photographs.divide(photographs.find(None, full_data), **DIVIDED)
        expected["imagenet"] = files.fingerprint(photographs.crops(parts["train"]).images)
    except FileNotFoundError:
        pass  # only MNIST is at hand
    for name in models.names():
        kind = name.split("-")[0]
        if kind in expected:
            assert models.about(name)["data"]["sha256"] == expected[kind], name


def test_a_damaged_manifest_and_an_unknown_architecture_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown architecture 'x'; known: mnist-cnn"):
        models.save("m", models.build("mnist-cnn"), architecture="x", folder=tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RuntimeError, match=r"manifest\.json is damaged"):
        models.load("m", tmp_path)


def test_a_note_cannot_replace_the_checksum(tmp_path):
    model = models.build("mnist-cnn")
    models.save("m", model, architecture="mnist-cnn", about={"sha256": "0"}, folder=tmp_path)
    models.load("m", tmp_path)
