"""What a report's file holds is checked when it is loaded, whoever has written it."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch
from safetensors.torch import save
from torch import nn

from apudae.core import files, record
from apudae.core.record import provenance
from apudae.evaluation import Budget, evaluate
from apudae.evaluation.report import Finding, Report, Row

SHA = "0" * 64
PRINT = {"sha256": SHA, "answers": ["0.5 -1", "inf 2"]}
SETTINGS = {
    **{"title": "toy", "eps": 0.1, "norm": "linf", "budget": "own", "options": {}},
    **{"own_attacks": [], "curves": True, "seed": 0, "random": True, "quantised": None},
    **{"mask": {"sha256": SHA, "share": 0.5}, "model": PRINT, "data_exact": "float32 [3]"},
    **dict.fromkeys(("data_sha256", "labels_sha256", "index_sha256", "model_sha256"), SHA),
}
NEVER = object()  # a part that is not there


def toy(**changes):
    """A complete report on three images of a model that is random."""
    rows = [
        Row("clean", "input", [0, 20, 0]),
        Row("PGD", "white box", [1, 20, 0], 1.5, 10.0),
        Row("one known draw", "ablation", [3, -1, 0], mebibytes=2.0, fixed=[1, 0]),
        Row("mine", "own", [20, -1, 0]),
    ]
    parts = {"alone": {"clean": [0, 1, 0], "PGD": [1, 1, 0]}, "rescored": [19, 20, 0]}
    parts |= {"curves": {"ε": {"0.0": [0, 20, 0]}, "steps": {"5": [0, 20, 0]}}, "complete": True}
    parts |= {"findings": [Finding("few images", "3 images")], "rows": rows}
    return Report(copy.deepcopy(SETTINGS), 3, 20, **parts | changes)


def whole(**changes):
    return toy(**changes).to_dict() | {"made": provenance(), "schema": 1}


def changed(path, value):
    """A good report's content, of which a part is exchanged, or missing."""
    found = part = whole()
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    if value is NEVER:
        del part[path[-1]]
    return found


def put(folder, content, sealed):
    """Write it as an older version did, or with a digest that fits."""
    if sealed:
        try:
            files.write_json(folder / "e.json", content | {"schema": 2})
        except ValueError:  # a number that no JSON of this package has: it is not even written
            return False
    else:
        (folder / "e.json").write_text(json.dumps(content), "utf-8")
    return True


HUGE = 10**400
WRONG = {
    ("settings", "norm"): ["zz", None, 3, ["linf"], NEVER],
    ("settings", "budget"): ["zz", None, 3, NEVER],
    ("settings", "title"): [None, 3, NEVER],
    ("settings", "eps"): [0, -1, HUGE, "0.1", True, None],
    ("settings", "random"): [3, "yes", False, None],
    ("settings", "seed"): ["a", -1, 0.5, 2**63, True],
    ("settings", "quantised"): ["no", 1],
    ("settings", "curves"): ["no", 0],
    ("settings", "own_attacks"): ["PGD", [1], {"a": 1}],
    ("settings", "options"): [{"zz": 1}, {"pgd": "x"}, {"scoring": 10**9}, {"curve": 2}, None],
    ("settings", "mask"): [{}, {"share": 0.5}, {"sha256": SHA}, {"sha256": 3, "share": 0.5}, "x"],
    ("settings", "mask", "share"): [0, 1, 5, -0.5, "0.5", None, HUGE],
    ("settings", "model"): ["x", {}, {"sha256": SHA}, PRINT | {"sha256": 3}],
    ("settings", "model", "answers"): ["0.5", [3], ["zz"], None],
    ("settings", "data_exact"): [3, []],
    ("settings", "data_sha256"): [3, []],
    ("curves",): [{"zz": {"1": [0, 0, 0]}}, {"ε": {}}, {"ε": [0]}, []],
    ("curves", "ε"): [{k: [0, 0, 0]} for k in ("x", "-1", "nan", "inf", "")],
    ("curves", "ε", "0.0"): [[], [0, 0], [-1, 0, 0], [0, 0, 21], [0, 0, 0.5], None],
    ("rows", 0, "name"): ["other", "PGD", 3, None],
    ("rows", 0, "misread"): [[-1, 0, 0], [0, 0], None],
    ("rows", 1, "misread"): [[1, -1, 0]],
    ("rows", 1, "kind"): ["zz", 3, None],
    ("rows", 0, "seconds"): [HUGE, -1, "1", None],
    ("rows", 0, "fixed"): [[0, 0, 0], [1], None],
    ("rows", 2, "fixed"): [[], [0], [0, 1, 0], [0, 2], [0, -1], [0, True], "01", None],
    ("rows", 3, "name"): ["PGD"],
    ("rows",): [[], None],
    ("rescored",): [[], [0, 0], [0, 0, 21], None],
    ("alone",): [{"zz": [0, 0, 0]}, {"clean": [0, 2, 0]}, []],
    ("findings", 0, "seen"): [3, None, NEVER],
    ("findings", 0, "name"): ["zz", 3, []],
    ("draws",): [1, 2, 0, HUGE],
    ("n",): [2, 4, HUGE],
    ("complete",): [False, 1, None],
    ("made",): [NEVER, [], None, {"apudae": 3}],
}


