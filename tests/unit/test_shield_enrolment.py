"""The launch configuration and the enrolment of a shield, against the manager in memory."""

from __future__ import annotations

import threading
import time

import pytest

from manager_world import COHORT_KEY, COHORT_ROOT
from secfl.crypto import strict_json
from secfl.crypto.x509 import unverified_public_key
from secfl.errors import (
    AppraisalError,
    AuthorizationError,
    EncodingError,
    FreshnessError,
    SecflError,
    VerificationError,
)
from secfl.protocol.public import AttestReply, Empty
from secfl.protocol.service import Progress, ReleaseKeyAsk, ReleaseKeyReply, RootUpdate
from secfl.shield.config import LaunchConfig
from secfl.shield.enrolment import Enrolment
from secfl.shield.node_key import NodeKey
from shield_world import Shields, Transport


@pytest.fixture(scope="module")
def shields() -> Shields:
    """One study for all tests."""
    return Shields()


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("manager", "manager.example:7443"),
        ("manager", "127.0.0.1"),
        ("manager", "127.0.0.1:0"),
        ("manager", "127.0.0.1:07443"),
        ("listen", "0.0.0.0:80"),
        ("listen", "localhost"),
        ("study", "../heart"),
        ("site", ""),
        ("policy_hash", "00"),
        ("peers", {"aggregator": "hub"}),
        ("peers", {"../x": "127.0.0.1:1"}),
        ("images", {"cohort": 7}),
        ("images", {"Cohort/../x": "volumes"}),
        ("volumes", {"cohort": "volumes/cohort"}),
        ("volumes", None),
        ("surplus", "x"),
    ],
)
def test_sv_10_a_wrong_launch_configuration_is_refused(shields: Shields, member: str, value: object) -> None:
    """Each wrong, unknown or missing member is an encoding error before anything is sent."""
    document = strict_json.decode(shields.config("trainer", images={"cohort": "volumes/cohort"}).encode())
    assert LaunchConfig.decode(strict_json.encode(document)).site == "cleveland"
    changed = {key: item for key, item in (document | {member: value}).items() if item is not None}
    with pytest.raises(EncodingError):
        LaunchConfig.decode(strict_json.encode(changed))


def test_an_enclave_attests_and_opens_its_payload(shields: Shields) -> None:
    """The answer holds the volume's key, the lease and a certificate over the enclave's own TLS key."""
    transport = shields.transport()
    enrolment = shields.enrolment("trainer", transport=transport)
    with pytest.raises(VerificationError, match=r"enrolment\.not_attested"):
        _ = enrolment.admission
    admission = enrolment.attest(transport)
    assert admission is enrolment.admission
    assert [(v.name, v.key, v.root) for v in admission.payload.volumes] == [("cohort", COHORT_KEY, COHORT_ROOT.hex())]
    assert admission.lease_until > time.time()
    assert unverified_public_key(admission.certificates[0]) == enrolment.tls_key.public
    assert enrolment.sealing_public == enrolment.sealing_key.public


def test_a_renewal_keeps_keys_and_payload(shields: Shields) -> None:
    """Fresh evidence over the same keys gives a new certificate for them, and nothing else changes."""
    transport = shields.transport()
    enrolment = shields.enrolment("trainer", transport=transport)
    before = enrolment.attest(transport)
    after = enrolment.renew(transport)
    assert (after.payload, after.lease_id) == (before.payload, before.lease_id)
    assert after.certificates[0] != before.certificates[0]
    assert unverified_public_key(after.certificates[0]) == enrolment.tls_key.public


def test_fl_02_another_data_root_gets_no_key(shields: Shields) -> None:
    """The roots of what the operator supplied are in the evidence; another one is refused with its finding."""
    transport = shields.transport()
    with pytest.raises(AppraisalError, match=r"appraisal\.roots"):
        shields.enrolment("trainer", transport=transport, root=bytes(32)).attest(transport)


