"""A deployment in memory: parties, simulated machines and a real manager core, without network and disk.

Requests go through the same bytes as over the network. What an adversary does differently is a changed argument.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.crypto.hpke import SealingKey, seal_to
from secfl.crypto.signing import SigningKey
from secfl.errors import SecflError
from secfl.manager.core import Manager, Outcome
from secfl.manager.export import sign_head
from secfl.manager.log import Event, chain_hash, genesis_hash
from secfl.manager.opening import open_manager
from secfl.manager.sealer import AttesterSealer
from secfl.manager.step import Settings
from secfl.manager.store import MemoryStore, Store
from secfl.policy.grants import Grant
from secfl.protocol.failure import decode_failure
from secfl.protocol.message import Message
from secfl.protocol.party import (
    Deposit,
    GrantReply,
    Proposal,
    ProposalReply,
    ReleaseAsk,
    ReleaseReply,
    Vote,
    VoteReply,
    deposit_context,
)
from secfl.protocol.public import (
    Founder,
    Founders,
)
from secfl.protocol.routes import route
from secfl.tee.bundle import TrustBundle
from secfl.tee.simulated.machine import SimulatedMachine
from secfl.tee.simulated.vendor import Vendor
from secfl.tee.verifier import verify
from secfl.testing.enclaves import KIND, MANAGER_MEASUREMENT, MachineAttester
from secfl.testing.forge import NOW

__all__ = ["Deployment", "Member"]


@dataclass(frozen=True, slots=True)
class Member:
    """A party with its private keys."""

    name: str
    signing: SigningKey = field(default_factory=SigningKey.generate)
    recipient: SealingKey = field(default_factory=SealingKey.generate)

    def founder(self) -> Founder:
        """Its entry in a launch configuration."""
        return Founder(name=self.name, signing_key=self.signing.public.spki, recipient_key=self.recipient.public)

    def entry(self) -> dict[str, str]:
        """Its entry in a policy."""
        return {
            "name": self.name,
            "recipient_key": to_base64url(self.recipient.public),
            "signing_key": to_base64url(self.signing.public.spki),
        }

    def sign(self, name: str, message: Message | Grant) -> bytes:
        """Sign a request for one operation."""
        return self.signing.sign_envelope(route(name).purpose, message.encode())


class Deployment:
    """A manager and its parties."""

    def __init__(
        self, *names: str, sites: tuple[str, ...] = ("cleveland",), store: Store | None = None, now: int = NOW
    ) -> None:
        """Found a deployment for the parties and give each site a machine."""
        self.now = now
        self.vendor = Vendor.create(now)
        self.machines = {site: SimulatedMachine.enroll(self.vendor, now=now) for site in (*sites, "manager")}
        self.members = {name: Member(name) for name in names}
        self.founders = Founders(founders=tuple(member.founder() for member in self.members.values()))
        self.sealer = AttesterSealer(MachineAttester(self.machines["manager"], MANAGER_MEASUREMENT))
        self.store = store or MemoryStore()
        self.settings = Settings()
        self.collateral = ""
        self.manager = self.reopened()

    @property
    def deployment_id(self) -> str:
        """The manager's deployment."""
        return self.manager.state.identity.deployment_id

    @property
    def domain(self) -> str:
        """Trust domain of the machines."""
        return self.vendor.anchor().domain

    def reopened(self) -> Manager:
        """Start a manager from the store, as after a crash.

        Raises:
            SecflError: the store does not hold.
        """
        return open_manager(
            self.store, self.sealer, self.founders, now=self.now, random=os.urandom, settings=self.settings
        )

    def settle(self, outcome: Outcome) -> bytes:
        """Write the entries and give the answer.

        Raises:
            SecflError: the manager refused.
        """
        if outcome.entries:
            self.store.append([entry.row for entry in outcome.entries])
        if outcome.status != 200:
            raise decode_failure(outcome.body)
        return outcome.body

    def send(self, name: str, body: bytes) -> bytes:
        """Make a signed request.

        Raises:
            SecflError: the manager refused.
        """
        return self.settle(self.manager.handle(route(name), body, now=self.now, random=os.urandom))

    def nonce(self) -> bytes:
        """Take a nonce."""
        return self.manager.nonce(now=self.now, random=os.urandom).nonce

    def attest(self, name: str, request: Message) -> bytes:
        """Send an attestation request, with its evidence verified in this process.

        Raises:
            SecflError: the manager refused.
        """
        attempt = self.manager.begin(route(name), request.encode(), now=self.now, random=os.urandom)
        if isinstance(attempt, Outcome):
            return self.settle(attempt)
        try:
            evidence = attempt.parsed_evidence()
            verified: Any = verify(evidence, self.vendor.collateral(KIND, self.now), self.vendor.anchor(), self.now)
        except SecflError as error:
            verified = error
        return self.settle(
            self.manager.finish(attempt, verified, collateral=self.collateral, now=self.now, random=os.urandom)
        )

    def proposal(self, name: str, policy: bytes, predecessor: str | None = None) -> Proposal:
        """A proposal document."""
        return Proposal(
            deployment_id=self.deployment_id,
            name=name,
            policy=policy,
            predecessor=predecessor,
            expires=self.now + 86_400,
        )

    def vote(self, member: str, document: Proposal, reply: ProposalReply, *, approve: bool = True) -> str:
        """Vote on a proposal; gives its state.

        Raises:
            SecflError: the manager refused.
        """
        ballot = Vote(
            deployment_id=self.deployment_id,
            name=document.name,
            proposal=reply.proposal,
            policy_hash=reply.policy_hash,
            predecessor=document.predecessor,
            approve=approve,
        )
        return VoteReply.decode(self.send("policies/vote", self.members[member].sign("policies/vote", ballot))).state

    def propose(self, member: str, document: Proposal) -> ProposalReply:
        """Propose.

        Raises:
            SecflError: the manager refused.
        """
        body = self.members[member].sign("policies/propose", document)
        return ProposalReply.decode(self.send("policies/propose", body))

    def activate(self, name: str, policy: bytes, *voters: str, predecessor: str | None = None) -> str:
        """Propose a policy and let all voters agree; gives its hash.

        Raises:
            SecflError: the manager refused.
        """
        document = self.proposal(name, policy, predecessor)
        reply = self.propose(voters[0], document)
        for voter in voters:
            self.vote(voter, document, reply)
        return reply.policy_hash

    def deposit(self, member: str, policy: str, volume: str, root: bytes, key: bytes) -> None:
        """Deposit a volume key.

        Raises:
            SecflError: the manager refused.
        """
        context = deposit_context(self.deployment_id, policy, volume, root.hex())
        sealing_key = self.manager.state.identity.public.sealing_key
        document = Deposit(
            deployment_id=self.deployment_id,
            policy=policy,
            volume=volume,
            root=root.hex(),
            sealed_key=seal_to(sealing_key, key, purpose="volume-key", context=context),
        )
        self.send("volumes/deposit", self.members[member].sign("volumes/deposit", document))

    def grant(self, member: str, volume: tuple[str, str, bytes], study: tuple[str, str], *, expires: int) -> str:
        """Grant a study the reading of a volume; gives the grant's id.

        Args:
            volume: the owner's policy, the volume's name there, and its root.
            study: the study's policy and its hash.

        Raises:
            SecflError: the manager refused.
        """
        document = Grant.model_validate(
            {
                "deployment_id": self.deployment_id,
                "policy": volume[0],
                "volume": volume[1],
                "root": volume[2],
                "rights": ("read",),
                "study": study[0],
                "study_policy_hash": bytes.fromhex(study[1]),
                "expires": expires,
            }
        )
        return GrantReply.decode(self.send("grants", self.members[member].sign("grants", document))).grant

    def note_collateral(self, bundle: TrustBundle) -> None:
        """Enter a bundle into the log, as a served manager does at its start."""
        self.collateral = hashlib.sha256(bundle.encode()).hexdigest()
        event = Event("collateral", {"bundle": to_base64url(bundle.encode()), "digest": self.collateral})
        entry = self.manager.append(event, now=self.now, random=os.urandom)
        self.store.append([entry.row])

    def take_release(self, member: str, study: str, volume: str) -> ReleaseReply:
        """Ask for a released volume's key.

        Raises:
            SecflError: the manager refused.
        """
        ask = ReleaseAsk(deployment_id=self.deployment_id, nonce=self.nonce(), study=study, volume=volume)
        return ReleaseReply.decode(self.send("releases", self.members[member].sign("releases", ask)))

    def forged_bundle(self, document: dict[str, Any], kind: str) -> bytes:
        """The bundle that a dishonest manager would sign: the first entry of a kind says something else."""
        value = genesis_hash(bytes.fromhex(self.deployment_id))
        entries, forged, time = [], False, 0
        for row in document["entries"]:
            public = strict_json.decode(from_base64url(row["public"]))
            if public["kind"] == kind and not forged:
                forged = True
                public["public"] |= _LIES[kind]
            data, time = strict_json.encode(public), public["time"]
            value = chain_hash(value, data, bytes.fromhex(row["commitment"]))
            entries.append({**row, "public": to_base64url(data)})
        head = sign_head(self.manager.state.identity, length=len(entries), head=value, time=time)
        return strict_json.encode({**document, "entries": entries, "head": to_base64url(head)})


_LIES: Mapping[str, Mapping[str, Any]] = {
    "attested": {"site": "elsewhere"},
    "deposited": {"root": "00" * 32},
    "granted": {"grant": "00" * 32},
    "proposed": {"policy": "AAAA"},
    "voted": {"outcome": "open"},
}
"""What a dishonest manager could write, by kind of entry."""
