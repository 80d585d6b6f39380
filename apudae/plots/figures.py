"""The charts of the book: each function returns a picture that a notebook shows by itself.

- lines: :func:`curves`, :func:`losses`, :func:`roc`, :func:`against`, :func:`certified`
- other charts: :func:`histograms`, :func:`rungs`, :func:`scatter`, :func:`bars`
- illustrations: :func:`field` of two pixels, :func:`shifted` noise, a purifier's
  :func:`recomputation`
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import patches
from matplotlib.axes import Axes
from torch import Tensor

from ..core.arguments import check_count, check_number, checked
from ..core.scores import Accuracy
from .palette import BLUE, GREY, INK, ORANGE, PALE, PLAIN, RED, SLATE, Style, own, styles
from .widgets import Picture

_NO_Y = ("top", "right", "left")  # lines of the frame that are left out
_WIDTH = 4.4  # inches: as wide as a phone, if labels of 10 points are to be legible there
_ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}


@checked
def curves(
    lines: Mapping[str, Mapping[float, Accuracy]], *, xlabel: str, ylabel: str = "accuracy (%)"
) -> Picture:
    """Accuracy against ε (or anything else), with 95 % intervals and direct labels."""
    ax = _chart(_WIDTH, 3.2)
    for name, points, (colour, style, marker) in _styled(lines):
        look = {"color": colour, "ls": style, "marker": marker, "ms": 5, "lw": 1.8, "capsize": 3}
        ax.errorbar(list(points), *_with_errors(points.values()), label=name, **look)
    return finished(ax, xlabel=xlabel, ylabel=ylabel, ylim=(-3, 103))


@checked
def losses(
    lines: Mapping[str, Sequence[float]],
    *,
    xlabel: str = "epoch",
    ylabel: str = "loss",
    first: int = 1,
) -> Picture:
    """Values per epoch or step, counted from ``first``."""
    ax = _chart(_WIDTH, 2.6)
    ax.xaxis.get_major_locator().set_params(integer=True)
    steps = {name: (range(first, first + len(y)), y) for name, y in lines.items()}
    return _drawn(ax, steps, xlabel=xlabel, ylabel=ylabel)


@checked
def histograms(samples: Mapping[str, Sequence[float]], *, xlabel: str) -> Picture:
    """Outlined histograms of several samples on common bins."""
    ax = _chart(_WIDTH, 2.8)
    bins = np.linspace(0, max(max(values) for values in samples.values()), 60)
    for name, values, (colour, style, _) in _styled(samples):
        ax.hist(values, bins, histtype="step", color=colour, ls=style, lw=1.6, label=name)
    return finished(ax, xlabel=xlabel, ylabel="images")


@checked
def roc(lines: Mapping[str, tuple[Tensor, Tensor]]) -> Picture:
    """Detections against false alarms, from :func:`apudae.evaluation.roc`."""
    ax = _chart(_WIDTH, 3.8)
    ax.plot([0, 100], [0, 100], color=SLATE, lw=1)
    percents = {name: (100 * false, 100 * true) for name, (false, true) in lines.items()}
    labels = {"xlabel": "false alarms on clean images (%)", "ylabel": "attacked images found (%)"}
    return _drawn(ax, percents, **labels)


@checked
def field(
    density: Tensor,
    *,
    arrows: tuple[Tensor, Tensor] | None = None,
    paths: Mapping[str, Tensor] | None = None,
    curves: Mapping[str, Tensor] | None = None,
) -> Picture:
    """The square [0, 1]², shaded where images are likely, with arrows, paths or a curve on it.

    Args:
        density: ``[R, R]``, any scale; the first row is the lowest.
        arrows: positions ``[K, 2]`` and directions ``[K, 2]``.
        paths: name -> points ``[T, 2]``, or those of several paths ``[K, T, 2]``; ends are marked.
        curves: name -> points ``[T, 2]`` of a closed line, drawn thin.
    """
    ax = _chart(_WIDTH, 4.6)
    ax.imshow(density.numpy(), cmap="Greys", origin="lower", extent=(0, 1, 0, 1), alpha=0.6)
    for k, (name, points) in enumerate((curves or {}).items()):
        look = ((RED, "-"), (INK, ":"))[k % 2]
        ax.plot(*points.T.tolist(), color=look[0], ls=look[1], lw=1.3, label=name)
    if arrows is not None:
        places, directions = (part.T.tolist() for part in arrows)
        ax.quiver(*places, *directions, color=BLUE, angles="xy", width=0.004)
    for name, points, (colour, style, marker) in _styled(paths or {}):
        for way in points.view(-1, *points.shape[-2:]):
            (line,) = ax.plot(*way.T.tolist(), color=colour, ls=style, lw=1.6)
            ax.plot(*way[0].tolist(), color=INK, marker="+", ms=9, mew=1.5)
            # Hollow, so that two that end in one place are both seen.
            ax.plot(*way[-1].tolist(), color=colour, marker=marker, ms=8, mfc="none", mew=1.8)
        line.set_label(name)
    square = {"xlim": (0, 1), "ylim": (0, 1), "aspect": "equal"}
    labels = {"xlabel": "first pixel", "ylabel": "second pixel"}
    return finished(ax, grid=False, hidden=(), legend=_ABOVE, **square, **labels)


@checked
def rungs(groups: Mapping[str, Mapping[str, Accuracy]]) -> Picture:
    """Accuracies with 95 % intervals: a line per attack, its name above it, a mark per defense.

    Args:
        groups: defense -> attack -> accuracy. Attacks stand in the order they first appear in.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    ax = _chart(_WIDTH, 0.46 * len(names) + 0.5 + 0.2 * len(groups))
    shifts = np.linspace(-0.12, 0.12, len(groups)) if len(groups) > 1 else [0.0]
    for shift, (group, points, (colour, _, marker)) in zip(shifts, _styled(groups), strict=True):
        y = [names.index(name) + shift for name in points]
        x, errors = _with_errors(points.values())
        ax.errorbar(x, y, xerr=errors, color=colour, marker=marker, ls="", capsize=3, label=group)
    for k, name in enumerate(names):
        ax.axhline(k, color=GREY, lw=0.5, zorder=0)
        ax.text(-2, k - 0.24, name, ha="left", va="bottom", fontsize=9.5, color=INK)
    limits = {"xlim": (-3, 103), "ylim": (len(names) - 0.6, -0.8), "yticks": []}
    return finished(ax, hidden=_NO_Y, legend=_ABOVE, xlabel="read rightly (%)", **limits)


