"""Attacks on governance, roles, releases and secrets, against the real core."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from manager_world import COHORT_KEY, COHORT_ROOT, Heart, owner_policy, report_rounds, study_policy
from secfl.crypto.signing import SigningKey
from secfl.errors import AuthorizationError, FreshnessError, SecflError, StateError, VerificationError
from secfl.manager.operations import PARTY_OPERATIONS, SERVICE_OPERATIONS, UNLOGGED
from secfl.protocol import party
from secfl.protocol.message import Message
from secfl.protocol.party import ProposalReply, ReleaseReply, Vote, release_context
from secfl.protocol.routes import ROUTES, Role, Route, route
from secfl.protocol.service import Exit, Released, ReleaseKeyAsk
from secfl.testing.deployment import Deployment, Member
from secfl.testing.enclaves import Workload


@pytest.fixture
def heart() -> Heart:
    """A study in force."""
    return Heart()


@pytest.fixture
def deployment() -> Deployment:
    """A deployment without policies."""
    return Deployment("cleveland", "model-owner", "outsider", sites=("cleveland", "hub"))


def study(deployment: Deployment) -> bytes:
    """A study that imports from an owner's policy of a hash that does not matter."""
    return study_policy(deployment, "ab" * 32)


def test_pb_01_too_few_votes_put_nothing_in_force(deployment: Deployment) -> None:
    """One of two required votes, given twice, or the proposal alone, is no majority."""
    document = deployment.proposal("heart", study(deployment))
    reply = deployment.propose("cleveland", document)
    assert deployment.manager.state.history("heart").current is None
    assert deployment.vote("cleveland", document, reply) == "open"
    with pytest.raises(StateError, match=r"vote\.repeated"):
        deployment.vote("cleveland", document, reply)
    with pytest.raises(AuthorizationError, match=r"vote\.not_on_board"):
        deployment.vote("outsider", document, reply)
    assert deployment.manager.state.history("heart").current is None
    assert deployment.vote("model-owner", document, reply) == "accepted"
    assert deployment.manager.state.version("heart").data == document.policy


def test_pb_01_a_stranger_on_the_board_is_refused(deployment: Deployment) -> None:
    """A first policy whose board has a member that is no founder cannot be proposed."""
    deployment.members["cleveland"], founder = Member("cleveland"), deployment.members["cleveland"]
    forged = study(deployment)
    deployment.members["cleveland"] = founder
    with pytest.raises(AuthorizationError, match=r"board\.founder_key"):
        deployment.propose("cleveland", deployment.proposal("heart", forged))


def ballot(deployment: Deployment, document: party.Proposal, reply: ProposalReply, **changes: Any) -> bytes:
    """The model owner's vote with members changed as given."""
    vote = Vote(
        deployment_id=deployment.deployment_id,
        name=document.name,
        proposal=reply.proposal,
        policy_hash=reply.policy_hash,
        predecessor=document.predecessor,
        approve=True,
    )
    return deployment.members["model-owner"].sign("policies/vote", vote.model_copy(update=changes))


def test_pb_04_a_vote_counts_for_its_own_motion_only(deployment: Deployment) -> None:
    """A vote for another proposal, version, bytes or deployment is refused, and so is one with a changed field."""
    first = deployment.proposal("heart", study(deployment))
    second = deployment.proposal("heart", study(deployment) + b"# other\n")
    reply, other = deployment.propose("cleveland", first), deployment.propose("cleveland", second)
    with pytest.raises(StateError, match=r"vote\.no_proposal"):
        deployment.send("policies/vote", ballot(deployment, first, reply, proposal="ab" * 32))
    for changes in ({"proposal": other.proposal}, {"policy_hash": "ab" * 32}, {"predecessor": "ab" * 32}):
        with pytest.raises(VerificationError, match=r"vote\.other_motion"):
            deployment.send("policies/vote", ballot(deployment, first, reply, **changes))
    with pytest.raises(VerificationError, match=r"deployment\.other"):
        deployment.send("policies/vote", ballot(deployment, first, reply, deployment_id="0" * 32))


