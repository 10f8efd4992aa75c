"""The manager behind HTTPS, on a real socket with a real store."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manager_world import Heart, InLoopVerifier
from secfl.attestation.binding import Purpose, check
from secfl.attestation.evidence import Evidence
from secfl.crypto.x509 import to_pem
from secfl.errors import AppraisalError, EncodingError, VerificationError
from secfl.linux.https_client import HttpsClient, unverified_certificate
from secfl.manager.audit import verify_bundle
from secfl.manager.log import Log
from secfl.manager.opening import store_key
from secfl.manager.run import serve_service
from secfl.manager.server import tls_context
from secfl.manager.service import ManagerService, World
from secfl.manager.store import SqliteStore
from secfl.protocol.binding import manager_binding
from secfl.protocol.message import Message
from secfl.protocol.party import (
    ChallengeAsk,
    ChallengePoll,
    ChallengeReply,
    ChallengeState,
    LogExport,
    StatusAsk,
    StatusReply,
)
from secfl.protocol.public import (
    AttestReply,
    EvidenceRequest,
    Identity,
    ManagerEvidence,
    NonceReply,
    payload_context,
)
from secfl.protocol.service import Answer, MailboxAsk, MailboxReply
from secfl.tee.bundle import TrustBundle
from secfl.tee.verifier import InProcessVerifier, verify
from secfl.testing.deployment import Deployment
from secfl.testing.enclaves import KIND, MANAGER_MEASUREMENT, MachineAttester, Workload


class Served:
    """A manager that is served by a thread of this process."""

    def __init__(self, directory: Path) -> None:
        self.store = SqliteStore(directory / "manager.sqlite")
        names = ("cleveland", "model-owner", "outsider")
        deployment = Deployment(*names, sites=("cleveland", "hub", "other"), store=self.store, now=int(time.time()))
        self.heart = Heart(deployment)
        self.deployment = deployment
        trust = directory / "collateral.json"
        bundle = TrustBundle(deployment.vendor.anchor(), {KIND: deployment.vendor.collateral(KIND, deployment.now)})
        trust.write_bytes(bundle.encode())
        world = World(
            store=self.store,
            attester=MachineAttester(deployment.machines["manager"], MANAGER_MEASUREMENT),
            verifier=InLoopVerifier(),
            trust_path=trust,
            fresh_log=lambda: Log(*store_key(self.store, deployment.sealer)),
        )
        identity = deployment.manager.state.identity
        tls = tls_context(to_pem(identity.public.certificate), identity.tls_key.to_pem())
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self.address = ""

        def ready(address: str) -> None:
            self.address = address
            self._started.set()

        service = ManagerService(deployment.manager, world)
        run = serve_service(service, tls, "127.0.0.1:0", ready, self._stop)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(run,))
        self._thread.start()
        assert self._started.wait(10)
        pin = hashlib.sha256(identity.public.certificate).digest()
        self.client = HttpsClient(self.address, certificate_sha256=pin)

    def close(self) -> None:
        self.client.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()
        self.store.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A served deployment."""
    server = Served(tmp_path_factory.mktemp("manager"))
    yield server
    server.close()


def test_a_service_attests_over_https(served: Served) -> None:
    """Nonce, evidence and sealed payload travel over a pinned TLS 1.3 connection."""
    trainer = served.heart.trainer()
    nonce = NonceReply.decode(served.client.call("nonces", b"{}")).nonce
    request = trainer.request(nonce)
    reply = AttestReply.decode(served.client.call("attest", request.encode()))
    context = payload_context(nonce, request.policy_hash)
    assert b'"service":"trainer"' in trainer.sealing.open(reply.sealed, purpose="service-payload", context=context)


def test_the_managers_evidence_covers_its_keys_and_founders(served: Served) -> None:
    """Fresh evidence over the caller's nonce is bound to certificate key, sealing key, deployment and founders."""
    nonce = os.urandom(32)
    evidence = ManagerEvidence.decode(served.client.call("manager/evidence", EvidenceRequest(nonce=nonce).encode()))
    vendor, now = served.deployment.vendor, served.deployment.now
    quote = Evidence.decode(evidence.evidence.encode())
    verified = verify(quote, vendor.collateral(KIND, now), vendor.anchor(), now)
    bound = check(manager_binding(evidence, nonce=nonce), verified)
    assert verified.measurement == MANAGER_MEASUREMENT
    assert evidence.identity == Identity.decode(served.client.call("identity"))
    assert evidence.identity.certificate == unverified_certificate(served.address)
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        check(manager_binding(evidence, nonce=os.urandom(32)), verified)
    assert bound.deployment_id == served.deployment.deployment_id


def test_nw_03_another_certificate_is_refused_before_a_byte_is_sent(served: Served) -> None:
    """A server that shows another certificate than the pinned one gets no request."""
    client = HttpsClient(served.address, certificate_sha256=bytes(32))
    with pytest.raises(VerificationError, match=r"client\.other_certificate"):
        client.call("identity")


