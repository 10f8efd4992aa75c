"""The state: what follows from the log, and nothing else.

Only `fold.apply` changes it. Handlers read it.
"""

from __future__ import annotations

from secfl.crypto.signing import PublicKey
from secfl.errors import StateError
from secfl.manager.identity import ManagerIdentity
from secfl.manager.records import (
    Challenge,
    Deposited,
    Granted,
    Lease,
    PolicyHistory,
    Study,
)
from secfl.policy.version import PolicyVersion

__all__ = ["State"]


class State:
    """Everything the manager knows."""

    def __init__(self) -> None:
        self.identity_or_none: ManagerIdentity | None = None
        self.policies: dict[str, PolicyHistory] = {}
        self.studies: dict[str, Study] = {}
        self.deposits: dict[tuple[str, str], Deposited] = {}
        self.grants: dict[str, Granted] = {}
        self.revoked: set[str] = set()
        self.challenges: dict[str, Challenge] = {}
        self.leases_by_key: dict[str, Lease] = {}
        self.calls: dict[tuple[str, str], int] = {}
        """Last sequence number by lease and operation."""

    @property
    def identity(self) -> ManagerIdentity:
        """The manager's identity.

        Raises:
            StateError: `manager.not_founded`: the log is empty.
        """
        if self.identity_or_none is None:
            raise StateError("manager.not_founded", "the log has no first entry")
        return self.identity_or_none

    def history(self, name: str) -> PolicyHistory:
        """The versions and proposals of a name; empty for an unknown one."""
        return self.policies.get(name, PolicyHistory())

    @property
    def founders(self) -> dict[str, PublicKey]:
        """Signing keys of the founding parties, by name."""
        return {founder.name: PublicKey(founder.signing_key) for founder in self.identity.public.founders.founders}

    def version(self, name: str) -> PolicyVersion:
        """The policy in force.

        Raises:
            StateError: `policy.not_in_force`.
        """
        current = self.history(name).current
        if current is None:
            raise StateError("policy.not_in_force", "no version of this policy is in force", policy=name)
        return current

    def study(self, name: str) -> Study:
        """The running part of a policy.

        Raises:
            StateError: `policy.not_in_force`.
        """
        self.version(name)
        return self.studies[name]

    def known_keys(self) -> dict[str, PublicKey]:
        """Signing keys of founders and of all parties of policies in force, by key id."""
        keys = list(self.founders.values())
        for history in self.policies.values():
            if history.current is not None:
                keys += [party.signing_key for party in history.current.policy.parties]
        return {key.key_id: key for key in keys}
