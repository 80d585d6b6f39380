"""The frame of the chapters."""

from __future__ import annotations

import ast
import re
import sys
import tomllib

import pytest
from support import BOOK, CHAPTERS, NOTEBOOKS, code, notebook


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_the_whole_frame(name):
    text = "\n".join(cell.source for cell in notebook(name).cells if cell.cell_type == "markdown")
    for part in (
        "In this chapter you will",
        "**You need**",
        "**Time:**",
        "## In this chapter",
        "## References",
        "## Exercises",
        "{cite}`",
    ):
        assert part in text, part
    exercises = re.findall(r"\{exercise-start\}.*\n:label: (\S+)", text)
    solutions = re.findall(r"\{solution(?:-start)?\} (\S+)", text)
    assert len(exercises) >= 3
    assert exercises == solutions
    assert text.count(":class: dropdown") == len(solutions)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_ends_with_what_it_claims_and_three_questions(name):
    text = "\n".join(cell.source for cell in notebook(name).cells if cell.cell_type == "markdown")
    for part in ("**The claim.**", "**The evidence.**", "**What would change our mind.**"):
        assert text.count(part) == 1, part
    asked = text.split("## Three questions")[1].split("## References")[0]
    questions = re.split(r"^\*\*\d\.\*\* ", asked, flags=re.MULTILINE)[1:]
    assert len(questions) == 3
    for question in questions:
        answers = re.findall(r"<details .*><summary>(.+)</summary>(.+)</details>", question)
        assert len(answers) == 3 == question.count("<details")
        verdicts = [why.split(".")[0] for _, why in answers]
        assert verdicts.count("Yes") == 1 and {*verdicts} <= {"Yes", "No", "Not quite"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_anywhere_and_is_small(name):
    chapter = notebook(name)
    assert (BOOK / name).stat().st_size <= 1_000_000
    first = code(chapter)[0]
    assert "colab-setup" in first.metadata["tags"]
    assert "--no-deps" in first.source
    assert len({cell.source for cell in map(lambda n: code(notebook(n))[0], NOTEBOOKS)}) == 1
    for cell in code(chapter):
        assert not re.search(r"""["'](\.\./|\.?/)?(book|tests|apudae)/""", cell.source)
        assert not any(output.output_type == "error" for output in cell.outputs)
        assert cell.execution_count is not None, "not executed"
    lines = [[li for li in cell.source.splitlines() if li.strip()] for cell in code(chapter)]
    assert max(map(len, lines)) <= 22
    assert sum(map(len, lines)) < 15 * len(lines)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_a_picture_that_moves_and_pictures_have_words(name):
    sliders = 0
    for cell in code(notebook(name)):
        for output in cell.outputs:
            page = output.get("data", {}).get("text/html", "")
            sliders += 'class="apudae-slider"' in page
            if {"image/png", "image/jpeg"} & output.get("data", {}).keys():
                described = cell.metadata["mystnb"]
                assert described["figure"]["caption"]
                assert described["image"]["alt"]
    assert sliders >= 1


def words(output):
    """Of an output all but its pictures, whose letters spell anything."""
    data = output.get("data", {})
    texts = [output.get("text", ""), *(v for k, v in data.items() if k.startswith("text/"))]
    return re.sub(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", "", "\n".join(texts))


def test_pictures_are_not_read_as_words():
    picture = '<img src="data:image/png;base64,AAit/sAA==" alt="3 it/s">'
    output = {"text": "a", "data": {"image/png": "it/s", "text/html": picture}}
    assert words(output) == 'a\n<img src="" alt="3 it/s">'


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_compared_outputs_hold_no_times_or_progress(name):
    for cell in code(notebook(name)):
        for output in cell.outputs:
            assert output.get("name") != "stderr"
            assert "it/s" not in words(output)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_line_of_a_stored_table_has_the_same_cells(name):
    for cell in code(notebook(name)):
        for output in cell.outputs:
            lines = output.get("data", {}).get("text/markdown", "").splitlines()
            cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line[:1] == "|"}
            assert len(cells) <= 1, lines[:3]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_imports_only_what_the_package_depends_on(name):
    mine = tomllib.loads((BOOK.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    known = {"apudae", *(re.match(r"\w+", need)[0] for need in mine)} | sys.stdlib_module_names
    for cell in code(notebook(name))[1:]:
        python = re.sub(r"(?m)^(\s*)%pip .*$", r"\1pass", cell.source)
        for node in ast.walk(ast.parse(python)):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= known
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in known
