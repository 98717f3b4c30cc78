"""Limits of the system end a run in one line that says what to raise, and nothing hangs."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from PIL import Image

from support.ranks import RankServer, errors
from support.runs import make_recipe
from vlsi_cache.data.images import ImageRef
from vlsi_cache.errors import SystemLimitError
from vlsi_cache.limits import find_limit


def test_a_dump_that_can_start_no_thread_says_what_to_raise(
    server: RankServer, tmp_path: Path
) -> None:
    raw = make_recipe(tmp_path, num_samples=6).model_dump(mode="json")
    raw["cache"]["path"] = None
    assert server.run(tmp_path, 1, dump=raw, threads_end_at=2) == [1]
    (found,) = errors(tmp_path, 1)
    assert found.startswith("no more threads can be started; found can't start new thread. Raise")
    assert "ulimit -u" in found


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        ("large", "no shared memory for the batches that workers read ahead; found unable to"),
        ("unsendable", "a worker that reads ahead has ended; found DataLoader worker (pid"),
    ],
)
def test_a_batch_that_a_worker_cannot_send_is_not_waited_for(
    server: RankServer, read: str, problem: str, tmp_path: Path
) -> None:
    assert server.run(tmp_path, 1, read=read) == [1]
    assert errors(tmp_path, 1)[0].startswith(problem)


def test_an_image_that_no_file_may_be_opened_for_is_no_failed_sample(tmp_path: Path) -> None:
    """With ``on_error: skip``, the sample would be recorded as one that cannot be read."""
    Image.new("RGB", (2, 2)).save(tmp_path / "image.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        with pytest.raises(SystemLimitError, match="too many open files") as caught:
            ImageRef(path=tmp_path / "image.png").load()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit -n" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "no more processes can be started"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "no more processes can be started"),
        (RuntimeError("received 0 items of ancdata"), "too many open files"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE), "0.png"), "a file system does not"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. …"), "no shared"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), "a worker that"),
        (MemoryError("Unable to allocate 3 GiB"), "the memory of this machine ran out; found U"),
    ],
)
def test_what_libraries_say_of_a_limit_is_known(error: Exception, what: str) -> None:
    assert str(find_limit(error)).startswith(what)


def test_other_errors_stay_what_they_are() -> None:
    assert find_limit(OSError(errno.EAGAIN, "Resource temporarily unavailable", "file")) is None
    assert find_limit(ValueError("Too many open files")) is None
    assert find_limit(RuntimeError("shapes differ")) is None
