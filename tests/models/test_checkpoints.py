import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from apudae import data, models
from apudae.core import files, scores
from apudae.experiments import photographs
from apudae.experiments.colours import DIVIDED
from apudae.models import checkpoints


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
    how = {"architecture": "mnist-dae", "options": {"latent": 5}}
    models.save("mine", model, folder=exact, dtype=torch.float32, **how)
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
    narrow, how = models.build("mnist-cnn", width=8), {"architecture": "mnist-cnn"}
    models.save("m", narrow, options={"width": 8}, folder=tmp_path, **how)
    rewrite(tmp_path, options={})
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


SMALL = {"latent": 1, "width": 1}


def small(**bias):
    """A model of few weights; one of them may be odd."""
    net = models.build("mnist-dae", **SMALL)
    if bias:
        net.encoder[0].bias = nn.Parameter(bias["bias"], requires_grad=False)
    return net


def save(folder, model=None, *, name="m", **changes):
    how = {"architecture": "mnist-dae", "options": SMALL, "folder": folder} | changes
    return models.save(name, model or small(), **how)


def rewrite(folder, **changes):
    """What the manifest says of a model, written otherwise, with a digest that fits."""
    manifest = files.read_json(folder / "manifest.json")
    manifest["m"] |= changes
    files.write_json(folder / "manifest.json", manifest)


class Told(models.ConvDAE):
    """It keeps what is no tensor."""

    def get_extra_state(self):
        return 1


def test_weights_that_are_saved_anew_while_they_are_read_are_read_anew(tmp_path, monkeypatch):
    save = {"architecture": "mnist-dae", "options": SMALL, "folder": tmp_path}
    first, second = (models.build("mnist-dae", seed=seed, **SMALL) for seed in range(2))
    models.save("a", first, **save)
    verify = checkpoints.verify

    def slow(path, sha256):
        monkeypatch.setattr(checkpoints, "verify", verify)
        models.save("a", second, **save)
        verify(path, sha256)

    monkeypatch.setattr(checkpoints, "verify", slow)
    found = models.load("a", tmp_path).state_dict()
    assert all(torch.allclose(v, found[k], atol=1e-3) for k, v in second.state_dict().items())


OTHER = r"model: expected mnist-dae with options {'latent': 1, 'width': 1}: "
TWICE, HUGE = {1: 0, "1": 0}, 10**400
UNSAVED = {
    "another architecture": (
        {"model": nn.Linear(2, 2)},
        f"{OTHER}bias is [2] in what came, nothing in ",
    ),
    "other layers": ({"model": models.build("mnist-cnn", width=1)}, f"{OTHER}decoder.0.bias is no"),
    "a wider one": (
        {"options": SMALL | {"width": 2}},
        "decoder.0.bias is [98] in what came, [196] in ",
    ),
    "a part of another": ({"model": nn.Sequential(small())}, f"{OTHER}0.decoder.0.bias is [98] in"),
    "no tensor": (
        {"model": Told(**SMALL)},
        f"{OTHER}_extra_state is no tensor in what came, nothing in",
    ),
    "complex": ({"model": small(bias=torch.ones(1) * 1j)}, "encoder.0.bias is [1] of complex"),
    "no device": ({"model": small(bias=torch.ones(1, device="meta"))}, "encoder.0.bias holds no "),
    "sparse": ({"model": small(bias=torch.ones(1).to_sparse())}, "encoder.0.bias holds no num"),
    "too large to load": (
        {"model": small(bias=torch.full((1,), 1e300, dtype=torch.float64)), "dtype": torch.float64},
        "model: encoder.0.bias holds what is no finite number in torch.float64, or once it is lo",
    ),
    "a name": ({"model": "x"}, "model: expected a torch.nn.Module, got 'x'; load or build"),
    "a class": ({"model": models.MnistCNN}, "model: expected a torch.nn.Module, got the class"),
    "unknown option": ({"options": {"zz": 1}}, "unknown option 'zz' of mnist-dae; known: latent"),
    "huge option": ({"options": {"width": 10**30}}, "options: {'width': 1000000000000000000000"),
    "options of a list": ({"options": [1]}, "options: expected a dict or None, got list"),
    "option without name": ({"options": {1: 1}}, "options: {1: 1}: keywords must be strings"),
    "option of the name": ({"options": {"name": 1}}, "options: {'name': 1}: build() got multi"),
    "about of a list": ({"about": [1]}, "about: expected a dict or None, got list"),
    "about twice": ({"about": TWICE}, "about: cannot be written as JSON: '1' stands there twice"),
    "about half a letter": ({"about": {"a": "\ud800"}}, "about: cannot be written as JSON: 'utf"),
    "about too much": ({"about": {"a": HUGE}}, "about: cannot be written as JSON: 1000000000000"),
    "architecture": ({"architecture": ["x"]}, "architecture: expected a string, got list"),
    "long name": ({"name": "n" * 300}, "name: nnnnnnnnnnnnnnnnnnnn... is too long for a file"),
    "longer in bytes": ({"name": "é" * 120}, "name: éééééééééééééééééééé... is too long for a"),
    "a number for a folder": ({"folder": 3}, "folder: expected a string or a path, got 3"),
}


