"""The manager's identity: made once, at the first start, and kept in entry 0 of the log.

It is a deployment id, a TLS key with its certificate, and an HPKE key for deposits, together with the founding
parties. None of it is configuration: what the operator passes on a later start must be the same or is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.crypto.hpke import PUBLIC_KEY_BYTES, SEED_BYTES, SealingKey
from secfl.crypto.signing import PublicKey, SigningKey
from secfl.crypto.x509 import LeafProfile, Usage, Validity, issue_leaf, make_ca
from secfl.errors import ConfigError
from secfl.manager.log import Event
from secfl.protocol.public import Founders, Identity

__all__ = ["FOUNDED", "ManagerIdentity", "Random", "check_founders"]

FOUNDED = "founded"
"""Kind of entry 0."""
_TEN_YEARS = 10 * 366 * 86_400
_DAY = 86_400
"""Clocks of clients may be behind; the pin, not the date, decides."""

Random = Callable[[int], bytes]
"""A source of random bytes."""


@dataclass(frozen=True, slots=True)
class ManagerIdentity:
    """Who this manager is.

    Attributes:
        public: what it tells everybody.
        tls_key: key of the certificate; also signs log heads.
        sealing: opens deposits.
    """

    public: Identity
    tls_key: SigningKey = field(repr=False)
    sealing: SealingKey = field(repr=False)

    @property
    def deployment_id(self) -> str:
        """32 hex digits."""
        return self.public.deployment_id

    @classmethod
    def create(
        cls, deployment_id: bytes, founders: Founders, *, now: int, random: Random
    ) -> tuple[ManagerIdentity, Event]:
        """Make the identity and the event that keeps it.

        Raises:
            ConfigError: as `check_founders`.
        """
        check_founders(founders)
        tls_key = SigningKey.generate_p256()
        seed = random(SEED_BYTES)
        validity = Validity(now - _DAY, now + _TEN_YEARS)
        authority = make_ca(tls_key, name="SECFL manager key", validity=validity)
        profile = LeafProfile("SECFL manager", validity, dns=("manager.secfl",), usages=frozenset({Usage.SERVER}))
        public = Identity(
            deployment_id=deployment_id.hex(),
            certificate=issue_leaf(authority, tls_key.public, profile),
            tls_key=tls_key.public.spki,
            sealing_key=SealingKey(seed).public,
            founders=founders,
        )
        secret = {"sealing_seed": to_base64url(seed), "tls_key": tls_key.to_pem().decode()}
        event = Event(FOUNDED, {"identity": to_base64url(public.encode())}, secret)
        return cls(public, tls_key, SealingKey(seed)), event

    @classmethod
    def restore(cls, event: Event) -> ManagerIdentity:
        """Rebuild the identity from entry 0.

        Raises:
            EncodingError: the entry is malformed.
        """
        public = Identity.decode(from_base64url(event.public["identity"]))
        tls_key = SigningKey.from_pem(event.secret["tls_key"].encode())
        return cls(public, tls_key, SealingKey(from_base64url(event.secret["sealing_seed"])))


def check_founders(founders: Founders) -> Founders:
    """Return founders that are usable: at least one, no name and no key twice.

    Raises:
        ConfigError: `founders.none`, `founders.duplicate` or `founders.recipient_key`.
        EncodingError: `key.unsupported`.
    """
    if not founders.founders:
        raise ConfigError("founders.none", "a deployment has at least one founding party")
    names = {founder.name for founder in founders.founders}
    keys = {PublicKey(founder.signing_key).key_id for founder in founders.founders}
    if len(names) != len(founders.founders) or len(keys) != len(founders.founders):
        raise ConfigError("founders.duplicate", "a founder's name or signing key appears twice")
    if any("/" in founder.name for founder in founders.founders):
        raise ConfigError("founders.duplicate", "a party's name has no slash")
    if any(len(founder.recipient_key) != PUBLIC_KEY_BYTES for founder in founders.founders):
        raise ConfigError("founders.recipient_key", "a recipient key has the wrong size", expected=PUBLIC_KEY_BYTES)
    return founders
