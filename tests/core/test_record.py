"""The one record, without any model: what is kept, resumed, refused, and never half written."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys

import pytest
import torch

from apudae import __version__
from apudae.core import record
from apudae.core.record import Record, maker, outdated, pack, provenance, unpack

ABOUT = {"eps": [0.1], "data": {"n": 3, "sizes": (1, 2)}}
KEYS = ("defense", "eps")


def opened(folder, about=ABOUT, **options):
    return Record("toy", about, folder, keys=KEYS, **options)


def count(folder):
    """Stored keys, in their order."""
    return [(row["defense"], row["eps"]) for row in record.load("toy", folder)["rows"]]


def row_of(right=2):
    return lambda: {"n": 3, "correct": right}


def never():
    raise AssertionError("this row is there already")


@pytest.fixture
def filled(tmp_path):
    """A record of two rows and some more."""
    toy = opened(tmp_path)
    toy.measure(("a", 0.1), row_of())
    toy.measure(("b", 0.1), row_of(3))
    toy.save(ms={"a": 1.0}, chosen="a")
    return tmp_path


def test_each_row_is_measured_once_stored_at_once_and_says_what_made_it(tmp_path, capsys):
    toy, seen = opened(tmp_path / "new" / "folder"), []
    for key in (("a", 0.1), ("b", 0.1)):
        seen.append(toy.measure(key, row_of()))
        assert record.load("toy", toy.folder)["rows"] == toy.rows == seen
    assert capsys.readouterr().out == "a | 0.1: 2 of 3, 0 s\nb | 0.1: 2 of 3, 0 s\n"
    row = toy.find("a", 0.1)
    assert toy.measure(("a", 0.1), never) is row and opened(toy.folder).find("a", 0.1) == row
    assert list(row)[:4] == ["defense", "eps", "n", "correct"]
    made = provenance()
    assert row.items() >= {k: made[k] for k in ("apudae", "torch", "device")}.items()
    assert row["seconds"] >= 0 and datetime.date.fromisoformat(row["date"])
    assert toy.find("a", 0.2) is None and capsys.readouterr().out == ""


def test_a_run_that_is_stopped_goes_on_with_the_row_that_it_lost(tmp_path):
    asked = []

    def run(stopped_at):
        toy = opened(tmp_path)
        for name in "abc":

            def make(name=name):
                asked.append(name)
                if name == stopped_at:
                    raise KeyboardInterrupt
                return {"n": 1}

            toy.measure((name, 0.1), make)

    with pytest.raises(KeyboardInterrupt):
        run("b")
    assert count(tmp_path) == [("a", 0.1)]
    run("")
    before = (tmp_path / "toy.json").read_bytes()
    run("")
    assert asked == ["a", "b", "b", "c"] and len(count(tmp_path)) == 3
    assert (tmp_path / "toy.json").read_bytes() == before


def test_keys_come_back_as_they_were_written(tmp_path):
    """Tuples and dictionaries are found again after they have been lists in a file."""
    keys = ("options", "sizes")
    Record("toy", ABOUT, tmp_path, keys=keys).measure(({"radii": (1, 2)}, (3,)), row_of())
    again = Record("toy", ABOUT, tmp_path, keys=keys)
    assert again.find({"radii": (1, 2)}, (3,)) == again.find({"radii": [1, 2]}, [3])
    assert again.measure(({"radii": (1, 2)}, (3,)), never)["n"] == 3
    assert again.find({"radii": (1, 3)}, (3,)) is None


def test_another_account_is_refused_and_each_part_is_named(filled):
    before = (filled / "toy.json").read_bytes()
    with pytest.raises(ValueError, match=r"toy\.json was made with another data; move it or name"):
        opened(filled, ABOUT | {"data": {"n": 4, "sizes": (1, 2)}})
    with pytest.raises(ValueError, match=r"was made with another eps, seed; move it"):
        opened(filled, ABOUT | {"eps": [0.2], "seed": 0})
    anew = opened(filled, ABOUT | {"eps": [0.2]}, anew=True)
    assert (anew.rows, anew.more) == ([], {})
    assert (filled / "toy.json").read_bytes() == before  # until something is saved
    anew.measure(("c", 0.2), row_of())
    assert count(filled) == [("c", 0.2)]
    assert len(opened(filled, ABOUT | {"eps": [0.2]}, anew=True).rows) == 1  # the same: goes on


def test_what_else_there_is_to_say_stays_and_dictionaries_are_joined(filled):
    toy = opened(filled)
    assert toy.more == {"ms": {"a": 1.0}, "chosen": "a"}
    toy.save(ms={"b": 2.0}, chosen="b")
    toy.save(new=[1])
    stored = record.load("toy", filled)
    assert stored["ms"] == {"a": 1.0, "b": 2.0} and stored["chosen"] == "b" and stored["new"] == [1]
    assert stored["data"] == {"n": 3, "sizes": [1, 2]} and len(stored["rows"]) == 2


def test_rows_that_another_process_has_added_are_kept(filled):
    one, other = opened(filled), opened(filled)
    one.measure(("c", 0.1), row_of())
    one.save(ms={"c": 3.0})
    other.measure(("d", 0.1), row_of())
    other.save(ms={"d": 4.0})
    assert sorted(name for name, _ in count(filled)) == ["a", "b", "c", "d"]
    assert record.load("toy", filled)["ms"] == {"a": 1.0, "c": 3.0, "d": 4.0}
    other.measure(("c", 0.1), never)  # it has learned of that row
    opened(filled, ABOUT | {"eps": [0.2]}, anew=True).measure(("e", 0.1), row_of())
    assert count(filled) == [("e", 0.1)]  # rows of another account are no rows of this one


def test_a_record_without_keys_holds_no_rows_and_is_written_now_and_then(tmp_path):
    log = Record("votes", {"n": 5}, tmp_path)
    log.save(at_most_every=60, votes=[1])
    log.save(at_most_every=60, votes=[1, 2])
    assert record.load("votes", tmp_path)["votes"] == [1]  # too soon
    log.save(at_most_every=60, rest={"a": 1})
    log.save()
    stored = record.load("votes", tmp_path)
    assert stored["votes"] == [1, 2] and stored["rest"] == {"a": 1} and "rows" not in stored
    assert Record("votes", {"n": 5}, tmp_path).more["votes"] == [1, 2]


def test_a_record_says_what_made_it(tmp_path):
    path = record.save("mine", {"rows": [1, 2], "what": "é"}, tmp_path)
    stored = record.load("mine", tmp_path)
    assert stored["rows"] == [1, 2] and stored["schema"] == record.SCHEMA
    parts = {"apudae", "torch", "numpy", "scipy", "python", "device", "date"}
    assert stored["made"].keys() == parts and stored["made"]["apudae"] == __version__
    assert stored["made"]["torch"] == torch.__version__ and "CPU" in stored["made"]["device"]
    assert "é" in path.read_text("utf-8") and record.names(tmp_path) == ["mine"]


def test_what_older_code_made_is_told_from_what_is_as_good_as_new():
    assert maker({"made": {"apudae": "0.1.0"}}) == maker({"apudae": "0.1.0"}) == "0.1.0"
    assert not outdated({"made": {"apudae": "0.1.0"}}) and not outdated(provenance())
    for made in ({"apudae": "0.0.9"}, {"made": {"apudae": "9.0"}}, {}, {"made": {}}):
        assert outdated(made)
    assert maker({}) == "an unknown one"


def test_unknown_damaged_and_foreign_records_are_named(filled):
    with pytest.raises(ValueError, match=r"unknown record 'x' in .*; known: toy$"):
        record.load("x", filled)
    with pytest.raises(ValueError, match=r"known: none"):
        record.load("x", filled / "gone")
    path = filled / "toy.json"
    good = path.read_text()
    path.write_text(good[: len(good) // 2])
    for use in (record.load, lambda name, folder: opened(folder, anew=True)):
        with pytest.raises(RuntimeError, match=r"toy\.json is damaged: "):
            use("toy", filled)
    path.write_text(json.dumps({"schema": 0}))
    for use in (record.load, lambda name, folder: opened(folder)):
        with pytest.raises(ValueError, match=r"toy\.json: expected schema 1 or 2, got 0"):
            use("toy", filled)


DRIVER = """
import os, resource, signal, sys, time
from pathlib import Path
from apudae.core import record
from apudae.core.record import Record

