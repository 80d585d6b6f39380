"""What a page shows: pictures, tables, and pictures that move without a kernel."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from itertools import count
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from ..core.arguments import check_count, checked
from ..core.scores import Accuracy, Auc, Difference
from .palette import GREY, INK, PLAIN, Style, own


class Picture(Figure):
    """A matplotlib figure that a notebook shows by itself: no pyplot, no global state.

    Stored as PNG of 256 colours, a third of the usual size, or with a ``quality`` as JPEG, which is
    a tenth as large for photographs.
    """

    quality = 0

    def _repr_png_(self) -> bytes | None:
        if self.quality:
            return None
        image = Image.open(io.BytesIO(self._encoded("png"))).convert("RGB")
        buffer = io.BytesIO()
        image.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
        return buffer.getvalue()

    def _repr_jpeg_(self) -> bytes | None:
        return self._encoded("jpeg", pil_kwargs={"quality": self.quality}) if self.quality else None

    def _encoded(self, kind: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        # Shown at about half of these dots, so that it is sharp on a fine screen.
        self.savefig(buffer, format=kind, dpi=144, **options)
        return buffer.getvalue()

    def address(self) -> str:
        """The picture itself as a ``data:`` URL."""
        kind, whole = "jpeg" if self.quality else "png", self._repr_png_() or self._repr_jpeg_()
        return f"data:image/{kind};base64,{base64.b64encode(whole).decode()}"


@checked
class Table:
    """A table that a notebook and the book show as a table, and a terminal as text.

    Args:
        header: names of the columns.
        rows: cells, turned into text by ``str``.
        text: so many columns hold text and are aligned left, the others right.
    """

    def __init__(
        self, header: Sequence[str], rows: Sequence[Sequence[object]], *, text: int = 1
    ) -> None:
        self.text = check_count(text, "text", minimum=0)
        self.header = [str(cell) for cell in header]
        self.rows = [[str(cell) for cell in row] for row in rows]

    def _repr_markdown_(self) -> str:
        rule = ["---"] * self.text + ["---:"] * (len(self.header) - self.text)
        # A line may break before an interval, not inside it: "89.2 %" and "[87.1, 91.0]".
        header, *rows = ([_glue(cell) for cell in row] for row in (self.header, *self.rows))
        return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in [self.header, *self.rows]
        )


class SortableTable(Table):
    """A table whose rows a click on a header sorts, in the page itself and without a kernel.

    By the first number in a cell, where the column has numbers (the largest first), else by its
    text; a second click turns the order round. What has no number stays at the end.
    """

    def _repr_html_(self) -> str:
        # `this` is the button in the header; each cell carries its number.
        script = (
            "const h=this.closest('th'),t=h.closest('table'),i=h.cellIndex,"
            "n=[...t.tBodies[0].rows].some(r=>r.cells[i].dataset.v),"
            "d=h.getAttribute('aria-sort'),up=d==='none'?!n:d==='descending',"
            "v=r=>r.cells[i].dataset.v;"
            "[...t.tBodies[0].rows].sort((p,q)=>n?(!v(p)-!v(q))||(up?1:-1)*(v(p)-v(q)):"
            "(up?1:-1)*p.cells[i].textContent.localeCompare(q.cells[i].textContent))"
            ".forEach(r=>t.tBodies[0].append(r));"
            "t.querySelectorAll('thead th').forEach(c=>c.setAttribute('aria-sort','none'));"
            "h.setAttribute('aria-sort',up?'ascending':'descending')"
        )
        side = ["left"] * self.text + ["right"] * (len(self.header) - self.text)
        head = "".join(
            f'<th scope="col" aria-sort="none" style="text-align:{where}">'
            f'<button type="button" onclick="{html.escape(script)}">{html.escape(name)}</button>'
            "</th>"
            for name, where in zip(self.header, side, strict=True)
        )
        body = "".join(f"<tr>{self._cells(row, side)}</tr>" for row in self.rows)
        return (
            '<div class="apudae-sortable" tabindex="0" role="region" aria-label="sortable table" '
            f'style="overflow-x:auto"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def _cells(self, row: Sequence[str], side: Sequence[str]) -> str:
        found = []
        for k, (cell, where) in enumerate(zip(row, side, strict=True)):
            number = None if k < self.text else re.search(r"[-+]?\d+(,\d{3})*(\.\d+)?", cell)
            value = f' data-v="{number[0].replace(",", "")}"' if number else ""
            # A line may break before an interval, not inside it.
            shown = re.sub(
                r"(\[[^\]]*\])", r'<span class="apudae-interval">\1</span>', html.escape(cell)
            )
            found.append(self._cell(k, shown, f'style="text-align:{where}"{value}'))
        return "".join(found)

    def _cell(self, place: int, inner: str, attributes: str) -> str:
        """The first one names its row: readers of a screen hear it before the others."""
        kind, scope = ("th", ' scope="row"') if place < min(self.text, 1) else ("td", "")
        return f"<{kind}{scope} {attributes}>{inner}</{kind}>"


@checked
class DotPlot(SortableTable):
    """A table drawn: each value a dot with its interval, and the numbers behind a fold.

    Columns of :class:`~apudae.evaluation.Accuracy` share an axis that ends at 100 % and begins
    below the lowest interval. Columns of differences share one that reaches as far to both sides of
    zero as the furthest interval. All other columns stay as they are. What a defense keeps is drawn
    in its own colour and mark, if it has them.

    Raises:
        ValueError: a column has both accuracies and differences.
    """

    def __init__(
        self, header: Sequence[str], rows: Sequence[Sequence[object]], *, text: int = 1
    ) -> None:
        super().__init__(header, rows, text=text)
        self.dots = [[_dot(cell) for cell in row] for row in rows]
        for name, column in zip(self.header, zip(*self.dots, strict=True), strict=False):
            if len({dot.zero for dot in column if dot}) > 1:
                raise ValueError(f"rows: accuracies and differences in one column, {name!r}")
        drawn = [dot for row in self.dots for dot in row if dot]
        lows = [dot.low for dot in drawn if not dot.zero]
        least = min(10 * math.floor(max(min(lows, default=0), 0) / 10), 90)
        ends = [max(-dot.low, dot.high) for dot in drawn if dot.zero]
        reach = 5 * max(1, math.ceil(max(ends, default=0) / 5))
        self.axes = {False: (least, 100), True: (-reach, reach)}

    def _repr_html_(self) -> str:
        columns = [[dot for dot in column if dot] for column in zip(*self.dots, strict=True)]
        head = "".join(f'<th scope="col" {_CELL}>{html.escape(name)}</th>' for name in self.header)
        scale = "".join(f"<td {_CELL}>{self._scale(dots) if dots else ''}</td>" for dots in columns)
        body = "".join(
            f"<tr>{''.join(map(self._drawn, count(), texts, dots, self._styles(texts)))}</tr>"
            for texts, dots in zip(self.rows, self.dots, strict=True)
        )
        return (
            '<div class="apudae-dots" style="overflow-x:auto"><table><thead>'
            f'<tr>{head}</tr><tr aria-hidden="true">{scale}</tr></thead>'
            f"<tbody>{body}</tbody></table>"
            '<details class="apudae-fold"><summary>The numbers</summary>'
            f"{super()._repr_html_()}</details></div>"
        )

    def _styles(self, row: Sequence[str]) -> list[Style]:
        """Per cell: that of the defense of the column, else of the row."""
        mine = next(filter(None, map(own, row[: self.text])), PLAIN)
        return [own(name) or mine for name in self.header]

    def _at(self, value: float, zero: bool) -> str:
        """Place on the axis; its ends leave room for a mark."""
        first, last = self.axes[zero]
        return f"{4 + 92 * (value - first) / (last - first):.1f}%"

    def _scale(self, dots: Sequence[_Dot]) -> str:
        first, last = self.axes[dots[0].zero]
        ends = (f"\N{MINUS SIGN}{last}", "0", f"+{last}") if first < 0 else (first, "100\xa0%")
        spread = "display:flex;justify-content:space-between;font-size:.78em;opacity:.8"
        spans = "".join(f"<span>{end}</span>" for end in ends)
        return f'<div class="apudae-scale" style="{spread}">{spans}</div>'

    def _drawn(self, place: int, text: str, dot: _Dot | None, style: Style) -> str:
        if dot is None:
            wrap = ";white-space:nowrap" if len(text) <= 18 else ""
            return self._cell(place, html.escape(text), f'{_CELL[:-1]}{wrap}"')
        style = PLAIN if dot.zero else style  # a difference is no defense's
        ink = "currentColor" if style.colour == INK else style.colour
        low, high, middle, *grid = (
            self._at(value, dot.zero)
            for value in (dot.low, dot.high, dot.value, *((0,) if dot.zero else self.axes[False]))
        )
        lines = "".join(
            f'<line x1="{x}" x2="{x}" y1="0" y2="100%" stroke="{GREY}" stroke-opacity=".6"/>'
            for x in grid
        )
        told = html.escape(text)
        return (
            f'<td {_CELL}><svg role="img" aria-label="{told}" width="100%" height="18" '
            f'style="min-width:3.6em;display:block;overflow:visible"><title>{told}'
            f'</title>{lines}<line x1="{low}" x2="{high}" y1="9" y2="9" stroke="{ink}" '
            f'stroke-width="2"/><svg x="{middle}" y="9" overflow="visible"><path '
            f'd="{_MARKS[style.mark]}" fill="{ink}" stroke="currentColor" stroke-width=".6"/>'
            "</svg></svg></td>"
        )


@checked
class Slider:
    """Pictures behind a slider: one range input and a line of script, all in the page itself.

    It needs no kernel, no network and no widget library, works with a keyboard, in the built book,
    in Jupyter and in Colab. Without scripts the first chosen picture is shown.

    Args:
        frames: label -> figure, in the order of the slider.
        name: what the slider changes, such as ``"ε"``.
        alt: what the pictures show, for readers who cannot see them; the label is added.
        caption: under the picture; HTML is allowed.
        start: place of the picture shown first.
    """

    def __init__(
        self,
        frames: Mapping[str, Picture],
        *,
        name: str,
        alt: str,
        caption: str,
        start: int = 0,
    ) -> None:
        if not frames:
            raise ValueError("frames: expected at least one figure, got none")
        self.labels, self.name, self.alt, self.caption = list(frames), name, alt, caption
        self.start = check_count(start, "start", minimum=0, maximum=len(frames) - 1)
        self.pictures = [figure.address() for figure in frames.values()]
        # So wide at least that the labels, 10 points of a figure, are of 11 pixels on a phone.
        self.width = round(80 * max(figure.get_figwidth() for figure in frames.values()))

    def __repr__(self) -> str:
        return f"Slider({self.name}: {', '.join(self.labels)})"

    def _repr_html_(self) -> str:
        images = "".join(
            f'<img src="{picture}" '
            f'alt="{html.escape(f"{self.alt} ({self.name} = {label})")}" '
            f'style="display:{"block" if k == self.start else "none"};margin:auto;'
            f'max-width:max(100%,{self.width}px)">'
            for k, (label, picture) in enumerate(zip(self.labels, self.pictures, strict=True))
        )
        # `this` is the input; the figure's labels travel in a data attribute.
        script = (
            "const f=this.closest('figure'),i=+this.value,t=JSON.parse(f.dataset.labels)[i];"
            "f.querySelectorAll('img').forEach((m,k)=>m.style.display=k===i?'block':'none');"
            "f.querySelector('output').textContent=t;this.setAttribute('aria-valuetext',t)"
        )
        name, first = html.escape(self.name), html.escape(self.labels[self.start])
        order = html.escape("; ".join(self.labels))
        return (
            f'<figure class="apudae-slider" data-wide="{self.width > 560}" '
            f'data-labels="{html.escape(json.dumps(self.labels))}" '
            'style="margin:1em 0"><div style="overflow-x:auto" role="group" tabindex="0" '
            f'aria-label="{name}">{images}</div>'
            # On paper all pictures are shown (book.css), and this line names them.
            f'<div class="apudae-order" style="display:none">{name} = {order}</div>'
            '<label style="display:flex;gap:.8em;align-items:center;margin:.6em auto;'
            f'max-width:34em"><span style="white-space:nowrap">{name} = '
            f'<output style="display:inline-block;min-width:3em;padding:0">{first}</output></span>'
            f'<input type="range" min="0" max="{len(self.labels) - 1}" step="1" '
            f'value="{self.start}" aria-label="{name}" aria-valuetext="{first}" '
            f'style="flex:1;min-width:6em" oninput="{html.escape(script)}"></label>'
            f"<figcaption>{self.caption}</figcaption></figure>"
        )


class _Dot(NamedTuple):
    """On an axis with zero in its middle, or from 0 to 100 %."""

    zero: bool
    value: float
    low: float
    high: float


_CELL = 'style="text-align:left;vertical-align:middle;line-height:1.25;padding:.1em .7em .1em 0"'
_MARKS = {
    "o": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0",
    "s": "M-4-4h8v8h-8z",
    "^": "M0-5 5 4h-10z",
    "D": "M0-5.5 5.5 0 0 5.5-5.5 0z",
    "v": "M0 5 5-4h-10z",
    "X": "M-4-2-2-4 0-2 2-4 4-2 2 0 4 2 2 4 0 2-2 4-4 2-2 0z",
}


def _dot(cell: object) -> _Dot | None:
    if isinstance(cell, Accuracy):
        return _Dot(False, cell.percent, *cell.interval())
    if isinstance(cell, Auc):
        return _Dot(False, *astuple(cell))
    return _Dot(True, *astuple(cell)) if isinstance(cell, Difference) else None


def _glue(cell: str) -> str:
    places = r"(?<=\d) (?=%)|(?<=,) (?=[-+\d.]+\])"
    return re.sub(places, "\N{NO-BREAK SPACE}", cell.replace("|", r"\|"))
