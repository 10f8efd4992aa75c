"""Appraisal: is authentic evidence acceptable to these reference values?

Reference values are variants (one must fit entirely) of factors (all must hold). A factor that is empty accepts
nothing; a tolerance names what it tolerates and until when. All findings of the variant that came closest are
reported at once, so that a person can correct everything in one go.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, final

from secfl.attestation.claims import SgxIdentity, VerifiedEvidence
from secfl.attestation.statement import Isolation, LaunchClaims, ManagerClaims
from secfl.errors import AppraisalError, Finding

__all__ = [
    "TOLERABLE_STATUSES",
    "UP_TO_DATE",
    "AnyPlatform",
    "Appraised",
    "ReferenceValues",
    "SgxReference",
    "Tolerance",
    "Variant",
    "appraise",
]

UP_TO_DATE = "UpToDate"
TOLERABLE_STATUSES = frozenset(
    {
        UP_TO_DATE,
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "TDRelaunchAdvised",
        "TDRelaunchAdvisedConfigurationNeeded",
    }
)
"""TCB statuses that a policy may tolerate by name; `Revoked` is never among them (EV-23). UpToDate is here because a
level that is up to date may still have an advisory open, which then must be named as well."""


@dataclass(frozen=True, slots=True)
class AnyPlatform:
    """The decision not to restrict machines, with its reason (style: skipping is a value)."""

    reason: str

    def __post_init__(self) -> None:
        """Refuse a skip without a reason.

        Raises:
            ValueError: the reason is blank.
        """
        if not self.reason.strip():
            raise ValueError("accepting any platform needs a reason")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A TCB status that is accepted for a while.

    Attributes:
        status: one of `TOLERABLE_STATUSES`.
        advisories: the advisories that may be open; a further one is refused.
        until: last second, Unix time, at which it holds.
    """

    status: str
    advisories: frozenset[str]
    until: int

    def __post_init__(self) -> None:
        """Refuse statuses that nobody may tolerate.

        Raises:
            ValueError: the status is not tolerable.
        """
        if self.status not in TOLERABLE_STATUSES:
            raise ValueError(f"the TCB status {self.status!r} cannot be tolerated")


@dataclass(frozen=True, slots=True)
class SgxReference:
    """What an SGX enclave must be besides its measurement."""

    signers: frozenset[bytes]
    product: int
    minimum_svn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Factors that must all hold.

    Attributes:
        trust_domain: exactly this domain.
        tee: `sgx` or `tdx`.
        measurements: accepted MRENCLAVE or MRTD values; empty accepts nothing.
        platforms: accepted PPIDs, empty accepts nothing; or a reasoned decision to accept any.
        minimum_evaluation: lowest TCB evaluation data number of the collateral; stops its roll-back.
        minimum_isolation: lowest isolation level of the launch.
        roots: volume to root that must be mounted, exactly these, and a manager mounts none; None when the statement
            carries no roots yet.
        tolerances: accepted TCB statuses besides UpToDate.
        allow_smt: whether hyper-threading may be on, or unknown.
        allow_taints: taints of the launch that are accepted.
        sgx: further demands on an enclave; None for none.
    """

    trust_domain: str
    tee: str
    measurements: frozenset[bytes]
    platforms: frozenset[bytes] | AnyPlatform
    minimum_evaluation: int
    minimum_isolation: Isolation = Isolation.FULL
    roots: Mapping[str, bytes] | None = None
    tolerances: tuple[Tolerance, ...] = ()
    allow_smt: bool = False
    allow_taints: frozenset[str] = field(default_factory=frozenset)
    sgx: SgxReference | None = None


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """Variants of which one must fit; none accepts nothing."""

    variants: tuple[Variant, ...]


@final
class _Seal:
    __slots__ = ()


_SEAL: Final = _Seal()


@dataclass(frozen=True, slots=True)
class Appraised:
    """Evidence and statement that one variant accepts; made by `appraise` only.

    Attributes:
        verified: the claims.
        statement: what the attester said of itself, bound by the evidence.
        variant: the variant that fits.
        tolerated: advisories and status that were let pass, for display.
        seal: proof that `appraise` made this.
    """

    verified: VerifiedEvidence
    statement: LaunchClaims | ManagerClaims
    variant: Variant
    tolerated: tuple[str, ...]
    seal: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a verdict that nobody reached.

        Raises:
            TypeError: the seal is missing.
        """
        if self.seal is not _SEAL:
            raise TypeError("only an appraisal makes an appraised result")


