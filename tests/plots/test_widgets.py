import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch

from apudae import plots
from apudae.core.scores import Accuracy


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def slider():
    frames = {
        label: plots.image_grid({"image": torch.rand(2, 1, 4, 4)}) for label in ("0", "½", "1")
    }
    return plots.Slider(frames, name="<ε>", alt='a "digit"', caption="A <b>caption</b>.", start=1)


def test_a_slider_is_complete_in_itself(slider):
    page = slider._repr_html_()
    elements = Elements(page)
    images = elements.all("img")
    assert len(images) == 3
    assert all(image["src"].startswith("data:image/png;base64,iVBOR") for image in images)
    assert [image["alt"] for image in images] == [f'a "digit" (<ε> = {k})' for k in ("0", "½", "1")]
    assert [re.match("display:(.*?);", image["style"])[1] for image in images] == [
        "none",
        "block",
        "none",
    ]
    (control,) = elements.all("input")
    assert (control["min"], control["max"], control["value"]) == ("0", "2", "1")
    assert control["aria-label"] == "<ε>"
    assert json.loads(elements.all("figure")[0]["data-labels"]) == ["0", "½", "1"]
    assert not re.search(r"https?://", page)  # nothing is fetched
    assert "<b>caption</b>" in page and "&lt;ε&gt; = 0; ½; 1</div>" in page  # for paper
    assert "<script" not in html.unescape(page)


def test_photographs_are_stored_as_jpeg_and_digits_as_png():
    pictures = {"image": torch.rand(2, 3, 64, 64)}
    plain, photograph = plots.image_grid(pictures), plots.image_grid(pictures, quality=80)
    assert plain._repr_jpeg_() is None and photograph._repr_png_() is None
    assert photograph._repr_jpeg_().startswith(b"\xff\xd8")
    page = plots.Slider({"0": photograph}, name="step", alt="two", caption="")._repr_html_()
    assert "data:image/jpeg;base64,/9j/" in page
    assert len(page) < len(plain.address())


def test_a_slider_without_frames_is_refused():
    with pytest.raises(ValueError, match="frames: expected at least one figure"):
        plots.Slider({}, name="ε", alt="", caption="")


def test_a_table_is_markdown_and_text():
    table = plots.Table(["a", "b"], [["x", Accuracy(1, 2)], ["long name", 3]])
    assert table._repr_markdown_().splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x | 50.0\N{NO-BREAK SPACE}% [9.5,\N{NO-BREAK SPACE}90.5] |",
        "| long name | 3 |",
    ]
    assert repr(table).splitlines()[2] == "long name  3"
    formula = plots.Table(["a", "|w|"], [["x", "|z| < 1"]], text=2)._repr_markdown_()
    assert formula.splitlines() == [r"| a | \|w\| |", "| --- | --- |", r"| x | \|z\| < 1 |"]


def test_mistakes_are_marked_by_more_than_colour():
    figure = plots.image_grid(
        {"image": torch.rand(2, 1, 4, 4)}, {"image": ["7", "8"]}, {"image": [False, True]}
    )
    right, wrong = (ax.xaxis.label for ax in figure.axes)
    assert (right.get_text(), wrong.get_text()) == ("7", "8 ✗")
    assert right.get_fontweight() != wrong.get_fontweight()


def test_grids_take_colour_and_rows_of_different_length():
    figure = plots.image_grid({"a": torch.rand(3, 3, 4, 4), "b": torch.rand(1, 1, 4, 4)})
    assert len(figure.axes) == 6
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 1, 0, 0]


def test_curves_show_the_points_and_their_intervals():
    points = {0.0: Accuracy(99, 100), 0.3: Accuracy(0, 100)}
    figure = plots.curves({"attack": points}, xlabel="ε")
    line, *_ = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[0.0, 99.0], [0.3, 0.0]]
    low, high = points[0.0].interval()
    (segments,) = figure.axes[0].collections[0].get_segments()[:1]
    assert sorted(segments[:, 1].tolist()) == pytest.approx([low, high])


def test_lines_start_where_they_are_told():
    figure = plots.losses({"a": [3, 2, 1]}, first=0)
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0, 1, 2]


def test_long_notes_do_not_run_into_each_other():
    names = ["automobile"] * 6
    wrong = {"a": [True] * 6}
    figure = plots.image_grid({"a": torch.rand(6, 3, 4, 4)}, {"a": names}, wrong, size=1.0)
    figure.draw_without_rendering()
    boxes = [ax.xaxis.label.get_window_extent() for ax in figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    short = plots.image_grid({"a": torch.rand(6, 3, 4, 4)}, {"a": ["3"] * 6}, wrong, size=1.0)
    assert short.axes[0].xaxis.label.get_fontsize() == 10.5
