"""How many numbers a reader meets in a chapter before a fold is opened."""

from __future__ import annotations

import re

import pytest
from support import CHAPTERS, notebook

MOST = 60
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
FOLDED = {"hide-output", "hide-cell", "remove-output", "remove-cell"}


def shown(output):
    """Texts of an output that is a table or was printed; without what is behind a fold."""
    data = output.get("data", {})
    if page := data.get("text/html"):
        if "apudae-slider" in page:
            return []
        body = page.split("<details")[0].split("<tbody")[-1]
        rows = [re.findall(r"<t[dh].*?</t[dh]>", row) for row in body.split("<tr>")]
        drawn = r"<title>.*?</title>|<div.*?</div>|<[^>]+>"
        return [re.sub(drawn, "", cell) for row in rows for cell in row[1:]]
    if table := data.get("text/markdown"):
        return [cell for row in table.splitlines()[2:] for cell in row.split("|")[2:]]
    if output.output_type == "stream":
        return [output["text"]]
    return [data["text/plain"]] if data.keys() == {"text/plain"} else []


def visible(cells):
    """Numbers per cell; those of exercises' solutions are behind a fold."""
    folded, found = False, {}
    for place, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            for which in re.findall(r"solution-(start|end)", cell.source):
                folded = which == "start"
        elif not folded and not FOLDED & set(cell.metadata.get("tags", [])):
            texts = [text for output in cell.outputs for text in shown(output)]
            # A number, its interval and its n in brackets are one number to a reader.
            beside = r"\[[-+\d.]+,\s[-+\d.]+\]|\([\d,]+\)"
            found[place] = sum(len(NUMBER.findall(re.sub(beside, "", text))) for text in texts)
    return found


@pytest.mark.parametrize("name", CHAPTERS)
def test_few_numbers_are_visible_before_a_fold_is_opened(name):
    found = visible(notebook(name).cells)
    many = {place: n for place, n in found.items() if n > 5}
    assert sum(found.values()) <= MOST, many


def test_numbers_are_counted():
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

    from apudae import plots
    from apudae.core.scores import Accuracy

    def told(data):
        return new_output("display_data", data=data)

    rows = [["a 5", Accuracy(1, 2), 7]]
    table = {"text/markdown": plots.Table(["", "3", "n"], rows)._repr_markdown_()}
    drawn = {"text/html": plots.DotPlot(["", "3", "n"], rows)._repr_html_()}
    printed = new_output("stream", text="1,000 and -2.5 of x3")
    listed = told({"text/plain": "[1, 2, 3e-05]"})
    cells = [
        new_code_cell("", outputs=[told(table)]),
        new_code_cell("", outputs=[told(drawn)]),
        new_code_cell("", outputs=[printed, listed]),
        new_code_cell("", outputs=[printed], metadata={"tags": ["hide-output"]}),
        new_markdown_cell("{solution-start} x"),
        new_code_cell("", outputs=[printed]),
    ]
    assert visible(cells) == {0: 2, 1: 1, 2: 5}
