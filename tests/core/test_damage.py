"""Whatever this package writes is read whole or refused by its name: one bit is enough."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re

import pytest
import support
import torch
from torch import nn

from apudae import models, training
from apudae.core import files, record
from apudae.core.record import Record
from apudae.evaluation.report import Report, Row
from apudae.training import train_gan


class Drawn(nn.Sequential):
    """The smallest generator: two numbers to 2 × 2 pixels."""

    latent = 2


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


IMAGES = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3
RUN = {"epochs": 2, "batch_size": 4, "ema": 0.5, "progress": False, "precision": "float32"}


def train(path, **changes):
    """Weights before and after a training that goes on from a file."""
    model = net()
    training.fit(model, IMAGES, LABELS, checkpoint=path, **RUN | changes)
    return model


def gan(path, **changes):
    torch.manual_seed(0)
    drawing = Drawn(nn.Linear(2, 16), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))
    judging = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    options = {"steps": 200, "batch_size": 2, "critic_steps": 1} | changes
    train_gan(drawing, judging, IMAGES, checkpoint=path, **options)
    return nn.ModuleList([drawing, judging])


def save(path, model=None, **options):
    """Weights whose file or manifest has this path."""
    model = model or models.build("mnist-dae", width=1, latent=1)
    how = {"architecture": "mnist-dae", "options": {"width": 1, "latent": 1}}
    return models.save("m", model, folder=path.parent, **how | options)


def fill(path):
    about = {"eps": 0.1, "what": "é"}
    toy = Record(path.stem, about, path.parent, keys=("k",))
    for k in range(3):
        toy.measure((k,), lambda: {"n": 4, "correct": 2, "outcomes": "a0"})


def report(path):
    rows = [Row("clean", "input", [0, 1, 0]), Row("PGD", "white box", [1, 1, 0])]
    settings = {"title": "toy", "eps": 0.1, "norm": "linf", "budget": "own", "options": {}}
    Report(settings, 3, 1, rows, images=torch.zeros(3, 1, 2, 2)).save(path.stem, path.parent)


# How a file is written, and how it is read again: path -> anything.
KINDS = {
    "run.pt": (train, train),
    "gan.pt": (gan, gan),
    "manifest.json": (save, lambda path: models.load("m", path.parent)),
    "weights": (save, lambda path: models.load("m", path.parent)),
    "toy.json": (fill, lambda path: record.load(path.stem, path.parent)),
    "report.json": (report, lambda path: Report.load(path.stem, path.parent)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_and_a_lost_end_are_refused_with_the_files_name(kind, tmp_path):
    write, read = KINDS[kind]
    path = tmp_path / kind
    write(path)
    path = next(tmp_path.glob("m-*.safetensors")) if kind == "weights" else path
    read(path)
    good = path.read_bytes()
    chance = random.Random(0)
    # Places all over the file, and each of its last ones, where a digest stands.
    places = [*chance.sample(range(len(good)), 60), *range(len(good) - 80, len(good))]
    damaged = []
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << chance.randrange(8)
        damaged.append(bytes(bad))
    damaged += [good[:k] for k in (0, 1, len(good) // 2, *range(len(good) - 75, len(good), 7))]
    damaged += [good + b"\n", good + good, b"null", b"[]", b'"text"', b"{}"]
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises((RuntimeError, ValueError), match=path.name.replace(".", r"\.")):
            read(path)
        assert path.read_bytes() == bad
    path.write_bytes(good)
    read(path)


def sealed(text):
    """With a digest that fits, as whoever hands it on could write."""
    blank = re.sub(r'[0-9a-f]{64}(?="\n}\n$)', "0" * 64, text)
    return blank[:-68] + hashlib.sha256(blank.encode()).hexdigest() + blank[-4:]


@pytest.mark.parametrize("kind", ["manifest.json", "toy.json", "report.json"])
def test_json_that_says_two_things_or_more_than_a_float_holds_is_refused(kind, tmp_path):
    write, read = KINDS[kind]
    path = tmp_path / kind
    write(path)
    good = path.read_text("utf-8")
    assert sealed(good) == good
    first = re.search(r'"\w+": (?=")', good)[0]  # anywhere: a name that stands before a text
    for more, message in (
        (f'{first}"x", ', f"{first[:-2].replace(chr(34), chr(39))} stands there twice"),
        *((f'"huge": {n}, ', "1.* is no finite number") for n in ("1" + "0" * 400, "1e400")),
        (f'"huge": -1{"0" * 5000}, ', "-1000000000000000000 is no finite number"),
    ):
        path.write_text(sealed(good.replace(first, more + first, 1)), "utf-8")
        with pytest.raises(RuntimeError, match=rf"{kind} is damaged: {message}") as error:
            read(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("kind", ["toy.json", "report.json"])
def test_a_folder_or_a_link_to_nothing_in_place_of_a_record_is_said(kind, tmp_path):
    _, read = KINDS[kind]
    path = tmp_path / kind
    for put in (path.mkdir, lambda: path.symlink_to(tmp_path / "gone")):
        put()
        with pytest.raises(RuntimeError, match=rf"{kind} is damaged: it is no file$"):
            read(path)
        with pytest.raises(ValueError, match=r"unknown record 'x' in .*; known: none$"):
            record.load("x", tmp_path)
        if path.is_dir():
            with pytest.raises(RuntimeError, match=r"\.json is damaged: it is no file$"):
                Record(path.stem, {}, tmp_path, keys=("k",))  # before anything is measured
            path.rmdir()


PRINT = {"sha256": "0", "answers": ["0.5 -1"]}


@pytest.mark.parametrize(
    "changes",
    [
        *({"made": wrong} for wrong in (..., {"apudae": 1}, {"device": None})),
        *({"models": {"a": wrong}} for wrong in ("x", [], {}, {"sha256": "0"}, {"answers": []})),
        *({"models": {"a": PRINT | {"answers": v}}} for v in ("0.5", [0.5], ["x"], [None])),
        *({"model": PRINT | wrong} for wrong in ({"sha256": 1}, {"answers": ["1 2 x"]})),
        *({"warnings": {"noise wins": wrong}} for wrong in (1, None, [])),
        {"models_sha256": {"a": 1}},
    ],
    ids=str,
)
@pytest.mark.parametrize("schema", [1, 2])
def test_what_a_record_says_of_its_makers_and_models_is_of_the_right_kind(
    changes, schema, tmp_path
):
    path, rows = tmp_path / "toy.json", [{"k": 0, "n": 4, "correct": 2, "outcomes": "a0"}]
    whole = {"schema": schema, "made": record.provenance(), "keys": ["k"], "rows": rows}
    whole |= {"models": {"a": PRINT}, "model": PRINT, "warnings": {"noise wins": "by 3"}}

    def put(content):
        content = {k: v for k, v in content.items() if v is not ...}
        if schema == 1:
            path.write_text(json.dumps(content), "utf-8")
        else:
            files.write_json(path, content)

    put(whole)
    assert record.load("toy", tmp_path) == whole
    put(whole | changes)
    with pytest.raises(RuntimeError, match=r"toy\.json is damaged: ") as error:
        record.load("toy", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        *({"a": {1: 0, "1": 0}}, {"a": {None: 0, "null": 0}}, {"a": "\ud800"}, {"\udfff": 1}),
        {"a": [10**400]},
    ],
    ids=lambda content: str(list(content))[:20],
)
def test_what_could_not_be_read_again_is_not_written(content, tmp_path):
    path = tmp_path / "any.json"
    files.write_json(path, {"good": 10**300})
    with pytest.raises(ValueError, match=r"any\.json: cannot be written as JSON: ") as error:
        files.write_json(path, content)
    assert "\n" not in str(error.value) and files.read_json(path) == {"good": 10**300}


@pytest.mark.parametrize("name", ["n" * 300, "n" * 240, "é" * 121])
def test_a_name_that_is_too_long_for_a_file_is_told(name, tmp_path):
    for use in (
        lambda: record.load(name, tmp_path),
        lambda: Report.load(name, tmp_path),
        lambda: record.save(name, {}, tmp_path),
        lambda: Record(name, {}, tmp_path),
        lambda: files.weights_file(name, "0" * 64),
    ):
        with pytest.raises(ValueError, match=r"^name: \w{20}\.\.\. is too long for a file$"):
            use()
    assert list(tmp_path.iterdir()) == []
    longest = "n" * (255 - len("..json.part.apudae"))
    record.save(longest, {"a": 1}, tmp_path)
    assert record.load(longest, tmp_path)["a"] == 1


# What a state may be changed to with a digest that fits; where its message points.
TAMPERED = {
    "done": [99, 3, -1, 1.0, True, None],
    "history": [{}, None, {"loss": [0.1], "validation": [], "seconds": [1.0, 1.0]}],
    "average": [None, {}, math.nan],
    "model": [None, {}, math.nan],
    "optimizer": [None, {}, math.inf],
    "schedule": [None, {}],
    "scaler": [None, {"scale": 1.0}],
    "settings": [None, {}],
}


@pytest.mark.parametrize("part", TAMPERED)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(part, tmp_path):
    path = tmp_path / "run.pt"
    train(path)
    for value in TAMPERED[part]:
        state = files.read_torch(path)
        if isinstance(value, float) and part != "done":
            tensors = state[part]["state"][0] if part == "optimizer" else state[part]
            next(v for v in tensors.values() if v.ndim)[0] = value
        else:
            state[part] = value
        bad = tmp_path / "bad.pt"
        files.write_torch(bad, state)
        model = net()
        with pytest.raises((RuntimeError, ValueError), match=r"bad\.pt.*") as error:
            training.fit(model, IMAGES, LABELS, checkpoint=bad, **RUN)
        assert "\n" not in str(error.value)
        for one, other in zip(model.parameters(), net().parameters(), strict=True):
            assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match=r"bad\.pt is not a checkpoint"):
        torch.save(files.read_torch(path), bad)  # without a digest
        train(bad)


def moved(state):
    """Every number of a state that is not where it is said to be, one after the other."""
    moments = state["optimizer"]["state"][0]
    yield lambda: moments.update(exp_avg=moments["exp_avg"][:1])
    yield lambda: moments.update(exp_avg_sq=moments["exp_avg_sq"].double())
    yield lambda: state["optimizer"]["state"].update({7: moments})
    yield lambda: state["optimizer"]["param_groups"][0].update(weight_decay=1.0)
    yield lambda: state["optimizer"]["param_groups"][0].update(lr=math.nan)
    yield lambda: state["optimizer"]["param_groups"].append({})
    yield lambda: state["schedule"].update(last_epoch=1)
    yield lambda: state["average"].update(n_averaged=torch.tensor(0))
    yield lambda: state["history"].update(loss=[math.nan, 0.0])
    yield lambda: state["history"].update(validation=[0.0] * 3)
    yield lambda: state["history"].update(seconds=["1", "2"])
    yield lambda: state.update(more=1)
    yield lambda: state.pop("scaler")


def test_no_part_of_a_state_is_taken_on_trust(tmp_path):
    path, bad = tmp_path / "run.pt", tmp_path / "bad.pt"
    train(path)
    for number in range(len(list(moved(files.read_torch(path))))):
        state = files.read_torch(path)
        list(moved(state))[number]()
        files.write_torch(bad, state)
        with pytest.raises((RuntimeError, ValueError), match=r"bad\.pt"):
            train(bad)


def test_the_state_of_a_gan_is_held_to_the_same(tmp_path):
    path, bad = tmp_path / "gan.pt", tmp_path / "bad.pt"
    gan(path)
    for part, value in (
        *(("step", v) for v in (300, 0, 150, 200.0, None)),
        *(("distances", v) for v in ([], [1.0], [1.0, math.nan], None)),
        *(("draws", v) for v in (None, torch.zeros(3, dtype=torch.uint8))),
        *(("whole", v) for v in (None, [], [{}, {}, {}, {}])),
        ("settings", {}),
    ):
        files.write_torch(bad, files.read_torch(path) | {part: value})
        with pytest.raises((RuntimeError, ValueError), match=r"bad\.pt"):
            gan(bad)
    for number, key in ((0, "0.weight"), (1, "1.bias")):
        state = files.read_torch(path)
        state["whole"][number][key].view(-1)[0] = math.nan
        files.write_torch(bad, state)
        with pytest.raises(RuntimeError, match=rf"bad\.pt is damaged: {key} holds NaN"):
            gan(bad)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 65_520.0, -1e30])
def test_a_weight_that_half_precision_does_not_hold_is_not_saved(value, tmp_path):
    model = models.build("mnist-dae", width=1, latent=1)
    with torch.no_grad():
        model.encoder[0].bias[0] = value
    with pytest.raises(ValueError, match=r"model: encoder\.0\.bias holds what is no finite number"):
        save(tmp_path / "x", model)
    assert list(tmp_path.iterdir()) == []
    if math.isfinite(value):
        save(tmp_path / "x", model, dtype=torch.float32)
        assert models.load("m", tmp_path).encoder[0].bias[0] == torch.tensor(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.fill_(math.nan), r"is damaged: encoder\.0\.bias holds NaN"),
        (lambda v: v.fill_(-math.inf), r"is damaged: encoder\.0\.bias holds NaN or infinity"),
        (lambda v: v.double().fill_(1e300), r"is damaged: encoder\.0\.bias holds NaN or inf"),
        (lambda v: v.int(), r"encoder\.0\.bias is \[1\] of integers in the file, \[1\] in the"),
        (lambda v: v > 0, r"encoder\.0\.bias is \[1\] of bool in the file"),
        (lambda v: v.repeat(2), r"encoder\.0\.bias is \[2\] in the file"),
    ],
)
def test_weights_of_no_use_are_not_loaded(change, message, tmp_path):
    """With a manifest that names them and their digest, as whoever hands them on could write."""
    from safetensors.torch import load_file, save_file

    path = save(tmp_path / "x")
    parts = load_file(path)
    parts["encoder.0.bias"] = change(parts["encoder.0.bias"])
    save_file(parts, path)
    manifest = files.read_json(tmp_path / "manifest.json")
    manifest["m"]["sha256"] = files.sha256_of(path)
    files.write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises((RuntimeError, ValueError), match=message) as error:
        models.load("m", tmp_path)
    assert path.name in str(error.value)
    path.write_bytes(b"no safetensors")
    manifest["m"]["sha256"] = files.sha256_of(path)
    files.write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(RuntimeError, match=r"m-\w+\.safetensors is damaged: "):
        models.load("m", tmp_path)


BAD_NAMES = ["../evil", "", ".", "..", ".hidden", "a/b", "a\\b", "/tmp/x", "a b", "a\n", "*"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_written(name, tmp_path):
    folder = tmp_path / "in" / "here"
    model = models.build("mnist-cnn", width=1)
    with pytest.raises(ValueError, match="name: expected letters, digits and any of _ - "):
        models.save(name, model, architecture="mnist-cnn", folder=folder)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "entry",
    [
        *({"file": v} for v in ("../victim.txt", "/etc/passwd", "victim.txt", "", ".", None, 3)),
        *({"file": v} for v in ("manifest.json", "c:\\x.safetensors", "a/../m.safetensors")),
        *({"sha256": v} for v in ("", "0" * 63, "Z" * 64, None, 7)),
        *({"options": v} for v in (None, [], {"width": "1"}, {"width": 1.5}, {"width": True})),
        *({"architecture": v} for v in ("unknown", None, 3)),
        {"options": {"depth": 1}},
    ],
    ids=str,
)
def test_a_manifest_from_elsewhere_neither_reads_nor_deletes(entry, tmp_path):
    """Whatever it says is refused by its name, and what lies about stays."""
    folder = tmp_path / "here"
    save(folder / "x")
    (tmp_path / "victim.txt").write_text("mine")
    (folder / "victim.txt").write_text("mine")
    manifest = files.read_json(folder / "manifest.json")
    manifest["m"] |= entry
    files.write_json(folder / "manifest.json", manifest)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError, match=r"manifest\.json is damaged: m: "):
        models.load("m", folder)
    known = {"architecture": "unknown"}, {"options": {"depth": 1}}
    if entry in known:  # they harm nobody, and are replaced
        save(folder / "x")
        before.pop(folder / "manifest.json")
    else:
        with pytest.raises(RuntimeError, match=r"manifest\.json is damaged: m: "):
            save(folder / "x")
    assert before.items() <= {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}.items()


def test_files_that_others_have_put_beside_weights_stay(tmp_path):
    first = save(tmp_path / "x")
    entry = {"architecture": "mnist-dae", "options": {"width": 1, "latent": 1}}
    shared = files.read_json(tmp_path / "manifest.json")
    shared["other"] = shared["m"] | entry  # another name for the same file
    files.write_json(tmp_path / "manifest.json", shared)
    mine = [tmp_path / name for name in ("m-0badf00d.safetensors", "m-x.safetensors", ".m.part")]
    for path in mine:
        path.write_text("mine")
    link = tmp_path / "m-12345678.safetensors"
    link.symlink_to(first)
    save(tmp_path / "x", models.build("mnist-dae", width=1, latent=1, seed=1))
    assert first.is_file() and link.is_symlink() and all(p.read_text() == "mine" for p in mine)
    assert support.shipped("mnist-cnn")  # the package's own manifest fits its rules
