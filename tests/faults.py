"""A proxy before a real S3 server that spoils the answers it is told to."""

import contextlib
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

CRAWL_PIECE, CRAWL_PAUSE_S = 256, 0.2

Fault = Callable[[socket.socket, bytes, bytes], None]


def error(status: int, code: str) -> Fault:
    """Answer with an error of S3."""

    def answer(client: socket.socket, head: bytes, body: bytes) -> None:
        told = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        client.sendall(
            f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
            f"Content-Length: {len(told)}\r\nConnection: close\r\n\r\n{told}".encode()
        )

    return answer


def cut(client: socket.socket, head: bytes, body: bytes) -> None:
    """End the connection in mid-body."""
    client.sendall(head + body[: len(body) // 2])


def crawl(client: socket.socket, head: bytes, body: bytes) -> None:
    """Send the body so slowly that it would take hours, but never so that the socket is silent."""
    client.sendall(head)
    for start in range(0, len(body), CRAWL_PIECE):
        client.sendall(body[start : start + CRAWL_PIECE])
        time.sleep(CRAWL_PAUSE_S)


def stall(client: socket.socket, head: bytes, body: bytes) -> None:
    """Take the request and never answer."""
    with contextlib.suppress(OSError):
        client.recv(1)


def short(client: socket.socket, head: bytes, body: bytes) -> None:
    """Give fewer bytes than were asked for, and say so with a straight face."""
    body = body[:-7]
    client.sendall(re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(body), head) + body)


def whole(client: socket.socket, head: bytes, body: bytes) -> None:
    """Pass the answer on."""
    client.sendall(head + body)


class FaultyProxy:
    """Listens on loopback at `url`. `faults` are used up one a GET whose path holds `match`, then
    `lasting` answers. `seen` counts those GETs."""

    def __init__(self, upstream: str, match: str):
        self.match = match
        self.faults: deque[Fault] = deque()
        self.lasting: Fault = whole
        self.seen = 0
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            request = self._read_request(client)
            if not request:
                return
            first = request.partition(b"\r\n")[0].decode()
            fault = whole
            if first.startswith("GET") and self.match in first:
                self.seen += 1
                fault = self.faults.popleft() if self.faults else self.lasting
            head, body = self._forward(request)
            fault(client, head, body)

    def _read_request(self, client: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = client.recv(1 << 16)
            if not piece:
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        while length and len(body) < int(length[1]):
            body += client.recv(1 << 16)
        return head + b"\r\nConnection: close\r\n\r\n" + body

    def _forward(self, request: bytes) -> tuple[bytes, bytes]:
        with socket.create_connection(self._upstream) as server:
            server.sendall(request)
            answer = b""
            while piece := server.recv(1 << 16):
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n", body
