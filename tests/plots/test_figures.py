import pytest
import torch

from apudae import plots
from apudae.core.scores import Accuracy
from apudae.plots.palette import own


def is_png(picture):
    return picture._repr_png_()[:4] == b"\x89PNG"


def test_rungs_stand_in_their_order_one_mark_per_defense():
    groups = {
        "a": {"first": Accuracy(9, 10), "second": Accuracy(5, 10)},
        "b": {"first": Accuracy(8, 10), "third": Accuracy(0, 10)},
    }
    figure = plots.rungs(groups)
    (ax,) = figure.axes
    named = {t.get_text(): t.get_position()[1] for t in ax.texts}
    assert list(named) == ["first", "second", "third"] and ax.yaxis_inverted()
    assert all(0 < k - y < 0.5 for k, y in enumerate(named.values()))  # each above its line
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    assert is_png(figure)


@pytest.mark.parametrize(("at", "back", "held"), [(2, False, 3), (2, True, 2), (5, True, 5)])
def test_a_frame_of_recomputation_fills_what_is_held(at, back, held):
    figure = plots.recomputation(5, at, back=back)
    (ax,) = figure.axes
    filled = [box for box in ax.patches if box.get_facecolor() != (1.0, 1.0, 1.0, 1.0)]
    assert len([box for box in filled if type(box).__name__ == "FancyBboxPatch"]) == held
    words = [text.get_text() for text in ax.texts]
    assert any("again" in word for word in words) == back
    assert is_png(figure)


def test_lines_share_an_axis():
    figure = plots.against([0, 1], {"a": [0, 1], "b": [1, 0]}, xlabel="x", ylabel="y")
    assert len(figure.axes[0].lines) == 3 and is_png(figure)


def test_bars_show_every_value_with_its_sign_in_the_place_of_its_name():
    groups = {"a": {"x": 1.0, "y": -2.0}, "b": {"y": 3.0}}
    (ax,) = plots.bars(groups, xlabel="margin").axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["x", "y"]
    drawn = [(bar.get_width(), round(bar.get_y() + bar.get_height() / 2)) for bar in ax.patches]
    assert drawn == [(1.0, 0), (-2.0, 1), (3.0, 1)]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]


def test_a_scatter_shows_every_accuracy_at_its_cost_and_labels_apart():
    points = {
        "a": (1.0, Accuracy(0, 100)),
        "b": (1.1, Accuracy(0, 100)),
        "direct": (50.0, Accuracy(90, 100)),
    }
    (ax,) = plots.scatter(points, xlabel="cost").axes
    marks = [line for line in ax.lines if line.get_marker() in ("o", "s")]
    assert [(line.get_color(), line.get_marker()) for line in marks[-1:]] == [own("direct")[::2]]
    drawn = {(line.get_xdata()[0], line.get_ydata()[0]) for line in marks}
    assert drawn == {(cost, worst.percent) for cost, worst in points.values()}
    assert ax.get_xscale() == "log"
    labels = {text.get_text(): text.xyann for text in ax.texts}
    assert labels.keys() == points.keys()
    assert abs(labels["a"][1] - labels["b"][1]) >= 5
    sides = {text.get_text(): text.get_ha() for text in ax.texts}
    assert sides == {"a": "right", "b": "left", "direct": "left"}  # b's interval is right of a


@pytest.mark.parametrize(("shift", "left"), [(0.0, "90 %"), (0.6408, "50 %"), (1.5, "4 %")])
def test_at_its_radius_the_vote_is_even(shift, left):
    """σ Φ⁻¹(0.9) = 0.5 · 1.2816; beyond it the class loses."""
    figure = plots.shifted(0.5, 0.9, shift)
    (ax,) = figure.axes
    words = [text.get_text() for text in ax.texts]
    assert words[-1] == left
    (edge,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert edge.get_xdata()[0] == pytest.approx(0.6408, abs=1e-3)
    assert is_png(figure)


def test_certified_curves_have_attacks_beside_them():
    lines = {"a": ([0.0, 1.0], [90.0, 40.0])}
    figure = plots.certified(lines, {"a": {0.5: Accuracy(8, 10)}})
    (ax,) = figure.axes
    assert ax.lines[0].get_drawstyle() == "steps-post"
    assert [list(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "o"] == [
        [0.5, 80.0]
    ]
    assert is_png(figure)


def test_a_walk_shows_the_map_the_image_and_which_class_is_the_true_one():
    figure = plots.walk(
        torch.tensor([[0, 0, 2], [0, 2, 2], [2, 2, 2]]),
        extent=1.5,
        path=torch.tensor([[0.0, 0.0], [0.5, 0.5]]),
        image=torch.zeros(1, 1, 4, 4),
        chances=torch.tensor([0.2, 0.1, 0.7]),
        label=0,
    )
    chart, digit, bars = figure.axes
    assert sorted(text.get_text() for text in chart.texts) == ["0", "2"]
    assert digit.get_xlabel() == "reads 2 ✗"
    assert [tick.get_text() for tick in bars.get_yticklabels()] == ["0 (true)", "1", "2"]
    first, *others = (patch.get_facecolor() for patch in bars.patches)
    assert others[0] == others[1] != first


def test_a_path_on_the_square_has_its_start_and_its_end_marked():
    path = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    (ax,) = plots.field(torch.ones(4, 4), paths={"way": path}).axes
    marked = {line.get_marker(): line.get_xydata()[-1].tolist() for line in ax.lines}
    assert marked["+"] == pytest.approx([0.1, 0.2]) and marked["o"] == pytest.approx([0.5, 0.6])
