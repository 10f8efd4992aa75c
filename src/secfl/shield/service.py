"""One service from launch to end, in the order that keeps secrets safe.

1. Compute the roots of what the operator supplied; they go into the evidence.
2. Attest to the manager; without its sealed answer there is nothing to start.
3. Open every volume with the root and key of that answer.
4. Make the private network and launch the program with the injected files.
5. Start the network processes, then the watch; fork nothing after that.
6. When the program has ended: last commit, release volumes, report, end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from secfl.attestation.statement import Isolation, LaunchClaims
from secfl.crypto import strict_json
from secfl.errors import AppraisalError, SecflError, StateError, UnavailableError
from secfl.linux.https_client import HttpsClient, unverified_certificate
from secfl.linux.launcher import RunningProgram, launch_program
from secfl.linux.namespaces import NetworkNamespace, create_network
from secfl.linux.program import InjectedFile, ProgramSpec
from secfl.protocol.payload import ServicePayload
from secfl.protocol.service import Exit, RootUpdate
from secfl.shield.config import LaunchConfig
from secfl.shield.enrolment import Enrolment
from secfl.shield.network import NetworkShield, Wire, identity_of
from secfl.shield.node_key import NODE_KEY_PATH, NodeKey
from secfl.shield.release import release_volumes
from secfl.shield.run_directory import RunDirectory
from secfl.shield.volumes import MountedSet, Writable, image_roots
from secfl.shield.watch import Watch
from secfl.tee.attester import Attester

__all__ = ["Phases", "refuse_start", "run_service"]

NOT_SEALED = 121
"""Exit status when the program ended well but its last state was not made durable or not released."""
FAILED_SHIELD = 124
"""Exit status when the shield had to stop the program."""
_GRACE_SECONDS = 10.0
_SETTLE_SECONDS = 2.0
_POLL_MILLISECONDS = 100


class Phases:
    """Writes one JSON line a phase, with milliseconds since the start."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def write(self, event: str, **values: Any) -> None:
        """Write a line; a console that is gone loses it."""
        elapsed = round((time.monotonic() - self._started) * 1000)
        line = strict_json.encode({"event": event, "ms": elapsed, **values}).decode()
        try:
            with self._lock:
                self._stream.write(line + "\n")
                self._stream.flush()
        except OSError:
            return

    def write_error(self, event: str, error: SecflError) -> None:
        """Write an error with its findings; an error never holds a secret."""
        findings = error.findings if isinstance(error, AppraisalError) else ()
        self.write(
            event,
            code=error.code,
            message=error.message,
            hint=error.hint or "",
            findings=[[f.rule, f.expected, f.actual, f.remedy] for f in findings],
        )


def run_service(config: LaunchConfig, attester: Attester, phases: Phases) -> int:
    """Run one service and return the exit status for the operator.

    Raises:
        SecflError: it was not started.
    """
    certificate = unverified_certificate(config.manager)

    def connect() -> HttpsClient:
        return HttpsClient(config.manager, certificate_sha256=hashlib.sha256(certificate).digest())

    node_key = NodeKey()
    transport = connect()
    transport.connect()
    enrolment = Enrolment(config, attester, transport, _claims(config, node_key))
    admission = enrolment.attest(transport)
    payload = admission.payload
    phases.write("attested", lease_until=admission.lease_until)
    mounted = _open_volumes(config, enrolment, transport)
    phases.write("opened")
    namespace = create_network()
    wire = Wire(
        payload=payload,
        identity=identity_of(admission.certificates, enrolment.tls_key),
        sealing_key=enrolment.sealing_key,
        listen=config.listen,
        peers=config.peers,
    )
    network = NetworkShield(namespace, wire)
    network.listen()
    program = _launch(payload, node_key, namespace, mounted)
    phases.write("launched")
    running = _Running(enrolment, connect, transport, mounted, network, phases)
    try:
        with program:
            return running.attend(program)
    except SecflError as error:
        phases.write_error("stopped", error)
    except Exception as error:  # noqa: BLE001 - the program was started, so the status must not say that it was not
        phases.write_error("stopped", StateError("shield.internal", f"failed with {type(error).__name__}"))
    return FAILED_SHIELD


def refuse_start(_number: int, _frame: object) -> None:
    """Handle SIGTERM until the program runs: the first process of a namespace ignores what it has no handler for.

    Raises:
        StateError: `shield.stopped`.
    """
    raise StateError("shield.stopped", "the platform asked to stop before the program was started")


