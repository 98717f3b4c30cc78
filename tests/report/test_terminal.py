from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from support.caches import FAILED, make_cache, make_manifest, write_part
from vlsi_cache.errors import CacheError
from vlsi_cache.report import (
    SampleView,
    sample_table,
    sample_view,
    summarize_cache,
    summary_table,
)
from vlsi_cache.report.page import CachePage, render_page
from vlsi_cache.report.sample import Picture, TurnView
from vlsi_cache.report.terminal import _FEW_CAPTION
from vlsi_cache.store import open_cache

WORDS = ("the", " cat", "\n", "[red]", " ", "<|im_end|>", "", "猫")
DEEP = (*range(2, 79, 4), -1)


def decode(token_id: int) -> str:
    return WORDS[token_id % len(WORDS)]


def render(renderable: RenderableType) -> list[str]:
    console = Console(width=80, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("taps", [(2, 6, -1), DEEP])
def test_a_summary_has_a_line_per_tap_within_80_columns(
    tmp_path: Path, taps: tuple[int, ...]
) -> None:
    lines = render(summary_table(summarize_cache(make_cache(tmp_path, make_manifest(taps=taps)))))
    assert max(map(len, lines)) <= 80
    firsts = [line.split()[0] for line in lines if "%" in line]
    assert firsts == [*map(str, taps[:-1]), "output"]
    assert "complete" in "\n".join(lines)


def test_a_summary_of_an_incomplete_cache_counts_its_shards(tmp_path: Path) -> None:
    text = "\n".join(render(summary_table(summarize_cache(make_cache(tmp_path, shards=[0])))))
    assert "1 of 3, incomplete" in text
    assert "2 of 5" in text


def test_a_summary_without_shards_says_so(tmp_path: Path) -> None:
    lines = render(summary_table(summarize_cache(make_cache(tmp_path, shards=[]))))
    assert lines[-1] == "No shard is written yet, so there are no figures of the taps."


def test_a_complete_cache_whose_samples_all_failed_does_not_seem_unwritten(tmp_path: Path) -> None:
    write_part(tmp_path / "cache", [FAILED])
    summary = summarize_cache(open_cache(tmp_path / "cache"))
    said = "No sample that could be read has response tokens: the taps have no figures."
    assert render(summary_table(summary))[-1] == said
    assert said in render_page(CachePage(summary=summary, samples=()))


def test_a_sample_view_holds_each_taps_most_likely_token_in_words(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    record = cache[3]
    view = sample_view(cache, "sample-3", decode)
    assert view.taps == (2, 6, -1)
    assert [token.token_id for token in view.tokens] == record.response_ids.tolist()
    for position, token in enumerate(view.tokens):
        assert token.text == decode(token.token_id)
        assert [guess.tap for guess in token.guesses] == [2, 6, -1]
        tops = record.distribution.token_ids[position, :, 0].tolist()
        assert [guess.token_id for guess in token.guesses] == tops
        assert [guess.text for guess in token.guesses] == [decode(top) for top in tops]
        assert all(0 < guess.probability <= 1 for guess in token.guesses)
    assert SampleView.model_validate_json(view.model_dump_json()) == view


def test_few_taps_have_a_column_each(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    view = sample_view(cache, "sample-1", decode)
    lines = render(sample_table(view))
    assert lines[1].split() == ["response", "2", "6", "output"]
    caption = lines[2 + len(view.tokens) :]  # after title, heading, tokens
    assert " ".join(" ".join(caption).split()) == _FEW_CAPTION
    assert max(map(len, lines)) <= 80


def test_a_sample_that_failed_has_its_reason(tmp_path: Path) -> None:
    view = sample_view(make_cache(tmp_path), "sample-1", decode)
    failed = view.model_copy(update={"tokens": (), "failure": "image cannot be decoded"})
    assert render(sample_table(failed)) == [
        "sample sample-1 could not be read by the teacher: image cannot be decoded"
    ]


def test_many_taps_share_a_cell_that_joins_runs_of_taps_that_agree(tmp_path: Path) -> None:
    view = sample_view(make_cache(tmp_path, make_manifest(taps=DEEP)), "sample-1", decode)
    token = view.tokens[0]
    agreed = token.model_copy(
        update={
            "guesses": tuple(
                guess.model_copy(update={"token_id": int(guess.tap > 20 or guess.tap == -1)})
                for guess in token.guesses
            )
        }
    )
    lines = render(sample_table(view.model_copy(update={"tokens": (agreed,)})))
    assert max(map(len, lines)) <= 80
    assert "2–18 " in lines[2]
    assert "22–output " in lines[2]


def test_the_conversation_comes_first_and_pictures_are_named(tmp_path: Path) -> None:
    turns = (
        TurnView(
            role="user", parts=(Picture(width=640, height=480, jpeg_base64=""), "Why?\x1b[2J")
        ),
        TurnView(role="assistant", parts=("[red]" * 1000,)),
    )
    lines = render(sample_table(sample_view(make_cache(tmp_path), "sample-1", decode, turns)))
    assert lines[0] == "user: [image of 640 × 480 pixels] Why?\\x1b[2J"
    assert "".join(lines).count("[red]") >= 400
    assert "sample sample-1" in lines


def test_a_likelier_token_has_a_darker_ground_where_there_is_colour(tmp_path: Path) -> None:
    view = sample_view(make_cache(tmp_path), "sample-1", decode)
    guess = view.tokens[0].guesses[0]
    tokens = tuple(
        view.tokens[0].model_copy(
            update={"guesses": (guess.model_copy(update={"probability": probability}),) * 3}
        )
        for probability in (0.1, 0.3, 0.95, 1.0)
    )
    table = sample_table(view.model_copy(update={"tokens": tokens}))
    console = Console(width=80, color_system="truecolor", force_terminal=True)
    with console.capture() as capture:
        console.print(table)
    grounds = [re.findall(r"48;2;(\d+;\d+;\d+)", line) for line in capture.get().splitlines()[2:6]]
    assert grounds == [[], ["63;111;159"] * 3, ["9;63;123"] * 3, ["9;63;123"] * 3]
    assert "\x1b" not in "".join(render(table))


def test_whitespace_and_markup_in_tokens_are_shown_as_they_are(tmp_path: Path) -> None:
    view = sample_view(make_cache(tmp_path), "sample-1", decode)
    tokens = tuple(
        view.tokens[0].model_copy(update={"text": text, "token_id": index})
        for index, text in enumerate(WORDS)
    )
    lines = render(sample_table(view.model_copy(update={"tokens": tokens})))
    shown = [line.split()[0] for line in lines[2 : 2 + len(WORDS)]]
    assert shown == ["the", "␣cat", "\\n", "[red]", "␣", "<|im_end|>", "(nothing)", "猫"]


def test_a_missing_sample_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no sample 'x'"):
        sample_view(make_cache(tmp_path), "x", decode)


def test_an_incomplete_cache_says_first_what_is_missing(tmp_path: Path) -> None:
    text = " ".join(render(summary_table(summarize_cache(make_cache(tmp_path, shards=[1])))))
    assert text.startswith("Incomplete: 2 of 3 shards are missing (0, 2).")
    assert "Run dump-teacher again" in text
    make_cache(tmp_path)
    (tmp_path / "index.json").unlink()
    summary = summarize_cache(open_cache(tmp_path))
    assert (summary.complete, summary.indexed, summary.missing_shards) == (True, False, ())
    assert render(summary_table(summary))[0].startswith("Unfinished: every shard is there")
