"""Attacks on attestation, against the real core with evidence of simulated machines."""

from __future__ import annotations

import os
from typing import Any

import pytest

from manager_world import COHORT_KEY, Heart
from secfl.attestation.binding import Purpose
from secfl.crypto.hpke import SealingKey
from secfl.crypto.signing import SigningKey
from secfl.errors import AppraisalError, AuthorizationError, FreshnessError, StateError, VerificationError
from secfl.manager.attesting import Attempt
from secfl.protocol.public import AttestReply, RenewRequest, payload_context
from secfl.protocol.routes import route
from secfl.protocol.service import Exit, MailboxAsk, Progress, Released, ReleaseKeyAsk, RootUpdate
from secfl.tee.verifier import verify
from secfl.testing.deployment import Deployment
from secfl.testing.enclaves import MachineAttester
from secfl.testing.forge import NOW


@pytest.fixture
def heart() -> Heart:
    """A study in force."""
    return Heart()


def test_ev_08_a_request_replayed_later_is_refused(heart: Heart) -> None:
    """A nonce is used up by the first request, accepted or not."""
    request = heart.trainer().request(heart.deployment.nonce())
    heart.deployment.attest("attest", request)
    with pytest.raises(FreshnessError, match=r"challenge\.unknown"):
        heart.deployment.attest("attest", request)


def test_ev_08_a_request_replayed_in_parallel_is_refused(heart: Heart) -> None:
    """Of two copies under way at the same time only the first has a nonce; both are taken before either is verified."""
    deployment = heart.deployment
    body = heart.trainer().request(deployment.nonce()).encode()
    first = deployment.manager.begin(route("attest"), body, now=deployment.now, random=os.urandom)
    second = deployment.manager.begin(route("attest"), body, now=deployment.now, random=os.urandom)
    assert getattr(first, "status", None) is None
    assert getattr(second, "status", None) == 409


def test_ev_08_a_request_replayed_to_another_manager_is_refused(heart: Heart) -> None:
    """Another manager issued no such nonce."""
    other = Heart(Deployment("cleveland", "model-owner", sites=("cleveland", "hub")))
    request = heart.trainer().request(heart.deployment.nonce())
    with pytest.raises(FreshnessError, match=r"challenge\.unknown"):
        other.deployment.attest("attest", request)


def test_ev_08_a_request_replayed_after_a_restart_is_refused(heart: Heart) -> None:
    """Nonces do not outlive the manager that issued them, used or unused."""
    unused, used = heart.deployment.nonce(), heart.trainer().request(heart.deployment.nonce())
    heart.deployment.attest("attest", used)
    heart.deployment.manager = heart.deployment.reopened()
    for request in (used, heart.trainer().request(unused)):
        with pytest.raises(FreshnessError, match=r"challenge\.unknown"):
            heart.deployment.attest("attest", request)


@pytest.mark.parametrize("member", ["tls_key", "sealing_key"])
def test_ev_12_relayed_evidence_is_refused(heart: Heart, member: str) -> None:
    """Genuine evidence with another TLS or sealing key beside it is bound to neither."""
    trainer = heart.trainer()
    own = {"tls_key": SigningKey.generate_p256().public.spki, "sealing_key": SealingKey.generate().public}
    request = trainer.request(heart.deployment.nonce(), **{member: own[member]})
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        heart.deployment.attest("attest", request)


@pytest.mark.parametrize("field", ["manager_certificate", "deployment_id"])
def test_ev_12_evidence_for_another_exchange_is_refused(heart: Heart, field: str) -> None:
    """Evidence over a relay's certificate or another deployment does not fit."""
    trainer = heart.trainer()
    nonce = heart.deployment.nonce()
    other = {
        "manager_certificate": Deployment("x").manager.state.identity.public.certificate,
        "deployment_id": "0" * 32,
    }
    evidence = trainer.evidence(Purpose.ATTEST, nonce, **{field: other[field]})
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        heart.deployment.attest("attest", trainer.request(nonce, evidence=evidence))


