"""Commands in processes of their own, forked from one that has imported the libraries once.

A fresh interpreter takes seconds to import torch and transformers. ``Job`` and ``run_job`` take
what follows ``python`` on a command line. Each makes a real process, with its own folder,
environment and open files, which signals reach and which ends as an interpreter does.

What the environment says to an interpreter or a library while it starts comes too late here.
Such a variable is refused: start a fresh process with it.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import functools
import gc
import json
import logging
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Self, TextIO

__all__ = ["Job", "places", "run_job"]

_TESTS: Final = Path(__file__).parents[1]
_NUMBER: Final = struct.Struct("i")

_LATE: Final = (
    "ACCELERATE_",
    "COLUMNS",
    "FSDP_",
    "HF_DEACTIVATE_",
    "LOCAL_",
    "MASTER_",
    "PYTEST_",
    "VLSI_CACHE_",
)
_LATE_NAMES: Final = ("RANK", "TERM", "WORLD_SIZE")
"""What is read when it is used, never while a library is imported."""

_IMPORTED: Final = (
    *("check", "plan", "dump_teacher", "train_student", "evaluate", "export_exits"),
    *("inspect", "verify", "merge", "push"),
)
_LIBRARIES: Final = (
    *("vlsi_cache.check", "vlsi_cache.plan", "vlsi_cache.teacher", "vlsi_cache.student"),
    *("vlsi_cache.evaluation", "vlsi_cache.report", "vlsi_cache.sharing", "vlsi_cache.demo"),
    *("torch.utils.tensorboard", "torch.utils.data", "torch.profiler"),
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.processing_auto"),
)


class Job:
    """A Python process that runs a command.

    Args:
        words: What follows ``python``: ``-m MODULE``, ``-c CODE`` or a script, and arguments.
        stdout: An open file for its output, or None for a pipe.
        stderr: Another for its errors, or None for the same place.
        env: Variables of its own, on top of this process's.
    """

    def __init__(
        self,
        *words: object,
        stdout: int | None = None,
        stderr: int | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        environment = {**os.environ, **(env or {})}
        _server().validate(environment)
        self._line, far = socket.socketpair()
        read, write = os.pipe()
        theirs, mine = os.pipe()
        out = write if stdout is None else stdout
        with far:
            _server().start([theirs, out, out if stderr is None else stderr], far)
        for end in (write, theirs):
            os.close(end)
        request = {"words": [*map(str, words)], "cwd": str(cwd or Path.cwd()), "env": environment}
        self._line.sendall(json.dumps(request).encode() + b"\n")
        self.stdout: TextIO = os.fdopen(read, encoding="utf-8")
        self.stdin: TextIO = os.fdopen(mine, "w", encoding="utf-8")
        if stdout is not None:
            self.stdout.close()
        self.pid = self._answer()
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()
        self.stdout.close()

    def send_signal(self, number: int) -> None:
        """Signal the process, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Find how it has ended: its exit code, negative after a signal, or None."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = 400) -> int:
        """Wait for its end, and return its exit code, negative after a signal."""
        if self.returncode is None:
            self._line.settimeout(timeout)
            self.returncode = self._answer()
            self._line.close()
            self.stdin.close()
        return self.returncode

    def _answer(self) -> int:
        """Wait for the next number that the server says."""
        packed = self._line.recv(_NUMBER.size, socket.MSG_WAITALL)
        assert packed, "the process that forks the others has ended"
        return int(_NUMBER.unpack(packed)[0])

    def end(self, given: str = "") -> str:
        """Give it all of its input, wait for its end, and return what it printed meanwhile."""
        self.stdin.write(given)
        self.stdin.close()
        said = self.stdout.read()
        self.stdout.close()
        self.wait()
        return said


