"""Attacks on a party's side: another manager, another service, changed files, refused answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from manager_world import study_policy
from party_world import PartyWorld
from secfl.crypto import strict_json
from secfl.errors import (
    AppraisalError,
    AuthorizationError,
    ConfigError,
    EncodingError,
    SecflError,
    StateError,
    UnavailableError,
    VerificationError,
)
from secfl.party.attestation import attest_manager
from secfl.party.documents import get_policy, grant_imports, open_proposal, propose, unverified_proposal, vote
from secfl.party.packing import pack_volume, register_volume
from secfl.party.peers import PeerVerifier
from secfl.party.receive import open_release
from secfl.party.session import ManagerPin, ManagerSession
from secfl.party.trust import TrustStore, appraise_manager
from secfl.protocol.public import EvidenceRequest, ManagerEvidence
from secfl.tee.bundle import TrustBundle
from secfl.tee.simulated.vendor import Vendor
from secfl.testing.enclaves import KIND


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PartyWorld]:
    """One manager for all tests, pinned by two of three parties."""
    made = PartyWorld(tmp_path_factory.mktemp("parties"))
    for name in ("cleveland", "model-owner"):
        attest_manager(made.homes[name], made.reference(), made.trust(), now=int(time.time()))
    yield made
    made.close()


@pytest.fixture
def session(world: PartyWorld) -> Iterator[ManagerSession]:
    """The session of a party that has attested the manager."""
    made = ManagerSession(world.homes["cleveland"])
    yield made
    made.close()


def test_nw_02_nothing_is_sent_before_the_manager_is_attested(world: PartyWorld) -> None:
    """Without a pin there is no session, whatever certificate a server shows."""
    with pytest.raises(ConfigError, match=r"manager\.not_attested"):
        ManagerSession(world.homes["outsider"])


def test_nw_03_another_certificate_is_refused_until_attested_again(world: PartyWorld, tmp_path: Path) -> None:
    """A server at the same address with another certificate gets no request of a party."""
    home = world.homes["cleveland"]
    pin = ManagerPin.load(home.pin_path)
    identity = pin.identity.model_copy(update={"certificate": b"another certificate"})
    before = home.pin_path.read_bytes()
    try:
        pin.model_copy(update={"identity": identity}).save(home.pin_path)
        other = ManagerSession(home)
        for ask in (lambda: get_policy(other, "heart"), other.check_identity, other.nonce):
            with pytest.raises(VerificationError, match=r"client\.other_certificate"):
                ask()
    finally:
        home.pin_path.write_bytes(before)


def test_nw_03_another_identity_behind_the_certificate_is_noticed(world: PartyWorld) -> None:
    """The same TLS key with another sealing key or deployment is not the attested manager."""
    home = world.homes["cleveland"]
    before = home.pin_path.read_bytes()
    pin = ManagerPin.load(home.pin_path)
    try:
        pin.model_copy(update={"identity": pin.identity.model_copy(update={"deployment_id": "22" * 16})}).save(
            home.pin_path
        )
        with pytest.raises(VerificationError, match=r"manager\.identity_changed"):
            ManagerSession(home).check_identity()
        with pytest.raises(StateError, match=r"manager\.other_pinned"):
            attest_manager(home, world.reference(), world.trust(), now=int(time.time()))
    finally:
        home.pin_path.write_bytes(before)
    assert ManagerSession(home).check_identity() == pin.identity


def test_fr_01_a_manager_whose_log_went_back_is_not_pinned_again(world: PartyWorld) -> None:
    """A party that saw a longer log refuses; its pin stays as it was."""
    home = world.homes["model-owner"]
    before = home.pin_path.read_bytes()
    pin = ManagerPin.load(home.pin_path)
    try:
        pin.model_copy(update={"log_sequence": pin.log_sequence + 10_000}).save(home.pin_path)
        changed = home.pin_path.read_bytes()
        with pytest.raises(SecflError, match=r"manager\.rolled_back"):
            attest_manager(home, world.reference(), world.trust(), now=int(time.time()))
        assert home.pin_path.read_bytes() == changed
    finally:
        home.pin_path.write_bytes(before)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"measurements": ()}, AppraisalError),
        ({"measurements": ("00" * 48,)}, AppraisalError),
        ({"platforms": ()}, AppraisalError),
        ({"platforms": ("00" * 16,)}, AppraisalError),
        ({"tee": "sgx"}, AppraisalError),
        ({"trust_domain": "hardware:intel"}, VerificationError),
        ({"trust_domain": "simulated:" + "00" * 32}, VerificationError),
        ({"minimum_tcb_evaluation": 10_000}, AppraisalError),
        ({"address": "127.0.0.1:1"}, UnavailableError),
        ({"address": "nowhere"}, ConfigError),
    ],
)
def test_nw_15_a_manager_that_the_reference_does_not_describe_is_not_pinned(
    world: PartyWorld, change: dict[str, object], error: type[SecflError]
) -> None:
    """Each factor of the party's own reference decides; empty lists accept nothing; no pin is written."""
    home = world.homes["outsider"]
    with pytest.raises(error):
        attest_manager(home, world.reference(**change), world.trust(), now=int(time.time()))
    assert not home.pin_path.exists()


