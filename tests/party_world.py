"""Parties with homes on disk and a served manager: what the command line uses, without enclaves."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from manager_world import Heart, InLoopVerifier
from secfl.attestation.statement import Isolation, LaunchClaims
from secfl.crypto import strict_json
from secfl.crypto.x509 import to_pem
from secfl.errors import SecflError
from secfl.linux.https_client import HttpsClient
from secfl.manager.core import Manager
from secfl.manager.log import Log
from secfl.manager.opening import store_key
from secfl.manager.run import serve_service
from secfl.manager.server import tls_context
from secfl.manager.service import ManagerService, World
from secfl.manager.store import SqliteStore
from secfl.party.home import PartyHome
from secfl.party.trust import ManagerReference, TrustStore
from secfl.protocol.public import Founders
from secfl.protocol.service import MailboxAsk, MailboxReply
from secfl.shield.config import LaunchConfig
from secfl.shield.enrolment import Enrolment
from secfl.tee.bundle import TrustBundle
from secfl.testing.deployment import Deployment, Member
from secfl.testing.enclaves import KIND, MANAGER_MEASUREMENT, MachineAttester

__all__ = ["NAMES", "HomeDeployment", "PartyWorld", "handed_over"]

NAMES = ("cleveland", "model-owner", "outsider")


class HomeDeployment(Deployment):
    """A deployment whose members' keys lie in their homes."""

    def __init__(self, homes: dict[str, PartyHome], store: SqliteStore) -> None:
        self.homes = homes
        super().__init__(*homes, sites=("cleveland", "hub", "other"), store=store, now=int(time.time()))

    def reopened(self) -> Manager:
        """Found with the keys of the homes."""
        self.members = {
            name: Member(name, home.signing_key(), home.recipient_key()) for name, home in self.homes.items()
        }
        self.founders = Founders(founders=tuple(member.founder() for member in self.members.values()))
        return super().reopened()


class PartyWorld:
    """Three parties and a manager that is served by a thread."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.homes = {name: PartyHome.create(base / name, name) for name in NAMES}
        self.store = SqliteStore(base / "manager.sqlite")
        self.deployment = HomeDeployment(self.homes, self.store)
        self.heart = Heart(self.deployment)
        self.bundle = TrustBundle(
            self.deployment.vendor.anchor(), {KIND: self.deployment.vendor.collateral(KIND, self.deployment.now)}
        )
        for home in self.homes.values():
            home.collateral_path.write_bytes(self.bundle.encode())
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert self._started.wait(10)

    def _serve(self) -> None:
        identity = self.deployment.manager.state.identity
        world = World(
            store=self.store,
            attester=MachineAttester(self.deployment.machines["manager"], MANAGER_MEASUREMENT),
            verifier=InLoopVerifier(),
            trust_path=self.homes["outsider"].collateral_path,
            fresh_log=lambda: Log(*store_key(self.store, self.deployment.sealer)),
        )

        def ready(address: str) -> None:
            self.address = address
            self._started.set()

        tls = tls_context(to_pem(identity.public.certificate), identity.tls_key.to_pem())
        service = ManagerService(self.deployment.manager, world)
        self._loop.run_until_complete(serve_service(service, tls, "127.0.0.1:0", ready, self._stop))

    def close(self) -> None:
        """End the manager."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()
        self.store.close()

    def reference(self, **changes: object) -> ManagerReference:
        """What the parties accept as their manager, with members changed as given."""
        values: dict[str, object] = {
            "address": self.address,
            "trust_domain": self.deployment.domain,
            "tee": KIND,
            "measurements": (MANAGER_MEASUREMENT.hex(),),
            "platforms": (self.deployment.machines["manager"].platform_id.hex(),),
            "tolerate": (),
            "minimum_tcb_evaluation": 1,
            "allow_smt": True,
            "founders": self.deployment.founders,
        }
        return ManagerReference.model_validate(values | changes)

    def trust(self) -> TrustStore:
        """The parties' collateral."""
        return TrustStore((self.bundle,))

    def client(self) -> HttpsClient:
        """A connection to the manager."""
        certificate = self.deployment.manager.state.identity.public.certificate
        return HttpsClient(self.address, certificate_sha256=hashlib.sha256(certificate).digest())

    @contextlib.contextmanager
    def answering(self, service: str) -> Iterator[None]:
        """Run a service that answers challenges, as its shield does."""
        site = "hub" if service == "aggregator" else "cleveland"
        config = LaunchConfig(
            manager=self.address,
            study="heart",
            service=service,
            site=site,
            policy_hash=self.heart.policy_hash,
            listen="127.0.0.1",
            peers={},
            images={},
            volumes={},
        )
        client = self.client()
        client.connect()
        claims = LaunchClaims(Isolation.FULL, "11" * 8, roots={})
        enrolment = Enrolment(config, MachineAttester(self.deployment.machines[site]), client, claims)
        enrolment.attest(client)
        ended = threading.Event()

        def answer() -> None:
            while not ended.is_set():
                with contextlib.suppress(SecflError):
                    reply = MailboxReply.decode(
                        enrolment.call(client, "service/mailbox", MailboxAsk(seen=0, wait=0)), max_bytes=1 << 20
                    )
                    for challenge in reply.challenges:
                        enrolment.call(client, "service/answer", enrolment.answer(challenge))
                ended.wait(0.03)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(5)
            client.close()


def handed_over(folder: Path, kind: str, name: str, document: object) -> None:
    """Put a public file where `secfl policy assemble` looks for it."""
    (folder / kind).mkdir(parents=True, exist_ok=True)
    (folder / kind / f"{name}.json").write_bytes(strict_json.encode(document))
