"""The binding: which keys, policy, place and purpose one piece of evidence speaks for.

All of it is hashed into the 64 bytes that the hardware signs (`report_data`). Whoever relays, replays or re-labels
evidence has to change a field, and then the digest differs (EV-08, EV-10, EV-12, EV-14 to EV-16). The digest does not
tell which field: the error says only that the binding does not hold.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import Enum

from secfl.attestation.claims import VerifiedEvidence
from secfl.attestation.statement import LaunchClaims, ManagerClaims
from secfl.crypto.hpke import PUBLIC_KEY_BYTES
from secfl.crypto.signing import PublicKey
from secfl.crypto.transcript import digest512
from secfl.errors import EncodingError, FreshnessError, VerificationError

__all__ = ["NONCE_BYTES", "Binding", "Purpose", "check"]

NONCE_BYTES = 32
_HASH_BYTES = 32
_MAX_TEXT = 512
_MAX_CERTIFICATE = 64 * 1024


class Purpose(Enum):
    """Why evidence was made; evidence for one purpose never serves another."""

    ATTEST = "attest"
    RENEW = "renew"
    PEER = "peer"
    MANAGER = "manager"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Everything that evidence vouches for.

    Attributes:
        purpose: the label of the digest.
        service: `STUDY/SERVICE`, or `manager`.
        policy_hash: 32-byte hash of the policy in force.
        nonce: the challenger's 32 random bytes.
        tls_spki: DER SubjectPublicKeyInfo of the attester's TLS key.
        sealing_key: the attester's HPKE public key.
        manager_certificate: DER certificate of the manager as the attester saw it; empty exactly for a manager.
        deployment_id: the deployment's name.
        node_id: the site's name.
        claims: the attester's statement about itself; a `ManagerClaims` exactly for a manager.
    """

    purpose: Purpose
    service: str
    policy_hash: bytes
    nonce: bytes
    tls_spki: bytes
    sealing_key: bytes
    manager_certificate: bytes
    deployment_id: str
    node_id: str
    claims: LaunchClaims | ManagerClaims

    def __post_init__(self) -> None:
        """Refuse a field that is absent or of the wrong size: an empty field would bind nothing.

        Raises:
            EncodingError: `binding.malformed`, or `key.unsupported`.
            FreshnessError: `binding.nonce` for a short, long or all-zero nonce.
        """
        if len(self.nonce) != NONCE_BYTES or not any(self.nonce):
            raise FreshnessError("binding.nonce", "a nonce has 32 bytes and is not zero", actual=len(self.nonce))
        for text in (self.service, self.deployment_id, self.node_id):
            if not 0 < len(text) <= _MAX_TEXT:
                raise EncodingError("binding.malformed", "service, deployment and node are non-empty names")
        if len(self.policy_hash) != _HASH_BYTES or len(self.sealing_key) != PUBLIC_KEY_BYTES:
            raise EncodingError("binding.malformed", "the policy hash or the sealing key has the wrong size")
        PublicKey(self.tls_spki)
        is_manager = self.purpose is Purpose.MANAGER
        if is_manager != isinstance(self.claims, ManagerClaims) or is_manager != (not self.manager_certificate):
            raise EncodingError("binding.malformed", "a manager, and only it, binds manager claims and no manager")
        if len(self.manager_certificate) > _MAX_CERTIFICATE:
            raise EncodingError("binding.malformed", "the manager certificate is too large")

    def report_data(self) -> bytes:
        """The 64 bytes for the quote."""
        return digest512(
            f"binding-{self.purpose.value}",
            self.service.encode(),
            self.policy_hash,
            self.nonce,
            self.tls_spki,
            self.sealing_key,
            self.manager_certificate,
            self.deployment_id.encode(),
            self.node_id.encode(),
            hashlib.sha256(self.claims.encode()).digest(),
        )


def check(binding: Binding, verified: VerifiedEvidence) -> Binding:
    """Return the binding when the verified evidence was made for exactly it.

    Raises:
        VerificationError: `binding.mismatch`; which field differs cannot be told from a digest.
    """
    if not hmac.compare_digest(binding.report_data(), verified.report_data):
        raise VerificationError(
            "binding.mismatch",
            "the evidence is not bound to this purpose, service, policy, nonce, keys, manager, node and launch",
            hint="attest again with a fresh nonce; a relay or a replay looks like this",
        )
    return binding
