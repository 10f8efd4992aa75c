"""The watch: what the shield does while the program runs.

Three threads talk to the manager, each over a connection of its own: one renews the lease with fresh evidence, one
waits for the mailbox (challenges of parties, the live peers, the policy in force), one carries progress. Each writable
volume has a further one for its root. The first failure that cannot be waited out ends the program: a shield that can
no longer prove itself must not go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from secfl.errors import AuthorizationError, FreshnessError, SecflError, StateError, UnavailableError
from secfl.protocol.service import MailboxAsk, MailboxReply, PendingChallenge, Progress
from secfl.shield.enrolment import Enrolment, Transport
from secfl.shield.network import NetworkShield, identity_of
from secfl.shield.run_directory import RunDirectory

__all__ = ["Watch"]

_MAILBOX_SECONDS = 10
_PROGRESS_SECONDS = 0.1
_RETRY_SECONDS = 0.5
_RENEW_FRACTION = 3
"""A lease is renewed after a third of it, so that two attempts may fail."""
_MINIMUM_PAUSE = 1.0
_PATIENCE_SECONDS = 30.0
"""How long the end of the program waits for a manager that does not take the last progress."""
_MAX_MAILBOX = 16 * 1024 * 1024
"""Bytes: a roster of some thousand peers."""

Connect = Callable[[], Transport]


class Watch:
    """The threads of one running service."""

    def __init__(
        self,
        enrolment: Enrolment,
        connect: Connect,
        *,
        network: NetworkShield,
        run_directory: RunDirectory,
        report: Callable[[dict[str, str]], None],
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        """Take the parts.

        Args:
            report: is told what the network processes report.
            patience: seconds that the end waits for the last progress.
        """
        self._patience = patience
        self._report = report
        self._enrolment = enrolment
        self._connect = connect
        self._network = network
        self._run_directory = run_directory
        self._ended = threading.Event()
        self._failed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._network_lock = threading.Lock()
        self.failure: SecflError | None = None
        """What ended the watch, if anything did."""

    @property
    def failed(self) -> bool:
        """Whether the program has to be stopped."""
        return self._failed.is_set()

    def start(self) -> None:
        """Start the threads; nothing may be forked afterwards."""
        for name, work in (("renew", self._renew), ("mailbox", self._mailbox), ("progress", self._progress)):
            self.spawn(name, work)

    def spawn(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Run work whose failure ends the watch."""

        def guarded() -> None:
            try:
                work()
            except SecflError as error:
                self.fail(error)
            except Exception as error:  # noqa: BLE001 - a defect must stop the program too, not only its thread
                self.fail(StateError("shield.internal", f"{name} failed with {type(error).__name__}"))

        thread = threading.Thread(target=guarded, name=f"secfl-{name}", daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def fail(self, error: SecflError) -> None:
        """Note the first failure."""
        if self.failure is None:
            self.failure = error
        self._failed.set()

    def end(self) -> None:
        """Ask the threads to end, and wait until the last progress was carried or cannot be."""
        self._ended.set()
        for thread in self._threads:
            if thread.name == "secfl-progress":
                thread.join(timeout=self._patience)
                if thread.is_alive():
                    self.fail(UnavailableError("shield.progress_lost", "the manager did not take the last progress"))

    def _renew(self) -> None:
        transport = self._connect()
        while not self._ended.wait(self._pause()):
            try:
                admission = self._enrolment.renew(transport)
            except UnavailableError:
                if time.time() >= self._enrolment.admission.lease_until:
                    raise FreshnessError(
                        "shield.lease_lapsed", "the manager could not be reached until the lease ended"
                    ) from None
                continue
            identity = identity_of(admission.certificates, self._enrolment.tls_key)
            with self._network_lock:
                self._network.update_identity(identity)

    def _pause(self) -> float:
        left = self._enrolment.admission.lease_until - time.time()
        return max(_MINIMUM_PAUSE, left / _RENEW_FRACTION)

    def _mailbox(self) -> None:
        transport = self._connect()
        seen = -1
        while not self._ended.is_set():
            try:
                seen = self._read_mailbox(transport, seen)
            except UnavailableError:
                # Whether the lease outlives this is for the renewal to say; peers lapse by the last roster.
                self._ended.wait(_RETRY_SECONDS)

    def _read_mailbox(self, transport: Transport, seen: int) -> int:
        ask = MailboxAsk(seen=max(seen, 0), wait=0 if seen < 0 else _MAILBOX_SECONDS)
        reply = MailboxReply.decode(self._enrolment.call(transport, "service/mailbox", ask), max_bytes=_MAX_MAILBOX)
        if reply.policy_hash != self._enrolment.admission.payload.policy_hash:
            raise AuthorizationError("shield.policy_superseded", "another policy is in force now")
        if reply.version != seen:
            self._run_directory.write_peers(reply.roster)
            with self._network_lock:
                self._network.update_peers(reply.roster)
        for challenge in reply.challenges:
            self._answer(transport, challenge)
        return reply.version

    def _answer(self, transport: Transport, challenge: PendingChallenge) -> None:
        try:
            self._enrolment.call(transport, "service/answer", self._enrolment.answer(challenge))
        except StateError as error:
            if error.code not in ("challenge.unknown", "challenge.answered"):
                raise
            # It expired meanwhile. A party that asks and goes away must not be able to end the training.
            self._report({"event": "challenge", "code": error.code})

    def _progress(self) -> None:
        transport = self._connect()
        waiting: list[Progress] = []
        while True:
            last = self._ended.wait(_PROGRESS_SECONDS)
            for event in self._network.events():
                self._report(event)
            if not waiting:
                waiting = self._run_directory.new_progress()
                if last and not waiting:
                    return
            try:
                while waiting:
                    self._enrolment.call(transport, "service/progress", waiting[0])
                    del waiting[0]
            except UnavailableError:
                # A manager that restarts must not end the training (SV-16); the lease bounds how long it may take.
                time.sleep(_RETRY_SECONDS)
