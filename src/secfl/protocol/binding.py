"""Bindings of the exchanges: which fields of a message stand in which field of the evidence.

Attester and verifier both build the binding here, so that no field is bound on one side only.
"""

from __future__ import annotations

from dataclasses import dataclass

from secfl.attestation.binding import Binding, Purpose
from secfl.attestation.statement import LaunchClaims, ManagerClaims, decode_statement
from secfl.crypto.encoding import from_hex
from secfl.crypto.x509 import unverified_public_key
from secfl.errors import EncodingError, VerificationError
from secfl.protocol.public import ManagerEvidence, founders_digest

__all__ = ["MANAGER", "Subject", "manager_binding", "read_launch_claims", "service_binding"]

MANAGER = "manager"
"""Service and node name of a manager."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The enclave that evidence is about, and the manager it talks to.

    Attributes:
        study: name of the policy.
        service: the service.
        site: where it runs.
        tls_key: SubjectPublicKeyInfo of its TLS key.
        sealing_key: its HPKE public key.
        deployment_id: the manager's deployment.
        manager_certificate: DER certificate of the manager: its own on the manager's side, the one of the handshake
            on the other, so that a relay with another certificate is found (EV-12).
    """

    study: str
    service: str
    site: str
    tls_key: bytes
    sealing_key: bytes
    deployment_id: str
    manager_certificate: bytes


def service_binding(purpose: Purpose, subject: Subject, *, nonce: bytes, policy_hash: str, claims: bytes) -> Binding:
    """What the evidence of a service is bound to.

    Args:
        claims: the encoded statement.

    Raises:
        EncodingError: a field is malformed.
        FreshnessError: `binding.nonce`.
    """
    return Binding(
        purpose=purpose,
        service=f"{subject.study}/{subject.service}",
        policy_hash=from_hex(policy_hash, size=32),
        nonce=nonce,
        tls_spki=subject.tls_key,
        sealing_key=subject.sealing_key,
        manager_certificate=subject.manager_certificate,
        deployment_id=subject.deployment_id,
        node_id=subject.site,
        claims=read_launch_claims(claims),
    )


def manager_binding(evidence: ManagerEvidence, *, nonce: bytes) -> Binding:
    """What the evidence of a manager is bound to; the founders stand in the policy field (NW-15).

    Raises:
        EncodingError: a field is malformed.
        FreshnessError: `binding.nonce`.
        VerificationError: `identity.certificate_key` when the certificate is for another key than the one bound.
    """
    identity = evidence.identity
    claims = decode_statement(evidence.launch_claims)
    if not isinstance(claims, ManagerClaims):
        raise EncodingError("statement.malformed", "not the statement of a manager")
    if unverified_public_key(identity.certificate).spki != identity.tls_key:
        raise VerificationError("identity.certificate_key", "the certificate is not for the attested key")
    return Binding(
        purpose=Purpose.MANAGER,
        service=MANAGER,
        policy_hash=founders_digest(identity.founders),
        nonce=nonce,
        tls_spki=identity.tls_key,
        sealing_key=identity.sealing_key,
        manager_certificate=b"",
        deployment_id=identity.deployment_id,
        node_id=MANAGER,
        claims=claims,
    )


def read_launch_claims(data: bytes) -> LaunchClaims:
    """Read the statement of a shield.

    Raises:
        EncodingError: `statement.malformed`, or a code of its members.
    """
    claims = decode_statement(data)
    if not isinstance(claims, LaunchClaims):
        raise EncodingError("statement.malformed", "not the statement of a shield")
    return claims
