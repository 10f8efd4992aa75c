"""The client towards a server that closes connections at bad moments."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from secfl.crypto.signing import SigningKey
from secfl.crypto.x509 import Validity, make_ca, to_pem
from secfl.errors import UnavailableError
from secfl.linux.https_client import HttpsClient
from secfl.manager.server import tls_context

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Takes requests one connection after the other; `plan` says what it does with each."""

    def __init__(self, plan: list[str]) -> None:
        now = int(time.time())
        key = SigningKey.generate_p256()
        authority = make_ca(key, name="server", validity=Validity(now - 60, now + 600))
        self._context = tls_context(to_pem(authority.certificate), key.to_pem())
        self._plan = plan
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.taken = 0
        self.closed = threading.Event()
        self.client = HttpsClient(
            f"127.0.0.1:{self._listener.getsockname()[1]}",
            certificate_sha256=hashlib.sha256(authority.certificate).digest(),
            timeout=5,
        )
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._plan:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return  # the test is over
            with raw, self._context.wrap_socket(raw, server_side=True) as connection:
                self._answer(connection)
            self.closed.set()

    def _answer(self, connection: socket.socket) -> None:
        while self._plan:
            step = self._plan.pop(0)
            if step == "close":
                return
            request = b""
            while not request.endswith(b"\r\n\r\n{}"):
                request += connection.recv(65536)
            self.taken += 1
            if step == "take and close":
                return
            connection.sendall(_ANSWER)

    def end(self) -> None:
        """Wait for the thread."""
        self.client.close()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with the plan that the test names."""
    made = Server(list(request.param))
    yield made
    made.end()


@pytest.mark.parametrize("server", [["answer", "close", "answer"]], indirect=True)
def test_a_connection_that_the_server_closed_is_opened_anew(server: Server) -> None:
    """What was closed while nothing was asked costs no request."""
    assert server.client.call("nonces", b"{}") == b"{}"
    assert server.closed.wait(5)
    assert server.client.call("nonces", b"{}") == b"{}"
    assert server.taken == 2


@pytest.mark.parametrize("server", [["answer", "take and close", "answer"]], indirect=True)
def test_a_request_is_never_sent_twice(server: Server) -> None:
    """A server that took a request and closed may have acted on it: the caller is told, and decides."""
    server.client.call("nonces", b"{}")
    with pytest.raises(UnavailableError, match=r"client\.unreachable"):
        server.client.call("nonces", b"{}")
    assert server.taken == 2
