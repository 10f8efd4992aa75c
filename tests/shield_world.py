"""The shield's parts against a manager in memory: a transport over it, enrolments, a network that takes notes."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable

from manager_world import COHORT_ROOT, Heart
from secfl.attestation.statement import Isolation, LaunchClaims
from secfl.errors import UnavailableError
from secfl.protocol.public import AttestRequest, NonceReply, RenewRequest
from secfl.protocol.service import Peer
from secfl.shield.config import LaunchConfig
from secfl.shield.enrolment import Enrolment
from secfl.shield.identity import Identity
from secfl.shield.node_key import NodeKey
from secfl.testing.deployment import Deployment
from secfl.testing.enclaves import MachineAttester

__all__ = ["NotingNetwork", "Shields", "Transport", "within"]


class Transport:
    """A connection to a manager in memory; `down` makes it unreachable, `spoil` changes answers on their way."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._lock = threading.Lock()
        self.certificate = deployment.manager.state.identity.public.certificate
        self.down = False
        self.calls: list[str] = []
        self.spoil: dict[str, Callable[[bytes], bytes]] = {}

    def call(self, name: str, body: bytes = b"") -> bytes:
        """Make one request."""
        with self._lock:
            if self.down:
                raise UnavailableError("client.unreachable", "the manager is away")
            self.calls.append(name)
            return self.spoil.get(name, bytes)(self._answer(name, body))

    def _answer(self, name: str, body: bytes) -> bytes:
        deployment = self._deployment
        # As time goes by for a manager that is served.
        deployment.now = max(deployment.now, int(time.time()))
        if name == "identity":
            return deployment.manager.state.identity.public.encode()
        if name == "nonces":
            return NonceReply(nonce=deployment.nonce(), expires=deployment.now + 60).encode()
        if name == "attest":
            return deployment.attest(name, AttestRequest.decode(body))
        if name == "renew":
            return deployment.attest(name, RenewRequest.decode(body))
        return deployment.send(name, body)


class Shields:
    """The heart study with enrolments for its services."""

    def __init__(self) -> None:
        names = ("cleveland", "model-owner", "outsider")
        deployment = Deployment(*names, sites=("cleveland", "hub", "other"), now=int(time.time()))
        self.deployment = deployment
        self.heart = Heart(deployment)

    def config(self, service: str, **changes: object) -> LaunchConfig:
        """A launch configuration."""
        values: dict[str, object] = {
            "manager": "127.0.0.1:7443",
            "study": "heart",
            "service": service,
            "site": "hub" if service == "aggregator" else "cleveland",
            "policy_hash": self.heart.policy_hash,
            "listen": "127.0.0.1",
            "peers": {},
            "images": {},
            "volumes": {},
        }
        return LaunchConfig.model_validate(values | changes)

    def enrolment(
        self, service: str, *, transport: Transport | None = None, root: bytes = COHORT_ROOT, **changes: object
    ) -> Enrolment:
        """An enclave that has not attested yet."""
        config = self.config(service, **changes)
        roots = {"cohort": root} if service == "trainer" else {}
        claims = LaunchClaims(Isolation.FULL, os.urandom(8).hex(), roots=roots, node_key=NodeKey().public_text)
        attester = MachineAttester(self.deployment.machines[config.site])
        return Enrolment(config, attester, transport or self.transport(), claims)

    def transport(self) -> Transport:
        """A connection."""
        return Transport(self.deployment)


class NotingNetwork:
    """Stands for the network processes: notes what they would be told, and reports what a test puts in `waiting`."""

    def __init__(self) -> None:
        self.identities: list[bytes] = []
        self.rosters: list[list[str]] = []
        self.waiting: list[dict[str, str]] = []

    def update_identity(self, identity: Identity) -> None:
        """Note the leaf."""
        self.identities.append(hashlib.sha256(identity.certificate).digest())

    def update_peers(self, peers: Iterable[Peer]) -> None:
        """Note the peers."""
        self.rosters.append([peer.service for peer in peers])

    def events(self) -> list[dict[str, str]]:
        """Give what waits."""
        events, self.waiting = self.waiting, []
        return events


def within(seconds: float, condition: Callable[[], object]) -> bool:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())