folder = Path(sys.argv[1])

def write():
    toy = Record("toy", {"eps": 0.1}, folder, keys=("k",))
    os.write(1, b"ready\\n")
    for k in range(len(toy.rows), 1000):
        toy.measure((k,), lambda: {"text": "x" * 100_000})

def child(work):
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            work()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    return pid

def stored():
    rows = record.load("toy", folder)["rows"]
    assert {len(row["text"]) for row in rows} == {100_000}
    assert [row["k"] for row in rows] == list(range(len(rows)))
    return len(rows)

before = 0
for turn in range(12):  # killed with no chance to clean up, at other moments each time
    pid = child(write)
    while not (folder / "toy.json").is_file():
        time.sleep(0.001)
    time.sleep(0.01 + 0.0037 * turn)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    now = stored()
    assert now >= before
    before = now
print("rows", before)
for left in folder.glob(".*"):
    left.unlink()  # what the killed ones had begun

def fill():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # stands for a full disk
    record.save("toy", {"text": "x" * 10_000}, folder)

good = (folder / "toy.json").read_bytes()
_, status = os.waitpid(child(fill), 0)
assert os.waitstatus_to_exitcode(status) == 27  # "File too large"
assert (folder / "toy.json").read_bytes() == good
print(sorted(path.name for path in folder.iterdir()))
"""


def test_whenever_the_writer_is_killed_or_the_disk_is_full_a_whole_record_is_there(tmp_path):
    """A row of 100 kB after the other, killed twelve times; then half of a record fits."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    rows, names = found.stdout.splitlines()
    assert int(rows.removeprefix("rows ")) >= 5  # so that it was in the middle
    assert names == "['toy.json']"  # no half file either


def test_outcomes_survive_packing(generator):
    for n in (1, 7, 8, 1000):
        right = torch.rand(n, generator=generator) > 0.3
        assert torch.equal(unpack(pack(right), n), right)
    assert pack(torch.tensor([True, False, False, True, True])) == "98" and len(unpack("", 0)) == 0