@dataclass(frozen=True, slots=True)
class _Running:
    """A service whose program was launched."""

    enrolment: Enrolment
    connect: Callable[[], HttpsClient]
    transport: HttpsClient
    mounted: MountedSet
    network: NetworkShield
    phases: Phases

    def attend(self, program: RunningProgram) -> int:
        """Watch until the end, seal and release what it left; returns the exit status."""
        phases, mounted = self.phases, self.mounted
        run_directory = RunDirectory(program.run_directory)
        self.network.start(run_directory)
        watch = Watch(
            self.enrolment,
            self.connect,
            network=self.network,
            run_directory=run_directory,
            report=lambda event: phases.write("network", what=event),
        )
        watch.start()
        _watch_volumes(mounted, watch)
        phases.write("running")
        status = _wait(program, watch, {**self.network.children, **mounted.children})
        watch.end()
        status = _finish(status, mounted, watch)
        self.network.close()
        if watch.failure is not None:
            phases.write_error("stopped", watch.failure)
        phases.write("ended", status=status)
        if status == 0:
            status = self._release()
        _report(self.enrolment, self.transport, status)
        return status

    def _release(self) -> int:
        try:
            release_volumes(self.enrolment.admission.payload, self.mounted, self.enrolment, self.transport)
        except SecflError as error:
            self.phases.write_error("stopped", error)
            return NOT_SEALED
        self.phases.write("released")
        return 0


def _claims(config: LaunchConfig, node_key: NodeKey) -> LaunchClaims:
    return LaunchClaims(
        isolation=Isolation.FULL,
        instance=secrets.token_hex(16),
        roots=image_roots(config.images),
        node_key=node_key.public_text,
    )


def _open_volumes(config: LaunchConfig, enrolment: Enrolment, transport: HttpsClient) -> MountedSet:
    def push(volume: str, sequence: int, previous: bytes | None, tag: bytes) -> None:
        update = RootUpdate(
            volume=volume, sequence=sequence, previous=None if previous is None else previous.hex(), tag=tag.hex()
        )
        enrolment.call(transport, "service/roots", update)

    directories = {**config.images, **config.volumes}
    mounted = MountedSet(enrolment.identity.deployment_id, config.study, directories, push)
    for volume in enrolment.admission.payload.volumes:
        mounted.add(volume)
    return mounted


def _launch(
    payload: ServicePayload, node_key: NodeKey, namespace: NetworkNamespace, mounted: MountedSet
) -> RunningProgram:
    files = [InjectedFile(f.path, f.content, int(f.permission, 8)) for f in payload.files]
    if payload.egress:
        files.append(InjectedFile(NODE_KEY_PATH, node_key.private_text, 0o400))
    spec = ProgramSpec(
        argv=payload.command,
        env=payload.environment,
        cwd=payload.pwd,
        files=tuple(files),
        mounts=tuple(mounted.points),
    )
    console = sys.stdout.fileno() if payload.console == "pass" else os.open(os.devnull, os.O_WRONLY)
    return launch_program(spec, network=namespace, stdout=console, stderr=console, servers=mounted.servers)


def _watch_volumes(mounted: MountedSet, watch: Watch) -> None:
    def failed(code: str) -> None:
        watch.fail(StateError("shield.volume_failed", f"an operation on a volume failed: {code}"))

    for name, writable in mounted.writable.items():

        def carry(writable: Writable = writable) -> None:
            try:
                writable.process.serve(writable.keeper, failed)
            finally:
                # A server that waits for an answer that nobody will send ends when the line does.
                writable.process.close()

        writable.thread = watch.spawn(f"volume-{name}", carry)


def _wait(program: RunningProgram, watch: Watch, children: Mapping[str, int]) -> int:
    """Wait for the program; stop it when the watch fails, a helper process ends or the platform asks."""
    stop_requested: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop_requested.append(number))
    with contextlib.ExitStack() as opened:
        poll = select.poll()
        poll.register(program.fileno(), select.POLLIN)
        helpers: dict[int, str] = {}
        for name, child in children.items():
            descriptor = os.pidfd_open(child)
            opened.callback(os.close, descriptor)
            helpers[descriptor] = name
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(_POLL_MILLISECONDS)}
            if program.fileno() in ready:
                return program.wait(_GRACE_SECONDS)
            lost = sorted(helpers[descriptor] for descriptor in ready & set(helpers))
            if lost and not _settles(program, lost):
                watch.fail(StateError("shield.helper_ended", f"ended before the program: {', '.join(lost)}"))
            if watch.failed or stop_requested:
                status = program.stop(grace=_GRACE_SECONDS)
                return FAILED_SHIELD if watch.failed else status


def _settles(program: RunningProgram, lost: list[str]) -> bool:
    # A program that ends takes its mounts with it, and their servers may be seen to end first. Nothing else does.
    if not all(name.startswith("volume ") for name in lost):
        return False
    try:
        program.wait(_SETTLE_SECONDS)
    except UnavailableError:
        return False
    return True


def _finish(status: int, mounted: MountedSet, watch: Watch) -> int:
    """Make the last state of every writable volume durable and acknowledged."""
    for writable in mounted.writable.values():
        # A server whose mount has gone stops by itself; its exit status tells whether the last commit was taken.
        with contextlib.suppress(UnavailableError):
            writable.process.request_stop()
        if writable.thread is not None:
            writable.thread.join()
        if writable.process.wait() != 0:
            watch.fail(StateError("volume.not_sealed", "the last state of a volume was not acknowledged"))
    if watch.failure is not None and status == 0:
        return NOT_SEALED
    return status


def _report(enrolment: Enrolment, transport: HttpsClient, status: int) -> None:
    try:
        enrolment.call(transport, "service/exit", Exit(status=status))
    except SecflError:
        # The lease ends by itself; the program's status is what counts for the operator.
        return
