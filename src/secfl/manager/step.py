"""The step: what a handler is given, and what it gives back.

A handler only reads the state. It checks everything and then returns the one event that changes it, so that an
operation has its whole effect or none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from secfl.crypto.signing import PublicKey
from secfl.errors import AuthorizationError, StateError
from secfl.manager.identity import Random
from secfl.manager.log import Event
from secfl.manager.records import Lease
from secfl.manager.state import State
from secfl.policy.model import Party, Policy
from secfl.protocol.message import Message

__all__ = ["Context", "Settings", "Step", "member"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Durations in seconds.

    Attributes:
        lease: how long a lease lasts without renewal; peers drop a service at most this long after it was refused.
        answer: how long a challenged service may take.
        proposal: longest life of a proposal.
    """

    lease: int = 120
    answer: int = 60
    proposal: int = 90 * 86_400


@dataclass(frozen=True, slots=True)
class Context:
    """One operation.

    Attributes:
        state: only read.
        now: seconds since 1970; never earlier than the last entry of the log.
        random: source of random bytes.
        settings: durations.
        caller: the key that signed the request; None for public operations.
        envelope: the signed request as received.
        lease: the caller's lease, for services.
    """

    state: State
    now: int
    random: Random
    settings: Settings
    caller: PublicKey | None = None
    envelope: bytes = field(default=b"", repr=False)
    lease: Lease | None = None

    @property
    def key_id(self) -> str:
        """Id of the caller's key.

        Raises:
            AuthorizationError: `caller.none`.
        """
        if self.caller is None:
            raise AuthorizationError("caller.none", "this operation needs a signed request")
        return self.caller.key_id

    @property
    def live_lease(self) -> Lease:
        """The caller's lease.

        Raises:
            AuthorizationError: `caller.none`.
            StateError: `lease.lapsed`.
        """
        if self.lease is None:
            raise AuthorizationError("caller.none", "this operation needs a lease")
        if self.lease.until < self.now:
            raise StateError("lease.lapsed", "the lease has lapsed", hint="attest again", until=self.lease.until)
        return self.lease


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of an accepted operation: the answer, and the event that changes the state."""

    reply: Message
    event: Event | None = None


def member(context: Context, policy: Policy) -> Party:
    """Return the party of this policy whose key signed the request.

    Raises:
        AuthorizationError: `policy.not_a_party`, or `caller.none`.
    """
    for party in policy.parties:
        if party.signing_key.key_id == context.key_id:
            return party
    raise AuthorizationError("policy.not_a_party", "the caller is no party of this policy", policy=policy.name)
