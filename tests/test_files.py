from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlsi_cache.files import read_file, share_weights, write_whole


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for text in ("first, longer\n", "zweiter: ä\n"):
        write_whole(path, text)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_jobs_that_write_one_file_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    texts = [f"{number}" * 10_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda text: write_whole(path, text), texts * 20):
            pass
    assert path.read_text(encoding="utf-8") in texts
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_a_file_is_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"\0text")
    assert read_file(path) == b"\0text"
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "absent")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="a pipe or a device, not a file"):
        read_file(path)


def test_an_interrupted_write_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    write_whole(path, "before")

    def interrupted(_: Path, __: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "after")
    assert path.read_text(encoding="utf-8") == "before"


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_follow_the_umask_as_other_files_do(tmp_path: Path, mask: int, mode: int) -> None:
    with _umask(mask):
        save_file({"a": np.zeros(2)}, tmp_path / "one.safetensors")
        (tmp_path / "linked.safetensors").symlink_to(tmp_path / "absent")
        share_weights(tmp_path)
    assert stat.S_IMODE((tmp_path / "one.safetensors").stat().st_mode) == mode
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "linked.safetensors",
        "one.safetensors",
    ]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS, errno.EPERM])
def test_a_file_system_without_modes_keeps_weights_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    save_file({"a": np.zeros(2)}, tmp_path / "one.safetensors")
    asked: list[str] = []

    def refused(path: Path, _: int) -> None:
        asked.append(path.name)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "chmod", refused)
    share_weights(tmp_path)
    assert asked == ["one.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_a_folder_that_takes_no_new_file_keeps_weights_as_they_are() -> None:
    share_weights(Path("/proc/self"))  # the system makes its files alone
