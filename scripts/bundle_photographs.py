"""Bundle two photographs with the package: python scripts/bundle_photographs.py (scikit-image 0.26)

A cat and a cup of coffee, both CC0, scaled to a shorter side of 256 and cut to the middle.
"""

from pathlib import Path

import numpy as np
import skimage

from apudae.data import read_image

PHOTOGRAPHS = {"chelsea.png": 282, "coffee.png": 967}  # ImageNet's tiger cat and espresso
OUT = Path(__file__).parents[1] / "apudae" / "data" / "samples" / "photographs.npz"


def main() -> None:
    """Write the file, and say its SHA-256."""
    folder, cut = Path(skimage.__file__).parent / "data", []
    for name in PHOTOGRAPHS:
        image = read_image(folder / name, 224)
        top, left = ((length - 256) // 2 for length in image.shape[1:])
        cut.append(image[:, top : top + 256, left : left + 256].numpy())
    labels = np.array(list(PHOTOGRAPHS.values()), dtype=np.int64)
    np.savez_compressed(OUT, images=np.stack(cut), labels=labels)


if __name__ == "__main__":
    main()
