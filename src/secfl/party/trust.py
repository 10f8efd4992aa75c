"""Trust: a party's own verdict on the manager and on every service, from its own files.

Collateral, trust anchors and reference values come from the party's disk, nonces from its own machine; what the manager
says is never a reason to believe (DESIGN: attest the manager, attest each other). A bundle of collateral names one
trust domain; a simulated one is in the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secfl.attestation.appraise import Appraised, ReferenceValues, Tolerance, Variant, appraise
from secfl.attestation.binding import Binding, check
from secfl.attestation.evidence import Evidence
from secfl.attestation.statement import Isolation
from secfl.crypto.encoding import from_hex
from secfl.errors import ConfigError, VerificationError
from secfl.party.home import read_file
from secfl.protocol.binding import manager_binding
from secfl.protocol.message import Message, UnixTime
from secfl.protocol.public import Founders, ManagerEvidence
from secfl.tee.bundle import TrustBundle
from secfl.tee.verifier import verify

__all__ = ["ManagerReference", "ToleratedStatus", "TrustStore", "appraise_manager"]


class ToleratedStatus(Message):
    """A TCB status that this party accepts until a date, with the advisories that may be open."""

    status: str
    advisories: tuple[str, ...]
    until: UnixTime


class ManagerReference(Message):
    """What a party accepts as its manager; written by people, never fetched from the manager.

    Attributes:
        address: `address:port`.
        trust_domain: the domain of its platform.
        tee: `tdx` or `sgx`.
        measurements: accepted measurements, hex; empty accepts nothing.
        platforms: accepted platform ids, hex; empty accepts nothing.
        tolerate: accepted TCB statuses besides UpToDate.
        minimum_tcb_evaluation: lowest TCB evaluation data number.
        allow_smt: whether hyper-threading may be on.
        founders: the founding parties' keys; the manager's evidence must cover exactly these.
    """

    address: str
    trust_domain: str
    tee: str
    measurements: tuple[str, ...]
    platforms: tuple[str, ...]
    tolerate: tuple[ToleratedStatus, ...]
    minimum_tcb_evaluation: int
    allow_smt: bool
    founders: Founders

    def values(self) -> ReferenceValues:
        """As reference values for appraisal.

        Raises:
            EncodingError: a measurement or platform is not hex.
        """
        variant = Variant(
            trust_domain=self.trust_domain,
            tee=self.tee,
            measurements=frozenset(from_hex(value) for value in self.measurements),
            platforms=frozenset(from_hex(value) for value in self.platforms),
            minimum_isolation=Isolation.FULL,
            tolerances=tuple(Tolerance(t.status, frozenset(t.advisories), t.until) for t in self.tolerate),
            minimum_evaluation=self.minimum_tcb_evaluation,
            allow_smt=self.allow_smt,
        )
        return ReferenceValues((variant,))


@dataclass(frozen=True, slots=True)
class TrustStore:
    """A party's trust anchors and collateral, by trust domain."""

    bundles: tuple[TrustBundle, ...]

    @classmethod
    def load(cls, path: Path) -> TrustStore:
        """Read one bundle file, or every `*.json` of a folder.

        Raises:
            ConfigError: `collateral.missing` or an unreadable file.
            EncodingError: a bundle is malformed.
        """
        paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not paths:
            raise ConfigError("collateral.missing", f"no collateral in {path}", hint="ask the endorser for it")
        return cls(tuple(TrustBundle.decode(read_file(entry)) for entry in paths))

    def accept(self, evidence: Evidence, binding: Binding, reference: ReferenceValues, now: int) -> Appraised:
        """Verify, check the binding and appraise; each domain that the reference names is tried.

        Raises:
            VerificationError: the evidence is not authentic under any anchor, or bound to something else.
            AppraisalError: it is authentic but not acceptable.
        """
        domains = {variant.trust_domain for variant in reference.variants}
        candidates = [bundle for bundle in self.bundles if bundle.anchor.domain in domains]
        if not candidates:
            raise VerificationError(
                "trust.no_anchor",
                "there is no trust anchor and collateral for the domains that are accepted",
                hint=", ".join(sorted(domains)),
            )
        failure: VerificationError | None = None
        for bundle in candidates:
            try:
                verified = verify(evidence, bundle.collateral(evidence.kind), bundle.anchor, now)
            except VerificationError as error:
                failure = error
                continue
            check(binding, verified)
            return appraise(verified, reference, now, statement=binding.claims)
        assert failure is not None
        raise failure


def appraise_manager(
    evidence: ManagerEvidence,
    reference: ManagerReference,
    trust: TrustStore,
    *,
    nonce: bytes,
    certificate: bytes,
    now: int,
) -> Appraised:
    """Decide whether this is the manager that the party's reference describes.

    1. The certificate of the handshake is the one that the evidence covers (SE-02, NW-02).
    2. The founders are exactly those of the reference: no trust on first use (NW-15).
    3. The evidence is authentic, bound to the caller's nonce (EV-08) and acceptable.

    Raises:
        VerificationError: `manager.certificate` or `manager.founders`, or as `TrustStore.accept`.
        AppraisalError: as `TrustStore.accept`.
    """
    if evidence.identity.certificate != certificate:
        raise VerificationError("manager.certificate", "the connection's certificate is not the attested one")
    if evidence.identity.founders != reference.founders:
        raise VerificationError(
            "manager.founders", "the manager serves other founders", hint="compare founders with the other parties"
        )
    binding = manager_binding(evidence, nonce=nonce)
    return trust.accept(Evidence.decode(evidence.evidence.encode()), binding, reference.values(), now)
