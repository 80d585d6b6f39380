"""The authors' networks: weights of their shapes, under any of their names, give their numbers.

What a network computes is written down once more, from the tensors alone. The files themselves are
not at hand: these are random ones of the same kind.
"""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import BRIEF, files

from apudae import attacks, data, purification
from apudae.attacks.as_published import LOGGED, LOGGED_N
from apudae.core import scores
from apudae.core.prints import model_print
from apudae.data import Split
from apudae.experiments import Place, Profile, Results, authors, colours, plans
from apudae.experiments.__main__ import main
from apudae.experiments.commands import status

pytestmark = pytest.mark.filterwarnings("ignore::apudae.core.arguments.AttackWarning")
EPS = 8 / 255


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- weights of their shapes, and what they compute ----------------------------------------------


def normed(name, width, g):
    """Of a batch norm."""
    return {
        f"{name}.weight": 0.5 + torch.rand(width, generator=g),
        f"{name}.bias": 0.1 * torch.randn(width, generator=g),
        f"{name}.running_mean": 0.1 * torch.randn(width, generator=g),
        f"{name}.running_var": 0.5 + torch.rand(width, generator=g),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def filters(*shape, g, gain=1.0):
    return gain * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5 * torch.randn(*shape, generator=g)


def rednet_weights(width=64):
    g, found = seeded(0), {}
    for k in range(30):
        name = f"conv_layers.{k}" if k < 15 else f"deconv_layers.{k - 15}"
        last, inputs = k == 29, 3 if k == 0 else width
        shape = (width, 3 if last else inputs, 3, 3) if k >= 15 else (width, inputs, 3, 3)
        part = name if last else f"{name}.0"
        found[f"{part}.weight"] = filters(*shape, g=g, gain=0.02 if last else 0.5)
        found[f"{part}.bias"] = 0.01 * torch.randn(3 if last else width, generator=g)
        if not last:
            found |= normed(f"{name}.2", width, g)
    return found


def resnet_weights():
    g = seeded(1)
    found = {"conv1.weight": filters(64, 3, 3, 3, g=g)} | normed("bn1", 64, g)
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            inputs = width // 2 if stage > 1 and block == 0 else width
            found[f"{name}.conv1.weight"] = filters(width, inputs, 3, 3, g=g)
            found |= normed(f"{name}.bn1", width, g)
            found[f"{name}.conv2.weight"] = filters(width, width, 3, 3, g=g)
            found |= normed(f"{name}.bn2", width, g)
            if inputs != width:
                found[f"{name}.shortcut.0.weight"] = filters(width, inputs, 1, 1, g=g)
                found |= normed(f"{name}.shortcut.1", width, g)
    found["linear.weight"] = 0.05 * torch.randn(10, 512, generator=g)
    return found | {"linear.bias": torch.randn(10, generator=g)}


def wide(weights):
    return {k: v.double() if v.is_floating_point() else v for k, v in weights.items()}


def norm(w, name, z):
    mean, var = (w[f"{name}.running_{k}"].view(1, -1, 1, 1) for k in ("mean", "var"))
    scale, shift = (w[f"{name}.{k}"].view(1, -1, 1, 1) for k in ("weight", "bias"))
    return (z - mean) / (var + 1e-5).sqrt() * scale + shift


def literal_rednet(w, x):
    """Convolution, ReLU, batch norm; every second layer's output comes back at its mirror image."""
    z, kept = x, {}
    for k in range(1, 16):
        name = f"conv_layers.{k - 1}"
        weight, bias = w[f"{name}.0.weight"], w[f"{name}.0.bias"]
        z = norm(w, f"{name}.2", F.conv2d(z, weight, bias, 2 if k == 1 else 1, 1).relu())
        kept[15 - k] = z if k % 2 == 0 else None
    for k in range(1, 15):
        name = f"deconv_layers.{k - 1}"
        weight, bias = w[f"{name}.0.weight"], w[f"{name}.0.bias"]
        z = norm(w, f"{name}.2", F.conv_transpose2d(z, weight, bias, 1, 1).relu())
        z = z if kept[k] is None else (z + kept[k]).relu()
    last = w["deconv_layers.14.weight"], w["deconv_layers.14.bias"]
    return (F.conv_transpose2d(z, *last, 2, 1, 1) + x).relu()


def literal_resnet(w, x):
    z = norm(w, "bn1", F.conv2d(x, w["conv1.weight"], padding=1)).relu()
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            f = F.conv2d(z, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            f = norm(w, f"{name}.bn1", f).relu()
            f = norm(w, f"{name}.bn2", F.conv2d(f, w[f"{name}.conv2.weight"], padding=1))
            if stride == 2:
                z = F.conv2d(z, w[f"{name}.shortcut.0.weight"], stride=2)
                z = norm(w, f"{name}.shortcut.1", z)
            z = (f + z).relu()
    return z.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]


def torchvision_names(weights):
    return {
        k.replace("shortcut", "downsample").replace("linear", "fc"): v for k, v in weights.items()
    }


def parallel(weights):
    return {f"module.{k}": v for k, v in weights.items()}


class REDNet30(nn.Module):
    """What their file holds as an object: layers, and nothing that this package could run."""

    def __init__(self, weights):
        super().__init__()

        def block(layer):
            return nn.Sequential(layer, nn.ReLU(inplace=True), nn.BatchNorm2d(64))

        def flat(inputs):
            return nn.Conv2d(inputs, 64, 3, padding=1)

        def across():
            return nn.ConvTranspose2d(64, 64, 3, padding=1)

        self.conv_layers = nn.Sequential(*(block(flat(64 if k else 3)) for k in range(15)))
        last = nn.ConvTranspose2d(64, 3, 3, stride=2, padding=1, output_padding=1)
        self.deconv_layers = nn.Sequential(*(block(across()) for _ in range(14)), last)
        self.load_state_dict(weights)


@pytest.fixture
def whole(monkeypatch):
    """Makes an object of their class, which lies in a module that is not here when it is read."""

    def make(weights):
        there = types.ModuleType("reformer_model")
        there.REDNet30 = REDNet30
        monkeypatch.setitem(sys.modules, "reformer_model", there)
        monkeypatch.setattr(REDNet30, "__module__", "reformer_model")
        return REDNet30(weights)

    return make


def clone(folder, *, dae=None, classifier=None, at="basic_training"):
    """A folder like theirs."""
    (folder / at).parent.mkdir(parents=True, exist_ok=True)
    torch.save(rednet_weights() if dae is None else dae, folder / "denoise_batch.pt")
    kept = {"net": parallel(resnet_weights())} if classifier is None else classifier
    torch.save(kept, folder / at)
    return folder


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    return clone(tmp_path_factory.mktemp("clone"))


# --- loading -------------------------------------------------------------------------------------


def check(net, literal, weights, x):
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    torch.testing.assert_close(net.double()(x), literal(wide(weights), x))


@pytest.mark.parametrize(
    "kept",
    [
        lambda w: w,
        parallel,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"net": parallel(w), "acc": 95.1, "optimizer": {"state": {0: {"m": w}}}},
        lambda w: {"model": w},
        lambda w: {f"layers.{k}": v for k, v in enumerate(w.values())},
    ],
    ids=["plain", "parallel", "nested", "both", "model", "other names"],
)
def test_their_dae_computes_what_their_tensors_say(kept, tmp_path, generator):
    torch.save(kept(rednet_weights()), tmp_path / "denoise_batch.pt")
    x = torch.rand(2, 3, 12, 16, generator=generator, dtype=torch.float64)
    check(authors.rednet(tmp_path), literal_rednet, rednet_weights(), x)


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_their_dae_is_read_as_an_object_without_its_code(wrap, whole, tmp_path, generator):
    torch.save(wrap(whole(rednet_weights())), tmp_path / "denoise_batch.pt")
    del sys.modules["reformer_model"]
    x = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    check(authors.rednet(tmp_path), literal_rednet, rednet_weights(), x)