@pytest.mark.parametrize("case", UNSAVED)
def test_what_could_not_be_loaded_is_not_saved_and_the_old_weights_stay(case, tmp_path):
    save(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    changes, message = UNSAVED[case]
    with pytest.raises(ValueError) as error:
        save(**{"folder": tmp_path} | changes)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    models.load("m", tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_whatever_is_saved_is_loaded(dtype, tmp_path):
    """Tied weights, a seed among the options, floats of any width."""
    net = small()
    net.encoder[2].bias.data = net.decoder[3].weight.data.view(-1)[:2]  # a part of another one
    save(tmp_path, net, options=SMALL | {"seed": 3}, dtype=dtype, about={"seed": "a", "é": [None]})
    for key, value in models.load("m", tmp_path).state_dict().items():
        assert torch.equal(value, net.state_dict()[key].to(dtype).float())
    save(tmp_path, net, name="seed", dtype=torch.float32)
    assert models.names(tmp_path) == ["m", "seed"] and models.load("seed", tmp_path)


def test_a_folder_that_is_none_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        ValueError, match=r"folder: cannot write to the folder \S+file: File exists$"
    ):
        save(tmp_path / "file")
    (tmp_path / "manifest.json").mkdir()
    told = r"manifest\.json is damaged: it is no file$"
    for use in (save, models.names, lambda folder: models.load("m", folder)):
        with pytest.raises(RuntimeError, match=told):
            use(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "manifest.json"]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: models.load(["a"]), "name: expected a string, got list"),
        (lambda: models.about(["a"]), "name: expected a string, got list"),
        (lambda: models.load("mnist-cnn", folder=3), "folder: expected a string or a path, got 3"),
        (lambda: models.names(3), "folder: expected a string or a path, got 3"),
        (lambda: models.load("mnist-cnn", device="gpu"), "device: expected 'cpu' or 'cuda', got"),
    ],
)
def test_an_argument_that_cannot_be_is_named(use, message):
    with pytest.raises(ValueError, match=message) as error:
        use()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        *({"file": f"{'n' * k}.safetensors"} for k in (250, 400)),
        *({"options": {name: 10**30}} for name in ("width", "latent", "tones")),
        *({"options": SMALL | {"width": 10**k}} for k in (9, 18)),
        {"options": {"name": 1}},
    ],
    ids=lambda entry: str(entry)[:40],
)
def test_an_entry_that_cannot_be_is_refused_by_the_manifest(entry, tmp_path):
    """Before memory is taken for what it asks for."""
    save(tmp_path)
    rewrite(tmp_path, **entry)
    with pytest.raises(RuntimeError, match=r"manifest\.json is damaged: m: ") as error:
        models.load("m", tmp_path)
    assert "\n" not in str(error.value)


def test_options_of_a_wide_model_are_held_against_the_file_first(tmp_path):
    save(tmp_path)
    rewrite(tmp_path, options={"width": 10**5, "latent": 10**5})  # a petabyte
    with pytest.raises(ValueError, match=r"decoder\.0\.bias is \[98\] in the file, \[9800000\] in"):
        models.load("m", tmp_path)


def test_random_numbers_go_on_as_if_nothing_had_been_built(tmp_path):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    save(tmp_path)
    models.load("m", tmp_path)
    assert torch.equal(torch.rand(3), wanted)
