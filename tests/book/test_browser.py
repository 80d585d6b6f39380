"""The built pages in a real browser, from ``file://`` and without a network.

They are read as `make book` leaves them in ``_build/html``. Without pages or without Chromium the
tests are skipped, and say so; with ``APUDAE_REQUIRED=1`` that is a failure. A page is opened once,
and all that is asked of every page is looked at then (``Look``).
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from support import missing

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
SHOTS = ROOT / "_build" / "screenshots"
PAGES = sorted(
    "book/" + re.sub(r"\.(ipynb|md)$", "", path.relative_to(ROOT / "book").as_posix()) + ".html"
    for pattern in ("*.ipynb", "*.md")
    for path in (ROOT / "book").rglob(pattern)
    if "assets" not in path.parts
)
LABORATORY = "book/laboratory.html"  # see test_laboratory.py
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# What the theme itself says on every page.
THEME = ("THEBE_JS_URL", "Got invalid theme mode")


class Visit:
    """A page, and what it asked for and complained of."""

    def __init__(self, browser, size, **options) -> None:
        self.context = browser.new_context(viewport=size, offline=True, **options)
        self.page = self.context.new_page()
        self.asked, self.said = [], []
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.on("pageerror", lambda error: self._listen(str(error)))
        self.page.on("console", lambda m: m.type in ("error", "warning") and self._listen(m.text))

    def _listen(self, text: str) -> None:
        self.said += [] if any(part in text for part in THEME) else [text]

    def become_a_phone(self) -> None:
        """As a new context with ``has_touch`` and ``is_mobile`` would do it."""
        browser = self.context.new_cdp_session(self.page)
        screen = PHONE | {"deviceScaleFactor": 1, "mobile": True}
        browser.send("Emulation.setDeviceMetricsOverride", screen)
        browser.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
        self.page.wait_for_function(f"screen.width == {PHONE['width']}")

    def open(self, name: str, root: Path = HTML):
        self.page.goto((root / name).as_uri(), wait_until="load")
        return self.page


@pytest.fixture(scope="module")
def visit(browser):
    opened = []

    def begin(size=DESK, **options):
        opened.append(Visit(browser, size, **options))
        return opened[-1]

    yield begin
    for one in opened:
        one.context.close()


def files(urls: list[str]) -> set[str]:
    return {url.split("#")[0].split("?")[0] for url in urls if url.startswith("file:")}


SHOWN = "f => [...f.querySelectorAll('img')].filter(m => m.offsetHeight > 0).map(m => m.src)"
BROKEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.alt)"
WIDE = """() => [...document.querySelectorAll('article *')].filter(e => {
    const box = e.getBoundingClientRect();
    if (box.right <= innerWidth + 1 || !box.width) return false;
    for (let p = e; p; p = p.parentElement)
        if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)
            && p.getBoundingClientRect().right <= innerWidth + 1) return false;
    return !e.closest('mjx-assistive-mml');
}).map(e => e.outerHTML.slice(0, 100))"""


@dataclass
class Slider:
    """A picture that moves: what each place of the knob shows and says."""

    pictures: list[str]
    shown: list[str]
    labels: list[str]
    after_left: list[str]
    says: str

    @classmethod
    def tried(cls, figure, page):
        knob, shown, labels = figure.query_selector("input"), [], []
        for k in range(int(knob.get_attribute("max")) + 1):
            knob.evaluate("(e, k) => { e.value = k; e.dispatchEvent(new Event('input')) }", k)
            shown += figure.evaluate(SHOWN)
            labels.append(figure.query_selector("output").inner_text())
        knob.focus()
        page.keyboard.press("ArrowLeft")
        pictures = figure.evaluate("f => [...f.querySelectorAll('img')].map(m => m.src)")
        says = knob.get_attribute("aria-valuetext")
        return cls(pictures, shown, labels, figure.evaluate(SHOWN), says)


class Look:
    """One visit to a page: at a desk as it opens, its sliders moved, and then as on a phone."""

    def __init__(self, one: Visit, name: str) -> None:
        page = one.open(name)
        self.asked, self.said = list(one.asked), list(one.said)
        pictures = page.query_selector_all("article img")
        self.undescribed = [
            image.get_attribute("src")[:80]
            for image in pictures
            if not (image.get_attribute("alt") or "").strip()
        ]
        self.broken = page.evaluate(BROKEN)
        formulas = "[...document.querySelectorAll('mjx-merror')].length"
        self.bad_formulas = page.evaluate(formulas)
        self.shut_out = serious(page)
        figures = page.query_selector_all("figure.apudae-slider")
        self.sliders = [Slider.tried(figure, page) for figure in figures]
        one.become_a_phone()
        self.wide = page.evaluate(WIDE)
        self.width = page.evaluate("document.documentElement.scrollWidth")
        knobs = page.query_selector_all(".apudae-slider input")
        self.knobs = [knob.bounding_box() for knob in knobs]


@pytest.fixture(scope="module")
def look(browser):
    """Each page's one visit, made when the first test asks for it."""
    seen = {}

    def at(name) -> Look:
        if name not in seen:
            one = Visit(browser, DESK)
            seen[name] = Look(one, name)
            one.context.close()
        return seen[name]

    return at


