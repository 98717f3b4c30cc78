"""What tests of stages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.ranks import RankServer


@pytest.fixture(scope="session")
def server() -> Iterator[RankServer]:
    """Starts several training processes at once."""
    server = RankServer()
    yield server
    server.close()
