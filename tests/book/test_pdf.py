"""The pages put one behind the other, as `make pdf` prints them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, missing

SCRIPTS = os.environ | {"PYTHONPATH": str(Path(ROOT) / "scripts")}


@pytest.fixture(scope="module")
def whole():
    if not (ROOT / "_build" / "html" / "book" / "index.html").is_file():
        missing("the book is not built; run `make book` first")
    command = [sys.executable, "-X", "utf8", "-c", "import pdf; print(pdf.whole())"]
    return subprocess.run(command, env=SCRIPTS, check=True, capture_output=True).stdout.decode()


def test_links_lead_inside_the_whole_or_to_the_web(whole):
    places = set(re.findall(r'\bid="([^"]*)"', whole))
    links = re.findall(r'<a\b[^>]*\bhref="([^"]*)"', whole)
    inside = {link[1:] for link in links if link.startswith("#")}
    assert len(inside) > 300 and inside - places == set()
    assert [k for k in links if not k.startswith(("#", "http", "mailto"))] == []


def test_all_chapters_are_there_in_order_and_what_is_folded_is_open(whole):
    contents = whole.split("<h1>Contents</h1>")[1].split("</section>")[0]
    numbers = re.findall(r">(\d+)\. ", contents)
    assert numbers == [str(k) for k in range(1, 14)] and "Workshop 5" in contents
    chapters = re.findall(r'<section class="chapter" id="book/(\d\d)_', whole)
    assert chapters == [f"{k:02}" for k in range(1, 14)]
    folds = re.findall(r"<details [^>]*\b(?:apudae-fold|hide)\b[^>]*>", whole)
    assert len(folds) > 30 and all("open" in fold for fold in folds)


def test_the_questions_are_asked_in_their_chapter_and_answered_at_the_end(whole):
    asked, answered = whole.split("<h1>Answers</h1>")
    choices = [
        re.findall(r'<details class="apudae-choice"[^>]*>', part) for part in (asked, answered)
    ]
    assert len(choices[0]) == len(choices[1]) >= 13 * 6
    assert not any("open" in choice for choice in choices[0])
    assert all("open" in choice for choice in choices[1])
    assert answered.count("<h2>") == 13 and "Choose an answer" not in answered


def test_without_a_browser_it_says_so(tmp_path):
    command = [sys.executable, str(Path(ROOT) / "scripts" / "pdf.py")]
    alone = os.environ | {"PATH": str(tmp_path)}
    ended = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "no browser found" in ended.stderr
