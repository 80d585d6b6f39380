"""What needs a GPU, rehearsed: pieces that end, are killed and gone on with, and what is packed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toys import files, place_with

from apudae import models
from apudae.core import record
from apudae.experiments import Place, bundle, gpu
from apudae.experiments.__main__ import main
from apudae.experiments.commands import status
from apudae.experiments.gpu import Piece, Run

# --- pieces, as children of this test import them -----------------------------------------------


def brief(run):
    """A piece that ends."""
    run.record("made", "what brief made", "key").measure(("a",), lambda: {"n": 3})
    return {"told": "made"}


def endless(run):
    """Stores a row at once and then another every hour; starts a process that outlives it."""
    table = run.record("rows", "rows of endless", "key")
    number = len(table.rows)
    table.measure((number,), dict)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (run.place.work / "sleeper").parent.mkdir(parents=True, exist_ok=True)
    (run.place.work / "sleeper").write_text(str(sleeper.pid))
    (run.place.work / "begun").write_text(f"after {number}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def stubborn(run):
    """Takes longer than it is given, and stores nothing until then."""
    time.sleep(600)


def failing(run):
    raise ValueError("eps: expected better")


BRIEF, ENDLESS = Piece("brief", "ends", brief, 1), Piece("endless", "does not", endless, 1)


def run_in(folder):
    place = Place(None, folder / "weights", folder / "results", folder / "work")
    return Run(gpu.at(place), tiny=True)


def alive(pid):
    """Whether a process is there, and no zombie."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_pieces_end_in_time_and_are_gone_on_with_elsewhere(tmp_path, capsys):
    """Killed at the deadline with what it started; then on another machine, from the bundle."""
    run, packed, begun = run_in(tmp_path / "one"), tmp_path / "bundle", time.monotonic()
    gpu.go((BRIEF, ENDLESS), run, 0.6, packed, reserve=3.0)
    assert time.monotonic() - begun < 0.6 * 60
    assert run.done() == {"brief"} and run.place.rows("made")[0]["n"] == 3
    (row,) = run.place.rows("gpu")
    assert row["told"] == "made" and row["seconds"] >= 0 and row["device"]
    assert [row["key"] for row in run.place.rows("rows")] == [0]
    assert not alive(int((run.place.work / "sleeper").read_text()))
    shown = capsys.readouterr().out
    assert "endless: the time is up; the next call goes on" in shown
    assert "brief: the time is up" not in shown
    before = files(packed)
    assert 1 <= len(before) <= bundle.FILES

    other = run_in(tmp_path / "two")
    gpu.go((BRIEF, ENDLESS), other, 0.4, packed, reserve=3.0)
    assert "brief:" not in capsys.readouterr().out  # done, on another machine
    assert other.place.rows("made") == run.place.rows("made")
    assert [row["key"] for row in other.place.rows("rows")] == [0, 1]
    assert (other.place.work / "begun").read_text() == "after 1"
    assert files(packed) != before and len(files(packed)) <= bundle.FILES
    gpu.go((BRIEF, ENDLESS), other, 0.01, packed, reserve=1.0)  # no time: nothing is begun
    assert "endless: waits for the next call" in capsys.readouterr().out


def test_a_piece_that_fails_does_not_stop_the_others(tmp_path, capfd):
    run = run_in(tmp_path)
    whole = Piece("whole", "cannot be stopped", brief, 5, resumes=False)
    pieces = Piece("failing", "raises", failing, 1), whole, BRIEF
    with pytest.raises(RuntimeError, match="gpu: failing failed; what went wrong stands above"):
        gpu.go(pieces, run, 2, tmp_path / "bundle")
    shown = capfd.readouterr()
    assert "error: eps: expected better" in shown.err
    assert "whole: waits for the next call" in shown.out  # which has more time from the start
    assert run.done() == {"brief"}  # the one that failed is tried again


def test_what_ends_the_command_ends_its_pieces(tmp_path):
    """``timeout`` does that, and a machine that is taken back."""
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
import test_gpu; from pathlib import Path
if __name__ == "__main__":
    folder = Path({str(tmp_path)!r})
    test_gpu.gpu.go((test_gpu.ENDLESS,), test_gpu.run_in(folder), 5, folder / "bundle")