def test_ev_12_evidence_over_another_nonce_is_refused(heart: Heart) -> None:
    """A nonce of the attacker's choice in the evidence does not fit the manager's."""
    trainer = heart.trainer()
    evidence = trainer.evidence(Purpose.ATTEST, os.urandom(32))
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        heart.deployment.attest("attest", trainer.request(heart.deployment.nonce(), evidence=evidence))


def test_ev_14_an_old_key_with_old_evidence_is_refused(heart: Heart) -> None:
    """Old evidence under a fresh nonce, with its old keys, is refused; so is its lease after the service ended."""
    trainer = heart.trainer()
    old = trainer.request(heart.deployment.nonce())
    trainer.attest()
    trainer.call("service/exit", Exit(status=0))
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        heart.deployment.attest("attest", old.model_copy(update={"nonce": heart.deployment.nonce()}))
    with pytest.raises(AuthorizationError, match=r"signature\.unknown_key"):
        trainer.call("service/mailbox", MailboxAsk(seen=0, wait=0))


def test_ev_15_evidence_of_one_role_or_node_serves_no_other(heart: Heart) -> None:
    """A trainer's evidence presented as the aggregator's, or an aggregator's as another site's, is refused."""
    nonce = heart.deployment.nonce
    requests = (
        heart.trainer().request(nonce(), service="aggregator"),
        heart.aggregator().request(nonce(), site="other"),
    )
    for request in requests:
        with pytest.raises(VerificationError, match=r"binding\.mismatch"):
            heart.deployment.attest("attest", request)
    with pytest.raises(AppraisalError, match=r"appraisal\.site"):
        heart.deployment.attest("attest", heart.trainer().request(nonce(), site="hub"))


def test_ev_15_a_service_on_an_unlisted_platform_is_refused(heart: Heart) -> None:
    """The right code at the aggregator's name but on another party's machine is refused, with the finding."""
    aggregator = heart.aggregator(site="other")
    with pytest.raises(AppraisalError, match=r"appraisal\.platform_not_listed"):
        aggregator.attest()


@pytest.mark.parametrize("purpose", [Purpose.RENEW, Purpose.PEER])
def test_ev_16_evidence_of_another_purpose_is_refused(heart: Heart, purpose: Purpose) -> None:
    """Evidence made for a renewal or for a party's challenge attests no service."""
    trainer = heart.trainer()
    nonce = heart.deployment.nonce()
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        heart.deployment.attest("attest", trainer.request(nonce, evidence=trainer.evidence(purpose, nonce)))


def test_ev_16_evidence_for_another_policy_is_refused(heart: Heart) -> None:
    """Evidence over another policy's hash is refused, whether the request names that hash or the one in force."""
    trainer = heart.trainer()
    nonce = heart.deployment.nonce()
    evidence = trainer.evidence(Purpose.ATTEST, nonce, policy_hash="ab" * 32)
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        heart.deployment.attest("attest", trainer.request(nonce, evidence=evidence))
    with pytest.raises(AppraisalError, match=r"appraisal\.policy_not_in_force"):
        heart.deployment.attest("attest", trainer.request(heart.deployment.nonce(), policy_hash="ab" * 32))


def test_ev_16_first_attestation_evidence_renews_nothing(heart: Heart) -> None:
    """A renewal needs evidence that was made as one."""
    trainer = heart.trainer()
    trainer.attest()
    nonce = heart.deployment.nonce()
    request = RenewRequest(
        nonce=nonce,
        lease_id=trainer.lease_id,
        policy_hash=heart.policy_hash,
        evidence=trainer.evidence(Purpose.ATTEST, nonce),
        launch_claims=trainer.claims.encode(),
    )
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        heart.deployment.attest("renew", request)


def test_ev_34_a_nodes_hardware_never_changes(heart: Heart) -> None:
    """The first machine of a site wins, even after its lease lapsed and although the policy lists the other one too."""
    deployment = heart.deployment
    own, second = (deployment.machines[site].platform_id.hex() for site in ("cleveland", "other"))
    listed = heart.policy.replace(f'- "{own}"'.encode(), f'- "{own}"\n  - "{second}"'.encode())
    heart.policy_hash = deployment.activate("heart", listed, "cleveland", "model-owner", predecessor=heart.policy_hash)
    heart.policy = listed
    heart.grant(seconds=1_000_000)
    heart.trainer().attest()
    other = heart.trainer()
    other.attester = MachineAttester(deployment.machines["other"])
    with pytest.raises(AppraisalError, match=r"appraisal\.platform_changed"):
        other.attest()
    deployment.now += deployment.settings.lease + 1
    with pytest.raises(AppraisalError, match=r"appraisal\.platform_changed"):
        other.attest()
    assert heart.trainer().attest().service == "trainer"