@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_no_network_says_no_error_and_describes_its_pictures(name, look):
    page = look(name)
    outside = [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == [], "asked for something outside the book"
    assert page.said == []
    assert page.undescribed == []
    assert page.broken == []
    assert page.bad_formulas == 0
    weight = sum(Path(unquote(urlsplit(url).path)).stat().st_size for url in files(page.asked))
    computes = name == LABORATORY
    assert weight <= (6_000_000 if page.sliders or computes else 2_000_000)


def test_the_licences_of_what_is_served_come_along():
    if not HTML.is_dir():
        missing("the book is not built; run `make book` first")
    for name in (
        "mathjax/LICENSE",
        "laboratory/LICENSE-tfjs",
        "scripts/bootstrap.js.LICENSE.txt",
        "scripts/fontawesome.js.LICENSE.txt",
    ):
        assert (HTML / "_static" / name).stat().st_size > 100, name


@pytest.mark.parametrize("name", [n for n in PAGES if re.match(r"book/(\d|index)", n)])
def test_every_slider_changes_its_picture_by_mouse_and_by_key(name, look):
    sliders = look(name).sliders
    assert sliders
    for slider in sliders:
        # Neighbours may look the same, where a walk has arrived; the first and the last do not.
        assert slider.shown == slider.pictures
        assert len(slider.shown) == len(set(slider.labels)) and slider.shown[0] != slider.shown[-1]
        assert slider.after_left == [slider.shown[-2]]
        assert slider.says == slider.labels[-2]


@pytest.mark.parametrize("name", PAGES)
def test_on_a_phone_nothing_is_wider_than_the_screen(name, look):
    page = look(name)
    assert page.wide == []
    assert page.width <= PHONE["width"]
    for box in page.knobs:
        assert box["width"] >= 90 and box["x"] + box["width"] <= PHONE["width"]


def test_on_a_phone_the_menu_opens_and_leads_on(visit):
    page = visit(PHONE, has_touch=True, is_mobile=True).open("book/01_threat_models.html")
    entry = page.locator(".bd-sidebar-primary a", has_text="An honest evaluation").first
    assert not entry.is_visible()
    page.locator("button.primary-toggle:visible").first.click()
    entry.wait_for(state="visible")
    entry.click()
    page.wait_for_url("**/08_honest_evaluation.html")


def test_the_search_finds_what_a_reader_would_look_for(visit):
    page = visit().page
    page.goto((HTML / "search.html").as_uri() + "?q=BPDA")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    found = " ".join(page.locator("#search-results li").all_inner_texts())
    assert "Adaptive attacks" in found


def test_a_sorted_table_is_sorted(visit):
    page = visit().open("book/09_against_other_defenses.html")
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
    table = page.locator(".apudae-sortable").first
    head = table.locator("th", has_text="PGD").first
    place = head.evaluate("h => h.cellIndex")
    head.locator("button").click()
    values = table.locator("tbody tr").evaluate_all(
        "(rows, k) => rows.map(r => +r.cells[k].dataset.v)", place
    )
    assert values == sorted(values, reverse=True) and len(set(values)) > 3


def test_in_the_dark_and_on_paper_the_text_is_there(visit):
    one = visit(color_scheme="dark")
    page = one.open("book/05_direct_purification.html")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    ground, ink = page.evaluate(
        """() => { const light = c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0);
        const p = getComputedStyle(document.querySelector('article p'));
        return [light(getComputedStyle(document.body).backgroundColor), light(p.color)] }"""
    )
    assert ink - ground > 300
    picture = page.query_selector("article div.cell_output img")
    assert picture.evaluate("i => getComputedStyle(i).backgroundColor") == "rgb(255, 255, 255)"
    other = visit(color_scheme="dark").open("book/09_against_other_defenses.html")
    other.evaluate("document.documentElement.dataset.theme = 'dark'")
    for kind in ("div.apudae-sortable", "div.apudae-dots", "figure.apudae-slider"):
        behind = other.locator(f".text_html:has({kind})").first
        ground = behind.evaluate("e => getComputedStyle(e).backgroundColor")
        assert ground == "rgba(0, 0, 0, 0)", kind  # the page's own dark shows through
    page.emulate_media(media="print")
    assert page.locator("h1", has_text="Direct purification").locator("visible=true").count() == 1
    assert page.locator("article p").first.is_visible()
    assert not page.locator(".bd-sidebar-primary").is_visible()
    assert len(page.pdf()) > 50_000


# --- accessibility -----------------------------------------------------------------------------


def serious(page) -> dict[str, list[str]]:
    """Rule -> elements that break it, of the grave sort."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return {
        rule["id"]: [node["html"][:120] for node in rule["nodes"]]
        for rule in found
        if rule["impact"] in ("serious", "critical")
    }


def ours(found: dict[str, list[str]], themes: set[str]) -> dict[str, list[str]]:
    """What breaks a rule and is not the theme's."""
    left = {rule: [n for n in nodes if n not in themes] for rule, nodes in found.items()}
    return {rule: nodes for rule, nodes in left.items() if nodes}


@pytest.fixture(scope="module")
def themes(look):
    """What the theme brings: seen on the search page and around the list of references."""
    found = [look(name).shut_out for name in ("search.html", "book/reference/bibliography.html")]
    return {node for rules in found for nodes in rules.values() for node in nodes}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_shuts_a_reader_out_beyond_what_the_theme_does(name, look, themes):
    assert ours(look(name).shut_out, themes) == {}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """One page without a word of ours, a bibliography's list apart: what the theme brings."""
    top = tmp_path_factory.mktemp("empty")
    text = "# An empty page\n\nNothing.\n\n```{bibliography}\n:all:\n```\n"
    (top / "page.md").write_text(text)
    (top / "_toc.yml").write_text("format: jb-book\nroot: page\n")
    settings = (ROOT / "_config.yml").read_text()
    settings = settings.replace("laboratory: scripts", f"laboratory: {ROOT}/scripts")
    (top / "_config.yml").write_text(settings.replace(" book/", f" {ROOT}/book/"))
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(top), "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    return top / "_build" / "html"


@pytest.mark.slow
def test_the_theme_brings_it_to_an_empty_page_too(empty, visit, look):
    """So that nothing of ours hides among what is taken for the theme's."""
    rules = serious(visit().open("page.html", empty)).values()
    themes = {node for nodes in rules for node in nodes}
    assert {name: left for name in PAGES if (left := ours(look(name).shut_out, themes))} == {}


# --- links -------------------------------------------------------------------------------------


class Links(HTMLParser):
    """The addresses a page leads to, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs) -> None:
        told = dict(attrs)
        self.anchors |= {told[key] for key in ("id", "name") if told.get(key)}
        if tag == "a" and told.get("href"):
            self.links.append(told["href"])


def test_every_link_within_the_book_arrives():
    if not HTML.is_dir():
        missing("the book is not built; run `make book` first")
    pages = {path: Links(path) for path in HTML.rglob("*.html")}
    assert len(pages) > 20
    lost = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                lost.append((path.name, link))
            elif target == HTML / LABORATORY and "=" in parts.fragment:
                continue  # what it opens there is tried in test_laboratory.py
            elif parts.fragment and target in pages:
                known = unquote(parts.fragment) in pages[target].anchors
                lost += [] if known else [(path.name, link)]
    assert lost == []


# --- pictures of what was built ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["index", "07_adaptive_attacks", "13_a_purifier_that_holds"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_screenshots_are_kept(name, size, visit):
    SHOTS.mkdir(exist_ok=True, parents=True)
    page = visit(size).open(f"book/{name}.html")
    path = SHOTS / f"{name}-{size['width']}.png"
    page.screenshot(path=path)
    assert path.stat().st_size > 20_000


def test_on_a_phone_labels_of_pictures_are_legible(visit):
    """Eleven pixels: at 144 dots an inch a label of 10 points is 20 pixels of a picture."""
    page = visit(PHONE).open("book/01_threat_models.html")
    for picture in page.query_selector_all("article figure img"):
        if not picture.is_visible():
            continue
        shown, natural = picture.evaluate("m => [m.getBoundingClientRect().width, m.naturalWidth]")
        assert 20 * shown / natural >= 10.9, picture.get_attribute("alt")


def test_on_paper_all_pictures_of_a_slider_and_all_numbers_are_there(visit):
    page = visit().open("book/05_direct_purification.html")
    page.emulate_media(media="print")
    slider = page.locator("figure.apudae-slider").first
    pictures = slider.locator("img")
    assert pictures.count() > 2
    assert all(pictures.nth(k).is_visible() for k in range(pictures.count()))
    assert slider.locator(".apudae-order").is_visible() and not slider.locator("input").is_visible()
    numbers = page.locator(".apudae-dots .apudae-fold td").first
    assert numbers.bounding_box()["height"] > 5
