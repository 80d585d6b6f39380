"""Figures of the chapters on attacks that know the defense, and on guarantees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import FancyBboxPatch
from scipy.stats import norm

from .plots import _LINES, BLUE, INK, ORANGE, Picture, _tidy
from .scores import Accuracy


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