def test_pb_04_a_vote_signed_for_another_operation_is_refused(deployment: Deployment) -> None:
    """The purpose is signed: a vote's signature serves no other route."""
    document = deployment.proposal("heart", study(deployment))
    reply = deployment.propose("cleveland", document)
    body = ballot(deployment, document, reply).replace(b"secfl/policies/vote", b"secfl/policies/propose")
    with pytest.raises(VerificationError, match=r"signature\.(purpose|invalid)"):
        deployment.send("policies/vote", body)


def test_pb_06_a_stale_or_missing_predecessor_is_a_conflict(heart: Heart) -> None:
    """An update must name the version in force: nobody overwrites what they have not seen."""
    deployment = heart.deployment
    update = heart.policy + b"# update\n"
    for predecessor in (None, "ab" * 32):
        with pytest.raises(StateError, match=r"board\.predecessor"):
            deployment.propose("cleveland", deployment.proposal("heart", update, predecessor))


def test_pb_06_of_two_updates_one_wins(heart: Heart) -> None:
    """When one of two concurrent proposals is in force the votes on the other are void."""
    deployment = heart.deployment
    first = deployment.proposal("heart", heart.policy + b"# a\n", heart.policy_hash)
    second = deployment.proposal("heart", heart.policy + b"# b\n", heart.policy_hash)
    one, two = deployment.propose("cleveland", first), deployment.propose("model-owner", second)
    deployment.vote("cleveland", second, two)
    for voter in ("cleveland", "model-owner"):
        deployment.vote(voter, first, one)
    with pytest.raises(StateError, match=r"vote\.no_proposal"):
        deployment.vote("model-owner", second, two)


def test_pb_07_an_older_version_is_not_put_back(heart: Heart) -> None:
    """Neither the old proposal nor the old bytes under a new one come into force again."""
    deployment = heart.deployment
    old = deployment.proposal("heart", heart.policy)
    newer = deployment.activate(
        "heart", heart.policy + b"# two\n", "cleveland", "model-owner", predecessor=heart.policy_hash
    )
    with pytest.raises(StateError, match=r"board\.predecessor"):
        deployment.propose("cleveland", old)
    with pytest.raises(FreshnessError, match=r"board\.version_reused"):
        deployment.propose("cleveland", deployment.proposal("heart", heart.policy, newer))


def test_pb_10_an_edited_proposal_has_no_votes(deployment: Deployment) -> None:
    """Changed bytes are another proposal; a vote for the former one does not count for it."""
    document = deployment.proposal("heart", study(deployment))
    reply = deployment.propose("cleveland", document)
    deployment.vote("cleveland", document, reply)
    edited = document.model_copy(update={"policy": document.policy + b"# edited\n"})
    other = deployment.propose("cleveland", edited)
    assert other.proposal != reply.proposal
    assert deployment.vote("model-owner", edited, other) == "open"


def test_a_rejected_or_lapsed_proposal_stays_closed(deployment: Deployment) -> None:
    """A refused proposal cannot be sent again, and a lapsed one takes no votes."""
    document = deployment.proposal("heart", study(deployment))
    reply = deployment.propose("cleveland", document)
    assert deployment.vote("model-owner", document, reply, approve=False) == "rejected"
    with pytest.raises(StateError, match=r"proposal\.repeated"):
        deployment.propose("cleveland", document)
    later = document.model_copy(update={"expires": deployment.now + 10})
    reply = deployment.propose("cleveland", later)
    deployment.now += 11
    with pytest.raises(FreshnessError, match=r"vote\.proposal_expired"):
        deployment.vote("cleveland", later, reply)


def test_pb_13_a_namespace_belongs_to_its_party(deployment: Deployment) -> None:
    """Only cleveland brings policies under cleveland/."""
    document = deployment.proposal("cleveland/cohort", owner_policy(deployment))
    with pytest.raises(AuthorizationError, match=r"board\.proposer"):
        deployment.propose("model-owner", document)