@pytest.mark.parametrize("path", WRONG, ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("sealed", [False, True])
def test_what_cannot_be_is_refused_at_once_in_a_line_with_the_files_name(tmp_path, path, sealed):
    accepted = []
    for value in WRONG[path]:
        (tmp_path / "e.json").unlink(missing_ok=True)
        if put(tmp_path, changed(path, value), sealed):
            try:
                Report.load("e", tmp_path)
                accepted.append(value)
            except RuntimeError as error:
                assert f"{tmp_path / 'e.json'} is damaged: " in str(error)
                assert "\n" not in str(error)
    assert accepted == []


@pytest.mark.parametrize("sealed", [False, True])
def test_what_can_be_is_taken(tmp_path, sealed):
    """Settings that older versions did not write; no random model; nothing run yet."""
    older = ("mask", "quantised", "model", "data_exact", "own_attacks", "curves", "seed", "random")
    plain = {"draws": 1, "rescored": [], "alone": {}, "curves": {}}
    rows = [Row("clean", "input", [0, 1, 0]), Row("APGD-CE", "white box", [1, -1, 0])]
    rows.append(Row("mine", "own", [-1, -1, 0]))
    begun = {"rows": [], "rescored": [], "complete": False}
    still = {k: v for k, v in SETTINGS.items() if k not in older}
    for content in (
        whole(),
        whole() | {"settings": still},
        whole() | {"settings": SETTINGS | {"random": False}, "rows": []} | plain | begun,
        whole() | {"settings": still, "rows": [vars(row) for row in rows]} | plain,
        whole() | begun,
    ):
        assert put(tmp_path, content, sealed)
        found = Report.load("e", tmp_path)
        assert found.to_dict() == {k: v for k, v in content.items() if k != "schema"}
        assert not found.complete or f"{found}"


def test_an_evaluation_goes_on_from_a_report_without_a_row(tmp_path):
    x, y = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    small = {"pgd": 1, "apgd": 1, "targets": 1, "queries": 1, "draws": 1, "curve": 1}
    options = {"eps": 0.1, "budget": Budget(**small), "progress": False, "record": tmp_path / "e"}
    with pytest.warns(UserWarning, match="few images"):
        first = evaluate(model, x, y, **options)
    begun = Report(first.settings, 4, images=x)
    begun.save("e", tmp_path)
    assert Report.load("e", tmp_path).rows == []
    with pytest.warns(UserWarning, match="few images"):
        again = evaluate(model, x, y, **options)
    assert again.complete and [r.misread for r in again.rows] == [r.misread for r in first.rows]
    assert again.curves == first.curves and torch.equal(again.images, first.images)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"other": torch.zeros(3, 1, 2, 2)}, "'images'"),
        ({"images": torch.zeros(2, 1, 2, 2)}, "images: expected 3"),
        ({"images": torch.zeros(3, 4)}, "images: expected 4 dimensions"),
        ({"images": torch.full((3, 1, 2, 2), 2.0)}, r"images: expected values in \[0, 1\]"),
        ({"images": torch.full((3, 1, 2, 2), torch.nan)}, "images: holds NaN"),
        ({"images": torch.zeros(3, 1, 2, 2, dtype=torch.int32)}, "images: expected floating"),
        (None, "Error while deserializing"),
    ],
)
def test_images_that_are_none_are_refused_by_their_file(parts, message, tmp_path):
    """With a record that knows them, as whoever hands them on could write."""
    content = b"no safetensors" if parts is None else save(parts)
    sha256 = hashlib.sha256(content).hexdigest()
    put(tmp_path, whole() | {"images_sha256": sha256}, sealed=True)
    (tmp_path / files.weights_file("e", sha256)).write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"e-\w+\.safetensors is damaged: .*{message}") as error:
        Report.load("e", tmp_path)
    assert "\n" not in str(error.value)


def test_a_report_that_could_not_be_loaded_again_is_not_saved(tmp_path):
    for changes, name in (
        ({"complete": False}, "rescored"),
        ({"curves": {"zz": {}}}, "curves"),
        ({"rows": []}, "rows"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            toy(**changes, images=torch.zeros(3, 1, 2, 2)).save("e", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    toy(images=torch.zeros(3, 1, 2, 2)).save("e", tmp_path)
    assert Report.load("e", tmp_path).images is not None
    assert record.load("e", tmp_path)["schema"] == 2
