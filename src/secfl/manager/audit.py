"""The audit: recomputes from a bundle alone that every step of the manager was justified.

1. The chain is whole and signed (`audit_chain`). 2. The founders are the expected ones. 3. Each proposal, vote, deposit
and grant carries its signature, and each policy came into force by the board that its predecessor demands. 4. Each
admitted service's evidence verifies with the logged collateral at the time of the entry, is bound to the exchange and
acceptable to the policy then in force. 5. Each released model went to the party that the policy names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from secfl.attestation.appraise import appraise
from secfl.attestation.binding import Purpose, check
from secfl.attestation.evidence import Evidence
from secfl.crypto.encoding import from_base64url
from secfl.crypto.signing import PublicKey, verify_envelope
from secfl.errors import SecflError
from secfl.manager.audit_chain import AuditedEntry, AuditError, verify_chain
from secfl.manager.identity import FOUNDED
from secfl.manager.log import PublicEntry
from secfl.manager.records import OpenProposal, PolicyHistory
from secfl.manager.rounds import require_rounds
from secfl.manager.state import State
from secfl.manager.volumes import expected_roots, grant_id
from secfl.policy.board import Ballot, Motion, Outcome, authorize_proposer, tally
from secfl.policy.grants import Grant
from secfl.policy.requirements import reference_values
from secfl.policy.storage import WritableVolume
from secfl.policy.version import PolicyVersion
from secfl.protocol.binding import Subject, service_binding
from secfl.protocol.party import Deposit, Proposal, Revocation, Vote, proposal_id
from secfl.protocol.public import Founders, Identity
from secfl.protocol.routes import route
from secfl.tee.bundle import TrustBundle
from secfl.tee.verifier import EvidenceVerifier

__all__ = ["AuditReport", "KnownHead", "verify_bundle"]


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A head that the auditor saw before; the log must contain it."""

    length: int
    head: bytes


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found to be in order.

    Attributes:
        entries: number of entries.
        head: hash of the last.
        policies: name to the hashes of its versions, in order.
        counts: number of entries by kind.
        releases: (study, volume, party) of each released model.
        trust_domains: domains of all admitted evidence; a simulated one is no hardware.
    """

    entries: int
    head: bytes
    policies: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]
    releases: tuple[tuple[str, str, str], ...]
    trust_domains: frozenset[str]


def verify_bundle(
    data: bytes,
    *,
    key: PublicKey,
    founders: Founders,
    verifier: EvidenceVerifier,
    known: KnownHead | None = None,
) -> AuditReport:
    """Return the report when everything in the bundle holds.

    Args:
        key: the manager's TLS key, as its evidence covers it.
        founders: the founding parties that the auditor expects.
        known: an earlier head; a log without it is a fork or was rolled back.

    Raises:
        AuditError: with a code and exit code for each way in which it does not.
        EncodingError: it is no bundle.
    """
    head, entries = verify_chain(data, key=key)
    if known is not None and known.length > 0:
        at = entries[known.length - 1].head if known.length <= len(entries) else None
        if at != known.head:
            raise AuditError("audit.forked", "the log does not contain the head that was seen before")
    auditor = _Auditor(key, founders, verifier)
    for audited in entries:
        auditor.take(audited)
    if auditor.state_deployment != head.deployment_id:
        raise AuditError("audit.forged", "the head is of another deployment")
    return AuditReport(
        entries=len(entries),
        head=head.head,
        policies={
            name: tuple(version.hash.hex() for version in history.versions)
            for name, history in auditor.state.policies.items()
        },
        counts=auditor.counts,
        releases=tuple(auditor.releases),
        trust_domains=frozenset(auditor.domains),
    )


@dataclass(slots=True)
class _Auditor:
    key: PublicKey
    founders: Founders
    verifier: EvidenceVerifier
    state: State = field(default_factory=State)
    counts: dict[str, int] = field(default_factory=dict)
    releases: list[tuple[str, str, str]] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)
    packed: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    progress: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    bundles: dict[str, TrustBundle] = field(default_factory=dict)
    identity: Identity | None = None

    @property
    def state_deployment(self) -> str:
        return self._identity().deployment_id

    def take(self, audited: AuditedEntry) -> None:
        entry = audited.entry
        self.counts[entry.kind] = self.counts.get(entry.kind, 0) + 1
        if (entry.sequence == 0) != (entry.kind == FOUNDED):
            raise AuditError("audit.unjustified", "a log begins with its founding, once", entry=entry.sequence)
        judge = _JUDGES.get(entry.kind)
        if judge is None:
            return
        try:
            judge(self, entry)
        except AuditError:
            raise
        except (SecflError, KeyError, TypeError, ValueError) as error:
            cause = error.code if isinstance(error, SecflError) else type(error).__name__
            raise AuditError(
                "audit.unjustified",
                f"an entry of kind {entry.kind} is not justified",
                entry=entry.sequence,
                cause=cause,
            ) from error

    def founded(self, entry: PublicEntry) -> None:
        identity = Identity.decode(from_base64url(entry.public["identity"]))
        if identity.tls_key != self.key.spki or identity.founders != self.founders:
            raise AuditError("audit.forged", "the log was founded by others", entry=entry.sequence)
        self.identity = identity

    def collateral(self, entry: PublicEntry) -> None:
        self.bundles[entry.public["digest"]] = TrustBundle.decode(from_base64url(entry.public["bundle"]))

    def proposed(self, entry: PublicEntry) -> None:
        signer, payload = self._signed(entry, "policies/propose")
        document = Proposal.decode(payload, max_bytes=route("policies/propose").limit)
        proposed = PolicyVersion.read(document.policy)
        history = self.state.policies.setdefault(document.name, PolicyHistory())
        motion = Motion(
            deployment_id=document.deployment_id,
            proposal=proposal_id(payload),
            name=document.name,
            policy_hash=proposed.hash,
            predecessor=None if document.predecessor is None else bytes.fromhex(document.predecessor),
        )
        authorize_proposer(signer, proposed=proposed, lineage=history.lineage, founders=self._founder_keys())
        stated = (entry.public["name"], entry.public["proposal"], from_base64url(entry.public["policy"]))
        self._same(stated, (document.name, motion.proposal, document.policy), entry)
        self._same(document.deployment_id, self.state_deployment, entry)
        history.proposals[motion.proposal] = OpenProposal(motion, proposed, document.expires, b"")

    def voted(self, entry: PublicEntry) -> None:
        signer, payload = self._signed(entry, "policies/vote")
        document = Vote.decode(payload)
        history = self.state.policies[document.name]
        proposal = history.proposals[document.proposal]
        self._same((document.approve, document.proposal), (entry.public["approve"], entry.public["proposal"]), entry)
        self._same(document.policy_hash, proposal.proposed.hash.hex(), entry)
        if entry.time > proposal.expires:
            raise AuditError("audit.unjustified", "a vote was counted after its proposal lapsed", entry=entry.sequence)
        proposal.ballots.append(Ballot(proposal.motion, document.approve, signer))
        decision = tally(
            proposal.motion,
            proposal.ballots,
            proposed=proposal.proposed,
            lineage=history.lineage,
            founders=self._founder_keys(),
        )
        self._same(decision.void, (), entry)
        self._same(decision.outcome.value, entry.public["outcome"], entry)
        if decision.outcome is Outcome.REJECTED:
            del history.proposals[document.proposal]
        if decision.outcome is Outcome.ACCEPTED:
            history.proposals.clear()
            history.versions.append(proposal.proposed)

    def deposited(self, entry: PublicEntry) -> None:
        signer, payload = self._signed(entry, "volumes/deposit")
        document = Deposit.decode(payload)
        self._on_board(signer, document.policy, entry)
        stated = (entry.public["policy"], entry.public["volume"], entry.public["root"])
        self._same(stated, (document.policy, document.volume, document.root), entry)

    def granted(self, entry: PublicEntry) -> None:
        signer, payload = self._signed(entry, "grants")
        document = Grant.decode(payload)
        self._on_board(signer, document.policy, entry)
        self._same(entry.public["grant"], grant_id(payload), entry)

    def revoked(self, entry: PublicEntry) -> None:
        _, payload = self._signed(entry, "grants/revoke")
        self._same(entry.public["grant"], Revocation.decode(payload).grant, entry)

    def admitted(self, entry: PublicEntry) -> None:
        public, identity = entry.public, self._identity()
        version = self.state.version(public["study"])
        self._same(public["policy_hash"], version.hash.hex(), entry)
        evidence = Evidence.decode(public["evidence"].encode())
        bundle = self.bundles[public["collateral"]]
        verified = self.verifier.verify(evidence, bundle.collateral(evidence.kind), bundle.anchor, entry.time)
        subject = Subject(
            study=public["study"],
            service=public["service"],
            site=public["site"],
            tls_key=from_base64url(public["tls_key"]),
            sealing_key=from_base64url(public["sealing_key"]),
            deployment_id=identity.deployment_id,
            manager_certificate=identity.certificate,
        )
        binding = service_binding(
            Purpose.RENEW if entry.kind == "renewed" else Purpose.ATTEST,
            subject,
            nonce=from_base64url(public["nonce"]),
            policy_hash=public["policy_hash"],
            claims=from_base64url(public["launch_claims"]),
        )
        check(binding, verified)
        roots = expected_roots(self.state, version, public["service"])
        reference = reference_values(version.policy, public["service"], roots=roots)
        appraise(verified, reference, entry.time, statement=binding.claims)
        self.domains.add(verified.trust_domain)

    def pack(self, entry: PublicEntry) -> None:
        public = entry.public
        self.packed[public["study"], public["volume"]] = (public["root"], public["lease_id"])

    def exited(self, entry: PublicEntry) -> None:
        if entry.public["status"] == 0:
            self.completed.add(entry.public["lease_id"])

    def progressed(self, entry: PublicEntry) -> None:
        record = {"service": entry.public["service"], **entry.public["progress"]}
        self.progress.setdefault(entry.public["study"], []).append(record)

    def released(self, entry: PublicEntry) -> None:
        study, volume, party = entry.public["study"], entry.public["volume"], entry.public["party"]
        listed = self.state.version(study).policy.volume(volume)
        if not isinstance(listed, WritableVolume) or listed.release is None:
            raise AuditError("audit.unjustified", "a volume was released against the policy", entry=entry.sequence)
        self._same(party, listed.release.to, entry)
        federation = self.state.version(study).policy.federation
        if federation is not None:
            require_rounds(federation, self.progress.get(study, []))
        root, lease_id = self.packed[study, volume]
        self._same((entry.public["root"], lease_id in self.completed), (root, True), entry)
        self.releases.append((study, volume, party))

    def _signed(self, entry: PublicEntry, operation: str) -> tuple[PublicKey, bytes]:
        keys = list(self._founder_keys().values())
        for history in self.state.policies.values():
            if history.current is not None:
                keys += [party.signing_key for party in history.current.policy.parties]
        signed = verify_envelope(from_base64url(entry.public["envelope"]), purpose=route(operation).purpose, keys=keys)
        return signed.signer, signed.payload

    def _on_board(self, signer: PublicKey, policy: str, entry: PublicEntry) -> None:
        if all(party.signing_key != signer for party in self.state.version(policy).policy.board):
            raise AuditError("audit.unjustified", "not signed by the owner's board", entry=entry.sequence)

    def _founder_keys(self) -> dict[str, PublicKey]:
        return {founder.name: PublicKey(founder.signing_key) for founder in self.founders.founders}

    def _identity(self) -> Identity:
        if self.identity is None:
            raise AuditError("audit.forged", "the log has no founding entry")
        return self.identity

    @staticmethod
    def _same(stated: object, actual: object, entry: PublicEntry) -> None:
        if stated != actual:
            raise AuditError("audit.unjustified", "an entry contradicts what was signed", entry=entry.sequence)


_JUDGES: Mapping[str, Callable[[_Auditor, PublicEntry], None]] = {
    FOUNDED: _Auditor.founded,
    "attested": _Auditor.admitted,
    "collateral": _Auditor.collateral,
    "deposited": _Auditor.deposited,
    "exited": _Auditor.exited,
    "granted": _Auditor.granted,
    "packed": _Auditor.pack,
    "progressed": _Auditor.progressed,
    "proposed": _Auditor.proposed,
    "released": _Auditor.released,
    "renewed": _Auditor.admitted,
    "revoked": _Auditor.revoked,
    "voted": _Auditor.voted,
}
