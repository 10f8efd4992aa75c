"""The watch over a running service: lease, mailbox and progress against the manager in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from secfl.crypto import strict_json
from secfl.errors import AuthorizationError, EncodingError, SecflError, StateError
from secfl.protocol.party import ChallengeAsk, ChallengePoll, ChallengeReply, ChallengeState
from secfl.protocol.service import MailboxReply, Progress
from secfl.shield.enrolment import Enrolment
from secfl.shield.run_directory import RunDirectory
from secfl.shield.watch import Watch
from shield_world import NotingNetwork, Shields, Transport, within


class Running:
    """An aggregator that is watched."""

    def __init__(self, folder: Path, shields: Shields, service: str = "aggregator", *, patience: float = 5.0) -> None:
        self.shields = shields
        self.folder = folder
        self.transport: Transport = shields.transport()
        self.enrolment: Enrolment = shields.enrolment(service, transport=self.transport)
        self.enrolment.attest(self.transport)
        self.network = NotingNetwork()
        self.events: list[dict[str, str]] = []
        self.watch = Watch(
            self.enrolment,
            lambda: self.transport,
            network=self.network,  # type: ignore[arg-type]
            run_directory=RunDirectory(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)),
            report=self.events.append,
            patience=patience,
        )

    def write(self, *rounds: int) -> None:
        """Write progress as the program does."""
        with (self.folder / "progress").open("ab") as file:
            for number in rounds:
                entry = Progress(round=number, phase="train", metrics={}, replies=("cleveland",))
                file.write(entry.encode() + b"\n")

    def logged(self) -> list[int]:
        """The rounds that the manager knows."""
        state = self.shields.deployment.manager.state
        return [record["round"] for record in state.study("heart").progress]

    def lapse(self, seconds: float) -> None:
        """Let the lease end so many seconds from now."""
        admission = replace(self.enrolment.admission, lease_until=int(time.time() + seconds))
        self.enrolment._admission = admission


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A service that is watched; its threads end with the test."""
    made = Running(tmp_path, Shields())
    yield made
    made.watch._ended.set()


def test_the_first_look_tells_the_peers(running: Running) -> None:
    """The gateways and the program learn the live peers from the first mailbox."""
    running.watch.start()
    assert within(5, lambda: running.network.rosters)
    assert "aggregator" in running.network.rosters[0]
    assert within(5, (running.folder / "peers.json").exists)
    running.watch.end()
    assert not running.watch.failed
    assert running.watch.failure is None


def test_a_lease_is_renewed_after_a_third_of_it(running: Running) -> None:
    """Two further attempts fit before it ends; peers get the new certificate."""
    lease = running.enrolment.admission.lease_until - time.time()
    assert running.watch._pause() == pytest.approx(lease / 3, abs=0.5)
    running.lapse(1.0)
    running.watch.start()
    assert within(5, lambda: running.network.identities)
    assert running.enrolment.admission.lease_until > time.time() + 10
    assert not running.watch.failed


def test_ev_33_a_lease_that_cannot_be_renewed_ends_the_program(running: Running) -> None:
    """With the manager away the watch fails when the lease ends, not before and not much later."""
    running.watch.start()
    assert within(5, lambda: running.network.rosters)
    running.transport.down = True
    running.watch._ended.set()
    watch = Watch(
        running.enrolment,
        lambda: running.transport,
        network=running.network,  # type: ignore[arg-type]
        run_directory=RunDirectory(os.open(running.folder, os.O_RDONLY | os.O_DIRECTORY)),
        report=running.events.append,
    )
    running.lapse(2.0)
    ends = running.enrolment.admission.lease_until
    watch.start()
    assert within(8, lambda: watch.failed)
    assert ends <= time.time() < ends + 5
    assert watch.failure is not None
    assert watch.failure.code == "shield.lease_lapsed"


def test_sv_16_a_manager_that_restarts_ends_nothing(running: Running) -> None:
    """Progress written while it is away arrives afterwards, once and in order."""
    running.watch.start()
    running.write(1)
    assert within(5, lambda: running.logged() == [1])
    running.transport.down = True
    running.write(2, 3)
    time.sleep(0.2)
    running.transport.down = False
    assert within(5, lambda: running.logged() == [1, 2, 3])
    running.watch.end()
    assert running.logged() == [1, 2, 3]
    assert not running.watch.failed


def test_the_last_progress_is_carried_before_the_end(running: Running) -> None:
    """What the program wrote just before it ended is at the manager when `end` returns."""
    running.watch.start()
    running.write(*range(1, 30))
    running.watch.end()
    assert running.logged() == list(range(1, 30))


