"""Attesting the manager: fresh evidence over the party's nonce, then the pin.

The certificate is fetched first and believed last: every request goes over a connection that shows exactly it, and only
an accepted appraisal writes the pin. A pin that exists is replaced only on request, so that a manager that changes its
certificate between two calls is noticed (NW-03).
"""

from __future__ import annotations

import hashlib
import os

from secfl.attestation.appraise import Appraised
from secfl.attestation.binding import NONCE_BYTES
from secfl.attestation.statement import ManagerClaims
from secfl.errors import StateError, VerificationError
from secfl.linux.https_client import HttpsClient, unverified_certificate
from secfl.party.home import PartyHome
from secfl.party.session import ManagerPin
from secfl.party.trust import ManagerReference, TrustStore, appraise_manager
from secfl.protocol.public import EvidenceRequest, ManagerEvidence

__all__ = ["attest_manager"]


def attest_manager(
    home: PartyHome, reference: ManagerReference, trust: TrustStore, *, now: int, replace: bool = False
) -> Appraised:
    """Attest the manager and pin it.

    Raises:
        StateError: `manager.other_pinned` when another manager is pinned and `replace` is not given.
        FreshnessError: `manager.rolled_back` when its log is older than the one that was seen before.
        VerificationError: the evidence is not authentic or not bound to this nonce, certificate and founders.
        AppraisalError: the manager is not what the reference describes.
        UnavailableError: it does not answer.
    """
    certificate = unverified_certificate(reference.address)
    client = HttpsClient(reference.address, certificate_sha256=hashlib.sha256(certificate).digest())
    nonce = os.urandom(NONCE_BYTES)
    try:
        answer = client.call("manager/evidence", EvidenceRequest(nonce=nonce).encode())
    finally:
        client.close()
    evidence = ManagerEvidence.decode(answer)
    appraised = appraise_manager(evidence, reference, trust, nonce=nonce, certificate=certificate, now=now)
    statement = appraised.statement
    if not isinstance(statement, ManagerClaims):
        raise VerificationError("manager.claims", "the evidence is not a manager's")
    if home.pin_path.exists() and not replace:
        pinned = ManagerPin.load(home.pin_path)
        if pinned.identity != evidence.identity:
            raise StateError(
                "manager.other_pinned",
                "another manager is pinned here",
                hint="find out why it changed; then secfl manager attest --replace",
            )
        pinned.require_later(statement)
    pin = ManagerPin(
        address=reference.address,
        identity=evidence.identity,
        trust_domain=appraised.verified.trust_domain,
        attested_at=now,
        log_sequence=statement.log_length,
        log_head=statement.log_head,
    )
    pin.save(home.pin_path)
    return appraised