"""
    (tmp_path / "go.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "go.py")])
    begun = tmp_path / "work" / "gpu" / "work" / "begun"
    for _ in range(600):
        if begun.is_file():
            break
        time.sleep(0.1)
    process.terminate()
    assert process.wait(30) == 143
    assert not alive(int(begun.with_name("sleeper").read_text()))


# --- bundles --------------------------------------------------------------------------------------


def filled(folder, sizes):
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))


def test_a_bundle_is_a_few_small_files_and_gives_back_what_was_there(tmp_path, capsys):
    folder, packed = tmp_path / "run", tmp_path / "bundle"
    sizes = {"results/a.json": 5000, "weights/w.safetensors": 9000, "work/t/tried.pt": 800}
    filled(folder, sizes | {"work/large.pt": 30_000, "work/.a.pt.apudae": 10})
    small = {"files": 8, "largest": 3000}
    bundle.pack(folder, packed, **small)
    assert capsys.readouterr().out == "left out of the bundle, too large: work/large.pt\n"
    parts = sorted(packed.iterdir())
    assert 2 <= len(parts) <= 8 and all(path.stat().st_size <= 3000 for path in parts)
    there = {name: (folder / name).read_bytes() for name in sizes}
    assert bundle.unpacked(packed) == there
    before = files(packed)
    bundle.pack(folder, packed, **small)
    assert files(packed) == before  # nothing has changed
    filled(folder, {"work/t/tried.pt": 700})
    bundle.pack(folder, packed, **small)
    assert not set(files(packed)) & set(before) and len(files(packed)) <= 8
    assert bundle.unpacked(tmp_path / "none") == {}


def test_a_record_and_its_images_stay_together(tmp_path, capsys):
    """Nobody can go on with one of them alone."""
    folder, packed = tmp_path / "run", tmp_path / "bundle"
    filled(folder, {"work/a.json": 100, "work/a-01234567.safetensors": 9000, "work/b.json": 900})
    filled(folder, {"weights/manifest.json": 50, "weights/w-89abcdef.safetensors": 500})
    bundle.pack(folder, packed, files=4, largest=1000)
    told = "left out of the bundle, too large: work/a-01234567.safetensors, work/a.json\n"
    assert capsys.readouterr().out == told
    names = {"work/b.json", "weights/manifest.json", "weights/w-89abcdef.safetensors"}
    assert set(bundle.unpacked(packed)) == names
    assert bundle.FILES <= 8 and bundle.LARGEST < 16 * 2**20


def test_of_two_bundles_the_whole_one_counts_and_a_damaged_one_is_refused(tmp_path):
    folder, packed = tmp_path / "run", tmp_path / "bundle"
    filled(folder, {"results/a.json": 5000})
    bundle.pack(folder, packed, largest=2000)
    old, there = files(packed), bundle.unpacked(packed)
    filled(folder, {"results/a.json": 5000})
    bundle.pack(folder, packed, largest=2000)
    new = sorted(packed.iterdir())
    for path, content in old.items():
        path.write_bytes(content)
    new[0].unlink()  # as if a new one had been half written
    assert bundle.unpacked(packed) == there
    next(iter(old)).write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match=r"bundle: a part is missing or damaged"):
        bundle.unpacked(packed)
    with pytest.raises(RuntimeError, match="leads out"):
        bundle.write(tmp_path / "run", {"../x": b""})


def test_a_bundle_is_taken_apart_into_weights_and_records(tmp_path, capsys):
    made, packed, target = place_with(tmp_path, "mnist-mlp"), tmp_path / "bundle", tmp_path / "new"
    record.save("toy", {"rows": []}, made.results)
    filled(tmp_path, {"work/unfinished.pt": 100})
    bundle.pack(tmp_path, packed)
    target.mkdir()
    place = place_with(target, "mnist-cnn")
    asked = ["--weights", place.weights, "--results", place.results, "--work", place.work]
    main(["gpu", "--unpack", "--bundle", str(packed), *map(str, asked)])
    assert "1 networks in" in capsys.readouterr().out
    assert models.names(place.weights) == ["mnist-cnn", "mnist-mlp"]
    assert place.sha256("mnist-mlp") == made.sha256("mnist-mlp")
    assert models.about("mnist-mlp", place.weights) == models.about("mnist-mlp", made.weights)
    assert place.record("toy") == made.record("toy") and not place.work.exists()
    bundle.unpack(packed, place)  # a second time: it is the same
    record.save("toy", {"rows": [], "mine": 1}, place.results)
    before = files(place.weights, place.results)
    with pytest.raises(
        ValueError, match=r"bundle: others are there: toy\.json; name other folders"
    ):
        bundle.unpack(packed, place)
    assert files(place.weights, place.results) == before
    with pytest.raises(ValueError, match="bundle: there is none in"):
        bundle.unpack(tmp_path / "none", place)


# --- the command and its table -------------------------------------------------------------------


def test_without_a_gpu_a_line_says_so(tmp_path):
    assert not torch.cuda.is_available()
    with pytest.raises(SystemExit, match=r"^error: there is no GPU here; --device cpu rehearses"):
        main(["gpu", "--work", str(tmp_path)])
    with pytest.raises(
        SystemExit, match=r"^error: device: got 'cuda', but this machine has no GPU"
    ):
        main(["gpu", "--device", "cuda", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: only: .*tests.*got 'test'"):
        main(["gpu", "--device", "cpu", "--only", "test", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: --minutes: does nothing with mnist"):
        main(["mnist", "--minutes", "3"])
    assert list(tmp_path.iterdir()) == []


def test_the_status_lists_the_pieces(tmp_path):
    place = Place(None, tmp_path / "weights", tmp_path / "results", tmp_path / "work")
    names = [piece.name for piece in gpu.PIECES]
    assert len(set(names)) == len(names) and all(piece.minutes <= 60 for piece in gpu.PIECES)
    shown = {name: state for kind, name, state in status(place) if kind == "gpu"}
    assert list(shown) == names and shown["tests"].startswith("to do, 2 min: ")
    run = Run(gpu.at(place))
    run.state().measure(("tests",), dict)
    shown = {name: state for kind, name, state in status(place) if kind == "gpu"}
    assert shown["tests"] == "done" and shown["agreement"].startswith("to do")


def test_a_rehearsal_is_not_gone_on_with_in_earnest(tmp_path):
    place = gpu.at(Place(None, tmp_path / "weights", tmp_path / "results", tmp_path / "work"))
    Run(place, tiny=True).state().measure(("tests",), dict)
    with pytest.raises(ValueError, match=r"gpu\.json was made with another rehearsal; move it"):
        Run(place).state()


@pytest.mark.slow
def test_a_piece_that_gets_nowhere_does_not_keep_the_others_from_their_turn(tmp_path, capsys):
    pieces = Piece("stubborn", "takes too long", stubborn, 1), BRIEF
    run, packed = run_in(tmp_path), tmp_path / "bundle"
    gpu.go(pieces, run, 0.1, packed, reserve=1.0)
    assert "brief: waits for the next call" in capsys.readouterr().out
    gpu.go(pieces, run, 0.6, packed, reserve=1.0)
    shown = capsys.readouterr().out
    assert shown.index("brief: ends") < shown.index("stubborn: takes too long")
    assert run.done() == {"brief"} and run.state().more["vain"] == {"stubborn": 2}


@pytest.mark.slow
def test_the_rehearsal_of_all_pieces(full_data, tmp_path):
    """The same code on a CPU: two minutes on one core."""
    if not (full_data / "cifar10_jpeg" / "cifar10_jpeg.npz").is_file():
        pytest.skip("the JPEG copy of CIFAR-10 is not at hand")
    options = ["--profile", "quick", "--device", "cpu", "--data", "cifar10-jpeg"]
    options += ["--root", str(full_data), "--work", str(tmp_path), "--minutes", "15"]
    main(["gpu", *options])
    place = gpu.at(Place(work=tmp_path))
    assert Run(place).done() == {piece.name for piece in gpu.PIECES}
    wanted = {"gpu_agreement", "gpu_benchmarks", "cifar10", "cifar10_purifier_verdict"}
    wanted |= {"cifar10_certified", "mnist_reference", "imagenet_gpu"}
    assert wanted <= set(record.names(place.results))
    asked = place.record("gpu_agreement")["rows"]
    assert sum(row["n"] for row in asked) > 100 and all("outcomes" in row for row in asked)
    packed = list((tmp_path / "bundle").iterdir())
    assert 1 <= len(packed) <= 8 and all(p.stat().st_size < 16 * 2**20 for p in packed)
