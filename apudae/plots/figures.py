"""Figures, tables, and pictures that move without a kernel.

Every function returns an object that a notebook shows as the last line of a cell. Colours are
those of Okabe and Ito (2008), which colour-blind readers can tell apart; what matters is never
said by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath
from scipy.stats import norm
from torch import Tensor

from ..core.scores import Accuracy
from .widgets import Picture

INK, RED, BLUE, GREEN, ORANGE = "#222222", "#D55E00", "#0072B2", "#009E73", "#E69F00"
_LINES = ((INK, "-", "o"), (BLUE, "--", "s"), (GREEN, "-.", "^"), (ORANGE, ":", "D"))
_SHADES = ("#C6DBEF", "#FDD0A2", "#C7E9C0", "#DADAEB", "#FEE391", "#D9D9D9")


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
    columns = max(columns, *(len(images) for images in rows.values()))
    told = [text for texts in (notes or {}).values() for text in texts]
    extra = max((0.25 + 0.17 * text.count("\n") for text in told), default=0.0)
    margin = 0.9 if any(name.strip() for name in rows) else 0.04
    figure = Picture(figsize=(columns * size + margin, len(rows) * (size + extra)))
    figure.quality = quality
    axes = figure.subplots(len(rows), columns, squeeze=False)
    fontsize = _fitting(told, 72 * 0.88 * size)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for k, ax in enumerate(line):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if k >= len(images):
                continue
            ax.imshow(_picture(images[k]), cmap=cmap, vmin=limits[0], vmax=limits[1])
            if notes and name in notes:
                bad = bool(wrong and name in wrong and wrong[name][k])
                ax.set_xlabel(
                    f"{notes[name][k]}{' ✗' if bad else ''}",
                    fontsize=fontsize,
                    labelpad=2,
                    color=RED if bad else INK,
                    fontweight="bold" if bad else "normal",
                )
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


def curves(
    lines: Mapping[str, Mapping[float, Accuracy]], *, xlabel: str, ylabel: str = "accuracy (%)"
) -> Picture:
    """Accuracy against ε (or anything else), with 95 % intervals and direct labels."""
    figure = Picture(figsize=(6.2, 3.6), layout="constrained")
    ax = figure.subplots()
    for k, (name, points) in enumerate(lines.items()):
        colour, style, marker = _LINES[k % len(_LINES)]
        x = np.array(list(points))
        y = np.array([point.percent for point in points.values()])
        bounds = np.array([point.interval() for point in points.values()])
        errors = np.clip(np.abs(bounds.T - y), 0, None)
        ax.errorbar(
            x, y, errors, color=colour, ls=style, marker=marker, ms=5, lw=1.8, capsize=3, label=name
        )
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(-3, 103))
    _tidy(ax)
    return figure


def losses(
    lines: Mapping[str, Sequence[float]],
    *,
    xlabel: str = "epoch",
    ylabel: str = "loss",
    first: int = 1,
) -> Picture:
    """Values per epoch or step, counted from ``first``."""
    figure = Picture(figsize=(6.2, 2.8), layout="constrained")
    ax = figure.subplots()
    for k, (name, values) in enumerate(lines.items()):
        colour, style, _ = _LINES[k % len(_LINES)]
        x = range(first, first + len(values))
        ax.plot(x, values, color=colour, ls=style, lw=1.8, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.get_major_locator().set_params(integer=True)
    _tidy(ax)
    return figure


def histograms(samples: Mapping[str, Sequence[float]], *, xlabel: str) -> Picture:
    """Outlined histograms of several samples on common bins."""
    figure = Picture(figsize=(6.2, 3.0), layout="constrained")
    ax = figure.subplots()
    top = max(max(values) for values in samples.values())
    bins = np.linspace(0, top, 60)
    for k, (name, values) in enumerate(samples.items()):
        colour, style, _ = _LINES[k % len(_LINES)]
        ax.hist(values, bins, histtype="step", color=colour, ls=style, lw=1.6, label=name)
    ax.set(xlabel=xlabel, ylabel="images")
    _tidy(ax)
    return figure


def roc(lines: Mapping[str, tuple[Tensor, Tensor]]) -> Picture:
    """Detections against false alarms, from :func:`apudae.evaluation.roc`."""
    figure = Picture(figsize=(4.6, 3.8), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 100], [0, 100], color="#999999", lw=1)
    for k, (name, (false, true)) in enumerate(lines.items()):
        colour, style, _ = _LINES[k % len(_LINES)]
        x, y = (100 * part for part in (false, true))
        ax.plot(x, y, color=colour, ls=style, lw=1.8, label=name)
    ax.set(xlabel="false alarms on clean images (%)", ylabel="attacked images found (%)")
    _tidy(ax)
    return figure


def field(
    density: Tensor,
    *,
    arrows: tuple[Tensor, Tensor] | None = None,
    paths: Mapping[str, Tensor] | None = None,
    curve: Tensor | None = None,
) -> Picture:
    """The square [0, 1]², shaded where images are likely, with arrows, paths or a curve on it.

    Args:
        density: ``[R, R]``, any scale; the first row is the lowest.
        arrows: positions ``[K, 2]`` and directions ``[K, 2]``.
        paths: name -> points ``[T, 2]``; the last one is marked.
        curve: points ``[T, 2]`` of a closed line, drawn thin.
    """
    figure = Picture(figsize=(4.6, 4.0), layout="constrained")
    ax = figure.subplots()
    ax.imshow(density, cmap="Greys", origin="lower", extent=(0, 1, 0, 1), alpha=0.6)
    if curve is not None:
        ax.plot(*curve.T.tolist(), color=RED, lw=1)
    if arrows is not None:
        places, ways = arrows
        ax.quiver(*places.T.tolist(), *ways.T.tolist(), color=BLUE, angles="xy", width=0.004)
    for k, (name, points) in enumerate((paths or {}).items()):
        colour, style, marker = ((BLUE, "--", "s"), (RED, "-", "o"))[k % 2]
        ax.plot(*points.T.tolist(), color=colour, ls=style, lw=1.6, label=name)
        ax.plot(*points[0].tolist(), color=INK, marker="+", ms=9, mew=1.5)
        ax.plot(*points[-1].tolist(), color=colour, marker=marker, ms=7)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="first pixel", ylabel="second pixel", aspect="equal")
    if paths:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


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
    figure = Picture(figsize=(7.6, 2.9), layout="constrained")
    chart, digit, bars = figure.subplots(1, 3, width_ratios=(1.15, 0.8, 0.9))
    seen = classes.unique().tolist()
    place = {k: number for number, k in enumerate(seen)}
    shades = [[place[k] for k in row] for row in classes.tolist()]
    colours = ["#FFFFFF" if k == label else _SHADES[k % len(_SHADES)] for k in seen]
    around = (-extent, extent, -extent, extent)
    chart.imshow(
        shades,
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(seen) - 0.5,
        origin="lower",
        extent=around,
        interpolation="nearest",
    )
    at = np.linspace(-extent, extent, len(shades))
    for k in seen:  # each class named where most of it lies
        rows, columns = (classes == k).nonzero().float().median(0).values.long().tolist()
        chart.text(at[columns], at[rows], str(k), ha="center", va="center", fontsize=13, color=INK)
    chart.plot(*path.T.tolist(), color=RED, lw=1.5, marker="o", ms=3)
    chart.plot(*path[-1].tolist(), color=RED, marker="o", ms=7)
    chart.plot(0, 0, color=INK, marker="+", ms=11, mew=2)
    chart.set(xticks=[], yticks=[], xlabel="towards the end of the path")
    digit.imshow(_picture(image[0]), cmap="gray", vmin=0, vmax=1)
    guess = int(chances.argmax())
    digit.set(xticks=[], yticks=[])
    digit.set_xlabel(
        f"reads {guess}{'' if guess == label else ' ✗'}",
        color=INK if guess == label else RED,
        fontweight="normal" if guess == label else "bold",
        fontsize=11,
    )
    names = [f"{k} (true)" if k == label else str(k) for k in range(len(chances))]
    bars.barh(
        names, chances.tolist(), color=[INK if k == label else BLUE for k in range(len(names))]
    )
    bars.set(xlim=(0, 1), xlabel="probability")
    bars.invert_yaxis()
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def _fitting(notes: Sequence[str], width: float, largest: float = 10.5) -> float:
    """The font size at which every line of the notes, bold and with a cross, is narrow enough."""
    bold = FontProperties(weight="bold")
    lines = {f"{line} ✗" for text in notes for line in text.split("\n") if line}
    widest = max(
        (TextPath((0, 0), s, largest, prop=bold).get_extents().width for s in lines), default=0
    )
    return largest * min(1.0, width / widest) if widest else largest


def _tidy(ax: Axes) -> None:
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)


def _picture(image: Tensor) -> np.ndarray:
    image = image.detach().cpu().float()
    return image[0].numpy() if len(image) == 1 else image.clamp(0, 1).permute(1, 2, 0).numpy()


def rungs(groups: Mapping[str, Mapping[str, Accuracy]]) -> Picture:
    """Accuracies with 95 % intervals, a line per attack and a mark per defense.

    Args:
        groups: defense -> attack -> accuracy. Attacks stand in the order they first appear in.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = Picture(figsize=(6.6, 0.36 * len(names) + 0.9), layout="constrained")
    ax = figure.subplots()
    shift = np.linspace(-0.15, 0.15, len(groups)) if len(groups) > 1 else [0.0]
    for k, (group, points) in enumerate(groups.items()):
        colour, _, marker = _LINES[k % len(_LINES)]
        y = np.array([names.index(name) + shift[k] for name in points])
        x = np.array([point.percent for point in points.values()])
        bounds = np.array([point.interval() for point in points.values()])
        errors = np.clip(np.abs(bounds.T - x), 0, None)
        ax.errorbar(x, y, xerr=errors, color=colour, marker=marker, ls="", capsize=3, label=group)
    ax.set(xlim=(-3, 103), xlabel="read rightly (%)", yticks=range(len(names)))
    ax.set_yticklabels(names)
    ax.invert_yaxis()
    _tidy(ax)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, 1.12), ncols=len(groups))
    return figure


