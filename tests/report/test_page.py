from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from support.caches import make_cache, make_manifest, make_record
from vlsi_cache.report import SampleView, sample_view, summarize_cache
from vlsi_cache.report.page import MAX_PAGE_BYTES, CachePage, render_page
from vlsi_cache.report.sample import Picture, TokenView, TurnView, random_samples
from vlsi_cache.store import Cache, create_cache, open_cache

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>alert(1)</script>",
    "\"'><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eexe\u2066\x1b[2J\x00\u2028",
    "\ud800",
    "&lt;b&gt;",
)
WORDS = ("the", " cat", "\n", "猫", *HOSTILE)


def decode(token_id: int) -> str:
    return WORDS[token_id % len(WORDS)]


class Page(HTMLParser):
    """A page as a parser reads it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = [""]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1], []).append(data)

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def text(self) -> str:
        spoken = (
            text
            for tag, texts in self.texts.items()
            if tag not in ("style", "script")
            for text in texts
        )
        return " ".join(" ".join(spoken).split())


def picture(side: int = 8) -> Picture:
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 99).convert("RGB").save(buffer, "JPEG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return Picture(width=640, height=480, jpeg_base64=encoded)


def page_of(cache: Cache, *samples: str, turns: tuple[TurnView, ...] | None = None) -> CachePage:
    views = tuple(sample_view(cache, sample, decode, turns) for sample in samples)
    return CachePage(summary=summarize_cache(cache), samples=views, chosen=bool(samples))


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    """The page of a cache whose every string is hostile."""
    identity = make_manifest().model_dump()
    evil = "".join(HOSTILE).replace("\ud800", "")
    manifest = make_manifest(
        num_samples=2,
        k=0,
        m=12,
        teacher={**identity["teacher"], "name": evil, "model_type": evil},
        dataset={**identity["dataset"], "source": evil, "num_samples": 2},
        dtype=evil,
    )
    spoken = dataclasses.replace(make_record(manifest, 0, num_tokens=40), sample_id=evil)
    failed = dataclasses.replace(
        make_record(manifest, 1, num_tokens=0), sample_id=evil + "2", failure=evil
    )
    create_cache(tmp_path / "cache", manifest).write_shard(0, [spoken, failed])
    turns = (TurnView(role=evil, parts=("".join(HOSTILE), picture())),)
    return render_page(page_of(open_cache(tmp_path / "cache"), evil, evil + "2", turns=turns))


def test_no_text_of_the_data_becomes_part_of_the_page(hostile: str) -> None:
    page = Page(hostile)
    scripts = page.named("script")
    assert [script.get("type") for script in scripts] == ["application/json", None]
    assert all(set(script) <= {"type", "id"} for script in scripts)
    (image,) = page.named("img")
    assert (image["src"] or "").startswith("data:image/jpeg;base64,")
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    assert not [attributes for _, attributes in page.tags if "src" in attributes][1:]
    assert "49" not in page.text().split("alert")[1]
    assert "</script><img src=x onerror=alert(1)>" in page.text()
    assert "&lt;b&gt;" in page.text()  # shown as it is, not as a tag


def test_no_character_of_the_data_turns_the_direction_or_is_a_control(hostile: str) -> None:
    assert {c for c in hostile if not c.isprintable()} <= {"\n", "\t"}
    assert "\\u202e" in hostile
    assert "\\x1b[2J" in hostile
    assert "\\ud800" in hostile


def test_the_words_of_the_panels_are_json_in_which_no_tag_ends(hostile: str) -> None:
    found = re.search(r'<script type="application/json" id="data-1">(.*?)</script>', hostile)
    assert found is not None
    details = json.loads(found.group(1))
    assert "</script><img␣src=x␣o" in "".join(details["words"])
    for entropy, label, entries in (cell for row in details["cells"] for cell in row):
        assert entropy >= 0 >= label
        assert sum(entries[1::2]) == pytest.approx(100, abs=1)


def test_a_page_may_load_nothing_and_runs_one_script(hostile: str) -> None:
    policy = Page(hostile).named("meta")[1]["content"] or ""
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)
    assert "http" not in re.sub(r"http-equiv", "", hostile)


@pytest.mark.parametrize("k", [0, 4])
def test_a_page_shows_the_figures_of_the_summary(tmp_path: Path, k: int) -> None:
    page = page_of(make_cache(tmp_path, make_manifest(k=k, m=8)), "sample-1", "sample-3")
    text = Page(render_page(page)).text()
    for tap in page.summary.taps:
        assert tap.entropy_quantiles is not None
        assert f"{tap.entropy_nats:.2f} {tap.entropy_quantiles.p05:.2f}" in text
        assert f"{tap.label_log_prob_nats:.2f}" in text
        assert f"{tap.agreement_with_final:.0%}" in text
    assert page.summary.lengths is not None
    assert f"{page.summary.lengths.mean:,.1f} on average" in text
    for figures in (*page.summary.most_certain, *page.summary.least_certain):
        assert f"{figures.entropy_nats:.3f}" in text
    assert "3 of 3 shards are written" in text
    said = "share of the draws" if k == 0 else "Percent: the token's probability."
    assert said in text
    first = page.samples[0].tokens[0].guesses[0]
    assert f"{round(first.probability * 100)}" in text


def test_a_page_says_which_of_a_samples_tokens_the_output_names(tmp_path: Path) -> None:
    page = page_of(make_cache(tmp_path), "sample-1")
    marked = Page(render_page(page)).named("td")
    right = [
        guess.token_id == token.token_id
        for token in page.samples[0].tokens
        for guess in token.guesses
    ]
    cells = [cell for cell in marked if "style" in cell]
    assert [cell.get("class") == "label" for cell in cells] == right
    assert any(right)


def test_a_page_of_an_unfinished_cache_says_first_what_is_missing(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, shards=[0])
    text = render_page(page_of(cache))
    assert "2 of 3 shards are missing (1, 2)" in text
    assert text.index("shards are missing") < text.index("Settings and sizes")
    assert 'max="3" value="1"' in text


def test_a_page_without_shards_has_settings_alone(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, shards=[])
    page = Page(render_page(page_of(cache)))
    assert page.named("svg") == []
    assert random_samples(cache) == []


def test_a_sample_that_failed_has_its_reason(hostile: str) -> None:
    assert "The teacher could not read it" in Page(hostile).text()
    assert "1 samples could not be read" in Page(hostile).text()


def test_a_page_names_the_samples_of_a_sampled_summary(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=30, samples_per_shard=10)
    summary = summarize_cache(make_cache(tmp_path, manifest), max_samples=12)
    text = Page(render_page(CachePage(summary=summary))).text()
    assert "12 samples chosen at random" in text
    assert "two standard errors" in text
    errors = summary.taps[0].standard_errors
    assert errors is not None
    assert f"{summary.taps[0].entropy_nats:.2f} ± {errors.entropy_nats:.2f}" in text


@pytest.mark.parametrize("num_taps", [3, 81])
def test_a_page_stays_small_and_says_what_it_cuts(tmp_path: Path, num_taps: int) -> None:
    taps = (*range(num_taps - 1), -1)
    cache = make_cache(tmp_path, make_manifest(num_samples=2, taps=taps, k=0, m=12))
    view = sample_view(cache, "sample-1", lambda token_id: f"\x1b\u202e{token_id}" * 50)
    many: tuple[TokenView, ...] = (view.tokens * 5000)[:5000]
    turns = (
        TurnView(role="user", parts=("<&\u202e" * 100_000, *[picture(320)] * 8)),
        TurnView(role="assistant", parts=("late",)),
    )
    long = SampleView.model_validate({**dict(view), "tokens": many, "conversation": turns})
    page = CachePage(summary=summarize_cache(cache), samples=(long,) * 50, chosen=True)
    text = render_page(page)
    assert len(text.encode()) < MAX_PAGE_BYTES == 5_000_000
    assert "of 5,000 tokens are shown." in text
    with pytest.raises(ValueError, match="50"):
        render_page(page.model_copy(update={"samples": (long,) * 51}))


def test_every_figure_has_a_name_and_its_table(tmp_path: Path) -> None:
    page = Page(render_page(page_of(make_cache(tmp_path), "sample-1")))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-describedby"):
        named = {attributes[name] for _, attributes in page.tags if name in attributes}
        assert named <= set(ids)
    links = {link["href"] for link in page.named("a")}
    assert links <= {f"#{name}" for name in ids}
    figures = page.named("svg")
    assert len(figures) == 6
    assert all(figure["role"] == "img" and figure["aria-labelledby"] for figure in figures)
    assert len(page.named("details")) == len(figures)
    assert len(page.named("caption")) == len(page.named("table"))
    assert all(cell["scope"] in ("col", "row") for cell in page.named("th"))
    assert [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)] == [
        "h1", "h2", "h2", "h2", "h2", "h2", "h3",
    ]  # fmt: skip
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.named(landmark)) == 1
    assert page.named("html")[0]["lang"] == "en"


def test_the_same_cache_gives_the_same_page(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    assert render_page(page_of(cache, "sample-1")) == render_page(page_of(cache, "sample-1"))


def test_a_few_samples_with_tokens_are_chosen_always_the_same(tmp_path: Path) -> None:
    manifest = make_manifest(num_samples=12, samples_per_shard=4)
    writer = create_cache(tmp_path, manifest)
    for shard in (0, 2):
        records = [make_record(manifest, index) for index in manifest.shard_range(shard)]
        empty = dataclasses.replace(make_record(manifest, 0, num_tokens=0), failure="broken")
        writer.write_shard(shard, [empty, *records[1:]] if shard == 0 else records)
    cache = open_cache(tmp_path)
    chosen = random_samples(cache)
    assert chosen == random_samples(open_cache(tmp_path))
    assert len(set(chosen)) == 4
    assert set(chosen) <= {1, 2, 3, 8, 9, 10, 11}
