"""The documents that a party signs: proposals, votes, deposits and grants, each over exact bytes."""

from __future__ import annotations

from dataclasses import dataclass

from secfl.crypto.encoding import from_base64url
from secfl.crypto.hpke import seal_to
from secfl.crypto.strict_json import decode
from secfl.errors import EncodingError, StateError, VerificationError
from secfl.party.session import ManagerSession
from secfl.policy.grants import Grant
from secfl.policy.model import Policy
from secfl.policy.references import check_import
from secfl.policy.storage import DepositedVolume, ImportedVolume
from secfl.policy.version import PolicyVersion, policy_hash
from secfl.protocol.party import (
    Deposit,
    GrantReply,
    PolicyAsk,
    PolicyReply,
    Proposal,
    ProposalReply,
    Vote,
    VoteReply,
    deposit_context,
)

__all__ = [
    "OpenProposal",
    "deposit_key",
    "get_policy",
    "grant_imports",
    "image_roots",
    "open_proposal",
    "propose",
    "unverified_proposal",
    "vote",
]

_PROPOSAL_SECONDS = 30 * 24 * 3600
"""How long a proposal waits for votes: a month of committees."""
_MAX_PROPOSAL = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class OpenProposal:
    """A proposal as this party read it.

    Attributes:
        proposal: its id.
        policy: the proposed bytes.
        policy_hash: their hash, computed here.
        predecessor: hash of the version in force, None for a first version.
    """

    proposal: str
    policy: bytes
    policy_hash: str
    predecessor: str | None


def get_policy(session: ManagerSession, name: str) -> PolicyReply:
    """Read a policy and check that its bytes have the stated hash.

    Raises:
        VerificationError: `policy.hash_mismatch`: also when there are bytes without a hash or a hash without bytes.
        SecflError: what the manager refused.
    """
    reply = session.ask(
        "policies/get",
        lambda deployment, nonce: PolicyAsk(deployment_id=deployment, nonce=nonce, name=name),
        PolicyReply,
    )
    computed = None if reply.policy is None else policy_hash(reply.policy).hex()
    if computed != reply.policy_hash:
        raise VerificationError("policy.hash_mismatch", "the manager's hash is not that of the bytes it sent")
    return reply


def propose(session: ManagerSession, name: str, policy: bytes, *, now: int) -> ProposalReply:
    """Propose a policy as the successor of the version in force.

    Raises:
        SecflError: what the manager refused.
    """
    document = Proposal(
        deployment_id=session.deployment_id,
        name=name,
        policy=policy,
        predecessor=get_policy(session, name).policy_hash,
        expires=now + _PROPOSAL_SECONDS,
    )
    return ProposalReply.decode(session.submit("policies/propose", document))


def unverified_proposal(envelope: bytes) -> Proposal:
    """Read a proposal out of its envelope; whose signature that is, the manager and the audit check.

    Raises:
        EncodingError: `proposal.malformed`.
    """
    document = decode(envelope)
    payload = document.get("payload") if isinstance(document, dict) else None
    if not isinstance(payload, str):
        raise EncodingError("proposal.malformed", "a proposal is not a signed envelope")
    return Proposal.decode(from_base64url(payload), max_bytes=_MAX_PROPOSAL)


def open_proposal(session: ManagerSession, name: str, policy: bytes) -> OpenProposal:
    """Find the open proposal that has exactly these bytes: a voter votes on the file it has read.

    It must also follow the version in force: a proposal over an older one was left behind (PB-06).

    Raises:
        StateError: `proposal.not_found`.
        EncodingError: a proposal of the manager is malformed.
    """
    reply = get_policy(session, name)
    for identifier, envelope in reply.proposals.items():
        document = unverified_proposal(envelope)
        if (document.name, document.policy, document.predecessor) == (name, policy, reply.policy_hash):
            return OpenProposal(identifier, policy, policy_hash(policy).hex(), document.predecessor)
    raise StateError(
        "proposal.not_found",
        f"no open proposal for {name} has the bytes of this file",
        hint="secfl policy show, then compare with what you have read",
    )


def vote(session: ManagerSession, name: str, policy: bytes, *, approve: bool) -> str:
    """Vote on the open proposal with exactly these bytes; returns the proposal's state after it.

    Raises:
        SecflError: as `open_proposal`, or what the manager refused.
    """
    found = open_proposal(session, name, policy)
    document = Vote(
        deployment_id=session.deployment_id,
        name=name,
        proposal=found.proposal,
        policy_hash=found.policy_hash,
        predecessor=found.predecessor,
        approve=approve,
    )
    return VoteReply.decode(session.submit("policies/vote", document)).state


def deposit_key(session: ManagerSession, policy: str, volume: str, root: str) -> None:
    """Give the manager the key of one of the party's volumes, sealed to the manager's attested key.

    Raises:
        ConfigError: `volume.key_missing`.
        SecflError: what the manager refused.
    """
    context = deposit_context(session.deployment_id, policy, volume, root)
    key = session.home.volume_key(policy, volume)
    sealed = seal_to(session.pin.identity.sealing_key, key, purpose="volume-key", context=context)
    document = Deposit(deployment_id=session.deployment_id, policy=policy, volume=volume, root=root, sealed_key=sealed)
    session.submit("volumes/deposit", document)


def image_roots(session: ManagerSession, policy: Policy, service: str) -> dict[str, bytes]:
    """Find the root of each image that a service must have mounted.

    An owner's policy comes from the manager but is believed only with the hash that the study's policy pins.

    Raises:
        StateError: `reference.policy_changed`, `reference.missing` or another code of `check_import`.
        VerificationError: `policy.hash_mismatch`.
    """
    roots: dict[str, bytes] = {}
    for mount in policy.image(policy.service(service).image_name).volumes:
        volume = policy.volume(mount.name)
        if isinstance(volume, DepositedVolume):
            roots[mount.name] = volume.root
        elif isinstance(volume, ImportedVolume):
            data = get_policy(session, volume.imported.policy).policy
            if data is None:
                raise StateError("reference.missing", f"{volume.imported.policy} is not in force at the manager")
            roots[mount.name] = check_import(volume.imported, PolicyVersion.read(data)).root
    return roots


def grant_imports(session: ManagerSession, study: bytes, *, expires: int) -> dict[str, str]:
    """Grant a study everything that it imports from this party's own namespace; returns grant ids by volume.

    Args:
        study: the study's policy, as this party has read it.
        expires: Unix time of the last second.

    Raises:
        StateError: `grant.nothing` when it imports nothing of this party, or a code of `check_import`.
        SecflError: what the manager refused.
    """
    version = PolicyVersion.read(study)
    own = session.home.identity().name
    grants: dict[str, str] = {}
    for volume in version.policy.volumes:
        if not isinstance(volume, ImportedVolume) or volume.imported.policy.partition("/")[0] != own:
            continue
        data = get_policy(session, volume.imported.policy).policy
        if data is None:
            raise StateError("reference.missing", f"{volume.imported.policy} is not in force at the manager")
        deposited = check_import(volume.imported, PolicyVersion.read(data))
        document = Grant(
            deployment_id=session.deployment_id,
            policy=volume.imported.policy,
            volume=volume.imported.volume,
            root=deposited.root,
            rights=("read",),
            study=version.policy.name,
            study_policy_hash=version.hash,
            expires=expires,
        )
        reply = GrantReply.decode(session.submit_bytes("grants", document.encode()))
        grants[volume.name] = reply.grant
    if not grants:
        raise StateError("grant.nothing", f"{version.policy.name} imports nothing from {own}")
    return grants
