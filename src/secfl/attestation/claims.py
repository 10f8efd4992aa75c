"""What a verifier found in authentic evidence.

`VerifiedEvidence` is made only by the verifiers in `secfl.tee`, which hold the seal; appraisal takes nothing else, so
that no code path can appraise claims that nobody verified. A test checks who uses the seal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final, final

__all__ = ["VERIFIER_SEAL", "SgxIdentity", "TdxIdentity", "VerifiedEvidence", "VerifierSeal"]

_SIMULATED = "simulated:"


@final
class VerifierSeal:
    """The token that a verifier shows to make claims."""

    __slots__ = ()


VERIFIER_SEAL: Final = VerifierSeal()
"""Used by the verifiers in `secfl.tee` only."""


@dataclass(frozen=True, slots=True)
class SgxIdentity:
    """What an SGX quote says besides the measurement.

    Attributes:
        signer: MRSIGNER, 32 bytes.
        product: ISVPRODID.
        svn: ISVSVN.
        attributes: the enclave's ATTRIBUTES, 16 bytes.
        misc_select: MISCSELECT.
    """

    signer: bytes
    product: int
    svn: int
    attributes: bytes
    misc_select: int


@dataclass(frozen=True, slots=True)
class TdxIdentity:
    """What a TDX quote says besides the measurement.

    Attributes:
        rtmrs: RTMR0 to RTMR3, 48 bytes each.
        attributes: TDATTRIBUTES, 8 bytes.
        xfam: XFAM, 8 bytes.
        config_id: MRCONFIGID, 48 bytes.
        owner: MROWNER, 48 bytes.
        owner_config: MROWNERCONFIG, 48 bytes.
        seam: MRSEAM, the TDX module's measurement, 48 bytes.
    """

    rtmrs: tuple[bytes, bytes, bytes, bytes]
    attributes: bytes
    xfam: bytes
    config_id: bytes
    owner: bytes
    owner_config: bytes
    seam: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEvidence:
    """Claims from evidence whose whole chain up to the trust anchor was verified.

    Attributes:
        seal: proof that a verifier made this.
        kind: `sgx` or `tdx`.
        trust_domain: the anchor's domain; a simulated one says so.
        measurement: MRENCLAVE (32 bytes) or MRTD (48 bytes).
        report_data: the 64 bytes that the attester chose.
        platform_id: PPID of the machine, 16 bytes.
        fmspc: the platform's family, 6 bytes.
        tcb_status: merged status of platform, TDX module and quoting enclave, in Intel's words.
        advisory_ids: advisories that this TCB level has open, sorted.
        evaluation_number: the lower of the collateral's two TCB evaluation data numbers.
        smt: hyper-threading; None when the platform's certificate does not say.
        dynamic_platform: whether packages may be added; None when the certificate does not say.
        cached_keys: whether the vendor caches platform keys; None when the certificate does not say.
        debug: always False today: verifiers refuse debug workloads outright.
        collateral_expires: when the first part of the collateral expires, Unix seconds.
        evidence_digest: SHA-256 over the signed region only; the one identity of this evidence, as the rest of a
            quote can be changed without breaking it.
        identity: the rest, by kind.
    """

    seal: VerifierSeal = field(repr=False)
    kind: str
    trust_domain: str
    measurement: bytes
    report_data: bytes
    platform_id: bytes
    fmspc: bytes
    tcb_status: str
    advisory_ids: tuple[str, ...]
    evaluation_number: int
    smt: bool | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    debug: bool
    collateral_expires: int
    evidence_digest: bytes
    identity: SgxIdentity | TdxIdentity

    def __post_init__(self) -> None:
        """Refuse claims that no verifier made.

        Raises:
            TypeError: the seal is missing.
        """
        if self.seal is not VERIFIER_SEAL:
            raise TypeError("only a verifier makes verified evidence")

    @property
    def simulated(self) -> bool:
        """Whether the root is a simulated platform's."""
        return self.trust_domain.startswith(_SIMULATED)

    def to_record(self) -> dict[str, Any]:
        """Give the claims as a JSON value, for logs and for people."""
        record = {item.name: _plain(getattr(self, item.name)) for item in fields(self) if item.name != "seal"}
        identity = {item.name: _plain(getattr(self.identity, item.name)) for item in fields(self.identity)}
        return {**record, "identity": identity}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | None) else None
