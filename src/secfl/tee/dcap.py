"""The cryptographic verification of DCAP quotes by `dcap-qvl`, with the duties that it leaves to its caller.

The library checks signatures, the quoting enclave's identity and the TCB level. It takes most statuses for success,
any key under the root for a TCB signer, and any trailing bytes. So roles, dates and lists are checked before
(`secfl.tee.endorsement`), the layout too (`secfl.tee.quote`), and statuses are allow-listed after.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from typing import Any

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from secfl.attestation.appraise import TOLERABLE_STATUSES
from secfl.attestation.claims import VERIFIER_SEAL, SgxIdentity, TdxIdentity, VerifiedEvidence
from secfl.errors import VerificationError
from secfl.tee.anchor import TrustAnchor
from secfl.tee.endorsement import Endorsements, common_name
from secfl.tee.quote import UnverifiedQuote

__all__ = ["DcapClaims", "evidence_of", "verify_quote"]

_SWITCH = {"True": True, "False": False, "Undefined": None}
_TD_ATTRIBUTES = VerificationError("evidence.td_attributes", "the TD's attributes are not acceptable")
_FOREIGN_QE = VerificationError("evidence.quoting_enclave", "the quoting enclave is not the vendor's")
_REASONS = (
    ("Debug mode is enabled", VerificationError("evidence.debug", "the workload is in debug mode")),
    (
        "No matching TCB level",
        VerificationError("evidence.tcb_unknown", "the platform is below every known TCB level"),
    ),
    ("Revoked", VerificationError("evidence.tcb_revoked", "the platform's TCB level is revoked")),
    ("SEPT_VE_DISABLE", _TD_ATTRIBUTES),
    ("TD migration", _TD_ATTRIBUTES),
    ("TD profiling", _TD_ATTRIBUTES),
    ("TD attributes", _TD_ATTRIBUTES),
    (
        "MR service TD",
        VerificationError("evidence.service_td", "a service TD is bound, which could read the workload"),
    ),
    ("TDX module", VerificationError("evidence.tdx_module", "the TDX module is unknown")),
    ("QE report validation", _FOREIGN_QE),
    ("QE MRSIGNER", _FOREIGN_QE),
    ("QE ISV", _FOREIGN_QE),
    ("QE ATTRIBUTES", _FOREIGN_QE),
    ("QE MISCSELECT", _FOREIGN_QE),
    (
        "Fmspc mismatch",
        VerificationError("evidence.fmspc_mismatch", "the collateral is for another platform family"),
    ),
)
"""Reasons that the library gives as text, most telling first; every other failure is `evidence.not_authentic`."""


@dataclass(frozen=True, slots=True)
class DcapClaims:
    """What the library found in an authentic quote.

    Attributes:
        platform_id: PPID.
        fmspc: the platform family.
        tcb_status: merged status, allow-listed.
        advisory_ids: sorted.
        smt: None when undefined, likewise the next two.
        dynamic_platform: see above.
        cached_keys: see above.
    """

    platform_id: bytes
    fmspc: bytes
    tcb_status: str
    advisory_ids: tuple[str, ...]
    smt: bool | None
    dynamic_platform: bool | None
    cached_keys: bool | None


def verify_quote(quote: UnverifiedQuote, endorsements: Endorsements, anchor: TrustAnchor, now: int) -> DcapClaims:
    """Verify a quote against verified collateral.

    Raises:
        VerificationError: `evidence.kind_mismatch`, `evidence.root`, `evidence.role`, `evidence.pck_revoked`,
            `evidence.fmspc_mismatch`, `evidence.tcb_status`, `evidence.inconsistent`, `evidence.not_authentic`,
            `evidence.debug`, `evidence.tcb_unknown`, `evidence.tcb_revoked`, `evidence.td_attributes`,
            `evidence.service_td`, `evidence.tdx_module` or `evidence.quoting_enclave`.
    """
    # 1. The collateral speaks of this kind of enclave, and the platform's CA is the one whose list we have.
    if endorsements.kind != quote.kind:
        raise VerificationError("evidence.kind_mismatch", "the collateral is for another kind of enclave")
    _check_chain(quote, endorsements, anchor)
    # 2. Signatures, quoting enclave, TCB level.
    claims = _run(quote, endorsements, anchor, now)
    # 3. What the library leaves open.
    return _read(claims, quote, endorsements)


def evidence_of(
    quote: UnverifiedQuote,
    claims: DcapClaims,
    endorsements: Endorsements,
    anchor: TrustAnchor,
    *,
    measurement: bytes,
    identity: SgxIdentity | TdxIdentity,
) -> VerifiedEvidence:
    """Put the claims of a verified quote together, after the caller has checked what its kind demands.

    Args:
        claims: what `verify_quote` gave for this quote.
        measurement: MRENCLAVE or MRTD.
        identity: what a quote of its kind says besides.
    """
    return VerifiedEvidence(
        seal=VERIFIER_SEAL,
        kind=quote.kind,
        trust_domain=anchor.domain,
        measurement=measurement,
        report_data=quote.report_data,
        platform_id=claims.platform_id,
        fmspc=claims.fmspc,
        tcb_status=claims.tcb_status,
        advisory_ids=claims.advisory_ids,
        evaluation_number=endorsements.evaluation_number,
        smt=claims.smt,
        dynamic_platform=claims.dynamic_platform,
        cached_keys=claims.cached_keys,
        debug=False,  # the verifier of each kind refuses everything else
        collateral_expires=endorsements.expires,
        evidence_digest=quote.digest,
        identity=identity,
    )


def _check_chain(quote: UnverifiedQuote, endorsements: Endorsements, anchor: TrustAnchor) -> None:
    pck, authority, root = quote.chain.certificates
    if root.public_bytes(Encoding.DER) != anchor.root_der:
        raise VerificationError("evidence.root", "the evidence ends in another root than the trust anchor")
    # This key's role was checked with the collateral: only a platform CA passes.
    if _spki(authority) != endorsements.pck_ca_spki:
        raise VerificationError("evidence.role", "the collateral covers the platforms of another CA")
    if common_name(pck) != f"{anchor.vendor} SGX PCK Certificate":
        raise VerificationError("evidence.role", "the platform's certificate has another role")
    if pck.serial_number in endorsements.revoked:
        raise VerificationError("evidence.pck_revoked", "the platform's certificate is revoked")


def _run(quote: UnverifiedQuote, endorsements: Endorsements, anchor: TrustAnchor, now: int) -> dict[str, Any]:
    source = endorsements.collateral
    try:
        collateral = dcap_qvl.QuoteCollateralV3(
            source.pck_crl_issuer_chain,
            source.root_ca_crl,
            source.pck_crl,
            source.tcb_info_issuer_chain,
            source.tcb_info,
            source.tcb_info_signature,
            source.qe_identity_issuer_chain,
            source.qe_identity,
            source.qe_identity_signature,
        )
        verifier = dcap_qvl.QuoteVerifier(anchor.root_der)
        policy = dcap_qvl.QuotePolicy.claims_only(now)
        claims = json.loads(verifier.verify_with_policy(quote.raw, collateral, now, policy).to_json())
    except ValueError as error:
        raise _reason(str(error)) from None
    if not isinstance(claims, dict):
        raise VerificationError("evidence.inconsistent", "the verifier's answer cannot be read")
    return claims


def _reason(text: str) -> VerificationError:
    for part, known in _REASONS:
        if part in text:
            return VerificationError(known.code, known.message, reason=text[:200])
    return VerificationError("evidence.not_authentic", "the evidence is not authentic", reason=text[:200])


def _read(claims: dict[str, Any], quote: UnverifiedQuote, endorsements: Endorsements) -> DcapClaims:
    # A changed form of the answer is a failure, never a pass (EV-36).
    try:
        return _checked(claims, quote, endorsements)
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError("evidence.inconsistent", "the verifier's answer cannot be read") from error


def _checked(claims: dict[str, Any], quote: UnverifiedQuote, endorsements: Endorsements) -> DcapClaims:
    status = claims["tcb"]["status"]
    if status not in TOLERABLE_STATUSES:
        raise VerificationError("evidence.tcb_status", "a TCB status that is not acceptable", actual=str(status)[:64])
    pck = claims["platform"]["pck"]
    fmspc = bytes(pck["fmspc"])
    if fmspc != endorsements.fmspc:
        raise VerificationError("evidence.fmspc_mismatch", "the collateral is for another platform family")
    # The library and our own reader must see the same report, or one of them was deceived.
    (report,) = claims["report"].values()
    if not hmac.compare_digest(_report_data(report), quote.report_data):
        raise VerificationError("evidence.inconsistent", "two readers of the report disagree")
    platform_id = bytes(pck["ppid"])
    if len(platform_id) != 16 or not any(platform_id):
        raise VerificationError("evidence.inconsistent", "the platform certificate has no platform id")
    return DcapClaims(
        platform_id=platform_id,
        fmspc=fmspc,
        tcb_status=status,
        advisory_ids=tuple(sorted({str(advisory) for advisory in claims["tcb"]["advisory_ids"]})),
        smt=_SWITCH[pck["smt_enabled"]],
        dynamic_platform=_SWITCH[pck["dynamic_platform"]],
        cached_keys=_SWITCH[pck["cached_keys"]],
    )


def _report_data(report: dict[str, Any]) -> bytes:
    # TD report 1.5 nests the 1.0 report.
    inner = report.get("base", report)
    return bytes.fromhex(inner["report_data"])


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
