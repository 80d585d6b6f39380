"""Pictures of images: :func:`image_grid` with notes, :func:`walk` of an attack on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colors, textpath
from matplotlib.axes import Axes
from torch import Tensor

from ..core.arguments import check_count, check_number, checked
from .figures import finished
from .palette import BLUE, INK, RED, SHADES
from .widgets import Picture


@checked
def image_grid(
    rows: Mapping[str, Tensor],
    notes: Mapping[str, Sequence[str]] | None = None,
    wrong: Mapping[str, Sequence[bool]] | None = None,
    *,
    size: float = 0.95,
    columns: int = 0,
    limits: tuple[float, float] = (0, 1),
    cmap: str = "gray",
    quality: int = 0,
) -> Picture:
    """Rows of images, the row's name on the left and a note under each image.

    Args:
        rows: name -> images ``[N, C, H, W]``; one or three channels.
        notes: name -> a text per image, such as the predicted class.
        wrong: name -> whether each note tells of a mistake: printed red, bold and with a cross.
        size: of one image, in inches.
        columns: leave room for at least so many, so that a few images are not drawn huge.
        limits: pixel values drawn darkest and brightest.
        cmap: of one-channel images.
        quality: store the figure as JPEG of this quality (1 to 95), for photographs; 0 is PNG.
    """
    check_number(size, "size", exclusive=True)
    check_count(quality, "quality", minimum=0, maximum=95)
    columns = max(columns, *(len(images) for images in rows.values()))
    texts = [text for row in (notes or {}).values() for text in row]
    extra = max((0.25 + 0.17 * text.count("\n") for text in texts), default=0.0)
    margin = 0.9 if any(name.strip() for name in rows) else 0.04
    figure = Picture(figsize=(columns * size + margin, len(rows) * (size + extra)))
    figure.quality = quality
    empty = {"xticks": [], "yticks": [], "frame_on": False}
    axes = figure.subplots(len(rows), columns, squeeze=False, subplot_kw=empty)
    fontsize = _fitting(texts, 72 * 0.88 * size)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for k, (ax, image) in enumerate(zip(line, images, strict=False)):
            ax.imshow(_pixels(image), cmap=cmap, vmin=limits[0], vmax=limits[1])
            if notes and name in notes:
                bad = bool(wrong and name in wrong and wrong[name][k])
                _note(ax, notes[name][k], bad, fontsize=fontsize, labelpad=2)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11, labelpad=8)
    figure.subplots_adjust(
        left=margin / figure.get_figwidth(),
        right=0.995,
        top=0.99,
        bottom=extra / figure.get_figheight(),
        wspace=0.06,
        hspace=0.05 + extra / size,
    )
    return figure


@checked
def walk(
    classes: Tensor,
    *,
    extent: float,
    path: Tensor,
    image: Tensor,
    chances: Tensor,
    label: int,
) -> Picture:
    """An attack on its way: its path over a map of classes, the image now, what the model reads.

    Args:
        classes: predicted classes ``[R, R]`` on a square grid around the clean image; the first
            row is the lowest.
        extent: half the side of that square.
        path: points ``[T, 2]`` so far, in the map's coordinates; the clean image is at (0, 0).
        image: the last one, ``[1, C, H, W]``.
        chances: the model's probabilities for it, ``[K]``.
        label: the true class.
    """
    check_number(extent, "extent", exclusive=True)
    check_count(label, "label", minimum=0)
    figure = Picture(figsize=(7.6, 2.9), layout="constrained")
    chart, digit, bars = figure.subplots(1, 3, width_ratios=(1.15, 0.8, 0.9))
    seen, places = classes.unique(return_inverse=True)
    shades = ["white" if k == label else SHADES[k % len(SHADES)] for k in seen.tolist()]
    chart.imshow(
        places.numpy(),
        cmap=colors.ListedColormap(shades),
        vmin=-0.5,
        vmax=len(seen) - 0.5,
        origin="lower",
        extent=(-extent, extent, -extent, extent),
        interpolation="nearest",
    )
    at = np.linspace(-extent, extent, len(classes))
    for k in seen.tolist():  # each class named where most of it lies
        rows, columns = (classes == k).nonzero().float().median(0).values.long().tolist()
        chart.text(at[columns], at[rows], str(k), ha="center", va="center", fontsize=13, color=INK)
    chart.plot(*path.T.tolist(), color=RED, lw=1.5, marker="o", ms=3)
    chart.plot(*path[-1].tolist(), color=RED, marker="o", ms=7)
    chart.plot(0, 0, color=INK, marker="+", ms=11, mew=2)
    chart.set(xticks=[], yticks=[], xlabel="towards the end of the path")
    digit.imshow(_pixels(image[0]), cmap="gray", vmin=0, vmax=1)
    digit.set(xticks=[], yticks=[])
    guess = int(chances.argmax())
    _note(digit, f"reads {guess}", guess != label, fontsize=11)
    names = [f"{k} (true)" if k == label else str(k) for k in range(len(chances))]
    inks = [INK if k == label else BLUE for k in range(len(chances))]
    bars.barh(names, chances.tolist(), color=inks)
    bars.invert_yaxis()
    return finished(bars, grid=False, xlim=(0, 1), xlabel="probability")


def _note(ax: Axes, text: str, wrong: bool, **style: object) -> None:
    """Text under an image; of a mistake red, bold and with a cross."""
    look = {"color": RED, "fontweight": "bold"} if wrong else {"color": INK}
    ax.set_xlabel(f"{text}{' ✗' if wrong else ''}", **look, **style)


def _fitting(notes: Sequence[str], width: float, largest: float = 10.5) -> float:
    """The font size at which every line of the notes, bold and with a cross, is narrow enough."""
    lines = {f"{line} ✗" for text in notes for line in text.split("\n") if line}
    drawn = (textpath.TextPath((0, 0), s, largest, prop={"weight": "bold"}) for s in lines)
    return largest * (width / max([width, *(path.get_extents().width for path in drawn)]))


def _pixels(image: Tensor) -> np.ndarray:
    image = image.detach().cpu().float()
    return image[0].numpy() if len(image) == 1 else image.clamp(0, 1).permute(1, 2, 0).numpy()
