"""What every test shares."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers.utils import logging

from support.ranks import RankServer

# how long an example takes says nothing on a shared machine
# and examples of files do not outlive a change of what the files hold
settings.register_profile(
    "shared", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared")


def pytest_collection_finish() -> None:
    """Leave the imported libraries out of every later search for garbage: each costs a third of a
    second otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands remember what they read in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLSI_CACHE_HOME", str(tmp_path_factory.mktemp("remembered")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models gain nothing from threads, and lose much where cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def server() -> RankServer:
    """Starts several training processes at once."""
    return RankServer()
