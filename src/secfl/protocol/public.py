"""Public messages: the manager's identity, nonces, and attestation of a service.

Nothing here is secret and nothing is signed: what counts in an attestation request is covered by its evidence, and
what counts in its answer is sealed to the attested key.
"""

from __future__ import annotations

from secfl.crypto.encoding import from_hex
from secfl.crypto.transcript import digest256, transcript
from secfl.protocol.message import (
    Base64,
    Digest,
    Identifier,
    Message,
    Name,
    Nonce,
    UnixTime,
)

__all__ = [
    "AttestReply",
    "AttestRequest",
    "Empty",
    "EvidenceRequest",
    "Founder",
    "Founders",
    "Identity",
    "ManagerEvidence",
    "NonceReply",
    "RenewReply",
    "RenewRequest",
    "founders_digest",
    "payload_context",
]


class Empty(Message):
    """A message without members."""


class Founder(Message):
    """A founding party: its name, signing key (DER SubjectPublicKeyInfo) and HPKE recipient key."""

    name: Name
    signing_key: Base64
    recipient_key: Base64


class Founders(Message):
    """All founding parties, in the order of the launch configuration."""

    founders: tuple[Founder, ...]


def founders_digest(founders: Founders) -> bytes:
    """The value that stands in the policy field of the manager's evidence (NW-15)."""
    return digest256("founders", founders.encode())


class Identity(Message):
    """What a manager says of itself; worth nothing until its evidence covers it.

    Attributes:
        deployment_id: 16 random bytes of the first start, hex.
        certificate: the TLS certificate, DER; it is pinned by its SHA-256.
        tls_key: its SubjectPublicKeyInfo (P-256), which also signs log heads and bundles.
        sealing_key: HPKE public key for deposits.
        founders: the founding parties.
    """

    deployment_id: Identifier
    certificate: Base64
    tls_key: Base64
    sealing_key: Base64
    founders: Founders


class EvidenceRequest(Message):
    """Ask the manager for fresh evidence over the caller's nonce."""

    nonce: Nonce


class ManagerEvidence(Message):
    """Evidence of the manager.

    Attributes:
        evidence: the CMW record, as text.
        identity: what the evidence covers together with the nonce.
        launch_claims: encoded `attestation.statement.ManagerClaims`.
    """

    evidence: str
    identity: Identity
    launch_claims: Base64


class NonceReply(Message):
    """A nonce of the manager; good once, until `expires`."""

    nonce: Nonce
    expires: UnixTime


class AttestRequest(Message):
    """Ask for the configuration and secrets of a service.

    Attributes:
        nonce: from `NonceReply`.
        study: name of the policy.
        service: the service this enclave wants to be.
        site: the node id: where it runs.
        policy_hash: the policy that the evidence was made for.
        evidence: the CMW record, as text.
        tls_key: SubjectPublicKeyInfo (P-256) that the leaf certificate is for.
        sealing_key: HPKE public key that the answer is sealed to.
        launch_claims: encoded `attestation.statement.LaunchClaims`; `roots` names every read-only volume of the service
            with the root of the image that lies there.
    """

    nonce: Nonce
    study: Name
    service: Name
    site: Name
    policy_hash: Digest
    evidence: str
    tls_key: Base64
    sealing_key: Base64
    launch_claims: Base64


class AttestReply(Message):
    """An attestation result.

    Attributes:
        lease_id: names the lease in service requests.
        lease_until: when peers drop this service unless it renews.
        certificates: leaf with the attestation result (EAR) in it, then the study's CA; DER.
        sealed: an encoded `ServicePayload`, sealed to the attested key for the purpose `service-payload`.
    """

    lease_id: Identifier
    lease_until: UnixTime
    certificates: tuple[Base64, ...]
    sealed: Base64


class RenewRequest(Message):
    """Renew a lease with fresh evidence (label `renew`) over the same keys and launch claims."""

    nonce: Nonce
    lease_id: Identifier
    policy_hash: Digest
    evidence: str
    launch_claims: Base64


class RenewReply(Message):
    """A renewed lease with a new result and leaf certificate."""

    lease_until: UnixTime
    certificates: tuple[Base64, ...]


def payload_context(nonce: bytes, policy_hash: str) -> bytes:
    """Context of the sealed payload: the request it answers, so that an old answer cannot be played back."""
    return transcript("service-payload", nonce, from_hex(policy_hash))
