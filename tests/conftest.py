"""What every test shares."""

from __future__ import annotations

import pytest
import torch
from transformers.utils import logging


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models gain nothing from threads, and lose much where cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    logging.disable_progress_bar()