def test_se_02_a_manager_in_the_middle_is_noticed_by_the_manager(shields: Shields) -> None:
    """The evidence covers the certificate that the shield saw, so that of a middleman is refused."""
    transport = shields.transport()
    transport.certificate = shields.heart.deployment.founders.encode()
    enrolment = shields.enrolment("trainer", transport=transport)
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        enrolment.attest(transport)


@pytest.mark.parametrize("service", ["trainer", "aggregator"])
def test_ev_12_an_answer_for_another_enclave_does_not_open(shields: Shields, service: str) -> None:
    """A relay that swaps in the sealed answer to another enclave gives the shield nothing it can open."""
    transport = shields.transport()
    other = shields.transport()
    caught: list[bytes] = []
    other.spoil["attest"] = lambda data: caught.append(data) or data  # type: ignore[func-returns-value]
    shields.enrolment(service, transport=other).attest(other)
    transport.spoil["attest"] = lambda data: (
        AttestReply.decode(data).model_copy(update={"sealed": AttestReply.decode(caught[0]).sealed}).encode()
    )
    with pytest.raises(VerificationError, match=r"crypto\.open_failed"):
        shields.enrolment("trainer", transport=transport).attest(transport)


def test_a_superseded_policy_hash_is_refused(shields: Shields) -> None:
    """An operator who launches under another policy hash gets no answer to open."""
    transport = shields.transport()
    with pytest.raises(SecflError) as caught:
        shields.enrolment("trainer", transport=transport, policy_hash="00" * 32).attest(transport)
    assert caught.value.code in ("appraisal.policy_not_in_force", "appraisal.policy")


class _Slow(Transport):
    """Lets a call wait on its way, as a network may."""

    def call(self, name: str, body: bytes = b"") -> bytes:
        if name == "service/progress" and not self.calls.count(name):
            self.calls.append(name)
            time.sleep(0.15)
        return super().call(name, body)


def test_calls_of_several_threads_arrive_in_their_order(shields: Shields) -> None:
    """A slow call does not let a later one overtake it, which the manager would take for a replay (SE-13)."""
    transport = _Slow(shields.deployment)
    enrolment = shields.enrolment("aggregator", transport=transport)
    enrolment.attest(transport)
    errors: list[SecflError] = []

    def report(number: int) -> None:
        try:
            enrolment.call(
                transport, "service/progress", Progress(round=number, phase="evaluate", metrics={}, replies=())
            )
        except SecflError as error:
            errors.append(error)

    threads = [threading.Thread(target=report, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert not errors


def test_se_13_a_recorded_call_is_refused(shields: Shields) -> None:
    """The same signed bytes are taken once."""
    transport = shields.transport()
    enrolment = shields.enrolment("aggregator", transport=transport)
    enrolment.attest(transport)
    sent: list[bytes] = []

    class Recorder:
        certificate = transport.certificate

        def call(self, name: str, body: bytes = b"") -> bytes:
            sent.append(body)
            return transport.call(name, body)

    update = RootUpdate(volume="model", sequence=1, tag="11" * 32)
    assert Empty.decode(enrolment.call(Recorder(), "service/roots", update)) == Empty()
    with pytest.raises((FreshnessError, AuthorizationError)):
        transport.call("service/roots", sent[0])


def test_a_release_key_opens_only_for_its_volume_and_lease(shields: Shields) -> None:
    """The key is bound to deployment, lease and volume."""
    transport = shields.transport()
    enrolment: Enrolment = shields.enrolment("aggregator", transport=transport)
    enrolment.attest(transport)
    reply = ReleaseKeyReply.decode(enrolment.call(transport, "service/release-key", ReleaseKeyAsk(volume="model")))
    assert len(enrolment.open_release_key(reply, "model")) == 32
    with pytest.raises(VerificationError, match=r"crypto\.open_failed"):
        enrolment.open_release_key(reply, "other")


def test_node_keys_are_drawn_and_differ() -> None:
    """Each launch has a key of its own, in the form that engines read."""
    one, two = NodeKey(), NodeKey()
    assert one.public_text.startswith("ecdsa-sha2-nistp256 ")
    assert one.private_text.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert one.public_text != two.public_text
