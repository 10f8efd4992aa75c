"""Service messages: what an attested service reads from and reports to the manager during its lease.

Each is the body of a `ServiceCall`, signed by the attested TLS key. The sequence rises strictly within one operation,
so a recorded call is refused (SE-13); a long poll therefore does not hold up the other operations.
"""

from __future__ import annotations

from secfl.crypto.transcript import transcript
from secfl.protocol.message import Base64, Digest, Identifier, JsonObject, Message, Name, Nonce, Seconds, UnixTime

__all__ = [
    "Answer",
    "Exit",
    "MailboxAsk",
    "MailboxReply",
    "Peer",
    "PendingChallenge",
    "Progress",
    "ReleaseKeyAsk",
    "ReleaseKeyReply",
    "Released",
    "RootUpdate",
    "ServiceCall",
    "release_key_context",
]


class ServiceCall(Message):
    """The signed part of a service request.

    Attributes:
        deployment_id: the manager this is for.
        lease_id: the lease.
        sequence: larger than in every earlier call of this operation under this lease.
        body: the operation's own message.
    """

    deployment_id: Identifier
    lease_id: Identifier
    sequence: int
    body: JsonObject


class MailboxAsk(Message):
    """Wait for news; answered at once when the roster has another version than `seen` or a challenge waits."""

    seen: int
    wait: Seconds


class PendingChallenge(Message):
    """A party's challenge: answer with evidence of label `peer` over this nonce."""

    challenge_id: Identifier
    nonce: Nonce


class Peer(Message):
    """A live peer of the same study."""

    site: Name
    service: Name
    tls_key_id: Digest
    node_key: str | None = None
    lease_until: UnixTime


class MailboxReply(Message):
    """News: waiting challenges, the live peers, and the policy in force (a new one calls for attestation anew)."""

    version: int
    challenges: tuple[PendingChallenge, ...]
    roster: tuple[Peer, ...]
    policy_hash: Digest


class Answer(Message):
    """Evidence for one challenge."""

    challenge_id: Identifier
    evidence: str
    launch_claims: Base64


class RootUpdate(Message):
    """Move the head of a writable volume: compare and swap.

    Attributes:
        volume: a writable volume that this service mounts.
        sequence: the new sequence number.
        previous: the tag of the head that is replaced; absent when the volume is still empty.
        tag: the new tag.
    """

    volume: Name
    sequence: int
    previous: Digest | None = None
    tag: Digest


class Progress(Message):
    """One round: metrics are floats as `float.hex()` text."""

    round: int
    phase: str
    metrics: dict[str, str]
    replies: tuple[str, ...]


class ReleaseKeyAsk(Message):
    """Ask for a fresh key to pack a volume for release; never the working key."""

    volume: Name


class ReleaseKeyReply(Message):
    """The release key, sealed to the attested key for the purpose `release-key` in `release_key_context`."""

    sealed_key: Base64


def release_key_context(deployment_id: str, lease_id: str, volume: str) -> bytes:
    """Context of a release key sealed to the service that packs."""
    return transcript("release-key", deployment_id.encode(), lease_id.encode(), volume.encode())


class Released(Message):
    """The release volume is packed, with this root."""

    volume: Name
    root: Digest


class Exit(Message):
    """The program ended with this status; the lease ends too."""

    status: int
