"""The verifier: evidence, collateral, trust anchor and time in; verified claims or an error out.

It opens nothing. The steps are in this order because each relies on the one before. Only a `KnownCollateral` remembers
anything: verdicts on collateral, which depend on nothing but its bytes, the anchor, and whether the time is in range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from secfl.attestation.claims import VerifiedEvidence
from secfl.attestation.evidence import Evidence
from secfl.errors import EncodingError
from secfl.tee.anchor import TrustAnchor
from secfl.tee.collateral import Collateral
from secfl.tee.endorsement import Endorsements, check_collateral
from secfl.tee.quote import parse
from secfl.tee.sgx import verify_sgx
from secfl.tee.tdx import verify_tdx

__all__ = [
    "AsyncEvidenceVerifier",
    "CheckCollateral",
    "EvidenceVerifier",
    "InProcessVerifier",
    "KnownCollateral",
    "verify",
]

CheckCollateral = Callable[[Collateral, TrustAnchor, int], Endorsements]
_MAX_KNOWN = 8
"""Verdicts that are kept: two kinds of evidence for each of a few trust domains."""


class EvidenceVerifier(Protocol):
    """Whoever verifies evidence in this process."""

    def verify(self, evidence: Evidence, collateral: Collateral, anchor: TrustAnchor, now: int) -> VerifiedEvidence:
        """Verify as the function `verify` does.

        Raises:
            SecflError: as the function `verify`.
        """
        ...


class AsyncEvidenceVerifier(Protocol):
    """Whoever verifies evidence elsewhere, while the event loop goes on."""

    async def verify(
        self, evidence: Evidence, collateral: Collateral, anchor: TrustAnchor, now: int
    ) -> VerifiedEvidence:
        """Verify as the function `verify` does.

        Raises:
            SecflError: as the function `verify`.
            UnavailableError: `verifier.timeout`, `verifier.crashed`, `verifier.busy` or `verifier.closed`.
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


class KnownCollateral:
    """Checks collateral once for all times at which the verdict is the same."""

    def __init__(self) -> None:
        """Start with nothing known."""
        self._known: dict[tuple[Collateral, TrustAnchor], Endorsements] = {}

    def check(self, collateral: Collateral, anchor: TrustAnchor, now: int) -> Endorsements:
        """Check as `check_collateral` does.

        Raises:
            SecflError: as `check_collateral`; a refusal is not remembered.
        """
        known = self._known.get((collateral, anchor))
        if known is not None and known.valid_from <= now <= known.expires:
            return known
        checked = check_collateral(collateral, anchor, now)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[collateral, anchor] = checked
        return checked


def verify(
    evidence: Evidence,
    collateral: Collateral,
    anchor: TrustAnchor,
    now: int,
    *,
    check: CheckCollateral = check_collateral,
) -> VerifiedEvidence:
    """Return what authentic evidence says.

    Args:
        check: `check_collateral`, or that of `KnownCollateral`.

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
    endorsements = check(collateral, anchor, now)
    # 3. The quote under both.
    verify_kind = verify_tdx if quote.kind == "tdx" else verify_sgx
    return verify_kind(quote, endorsements=endorsements, anchor=anchor, now=now)
