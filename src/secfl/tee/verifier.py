"""The verifier: evidence, collateral, trust anchor and time in; verified claims or an error out.

It opens nothing and remembers nothing. The steps are in this order because each relies on the one before.
"""

from __future__ import annotations

from typing import Protocol

from secfl.attestation.claims import VerifiedEvidence
from secfl.attestation.evidence import Evidence
from secfl.errors import EncodingError
from secfl.tee.anchor import TrustAnchor
from secfl.tee.collateral import Collateral
from secfl.tee.endorsement import check_collateral
from secfl.tee.quote import parse
from secfl.tee.sgx import verify_sgx
from secfl.tee.tdx import verify_tdx

__all__ = ["EvidenceVerifier", "InProcessVerifier", "verify"]


class EvidenceVerifier(Protocol):
    """Whoever verifies evidence: this process, or worker processes."""

    def verify(self, evidence: Evidence, collateral: Collateral, anchor: TrustAnchor, now: int) -> VerifiedEvidence:
        """Verify as the function `verify` does.

        Raises:
            SecflError: as the function `verify`.
            UnavailableError: `verifier.timeout`, `verifier.crashed` or `verifier.closed`, in worker processes only.
        """
        ...


class InProcessVerifier:
    """Verifies in this process; for programs that do nothing else meanwhile, such as the CLI."""

    def verify(self, evidence: Evidence, collateral: Collateral, anchor: TrustAnchor, now: int) -> VerifiedEvidence:
        """Verify as the function `verify` does.

        Raises:
            SecflError: as the function `verify`.
        """
        return verify(evidence, collateral, anchor, now)


def verify(evidence: Evidence, collateral: Collateral, anchor: TrustAnchor, now: int) -> VerifiedEvidence:
    """Return what authentic evidence says.

    Raises:
        EncodingError: `evidence.kind_mismatch`, or as `quote.parse` and `check_collateral`.
        VerificationError: as `check_collateral`, `verify_tdx` and `verify_sgx`.
        FreshnessError: as `check_collateral`.
    """
    # 1. The layout, cheap and without trust: most garbage ends here.
    quote = parse(evidence.blob)
    if quote.kind != evidence.kind:
        raise EncodingError("evidence.kind_mismatch", "the evidence is of another kind than its record says")
    # 2. The collateral under the anchor: nothing signed by a wrong role reaches the library.
    endorsements = check_collateral(collateral, anchor, now)
    # 3. The quote under both.
    verify_kind = verify_tdx if quote.kind == "tdx" else verify_sgx
    return verify_kind(quote, endorsements=endorsements, anchor=anchor, now=now)