def test_nw_13_unknown_paths_have_one_answer(served: Served) -> None:
    """What is not in the route table does not exist, whatever the method."""
    client = HttpsClient(served.address, certificate_sha256=hashlib.sha256(served.client.connect()).digest())
    for method, path in (("GET", "/"), ("GET", "/debug"), ("PUT", "/v1/nonces"), ("GET", "/v1/nonces/")):
        with pytest.raises(EncodingError, match=r"route\.unknown"):
            client._request(method, path, None, 10.0)
    client.close()


def _ask(served: Served, member: str, name: str, make: Callable[[bytes], Message]) -> bytes:
    nonce = NonceReply.decode(served.client.call("nonces", b"{}")).nonce
    return served.client.call(name, served.deployment.members[member].sign(name, make(nonce)))


def _attested(served: Served, workload: Workload) -> Workload:
    request = workload.request(NonceReply.decode(served.client.call("nonces", b"{}")).nonce)
    workload.lease_id = AttestReply.decode(served.client.call("attest", request.encode())).lease_id
    return workload


def test_a_party_attests_a_running_service_itself(served: Served) -> None:
    """A party's challenge wakes the waiting service, whose evidence comes back bound to the party's nonce."""
    deployment_id = served.deployment.deployment_id
    aggregator = _attested(served, served.heart.aggregator())
    pin = hashlib.sha256(served.deployment.manager.state.identity.public.certificate).digest()
    waiting = HttpsClient(served.address, certificate_sha256=pin)
    first = MailboxReply.decode(
        waiting.call("service/mailbox", aggregator.signed("service/mailbox", MailboxAsk(seen=0, wait=0)))
    )
    replies: list[MailboxReply] = []

    def wait() -> None:
        body = aggregator.signed("service/mailbox", MailboxAsk(seen=first.version, wait=9))
        replies.append(MailboxReply.decode(waiting.call("service/mailbox", body)))

    thread = threading.Thread(target=wait)
    thread.start()
    challenge = os.urandom(32)
    asked = ChallengeReply.decode(
        _ask(
            served,
            "cleveland",
            "challenges",
            lambda nonce: ChallengeAsk(
                deployment_id=deployment_id, nonce=nonce, study="heart", service="aggregator", challenge=challenge
            ),
        )
    )
    thread.join(5)
    (pending,) = replies[0].challenges
    assert (pending.challenge_id, pending.nonce) == (asked.challenge_id, challenge)
    answer = Answer(
        challenge_id=pending.challenge_id,
        evidence=aggregator.evidence(Purpose.PEER, pending.nonce),
        launch_claims=aggregator.claims.encode(),
    )
    waiting.call("service/answer", aggregator.signed("service/answer", answer))
    waiting.close()
    state = ChallengeState.decode(
        _ask(
            served,
            "cleveland",
            "challenges/poll",
            lambda nonce: ChallengePoll(deployment_id=deployment_id, nonce=nonce, challenge_id=asked.challenge_id),
        )
    )
    assert state.answered
    assert state.evidence == answer.evidence
    assert state.tls_key == aggregator.tls.public.spki


def test_a_party_exports_a_log_that_its_audit_accepts(served: Served) -> None:
    """The bundle of the served manager verifies offline with the collateral in it."""
    _attested(served, served.heart.aggregator())
    deployment_id = served.deployment.deployment_id
    bundle = _ask(served, "outsider", "log/export", lambda nonce: LogExport(deployment_id=deployment_id, nonce=nonce))
    report = verify_bundle(
        bundle,
        key=served.deployment.manager.state.identity.tls_key.public,
        founders=served.deployment.founders,
        verifier=InProcessVerifier(),
    )
    assert report.counts["attested"] >= 1
    assert report.trust_domains == {served.deployment.domain}


def test_the_status_of_a_study_shows_refusals_with_their_remedy(served: Served) -> None:
    """A refused service is visible to the study's parties, with findings and without secrets."""
    wrong = served.heart.trainer(root=bytes(31) + b"x")
    request = wrong.request(NonceReply.decode(served.client.call("nonces", b"{}")).nonce)
    with pytest.raises(AppraisalError, match=r"appraisal\.roots"):
        served.client.call("attest", request.encode())
    status = StatusReply.decode(
        _ask(
            served,
            "model-owner",
            "studies/status",
            lambda nonce: StatusAsk(deployment_id=served.deployment.deployment_id, nonce=nonce, study="heart"),
        )
    ).status
    assert status["refusals"][-1]["code"] == "appraisal.roots"
    assert status["refusals"][-1]["findings"][0]["remedy"]


def test_an_oversized_or_malformed_body_is_refused_before_it_is_read(served: Served) -> None:
    """A body over the route's limit, or one that is not canonical, is an encoding error."""
    for body in (b"{" + b" " * 300_000 + b"}", b"[]", b"{} "):
        with pytest.raises(EncodingError):
            served.client.call("attest", body)