@checked
def scatter(points: Mapping[str, tuple[float, Accuracy]], *, xlabel: str) -> Picture:
    """Accuracies with 95 % intervals over a cost, on a logarithmic axis; each has its name beside.

    A defense that has a colour and mark of its own is drawn in these.

    Args:
        points: name -> cost and accuracy.
        xlabel: what the cost is.
    """
    ax = _chart(7.0, 4.4)
    high: list[tuple[float, float]] = []  # labels that stand already: log cost and height
    lefts: list[float] = []  # costs of those whose name stands on the left
    for name, (cost, worst) in sorted(points.items(), key=lambda p: (p[1][1].percent, p[1][0])):
        style = own(name) or PLAIN
        ax.errorbar(cost, *_with_errors([worst]), color=style.colour, ls="", capsize=3, zorder=2)
        ax.plot(cost, worst.percent, color=style.colour, marker=style.mark, ms=6, zorder=4)
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
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.8, "shrinkB": 3},
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            zorder=3,
        )
    costs = [cost for cost, _ in points.values()]
    crowded = any(cost < 1.5 * min(costs) for cost in lefts)
    xlim = (min(costs) / (6 if crowded else 1.5), max(costs) * 6)
    axes = {"xscale": "log", "xlim": xlim, "ylim": (-4, 104)}
    return finished(ax, grid=False, xlabel=xlabel, ylabel="worst case (%)", **axes)


@checked
def recomputation(steps: int, at: int, *, back: bool) -> Picture:
    """Purification on its way there or back: which images are held, and whose graph.

    Args:
        steps: of the purifier.
        at: the step being taken, from 1.
        back: on the way back, where the step is worked out again, with its graph.
    """
    check_count(steps, "steps")
    check_count(at, "at", maximum=steps)
    ax = _chart(7.2, 1.9)
    held = at if back else at + 1
    for k in range(steps + 1):
        fc, ec, ink = (PALE, BLUE, INK) if k < held else ("white", GREY, SLATE)
        box = {"boxstyle": "round,pad=0.03", "fc": fc, "ec": ec}
        ax.add_patch(patches.FancyBboxPatch((k - 0.22, 0), 0.44, 0.44, **box))
        ax.text(k, 0.22, f"z{k}" if k else "x", ha="center", va="center", color=ink)
    colour = ORANGE if back else BLUE

    def arrow(start: float, end: float, height: float, colour: str) -> None:
        look = {"arrowstyle": "->", "color": colour, "lw": 2}
        ax.annotate("", xy=(end, height), xytext=(start, height), arrowprops=look)

    for k in range(1, steps + 1):
        arrow(k - 0.73, k - 0.27, 0.22, colour if k == at else GREY)
    name = f"step {at} again,\nwith its graph" if back else f"step {at},\nno graph"
    ax.text(at - 0.5, 0.62, name, ha="center", color=colour)
    if back:
        arrow(at - 0.1, at - 0.9, -0.22, colour)
        ax.text(at - 0.5, -0.5, "gradient", ha="center", color=colour)
    limits = {"xlim": (-0.5, steps + 0.5), "ylim": (-0.7, 1.25)}
    return finished(ax, grid=False, frame_on=False, xticks=[], yticks=[], **limits)


@checked
def against(
    x: Sequence[float], lines: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str
) -> Picture:
    """Lines over a common axis, with zero drawn."""
    ax = _chart(_WIDTH, 2.8)
    ax.axhline(0, color=GREY, lw=1)
    return _drawn(ax, {name: (x, y) for name, y in lines.items()}, xlabel=xlabel, ylabel=ylabel)


