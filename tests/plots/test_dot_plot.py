"""A table drawn as dots with intervals, the numbers behind a fold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import CHAPTERS, code, notebook

from apudae import plots
from apudae.core.scores import Accuracy, Auc, Difference
from apudae.plots import palette

HALF = Accuracy(50, 100)


def drawn(page):
    """Per dot: what is told, where it stands, its interval, its ink."""
    cells = re.findall(r"<td [^>]*><svg role.*?</td>", page)
    found = []
    for cell in cells:
        low, high = re.search(r'<line x1="([\d.]+)%" x2="([\d.]+)%" y1="9"', cell).groups()
        at = re.search(r'<svg x="([\d.]+)%"', cell)[1]
        told, ink = re.search(r'aria-label="([^"]*)"', cell)[1], re.search(r'fill="(.*?)"', cell)[1]
        found.append((told, float(at), float(low), float(high), ink))
    return found


def test_a_dot_stands_where_its_number_is():
    area = Auc(75.0, 60.0, 90.0)
    rows = [["a", HALF, Difference(10.0, -20.0, 20.0), area], ["b", Accuracy(0, 100), "–", "–"]]
    page = plots.DotPlot(["who", "right", "gap", "area"], rows)._repr_html_()
    half, gap, auc, none = drawn(page)
    assert half[:2] == (str(HALF), 50.0)
    low, high = HALF.interval()
    assert half[2:4] == pytest.approx((4 + 0.92 * low, 4 + 0.92 * high), abs=0.06)
    assert gap[1:4] == (73.0, 4.0, 96.0)  # the axis runs from -20 to +20
    assert auc[1:4] == pytest.approx((73.0, 59.2, 86.8))
    assert none[1] == 4.0 and "–" in page
    chart = page.split("<details")[0]
    assert re.findall(r'<th scope="row"[^>]*>(.*?)</th>', chart) == ["a", "b"]


def test_the_numbers_are_behind_a_fold_and_in_the_text():
    table = plots.DotPlot(["who", "right"], [["a", HALF]])
    chart, fold = table._repr_html_().split("<details")
    plain = re.sub(r"<[^>]+>", "", re.sub(r"<title>.*?</title>", "", chart))
    assert "50" not in plain and "apudae-sortable" in fold and "50.0 %" in fold
    assert str(HALF) in repr(table) and "50.0" in table._repr_markdown_()


def test_a_defense_has_one_colour_by_column_or_by_row():
    rows = [["direct (200)", HALF, HALF], ["other", HALF, HALF], ["no defense", HALF, HALF]]
    header = ["who", "the purifier", "left"]
    inks = [dot[-1] for dot in drawn(plots.DotPlot(header, rows)._repr_html_())]
    assert inks[1::2] == [palette.BLUE, "currentColor", palette.SLATE]
    assert inks[::2] == [palette.GREEN] * 3


def test_a_column_has_one_axis():
    rows = [["a", HALF], ["b", Difference(1.0, 0.0, 2.0)]]
    with pytest.raises(ValueError, match="in one column, 'right'"):
        plots.DotPlot(["who", "right"], rows)


def test_the_axis_begins_below_what_is_lowest():
    (first, second) = drawn(
        plots.DotPlot(["", "x"], [["a", Accuracy(80, 100)], ["b", HALF]])._repr_html_()
    )
    least = 10 * (HALF.interval()[0] // 10)
    assert first[1] == pytest.approx(4 + 92 * (80 - least) / (100 - least), abs=0.06)
    assert second[1] == pytest.approx(4 + 92 * (50 - least) / (100 - least), abs=0.06)


def test_no_rows_and_differences_of_zero_are_drawn():
    assert "<table>" in plots.DotPlot(["who", "right"], [])._repr_html_()
    (dot,) = drawn(plots.DotPlot(["who", "gap"], [["a", Difference(0, 0, 0)]])._repr_html_())
    assert dot[1:4] == (50.0, 50.0, 50.0)


def test_names_are_escaped():
    page = plots.DotPlot(["<b>", "x"], [["a <i>", HALF]])._repr_html_()
    assert "<b>" not in page and "<i>" not in page


def test_styles_keep_what_belongs_to_a_defense():
    one = palette.styles(["adaptive", "something", "direct", "else"])
    assert one["adaptive"] == palette.OWN["adaptive"] and one["direct"] == palette.OWN["direct"]
    assert len(set(one.values())) == 4  # the others get what is free, and is no defense's
    assert not {one["something"], one["else"]} & set(palette.OWN.values())
    two = palette.styles(["adaptive, chosen", "adaptive, default"])
    assert two["adaptive, chosen"] == palette.OWN["adaptive"] != two["adaptive, default"]
    assert palette.own("directed") is None
    assert len(palette.styles(map(str, range(9)))) == 9


def test_colours_stand_in_one_place():
    """No other file of the package, and no chapter, names a colour by its number."""
    package = Path(plots.__file__).parents[1]
    written = [path.read_text("utf-8") for path in package.rglob("*.py")]
    written += [cell.source for name in CHAPTERS for cell in code(notebook(name))]
    assert sum(bool(re.search(r"[\"'=:]#[0-9A-Fa-f]{3,6}\b", text)) for text in written) == 1
