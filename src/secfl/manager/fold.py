"""The fold: how each entry of the log changes the state.

New entries and those read at start take the same way, so a restarted manager is in the same state. Nothing is decided
here: what is in the log was decided before it was written.
"""

from __future__ import annotations

from collections.abc import Callable

from secfl.crypto.encoding import from_base64url, from_hex
from secfl.crypto.signing import PublicKey, SigningKey
from secfl.crypto.x509 import Authority
from secfl.errors import EncodingError
from secfl.manager.identity import FOUNDED, ManagerIdentity
from secfl.manager.log import Entry
from secfl.manager.records import (
    Challenge,
    Deposited,
    Granted,
    Head,
    Lease,
    OpenProposal,
    PolicyHistory,
    Release,
    Study,
)
from secfl.manager.state import State
from secfl.policy.board import Ballot, Motion, Outcome
from secfl.policy.grants import Grant
from secfl.policy.secret_values import SecretValues
from secfl.policy.version import PolicyVersion

__all__ = ["apply"]


def apply(state: State, entry: Entry) -> None:
    """Take one entry of the log into account.

    Raises:
        EncodingError: `log.unknown_kind`: the log was written by a later program.
    """
    handler = _HANDLERS.get(entry.event.kind)
    if handler is None:
        raise EncodingError("log.unknown_kind", "an entry of unknown kind", kind=entry.event.kind)
    handler(state, entry)
    call = entry.event.public.get("call")
    if call is not None:
        state.calls[call["lease_id"], call["operation"]] = call["sequence"]


def _founded(state: State, entry: Entry) -> None:
    state.identity_or_none = ManagerIdentity.restore(entry.event)


def _nothing(state: State, entry: Entry) -> None:
    """Keep the entry in the log only."""


def _proposed(state: State, entry: Entry) -> None:
    public = entry.event.public
    history = state.policies.setdefault(public["name"], PolicyHistory())
    proposed = PolicyVersion.read(from_base64url(public["policy"]))
    predecessor = public["predecessor"]
    motion = Motion(
        deployment_id=state.identity.deployment_id,
        proposal=public["proposal"],
        name=public["name"],
        policy_hash=proposed.hash,
        predecessor=None if predecessor is None else from_hex(predecessor, size=32),
    )
    for lapsed in [key for key, open_one in history.proposals.items() if open_one.expires < entry.time]:
        del history.proposals[lapsed]
    history.seen.add(motion.proposal)
    history.proposals[motion.proposal] = OpenProposal(
        motion=motion, proposed=proposed, expires=public["expires"], envelope=from_base64url(public["envelope"])
    )


def _voted(state: State, entry: Entry) -> None:
    public = entry.event.public
    history = state.policies[public["name"]]
    proposal = history.proposals[public["proposal"]]
    signer = PublicKey(from_base64url(public["key"]))
    proposal.ballots.append(Ballot(proposal.motion, public["approve"], signer))
    proposal.votes.append(from_base64url(public["envelope"]))
    if public["outcome"] == Outcome.REJECTED.value:
        del history.proposals[proposal.motion.proposal]
    if public["outcome"] == Outcome.ACCEPTED.value:
        # PB-10: whatever else was proposed named this predecessor, which is no longer in force.
        history.proposals.clear()
        history.versions.append(proposal.proposed)
        _activate(state, public["name"], entry)


def _activate(state: State, name: str, entry: Entry) -> None:
    secret = entry.event.secret
    key = SigningKey.from_pem(secret["authority_key"].encode())
    authority = Authority(key, from_base64url(entry.event.public["authority"]))
    secrets = SecretValues.decode(from_base64url(secret["secrets"]))
    study = state.studies.get(name)
    if study is None:
        state.studies[name] = study = Study(authority, secrets)
    study.platforms.clear()
    study.authority, study.secrets, study.version = authority, secrets, entry.row.sequence
    for volume, text in secret["heads"].items():
        study.heads[volume] = Head(from_base64url(text))


def _deposited(state: State, entry: Entry) -> None:
    public, secret = entry.event.public, entry.event.secret
    state.deposits[public["policy"], public["volume"]] = Deposited(public["root"], from_base64url(secret["key"]))


def _granted(state: State, entry: Entry) -> None:
    public = entry.event.public
    grant = Grant.decode(from_base64url(public["document"]))
    signer = PublicKey(from_base64url(public["key"]))
    granted = state.grants.setdefault(public["grant"], Granted(grant))
    granted.envelopes[signer.key_id] = from_base64url(public["envelope"])
    granted.signers[signer.key_id] = signer