def _evidence(world: PartyWorld, nonce: bytes) -> ManagerEvidence:
    client = world.client()
    answer = client.call("manager/evidence", EvidenceRequest(nonce=nonce).encode())
    client.close()
    return ManagerEvidence.decode(answer)


def test_ev_08_evidence_for_another_nonce_or_key_is_refused(world: PartyWorld) -> None:
    """An old answer, another certificate, other founders and another identity each fail with their own code."""
    nonce, now = b"n" * 32, int(time.time())
    good = _evidence(world, nonce)
    certificate = good.identity.certificate
    reference, trust = world.reference(), world.trust()
    assert appraise_manager(good, reference, trust, nonce=nonce, certificate=certificate, now=now)
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        appraise_manager(good, reference, trust, nonce=b"o" * 32, certificate=certificate, now=now)
    with pytest.raises(VerificationError, match=r"manager\.certificate"):
        appraise_manager(good, reference, trust, nonce=nonce, certificate=b"another", now=now)
    for member, value in (("sealing_key", b"x" * 1216), ("deployment_id", "33" * 16)):
        forged = good.model_copy(update={"identity": good.identity.model_copy(update={member: value})})
        with pytest.raises(VerificationError, match=r"binding\.mismatch"):
            appraise_manager(forged, reference, trust, nonce=nonce, certificate=certificate, now=now)
    fewer = reference.founders.model_copy(update={"founders": reference.founders.founders[:2]})
    with pytest.raises(VerificationError, match=r"manager\.founders"):
        appraise_manager(good, world.reference(founders=fewer), trust, nonce=nonce, certificate=certificate, now=now)


def test_ev_32_without_collateral_nothing_is_accepted(world: PartyWorld, tmp_path: Path) -> None:
    """A party that lost its collateral, or has another vendor's, denies; it never falls back to what it saw before."""
    nonce, now = b"n" * 32, int(time.time())
    good = _evidence(world, nonce)
    other = Vendor.create(now)
    wrong = TrustBundle(other.anchor(), {KIND: other.collateral(KIND, now)})
    mixed = TrustBundle(world.bundle.anchor, {KIND: other.collateral(KIND, now)})
    stores = (
        TrustStore(()),
        TrustStore((wrong,)),
        TrustStore((mixed,)),
        TrustStore((TrustBundle(world.bundle.anchor, {}),)),
    )
    for store in stores:
        with pytest.raises(VerificationError):
            appraise_manager(
                good, world.reference(), store, nonce=nonce, certificate=good.identity.certificate, now=now
            )
    with pytest.raises(ConfigError, match=r"collateral\.missing"):
        TrustStore.load(tmp_path)
    with pytest.raises(ConfigError, match=r"file\.unreadable"):
        TrustStore.load(tmp_path / "nothing.json")


def test_sc_05_each_bundle_of_a_folder_is_checked_when_it_is_loaded(world: PartyWorld, tmp_path: Path) -> None:
    """A planted file stops the loading; the right one is found among several."""
    now = int(time.time())
    other = Vendor.create(now)
    (tmp_path / "a.json").write_bytes(TrustBundle(other.anchor(), {KIND: other.collateral(KIND, now)}).encode())
    (tmp_path / "b.json").write_bytes(world.bundle.encode())
    good = _evidence(world, b"n" * 32)
    store = TrustStore.load(tmp_path)
    certificate = good.identity.certificate
    assert appraise_manager(good, world.reference(), store, nonce=b"n" * 32, certificate=certificate, now=now)
    document = strict_json.decode(world.bundle.encode())
    (tmp_path / "c.json").write_bytes(strict_json.encode(document | {"domain": "hardware:intel"}))
    with pytest.raises(SecflError):
        TrustStore.load(tmp_path)


def test_a_party_attests_a_running_service(world: PartyWorld, session: ManagerSession) -> None:
    """Its own nonce, policy and collateral decide; another service's answer, a relay and an old one do not pass."""
    verifier = PeerVerifier(session, world.trust(), world.heart.policy)
    with world.answering("aggregator"):
        found = verifier.attest("aggregator", patience=10)
        challenge, state = verifier.challenge("aggregator", patience=10)
    now = int(time.time())
    assert (found.service, found.site) == ("heart/aggregator", "hub")
    assert verifier.accept("aggregator", challenge=challenge, state=state, now=now).tls_key == state.tls_key
    changes: tuple[tuple[str, dict[str, object]], ...] = (
        ("aggregator", {"tls_key": world.deployment.members["outsider"].signing.public.spki}),
        ("aggregator", {"sealing_key": b"x" * 1216}),
        ("aggregator", {"site": "cleveland"}),
        ("trainer", {}),
    )
    for service, change in changes:
        with pytest.raises(VerificationError, match=r"binding\.mismatch"):
            verifier.accept(service, challenge=challenge, state=state.model_copy(update=change), now=now)
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        verifier.accept("aggregator", challenge=b"o" * 32, state=state, now=now)
    for member in ("evidence", "site", "tls_key", "sealing_key", "launch_claims"):
        with pytest.raises(VerificationError, match=r"peer\.incomplete"):
            verifier.accept("aggregator", challenge=challenge, state=state.model_copy(update={member: None}), now=now)


