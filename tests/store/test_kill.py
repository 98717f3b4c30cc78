"""Writers killed at any moment, and what the next run makes of what they left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.caches import make_manifest, make_record
from vlsi_cache.store import create_cache, open_cache, verify_cache

TESTS = Path(__file__).parents[1]
NUM_SAMPLES = 20
NUM_MOMENTS = 40
MANIFEST = make_manifest(num_samples=NUM_SAMPLES, samples_per_shard=2, vocab_size=50)
RECORDS = [make_record(MANIFEST, i, num_tokens=2 + i) for i in range(NUM_SAMPLES)]

# Imports once, then forks a writer for every line. The writer counts what it is about to do to the
# cache's files, and ends abruptly at the action it was given: every state of the files comes up,
# however slow the machine is. With a delay it ends a little later, in the middle of writing.
SERVER = f"""
import json, os, signal, sys, traceback
from pathlib import Path
from support.caches import make_manifest, make_record
from vlsi_cache.store import create_cache

manifest = make_manifest(num_samples={NUM_SAMPLES}, samples_per_shard=2, vocab_size=50)
records = [make_record(manifest, i, num_tokens=2 + i) for i in range({NUM_SAMPLES})]
ACTIONS = ("open", "os.link", "os.mkdir", "os.remove")

def end_at(cache, last_action, delay):
    count = 0
    def watch(event, arguments):
        nonlocal count
        if event in ACTIONS and str(arguments[0]).startswith(cache):
            count += 1
            if count == last_action and delay:
                signal.setitimer(signal.ITIMER_REAL, delay)  # whose signal ends the process
            elif count == last_action:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    return lambda: count

for line in sys.stdin:
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    try:
        cache, last_action, delay, log = json.loads(line)
        num_actions = end_at(cache, last_action, delay)
        writer = create_cache(Path(cache), manifest, Path(sys.argv[1]))
        for shard in writer.missing_shards():
            part = manifest.shard_range(shard)
            writer.write_shard(shard, records[part.start : part.stop])
        Path(log).write_text(str(num_actions()))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
"""


class WriterServer:
    """Starts real writer processes, one at a time, and reports how they ended."""

    def __init__(self, processor: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(processor)],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def begin(self, cache: Path, last_action: int, delay: float, log: Path) -> None:
        """Start a writer, which ends at an action, or so many seconds after it; 0 for never."""
        assert self._process.stdin is not None
        line = json.dumps([str(cache), last_action, delay, str(log)])
        self._process.stdin.write(line + "\n")

    def end(self) -> int:
        """Wait for the writer; its exit code, negative if it was killed."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def servers(processor: Path) -> Iterator[list[WriterServer]]:
    started = [WriterServer(processor) for _ in range(2)]
    yield started
    for server in started:
        server.close()


def all_files(path: Path) -> dict[Path, bytes]:
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processor")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text(name * 100)
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, processor: Path) -> dict[Path, bytes]:
    path = tmp_path_factory.mktemp("unbroken")
    write_rest(path, processor)
    return all_files(path)


def write_rest(path: Path, processor: Path) -> None:
    writer = create_cache(path, MANIFEST, processor)
    for shard in writer.missing_shards():
        part = MANIFEST.shard_range(shard)
        writer.write_shard(shard, RECORDS[part.start : part.stop])


@pytest.fixture(scope="module")
def num_actions(tmp_path_factory: pytest.TempPathFactory, servers: list[WriterServer]) -> int:
    """What an unbroken run of one writer does to files."""
    folder = tmp_path_factory.mktemp("counted")
    servers[0].begin(folder / "cache", 0, 0.0, folder / "log")
    assert servers[0].end() == 0
    return int((folder / "log").read_text())


@pytest.mark.parametrize("num_writers", [1, 2])
def test_killed_at_any_moment_and_run_again_gives_the_bytes_of_an_unbroken_run(
    tmp_path: Path,
    processor: Path,
    servers: list[WriterServer],
    unbroken: dict[Path, bytes],
    num_actions: int,
    num_writers: int,
) -> None:
    generator = np.random.default_rng(num_writers)
    assert num_actions > NUM_MOMENTS
    running, shards_seen = servers[:num_writers], set()
    for attempt in range(NUM_MOMENTS):
        path = tmp_path / str(attempt)
        last_action = 1 + attempt * num_actions // NUM_MOMENTS
        delay = float(generator.uniform(1e-4, 1e-2)) if attempt % 2 else 0.0
        for server in running:
            server.begin(path, last_action, delay, tmp_path / "log")
        codes = {server.end() for server in running}
        assert codes <= {0, -signal.SIGKILL, -signal.SIGALRM}
        if num_writers == 1 and not delay:
            assert codes == {-signal.SIGKILL}
        if (path / "manifest.json").exists():
            found = verify_cache(path)
            assert found.sound, found
            read = len(list(open_cache(path).iter_shards()))
            assert read >= found.num_shards_sealed
            if not delay:
                shards_seen.add(read)
        write_rest(path, processor)
        assert all_files(path) == unbroken
    if num_writers == 1:
        assert shards_seen == set(range(MANIFEST.num_shards + 1)), "the moments cover the whole run"