@checked
def bars(groups: Mapping[str, Mapping[str, float]], *, xlabel: str) -> Picture:
    """Values to both sides of zero: a line per name, a bar per group."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    ax = _chart(_WIDTH, 0.5 * len(names) + 1.2)
    high = 0.8 / len(groups)
    for k, (group, values, (colour, *_)) in enumerate(_styled(groups)):
        y = [names.index(name) + (k - (len(groups) - 1) / 2) * high for name in values]
        ax.barh(y, list(values.values()), 0.9 * high, color=colour, label=group)
    ax.axvline(0, color=SLATE, lw=1)
    ax.tick_params(axis="y", length=0)
    return finished(ax, names, grid=False, hidden=_NO_Y, legend=_ABOVE, xlabel=xlabel)


@checked
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
    from scipy.stats import norm  # slow to import, and only this figure needs it

    check_number(sigma, "sigma", exclusive=True)
    check_number(share, "share", exclusive=True, below=1)
    check_number(shift, "shift")
    ax = _chart(_WIDTH, 2.9)
    radius = sigma * norm.ppf(share)
    x = np.linspace(-3.2 * sigma, radius + 4.2 * sigma, 400)
    ax.fill_between(x, 0, norm.pdf(x, shift, sigma), where=x <= radius, color=PALE)
    ax.plot(x, norm.pdf(x, 0, sigma), color=INK, lw=1.2, ls=":", label="noise round the image")
    ax.plot(x, norm.pdf(x, shift, sigma), color=BLUE, lw=1.8, label="round the moved one")
    ax.axvline(radius, color=ORANGE, lw=1.6, ls="--")
    top = norm.pdf(0, 0, sigma)
    ax.text(radius, 1.1 * top, " another class →", color=INK, va="center")
    ax.text(radius, 1.1 * top, "← the class ", color=INK, va="center", ha="right")
    left = norm.cdf((radius - shift) / sigma)
    inside = min(shift, radius - 0.75 * sigma)  # where it is shaded
    ax.text(inside, 0.35 * top, f"{100 * left:.0f} %", color=BLUE, ha="center", fontweight="bold")
    shown = {"xlabel": "along the direction of the move, in pixel units", "ylim": (0, 1.2 * top)}
    return finished(ax, grid=False, hidden=_NO_Y, legend=_ABOVE, yticks=[], **shown)


@checked
def certified(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    points: Mapping[str, Mapping[float, Accuracy]] | None = None,
) -> Picture:
    """Certified accuracy over the radius, and beside it what attacks have left.

    Args:
        lines: name -> radii and shares of images in percent that are certified at least so far.
        points: name -> radius -> accuracy under an attack of that radius; in the line's colour.
    """
    ax = _chart(_WIDTH, 3.4)
    for name, (radii, shares), (colour, style, marker) in _styled(lines):
        ax.step(radii, shares, where="post", color=colour, ls=style, lw=1.8, label=name)
        for radius, found in (points or {}).get(name, {}).items():
            ax.errorbar(radius, *_with_errors([found]), color=colour, marker=marker, capsize=3)
    labels = {"xlabel": "L2 radius, in pixel units", "ylabel": "images (%)"}
    return finished(ax, xlim=(0, None), ylim=(-3, 103), **labels)


def _chart(width: float, height: float) -> Axes:
    ax = Picture(figsize=(width, height), layout="constrained").subplots()
    ax.xaxis.get_major_locator().set_params(nbins=6)
    return ax


def _styled(lines: Mapping[str, Any]) -> Iterator[tuple[str, Any, Style]]:
    """Names and values, with a colour, dashes and a mark for each."""
    for name, style in styles(lines).items():
        yield name, lines[name], style


def _drawn(ax: Axes, lines: Mapping[str, tuple[Any, Any]], **settings: object) -> Picture:
    for name, (x, y), (colour, style, _) in _styled(lines):
        ax.plot(x, y, color=colour, ls=style, lw=1.8, label=name)
    return finished(ax, **settings)


def finished(
    ax: Axes,
    rows: Sequence[str] = (),
    *,
    grid: bool = True,
    hidden: Sequence[str] = ("top", "right"),
    legend: Mapping[str, object] | None = None,
    **settings: object,
) -> Picture:
    """What figures have in common at the end; ``rows`` are names down the axis of heights."""
    if rows:
        ax.set(yticks=range(len(rows)), yticklabels=rows)
        ax.invert_yaxis()
    ax.set(**settings)
    if grid:
        ax.grid(alpha=0.25)
    for side in hidden:
        ax.spines[side].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, **(legend or {}))
    return ax.figure


def _with_errors(points: Collection[Accuracy]) -> tuple[np.ndarray, np.ndarray]:
    """Percents ``[K]``, and how far their intervals reach below and above, ``[2, K]``."""
    percents = np.array([point.percent for point in points])
    bounds = np.array([point.interval() for point in points])
    return percents, np.abs(bounds.T - percents)
