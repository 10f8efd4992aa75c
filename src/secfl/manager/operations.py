"""The operations: for each signed route, how its payload is read and who decides.

Together with the route table this is the whole access matrix: a signed route that is missing here cannot be called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from secfl.manager import governance, parties, services, volumes
from secfl.manager.step import Context, Step
from secfl.policy.grants import Grant
from secfl.protocol import party, service
from secfl.protocol.message import Message

__all__ = ["PARTY_OPERATIONS", "SERVICE_OPERATIONS", "UNLOGGED", "Operation"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One signed operation.

    Attributes:
        read: decodes the payload, up to a size.
        decide: gives the outcome or refuses.
    """

    read: Callable[[bytes, int], Any]
    decide: Callable[[Context, Any], Step]


def _message(message: type[Message], decide: Callable[[Context, Any], Step]) -> Operation:
    return Operation(lambda data, limit: message.decode(data, max_bytes=limit), decide)


PARTY_OPERATIONS: Mapping[str, Operation] = {
    "challenges": _message(party.ChallengeAsk, parties.challenge),
    "challenges/poll": _message(party.ChallengePoll, parties.challenge_state),
    "grants": Operation(lambda data, _: Grant.decode(data), volumes.grant),
    "grants/revoke": _message(party.Revocation, volumes.revoke),
    "log/export": _message(party.LogExport, parties.export),
    "policies/get": _message(party.PolicyAsk, governance.get_policy),
    "policies/propose": _message(party.Proposal, governance.propose),
    "policies/vote": _message(party.Vote, governance.vote),
    "releases": _message(party.ReleaseAsk, parties.release),
    "studies/status": _message(party.StatusAsk, parties.status),
    "volumes/deposit": _message(party.Deposit, volumes.deposit),
}

SERVICE_OPERATIONS: Mapping[str, Operation] = {
    "service/answer": _message(service.Answer, services.answer),
    "service/exit": _message(service.Exit, services.exit_service),
    "service/mailbox": _message(service.MailboxAsk, services.mailbox),
    "service/progress": _message(service.Progress, services.progress),
    "service/release-key": _message(service.ReleaseKeyAsk, services.release_key),
    "service/released": _message(service.Released, services.released),
    "service/roots": _message(service.RootUpdate, services.roots),
}

UNLOGGED = frozenset({"challenges/poll", "policies/get", "service/mailbox", "studies/status"})
"""Questions that change nothing: a refused one is not an event."""
