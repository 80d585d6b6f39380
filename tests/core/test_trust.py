"""Records are no better than what is in them: what cannot be is refused, by file and row.

Each change is made twice: in a record of an older version, which has no digest, and in one that is
written anew with a digest that fits.
"""

from __future__ import annotations

import copy
import json
import math
import re
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apudae.core import files, record
from apudae.core.record import Record
from apudae.evaluation.report import Report
from apudae.experiments import Place

PLACE = Place()
COMPARED, CERTIFIED, CHOSEN = "mnist_purifier", "mnist_certified", "mnist_tuning"
DRAWN = "cifar10"  # has rows of random defenses
RANDOM = "mnist_robust_default_0.1"  # a report; draws of it are misread
KEYS = {
    COMPARED: ("defense", "attack", "eps"),
    CERTIFIED: ("kind", "sigma", "radius"),
    CHOSEN: ("defense", "options"),
    DRAWN: ("defense", "attack", "eps"),
}


def read(name, folder):
    return Report.load(name, folder) if name == RANDOM else record.load(name, folder, KEYS[name])


def put(folder, name, whole, sealed):
    """Write it as an older version did, or as this one does."""
    if sealed:
        keys = {} if name == RANDOM else {"keys": KEYS[name]}
        whole = {k: v for k, v in whole.items() if k not in ("schema", "made")} | keys
        try:
            record.save(name, whole, folder)
        except ValueError:  # no number of JSON: it is not even written
            assert not (folder / f"{name}.json").exists()
            return False
    else:
        older = whole | ({"schema": 1} if whole["schema"] == record.SCHEMA else {})
        (folder / f"{name}.json").write_text(json.dumps(older), "utf-8")
    return True


WRONG = [None, True, -1, -0.5, 10**9, math.nan, math.inf, "x", [], [1], {}, {"a": 1}, "²"]


def wrong(*fine):
    """Values that are none of these, nor like them."""
    return [v for v in WRONG if not any(type(v) is type(f) and v == f for f in fine)]


def row_with(name, *fields):
    rows = record.load(name, PLACE.results)["rows"]
    return next(k for k, row in enumerate(rows) if all(f in row for f in fields))


def changes():
    """Name of a record, path to what is exchanged in it, and for what."""
    for name in (COMPARED, CERTIFIED, CHOSEN, RANDOM):
        for value in wrong():
            yield name, ("rows",), {} if value == [] else value
            yield name, ("rows", 0), value
    at = ("rows", row_with(COMPARED, "outcomes", "stands"))
    for field, fine in (("n", ()), ("correct", ()), ("outcomes", ())):
        for value in wrong(*fine):
            yield COMPARED, (*at, field), value
    for value in wrong(1, {}):
        yield COMPARED, (*at, "stands"), [] if value == {"a": 1} else value
    yield COMPARED, (*at, "stands"), {"PGD": 10**6}
    for value in (v for v in wrong() if v != 10**9):
        yield COMPARED, (*at, "seconds"), value
    at = ("rows", row_with(DRAWN, "misread"))
    for value in (99, -5, math.nan, 1.0, True, None, "1"):
        yield DRAWN, (*at, "misread", 3), value
    for field in ("misread", "draws"):
        for value in (v for v in wrong() if (field, v) != ("draws", 10**9)):
            yield DRAWN, (*at, field), value
    yield DRAWN, (*at, "correct"), 0.5
    at = ("rows", row_with(CERTIFIED, "votes"))
    for field, low in (("votes", -1), ("predictions", -2)):
        for value in (low, 0.5, math.nan, True, "1", None):
            yield CERTIFIED, (*at, field, 7), value
        for value in wrong():
            yield CERTIFIED, (*at, field), value
    yield CERTIFIED, (*at, "votes", 0), 10_001
    at = ("rows", row_with(CHOSEN, "outcomes"))
    for value in wrong():
        yield CHOSEN, (*at, "outcomes", 1), value
        yield CHOSEN, (*at, "correct"), value
    for field in ("rows", "misread"):
        at = ("rows", 2, "misread") if field == "misread" else ("rows", 2)
        for value in (v for v in wrong() if v is not None or field == "rows"):
            yield RANDOM, at, value
    for value in (21, -2, 1.0, True, math.nan, "1"):
        yield RANDOM, ("rows", 1, "misread", 0), value
        yield RANDOM, ("rescored", 0), value
        yield RANDOM, ("alone", "PGD", 0), 2
    for field in ("settings", "n", "draws", "alone", "rescored", "curves", "findings", "complete"):
        fine = {"alone": ({},), "curves": ({},), "findings": ([],)}
        fine |= {"rescored": (), "complete": (True,)}
        for value in wrong(*fine.get(field, ())):
            yield RANDOM, (field,), value
    for field in ("title", "eps", "norm", "options"):
        for value in (v for v in wrong({}, {"a": 1}, "x", "²") if (field, v) != ("eps", 10**9)):
            yield RANDOM, ("settings", field), value


