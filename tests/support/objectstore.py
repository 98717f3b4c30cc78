"""An S3 server of this machine, and a proxy before it that fails as networks do."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator

__all__ = ["BUCKET", "OTHER_BUCKET", "FaultyProxy", "free_port", "s3_environment", "s3_server"]

BUCKET = "caches"
OTHER_BUCKET = "elsewhere"
_ANSWERS = {
    status: f"HTTP/1.1 {status} {words}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    for status, words in (("503", "Slow Down"), ("403", "Forbidden"))
}


def s3_environment(port: int) -> dict[str, str]:
    """What leads a client to the server."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """moto's server in a process of its own, with two buckets; its port."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for bucket in (BUCKET, OTHER_BUCKET):
            _make_bucket(port, bucket)
        yield port
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _make_bucket(port: int, bucket: str, patience_seconds: float = 60) -> None:
    deadline = time.monotonic() + patience_seconds
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")
    while True:
        try:
            urllib.request.urlopen(request, timeout=60).close()
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


class FaultyProxy:
    """Forwards requests one by one, but lets uploads meet the faults that were asked for.

    Attributes:
        port: where it listens.
        faults: faults of the next uploads, one each. ``cut`` ends the connection in the middle of
            the body, and ``reset`` does so as when a machine goes away. ``503`` and ``403`` are
            answers. With ``lost`` the upload arrives and its answer does not.
        read_faults: faults of the next downloads. ``cut`` and ``reset`` end the connection in the
            middle of the answer. ``503`` and ``403`` are answers. With ``lost`` there is none.
        met: faults that were met.
    """

    def __init__(self, server_port: int) -> None:
        self.faults: deque[str] = deque()
        self.read_faults: deque[str] = deque()
        self.met: list[str] = []
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head, rest = _read_head(client)
            if not head:
                return
            fault = self._fault(head)
            if head.startswith(b"GET "):
                self._answer(client, head, fault)
                return
            length = _length(head)
            wanted = length // 2 if fault in ("cut", "reset") else length
            body = rest + _read(client, wanted - len(rest))
            if fault == "reset":
                _let_nothing_linger(client)
            if fault in ("cut", "reset"):
                return
            if fault in _ANSWERS:
                client.sendall(_ANSWERS[fault])
                return
            with socket.create_connection(("127.0.0.1", self._server_port)) as server:
                server.sendall(_closing(head) + body)
                while piece := server.recv(2**16):
                    if fault != "lost":
                        client.sendall(piece)

    def _answer(self, client: socket.socket, head: bytes, fault: str) -> None:
        if fault in _ANSWERS:
            client.sendall(_ANSWERS[fault])
            return
        with socket.create_connection(("127.0.0.1", self._server_port)) as server:
            server.sendall(_closing(head))
            answer = b"".join(iter(lambda: server.recv(2**16), b""))
        if fault in ("cut", "reset"):
            # the head whole, and half of the body
            body_length = len(answer) - answer.index(b"\r\n\r\n") - 4
            answer = answer[: len(answer) - (body_length + 1) // 2]
        client.sendall(b"" if fault == "lost" else answer)
        if fault == "reset":
            _let_nothing_linger(client)

    def _fault(self, head: bytes) -> str:
        kinds = {b"PUT": self.faults, b"GET": self.read_faults}
        faults = kinds.get(head.partition(b" ")[0])
        if not faults:
            return ""
        fault = faults.popleft()
        self.met.append(fault)
        return fault


def _let_nothing_linger(client: socket.socket) -> None:
    """The peer meets a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    head = b""
    while b"\r\n\r\n" not in head:
        piece = client.recv(2**16)
        if not piece:
            return b"", b""
        head += piece
    head, end, rest = head.partition(b"\r\n\r\n")
    return head + end, rest


def _read(client: socket.socket, count: int) -> bytes:
    body = b""
    while len(body) < count:
        piece = client.recv(count - len(body))
        if not piece:
            raise ConnectionError
        body += piece
    return body


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _closing(head: bytes) -> bytes:
    """A request's head, asking that the connection be closed after the answer."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])
