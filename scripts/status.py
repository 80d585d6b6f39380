"""Write the status page from the notebooks: python scripts/status.py (`make run` does it, too)."""

import re
from pathlib import Path

import nbformat

BOOK = Path(__file__).parents[1] / "book"
PAGE = BOOK / "reference" / "status.md"
HEAD = """# Status

When, where and for how long each notebook was last executed. What it printed then is what you see,
and what `pytest --nbval book/` compares with. Seconds are wall-clock seconds on a machine that may
have had other work: a rough guide. All ran in the *quick* profile, on the CPU, without a download.

| notebook | seconds | run on | device | Python | torch | numpy | package |
| --- | ---: | --- | --- | --- | --- | --- | --- |
"""
TOLD = ("date", "device", "python", "torch", "numpy", "apudae")


def page(book: Path = BOOK) -> str:
    """The page's text."""
    rows = []
    for path in sorted(book.rglob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        title = re.search(r"^# (.*)$", text, re.MULTILINE)[1]
        name = path.relative_to(book).with_suffix("").as_posix()
        link = f"[{title}](../{name})".replace("../reference/", "")
        told = notebook.metadata.get("apudae", {})
        cells = [str(told.get(key, "–")) for key in ("seconds", *TOLD)]
        rows.append(f"| {' | '.join([link, *cells])} |")
    return HEAD + "\n".join(rows) + "\n"


def write() -> None:
    """Put it in its place."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write()