def run_job(
    *words: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    together: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        words: What follows ``python``.
        cwd: The folder in which it runs.
        env: Variables of its own.
        check: Whether another exit code than 0 is an error.
        together: Whether its errors go where its output goes.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        err = output if together else errors
        with Job(*words, stdout=output.fileno(), stderr=err.fileno(), cwd=cwd, env=env) as job:
            job.stdin.close()
            code = job.wait()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    done = subprocess.CompletedProcess([*map(str, words)], code, *texts)
    assert not check or code == 0, done
    return done


def places(num_processes: int) -> list[dict[str, str]]:
    """What a launcher says to each of several processes on a CPU; nothing to one alone."""
    if num_processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": num_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"LOCAL_WORLD_SIZE": num_processes, "ACCELERATE_USE_CPU": "true"}
    return [
        {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(num_processes)
    ]


class _Server:
    """The process that forks the jobs of this one."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair()
        self._environment = {**os.environ}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.commands", str(theirs.fileno())],
                cwd=_TESTS,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
            )

    def validate(self, environment: Mapping[str, str]) -> None:
        """Refuse variables that come too late for a fork."""
        names = environment.keys() | self._environment.keys()
        early = [
            name
            for name in sorted(names)
            if environment.get(name) != self._environment.get(name)
            and not name.startswith(_LATE)
            and name not in (*_LATE_NAMES, "OMP_NUM_THREADS")
        ]
        early += ["OMP_NUM_THREADS"] * (environment.get("OMP_NUM_THREADS", "1") != "1")
        assert not early, f"a library may read {', '.join(early)} as it is imported"

    def start(self, files: list[int], line: socket.socket) -> None:
        """Fork a job that reads its request from a line of its own."""
        socket.send_fds(self._line, [b"f"], [*files, line.fileno()])

    def close(self) -> None:
        self._line.close()
        self._process.wait()


@functools.cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


def _validate_alone() -> None:
    """Refuse to fork where a thread's locks would never be released.

    A job may start threads, also those of torch's backward pass, as long as the server has none.
    The allocator of pyarrow has one, and starts it again in a fork by itself.
    """
    assert threading.active_count() == 1, threading.enumerate()
    tasks = Path("/proc/self/task")
    if tasks.is_dir():
        names = sorted(path.read_text().strip() for path in tasks.glob("*/comm"))
        names = [name for name in names if name != "jemalloc_bg_thd"]
        assert len(names) == 1, names


class _Jobs:
    """The jobs of the server that have not ended, each with a line to who waits for it."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._own = line, dict[int, socket.socket]()
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Ctrl-C reaches a job even where a shell started the tests behind it, and so without.
        self._before = [
            (signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda *_: None)),
            (signal.SIGINT, signal.default_int_handler),
        ]

    def serve(self) -> socket.socket | None:
        """Fork jobs until the other end closes; return in each of them, with its own line."""
        while True:
            ready, _, _ = select.select([self._line, self._woken], [], [])
            if self._woken in ready:
                self._woken.recv(4096)
                self._report()
            if self._line in ready:
                message, files, _, _ = socket.recv_fds(self._line, 1, 4)
                if not message:
                    return None
                own = socket.socket(fileno=files.pop())
                if not (job := os.fork()):
                    self._leave(files)
                    return own
                for file in files:
                    os.close(file)
                own.sendall(_NUMBER.pack(job))
                self._own[job] = own

    def _leave(self, files: Sequence[int]) -> None:
        """Keep nothing of the server's in a job, and open the job's own files."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before:
            signal.signal(number, handler)
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        for line in (self._line, self._woken, self._wake, *self._own.values()):
            line.close()

    def _report(self) -> None:
        """Say of each job that has ended how it did."""
        for job in [*self._own]:
            ended, status = os.waitpid(job, os.WNOHANG)
            if ended:
                with self._own.pop(job) as own, contextlib.suppress(OSError):
                    own.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))


def _open_streams() -> None:
    """Open what an interpreter opens: those of the server took its own files for seekable."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old: TextIO = getattr(sys, name)
        stream = open(  # noqa: SIM115 (open for as long as the process)
            number,
            "w" if number else "r",
            buffering=1 if name == "stderr" else -1,
            encoding=old.encoding,
            errors=old.errors,
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _become(words: list[str]) -> None:
    """Run what follows ``python``, as ``python`` does."""
    first, *rest = words
    if first == "-m":
        sys.argv, sys.path[0] = rest, str(Path.cwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        main = ModuleType("__main__")
        main.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[0] = words, str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def _main() -> None:
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # as the command does
    for name in (*(f"vlsi_cache.cli.{name}" for name in _IMPORTED), *_LIBRARIES):
        import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a job would copy all that was imported
    _validate_alone()
    own = _Jobs(socket.socket(fileno=int(sys.argv[1]))).serve()
    if own is None:
        return
    with own, own.makefile("r", encoding="utf-8") as lines:
        request: dict[str, Any] = json.loads(lines.readline())
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _open_streams()
    _become(request["words"])


if __name__ == "__main__":
    _main()
