"""Draw the picture of the front page and the README: python scripts/first_look.py."""

from pathlib import Path

from apudae import attacks, data, experiments, models, plots
from apudae.purification import Adaptive

OUT = Path(__file__).parents[1] / "book" / "assets" / "first_look.png"
EPS = 0.2


def main() -> None:
    chosen = experiments.record("mnist_selection")["chosen"]
    x, y = data.load("mnist", "test").take(8)  # the first eight, not the prettiest eight
    classifier, dae = models.load("mnist-cnn"), models.load("mnist-dae")
    purifier = Adaptive(dae, steps=chosen["steps"], step_size=chosen["step_size"])
    attacked = attacks.pgd(classifier, x, y, eps=EPS)
    rows = {"clean": x, "attacked": attacked, "purified": purifier(attacked)}
    guesses = {name: classifier(images).argmax(1) for name, images in rows.items()}
    figure = plots.image_grid(
        rows,
        notes={name: [f"reads {k}" for k in guess.tolist()] for name, guess in guesses.items()},
        wrong={name: (guess != y).tolist() for name, guess in guesses.items()},
    )
    figure.savefig(OUT, dpi=150)


if __name__ == "__main__":
    main()
