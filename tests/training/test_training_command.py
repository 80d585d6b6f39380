import subprocess
import sys

import pytest

from apudae import models
from apudae.training import __main__


def run(*options):
    return __main__.main([str(option) for option in options])


def test_help_explains_every_option():
    shown = subprocess.run(
        [sys.executable, "-m", "apudae.training", "--help"], capture_output=True, text=True
    ).stdout
    for part in ("--model", "--sigma", "resumes where it was cut off", "torchrun", "default"):
        assert part in shown


@pytest.mark.parametrize(
    ("task", "more", "says"),
    [
        ("classification", [], "MNIST, 1,000 test images, as stored: "),
        ("adversarial", ["--eps", 0.1, "--attack-steps", 1, "--augment"], "as stored: "),
    ],
)
def test_a_classifier_from_the_command_line(task, more, says, tmp_path, capsys):
    options = ["--model", "mnist-cnn", "--option", "width=4", "--data", "mnist", "--task", task]
    run(*options, "--epochs", 1, "--ema", 0.9, "--device", "cpu", "--out", tmp_path, *more)
    assert says in capsys.readouterr().out
    about = models.about("mnist-cnn", tmp_path)["training"]
    assert (about["task"], about["epochs"], about["ema"]) == (task, 1, 0.9)
    assert about["data"] == {"name": "mnist", "n": 3000}
    content = (tmp_path / models.about("mnist-cnn", tmp_path)["file"]).read_bytes()
    run(*options, "--epochs", 1, "--ema", 0.9, "--device", "cpu", "--out", tmp_path, *more)
    again = (tmp_path / models.about("mnist-cnn", tmp_path)["file"]).read_bytes()
    assert again == content  # resumed: there was nothing left to do


def test_a_dae_on_a_folder(tmp_path, capsys):
    import numpy as np
    from PIL import Image

    folder = tmp_path / "photographs"
    folder.mkdir()
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    out = tmp_path / "out"
    options = ["--model", "rednet", "--option", "depth=4", "--option", "width=4", "--size", 24]
    options += ["--data", folder, "--task", "denoising", "--sigma", 0.05, 0.2, "--epochs", 2]
    run(*options, "--batch-size", 4, "--workers", 1, "--device", "cpu", "--out", out)
    assert models.load("rednet", out).channels == 3
    assert "test images" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "rednet", "--option", "depth", "--data", "mnist"], "NAME=NUMBER, got 'depth'"),
        (["--model", "rednet", "--option", "deep=3", "--data", "mnist"], "unknown option 'deep'"),
        (["--model", "mnist-cnn", "--data", "/nowhere"], "/nowhere is not a folder"),
        (["--model", "rednet", "--data", "mnist", "--task", "denoising"], "3 channels, got 1"),
    ],
)
def test_mistakes_end_in_one_line(options, message, tmp_path):
    with pytest.raises(SystemExit, match=message) as stop:
        run(*options, "--device", "cpu", "--out", tmp_path)
    assert str(stop.value).startswith("error: ")
