"""The browser that reads the built pages."""

from __future__ import annotations

import shutil

import pytest
from support import ROOT, missing


@pytest.fixture(scope="module")
def browser():
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
    )
    if not path:
        missing("no Chromium on this machine; on Debian: apt install chromium")
    if not (ROOT / "_build" / "html" / "book" / "index.html").is_file():
        missing("the book is not built; run `make book` first")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()
