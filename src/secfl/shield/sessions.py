"""The gateway's sealed sessions: bounded per peer and in all, each tied to one peer certificate and its lease."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from secfl.crypto.hpke import SealingKey
from secfl.errors import AuthorizationError, EncodingError
from secfl.protocol.session import Ends, ResponderSession, respond
from secfl.shield.exchange import SEQUENCE_HEADER, SESSION_HEADER

__all__ = ["Sessions", "session_headers"]

_SESSION_ID = re.compile(r"[0-9a-f]{32}\Z")
_SEQUENCE = re.compile(r"(?:0|[1-9][0-9]{0,8})\Z")


def session_headers(headers: Mapping[str, str]) -> tuple[str, int]:
    """Read session id and sequence number.

    Raises:
        EncodingError: `session.required` when the request is not sealed, or `session.malformed`.
    """
    session_id, sequence = headers.get(SESSION_HEADER), headers.get(SEQUENCE_HEADER)
    if session_id is None or sequence is None:
        raise EncodingError("session.required", "bodies travel only inside a sealed session")
    if not _SESSION_ID.match(session_id) or not _SEQUENCE.match(sequence):
        raise EncodingError("session.malformed", "not a session id and sequence number")
    return session_id, int(sequence)


@dataclass(frozen=True, slots=True)
class _Entry:
    session: ResponderSession
    leaf: bytes


class Sessions:
    """All live sessions of one gateway."""

    def __init__(self, key: SealingKey, *, per_peer: int = 4, total: int = 256) -> None:
        """Keep the newest `per_peer` sessions of a peer certificate and the newest `total` of all."""
        self._key = key
        self._per_peer = per_peer
        self._total = total
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    @property
    def public_key(self) -> bytes:
        """The gateway's sealing key, for the peers to compare with its attestation result."""
        return self._key.public

    def begin(self, ends: Ends, message: bytes, *, initiator_key_hash: bytes) -> bytes:
        """Agree on a session with the peer at the other end; returns the answer.

        Raises:
            EncodingError: `session.malformed` or `hpke.public_key`.
            VerificationError: `session.sealing_key` or `crypto.open_failed`.
        """
        session, answer = respond(self._key, ends, message, initiator_key_hash=initiator_key_hash)
        mine = [name for name, entry in self._entries.items() if entry.leaf == ends.initiator]
        for name in mine[: max(0, len(mine) - self._per_peer + 1)]:
            del self._entries[name]
        while len(self._entries) >= self._total:
            self._entries.popitem(last=False)
        self._entries[session.session_id] = _Entry(session, ends.initiator)
        return answer

    def find(self, session_id: str, leaf: bytes) -> ResponderSession:
        """Return the session that the holder of this certificate agreed on.

        Raises:
            AuthorizationError: `session.unknown`, for another peer's session too.
        """
        entry = self._entries.get(session_id)
        if entry is None or entry.leaf != leaf:
            raise AuthorizationError("session.unknown", "no such session of this peer; agree on a new one")
        return entry.session

    def drop(self, leaf: bytes) -> None:
        """Forget the sessions of a certificate whose lease ended."""
        for name in [name for name, entry in self._entries.items() if entry.leaf == leaf]:
            del self._entries[name]