def test_progress_that_cannot_be_carried_is_a_failure(tmp_path: Path) -> None:
    """A manager that stays away does not hold up the end for ever, and the loss is not silent."""
    running = Running(tmp_path, Shields(), patience=0.3)
    running.transport.down = True
    running.write(1)
    running.watch.start()
    running.watch.end()
    assert running.watch.failure is not None
    assert running.watch.failure.code == "shield.progress_lost"
    running.transport.down = False
    assert within(5, lambda: running.logged() == [1])


def test_malformed_progress_ends_the_program(running: Running) -> None:
    """A program that writes something else is stopped."""
    (running.folder / "progress").write_bytes(b"x\n")
    running.watch.start()
    assert within(5, lambda: running.watch.failed)
    assert isinstance(running.watch.failure, EncodingError)


def test_fr_13_a_superseded_policy_ends_the_program(running: Running) -> None:
    """At the next contact after an update the service stops: its evidence was made for another policy."""
    running.transport.spoil["service/mailbox"] = lambda data: (
        MailboxReply.decode(data).model_copy(update={"policy_hash": "00" * 32}).encode()
    )
    running.watch.start()
    assert within(5, lambda: running.watch.failed)
    assert isinstance(running.watch.failure, AuthorizationError)
    assert running.watch.failure.code == "shield.policy_superseded"
    assert running.network.rosters == []


def test_reports_of_the_network_reach_the_operator(running: Running) -> None:
    """What gateways refuse is shown."""
    running.network.waiting.append({"event": "refused", "code": "peer.lease_lapsed"})
    running.watch.start()
    assert within(5, lambda: {"event": "refused", "code": "peer.lease_lapsed"} in running.events)


def _challenge(running: Running) -> ChallengeReply:
    deployment = running.shields.deployment
    ask = ChallengeAsk(
        deployment_id=deployment.deployment_id,
        nonce=deployment.nonce(),
        study="heart",
        service="aggregator",
        challenge=os.urandom(32),
    )
    body = deployment.members["cleveland"].sign("challenges", ask)
    return ChallengeReply.decode(deployment.send("challenges", body))


def test_a_challenge_is_answered(running: Running) -> None:
    """A party's own nonce comes back under the service's evidence."""
    asked = _challenge(running)
    running.watch.start()
    deployment = running.shields.deployment

    def answered() -> bool:
        poll = ChallengePoll(
            deployment_id=deployment.deployment_id, nonce=deployment.nonce(), challenge_id=asked.challenge_id
        )
        body = deployment.members["cleveland"].sign("challenges/poll", poll)
        return ChallengeState.decode(deployment.send("challenges/poll", body)).answered

    assert within(5, answered)
    assert not running.watch.failed


def test_a_challenge_that_expired_meanwhile_ends_nothing(running: Running) -> None:
    """A party that asks and goes away cannot stop the training: the refusal is reported."""
    asked = _challenge(running)

    def forget(data: bytes) -> bytes:
        running.shields.deployment.manager.state.challenges.pop(asked.challenge_id, None)
        return data

    running.transport.spoil["service/mailbox"] = forget
    running.watch.start()
    assert within(5, lambda: {"event": "challenge", "code": "challenge.unknown"} in running.events)
    assert not running.watch.failed


@pytest.mark.parametrize("error", [StateError("x.y", "a refusal"), ValueError("secret text")])
def test_a_thread_that_fails_fails_the_watch(running: Running, error: Exception) -> None:
    """A refusal keeps its code; a defect stops the program too, without its text."""

    def work() -> None:
        raise error

    running.watch.spawn("work", work).join(5)
    assert running.watch.failed
    assert running.watch.failure is not None
    assert running.watch.failure.code == ("x.y" if isinstance(error, SecflError) else "shield.internal")
    assert "secret text" not in str(running.watch.failure)


def test_the_first_failure_is_kept(running: Running) -> None:
    """What follows from a failure does not hide it."""
    running.watch.fail(StateError("first.code", "first"))
    running.watch.fail(StateError("second.code", "second"))
    assert running.watch.failure is not None
    assert running.watch.failure.code == "first.code"


def test_the_peers_file_is_canonical(running: Running) -> None:
    """The program reads exactly what the manager said of those with an engine key."""
    running.watch.start()
    path = running.folder / "peers.json"
    assert within(5, path.exists)
    assert set(strict_json.decode(path.read_bytes())) == {"peers"}