@pytest.mark.parametrize(
    ("kept", "at"),
    [
        (lambda w: {"net": parallel(w), "acc": 95.1, "epoch": 199}, "basic_training"),
        (lambda w: w, "code/basic_training/model.pth.tar"),
        (torchvision_names, "basic_training/deep/model.t7"),
        (lambda w: {"state_dict": parallel(torchvision_names(w))}, "basic_training/net.pt"),
    ],
)
def test_their_classifier_computes_what_its_tensors_say(kept, at, tmp_path, generator):
    clone(tmp_path, classifier=kept(resnet_weights()), at=at)
    (tmp_path / at).with_name("notes.txt").write_text("no weights", encoding="utf-8")
    x = torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    before = torch.random.get_rng_state()
    check(authors.resnet(tmp_path), literal_resnet, resnet_weights(), x)
    assert torch.equal(torch.random.get_rng_state(), before)


def without(weights, *names):
    return {k: v for k, v in weights.items() if k not in names}


def with_nan(weights, name):
    return weights | {name: weights[name].clone().fill_(float("nan"))}


FIRST, BIAS = "conv_layers.0.0.weight", "deconv_layers.14.bias"
EXTRA = {k: v for k, v in normed("deconv_layers.14.2", 3, seeded(2)).items()}
WITHOUT_NORMS = {k: v for k, v in rednet_weights().items() if ".2." not in k}


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (without(rednet_weights(), BIAS), r"up\.14\.bias: expected \[3\], .*, got nothing"),
        (
            without(rednet_weights(), FIRST),
            r"conv_layers\.0\.0\.bias: expected \[64, 3, 3, 3\], down\.0\.weight of .*got \[64\]",
        ),
        (
            rednet_weights() | EXTRA,
            r"deconv_layers\.14\.2\.weight: expected nothing more of a REDNet-30 without batch "
            r"norm after its last layer, got \[3\]",
        ),
        (WITHOUT_NORMS, r"conv_layers\.1\.0\.weight: expected \[64\], norms\.0\.weight of .*got"),
        (rednet_weights(width=32), r"0\.0\.weight: expected \[64, 3, 3, 3\], .*got \[32, 3, 3, 3"),
        (with_nan(rednet_weights(), FIRST), rf"{FIRST}: expected finite numbers, got NaN"),
        (rednet_weights() | {FIRST: "text"}, rf"{FIRST}: expected \[64, 3, 3, 3\], .*got 'text'"),
        ({"a": rednet_weights(), "b": rednet_weights()}, "expected one set of weights, got a, b"),
        ([1, 2], "expected tensors by name, got a list"),
        (nn.Tanh(), r"got an object of torch\.nn\.modules\.activation\.Tanh, which may run code"),
        ({}, r"down\.0\.weight: expected \[64, 3, 3, 3\], .*got nothing"),
        ({"epoch": 3}, r"epoch: expected \[64, 3, 3, 3\], .*got 3"),
    ],
)
def test_another_dae_is_refused_by_name(kept, message, tmp_path):
    torch.save(kept, tmp_path / "denoise_batch.pt")
    with pytest.raises(ValueError, match=rf"denoise_batch\.pt: .*{message}") as error:
        authors.rednet(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (without(resnet_weights(), "bn1.bias"), r"bn1\.bias: expected \[64\], .*got nothing"),
        (
            resnet_weights() | {"layer1.0.shortcut.0.weight": torch.zeros(64, 64, 1, 1)},
            r"layer1\.0\.shortcut\.0\.weight: expected nothing more of a ResNet-18, got \[64, 64",
        ),
        (
            resnet_weights() | {"conv1.weight": torch.zeros(64, 3, 7, 7)},
            r"conv1\.weight: expected \[64, 3, 3, 3\], conv1\.weight of .*, got \[64, 3, 7, 7\]",
        ),
        (
            resnet_weights() | {"linear.weight": torch.zeros(100, 512)},
            r"linear\.weight: expected \[10, 512\], fc\.weight of a ResNet-18, got \[100, 512\]",
        ),
        (
            with_nan(resnet_weights(), "layer4.0.shortcut.1.running_var"),
            r"layer4\.0\.shortcut\.1\.running_var: expected finite numbers, got NaN",
        ),
    ],
)
def test_another_classifier_is_refused_by_name(kept, message, tmp_path):
    torch.save(kept, tmp_path / "basic_training")
    with pytest.raises(ValueError, match=rf"basic_training: {message}") as error:
        authors.resnet(tmp_path)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_twice_there_or_no_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: expected the authors' denoise_batch\.p"):
        authors.rednet(tmp_path / "nowhere")
    (tmp_path / "basic_training").mkdir()
    with pytest.raises(FileNotFoundError, match="expected the authors' basic_training in it, foun"):
        authors.resnet(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "denoise_batch.pt").write_text("version https://git-lfs.github.com")
        (tmp_path / "basic_training" / f"{name}.pth").touch()
    with pytest.raises(ValueError, match=r"expected one denoise_batch\.pt, got .*/a/.*, .*/b/den"):
        authors.rednet(tmp_path)
    with pytest.raises(ValueError, match=r"expected one basic_training, got .*a\.pth, .*b\.pth"):
        authors.resnet(tmp_path)
    with pytest.raises(
        ValueError, match=r"a/denoise_batch\.pt: expected tensors by .* cannot read"
    ):
        authors.rednet(tmp_path / "a")