def test_ev_34_of_two_racing_registrations_the_first_wins(heart: Heart) -> None:
    """Both requests are verified at the same time; the one concluded second, from other hardware, is refused."""
    deployment = heart.deployment
    own, second = (deployment.machines[site].platform_id.hex() for site in ("hub", "other"))
    listed = heart.policy.replace(f'- "{own}"'.encode(), f'- "{own}"\n  - "{second}"'.encode())
    heart.policy_hash = deployment.activate("heart", listed, "cleveland", "model-owner", predecessor=heart.policy_hash)
    heart.policy = listed
    rivals = [heart.aggregator(), heart.aggregator()]
    rivals[1].attester = MachineAttester(deployment.machines["other"])
    arguments: dict[str, Any] = {"now": deployment.now, "random": os.urandom}
    attempts = [
        deployment.manager.begin(route("attest"), rival.request(deployment.nonce()).encode(), **arguments)
        for rival in rivals
    ]
    statuses = []
    for attempt in attempts:
        assert isinstance(attempt, Attempt)
        vendor = deployment.vendor
        verified = verify(attempt.parsed_evidence(), vendor.collateral("tdx", NOW), vendor.anchor(), NOW)
        statuses.append(deployment.manager.finish(attempt, verified, collateral="", **arguments).status)
    assert statuses == [200, 403]


def test_fl_01_a_lapsed_lease_gets_nothing(heart: Heart) -> None:
    """Without a live lease there is no renewal, no mailbox and no key."""
    aggregator = heart.aggregator()
    aggregator.attest()
    heart.deployment.now += heart.deployment.settings.lease + 1
    with pytest.raises(StateError, match=r"lease\.lapsed"):
        aggregator.renew()
    with pytest.raises(StateError, match=r"lease\.lapsed"):
        aggregator.call("service/mailbox", MailboxAsk(seen=0, wait=0))
    with pytest.raises(StateError, match=r"lease\.lapsed"):
        aggregator.call("service/release-key", ReleaseKeyAsk(volume="model"))


def test_fl_01_an_unattested_key_is_no_service(heart: Heart) -> None:
    """A signature by any other key opens no service route."""
    trainer = heart.trainer()
    trainer.lease_id = "0" * 32
    with pytest.raises(AuthorizationError, match=r"signature\.unknown_key"):
        trainer.call("service/mailbox", MailboxAsk(seen=0, wait=0))


def test_fl_02_right_code_with_another_dataset_is_refused(heart: Heart) -> None:
    """A trainer that states another root than the policy's gets the finding and no key."""
    with pytest.raises(AppraisalError, match=r"appraisal\.roots"):
        heart.trainer(root=b"\x22" * 32).attest()


def test_fl_02_without_a_live_grant_there_is_no_key(heart: Heart) -> None:
    """A revoked or expired grant stops attestation and renewal alike."""
    from secfl.protocol.party import Revocation

    trainer = heart.trainer()
    trainer.attest()
    member = heart.deployment.members["cleveland"]
    document = Revocation(deployment_id=heart.deployment.deployment_id, grant=heart.grant_id)
    heart.deployment.send("grants/revoke", member.sign("grants/revoke", document))
    with pytest.raises(AuthorizationError, match=r"grant\.missing"):
        trainer.renew()
    with pytest.raises(AuthorizationError, match=r"grant\.missing"):
        heart.trainer().attest()
    heart.grant(seconds=50)
    assert heart.trainer().attest().volumes[0].key == COHORT_KEY
    heart.deployment.now += 51
    with pytest.raises(AuthorizationError, match=r"grant\.missing"):
        heart.trainer().attest()


