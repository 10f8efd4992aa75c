"""The gateway's session table, and what a certificate makes of its holder."""

from __future__ import annotations

import hashlib
import time

import pytest

import network_world as nw
from secfl.crypto.hpke import SealingKey
from secfl.crypto.x509 import Usage, from_pem
from secfl.errors import AuthorizationError, EncodingError, FreshnessError, SecflError
from secfl.protocol.session import Ends, Offer
from secfl.shield.identity import Peer, PeerRules, attested_peers, node_key_header
from secfl.shield.sessions import Sessions

GATEWAY, TRAINER = SealingKey.generate(), SealingKey.generate()


def begin(sessions: Sessions, leaf: bytes) -> str:
    """Agree on a session from a certificate; its id."""
    ends, trainer_hash = Ends(leaf, b"\2" * 32), hashlib.sha256(TRAINER.public).digest()
    gateway_hash = hashlib.sha256(sessions.public_key).digest()
    offer = Offer(TRAINER, ends, responder_key=sessions.public_key, responder_key_hash=gateway_hash)
    return offer.finish(sessions.begin(ends, offer.message, initiator_key_hash=trainer_hash)).session_id


def known(sessions: Sessions, name: str, leaf: bytes) -> bool:
    try:
        return sessions.find(name, leaf).session_id == name
    except AuthorizationError as error:
        return error.code != "session.unknown"


def test_a_peer_keeps_its_newest_sessions_and_pushes_out_no_other_peer() -> None:
    """One peer that agrees again and again forgets its own sessions only."""
    sessions = Sessions(GATEWAY, per_peer=2, total=10)
    other = begin(sessions, b"\3" * 32)
    mine = [begin(sessions, b"\1" * 32) for _ in range(4)]
    assert [known(sessions, name, b"\1" * 32) for name in mine] == [False, False, True, True]
    assert known(sessions, other, b"\3" * 32)
    assert not known(sessions, other, b"\1" * 32)
    sessions.drop(b"\1" * 32)
    assert not known(sessions, mine[-1], b"\1" * 32)
    assert known(sessions, other, b"\3" * 32)


def test_the_table_of_sessions_has_an_end() -> None:
    """Many certificates cannot fill the memory."""
    sessions = Sessions(GATEWAY, per_peer=2, total=3)
    names = [(begin(sessions, bytes([n]) * 32), bytes([n]) * 32) for n in range(5)]
    assert [known(sessions, *name) for name in names] == [False, False, True, True, True]


def test_a_result_certificate_names_the_peer() -> None:
    """Service, site, node key, sealing key, lease and policy come from the attestation result."""
    study = nw.Study()
    enclave = study.enclave("trainer-cleveland", lease=300)
    authenticate = attested_peers(study.ca.certificate, study=nw.STUDY, usage=Usage.CLIENT)
    now = int(time.time())
    peer = authenticate(from_pem(enclave.identity.certificate), now)
    assert (peer.service, peer.site, peer.node_key) == ("trainer-cleveland", "cleveland", enclave.node_key)
    assert peer.sealing_key_hash == hashlib.sha256(enclave.sealing_key.public).digest()
    assert peer.policy_hash == nw.POLICY
    assert abs(peer.lease_until - now - 300) <= 2
    assert enclave.identity.key not in repr(enclave.identity).encode()


def test_a_result_for_another_study_is_refused() -> None:
    """The same CA key under another study's name gives no peer."""
    study = nw.Study()
    leaf = from_pem(study.enclave("trainer-cleveland").identity.certificate)
    with pytest.raises(AuthorizationError) as caught:
        attested_peers(study.ca.certificate, study="hear", usage=Usage.CLIENT)(leaf, int(time.time()))
    assert caught.value.code == "peer.service_not_listed"


@pytest.mark.parametrize(
    ("change", "now", "code"),
    [
        ({"service": "aggregator"}, 0, "peer.service_not_listed"),
        ({"policy_hash": b"\1" * 32}, 0, "peer.policy_differs"),
        ({}, 100, "peer.lease_lapsed"),
        ({"lease_until": 0}, 0, "peer.lease_lapsed"),
    ],
)
def test_a_peer_is_admitted_only_with_service_policy_and_lease(change: dict[str, object], now: int, code: str) -> None:
    """Each property alone is enough to refuse."""
    values = {"service": "trainer", "site": "a", "node_key": "", "sealing_key_hash": b"", "lease_until": 100}
    rules = PeerRules(frozenset({"trainer"}), nw.POLICY)
    good = Peer(**{**values, "policy_hash": nw.POLICY})  # type: ignore[arg-type]  # values by name
    assert rules.admit(good, 99.9) == good
    with pytest.raises(SecflError) as caught:
        rules.admit(Peer(**{**values, "policy_hash": nw.POLICY, **change}), now)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_a_later_lease_of_the_manager_counts_and_an_earlier_one_does_not() -> None:
    """The manager prolongs by its list; it ends a lease by dropping the peer from it."""
    peer = Peer("trainer", "a", "", b"", 100, nw.POLICY)
    rules = PeerRules(frozenset({"trainer"}), nw.POLICY)
    assert rules.admit(peer, 150, lease_until=200) == peer
    assert rules.admit(peer, 50, lease_until=10) == peer
    with pytest.raises(FreshnessError):
        rules.admit(peer, 200, lease_until=200)


@pytest.mark.parametrize("text", ["", "ssh-rsa", "nonsense", "ecdsa-sha2-nistp384 AAAA"])
def test_an_unusable_node_key_names_nobody(text: str) -> None:
    """A peer without a readable node key gets no header that would match."""
    with pytest.raises(EncodingError) as caught:
        node_key_header(text)
    assert caught.value.code == "peer.node_key"