def test_ev_16_evidence_for_another_copy_of_the_policy_is_refused(world: PartyWorld, session: ManagerSession) -> None:
    """A party with other policy bytes than those in force does not accept the service."""
    other = PeerVerifier(session, world.trust(), study_policy(world.deployment, world.heart.owner_hash, rounds=9))
    with world.answering("aggregator"):
        challenge, state = other.challenge("aggregator", patience=10)
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        other.accept("aggregator", challenge=challenge, state=state, now=int(time.time()))


def test_ev_32_a_service_that_does_not_answer_is_not_accepted(world: PartyWorld, session: ManagerSession) -> None:
    """Silence is an error after a bounded time."""
    verifier = PeerVerifier(session, world.trust(), world.heart.policy)
    with pytest.raises((UnavailableError, StateError)):
        verifier.attest("trainer", patience=0.2)


def test_pb_10_a_vote_is_for_the_bytes_that_were_read(world: PartyWorld, session: ManagerSession) -> None:
    """A voter whose file differs by one byte finds no proposal; with the same bytes the vote counts."""
    successor = study_policy(world.deployment, world.heart.owner_hash, rounds=3)
    reply = propose(session, "heart", successor, now=int(time.time()))
    found = open_proposal(session, "heart", successor)
    assert (found.proposal, found.policy_hash) == (reply.proposal, reply.policy_hash)
    assert found.predecessor == world.heart.policy_hash
    for changed in (successor + b"\n", world.heart.policy):
        with pytest.raises(StateError, match=r"proposal\.not_found"):
            vote(session, "heart", changed, approve=True)
    assert vote(session, "heart", successor, approve=False) in ("rejected", "open", "failed")


@pytest.mark.parametrize("envelope", [b"[]", b"{}", b'{"payload":7}', b'{"payload":"AA"}', b"x"])
def test_a_malformed_proposal_of_the_manager_is_an_encoding_error(envelope: bytes) -> None:
    """What the manager hands out is parsed strictly."""
    with pytest.raises(EncodingError):
        unverified_proposal(envelope)


def test_fs_18_only_what_was_packed_is_registered(world: PartyWorld, session: ManagerSession, tmp_path: Path) -> None:
    """An operator who changes the handed-around policy or root gets no signature under it."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "records").write_bytes(b"rows")
    out = tmp_path / "out"
    pack_volume(session.home, source, out, volume="extra")
    policy, stated = (out / "policy.yaml").read_bytes(), (out / "volume.json").read_bytes()
    document = strict_json.decode(stated)
    for changed_policy, changed in (
        (policy.replace(b"require-all: [cleveland]", b"require-all: [mallory]"), document),
        (policy, document | {"root": "00" * 32}),
        (policy, document | {"policy_hash": "00" * 32}),
    ):
        (out / "policy.yaml").write_bytes(changed_policy)
        (out / "volume.json").write_bytes(strict_json.encode(changed))
        with pytest.raises(VerificationError, match=r"volume\.changed"):
            register_volume(session, out, now=int(time.time()))
    assert get_policy(session, "cleveland/extra").policy is None
    (out / "policy.yaml").write_bytes(policy)
    (out / "volume.json").write_bytes(stated)
    owned = register_volume(session, out, now=int(time.time()))
    assert get_policy(session, "cleveland/extra").policy_hash == owned.policy_hash


def test_a_party_grants_only_what_is_its_own(world: PartyWorld, session: ManagerSession) -> None:
    """The owner's grant names root and policy hash; a party whose data the study does not use has nothing to grant."""
    grants = grant_imports(session, world.heart.policy, expires=int(time.time()) + 3600)
    assert set(grants) == {"cohort"}
    other = ManagerSession(world.homes["model-owner"])
    with pytest.raises(StateError, match=r"grant\.nothing"):
        grant_imports(other, world.heart.policy, expires=int(time.time()) + 3600)
    pinned = world.heart.policy.replace(world.heart.owner_hash.encode(), b"00" * 32)
    with pytest.raises(StateError, match=r"reference\.policy_changed"):
        grant_imports(session, pinned, expires=int(time.time()) + 3600)


def test_fl_22_a_model_before_its_time_or_for_another_party_is_refused(
    world: PartyWorld, session: ManagerSession, tmp_path: Path
) -> None:
    """Before the release there is no key, and never one for a party that the policy does not name."""
    owner = ManagerSession(world.homes["model-owner"])
    with pytest.raises((StateError, AuthorizationError)):
        open_release(owner, "heart", "model", tmp_path)
    with pytest.raises((StateError, AuthorizationError)):
        open_release(session, "heart", "model", tmp_path)