def appraise(
    verified: VerifiedEvidence,
    reference: ReferenceValues,
    now: int,
    *,
    statement: LaunchClaims | ManagerClaims,
) -> Appraised:
    """Accept the evidence under the first variant that fits entirely.

    Args:
        statement: the statement inside the binding that `binding.check` returned.

    Raises:
        AppraisalError: `appraisal.no_reference`, or the findings of the variant that came closest:
            `appraisal.trust_domain`, `appraisal.tee`, `appraisal.measurement`, `appraisal.platform_not_listed`,
            `appraisal.debug`, `appraisal.tcb_status`, `appraisal.advisory`, `appraisal.tolerance_expired`,
            `appraisal.evaluation_number`, `appraisal.smt`, `appraisal.signer`, `appraisal.product`, `appraisal.svn`,
            `appraisal.isolation`, `appraisal.taint`, `appraisal.roots`, `appraisal.collateral_expired`.
        TypeError: the evidence is not a verifier's.
    """
    if not isinstance(verified, VerifiedEvidence):
        raise TypeError("appraisal takes only what a verifier returned")
    closest: list[Finding] | None = None
    for variant in reference.variants:
        findings = [
            *_identity_findings(verified, variant),
            *_platform_findings(verified, variant, now),
            *_statement_findings(statement, variant),
        ]
        if not findings:
            return Appraised(verified, statement, variant, _tolerated(verified), _SEAL)
        if closest is None or len(findings) < len(closest):
            closest = findings
    if closest is None:
        raise AppraisalError(
            [Finding("appraisal.no_reference", "at least one variant", "none", "name what the policy accepts")]
        )
    raise AppraisalError(closest)


def _identity_findings(verified: VerifiedEvidence, variant: Variant) -> Iterable[Finding]:
    if verified.trust_domain != variant.trust_domain:
        remedy = "run on the platform that the policy names; a simulated platform must be named by its root"
        yield Finding("appraisal.trust_domain", variant.trust_domain, verified.trust_domain, remedy)
    if verified.kind != variant.tee:
        yield Finding("appraisal.tee", variant.tee, verified.kind, "use the kind of enclave that the policy names")
    if not _is_one_of(verified.measurement, variant.measurements):
        yield Finding(
            "appraisal.measurement",
            _hex_list(variant.measurements),
            verified.measurement.hex(),
            "run the image that the policy names, or propose a policy with this measurement after review",
        )
    if verified.debug:
        yield Finding("appraisal.debug", "no debug mode", "debug mode", "build and launch without debug")
    if variant.sgx is not None:
        yield from _sgx_findings(verified, variant.sgx)


def _sgx_findings(verified: VerifiedEvidence, reference: SgxReference) -> Iterable[Finding]:
    identity = verified.identity
    if not isinstance(identity, SgxIdentity):
        yield Finding("appraisal.signer", "an SGX enclave", verified.kind, "use the kind of enclave that is named")
        return
    if not _is_one_of(identity.signer, reference.signers):
        expected = _hex_list(reference.signers)
        yield Finding("appraisal.signer", expected, identity.signer.hex(), "sign with the listed key")
    if identity.product != reference.product:
        yield Finding(
            "appraisal.product", str(reference.product), str(identity.product), "build with the listed product id"
        )
    if identity.svn < reference.minimum_svn:
        yield Finding("appraisal.svn", f"at least {reference.minimum_svn}", str(identity.svn), "use a newer build")