def test_nw_15_another_founders_manager_is_told_apart(heart: Heart) -> None:
    """The same manager code with other founders has another digest in the policy field of its evidence."""
    from secfl.protocol.public import founders_digest

    assert founders_digest(heart.deployment.founders) != founders_digest(Deployment("cleveland").founders)


def test_the_update_of_a_policy_stops_renewal(heart: Heart) -> None:
    """After a vote the leases of the former version are not renewed: a change bites without a restart."""
    trainer = heart.trainer()
    trainer.attest()
    heart.deployment.activate(
        "heart", heart.policy + b"# two\n", "cleveland", "model-owner", predecessor=heart.policy_hash
    )
    with pytest.raises(AppraisalError, match=r"appraisal\.policy_not_in_force"):
        trainer.renew()


def test_se_01_a_service_gets_no_secret_of_another(heart: Heart) -> None:
    """The trainer's payload holds none of the aggregator's secrets and volumes, and no route gives them."""
    aggregator = heart.aggregator().attest()
    trainer = heart.trainer()
    payload = trainer.attest().encode()
    assert aggregator.environment["TOKEN"].encode() not in payload
    assert b'"model"' not in payload
    for name, body in (
        ("service/roots", RootUpdate(volume="model", sequence=1, tag="aa" * 32)),
        ("service/release-key", ReleaseKeyAsk(volume="model")),
        ("service/released", Released(volume="model", root="aa" * 32)),
    ):
        with pytest.raises(AuthorizationError, match=r"volume\.not_mounted"):
            trainer.call(name, body)


def test_se_02_a_terminating_proxy_sees_only_ciphertext(heart: Heart) -> None:
    """The whole answer holds no secret in clear, and no other key, nonce or policy opens it."""
    from secfl.crypto.encoding import to_base64url

    trainer = heart.trainer()
    request = trainer.request(heart.deployment.nonce())
    answer = heart.deployment.attest("attest", request)
    assert COHORT_KEY not in answer
    assert to_base64url(COHORT_KEY).encode() not in answer
    sealed = AttestReply.decode(answer).sealed
    context = payload_context(request.nonce, request.policy_hash)
    with pytest.raises(VerificationError, match=r"crypto\.open_failed"):
        SealingKey.generate().open(sealed, purpose="service-payload", context=context)
    with pytest.raises(VerificationError, match=r"crypto\.open_failed"):
        trainer.sealing.open(sealed, purpose="service-payload", context=payload_context(bytes(31) + b"x", "00" * 32))


def test_se_13_a_recorded_call_is_refused(heart: Heart) -> None:
    """A captured service call is worth nothing a second time, also after a restart of the manager."""
    aggregator = heart.aggregator()
    aggregator.attest()
    call = aggregator.signed("service/progress", Progress(round=1, phase="train", metrics={}, replies=()))
    heart.deployment.send("service/progress", call)
    for _ in range(2):
        with pytest.raises(FreshnessError, match=r"call\.replayed"):
            heart.deployment.send("service/progress", call)
        heart.deployment.manager = heart.deployment.reopened()


def test_se_13_a_lease_id_is_no_bearer_token(heart: Heart) -> None:
    """Another attested service cannot use a lease that is not its own."""
    aggregator, trainer = heart.aggregator(), heart.trainer()
    aggregator.attest()
    trainer.attest()
    trainer.lease_id = aggregator.lease_id
    with pytest.raises(AuthorizationError, match=r"lease\.other"):
        trainer.call("service/mailbox", MailboxAsk(seen=0, wait=0))


def test_a_stale_copy_of_a_volume_cannot_move_its_head(heart: Heart) -> None:
    """A head moves only from the head before it."""
    aggregator = heart.aggregator()
    aggregator.attest()
    aggregator.call("service/roots", RootUpdate(volume="model", sequence=1, tag="aa" * 32))
    for sequence, previous in ((1, None), (2, "bb" * 32), (3, "aa" * 32), (2, None)):
        update = RootUpdate(volume="model", sequence=sequence, previous=previous, tag="cc" * 32)
        with pytest.raises(FreshnessError, match=r"volume\.stale_head"):
            aggregator.call("service/roots", update)
