"""The product's own commands, as processes: several at once, within a time, stopped gently."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

__all__ = ["Clock", "Job", "end_gently", "run_jobs"]

GRACE = 25.0
"""Seconds in which a command that is asked to stop may save."""
LEAST = 40.0
"""No command starts with less time than this, in seconds."""
_LOOKS = 0.1


@dataclass
class Clock:
    """Time that is spent since the start, in seconds."""

    began: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began


@dataclass
class Job:
    """One command, and how it ended."""

    name: str
    words: Sequence[str]
    """The command line after `vlsi-cache`."""
    folder: Path
    """The folder that it runs in, with its log."""
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    seconds: float | None = None
    code: int | None = None
    """Exit status. None where it did not start or did not end."""

    @property
    def log(self) -> Path:
        """The file of what it printed."""
        return self.folder / "logs" / f"{self.name}.log"

    def start(self) -> None:
        """Start it in a session of its own."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "VLSI_CACHE_HOME": str(self.folder / "home"),
            "OMP_NUM_THREADS": "1",  # there are as many processes as cores
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        }
        self.began = time.monotonic()
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vlsi_cache.cli", *self.words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                cwd=self.folder,  # the repository's vlsi_cache/ has no cli/
            )

    def has_ended(self) -> bool:
        """Return whether it has ended, and note how."""
        assert self.process is not None
        if self.code is None and self.process.poll() is not None:
            self.code = self.process.returncode
            self.seconds = time.monotonic() - self.began
            click.echo(f"{self.name}: {self.seconds:.0f} s, status {self.code}", err=True)
            if self.code:
                click.echo(self.last_lines(), err=True)
        return self.code is not None

    def last_lines(self, count: int = 8) -> str:
        """Return the end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-count:])


def end_gently() -> None:
    """Make a request to stop this process an ordinary exit, which stops its commands too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def run_jobs(jobs: Sequence[Job], parallel: int, until: float, clock: Clock) -> None:
    """Run commands, a few at once, until a time of the clock. The late ones are asked to stop."""
    waiting = list(jobs)
    running: list[Job] = []
    try:
        while (waiting or running) and clock.spent < until:
            while waiting and len(running) < parallel and clock.spent < until - LEAST:
                job = waiting.pop(0)
                job.start()
                running.append(job)
            if not running:  # no time for those that wait
                break
            time.sleep(_LOOKS)
            running = [job for job in running if not job.has_ended()]
    finally:
        _stop(running)


def _stop(running: Sequence[Job]) -> None:
    """Ask commands to stop, and end those that do not."""
    for job in running:
        assert job.process is not None
        click.echo(f"{job.name} is asked to stop", err=True)
        job.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    while time.monotonic() - began < GRACE and not all(job.has_ended() for job in running):
        time.sleep(_LOOKS)
    for job in running:
        if job.process is not None and not job.has_ended():
            os.killpg(job.process.pid, signal.SIGKILL)  # its workers too
            job.process.wait()
            job.has_ended()