def _platform_findings(verified: VerifiedEvidence, variant: Variant, now: int) -> Iterable[Finding]:
    if not isinstance(variant.platforms, AnyPlatform) and not _is_one_of(verified.platform_id, variant.platforms):
        yield Finding(
            "appraisal.platform_not_listed",
            _hex_list(variant.platforms),
            verified.platform_id.hex(),
            "let the board add this platform id, after checking whose machine it is",
        )
    yield from _tcb_findings(verified, variant, now)
    if verified.evaluation_number < variant.minimum_evaluation:
        yield Finding(
            "appraisal.evaluation_number",
            f"at least {variant.minimum_evaluation}",
            str(verified.evaluation_number),
            "fetch newer collateral",
        )
    if verified.smt is not False and not variant.allow_smt:
        actual = "on" if verified.smt else "not stated by the platform certificate"
        yield Finding("appraisal.smt", "off", actual, "switch hyper-threading off, or let the policy allow it")
    if now > verified.collateral_expires:
        yield Finding(
            "appraisal.collateral_expired",
            f"collateral valid at {now}",
            f"expired at {verified.collateral_expires}",
            "fetch new collateral and verify again",
        )


def _tcb_findings(verified: VerifiedEvidence, variant: Variant, now: int) -> Iterable[Finding]:
    status, advisories = verified.tcb_status, verified.advisory_ids
    if status == UP_TO_DATE and not advisories:
        return
    matching = [tolerance for tolerance in variant.tolerances if tolerance.status == status]
    if status != UP_TO_DATE and not matching:
        accepted = ", ".join([UP_TO_DATE, *sorted({tolerance.status for tolerance in variant.tolerances})])
        yield Finding("appraisal.tcb_status", accepted, status, "update the platform's firmware and microcode")
        return
    live = [tolerance for tolerance in matching if now <= tolerance.until]
    if matching and not live:
        latest = max(tolerance.until for tolerance in matching)
        remedy = "update the platform, or vote a new tolerance"
        yield Finding("appraisal.tolerance_expired", f"at most {latest}", str(now), remedy)
        return
    # One tolerance must cover everything that is open: two half-fitting decisions do not add up to one.
    if not any(set(advisories) <= tolerance.advisories for tolerance in live):
        listed = sorted({advisory for tolerance in live for advisory in tolerance.advisories})
        remedy = "mitigate the advisory on the platform, or vote a tolerance that names it"
        yield Finding("appraisal.advisory", ", ".join(listed) or "none open", ", ".join(advisories), remedy)


def _statement_findings(statement: LaunchClaims | ManagerClaims, variant: Variant) -> Iterable[Finding]:
    if statement.isolation < variant.minimum_isolation:
        yield Finding(
            "appraisal.isolation",
            f"at least {variant.minimum_isolation.label}",
            statement.isolation.label,
            "give the site what the isolation level needs (user namespaces, /dev/fuse)",
        )
    # A manager states no taints and mounts nothing: a variant that demands roots does not fit it.
    stated, roots = (statement.taints, statement.roots) if isinstance(statement, LaunchClaims) else ((), {})
    taints = sorted(set(stated) - variant.allow_taints)
    if taints:
        yield Finding("appraisal.taint", "no taint", ", ".join(taints), "launch without the weakening option")
    if variant.roots is not None and dict(variant.roots) != dict(roots):
        yield Finding(
            "appraisal.roots",
            _root_list(variant.roots),
            _root_list(roots),
            "mount exactly the volumes and roots that the policy names",
        )


def _tolerated(verified: VerifiedEvidence) -> tuple[str, ...]:
    status = () if verified.tcb_status == UP_TO_DATE else (verified.tcb_status,)
    return (*status, *verified.advisory_ids)


def _is_one_of(value: bytes, accepted: frozenset[bytes]) -> bool:
    # No early exit: which entry matched stays out of the timing.
    hits = [hmac.compare_digest(value, candidate) for candidate in accepted]
    return any(hits)


def _hex_list(values: Iterable[bytes]) -> str:
    return ", ".join(sorted(value.hex() for value in values)) or "nothing (the list is empty)"


def _root_list(roots: Mapping[str, bytes]) -> str:
    return ", ".join(f"{volume}={root.hex()}" for volume, root in sorted(roots.items())) or "none"