def scatter(points: Mapping[str, tuple[float, Accuracy]], *, xlabel: str) -> Picture:
    """Accuracies with 95 % intervals over a cost, on a logarithmic axis; each has its name beside.

    Args:
        points: name -> cost and accuracy.
        xlabel: what the cost is.
    """
    figure = Picture(figsize=(7.0, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.set(xscale="log", xlabel=xlabel, ylabel="worst case (%)", ylim=(-4, 104))
    high: list[tuple[float, float]] = []  # labels that stand already: log cost and height
    lefts: list[float] = []  # costs of those whose name stands on the left
    for name, (cost, worst) in sorted(points.items(), key=lambda p: (p[1][1].percent, p[1][0])):
        low, top = worst.interval()
        error = [[max(worst.percent - low, 0)], [max(top - worst.percent, 0)]]
        ax.errorbar(cost, worst.percent, error, color=BLUE, ls="", capsize=3, zorder=2)
        ax.plot(cost, worst.percent, color=BLUE, marker="o", ms=6, zorder=4)
        at = max(worst.percent, 0.0)
        while any(abs(np.log10(cost) - c) < 0.75 and abs(at - h) < 5 for c, h in high):
            at += 1.0
        high.append((np.log10(cost), at))
        # An interval just right of this one would lie under the name: then it stands on the left.
        left = any(
            0 < np.log10(other / cost) < 0.4
            and mark.interval()[0] - 2.5 < at < mark.interval()[1] + 2.5
            for other, mark in points.values()
        )
        lefts += [cost] if left else []
        ax.annotate(
            name,
            (cost, worst.percent),
            (cost / 1.12 if left else cost * 1.12, at),
            ha="right" if left else "left",
            va="center",
            fontsize=9.5,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "lw": 0.8, "shrinkB": 3},
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            zorder=3,
        )
    costs = [cost for cost, _ in points.values()]
    crowded = any(cost < 1.5 * min(costs) for cost in lefts)
    ax.set_xlim(min(costs) / (6 if crowded else 1.5), max(costs) * 6)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def checkpoints(steps: int, at: int, *, back: bool) -> Picture:
    """Purification on its way there or back: which images are held, and whose graph.

    Args:
        steps: of the purifier.
        at: the step being taken, from 1.
        back: on the way back, where the step is worked out again, with its graph.
    """
    figure = Picture(figsize=(7.2, 1.9), layout="constrained")
    ax = figure.subplots()
    held = at if back else at + 1
    for k in range(steps + 1):
        full = k < held
        style = {"fc": "#DCE9F5" if full else "white", "ec": BLUE if full else "#BBBBBB"}
        ax.add_patch(FancyBboxPatch((k - 0.22, 0), 0.44, 0.44, boxstyle="round,pad=0.03", **style))
        name = "x" if k == 0 else f"z{k}"
        ax.text(k, 0.22, name, ha="center", va="center", color=INK if full else "#999999")
    for k in range(1, steps + 1):
        now = k == at
        colour = ORANGE if now and back else BLUE if now else "#BBBBBB"
        ends = {"xy": (k - 0.27, 0.22), "xytext": (k - 0.73, 0.22)}
        ax.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": colour, "lw": 2})
        if now and back:
            ends = {"xy": (k - 0.9, -0.22), "xytext": (k - 0.1, -0.22)}
            ax.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": ORANGE, "lw": 2})
            ax.text(k - 0.5, -0.5, "gradient", ha="center", color=ORANGE)
            ax.text(k - 0.5, 0.62, f"step {k} again,\nwith its graph", ha="center", color=ORANGE)
        elif now:
            ax.text(k - 0.5, 0.62, f"step {k},\nno graph", ha="center", color=BLUE)
    ax.set(xlim=(-0.5, steps + 0.5), ylim=(-0.7, 1.25), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return figure


def against(
    x: Sequence[float], lines: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str
) -> Picture:
    """Lines over a common axis, with zero drawn."""
    figure = Picture(figsize=(6.2, 3.0), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color="#BBBBBB", lw=1)
    for k, (name, values) in enumerate(lines.items()):
        colour, style, _ = _LINES[k % len(_LINES)]
        ax.plot(x, values, color=colour, ls=style, lw=1.8, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _tidy(ax)
    return figure


def bars(groups: Mapping[str, Mapping[str, float]], *, xlabel: str) -> Picture:
    """Values to both sides of zero: a line per name, a bar per group."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = Picture(figsize=(6.6, 0.5 * len(names) + 1.0), layout="constrained")
    ax = figure.subplots()
    high = 0.8 / len(groups)
    for k, (group, values) in enumerate(groups.items()):
        y = [names.index(name) + (k - (len(groups) - 1) / 2) * high for name in values]
        ax.barh(y, list(values.values()), 0.9 * high, color=_LINES[k % len(_LINES)][0], label=group)
    ax.axvline(0, color="#888888", lw=1)
    ax.set(xlabel=xlabel, yticks=range(len(names)), yticklabels=names)
    ax.invert_yaxis()
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def shifted(sigma: float, share: float, shift: float) -> Picture:
    """Why a vote under noise cannot be overturned nearby: the worst case along one direction.

    The noise round the image, and round an image ``shift`` away; what is shaded is read as the
    class. Of all sets that hold ``share`` of the noise round the image, a half-space loses most
    when the image moves (Neyman & Pearson's lemma; Cohen et al. 2019, theorem 1).

    Args:
        sigma: of the noise.
        share: of the draws that are read as the class, above one half.
        shift: how far the image is moved, straight to the edge.
    """
    figure = Picture(figsize=(6.6, 2.9), layout="constrained")
    ax = figure.subplots()
    radius = sigma * norm.ppf(share)
    x = np.linspace(-3.2 * sigma, radius + 4.2 * sigma, 400)
    ax.fill_between(x, 0, norm.pdf(x, shift, sigma), where=x <= radius, color="#DCE9F5")
    ax.plot(x, norm.pdf(x, 0, sigma), color=INK, lw=1.2, ls=":", label="noise round the image")
    ax.plot(x, norm.pdf(x, shift, sigma), color=BLUE, lw=1.8, label="round the moved one")
    ax.axvline(radius, color=ORANGE, lw=1.6, ls="--")
    top = norm.pdf(0, 0, sigma)
    ax.text(radius, 1.1 * top, " another class →", color=INK, va="center")
    ax.text(radius, 1.1 * top, "← the class ", color=INK, va="center", ha="right")
    left = norm.cdf((radius - shift) / sigma)
    ax.text(shift, 0.35 * top, f"{100 * left:.0f} %", color=BLUE, ha="center", fontweight="bold")
    ax.set(yticks=[], xlabel="along the direction of the move, in pixel units", ylim=(0, 1.2 * top))
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.86))
    return figure


def certified(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    points: Mapping[str, Mapping[float, Accuracy]] | None = None,
) -> Picture:
    """Certified accuracy over the radius, and beside it what attacks have left.

    Args:
        lines: name -> radii and shares of images in percent that are certified at least so far.
        points: name -> radius -> accuracy under an attack of that radius; in the line's colour.
    """
    figure = Picture(figsize=(6.6, 3.8), layout="constrained")
    ax = figure.subplots()
    for k, (name, (radii, shares)) in enumerate(lines.items()):
        colour, style, marker = _LINES[k % len(_LINES)]
        ax.step(radii, shares, where="post", color=colour, ls=style, lw=1.8, label=name)
        for radius, found in (points or {}).get(name, {}).items():
            low, high = found.interval()
            error = [[max(found.percent - low, 0)], [max(high - found.percent, 0)]]
            ax.errorbar(radius, found.percent, error, color=colour, marker=marker, capsize=3)
    ax.set(xlabel="L2 radius, in pixel units", ylabel="images (%)", ylim=(-3, 103), xlim=(0, None))
    _tidy(ax)
    return figure
