"""Party messages: signed documents (proposal, vote, deposit, grant, revocation) and signed questions.

A document stands for itself: it names the deployment and what it is about, and it means the same whenever it arrives.
A question carries a nonce of the manager, so that a recorded one is worth nothing.
"""

from __future__ import annotations

from secfl.crypto.encoding import from_hex
from secfl.crypto.transcript import digest256, transcript
from secfl.protocol.message import Base64, Digest, Identifier, JsonObject, Message, Name, Nonce, UnixTime

__all__ = [
    "ChallengeAsk",
    "ChallengePoll",
    "ChallengeReply",
    "ChallengeState",
    "Deposit",
    "GrantReply",
    "LogExport",
    "PolicyAsk",
    "PolicyReply",
    "Proposal",
    "ProposalReply",
    "ReleaseAsk",
    "ReleaseReply",
    "Revocation",
    "StatusAsk",
    "StatusReply",
    "Vote",
    "VoteReply",
    "deposit_context",
    "proposal_id",
    "release_context",
]


class Proposal(Message):
    """A new policy or a new version of one.

    Attributes:
        deployment_id: the manager this is for.
        name: the policy's name.
        policy: the bytes that are voted on, hashed and put in force; never re-encoded.
        predecessor: hash of the version it replaces; absent for the first.
        expires: when an open proposal lapses.
    """

    deployment_id: Identifier
    name: Name
    policy: Base64
    predecessor: Digest | None = None
    expires: UnixTime


def proposal_id(payload: bytes) -> str:
    """Name a proposal by its signed bytes, so that a vote fits exactly one (PB-04, PB-10)."""
    return digest256("proposal", payload).hex()


class ProposalReply(Message):
    """A proposal was taken."""

    proposal: Digest
    policy_hash: Digest


class Vote(Message):
    """A party's vote on one proposal.

    Attributes:
        deployment_id: the manager this is for.
        name: the policy's name.
        proposal: the proposal's id.
        policy_hash: hash of the proposed bytes, which the voter has read.
        predecessor: hash of the version in force; absent for a first version.
        approve: false is a refusal.
    """

    deployment_id: Identifier
    name: Name
    proposal: Digest
    policy_hash: Digest
    predecessor: Digest | None = None
    approve: bool


class VoteReply(Message):
    """A vote was counted: `open`, `accepted` (now in force) or `rejected` is the proposal's state after it."""

    state: str


class PolicyAsk(Message):
    """Ask for a policy and its open proposals."""

    deployment_id: Identifier
    nonce: Nonce
    name: Name


class PolicyReply(Message):
    """A policy.

    Attributes:
        policy: bytes in force; absent while none is.
        policy_hash: hash of the bytes in force.
        version: 1 for the first.
        proposals: open proposals: the envelopes as received, by proposal id.
        votes: the vote envelopes of each open proposal.
    """

    policy: Base64 | None = None
    policy_hash: Digest | None = None
    version: int
    proposals: dict[str, Base64]
    votes: dict[str, tuple[Base64, ...]]


class Deposit(Message):
    """A volume key for the manager.

    Attributes:
        deployment_id: the manager this is for.
        policy: the owner's policy that lists the volume.
        volume: the volume's name there.
        root: the image root that the key opens.
        sealed_key: the 32-byte key, sealed for the purpose `volume-key` in `deposit_context`.
    """

    deployment_id: Identifier
    policy: Name
    volume: Name
    root: Digest
    sealed_key: Base64


def deposit_context(deployment_id: str, policy: str, volume: str, root: str) -> bytes:
    """Context of a sealed volume key, so that a deposit cannot be moved to another volume."""
    return transcript("deposit", deployment_id.encode(), policy.encode(), volume.encode(), from_hex(root, size=32))


class GrantReply(Message):
    """A grant was taken, under this id."""

    grant: Digest


class Revocation(Message):
    """End a grant; leases that rest on it are not renewed."""

    deployment_id: Identifier
    grant: Digest


class ChallengeAsk(Message):
    """Ask a running service for fresh evidence over a nonce of the party."""

    deployment_id: Identifier
    nonce: Nonce
    study: Name
    service: Name
    challenge: Nonce


class ChallengeReply(Message):
    """The challenge was put into the service's mailbox."""

    challenge_id: Identifier


class ChallengePoll(Message):
    """Ask for the answer to a challenge."""

    deployment_id: Identifier
    nonce: Nonce
    challenge_id: Identifier


class ChallengeState(Message):
    """The answer, once there: evidence and what it covers besides the challenge.

    The party verifies all of it with its own collateral and reference values; nothing here is the manager's word.
    """

    answered: bool
    evidence: str | None = None
    site: Name | None = None
    policy_hash: Digest | None = None
    tls_key: Base64 | None = None
    sealing_key: Base64 | None = None
    launch_claims: Base64 | None = None


class StatusAsk(Message):
    """Ask for the state of a study."""

    deployment_id: Identifier
    nonce: Nonce
    study: Name


class StatusReply(Message):
    """The state of a study, for people and dashboards; see `docs/manager.md` for the members."""

    status: JsonObject


class ReleaseAsk(Message):
    """Ask for the key of a released volume."""

    deployment_id: Identifier
    nonce: Nonce
    study: Name
    volume: Name


class ReleaseReply(Message):
    """A release volume's root and its key, sealed to the named party for the purpose `release`."""

    root: Digest
    sealed_key: Base64


def release_context(deployment_id: str, study: str, volume: str, root: str) -> bytes:
    """Context of a release key sealed to a party."""
    return transcript("release", deployment_id.encode(), study.encode(), volume.encode(), from_hex(root, size=32))


class LogExport(Message):
    """Ask for the audit bundle."""

    deployment_id: Identifier
    nonce: Nonce
