"""A table that a click on a header sorts."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from apudae import plots


def test_a_sortable_table_carries_its_numbers():
    table = plots.SortableTable(["who", "right", "n"], [["a | b", "9.5 % [8.0, 11.0]", "–"]])
    page = table._repr_html_()
    assert re.findall(r"<td([^>]*)>", page)[0] == ' style="text-align:right" data-v="9.5"'
    assert page.count("<button") == 3 and page.count('aria-sort="none"') == 3
    assert re.findall(r'<th scope="row"[^>]*>(.*?)</th>', page) == ["a | b"]  # it names its row
    assert "https:" not in page and "http:" not in page
    assert r"a \| b" in table._repr_markdown_()


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_click_on_a_header_sorts(tmp_path):
    """In a browser: numbers from the largest, then round; texts from a; gaps always last."""
    rows = [["b", "9.5 %", "–"], ["a", "99.5 %", "5"], ["c", "0.0 %", "12"]]
    table = plots.SortableTable(["who", "right", "n"], rows)._repr_html_()
    script = """
    const buttons = [...document.querySelectorAll('button')], log = [];
    for (const k of [1, 1, 0, 0, 2, 2]) {
      buttons[k].click();
      const rows = [...document.querySelectorAll('tbody tr')];
      log.push(rows.map(r => r.cells[0].textContent).join(''));
    }
    const sorted = [...document.querySelectorAll('thead th')].map(h => h.getAttribute('aria-sort'));
    document.title = [...log, ...sorted].join(' ');
    """
    page = tmp_path / "table.html"
    page.write_text(f"<body>{table}<script>{script}</script></body>", encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(r"<title>(.*)</title>", shown)[1].split() == (
        ["abc", "cba", "abc", "cba", "cab", "acb", "none", "none", "ascending"]
    )
