"""The built book as one PDF with contents: `make pdf` (needs the machine's own Chromium).

The pages are put one behind the other into one, whose links lead inside it, and printed.
"""

from __future__ import annotations

import html
import shutil
import sys
from pathlib import Path
from urllib.parse import urljoin

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
LEFT_OUT = {"book/laboratory", "book/reference/status"}  # they need a screen, or are of no use


def pages() -> list[str]:
    """Names of the pages, in the order of the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    parts = (entry["file"] for part in toc["parts"] for entry in part["chapters"])
    return [name for name in (toc["root"], *parts) if name not in LEFT_OUT]


def article(name: str, known: set[str]) -> tuple[Tag, str]:
    """A page's text with links that lead inside the whole, and its title."""
    soup = BeautifulSoup((HTML / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
    found = soup.find("article")
    for useless in found.select(".headerlink, .prev-next-footer, script:not([type])"):
        useless.decompose()
    for tag in found.find_all(id=True):
        if tag["id"] != "cheat-sheet":  # whose style has it by this name
            tag["id"] = f"{name}:{tag['id']}"
    for fold in found.select("details.apudae-fold, details.hide"):
        fold["open"] = ""
    for link in found.find_all("a", href=True):
        page, _, place = urljoin(f"{name}.html", link["href"]).partition("#")
        page = page.removesuffix(".html")
        if page in known:
            link["href"] = f"#{page}:{place}" if place else f"#{page}"
        elif not link["href"].startswith(("http", "mailto")):
            link.unwrap()  # it leads out of what is printed
    for tag in found.find_all(src=True):
        if not tag["src"].startswith("data:"):
            tag["src"] = urljoin(f"{name}.html", tag["src"])
    whole = soup.new_tag("section", id=name, attrs={"class": "chapter"})
    whole.append(found.extract())
    return whole, html.escape(found.find("h1").get_text().strip())


def answers(found: list[tuple[Tag, str]]) -> str:
    """A last chapter: the questions of each with what is said of every answer to choose from."""
    parts = []
    for part, title in found:
        questions = part.find("section", id=lambda name: name and name.endswith(":three-questions"))
        if questions:
            copied = BeautifulSoup(str(questions), "html.parser").section
            copied.h2.string = html.unescape(title)
            for answer in copied.select("details"):
                answer["open"] = ""
            parts.append(copied.decode_contents())
    whole = "".join(parts).replace("<p>Choose an answer: each one opens.</p>", "")
    return f"<section class='chapter' id='answers'><h1>Answers</h1>{whole}</section>"


def whole() -> str:
    """All pages as one: the first, the contents, the others, and the answers to their questions."""
    names = pages()
    frame = BeautifulSoup((HTML / f"{names[0]}.html").read_text(encoding="utf-8"), "html.parser")
    for tag, key in [(t, k) for k in ("src", "href") for t in frame.head.find_all(attrs={k: True})]:
        tag[key] = urljoin(f"{names[0]}.html", tag[key])
    found = [article(name, set(names)) for name in names]
    items = "".join(
        f'<li><a href="#{name}">{title}</a></li>'
        for name, (_, title) in zip(names[1:], found[1:], strict=True)
    )
    items += '<li><a href="#answers">Answers</a></li>'
    contents = f"<section class='chapter'><h1>Contents</h1><ul>{items}</ul></section>"
    frame.body.clear()
    frame.body["class"] = "bd-article"
    ours = [BeautifulSoup(text, "html.parser") for text in (contents, answers(found))]
    for part in (found[0][0], ours[0], *(p for p, _ in found[1:]), ours[1]):
        frame.body.append(part)
    style = ".chapter + .chapter { break-before: page } body { padding: 0 } .toggle { opacity: 1 }"
    frame.head.append(BeautifulSoup(f"<style>{style}</style>", "html.parser"))
    return str(frame)


def printed(single: Path, browser: str) -> None:
    """Print a page, once its formulas are set."""
    out = HTML.parent / "book.pdf"
    with sync_playwright() as play:
        window = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = window.new_page()
        page.goto(single.as_uri(), wait_until="load", timeout=300_000)
        page.wait_for_function("!!window.MathJax?.startup?.promise", timeout=60_000)
        page.evaluate("() => MathJax.startup.promise.then(() => true)")
        margin = dict.fromkeys(("top", "bottom", "left", "right"), "16mm")
        number = '<div style="font-size:8px;width:100%;text-align:center" class="pageNumber"></div>'
        options = {"outline": True, "tagged": True, "print_background": True, "margin": margin}
        options |= {"display_header_footer": True, "header_template": "<i></i>"}
        page.pdf(path=out, format="A4", scale=0.8, footer_template=number, **options)
        window.close()
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Write the PDF beside the pages."""
    names = ("chromium", "chromium-browser", "google-chrome", *sys.argv[1:])
    browser = next(filter(None, map(shutil.which, reversed(names))), None)
    if browser is None:
        raise SystemExit(f"no browser found: none of {', '.join(names)}; name one: CHROMIUM=path")
    single = HTML / "whole.html"
    try:
        single.write_text(whole(), encoding="utf-8")
        printed(single, browser)
    finally:
        single.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
