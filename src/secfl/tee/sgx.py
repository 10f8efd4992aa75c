"""SGX evidence: an enclave quote becomes claims, or an error.

Attributes are an allow-list too: a debug enclave is refused, and so is one that may hold provisioning or launch keys.
"""

from __future__ import annotations

from secfl.attestation.claims import SgxIdentity, VerifiedEvidence
from secfl.errors import VerificationError
from secfl.tee.anchor import TrustAnchor
from secfl.tee.dcap import evidence_of, verify_quote
from secfl.tee.endorsement import Endorsements
from secfl.tee.quote import UnverifiedQuote

__all__ = ["FLAG_INIT", "FLAG_MODE64", "verify_sgx"]

FLAG_INIT = 1 << 0
FLAG_MODE64 = 1 << 2
_FLAG_DEBUG = 1 << 1
_FLAG_KSS = 1 << 7
_FLAG_AEX_NOTIFY = 1 << 10


def verify_sgx(
    quote: UnverifiedQuote, *, endorsements: Endorsements, anchor: TrustAnchor, now: int
) -> VerifiedEvidence:
    """Verify an SGX quote of version 3.

    Raises:
        VerificationError: as `dcap.verify_quote`, or `evidence.debug`, `evidence.enclave_attributes`.
    """
    claims = verify_quote(quote, endorsements, anchor, now)
    body = quote.body
    attributes = body[48:64]
    _check_attributes(int.from_bytes(attributes[:8], "little"))
    identity = SgxIdentity(
        signer=body[128:160],
        product=int.from_bytes(body[256:258], "little"),
        svn=int.from_bytes(body[258:260], "little"),
        attributes=attributes,
        misc_select=int.from_bytes(body[16:20], "little"),
    )
    return evidence_of(quote, claims, endorsements, anchor, measurement=body[64:96], identity=identity)


def _check_attributes(flags: int) -> None:
    if flags & _FLAG_DEBUG:
        raise VerificationError("evidence.debug", "the enclave is in debug mode")
    required = FLAG_INIT | FLAG_MODE64
    if flags & required != required or flags & ~(required | _FLAG_KSS | _FLAG_AEX_NOTIFY):
        raise VerificationError(
            "evidence.enclave_attributes", "the enclave's attributes are not acceptable", actual=f"{flags:016x}"
        )
