"""The sealed session between two attested ends: bodies stay secret even if the TLS key exchange is broken later.

Each end contributes a secret, sealed with the hybrid HPKE to the key that the other's attestation result names, with
both leaf certificates as context: who lacks the private sealing key gets no session, and a session moved to another
pair of certificates does not open. Every body is bound to its session, direction, sequence number, method, path and
status (NW-07). The initiator asks, the responder answers each request exactly once. There is no unsealed mode.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secfl.crypto import strict_json
from secfl.crypto.aead import derive_key
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.crypto.hpke import PUBLIC_KEY_BYTES, SealingKey, seal_to
from secfl.crypto.transcript import digest256, transcript
from secfl.errors import EncodingError, FreshnessError, StateError, VerificationError

__all__ = [
    "MAX_MESSAGE",
    "MAX_REQUESTS",
    "OVERHEAD_BYTES",
    "WINDOW",
    "Ends",
    "InitiatorSession",
    "Offer",
    "ResponderSession",
    "respond",
]

OVERHEAD_BYTES = 16
"""Bytes that sealing adds to a body."""
MAX_REQUESTS = 2**24
"""Requests of one session; far below the limits of AES-GCM, and a reason to agree on a new key."""
WINDOW = 256
"""How far a request may lag behind the newest: parallel connections overtake each other, replays do not come back."""
_SECRET_BYTES = 32
MAX_MESSAGE = 8 * 1024
"""Longest message of the agreement, in bytes; an offer has about 3.4 KiB."""
_OFFER_PURPOSE = "session-offer"
_ANSWER_PURPOSE = "session-answer"


@dataclass(frozen=True, slots=True)
class Ends:
    """SHA-256 of the two leaf certificates in use, so that a session belongs to one pair of attested ends."""

    initiator: bytes
    responder: bytes

    def context(self) -> bytes:
        """Both hashes in order, as HPKE context."""
        return transcript("session-ends", self.initiator, self.responder)


class Offer:
    """The initiator's half of the agreement: `message` goes out, `finish` takes the answer."""

    def __init__(self, key: SealingKey, ends: Ends, *, responder_key: bytes, responder_key_hash: bytes) -> None:
        """Draw a secret and seal it to the responder.

        Args:
            responder_key: what the responder sent; unverified until its hash is compared.
            responder_key_hash: SHA-256 of the sealing key in the responder's attestation result.

        Raises:
            VerificationError: `session.sealing_key`.
            EncodingError: `hpke.public_key`.
        """
        _require_key(responder_key, responder_key_hash)
        self._key = key
        self._ends = ends
        self._secret = os.urandom(_SECRET_BYTES)
        sealed = seal_to(responder_key, self._secret, purpose=_OFFER_PURPOSE, context=ends.context())
        self.message = strict_json.encode({"key": to_base64url(key.public), "sealed": to_base64url(sealed)})

    def finish(self, answer: bytes) -> InitiatorSession:
        """Open the responder's secret and derive the session.

        Raises:
            EncodingError: `session.malformed`.
            VerificationError: `crypto.open_failed`.
        """
        fields = _fields(answer, "sealed")
        context = _answer_context(self._ends, self.message)
        secret = _secret(self._key.open(fields["sealed"], purpose=_ANSWER_PURPOSE, context=context))
        return InitiatorSession(_Keys(self._secret + secret, self._ends, self.message, answer))


def respond(
    key: SealingKey, ends: Ends, message: bytes, *, initiator_key_hash: bytes
) -> tuple[ResponderSession, bytes]:
    """Take an offer; return the session and the answer to send.

    Args:
        initiator_key_hash: SHA-256 of the sealing key in the initiator's attestation result.

    Raises:
        EncodingError: `session.malformed` or `hpke.public_key`.
        VerificationError: `session.sealing_key` or `crypto.open_failed`.
    """
    fields = _fields(message, "key", "sealed")
    _require_key(fields["key"], initiator_key_hash)
    theirs = _secret(key.open(fields["sealed"], purpose=_OFFER_PURPOSE, context=ends.context()))
    ours = os.urandom(_SECRET_BYTES)
    sealed = seal_to(fields["key"], ours, purpose=_ANSWER_PURPOSE, context=_answer_context(ends, message))
    answer = strict_json.encode({"sealed": to_base64url(sealed)})
    return ResponderSession(_Keys(theirs + ours, ends, message, answer)), answer