# --- the comparison ------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Random images of 8 × 8 in place of either set, and a little of everything; what stops it."""
    log, plain = tmp_path / "stopped", colours.cifar10

    def load(name, split, *, root):
        assert name in colours.SETS and split in ("validation", "test")
        g = seeded(100 * colours.SETS.index(name) + (split == "test"))
        x = (255 * torch.rand(40, 3, 8, 8, generator=g)).round() / 255
        y = literal_resnet(resnet_weights(), x).argmax(1)
        return Split(x, (y + torch.arange(40) % 2) % 10)  # every second one is read wrongly

    def stops(model, x, y, *, eps):
        if not log.exists():
            log.touch()
            raise KeyboardInterrupt
        return attacks.as_published.bim(model, x, y, eps=eps)

    def cifar10(name):
        found = plain(name)
        weak = {k: v for k, v in found.attacks.items() if "authors'" in k}
        profile = Profile(4, 9, 1, (EPS,), BRIEF, "quick")
        weak["authors' BIM"] = stops
        return replace(found, attacks=weak, profiles={"quick": profile})

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(colours, "cifar10", cifar10)
    return log


def place_in(folder):
    return Place(None, folder / "w", folder / "r", folder / "k", torch.device("cpu"))


def command(cloned, place, *more):
    folders = (("weights", place.weights), ("results", place.results), ("work", place.work))
    where = [text for name, folder in folders for text in (f"--{name}", str(folder))]
    return ["cifar10", "--authors", str(cloned), "--profile", "quick", *where, *more]