def test_pb_16_every_route_has_a_rule() -> None:
    """The route table and the operations name the same signed routes; a route without a rule fails here."""
    signed = {role: {one.name for one in ROUTES if one.role is role} for role in Role}
    assert signed[Role.PARTY] == set(PARTY_OPERATIONS)
    assert signed[Role.SERVICE] == set(SERVICE_OPERATIONS)
    assert signed[Role.PUBLIC] == {"identity", "manager/evidence", "nonces", "attest", "renew"}
    assert set(PARTY_OPERATIONS) | set(SERVICE_OPERATIONS) >= UNLOGGED


SIGNED = [one for one in ROUTES if one.role is not Role.PUBLIC]


@pytest.fixture(scope="module")
def running() -> tuple[Heart, Workload]:
    """A study in force with a live trainer; the tests that share it only are refused."""
    heart = Heart()
    trainer = heart.trainer()
    trainer.attest()
    return heart, trainer


def _questions(deployment: Deployment) -> dict[str, Message]:
    deployment_id = deployment.deployment_id
    return {
        "studies/status": party.StatusAsk(deployment_id=deployment_id, nonce=deployment.nonce(), study="heart"),
        "challenges": party.ChallengeAsk(
            deployment_id=deployment_id,
            nonce=deployment.nonce(),
            study="heart",
            service="trainer",
            challenge=bytes(31) + b"x",
        ),
    }


@pytest.mark.parametrize("entry", SIGNED, ids=[one.name for one in SIGNED])
@pytest.mark.parametrize("caller", ["stranger", "unsigned", "wrong role"])
def test_pb_16_a_route_is_closed_to_other_roles(running: tuple[Heart, Workload], entry: Route, caller: str) -> None:
    """No signed route opens for an unknown key, without a signature, or with a genuine key of the other role."""
    heart, trainer = running
    deployment = heart.deployment
    keys = {
        "stranger": SigningKey.generate(),
        "wrong role": trainer.tls if entry.role is Role.PARTY else deployment.members["cleveland"].signing,
    }
    payload = _questions(deployment)["studies/status"].encode()
    body = payload if caller == "unsigned" else keys[caller].sign_envelope(entry.purpose, payload)
    with pytest.raises(SecflError, match=r"signature\.unknown_key|envelope\.malformed"):
        deployment.send(entry.name, body)


def test_pb_16_a_founder_outside_the_study_sees_nothing_of_it(heart: Heart) -> None:
    """A founder that is no party of a study may not see its status, challenge its services or take its releases."""
    deployment = heart.deployment
    heart.trainer().attest()
    outsider = deployment.members["outsider"]
    for name in ("studies/status", "challenges"):
        with pytest.raises(AuthorizationError, match=r"policy\.not_a_party"):
            deployment.send(name, outsider.sign(name, _questions(deployment)[name]))
    ask = party.ReleaseAsk(
        deployment_id=deployment.deployment_id, nonce=deployment.nonce(), study="heart", volume="model"
    )
    with pytest.raises(AuthorizationError, match=r"policy\.not_a_party"):
        deployment.send("releases", outsider.sign("releases", ask))


def test_pb_16_only_the_owner_deposits_and_grants(heart: Heart) -> None:
    """Another founder can neither deposit a key for, nor grant, nor revoke a grant of an owner's volume."""
    deployment = heart.deployment
    with pytest.raises(AuthorizationError, match=r"deposit\.not_owner"):
        deployment.deposit("model-owner", "cleveland/cohort", "cohort", COHORT_ROOT, bytes(32))
    with pytest.raises(AuthorizationError, match=r"grant\.not_owner"):
        deployment.grant(
            "model-owner",
            ("cleveland/cohort", "cohort", COHORT_ROOT),
            ("heart", heart.policy_hash),
            expires=deployment.now + 9,
        )
    document = party.Revocation(deployment_id=deployment.deployment_id, grant=heart.grant_id)
    with pytest.raises(AuthorizationError, match=r"grant\.not_owner"):
        deployment.send("grants/revoke", deployment.members["model-owner"].sign("grants/revoke", document))


