"""A small synchronous HTTPS client that believes one certificate and no authority.

Rules: TLS 1.3 only; the server's certificate is compared with its pinned SHA-256 before a byte of the request leaves
(NW-03); answers are bounded; a refusal of the server comes back as the error that the server raised. The connection is
kept; one that the server has closed meanwhile is opened anew before a request is sent. A request is never sent twice:
the server may have acted on the first copy, and would take the second for a replay.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import select
import socket
import ssl
import threading

from secfl.errors import ConfigError, EncodingError, UnavailableError, VerificationError
from secfl.protocol.failure import decode_failure
from secfl.protocol.routes import route

__all__ = ["MAX_ANSWER", "HttpsClient", "split_address", "unverified_certificate"]

MAX_ANSWER = 256 * 1024 * 1024
"""Largest answer, in bytes: an audit bundle of a long study."""


def unverified_certificate(address: str, *, timeout: float = 10.0) -> bytes:
    """Fetch the DER certificate that the server at `host:port` shows: to be attested, not to be believed.

    Raises:
        ConfigError: `client.address`.
        UnavailableError: `client.unreachable`.
    """
    host, port = split_address(address)
    try:
        with socket.create_connection((host, port), timeout) as raw, _context().wrap_socket(raw) as connection:
            return connection.getpeercert(binary_form=True) or b""
    except OSError as error:
        raise _unreachable(host, port, error) from error


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port`.

    Raises:
        ConfigError: `client.address`.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError("client.address", "an address is written host:port", actual=address[:100])
    return host, int(port)


class HttpsClient:
    """Requests to one server, one at a time."""

    def __init__(self, address: str, *, certificate_sha256: bytes, timeout: float = 30.0) -> None:
        """Remember where and whom to call; nothing is sent yet.

        Args:
            address: `host:port`.
            certificate_sha256: SHA-256 of the server's DER certificate.
            timeout: seconds that a connection or an answer may take.

        Raises:
            ConfigError: `client.address`.
        """
        self._host, self._port = split_address(address)
        self._pin = certificate_sha256
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connection: http.client.HTTPSConnection | None = None
        self.certificate = b""
        """The pinned certificate, once connected."""

    def call(self, name: str, body: bytes = b"", *, timeout: float | None = None) -> bytes:
        """Call an operation of the route table and return the answer's body.

        Raises:
            EncodingError: `route.unknown`.
            VerificationError: `client.other_certificate`: attest the server again.
            UnavailableError: `client.unreachable` or `client.bad_answer`.
            SecflError: the error that the server raised.
        """
        entry = route(name)
        sent = body if entry.method == "POST" else None
        return self._request(entry.method, entry.path, sent, self._timeout if timeout is None else timeout)

    def connect(self) -> bytes:
        """Connect, if not connected yet, and return the server's certificate, which is the pinned one.

        Raises:
            VerificationError: `client.other_certificate`.
            UnavailableError: `client.unreachable`.
        """
        with self._lock:
            self._connected(self._timeout)
            return self.certificate

    def close(self) -> None:
        """Drop the connection."""
        with self._lock:
            self._drop()

    def _request(self, method: str, path: str, body: bytes | None, timeout: float) -> bytes:
        with self._lock:
            try:
                status, answer = self._exchange(method, path, body, timeout)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                raise _unreachable(self._host, self._port, error) from error
        if status == http.client.OK:
            return answer
        try:
            failure = decode_failure(answer)
        except EncodingError as error:
            raise UnavailableError(
                "client.bad_answer", "the server's answer is not understood", status=status
            ) from error
        raise failure

    def _exchange(self, method: str, path: str, body: bytes | None, timeout: float) -> tuple[int, bytes]:
        connection = self._connected(timeout)
        connection.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER + 1)
        if len(answer) > MAX_ANSWER:
            self._drop()
            raise UnavailableError("client.bad_answer", "the server's answer is too large", limit=MAX_ANSWER)
        if response.will_close:
            self._drop()
        return response.status, answer

    def _connected(self, timeout: float) -> http.client.HTTPSConnection:
        if self._connection is not None and _quiet(self._connection.sock):
            self._connection.sock.settimeout(timeout)
            return self._connection
        self._drop()
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=_context())
        try:
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            shown = connection.sock.getpeercert(binary_form=True) or b""
        except OSError as error:
            connection.close()
            raise _unreachable(self._host, self._port, error) from error
        if not hmac.compare_digest(hashlib.sha256(shown).digest(), self._pin):
            connection.close()
            raise VerificationError(
                "client.other_certificate",
                "the server shows another certificate than the one that was attested",
                hint="attest it again; it may be another server",
                server=f"{self._host}:{self._port}",
            )
        self.certificate = shown
        self._connection = connection
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _quiet(connection: socket.socket) -> bool:
    # Between two requests a server has nothing to say: what can be read is the end of the connection.
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    return not waiting.poll(0)


def _context() -> ssl.SSLContext:
    # No authority vouches for the certificate: the handshake proves possession of its key, the pin says whose it is.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _unreachable(host: str, port: int, error: Exception) -> UnavailableError:
    return UnavailableError("client.unreachable", f"no answer from {host}:{port} ({type(error).__name__})")
