"""A page in a real browser, where one is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.browser import CHROMIUM, Browser, open_page
from support.caches import make_cache, make_manifest
from vlsi_cache.report import sample_view, summarize_cache
from vlsi_cache.report.page import CachePage, render_page
from vlsi_cache.report.sample import TurnView

HOSTILE = "</script><img src='https://example.com/x' onerror='alert(1)'>"
CELL = "#sample-1 tbody tr:nth-child(2) td:nth-child(3)"


def panel(browser: Browser) -> str | None:
    """The text of the panel of the first sample, if it is shown."""
    shown: str | None = browser.evaluate(
        "(() => { const panel = document.getElementById('panel-1');"
        " return panel.hidden ? null : panel.textContent; })()"
    )
    return shown


def focused(browser: Browser) -> list[int]:
    """The row and the column of the cell that has the focus."""
    found: list[int] = browser.evaluate(
        "(() => { const cell = document.activeElement;"
        " return [cell.parentNode.sectionRowIndex, cell.cellIndex]; })()"
    )
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> CachePage:
    manifest = make_manifest(k=0, m=12, num_samples=9, samples_per_shard=9)
    cache = make_cache(tmp_path_factory.mktemp("cache"), manifest)
    turns = (TurnView(role="user", parts=(HOSTILE,)),)
    views = [
        sample_view(cache, index, lambda token_id: f"{HOSTILE}{token_id}", turns)
        for index in range(9)
    ]
    longest = sorted(views, key=lambda view: -len(view.tokens))[:2]
    return CachePage(summary=summarize_cache(cache), samples=tuple(longest))


@pytest.fixture(scope="module")
def browser(
    page: CachePage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Browser, Path]]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed, so the page is not opened in a browser")
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(page), encoding="utf-8")
    with open_page(path) as opened:
        yield opened, path


def test_the_browser_asks_for_nothing_and_has_nothing_to_say(
    browser: tuple[Browser, Path],
) -> None:
    opened, path = browser
    opened.load(path)
    assert [url for url in opened.requests if not url.startswith("data:")] == [path.as_uri()]
    assert opened.messages == []
    assert opened.evaluate("document.images.length") == 0


def test_drawn_tokens_stand_apart_from_the_likeliest(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed, so the page is not opened in a browser")
    manifest = make_manifest(k=4, m=12, drawn_from="whole", num_samples=9, samples_per_shard=9)
    cache = make_cache(tmp_path, manifest)
    views = [sample_view(cache, index, str) for index in range(9)]
    view = max(views, key=lambda view: len(view.tokens))
    path = tmp_path / "report.html"
    page = CachePage(summary=summarize_cache(cache), samples=(view,))
    path.write_text(render_page(page), encoding="utf-8")
    with open_page(path) as opened:
        opened.point_at(CELL)
        text = panel(opened)
    assert text is not None
    likely, drawn = text.split("Drawn among all others:")
    entries = view.tokens[1].guesses[1].entries
    for entry in entries[:4]:
        assert f"{entry.text} {round(entry.weight * 100, 1):g} %" in likely
    assert "%" not in drawn
    assert [entry.drawn > 0 for entry in entries] == [False] * 4 + [True] * (len(entries) - 4)
    assert len(entries) > 4
    for entry in entries[4:]:
        assert entry.text + (f" × {entry.drawn}" if entry.drawn > 1 else "") in drawn


def test_the_policy_of_the_page_refuses_what_is_not_its_own(
    browser: tuple[Browser, Path],
) -> None:
    opened, path = browser
    opened.load(path)
    opened.evaluate("document.body.append(Object.assign(new Image(), {src: 'https://a.example/'}))")
    opened.wait_for("Network.loadingFailed")
    assert opened.refusals == ["csp"]


def test_pointing_at_a_cell_shows_its_entries_and_entropy(
    browser: tuple[Browser, Path], page: CachePage
) -> None:
    opened, path = browser
    opened.load(path)
    assert panel(opened) is None
    opened.point_at(CELL)
    guess = page.samples[0].tokens[1].guesses[1]
    text = panel(opened)
    assert text is not None
    assert text.startswith("Token 2, ")
    assert f"tap 6: entropy {guess.entropy_nats:g} nats" in text
    assert text.count(" %") == len(guess.entries)
    assert f"{round(guess.entries[0].weight * 100, 1):g} %" in text
    opened.point_at("h1")
    assert panel(opened) is None


def test_the_arrow_keys_move_and_escape_closes(browser: tuple[Browser, Path]) -> None:
    opened, path = browser
    opened.load(path)
    opened.evaluate("document.querySelector('.tall').focus()")
    opened.press("Tab")
    assert focused(opened) == [0, 1]
    opened.press("ArrowRight")
    opened.press("ArrowDown")
    assert focused(opened) == [1, 2]
    assert (panel(opened) or "").startswith("Token 2, ")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert opened.evaluate(outline) == "solid"
    opened.press("Escape")
    assert panel(opened) is None


def test_the_first_key_leads_past_the_navigation(browser: tuple[Browser, Path]) -> None:
    opened, path = browser
    opened.load(path)
    opened.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    opened.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_width_in_both_themes(
    browser: tuple[Browser, Path], tmp_path: Path, width: int, dark: bool
) -> None:
    opened, path = browser
    opened.appear(width=width, dark=dark)
    opened.load(path)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as shot:
        light = shot.convert("L").getpixel((2, 2))
    assert isinstance(light, int)
    assert (light < 60) == dark
    opened.evaluate("document.getElementById('theme').click()")
    opened.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as shot:
        light = shot.convert("L").getpixel((2, 2))
    assert isinstance(light, int)
    assert (light > 200) == dark
    assert opened.messages == []


@pytest.mark.parametrize("dark", [False, True])
def test_words_on_the_strongest_shade_have_contrast(
    browser: tuple[Browser, Path], dark: bool
) -> None:
    """At least 4.5 to 1, as the Web Content Accessibility Guidelines ask (1.4.3)."""
    opened, path = browser
    opened.appear(width=390, dark=dark)
    opened.load(path)
    opened.evaluate("document.querySelector('.grid td').style.setProperty('--p', 100)")
    ratio = opened.evaluate(
        """(() => {
        const context = document.createElement('canvas').getContext('2d');
        const luminance = (colour) => {
          context.fillStyle = colour;
          context.fillRect(0, 0, 1, 1);
          return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
            .map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
            .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
        };
        const style = getComputedStyle(document.querySelector('.grid td'));
        const [low, high] = [style.color, style.backgroundColor].map(luminance).sort();
        return (Math.max(low, high) + 0.05) / (Math.min(low, high) + 0.05);
        })()"""
    )
    assert ratio >= 4.5
