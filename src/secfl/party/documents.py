"""The documents that a party signs: proposals, votes, deposits and grants, each over exact bytes."""

from __future__ import annotations

from dataclasses import dataclass

from secfl.crypto.hpke import seal_to
from secfl.errors import StateError, VerificationError
from secfl.party.session import ManagerSession
from secfl.policy.hashing import policy_hash
from secfl.protocol.party import (
    Deposit,
    PolicyAsk,
    PolicyReply,
    Proposal,
    ProposalReply,
    Vote,
    VoteReply,
    deposit_context,
)

__all__ = ["OpenProposal", "deposit_key", "get_policy", "open_proposal", "propose", "vote"]

_PROPOSAL_SECONDS = 30 * 24 * 3600


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
        VerificationError: `policy.hash_mismatch`, or what the manager refused.
    """
    reply = session.ask(
        "policies/get",
        lambda deployment, nonce: PolicyAsk(deployment_id=deployment, nonce=nonce, name=name),
        PolicyReply,
    )
    if reply.policy is not None and policy_hash(reply.policy).hex() != reply.policy_hash:
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


def open_proposal(session: ManagerSession, name: str, policy: bytes) -> OpenProposal:
    """Find the open proposal that has exactly these bytes: a voter votes on the file it has read.

    Raises:
        StateError: `proposal.not_found`.
        EncodingError: a proposal of the manager is malformed.
    """
    from secfl.crypto.encoding import from_base64url
    from secfl.crypto.strict_json import decode

    reply = get_policy(session, name)
    for identifier, envelope in reply.proposals.items():
        document = Proposal.decode(from_base64url(decode(envelope)["payload"]), max_bytes=4 * 1024 * 1024)
        if document.policy == policy:
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
