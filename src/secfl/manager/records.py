"""Records: what the manager knows of policies, volumes, grants, leases and challenges, as plain values.

Only `state.State.apply` changes them, and only for an event that is in the log.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from secfl.crypto import strict_json
from secfl.crypto.signing import PublicKey
from secfl.crypto.x509 import Authority
from secfl.policy.board import Ballot, Lineage, Motion
from secfl.policy.grants import Grant
from secfl.policy.secret_values import SecretValues
from secfl.policy.version import PolicyVersion

__all__ = [
    "MAX_REFUSALS",
    "Challenge",
    "Deposited",
    "Granted",
    "Head",
    "Lease",
    "OpenProposal",
    "PolicyHistory",
    "Release",
    "Study",
]

MAX_REFUSALS = 64
"""Refused attestations that a study's status shows; all of them are in the log."""


@dataclass(slots=True)
class OpenProposal:
    """A proposal that is voted on.

    Attributes:
        envelope: the proposal as signed.
        ballots: the votes cast, in order.
        votes: their envelopes.
    """

    motion: Motion
    proposed: PolicyVersion
    expires: int
    envelope: bytes
    ballots: list[Ballot] = field(default_factory=list)
    votes: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class PolicyHistory:
    """All versions of one name, and its open proposals.

    Attributes:
        seen: ids of all proposals ever made, so that a closed one is not opened again.
    """

    versions: list[PolicyVersion] = field(default_factory=list)
    proposals: dict[str, OpenProposal] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @property
    def current(self) -> PolicyVersion | None:
        """The version in force."""
        return self.versions[-1] if self.versions else None

    @property
    def lineage(self) -> Lineage:
        """The versions as the board's rules need them."""
        return Lineage(self.current, frozenset(version.hash for version in self.versions[:-1]))


@dataclass(frozen=True, slots=True)
class Deposited:
    """A volume key of an owner, for one root."""

    root: str
    key: bytes = field(repr=False)


@dataclass(slots=True)
class Granted:
    """A grant, and who has signed it so far.

    Attributes:
        envelopes: by key id of the signer.
        signers: the keys.
    """

    grant: Grant
    envelopes: dict[str, bytes] = field(default_factory=dict)
    signers: dict[str, PublicKey] = field(default_factory=dict)


@dataclass(slots=True)
class Head:
    """A writable volume: its key, and the head that the last commit left."""

    key: bytes = field(repr=False)
    sequence: int = 0
    tag: str | None = None


@dataclass(slots=True)
class Release:
    """A release volume in the making.

    Attributes:
        key: the release key; never the working key.
        service: who asked for it.
        lease_id: under which lease.
        root: root of the packed volume, once reported.
        completed: the service then ended well.
    """

    key: bytes = field(repr=False)
    service: str
    lease_id: str
    root: str | None = None
    completed: bool = False


@dataclass(slots=True)
class Lease:
    """A service that was attested.

    Attributes:
        tls_key: signs this service's requests.
        claims: the encoded statement of the launch.
        until: last second of the lease.
    """

    lease_id: str
    study: str
    service: str
    site: str
    policy_hash: str
    platform_id: str
    trust_domain: str
    tls_key: PublicKey
    sealing_key: bytes
    claims: bytes
    node_key: str
    until: int


@dataclass(slots=True)
class Challenge:
    """A party's challenge to a running service."""

    challenge_id: str
    study: str
    service: str
    lease_id: str
    nonce: bytes
    party: str
    expires: int
    answer: strict_json.JsonValue | None = None


@dataclass(slots=True)
class Study:
    """What belongs to a policy with services.

    Attributes:
        authority: the study's own CA.
        secrets: generated secrets.
        heads: writable volumes.
        releases: release volumes by the volume they were made of.
        leases: by service name; lapsed ones stay until the next attestation.
        platforms: site to platform id: a site's hardware never changes under one version of the policy (EV-34).
        version: sequence of the last entry that changed the roster.
    """

    authority: Authority = field(repr=False)
    secrets: SecretValues = field(repr=False)
    heads: dict[str, Head] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    platforms: dict[str, str] = field(default_factory=dict)
    refusals: deque[strict_json.JsonValue] = field(default_factory=lambda: deque(maxlen=MAX_REFUSALS))
    progress: list[strict_json.JsonValue] = field(default_factory=list)
    exits: dict[str, int] = field(default_factory=dict)
    version: int = 0
