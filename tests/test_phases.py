"""Phases report their beginning, a line a minute, and their end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from vlsi_cache import phases
from vlsi_cache.phases import LIVE, Phase, duration, phase, place_of_work, tracked


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(LIVE, "vlsi_cache.phases"):
        yield caplog


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (61, "1 min 1 s"),
        (659, "10 min"),
        (3600, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_phase_says_what_begins_and_how_many(lines: pytest.LogCaptureFixture) -> None:
    assert list(tracked("abc", "reading", total=1200, unit="rows")) == ["a", "b", "c"]
    with phase("loading the teacher"):
        assert place_of_work() == "while loading the teacher"
    assert place_of_work() == "after loading the teacher"
    said = [record.getMessage() for record in lines.records if record.levelno > LIVE]
    assert said == ["reading (1,200 rows)", "loading the teacher"]


def test_a_patient_phase_says_what_it_does_once_it_takes_longer(
    lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with phase("looking", patient=True), phase("counting", total=3, unit="rows", patient=True):
        assert not lines.records  # a second is long after this
    monkeypatch.setattr(phases, "_LIVE_SECONDS", 0.001)
    said = threading.Event()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: record.levelno > LIVE and said.set())
    logger = logging.getLogger("vlsi_cache.phases")
    logger.addHandler(handler)
    try:
        with phase("counting", total=3, unit="rows", patient=True):
            assert said.wait(60)
    finally:
        logger.removeHandler(handler)
    found = [record for record in lines.records if record.levelno > LIVE]
    assert [record.getMessage() for record in found] == ["counting (3 rows)"]
    assert found[0].__dict__["repeats_live_line"] is True


def test_a_slow_step_is_never_a_rate_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: now[0])
    one = Phase("training", unit="steps")
    one.begin_at(100, 500)
    assert one.state() == "training: 100 of 500 steps"
    now[0] = 824.0
    one.advance(2)
    assert one.state() == "training: 102 of 500 steps  412 s/step  1 d 21 h remaining"
    one.advance(19_998)
    one.detail = "loss 2.1"
    assert "loss 2.1  24.3 steps/s" in one.state()


def test_a_long_phase_is_never_silent(
    lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "_LIVE_SECONDS", 0.001)
    monkeypatch.setattr(phases, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(phases, "_WORTH_A_LINE_SECONDS", 0.0)

    def said(level: int) -> list[str]:
        return [record.getMessage() for record in lines.records if record.levelno == level]

    with phase("outside"), phase("inside", total=3, unit="rows") as inside:
        inside.advance(2)
        for level in (LIVE, logging.INFO):
            while not [line for line in said(level) if line.startswith("inside: 2 of 3 rows  ")]:
                pass
    infos = said(logging.INFO)
    assert infos[0] == "outside"
    assert "inside (3 rows)" in infos
    assert infos[-2:] == ["inside: done in 0 s", "outside: done in 0 s"]
    assert "" in said(LIVE), "the live line is cleared"
    with pytest.raises(ValueError, match="no"), phase("failing"):
        raise ValueError("no")
    assert not [line for line in said(logging.INFO) if line.startswith("failing: done")]