def test_the_command_compares_their_networks_and_goes_on(cloned, small, tmp_path, capsys):
    place, names = place_in(tmp_path), ["direct", plans.DEFAULT]
    call = command(cloned, place, "--only", *names)
    with pytest.raises(SystemExit) as end:
        main(call)
    assert end.value.code == 130 and small.exists()
    assert 0 < len(place.rows("cifar10_authors_quick")) < 2 * 5
    main(call)
    shown = capsys.readouterr().out
    assert shown.count("of 40 validation images μ = ") == 1
    assert "(theirs, of test images: 2.8560 and 0.9227)" in shown
    assert shown.count("authors' FGSM | ") == 2  # none is measured twice
    last = shown.splitlines()[-4:]
    assert last[0].split()[:3] == ["defense", "n", "clean"]
    log = [text for percent in LOGGED.values() for text in (str(percent), "%")]
    assert last[1].split() == ["authors'", "log", str(LOGGED_N), *log]
    assert [line.split("  ")[0] for line in last[2:]] == names
    stored = place.record("cifar10_authors_quick")
    assert stored["data"].items() >= {"name": "CIFAR-10", "split": "test", "n": 4}.items()
    wanted = {"clean", *(f"authors' {k}" for k in LOGGED if k != "clean"), "protocol"}
    assert {row["attack"] for row in stored["rows"]} == wanted
    before = files(place.results, place.work)
    main(call)
    assert files(place.results, place.work) == before
    assert capsys.readouterr().out.splitlines() == last  # nothing but the table
    study = authors.study(cloned)
    x, y = data.load("cifar10", "test", root=None).take(4)
    built, found = study.build(place), Results(study, place, "quick")
    assert len(built) == 3 + len(purification.PRESETS)
    hit = attacks.as_published.bim(built["no defense"], x, y, eps=EPS)
    for name in names:
        now = scores.outcomes(built[name], hit, y, index=torch.arange(4))
        assert torch.equal(found.right(name, "authors' BIM", EPS), now)
    assert not any("authors" in name for _, name, _ in status(place))