def _revoked(state: State, entry: Entry) -> None:
    state.revoked.add(entry.event.public["grant"])


def _attested(state: State, entry: Entry) -> None:
    public = entry.event.public
    study = state.studies[public["study"]]
    renewed = entry.event.secret.get("secrets")
    if renewed is not None:
        study.secrets = SecretValues.decode(from_base64url(renewed))
    lease = Lease(
        lease_id=public["lease_id"],
        study=public["study"],
        service=public["service"],
        site=public["site"],
        policy_hash=public["policy_hash"],
        platform_id=public["platform_id"],
        trust_domain=public["trust_domain"],
        tls_key=PublicKey(from_base64url(public["tls_key"])),
        sealing_key=from_base64url(public["sealing_key"]),
        claims=from_base64url(public["launch_claims"]),
        node_key=public["node_key"],
        until=public["lease_until"],
    )
    former = study.leases.get(lease.service)
    if former is not None:
        state.leases_by_key.pop(former.tls_key.key_id, None)
    study.leases[lease.service] = lease
    study.platforms[lease.site] = lease.platform_id
    study.exits.pop(lease.service, None)
    study.version = entry.row.sequence
    state.leases_by_key[lease.tls_key.key_id] = lease


def _renewed(state: State, entry: Entry) -> None:
    public = entry.event.public
    study = state.studies[public["study"]]
    study.leases[public["service"]].until = public["lease_until"]
    study.version = entry.row.sequence


def _attestation_refused(state: State, entry: Entry) -> None:
    public = entry.event.public
    study = state.studies.get(public["study"])
    if study is not None:
        shown = ("service", "site", "code", "message", "findings", "evidence_digest")
        study.refusals.append({"time": entry.time, **{name: public[name] for name in shown}})


def _challenged(state: State, entry: Entry) -> None:
    public = entry.event.public
    state.challenges[public["challenge_id"]] = Challenge(
        challenge_id=public["challenge_id"],
        study=public["study"],
        service=public["service"],
        lease_id=public["lease_id"],
        nonce=from_base64url(public["challenge"]),
        party=public["party"],
        expires=public["expires"],
    )
    expired = [key for key, challenge in state.challenges.items() if challenge.expires < entry.time]
    for key in expired:
        del state.challenges[key]


def _answered(state: State, entry: Entry) -> None:
    public = entry.event.public
    state.challenges[public["challenge_id"]].answer = public["answer"]


def _rooted(state: State, entry: Entry) -> None:
    public = entry.event.public
    head = state.studies[public["study"]].heads[public["volume"]]
    head.sequence, head.tag = public["number"], public["tag"]


def _progressed(state: State, entry: Entry) -> None:
    public = entry.event.public
    record = {"time": entry.time, "service": public["service"], **public["progress"]}
    state.studies[public["study"]].progress.append(record)


def _release_key(state: State, entry: Entry) -> None:
    public = entry.event.public
    key = from_base64url(entry.event.secret["key"])
    release = Release(key, public["service"], public["lease_id"])
    state.studies[public["study"]].releases[public["volume"]] = release


def _packed(state: State, entry: Entry) -> None:
    public = entry.event.public
    state.studies[public["study"]].releases[public["volume"]].root = public["root"]


def _exited(state: State, entry: Entry) -> None:
    public = entry.event.public
    study = state.studies[public["study"]]
    lease = study.leases.pop(public["service"])
    state.leases_by_key.pop(lease.tls_key.key_id, None)
    study.exits[public["service"]] = public["status"]
    study.version = entry.row.sequence
    for release in study.releases.values():
        if release.lease_id == lease.lease_id and public["status"] == 0:
            release.completed = True


_HANDLERS: dict[str, Callable[[State, Entry], None]] = {
    FOUNDED: _founded,
    "answered": _answered,
    "attestation-refused": _attestation_refused,
    "attested": _attested,
    "challenged": _challenged,
    "collateral": _nothing,
    "deposited": _deposited,
    "exited": _exited,
    "exported": _nothing,
    "granted": _granted,
    "packed": _packed,
    "progressed": _progressed,
    "proposed": _proposed,
    "refused": _nothing,
    "release-key": _release_key,
    "released": _nothing,
    "renewed": _renewed,
    "revoked": _revoked,
    "rooted": _rooted,
    "voted": _voted,
}