def exchanged(whole, path, value):
    whole = copy.deepcopy(whole)
    part = whole
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    return whole


def raw(name):
    """What a shipped record holds, without the digest at its end."""
    whole = json.loads((PLACE.results / f"{name}.json").read_text("utf-8"))
    return {k: v for k, v in whole.items() if k != "sha256"}


@pytest.mark.parametrize("sealed", [False, True])
def test_what_cannot_be_is_refused_by_the_files_name(tmp_path, sealed):
    wholes, accepted, tried = {}, [], 0
    for name, path, value in changes():
        whole = wholes.setdefault(name, raw(name))
        tried += 1
        (tmp_path / f"{name}.json").unlink(missing_ok=True)
        if not put(tmp_path, name, exchanged(whole, path, value), sealed):
            continue
        try:
            read(name, tmp_path)
            accepted.append((name, path, value))
        except RuntimeError as error:
            assert f"{name}.json is damaged: " in str(error) and "\n" not in str(error)
            finite = not isinstance(value, float) or math.isfinite(value)
            if finite and path[:1] == ("rows",) and len(path) > 1 and name != RANDOM:
                assert f"row {path[1]} " in str(error)
    assert accepted == [] and tried > 250


@pytest.mark.parametrize("sealed", [False, True])
def test_rows_come_once_and_are_as_long_as_there_are_images(tmp_path, sealed):
    whole = raw(COMPARED)
    rows = whole["rows"]
    short = rows[0] | {"outcomes": rows[0]["outcomes"][:-2]}
    more = rows[0] | {"outcomes": rows[0]["outcomes"] + "00"}
    for changed, message in (
        ([*rows, rows[3]], "comes twice"),
        ([short, *rows[1:]], "hexadecimal digits for 1000 images"),
        ([more, *rows[1:]], "hexadecimal digits for 1000 images"),
        ([{k: v for k, v in rows[0].items() if k != "eps"}, *rows[1:]], "it has no eps"),
    ):
        assert put(tmp_path, COMPARED, whole | {"rows": changed}, sealed)
        with pytest.raises(RuntimeError, match=rf"{COMPARED}\.json is damaged: row .*{message}"):
            read(COMPARED, tmp_path)
    assert put(tmp_path, COMPARED, whole, sealed)
    assert read(COMPARED, tmp_path)["rows"] == rows


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_one_digit_of_the_outcomes_is_seen(tmp_path, data):
    """They are counted again; where a digit leaves the count as it is, the digest tells."""
    name = data.draw(st.sampled_from([COMPARED, CHOSEN]))
    whole = raw(name)
    row = data.draw(st.sampled_from(whole["rows"]))
    text = row["outcomes"] if name == COMPARED else row["outcomes"][0]
    place = data.draw(st.integers(0, len(text) - 1))
    digit = data.draw(st.sampled_from([c for c in "0123456789abcdefg" if c != text[place]]))
    same = digit != "g" and int(digit, 16).bit_count() == int(text[place], 16).bit_count()
    other = text[:place] + digit + text[place + 1 :]
    row["outcomes"] = other if name == COMPARED else [other, *row["outcomes"][1:]]
    assert put(tmp_path, name, whole, sealed=False)
    if same:
        read(name, tmp_path)
        shutil.copy(PLACE.results / "SHA256SUMS", tmp_path)
        with pytest.raises(RuntimeError, match="SHA256SUMS"):
            read(name, tmp_path)
        (tmp_path / "SHA256SUMS").unlink()
    else:
        with pytest.raises(RuntimeError, match=rf"{name}\.json is damaged: row "):
            read(name, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", '"x"', "null", "{", "[" * 100_000, '{"schema": 2}', '{"schema": true}'),
        *("\0", '{"schema": "2"}', '{"schema": 1, "a": 1e999}', '{"schema": 1, "a": -Infinity}'),
        *('{"schema": 1, "keys": 3}', '{"schema": 1, "rows": 3}', '{"schema": 1, "rows": [NaN]}'),
    ],
)
def test_what_is_no_record_is_named(tmp_path, text):
    (tmp_path / "toy.json").write_text(text, "utf-8")
    for use in (
        lambda: record.load("toy", tmp_path),
        lambda: Record("toy", {}, tmp_path, keys=("k",), anew=True),
        lambda: Report.load("toy", tmp_path),
    ):
        with pytest.raises((RuntimeError, ValueError), match=r"toy\.json( is damaged)?: "):
            use()


def test_the_shipped_records_are_those_of_the_list():
    """``cd apudae/experiments/results && sha256sum *.json > SHA256SUMS`` writes it."""
    lines = (PLACE.results / "SHA256SUMS").read_text().splitlines()
    listed = {line[66:].removesuffix(".json") for line in lines}
    old = {name for name in record.names(PLACE.results) if raw(name)["schema"] == 1}
    assert listed == old and len(lines) == len(listed)
    for name in record.names(PLACE.results):
        assert record.load(name, PLACE.results)


def test_a_bit_of_a_shipped_record_or_of_the_list_is_seen(tmp_path, generator):
    for file in ("mnist_purifier_choice.json", "SHA256SUMS", "mnist_tuning.json"):
        shutil.copy(PLACE.results / file, tmp_path)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines(keepends=True)
    few = "".join(line for line in lines if "_choice" in line or "_tuning" in line)
    (tmp_path / "SHA256SUMS").write_text(few)
    record.load("mnist_purifier_choice", tmp_path)
    for name in ("mnist_purifier_choice.json", "SHA256SUMS"):
        path, good = tmp_path / name, (tmp_path / name).read_bytes()
        for place in torch.randint(8 * len(good), (150,), generator=generator).tolist():
            bad = bytearray(good)
            bad[place // 8] ^= 1 << place % 8
            path.write_bytes(bad)
            with pytest.raises(RuntimeError, match=re.escape(str(tmp_path))):
                for record_name in ("mnist_purifier_choice", "mnist_tuning"):
                    record.load(record_name, tmp_path)
        path.write_bytes(good)


def test_a_shipped_record_that_is_gone_on_with_has_its_own_digest(tmp_path):
    for file in ("mnist_ladder.json", "SHA256SUMS"):
        shutil.copy(PLACE.results / file, tmp_path)
    old = raw("mnist_ladder")
    about = {k: old[k] for k in ("attack", "data", "models_sha256")}
    toy = Record("mnist_ladder", about, tmp_path, keys=("defense", "eps", "attack"))
    toy.measure(("direct", 0.2, "mine"), lambda: {"n": 8, "correct": 8, "outcomes": "ff"})
    new = json.loads((tmp_path / "mnist_ladder.json").read_text("utf-8"))
    assert new["schema"] == 2 and list(new)[-1] == "sha256" and new["rows"][:-1] == old["rows"]
    assert Record("mnist_ladder", about, tmp_path, keys=("defense", "eps", "attack")).find(
        "direct", 0.2, "mine"
    )


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda k: k != "sha256"),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False,
            allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
            lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner),
        ),
    )
)  # fmt: skip
def test_whatever_is_written_comes_back_and_windows_line_ends_do_no_harm(tmp_path, content):
    path = tmp_path / "any.json"
    files.write_json(path, content)
    assert files.read_json(path, sealed=lambda found: True) == content
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert files.read_json(path) == content


def test_what_is_no_plain_data_is_not_written(tmp_path):
    path = tmp_path / "any.json"
    files.write_json(path, {"good": 1})
    for bad in (math.nan, math.inf, torch.ones(1), {1, 2}):
        with pytest.raises(ValueError, match=r"any\.json: cannot be written"):
            files.write_json(path, {"bad": bad})
    assert files.read_json(path) == {"good": 1}
