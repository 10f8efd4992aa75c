"""The board: who must agree to a motion, and what the ballots cast so far decide.

The version *in force* says who votes on the next one; a first version is voted on by its own board, all of whom must be
founding parties under their own keys. A ballot counts once a key, only for exactly the motion it names, and nobody
votes by proposing. Everything here is recomputed from documents alone, so that any party can audit it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from secfl.crypto.signing import PublicKey
from secfl.errors import AuthorizationError, FreshnessError, StateError, VerificationError
from secfl.policy.version import PolicyVersion

__all__ = [
    "Ballot",
    "Decision",
    "Lineage",
    "Motion",
    "Outcome",
    "VoidBallot",
    "authorize_proposer",
    "check_motion",
    "electorate",
    "tally",
]


@dataclass(frozen=True, slots=True)
class Motion:
    """To put a policy's bytes in force as the successor of a version.

    Attributes:
        deployment_id: the manager it is for.
        proposal: id of the signed proposal.
        name: the policy's name.
        policy_hash: hash of the proposed bytes.
        predecessor: hash of the version in force; None for a first version.
    """

    deployment_id: str
    proposal: str
    name: str
    policy_hash: bytes
    predecessor: bytes | None


@dataclass(frozen=True, slots=True)
class Ballot:
    """A verified vote: the motion that it names, the choice, and the key that signed it."""

    motion: Motion
    approve: bool
    signer: PublicKey


@dataclass(frozen=True, slots=True)
class Lineage:
    """What has been in force under a name.

    Attributes:
        current: the version in force; None before the first.
        earlier: hashes of all versions before it.
    """

    current: PolicyVersion | None
    earlier: frozenset[bytes]

    def __post_init__(self) -> None:
        """Refuse a past without a present.

        Raises:
            ValueError: there are earlier versions but no current one.
        """
        if self.current is None and self.earlier:
            raise ValueError("a name with a past has a version in force")


class Outcome(Enum):
    """The state of a motion."""

    OPEN = "open"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class VoidBallot:
    """A ballot that does not count, and why."""

    key_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The count: names of the voters by choice, and the ballots that do not count."""

    outcome: Outcome
    approvals: tuple[str, ...]
    rejections: tuple[str, ...]
    missing: tuple[str, ...]
    void: tuple[VoidBallot, ...]


def check_motion(motion: Motion, *, proposed: PolicyVersion, lineage: Lineage) -> Motion:
    """Return the motion when it fits the bytes and the version in force.

    Raises:
        VerificationError: `board.motion_mismatch` when it names other bytes or another policy (PB-10).
        StateError: `board.predecessor` when it does not follow the version in force (PB-06).
        FreshnessError: `board.version_reused` when these bytes were in force before (PB-07).
    """
    if motion.policy_hash != proposed.hash or motion.name != proposed.policy.name:
        raise VerificationError("board.motion_mismatch", "the motion does not name these bytes", name=motion.name)
    current = lineage.current
    expected = current.hash if current else None
    if motion.predecessor != expected or (current and current.policy.name != motion.name):
        raise StateError(
            "board.predecessor",
            "the proposal does not follow the version in force",
            hint="look at the version in force, then propose anew",
            expected=expected.hex() if expected else None,
            actual=motion.predecessor.hex() if motion.predecessor else None,
        )
    # The same bytes after the same predecessor would let old votes and old grants count again.
    if proposed.hash in lineage.earlier or proposed.hash == expected:
        raise FreshnessError(
            "board.version_reused",
            "these bytes were in force before",
            hint="to go back, change the bytes, for example a comment, and vote on them",
        )
    return motion


def electorate(*, proposed: PolicyVersion, lineage: Lineage, founders: Mapping[str, PublicKey]) -> dict[str, PublicKey]:
    """Give the parties whose agreement is needed, with the keys that count.

    Raises:
        AuthorizationError: `board.not_a_founder` or `board.founder_key`.
    """
    current = lineage.current
    known = {party.name for party in current.policy.parties} if current else set()
    for party in proposed.policy.parties:
        # A founder's name or key stands for the founder only, unless the board in force already decides about that
        # name: otherwise a stranger could be listed as a member that people know (PB-14, PB-02).
        for name, key in founders.items():
            same_name, same_key = name == party.name, key == party.signing_key
            if same_name != same_key and party.name not in known:
                raise AuthorizationError(
                    "board.founder_key", "a founder's name or key is listed with another one", party=party.name
                )
    if current:
        return {party.name: party.signing_key for party in current.policy.board}
    for party in proposed.policy.board:
        if party.name not in founders:
            raise AuthorizationError(
                "board.not_a_founder", "the board of a first version consists of founding parties", party=party.name
            )
    return {party.name: party.signing_key for party in proposed.policy.board}


def authorize_proposer(
    proposer: PublicKey, *, proposed: PolicyVersion, lineage: Lineage, founders: Mapping[str, PublicKey]
) -> str:
    """Return the name of the party that proposes, when it may.

    A member of the deciding board may; into a namespace only its party brings a first version (PB-13).

    Raises:
        AuthorizationError: `board.proposer`, `board.namespace` and the codes of `electorate`.
    """
    members = electorate(proposed=proposed, lineage=lineage, founders=founders)
    name = next((name for name, key in members.items() if key == proposer), None)
    if name is None:
        raise AuthorizationError("board.proposer", "only a member of the board may propose", key=proposer.key_id)
    namespace = proposed.policy.namespace
    if lineage.current is None and namespace is not None and name != namespace:
        raise AuthorizationError("board.namespace", "only its party may create policies in a namespace", party=name)
    return name


def tally(
    motion: Motion,
    ballots: Iterable[Ballot],
    *,
    proposed: PolicyVersion,
    lineage: Lineage,
    founders: Mapping[str, PublicKey],
) -> Decision:
    """Count the ballots, in the order in which they were recorded.

    Raises:
        VerificationError, StateError, FreshnessError: as `check_motion`.
        AuthorizationError: as `electorate`.
    """
    check_motion(motion, proposed=proposed, lineage=lineage)
    members = electorate(proposed=proposed, lineage=lineage, founders=founders)
    names = {key: name for name, key in members.items()}
    choices: dict[str, bool] = {}
    void: list[VoidBallot] = []
    for ballot in ballots:
        name = names.get(ballot.signer)
        if ballot.motion != motion:
            void.append(VoidBallot(ballot.signer.key_id, "cast on another motion"))
        elif name is None:
            void.append(VoidBallot(ballot.signer.key_id, "not a key of the board"))
        elif name in choices:
            void.append(VoidBallot(ballot.signer.key_id, "a second vote of this member"))
        else:
            choices[name] = ballot.approve
    approvals = tuple(name for name in members if choices.get(name) is True)
    rejections = tuple(name for name in members if choices.get(name) is False)
    missing = tuple(name for name in members if name not in choices)
    outcome = Outcome.OPEN
    if rejections:
        outcome = Outcome.REJECTED
    elif members and not missing:
        outcome = Outcome.ACCEPTED
    return Decision(outcome, approvals, rejections, missing, tuple(void))
