"""The session: a party's requests to the one manager that it has attested.

The pin is written only after the manager's evidence was verified and appraised against the party's own reference; each
later connection must show the pinned certificate, or the party has to attest again (NW-02, NW-03).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from secfl.attestation.statement import ManagerClaims
from secfl.errors import ConfigError, FreshnessError, VerificationError
from secfl.linux.https_client import HttpsClient
from secfl.party.home import PartyHome, read_file, write_file
from secfl.protocol.message import Base64, Message, UnixTime
from secfl.protocol.public import Identity, NonceReply
from secfl.protocol.routes import route

__all__ = ["ManagerPin", "ManagerSession"]

_MAX_REPLY = 256 * 1024 * 1024
MessageType = TypeVar("MessageType", bound=Message)


class ManagerPin(Message):
    """The manager that this party has attested.

    Attributes:
        address: `address:port`.
        identity: what its evidence covered.
        trust_domain: the domain under which it was appraised.
        attested_at: Unix time of the appraisal.
        log_sequence: entries in its log then.
        log_head: hash of the last one.
    """

    address: str
    identity: Identity
    trust_domain: str
    attested_at: UnixTime
    log_sequence: int
    log_head: Base64

    @classmethod
    def load(cls, path: Path) -> ManagerPin:
        """Read the pin.

        Raises:
            ConfigError: `manager.not_attested`.
            EncodingError: the file is malformed.
        """
        if not path.exists():
            raise ConfigError("manager.not_attested", "no manager is pinned here", hint="secfl manager attest")
        return cls.decode(read_file(path))

    def require_later(self, statement: ManagerClaims) -> ManagerClaims:
        """Give back a statement whose log can be the pinned one, continued.

        `secfl audit verify` compares the hashes; here the length tells, and the head of a log that did not grow.

        Raises:
            FreshnessError: `manager.rolled_back`.
        """
        same = (statement.log_length, statement.log_head) == (self.log_sequence, self.log_head)
        if statement.log_length <= self.log_sequence and not same:
            raise FreshnessError(
                "manager.rolled_back",
                "the manager's log is not the one that this party saw before, continued",
                hint="ask the other parties which head they saw; then secfl manager attest --replace",
                expected=self.log_sequence,
                actual=statement.log_length,
            )
        return statement

    def save(self, path: Path) -> None:
        """Write the pin.

        Raises:
            ConfigError: `file.unwritable`.
        """
        write_file(path, self.encode())


class ManagerSession:
    """Signed requests of one party to its pinned manager."""

    def __init__(self, home: PartyHome) -> None:
        self.home = home
        self.pin = ManagerPin.load(home.pin_path)
        self._key = home.signing_key()
        self._client = HttpsClient(
            self.pin.address, certificate_sha256=hashlib.sha256(self.pin.identity.certificate).digest()
        )

    @property
    def deployment_id(self) -> str:
        """The deployment that all documents name."""
        return self.pin.identity.deployment_id

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def public(self, name: str, body: Message | None = None) -> bytes:
        """Make an unsigned request.

        Raises:
            SecflError: what the manager refused; UnavailableError when it does not answer.
        """
        return self._client.call(name, b"" if body is None else body.encode())

    def nonce(self) -> bytes:
        """Take a nonce of the manager, for one question.

        Raises:
            SecflError: as `public`.
        """
        return NonceReply.decode(self._client.call("nonces", b"{}")).nonce

    def submit(self, name: str, document: Message) -> bytes:
        """Sign a document for one operation and send it.

        Raises:
            SecflError: as `public`.
        """
        return self.submit_bytes(name, document.encode())

    def submit_bytes(self, name: str, payload: bytes) -> bytes:
        """Sign encoded bytes for one operation and send them.

        Raises:
            SecflError: as `public`.
        """
        return self._client.call(name, self._key.sign_envelope(route(name).purpose, payload))

    def ask(self, name: str, make: Callable[[str, bytes], Message], reply: type[MessageType]) -> MessageType:
        """Ask a signed question: `make` gets the deployment id and a fresh nonce.

        Raises:
            SecflError: as `public`.
        """
        answer = self.submit(name, make(self.deployment_id, self.nonce()))
        return reply.decode(answer, max_bytes=_MAX_REPLY)

    def check_identity(self) -> Identity:
        """Return the manager's present identity when it is the pinned one.

        Raises:
            VerificationError: `manager.identity_changed`.
        """
        present = Identity.decode(self._client.call("identity"))
        if present != self.pin.identity:
            raise VerificationError(
                "manager.identity_changed", "this is not the manager that was attested", hint="secfl manager attest"
            )
        return present