class InitiatorSession:
    """Seals requests and opens their responses."""

    def __init__(self, keys: _Keys) -> None:
        """Start at sequence 0."""
        self._keys = keys
        self._next = 0
        self._open: dict[int, bytes] = {}

    @property
    def session_id(self) -> str:
        """The session's public name, 32 hex digits."""
        return self._keys.session_id

    @property
    def exhausted(self) -> bool:
        """Whether a new session is due."""
        return self._next >= MAX_REQUESTS

    def seal_request(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Give the next sequence number and the sealed body.

        Raises:
            StateError: `session.exhausted`.
        """
        if self.exhausted:
            raise StateError("session.exhausted", "the session has carried its last request")
        sequence = self._next
        self._next += 1
        head = _request_head(method, path)
        self._open[sequence] = head
        return sequence, self._keys.seal(self._keys.request, sequence, head, body)

    def open_response(self, sequence: int, status: int, sealed: bytes) -> bytes:
        """Open the one response to a request of this session.

        Raises:
            FreshnessError: `session.replayed` when no response to this sequence is awaited.
            VerificationError: `crypto.open_failed`.
        """
        head = self._open.get(sequence)
        if head is None:
            raise FreshnessError("session.replayed", "no response is awaited for this sequence number")
        body = self._keys.open(self._keys.response, sequence, _response_head(head, status), sealed)
        del self._open[sequence]
        return body

    def forget(self, sequence: int) -> None:
        """Await no response any more, because the exchange failed."""
        self._open.pop(sequence, None)


class ResponderSession:
    """Opens requests, each once and inside the window, and seals their responses."""

    def __init__(self, keys: _Keys) -> None:
        """Start with nothing seen."""
        self._keys = keys
        self._newest = -1
        self._seen = 0
        self._unanswered: dict[int, bytes] = {}

    @property
    def session_id(self) -> str:
        """The session's public name, 32 hex digits."""
        return self._keys.session_id

    def open_request(self, sequence: int, method: str, path: str, sealed: bytes) -> bytes:
        """Open a request's body.

        Raises:
            FreshnessError: `session.replayed` for a sequence seen before or too far behind.
            VerificationError: `crypto.open_failed`.
        """
        # 1. Refuse what was seen or lies behind the window, before any decryption.
        lag = self._newest - sequence
        if not 0 <= sequence < MAX_REQUESTS or lag >= WINDOW or (lag >= 0 and self._seen >> lag & 1):
            raise FreshnessError("session.replayed", "the sequence number was used or is too old", actual=sequence)
        # 2. Only an authentic request moves the window: a forged number must not lock the true sender out.
        head = _request_head(method, path)
        body = self._keys.open(self._keys.request, sequence, head, sealed)
        if lag < 0:
            self._seen = (self._seen << min(-lag, WINDOW) | 1) & ((1 << WINDOW) - 1)
            self._newest = sequence
        else:
            self._seen |= 1 << lag
        self._unanswered[sequence] = head
        return body

    def seal_response(self, sequence: int, status: int, body: bytes) -> bytes:
        """Seal the response; a second one to the same request would reuse a nonce and is refused.

        Raises:
            StateError: `session.answered`.
        """
        head = self._unanswered.pop(sequence, None)
        if head is None:
            raise StateError("session.answered", "the request was not opened, or is answered", actual=sequence)
        return self._keys.seal(self._keys.response, sequence, _response_head(head, status), body)

    def forget(self, sequence: int) -> None:
        """Give up answering a request, because the exchange failed."""
        self._unanswered.pop(sequence, None)


class _Keys:
    """The two direction keys and the session's name, all bound to the whole agreement."""

    def __init__(self, secret: bytes, ends: Ends, offer: bytes, answer: bytes) -> None:
        agreement = digest256("session-agreement", ends.context(), offer, answer)
        self.identity = agreement[:16]
        self.session_id = self.identity.hex()
        self.request = AESGCM(derive_key(secret, "session-request", agreement))
        self.response = AESGCM(derive_key(secret, "session-response", agreement))

    def seal(self, key: AESGCM, sequence: int, head: bytes, body: bytes) -> bytes:
        # The nonce is the sequence number: each key seals each number once, the caller sees to it.
        return key.encrypt(sequence.to_bytes(12, "big"), body, self._aad(sequence, head))

    def open(self, key: AESGCM, sequence: int, head: bytes, sealed: bytes) -> bytes:
        try:
            return key.decrypt(sequence.to_bytes(12, "big"), sealed, self._aad(sequence, head))
        except (InvalidTag, ValueError):
            raise VerificationError("crypto.open_failed", "the sealed data cannot be opened") from None

    def _aad(self, sequence: int, head: bytes) -> bytes:
        return transcript("session-body", self.identity, sequence.to_bytes(8, "big"), head)


def _request_head(method: str, path: str) -> bytes:
    return transcript("session-request-head", method.encode(), path.encode())


def _response_head(request_head: bytes, status: int) -> bytes:
    return transcript("session-response-head", request_head, status.to_bytes(2, "big"))


def _answer_context(ends: Ends, offer: bytes) -> bytes:
    return transcript("session-answer-context", ends.context(), offer)


def _require_key(key: bytes, expected: bytes) -> None:
    if len(key) != PUBLIC_KEY_BYTES or not hmac.compare_digest(hashlib.sha256(key).digest(), expected):
        raise VerificationError("session.sealing_key", "not the sealing key that the peer's evidence names")


def _secret(value: bytes) -> bytes:
    if len(value) != _SECRET_BYTES:
        raise EncodingError("session.malformed", "a session secret has 32 bytes")
    return value


def _fields(message: bytes, *names: str) -> dict[str, bytes]:
    try:
        document = strict_json.decode(message, max_bytes=MAX_MESSAGE)
    except EncodingError as error:
        raise EncodingError("session.malformed", "not a session message") from error
    if not isinstance(document, dict) or set(document) != set(names):
        raise EncodingError("session.malformed", "not a session message")
    if not all(isinstance(value, str) for value in document.values()):
        raise EncodingError("session.malformed", "not a session message")
    try:
        return {name: from_base64url(value) for name, value in document.items()}
    except EncodingError as error:
        raise EncodingError("session.malformed", "not a session message") from error