def test_the_copy_of_cifar10_is_named(cloned, small, tmp_path, capsys):
    small.touch()
    place = place_in(tmp_path)
    call = command(cloned, place, "--only", "no defense")
    main([*call, "--data", "cifar10-jpeg"])
    for record in ("cifar10_authors_quick", authors.LEVEL):
        assert place.record(record)["data"]["name"] == "CIFAR-10 (JPEG copy)"
    with pytest.raises(
        SystemExit, match=r"cifar10_authors_level\.json was made with another data;"
    ):
        main(call)
    with pytest.raises(SystemExit, match=r"^error: only: expected no defense, direct, .*got jpeg"):
        main([*command(cloned, place), "--only", "jpeg"])


def test_their_level_is_that_of_clipped_images(cloned, small, tmp_path):
    net, weights = authors.rednet(cloned), rednet_weights()
    for part in ("weight", "bias"):  # errors about 20
        weights[f"deconv_layers.14.{part}"] *= 31.5
        getattr(net.up[-1], part).mul_(31.5)
    place = place_in(tmp_path)
    found = authors.level(net, place)
    x = data.load("cifar10", "validation", root=None).images.double()
    d = (literal_rednet(wide(weights), x).clamp(0, 1) - x).square().flatten(1).sum(1)
    assert 5 < (d > 20).sum() < 35
    d = torch.where(d > 20, 3.0, d)
    assert found == pytest.approx((d.mean().item(), d.std().item(), 40), rel=1e-4)
    stored = place.record(authors.LEVEL)
    assert stored["theirs"] == {"mu": 2.856, "sigma": 0.9227}
    assert "validation images, which are of the training set" in stored["what"]
    assert authors.level(net, place) == found  # as it is stored
    with pytest.raises(ValueError, match=r"cifar10_authors_level\.json was made with another dae_"):
        authors.level(authors.rednet(cloned), place)


def test_each_variant_walks_as_the_authors_do(cloned, small, tmp_path):
    place = place_in(tmp_path)
    built, found = authors.study(cloned).build(place), authors.level(authors.rednet(cloned), place)
    assert built["direct"].classifier is built["no defense"]
    for name in (*purification.PRESETS, "default"):
        walk = built[f"adaptive, {name}"].purifier
        preset = purification.PRESETS["probabilistic" if name == "default" else name]
        assert walk.options.items() >= preset.options.items()
        assert (walk.mu, walk.sigma) == (found.mu, 0.5 if name == "default" else found.sigma)


def test_the_profiles_are_those_of_cifar10(cloned):
    study = authors.study(cloned, "cifar10-jpeg")
    assert model_print(dict(study.attacks)) == model_print(dict(colours.cifar10().attacks))
    assert study.choice is None and study.epsilons == (EPS,)
    for name, n in (("quick", 20), ("full", LOGGED_N)):
        profile = study.profiles[name]
        assert {profile.n(k, a) for k in study.defenses for a in ("clean", *study.attacks)} == {n}
        assert ("C&W", 0.0) not in study.rows(profile, "direct")
        assert profile.n("direct", "protocol") > 0


def test_no_other_command_reads_their_networks():
    for name in ("mnist", "imagenet", "gpu", "status"):
        with pytest.raises(SystemExit, match=f"^error: --authors: does nothing with {name}"):
            main([name, "--authors", "."])
    with pytest.raises(SystemExit, match=r"^error: nowhere: expected the authors' basic_training"):
        main(["cifar10", "--authors", "nowhere", "--results", "r"])