def test_a_recorded_question_is_refused(heart: Heart) -> None:
    """A question carries a nonce of the manager that serves once."""
    member = heart.deployment.members["cleveland"]
    body = member.sign("studies/status", _questions(heart.deployment)["studies/status"])
    heart.deployment.send("studies/status", body)
    with pytest.raises(FreshnessError, match=r"challenge\.unknown"):
        heart.deployment.send("studies/status", body)


def _release(heart: Heart, member: str) -> ReleaseReply:
    deployment = heart.deployment
    ask = party.ReleaseAsk(
        deployment_id=deployment.deployment_id, nonce=deployment.nonce(), study="heart", volume="model"
    )
    return ReleaseReply.decode(deployment.send("releases", deployment.members[member].sign("releases", ask)))


def test_fl_22_a_model_goes_to_the_named_party_when_the_study_is_completed(heart: Heart) -> None:
    """Before the condition holds nobody gets the key, then only the named party does, each time as a logged event."""
    aggregator = heart.aggregator()
    working_key = aggregator.attest().volumes[0].key
    steps = (
        lambda: None,
        lambda: aggregator.call("service/release-key", ReleaseKeyAsk(volume="model")),
        lambda: aggregator.call("service/released", Released(volume="model", root="cd" * 32)),
    )
    for step in steps:
        step()
        with pytest.raises(StateError, match=r"release\.not_ready"):
            _release(heart, "model-owner")
    report_rounds(aggregator)
    aggregator.call("service/exit", Exit(status=0))
    with pytest.raises(AuthorizationError, match=r"release\.other_party"):
        _release(heart, "cleveland")
    reply = _release(heart, "model-owner")
    context = release_context(heart.deployment.deployment_id, "heart", "model", "cd" * 32)
    owner = heart.deployment.members["model-owner"].recipient
    key = owner.open(reply.sealed_key, purpose="release", context=context)
    assert len(key) == 32
    assert key != working_key
    kinds = [row.public.split(b'"', 4)[3] for row in heart.deployment.store.rows()]
    assert kinds.count(b"released") == 1
    assert kinds.count(b"refused") == 4


def test_fl_22_a_failed_run_releases_nothing(heart: Heart) -> None:
    """A program that ended with an error completes no study."""
    aggregator = heart.aggregator()
    aggregator.attest()
    aggregator.call("service/release-key", ReleaseKeyAsk(volume="model"))
    aggregator.call("service/released", Released(volume="model", root="cd" * 32))
    aggregator.call("service/exit", Exit(status=1))
    with pytest.raises(StateError, match=r"release\.not_ready"):
        _release(heart, "model-owner")


def test_se_10_no_route_returns_a_generated_secret(heart: Heart) -> None:
    """Neither status, policy, challenge nor the store's public parts hold a secret value."""
    deployment = heart.deployment
    aggregator = heart.aggregator()
    payload = aggregator.attest()
    token = payload.environment["TOKEN"].encode()
    working = payload.volumes[0].key
    assert working is not None
    member = deployment.members["model-owner"]
    answers = [
        deployment.send("studies/status", member.sign("studies/status", _questions(deployment)["studies/status"])),
        deployment.send(
            "policies/get",
            member.sign(
                "policies/get",
                party.PolicyAsk(deployment_id=deployment.deployment_id, nonce=deployment.nonce(), name="heart"),
            ),
        ),
        *(row.public for row in deployment.store.rows()),
    ]
    for answer, secret in itertools.product(answers, (token, working, COHORT_KEY)):
        assert secret not in answer


def test_a_purpose_is_signed_for_every_route() -> None:
    """No two routes share a purpose, so no body serves two of them."""
    assert len({one.purpose for one in ROUTES}) == len(ROUTES)
    assert route("grants").purpose != route("grants/revoke").purpose
