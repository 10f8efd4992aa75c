"""TDX evidence: a TD quote becomes claims, or an error.

Attributes are an allow-list: SEPT_VE_DISABLE must be set, protection keys for supervisor pages may be, and any other
bit (debug, migration, performance counters, bits of the future) refuses the evidence.
"""

from __future__ import annotations

from secfl.attestation.claims import TdxIdentity, VerifiedEvidence
from secfl.errors import VerificationError
from secfl.tee.anchor import TrustAnchor
from secfl.tee.dcap import evidence_of, verify_quote
from secfl.tee.endorsement import Endorsements
from secfl.tee.quote import TDX_BODY_BYTES, UnverifiedQuote

__all__ = ["SEPT_VE_DISABLE", "verify_tdx"]

SEPT_VE_DISABLE = 1 << 28
_PKS = 1 << 30
_DEBUG = 0xFF
"""The whole TUD byte: any bit of it lets the host look into the TD."""


def verify_tdx(
    quote: UnverifiedQuote, *, endorsements: Endorsements, anchor: TrustAnchor, now: int
) -> VerifiedEvidence:
    """Verify a TDX quote of version 4 or 5.

    Raises:
        VerificationError: as `dcap.verify_quote`, or `evidence.debug`, `evidence.td_attributes`,
            `evidence.service_td`.
    """
    claims = verify_quote(quote, endorsements, anchor, now)
    body = quote.body
    attributes = body[120:128]
    _check_attributes(int.from_bytes(attributes, "little"))
    _check_service_td(body)
    identity = TdxIdentity(
        rtmrs=(body[328:376], body[376:424], body[424:472], body[472:520]),
        attributes=attributes,
        xfam=body[128:136],
        config_id=body[184:232],
        owner=body[232:280],
        owner_config=body[280:328],
        seam=body[16:64],
    )
    return evidence_of(quote, claims, endorsements, anchor, measurement=body[136:184], identity=identity)


def _check_attributes(attributes: int) -> None:
    if attributes & _DEBUG:
        raise VerificationError("evidence.debug", "the TD is in debug mode")
    if not attributes & SEPT_VE_DISABLE or attributes & ~(SEPT_VE_DISABLE | _PKS):
        raise VerificationError(
            "evidence.td_attributes", "the TD's attributes are not acceptable", actual=f"{attributes:016x}"
        )


def _check_service_td(body: bytes) -> None:
    # TD report 1.5: TEE_TCB_SVN2 (16 bytes) and MRSERVICETD (48) follow the 1.0 report.
    if any(body[TDX_BODY_BYTES + 16 :]):
        raise VerificationError("evidence.service_td", "a service TD is bound, which could read the workload")
