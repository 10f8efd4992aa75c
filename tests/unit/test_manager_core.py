"""The manager's core, end to end in memory."""

from __future__ import annotations

import os

import pytest

from manager_world import COHORT_KEY, COHORT_ROOT, Heart
from secfl.attestation.binding import Purpose
from secfl.errors import AppraisalError, EncodingError, SecflError, StateError
from secfl.manager.log import Event, parse_public
from secfl.protocol.public import Empty
from secfl.protocol.service import Exit, MailboxAsk, MailboxReply, RootUpdate


def test_an_attested_service_receives_exactly_its_own_part() -> None:
    """A trainer gets its configuration, its peer's roster and the key of its granted volume, sealed to its key."""
    heart = Heart()
    aggregator = heart.aggregator().attest()
    payload = heart.trainer().attest()
    assert (payload.study, payload.service, payload.site) == ("heart", "trainer", "cleveland")
    (volume,) = payload.volumes
    assert (volume.name, volume.key, volume.root, volume.writable) == ("cohort", COHORT_KEY, COHORT_ROOT.hex(), False)
    assert [peer.service for peer in payload.roster] == ["aggregator"]
    assert len(aggregator.environment["TOKEN"]) == 20
    assert aggregator.volumes[0].writable
    assert aggregator.volumes[0].root is None


def test_a_restarted_manager_is_in_the_same_state() -> None:
    """What follows from the log after a restart equals what was before, leases included."""
    heart = Heart()
    trainer = heart.trainer()
    trainer.attest()
    before = heart.deployment.manager
    heart.deployment.manager = heart.deployment.reopened()
    assert heart.deployment.manager.log.head == before.log.head
    former, present = before.state.studies["heart"], heart.deployment.manager.state.studies["heart"]
    assert present.authority.certificate == former.authority.certificate
    assert (present.secrets, present.heads, present.leases) == (former.secrets, former.heads, former.leases)
    assert trainer.renew().lease_until > heart.deployment.now


def test_the_mailbox_names_live_peers() -> None:
    """A service sees its live peers until they exit."""
    heart = Heart()
    aggregator, trainer = heart.aggregator(), heart.trainer()
    aggregator.attest()
    trainer.attest()
    reply = MailboxReply.decode(aggregator.call("service/mailbox", MailboxAsk(seen=0, wait=0)))
    assert {peer.service for peer in reply.roster} == {"aggregator", "trainer"}
    Empty.decode(trainer.call("service/exit", Exit(status=0)))
    later = MailboxReply.decode(aggregator.call("service/mailbox", MailboxAsk(seen=0, wait=0)))
    assert {peer.service for peer in later.roster} == {"aggregator"}
    assert later.version > reply.version


def test_a_repeated_root_update_is_acknowledged_again() -> None:
    """An update whose answer was lost may be sent again; the volume's head moves once."""
    heart = Heart()
    aggregator = heart.aggregator()
    aggregator.attest()
    update = RootUpdate(volume="model", sequence=1, tag="aa" * 32)
    aggregator.call("service/roots", update)
    aggregator.call("service/roots", update)
    assert heart.deployment.manager.state.studies["heart"].heads["model"].sequence == 1


def test_unverified_evidence_stays_out_of_the_log() -> None:
    """The log keeps the hash of evidence that nobody could verify, and the bytes of evidence that was authentic."""
    heart = Heart()
    wrong = heart.trainer(root=bytes(31) + b"x")
    with pytest.raises(AppraisalError):
        wrong.attest()
    request = heart.trainer().request(heart.deployment.nonce())
    forged = request.model_copy(update={"evidence": wrong.evidence(Purpose.ATTEST, request.nonce).replace("A", "B")})
    with pytest.raises(SecflError):
        heart.deployment.attest("attest", forged)
    authentic, unverified = [parse_public(row.public).public for row in list(heart.deployment.store.rows())[-2:]]
    assert authentic["evidence"]
    assert unverified["evidence"] == ""
    assert len(unverified["evidence_digest"]) == 64


def test_a_manager_that_lost_an_entry_takes_no_further_one() -> None:
    """When an event cannot be taken into account nothing is appended after it, so the chain on the disk stays whole."""
    heart = Heart()
    manager = heart.deployment.manager
    with pytest.raises(EncodingError, match=r"log\.unknown_kind"):
        manager.append(Event("unheard-of", {}), now=heart.deployment.now, random=os.urandom)
    with pytest.raises(StateError, match=r"manager\.broken"):
        heart.trainer().attest()
    heart.deployment.manager = heart.deployment.reopened()
    heart.trainer().attest()
