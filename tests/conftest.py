"""What every test shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers.utils import logging

# how long an example takes says nothing on a shared machine
# and examples of files do not outlive a change of what the files hold
settings.register_profile(
    "shared", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models gain nothing from threads, and lose much where cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    logging.disable_progress_bar()
